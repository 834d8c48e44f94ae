"""Key-value calls against nats-py, a raw socket and Redis, all with values of 128 bytes in memory."""

from __future__ import annotations

import contextlib
import queue
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.measure import (
    Compare,
    Figure,
    Goals,
    Loop,
    Record,
    Row,
    Thread,
    in_threads,
    on_thread,
    repeated,
    spaced,
)
from benchmarks.memory import growth_of_unread_watcher
from benchmarks.peers.contender import KEY, VALUE, Blocking, Contender, Operation, Ours
from benchmarks.peers.nats_py import InLoop
from benchmarks.peers.raw_socket import RawSocket
from mono_sync import EmbeddedServer, KVBucket, Watcher

NewBucket = Callable[[int], KVBucket]
NewInLoop = Callable[[str], InLoop]

MEBIBYTE = 1 << 20

ONE_THREAD = {"naive": Goals(must=0.60, aim=0.45), "nats_py": Goals(must=1.0, aim=0.75), "raw_socket": Goals()}
MANY_THREADS = {"naive": Goals(must=1.5, aim=2, at_least=True), "redis_py": Goals(aim=1, at_least=True)}
BATCH = {"loop": Goals(must=10, aim=15, at_least=True), "raw": Goals()}
MANY_KEYS = Goals(must=1, aim=1.5, at_least=True)


on_each_loop = pytest.mark.parametrize("loop", ["asyncio", "uvloop"])


@pytest.mark.benchmark(group="one thread")
@pytest.mark.parametrize("peer", ONE_THREAD)
@pytest.mark.parametrize("thread", ["main", "worker"])
@pytest.mark.parametrize("operation", ["get", "set"])
@on_each_loop
def test_one_thread(
    compare: Compare,
    ours: Ours,
    request: pytest.FixtureRequest,
    *,
    loop: Loop,
    operation: Operation,
    thread: Thread,
    peer: str,
) -> None:
    contender: Contender = request.getfixturevalue(peer)
    figure = Figure(f"{operation}, {thread} thread, {loop}", contender.name, ONE_THREAD[peer])
    mine, theirs = ours.repeat(operation, 50), contender.repeat(operation, 50)
    on_thread(thread, lambda: compare(figure, mine, theirs, rounds=80))


@pytest.mark.benchmark(group="32 threads")
@pytest.mark.parametrize("peer", MANY_THREADS)
@pytest.mark.parametrize("operation", ["get", "set"])
@on_each_loop
def test_many_threads(
    compare: Compare, ours: Ours, request: pytest.FixtureRequest, *, loop: Loop, operation: Operation, peer: str
) -> None:
    contender: Blocking = request.getfixturevalue(peer)
    figure = Figure(f"{operation}, 32 threads, {loop}", contender.name, MANY_THREADS[peer], per_second=True)
    mine, theirs = (in_threads(who.call(operation), threads=32, calls=25) for who in (ours, contender))
    compare(figure, mine, theirs, rounds=40)


@pytest.mark.benchmark(group="batches")
@pytest.mark.parametrize("peer", BATCH)
@pytest.mark.parametrize("operation", ["get", "set"])
def test_batch(
    compare: Compare, new_bucket: NewBucket, server: EmbeddedServer, *, operation: Operation, peer: str
) -> None:
    bucket = new_bucket(1000)
    values = {f"key.{number}": VALUE for number in range(1000)}

    def get_many() -> None:
        assert len(bucket.get_many(values)) == len(values)

    def get_each() -> None:
        for key in values:
            bucket.get(key)

    def set_many() -> None:
        assert len(bucket.set_many(values)) == len(values)

    def set_each() -> None:
        for key, value in values.items():
            bucket.set(key, value)

    with contextlib.closing(RawSocket(server.url, server.token, bucket.name)) as raw:
        many, each, at_once = {
            "get": (get_many, get_each, partial(raw.fetch, values, ahead=1000)),
            "set": (set_many, set_each, partial(raw.fill, values, VALUE, ahead=1000)),
        }[operation]
        theirs, name = (each, f"{operation} in a loop") if peer == "loop" else (at_once, raw.name)
        figure = Figure(f"{operation}_many of 1,000", name, BATCH[peer])
        compare(figure, repeated(many, 1), repeated(theirs, 1), rounds=15 if peer == "loop" else 60)


@pytest.mark.timeout(300)
@pytest.mark.benchmark(group="100,000 keys")
def test_keys(compare: Compare, benchmark: BenchmarkFixture, new_bucket: NewBucket, new_nats_py: NewInLoop) -> None:
    count = 100_000 if benchmark.enabled else 1000
    bucket = new_bucket(count)
    nats_py = new_nats_py(bucket.name)

    def list_keys() -> None:
        assert len(bucket.keys(timeout=None)) == count

    figure = Figure("keys() of 100,000", nats_py.name, MANY_KEYS)
    compare(figure, repeated(list_keys, 1), lambda: nats_py.list_keys(count), rounds=5)


@pytest.mark.timeout(300)
@pytest.mark.benchmark(group="100,000 keys")
def test_snapshot(compare: Compare, benchmark: BenchmarkFixture, new_bucket: NewBucket, new_nats_py: NewInLoop) -> None:
    count = 100_000 if benchmark.enabled else 1000
    bucket = new_bucket(count)
    nats_py = new_nats_py(bucket.name)

    def read_snapshot() -> None:
        with bucket.watch_all() as watcher:
            assert len(watcher.snapshot(timeout=None)) == count

    figure = Figure("watch snapshot of 100,000", nats_py.name, MANY_KEYS)
    compare(figure, repeated(read_snapshot, 1), lambda: nats_py.read_snapshot(count), rounds=5)


@contextlib.contextmanager
def arrivals(watcher: Watcher) -> Iterator[queue.SimpleQueue[float]]:
    """Yield when each entry came to a thread that does nothing but wait for the next."""
    arrived: queue.SimpleQueue[float] = queue.SimpleQueue()

    def read() -> None:
        for _ in watcher:
            arrived.put(time.perf_counter())

    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(read)
        try:
            yield arrived
        finally:
            watcher.stop()
        reading.result()


@pytest.mark.benchmark(group="watchers")
@pytest.mark.parametrize("thread", ["main", "worker"])
def test_time_to_a_watcher(compare: Compare, bucket: KVBucket, new_bucket: NewBucket, thread: Thread) -> None:
    watched = new_bucket(1)

    def set_one() -> float:
        start = time.perf_counter()
        bucket.set(KEY, VALUE)
        return time.perf_counter() - start

    with watched.watch_all() as watcher, arrivals(watcher) as arrived:
        arrived.get(timeout=10)  # the key that is there

        def until_seen() -> float:
            start = time.perf_counter()
            watched.set(KEY, VALUE)
            return arrived.get(timeout=10) - start

        figure = Figure(f"set until a watcher has it, {thread} thread", "one set", Goals(must=2, aim=1.3))
        on_thread(thread, lambda: compare(figure, spaced(until_seen, 25), spaced(set_one, 25), rounds=20))


@pytest.mark.timeout(300)
@pytest.mark.benchmark(group="watchers")
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_of_an_unread_watcher(
    benchmark: BenchmarkFixture, record: Record, server: EmbeddedServer, new_bucket: NewBucket
) -> None:
    size = MEBIBYTE // 16
    count = (400 if benchmark.enabled else 4) * 16

    def growth(client: str) -> float:
        return growth_of_unread_watcher(client, server, new_bucket(0).name, count, size) / MEBIBYTE

    ours = benchmark.pedantic(growth, args=("mono_sync",))  # type: ignore[no-untyped-call]
    goals = Goals(must=16)
    if benchmark.enabled:
        theirs = growth("nats-py")
        row = Row(
            figure="memory of an unread watcher, 400 MiB written",
            ours=f"{ours:.1f} MiB",
            peer=f"{theirs:.0f} MiB nats-py async",
            ratio="",
            must=f"{goals.shown(goals.must)} MiB",
            aim="",
            reached=goals.reached(ours),
        )
        record(row, ours_mebibytes=ours, peer_mebibytes=theirs)
