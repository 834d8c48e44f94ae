"""Peers of one run share one server, and take turns, so that a machine that changes its speed changes it for both."""

from __future__ import annotations

import asyncio
import statistics
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, TypeVar

import nats
import pytest
from nats.js.kv import KeyValue
from pytest_benchmark.fixture import BenchmarkFixture

import mono_sync

T = TypeVar("T")

VALUE = b"v" * 128
BUCKET = mono_sync.KVBucketConfig("benchmark", storage="memory")


@pytest.fixture(scope="session")
def server() -> Iterator[mono_sync.EmbeddedServer]:
    with mono_sync.EmbeddedServer() as server:
        yield server


@pytest.fixture(scope="session")
def bucket(server: mono_sync.EmbeddedServer) -> Iterator[mono_sync.KVBucket]:
    with mono_sync.connect(server.url, token=server.token) as connection:
        bucket = connection.kv(BUCKET)
        bucket.set("key", VALUE)
        yield bucket


class Naive:
    """What a user of nats-py would write: its KeyValue, driven by ``run_coroutine_threadsafe``."""

    def __init__(self, url: str, token: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._client = self.run(nats.connect(url, token=token))
        self.bucket: KeyValue = self.run(self._client.jetstream().key_value(BUCKET.name))

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def get(self) -> None:
        self.run(self.bucket.get("key"))

    def put(self) -> None:
        self.run(self.bucket.put("key", VALUE))

    def close(self) -> None:
        self.run(self._client.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@pytest.fixture(scope="session")
def naive(server: mono_sync.EmbeddedServer, bucket: mono_sync.KVBucket) -> Iterator[Naive]:
    assert bucket.name == BUCKET.name  # it exists by now
    naive = Naive(server.url, server.token)
    yield naive
    naive.close()


def compare(
    benchmark: BenchmarkFixture, ours: Callable[[], object], peer: Callable[[], object], *, rounds: int, calls: int
) -> None:
    """Benchmark ``ours``; run ``peer`` in turn with it, and record its median and the median of the paired ratios."""

    def timed(function: Callable[[], object]) -> float:
        start = time.perf_counter()
        for _ in range(calls):
            function()
        return (time.perf_counter() - start) / calls

    timed(peer)
    timed(ours)
    pairs = [(timed(ours), timed(peer)) for _ in range(rounds)]
    benchmark.extra_info.update(
        ours_us=round(statistics.median(mine for mine, _ in pairs) * 1e6, 1),
        peer_us=round(statistics.median(theirs for _, theirs in pairs) * 1e6, 1),
        ratio=round(statistics.median(mine / theirs for mine, theirs in pairs), 3),
    )
    benchmark.pedantic(ours, rounds=rounds, iterations=calls, warmup_rounds=1)  # type: ignore[no-untyped-call]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print what was recorded beside the times."""
    session = getattr(config, "_benchmarksession", None)
    for measured in getattr(session, "benchmarks", []):
        if measured.extra_info:
            facts = ", ".join(f"{name} {value}" for name, value in measured.extra_info.items())
            terminalreporter.write_line(f"{measured.name}: {facts}")
