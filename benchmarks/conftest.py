"""Ours and peers on one server in one run, and the table of what was measured.

In each round both run once, one right after the other, so that a machine that changes its speed changes it for both.
"""

from __future__ import annotations

import itertools
import os
import platform
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import asdict
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

import mono_sync
from benchmarks.measure import Compare, Loop, Record, Row, compare, table
from benchmarks.peers.contender import Blocking, Ours
from benchmarks.peers.nats_py import InLoop, Naive, NewLoop
from benchmarks.peers.raw_socket import RawSocket
from mono_sync.loop import has_uvloop, new_event_loop

BUCKET = mono_sync.KVBucketConfig("benchmark", storage="memory")

Place = tuple[str, int, str]  # in the source, from which the order of the rows is taken
ROWS = pytest.StashKey[list[tuple[Place, Row]]]()
CONDITIONS = pytest.StashKey[dict[str, str]]()


# --- the server, and ours


@pytest.fixture(scope="session")
def server() -> Iterator[mono_sync.EmbeddedServer]:
    with mono_sync.EmbeddedServer() as server:
        yield server


@pytest.fixture(scope="session")
def connection(server: mono_sync.EmbeddedServer, pytestconfig: pytest.Config) -> Iterator[mono_sync.Connection]:
    with mono_sync.connect(server.url, token=server.token, uvloop=False) as connection:
        pytestconfig.stash[CONDITIONS]["nats-server"] = connection.server_info.version
        yield connection


@pytest.fixture(scope="session")
def connection_on_uvloop(
    server: mono_sync.EmbeddedServer, pytestconfig: pytest.Config
) -> Iterator[mono_sync.Connection]:
    if not has_uvloop():
        pytest.skip('no uvloop: `pip install "mono-sync[speed]"`')
    pytestconfig.stash[CONDITIONS]["uvloop"] = version("uvloop")
    with mono_sync.connect(server.url, token=server.token, uvloop=True) as connection:
        yield connection


@pytest.fixture
def loop() -> Loop:
    """The kind of event loop that our connection runs on, and nats-py where it is awaited."""
    return "asyncio"


@pytest.fixture(scope="session")
def bucket(connection: mono_sync.Connection) -> mono_sync.KVBucket:
    return connection.kv(BUCKET)


@pytest.fixture
def ours(bucket: mono_sync.KVBucket, loop: Loop, request: pytest.FixtureRequest) -> Ours:
    if loop == "asyncio":
        return Ours(bucket)
    connection: mono_sync.Connection = request.getfixturevalue("connection_on_uvloop")
    return Ours(connection.kv(bucket.name))


@pytest.fixture
def new_bucket(
    connection: mono_sync.Connection, server: mono_sync.EmbeddedServer
) -> Iterator[Callable[[int], mono_sync.KVBucket]]:
    """Make a bucket with so many keys of 128 bytes, which is deleted after the test."""
    numbers = itertools.count(1)
    with ExitStack() as stack:

        def new(keys: int) -> mono_sync.KVBucket:
            name = f"benchmark_{next(numbers)}"
            bucket = connection.kv(mono_sync.KVBucketConfig(name, storage="memory"))
            stack.callback(connection.request, f"$JS.API.STREAM.DELETE.KV_{name}")
            with closing(RawSocket(server.url, server.token, name)) as client:
                client.fill((f"key.{number}" for number in range(keys)), b"v" * 128, ahead=1000)
            return bucket

        yield new


# --- peers


@pytest.fixture
def naive(server: mono_sync.EmbeddedServer, bucket: mono_sync.KVBucket) -> Iterator[Naive]:
    with closing(Naive(server, bucket.name)) as naive:
        yield naive


@pytest.fixture
def new_loop(loop: Loop) -> NewLoop:
    """Makes a loop for nats-py."""
    return partial(new_event_loop, uvloop=loop == "uvloop")


@pytest.fixture
def new_nats_py(server: mono_sync.EmbeddedServer, new_loop: NewLoop) -> Iterator[Callable[[str], InLoop]]:
    """nats-py in its own loop, for any bucket."""
    with ExitStack() as stack:
        yield lambda bucket: stack.enter_context(closing(InLoop(server, bucket, new_loop)))


@pytest.fixture
def nats_py(bucket: mono_sync.KVBucket, new_nats_py: Callable[[str], InLoop]) -> InLoop:
    return new_nats_py(bucket.name)


@pytest.fixture
def raw_socket(server: mono_sync.EmbeddedServer, bucket: mono_sync.KVBucket) -> Iterator[RawSocket]:
    with closing(RawSocket(server.url, server.token, bucket.name)) as client:
        yield client


@pytest.fixture(scope="session")
def redis_py(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Iterator[Blocking]:
    binary = shutil.which("redis-server")
    if binary is None:
        pytest.skip("no redis-server: `apt install redis-server`")
    if find_spec("redis") is None:
        pytest.skip('no redis-py: `pip install "mono-sync[benchmarks]"`')
    from benchmarks.peers.redis_py import running_redis  # noqa: PLC0415  # only where it can be imported

    with running_redis(binary, tmp_path_factory.mktemp("redis")) as client:
        pytestconfig.stash[CONDITIONS] |= {"redis-server": client.server_version(), "redis-py": version("redis")}
        yield client


# --- what was measured


@pytest.fixture
def record(request: pytest.FixtureRequest, benchmark: BenchmarkFixture) -> Record:
    """Keep a row for the table, and in the JSON."""

    def keep(row: Row, /, **facts: Any) -> None:
        benchmark.extra_info.update(asdict(row), **facts)
        request.config.stash[ROWS].append((request.node.location, row))

    return keep


@pytest.fixture(name="compare")
def comparing(benchmark: BenchmarkFixture, record: Record) -> Compare:
    return partial(compare, benchmark, record)


def pytest_configure(config: pytest.Config) -> None:
    """Show our table alone, without those of pytest-benchmark, which do not know of the peers."""
    config.stash[ROWS] = []
    config.stash[CONDITIONS] = {
        "Python": platform.python_version(),
        "cores": str(os.cpu_count()),
        "load before": f"{os.getloadavg()[0]:.1f}",
        "nats-py": version("nats-py"),
    }
    if not (config.option.benchmark_compare or config.option.benchmark_verbose):
        config.option.benchmark_quiet = True


def pytest_benchmark_update_json(config: pytest.Config, output_json: dict[str, Any]) -> None:
    output_json["conditions"] = config.stash[CONDITIONS]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    placed = config.stash[ROWS]
    if not placed:
        return
    terminalreporter.section("ours against peers")
    terminalreporter.write_line(", ".join(f"{what} {which}" for what, which in config.stash[CONDITIONS].items()))
    terminalreporter.write_line("")
    for line in table(row for _, row in sorted(placed, key=lambda entry: entry[0])):
        terminalreporter.write_line(line)
