"""Reading objects, against nats-py's ObjectStore and a raw socket: file storage, chunks of 128 KiB."""

from __future__ import annotations

import hashlib
import io
import os
import random
import shutil
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

import mono_sync
from benchmarks.measure import Compare, Figure, Goals, Record, Row, Run, in_threads, repeated
from benchmarks.memory import most_resident_while_reading
from benchmarks.peers.nats_py import NewLoop
from benchmarks.peers.object_stores import Drain, NatsPyStore
from mono_sync import Connection, EmbeddedServer, FSBucketConfig, ObjectBucket

MEBIBYTE = 1 << 20
SMALL = 4096
THREADS = 8

TO_A_FILE = Goals(must=8, aim=12, at_least=True)
IN_MEMORY = Goals(must=40, aim=80, at_least=True)
FLOOR = Goals(must=0.4, aim=0.6, at_least=True)
SMALL_ONES = Goals(must=1.5, aim=2, at_least=True)

Store = Callable[[int], ObjectBucket]


@pytest.fixture
def stored(connection: Connection, benchmark: BenchmarkFixture) -> Iterator[Store]:
    """Make a bucket with an object ``k`` of so many MiB, which is deleted after the test."""
    with ExitStack() as stack:

        def store(mebibytes: int) -> ObjectBucket:
            bucket = connection.objects(FSBucketConfig("benchmark"))
            stack.callback(connection.request, "$JS.API.STREAM.DELETE.OBJ_benchmark")
            bucket.put("k", random.Random(1).randbytes(MEBIBYTE) * _scaled(benchmark, mebibytes), timeout=None)
            return bucket

        yield store


@pytest.fixture
def new_store(server: EmbeddedServer, new_loop: NewLoop) -> Iterator[Callable[[ObjectBucket], NatsPyStore]]:
    with ExitStack() as stack:
        yield lambda bucket: stack.enter_context(closing(NatsPyStore(server, bucket.name, new_loop)))


NewStore = Callable[[ObjectBucket], NatsPyStore]


def _scaled(benchmark: BenchmarkFixture, mebibytes: int) -> int:
    """Return the size of an object: a small one where it is only shown that it works."""
    return mebibytes if benchmark.enabled else min(mebibytes, 4)


def _to_a_file(bucket: ObjectBucket, path: Path) -> Callable[[], float]:
    """Return what copies the object to a new file: to empty an old one, and to close it, takes the disk its time."""

    def copy() -> float:
        path.unlink(missing_ok=True)
        start = time.perf_counter()
        with bucket.get_reader("k", timeout=60) as reader, path.open("wb") as target:
            shutil.copyfileobj(reader, target)
        return time.perf_counter() - start

    return copy


@pytest.mark.timeout(300)
@pytest.mark.benchmark(group="objects")
def test_reader_to_a_file(compare: Compare, stored: Store, new_store: NewStore, tmp_path: Path) -> None:
    bucket = stored(256)
    nats_py = new_store(bucket)
    figure = Figure("get_reader to a file, 256 MiB", nats_py.name, TO_A_FILE)
    theirs = tmp_path / "theirs"
    compare(
        figure,
        _to_a_file(bucket, tmp_path / "ours"),
        lambda: nats_py.get_into("k", theirs),
        rounds=5,
    )
    assert theirs.read_bytes() == (tmp_path / "ours").read_bytes()


@pytest.mark.timeout(300)
@pytest.mark.benchmark(group="objects")
def test_get(compare: Compare, stored: Store, new_store: NewStore) -> None:
    bucket = stored(64)
    nats_py, size = new_store(bucket), bucket.stat("k").size

    def get() -> None:
        assert len(bucket.get("k", b"", timeout=60)) == size

    figure = Figure("get() as bytes, 64 MiB", nats_py.name, IN_MEMORY)
    compare(figure, repeated(get, 1), lambda: nats_py.get("k", size), rounds=3)


@pytest.mark.timeout(300)
@pytest.mark.benchmark(group="objects")
@pytest.mark.parametrize("hashed", [False, True])
@pytest.mark.parametrize("how", ["get_reader to a file", "get_reader, nothing kept", "get()"])
def test_against_the_floor(
    compare: Compare, stored: Store, server: EmbeddedServer, tmp_path: Path, *, how: str, hashed: bool
) -> None:
    bucket = stored(256)

    def throw_away() -> None:
        with bucket.get_reader("k", timeout=60) as reader:
            while reader.read1():
                pass

    def get() -> None:
        bucket.get("k", timeout=60)

    read = {
        "get_reader to a file": _to_a_file(bucket, tmp_path / "ours"),
        "get_reader, nothing kept": repeated(throw_away, 1),
        "get()": repeated(get, 1),
    }[how]
    with closing(Drain(server, bucket.stat("k"))) as floor:
        title = f"{how}, 256 MiB"
        if hashed:
            theirs = _with_its_work(floor, how, tmp_path / "theirs")
            compare(Figure(title, f"{floor.name}, same work", Goals(at_least=True)), read, theirs, rounds=7)
        else:
            compare(Figure(title, floor.name, FLOOR), read, floor.run, rounds=7)


def _with_its_work(floor: Drain, how: str, path: Path) -> Run:
    """Return the floor with what reading an object takes at least: a digest, and a place for the bytes."""

    def run() -> float:
        path.unlink(missing_ok=True)
        content = hashlib.sha256()
        with path.open("wb") if how == "get_reader to a file" else io.BytesIO() as target:

            def work(piece: memoryview) -> None:
                content.update(piece)
                if how != "get_reader, nothing kept":
                    target.write(piece)

            return floor.run(work)

    return run


@pytest.mark.timeout(300)
@pytest.mark.benchmark(group="objects")
def test_many_small_objects(compare: Compare, benchmark: BenchmarkFixture, stored: Store, new_store: NewStore) -> None:
    bucket = stored(0)
    count = 10_000 if benchmark.enabled else 80
    keys = [f"k{number}" for number in range(count)]
    for key in keys:
        bucket.put(key, bytes(SMALL))
    nats_py = new_store(bucket)

    def ours() -> float:
        numbers = iter(keys * 2)
        return in_threads(lambda: bucket.get(next(numbers)), THREADS, count // THREADS)()

    figure = Figure("get of 10,000 objects of 4 KiB, 8 threads", f"{nats_py.name}, 8 tasks", SMALL_ONES, True)
    compare(figure, ours, lambda: nats_py.get_each(keys, THREADS), rounds=3)


# --- memory and bytes


@pytest.mark.timeout(300)
@pytest.mark.benchmark(group="objects")
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_of_a_reader(benchmark: BenchmarkFixture, record: Record, server: EmbeddedServer, stored: Store) -> None:
    bucket = stored(1024)
    size = bucket.stat("k").size
    growth = benchmark.pedantic(  # type: ignore[no-untyped-call]
        lambda: most_resident_while_reading(server, bucket.name, "k", size) / MEBIBYTE
    )
    goals = Goals(must=32, aim=16)
    row = Row(
        figure="memory of a reader, 1 GiB",
        ours=f"{growth:.1f} MiB",
        peer="",
        ratio="",
        must=f"{goals.shown(goals.must)} MiB",
        aim=f"{goals.shown(goals.aim)} MiB",
        reached=goals.reached(growth),
    )
    if benchmark.enabled:
        record(row, ours_mebibytes=growth)


class Meter:
    """Stands between a client and a server, and counts the bytes that the server sends."""

    def __init__(self, url: str) -> None:
        host, _, port = url.partition("://")[2].rpartition(":")
        self._target = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._sockets = [self._listener]
        self.url = f"nats://127.0.0.1:{self._listener.getsockname()[1]}"
        self.received = 0
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with suppress(OSError):
            client, _ = self._listener.accept()
            server = socket.create_connection(self._target)
            self._sockets += [client, server]
            threading.Thread(target=self._pump, args=(client, server), daemon=True).start()
            self._pump(server, client)

    def _pump(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                self.received += len(data) if source.getpeername() == self._target else 0
                target.sendall(data)

    def close(self) -> None:
        for each in self._sockets:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()


@pytest.mark.timeout(300)
@pytest.mark.benchmark(group="objects")
def test_bytes_of_a_part(benchmark: BenchmarkFixture, record: Record, server: EmbeddedServer, stored: Store) -> None:
    bucket = stored(1024)
    size, chunk = bucket.stat("k").size, 128 * 1024
    chance = random.Random(2)

    def most_beyond() -> int:
        """Return by how many bytes the most expensive of many reads exceeded what was wanted."""
        beyond = []
        with closing(Meter(server.url)) as meter, mono_sync.connect(meter.url, token=server.token) as connection:
            objects = connection.objects(bucket.name)
            for _ in range(50):
                before = meter.received
                with objects.get_reader("k") as reader:
                    reader.seek(chance.randrange(size - MEBIBYTE))
                    assert len(reader.read(MEBIBYTE)) == MEBIBYTE
                beyond.append(meter.received - before - MEBIBYTE)
        return max(beyond)

    chunks = benchmark.pedantic(most_beyond, rounds=1) / chunk  # type: ignore[no-untyped-call]
    goals = Goals(must=2)
    row = Row(
        figure="1 MiB anywhere in 1 GiB, bytes beyond it",
        ours=f"{chunks:.2f} chunks",
        peer="",
        ratio="",
        must=f"{goals.shown(goals.must)} chunks",
        aim="",
        reached=goals.reached(chunks),
    )
    if benchmark.enabled:
        record(row, most_chunks_beyond=chunks)


# --- others on the same connection


@pytest.mark.timeout(300)
@pytest.mark.benchmark(group="objects")
def test_key_value_calls_beside_a_download(
    benchmark: BenchmarkFixture, record: Record, connection: Connection, stored: Store
) -> None:
    objects = stored(1024)
    keys = connection.kv(mono_sync.KVBucketConfig("beside", storage="memory"))
    keys.set("k", b"v" * 128)

    def p99(going_on: Callable[[], bool]) -> float:
        times = []
        while going_on():
            start = time.perf_counter()
            keys.get("k")
            times.append(time.perf_counter() - start)
            time.sleep(0.001)
        return sorted(times)[len(times) * 99 // 100]

    def download() -> None:
        with objects.get_reader("k", timeout=60) as reader, Path(os.devnull).open("wb") as target:
            shutil.copyfileobj(reader, target)

    def beside() -> float:
        thread = threading.Thread(target=download)
        thread.start()
        try:
            return p99(thread.is_alive)
        finally:
            thread.join()

    calls = iter(range(1000))
    idle = p99(lambda: next(calls, None) is not None)
    busy = benchmark.pedantic(beside, rounds=1)  # type: ignore[no-untyped-call]
    connection.request("$JS.API.STREAM.DELETE.KV_beside")
    row = Row(
        figure="KV get p99 beside a download of 1 GiB",
        ours=f"{busy * 1e3:.2f} ms",
        peer=f"{idle * 1e3:.2f} ms idle",
        ratio=f"{busy / idle:.1f}",
        must="",
        aim="",
        reached="",
    )
    if benchmark.enabled:
        record(row, busy_p99_seconds=busy, idle_p99_seconds=idle)
