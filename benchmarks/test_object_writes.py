"""Storing objects, against nats-py's ObjectStore and a raw socket: file storage, chunks of 128 KiB."""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path
from threading import Event

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.measure import Compare, Figure, Goals, Record, Row
from benchmarks.memory import program
from benchmarks.peers.nats_py import NewLoop
from benchmarks.peers.object_writers import RawWriter, StoreInLoop
from mono_sync import Connection, EmbeddedServer, FSBucketConfig, KVBucket, ObjectBucket

MEBIBYTE = 1 << 20
CHUNK = 128 * 1024
THREADS = 8

LARGE = Goals(must=2, aim=3, at_least=True)
FLOOR = Goals(must=0.4, aim=0.6, at_least=True)
MANY = Goals(must=1.5, aim=2, at_least=True)


@pytest.fixture
def objects(connection: Connection) -> Iterator[ObjectBucket]:
    bucket = connection.objects(FSBucketConfig("benchmark_writes"))
    yield bucket
    connection.request("$JS.API.STREAM.DELETE.OBJ_benchmark_writes")


@pytest.fixture
def emptied(connection: Connection, objects: ObjectBucket) -> Callable[[], None]:
    """Empty the bucket; done before each run, so that all find the same."""
    return lambda: _checked(connection.request(f"$JS.API.STREAM.PURGE.OBJ_{objects.name}", timeout=30).data)


def _checked(answer: bytes) -> None:
    assert b'"success":true' in answer.replace(b" ", b"")


@pytest.fixture
def nats_py(server: EmbeddedServer, objects: ObjectBucket, new_loop: NewLoop) -> Iterator[StoreInLoop]:
    with closing(StoreInLoop(server, objects.name, new_loop)) as store:
        yield store


@pytest.fixture
def size(benchmark: BenchmarkFixture) -> int:
    return (256 if benchmark.enabled else 4) * MEBIBYTE


@pytest.fixture
def file(tmp_path: Path, size: int) -> Path:
    path = tmp_path / "large"
    with path.open("wb") as file:
        for _ in range(size // MEBIBYTE):
            file.write(os.urandom(MEBIBYTE))
    return path


def _put_file(objects: ObjectBucket, path: Path) -> float:
    start = time.perf_counter()
    with path.open("rb") as file:
        objects.put_reader("large", file, timeout=None)
    return time.perf_counter() - start


@pytest.mark.timeout(300)
@pytest.mark.benchmark(group="large objects")
def test_put_reader(
    compare: Compare, objects: ObjectBucket, emptied: Callable[[], None], nats_py: StoreInLoop, file: Path
) -> None:
    def ours() -> float:
        emptied()
        return _put_file(objects, file)

    def theirs() -> float:
        emptied()
        return nats_py.put_file(file)

    figure = Figure("put_reader, 256 MiB from a file", f"{nats_py.name} put(file)", LARGE)
    compare(figure, ours, theirs, rounds=9)


@pytest.mark.timeout(300)
@pytest.mark.benchmark(group="large objects")
def test_put_reader_against_the_floor(
    compare: Compare, server: EmbeddedServer, objects: ObjectBucket, emptied: Callable[[], None], file: Path
) -> None:
    count = file.stat().st_size // CHUNK

    def ours() -> float:
        emptied()
        return _put_file(objects, file)

    def floor() -> float:
        emptied()
        with closing(RawWriter(server.url, server.token, objects.name)) as writer:
            return writer.put_chunks(objects.name, count, CHUNK, ahead=16)

    figure = Figure("put_reader, 256 MiB from a file", "raw socket, chunks only", FLOOR)
    compare(figure, ours, floor, rounds=9)


@pytest.mark.timeout(300)
@pytest.mark.benchmark(group="small objects")
@pytest.mark.parametrize(("tasks", "goals"), [(1, MANY), (THREADS, Goals())])
def test_many_small_objects(
    compare: Compare,
    benchmark: BenchmarkFixture,
    objects: ObjectBucket,
    emptied: Callable[[], None],
    nats_py: StoreInLoop,
    *,
    tasks: int,
    goals: Goals,
) -> None:
    count, value = 10_000 if benchmark.enabled else 100, os.urandom(4096)

    def work(first: int) -> None:
        for number in range(first, count, THREADS):
            objects.put(f"ours.{number}", value, timeout=30)

    def ours() -> float:
        emptied()
        with ThreadPoolExecutor(THREADS) as pool:
            start = time.perf_counter()
            list(pool.map(work, range(THREADS)))
            return (time.perf_counter() - start) / count

    def theirs() -> float:
        emptied()
        return nats_py.put_many(count, value, tasks=tasks)

    how = "one after the other" if tasks == 1 else f"{tasks} tasks"
    figure = Figure("put of 10,000 x 4 KiB, 8 threads", f"{nats_py.name}, {how}", goals, per_second=True)
    compare(figure, ours, theirs, rounds=5)


@pytest.mark.timeout(300)
@pytest.mark.benchmark(group="large objects")
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_of_put_reader(
    benchmark: BenchmarkFixture, record: Record, server: EmbeddedServer, objects: ObjectBucket
) -> None:
    size = (1024 if benchmark.enabled else 4) * MEBIBYTE

    def growth() -> float:
        with program("write_object", server.url, server.token, objects.name, str(size)) as writer:
            printed, _ = writer.communicate()
            assert writer.returncode == 0
            return int(printed) / MEBIBYTE

    ours = benchmark.pedantic(growth)  # type: ignore[no-untyped-call]
    if benchmark.enabled:
        goals = Goals(must=32, aim=16)
        row = Row(
            figure="memory of put_reader, 1 GiB",
            ours=f"{ours:.1f} MiB",
            peer="",
            ratio="",
            must=f"{goals.shown(goals.must)} MiB",
            aim=f"{goals.shown(goals.aim)} MiB",
            reached=goals.reached(ours),
        )
        record(row, ours_mebibytes=ours)


@pytest.mark.timeout(300)
@pytest.mark.benchmark(group="large objects")
def test_key_value_calls_during_an_upload(
    compare: Compare, bucket: KVBucket, objects: ObjectBucket, emptied: Callable[[], None], file: Path
) -> None:
    """The 99th percentile, on the same connection."""
    bucket.set("key", b"v" * 128)

    def p99(calls: int = 1000) -> float:
        times = list[float]()
        for _ in range(calls):
            start = time.perf_counter()
            bucket.get("key", timeout=10)
            times.append(time.perf_counter() - start)
        return statistics.quantiles(times, n=100)[98]

    def busy() -> float:
        emptied()
        ended = Event()

        def upload() -> None:
            while not ended.is_set():
                _put_file(objects, file)

        with ThreadPoolExecutor(1) as pool, ExitStack() as stack:
            stack.callback(ended.set)
            pool.submit(upload)
            return p99()

    compare(Figure("p99 of a KV get during put_reader", "idle"), busy, p99, rounds=5)
