"""Streams of objects under everything that goes wrong while they are read."""

from __future__ import annotations

import io
import itertools
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest

import mono_sync
from mono_sync import (
    BucketNotFoundError,
    Connection,
    DigestMismatchError,
    FSBucketConfig,
    ObjectBucket,
    ObjectChangedError,
    ObjectReader,
    OperationTimeoutError,
    StorageError,
)
from mono_sync._durations import Deadline
from mono_sync.adapter import Message
from mono_sync.connection import Delivery, Inbox, _delivery
from mono_sync.storage.objects import _reader, _source
from mono_sync.storage.objects._sinks import _LARGE_CHUNK
from tests.fixtures.servers import RunNatsServer
from tests.fixtures.waiting import wait_until
from tests.storage.conftest import NewObjects
from tests.storage.foreign import ForeignUpload, upload
from tests.storage.helpers import CutProxy, raw_objects, together
from tests.support.signals import Stop
from tests.support.steps import Signalled
from tests.support.threads import Background

CHUNK = 128 * 1024
SMALL = 1000
CONTENT = random.Random(1).randbytes(60_500)


def _store(bucket: ObjectBucket, content: bytes = CONTENT, key: str = "k") -> None:
    """Store an object of many small chunks."""
    upload(bucket, key, content, [SMALL], chunk_size=SMALL)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Old servers do not tell that there is nothing any more: it is not waited for as long."""
    monkeypatch.setattr(_delivery, "_PATIENCE", 0.3)


def _read_in_pieces(reader: ObjectReader, size: int = 700) -> bytes:
    return b"".join(iter(lambda: reader.read(size), b""))


# --- broken connections and servers


@pytest.fixture
def proxy(connection: Connection) -> Iterator[CutProxy]:
    with CutProxy(connection.server_info.url) as proxy:
        yield proxy


@pytest.fixture
def far(connection: Connection, proxy: CutProxy, objects: ObjectBucket) -> Iterator[ObjectBucket]:
    """The bucket through a connection that the proxy can break."""
    token = connection.config.token
    with mono_sync.connect(proxy.url, token=token, reconnect_wait=0.02, reconnect_max_wait=0.1) as far:
        yield far.objects(objects.name)


@pytest.mark.parametrize("after", [True, False])
@pytest.mark.parametrize(("pattern", "occurrence"), [(b"CONSUMER.CREATE", 1), (b"MSG.NEXT", 1), (b"MSG.NEXT", 4)])
def test_reader_goes_on_where_it_was_when_the_connection_breaks(
    far: ObjectBucket, proxy: CutProxy, objects: ObjectBucket, *, pattern: bytes, occurrence: int, after: bool
) -> None:
    _store(objects)
    with far.open("k") as reader:
        proxy.cut_at(pattern, occurrence=occurrence, after=after)
        assert _read_in_pieces(reader) == CONTENT
    assert proxy.cuts == 1


@pytest.mark.parametrize("after", [True, False])
@pytest.mark.parametrize("occurrence", [1, 2, 3])
def test_jump_goes_on_when_the_connection_breaks(
    far: ObjectBucket, proxy: CutProxy, objects: ObjectBucket, *, occurrence: int, after: bool
) -> None:
    _store(objects)
    with far.open("k") as reader:
        proxy.cut_at(b"CONSUMER.CREATE", occurrence=occurrence, after=after)
        reader.seek(30_100)
        assert reader.read(5000) == CONTENT[30_100:35_100]
    assert proxy.cuts == 1


def test_question_that_the_connection_breaks_as_its_time_is_up_has_timed_out(
    far: ObjectBucket, proxy: CutProxy, objects: ObjectBucket
) -> None:
    class UpWithTheConnection(Deadline):
        @property
        def expired(self) -> bool:
            return bool(proxy.cuts)

    proxy.cut_at(b"STREAM.INFO", occurrence=1, after=True)
    with pytest.raises(OperationTimeoutError, match=r"request \$JS.API.STREAM.INFO.OBJ_.* timed out after 10 s"):
        far._jetstream.stream_info(far._stream, UpWithTheConnection(10))


def test_many_cuts_cost_no_byte(far: ObjectBucket, proxy: CutProxy, objects: ObjectBucket) -> None:
    content = random.Random(2).randbytes(8 * CHUNK + 5)
    objects.put("k", content)
    found = bytearray()
    with far.open("k") as reader:
        while piece := reader.read(CHUNK):
            found += piece
            proxy.cut()
    assert found == content


@pytest.mark.parametrize("end", ["kill", "stop"])
def test_reader_goes_on_when_the_server_has_started_anew(
    run_nats_server: RunNatsServer, any_binary: str, end: str
) -> None:
    server = run_nats_server("jetstream: enabled", binary=any_binary)
    with mono_sync.connect(server.url, reconnect_wait=0.02, reconnect_max_wait=0.1) as connection:
        bucket = connection.objects(FSBucketConfig("b"))
        _store(bucket)
        with bucket.open("k", timeout=20) as reader:
            assert reader.read(20_000) == CONTENT[:20_000]
            getattr(server, end)()
            rest = Background(lambda: _read_in_pieces(reader))
            server.start()
            assert rest.result(30) == CONTENT[20_000:]


def test_consumer_that_the_server_has_given_up_is_made_anew(any_objects: ObjectBucket) -> None:
    """As after ten seconds without a read."""
    _store(any_objects)
    raw = raw_objects(any_objects)
    with any_objects.open("k") as reader:
        for position in range(0, 30_000, 5000):
            assert reader.read(5000) == CONTENT[position : position + 5000]
            for name in raw.consumers():
                raw.api("CONSUMER.DELETE.{stream}." + name)
        assert reader.read() == CONTENT[30_000:]


def test_message_that_was_lost_on_its_way_is_read_again(
    any_objects: ObjectBucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    _store(any_objects)
    take, calls = Delivery.next, list[int]()

    def lost_now_and_then(self: Delivery, *arguments: object, **options: object) -> object:
        calls.append(0)
        if len(calls) % 7 == 0:
            take(self, *arguments, **options)  # type: ignore[arg-type]
        return take(self, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Delivery, "next", lost_now_and_then)
    with any_objects.open("k") as reader:
        assert _read_in_pieces(reader) == CONTENT


def test_message_that_never_arrives_is_read_again(any_objects: ObjectBucket, monkeypatch: pytest.MonkeyPatch) -> None:
    _store(any_objects)
    take, arrived, lost = Inbox.take, list[Message](), list[Message]()

    def lost_now_and_then(self: Inbox) -> Message | None:
        message = take(self)
        if message is not None:
            arrived.append(message)
            if len(arrived) % 7 == 0:
                lost.append(message)
                return take(self)
        return message

    with any_objects.open("k") as reader:
        assert reader.read(10) == CONTENT[:10]
        with monkeypatch.context() as patch:
            patch.setattr(Inbox, "take", lost_now_and_then)
            assert reader.read(30_000) == CONTENT[10:30_010]
        assert lost
        assert reader.read() == CONTENT[30_010:]


# --- time


@pytest.fixture
def stalled(run_nats_server: RunNatsServer) -> Iterator[tuple[ObjectReader, Callable[[], None]]]:
    """A stream whose server has stalled after the first read, and what lets it go on."""
    server = run_nats_server("jetstream: enabled")
    with mono_sync.connect(server.url) as connection:
        bucket = connection.objects(FSBucketConfig("b", storage="memory"))
        _store(bucket)
        with bucket.open("k", timeout=20) as reader:
            assert reader.read(10) == CONTENT[:10]
            server.pause()
            try:
                yield reader, server.resume
            finally:
                server.resume()


READS: list[Callable[[ObjectReader], bytes]] = [
    lambda reader: reader.read(),
    lambda reader: reader.read(5000),
    lambda reader: b"".join(reader.readlines()),
    lambda reader: bytes(5000 - reader.readinto(bytearray(5000))),
]


@pytest.mark.parametrize("read", READS)
def test_call_that_times_out_has_not_moved_and_the_next_one_does_it_again(
    stalled: tuple[ObjectReader, Callable[[], None]], read: Callable[[ObjectReader], bytes]
) -> None:
    reader, resume = stalled
    reader._timeout = 0.05
    for _ in range(3):
        with pytest.raises(OperationTimeoutError, match=r"reading object 'k' of bucket 'b' timed out after 0\.05 s"):
            read(reader)
        assert reader.tell() == 10
    reader._timeout = 20
    resume()
    assert reader.read() == CONTENT[10:]


def test_second_thread_gets_an_error_and_the_first_its_bytes(
    stalled: tuple[ObjectReader, Callable[[], None]],
) -> None:
    reader, resume = stalled
    first = Background(reader.read)
    wait_until(reader._turn.locked, "it reads")
    for call in (reader.read, reader.tell, lambda: reader.seek(0), reader.readline, reader.close):
        with pytest.raises(StorageError, match=r"<ObjectReader 'k' .* is in use: one thread at a time"):
            call()
    resume()
    assert first.result() == CONTENT[10:]


@pytest.mark.skipif(threading.current_thread() is not threading.main_thread(), reason="signals need the main thread")
def test_interrupt_ends_a_read_at_once_and_the_next_one_does_it_again(
    stalled: tuple[ObjectReader, Callable[[], None]],
) -> None:
    reader, resume = stalled
    main = threading.main_thread().ident
    assert main is not None
    interrupted: list[float] = []

    def interrupt() -> None:
        wait_until(reader._turn.locked, "it reads")
        interrupted.append(time.monotonic())
        signal.pthread_kill(main, signal.SIGUSR1)

    previous = signal.signal(signal.SIGUSR1, signal.default_int_handler)
    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            reader.read()
    finally:
        thread.join(20)
        signal.signal(signal.SIGUSR1, previous)
    assert time.monotonic() - interrupted[0] < 1
    assert reader.tell() == 10
    resume()
    assert reader.read() == CONTENT[10:]


def test_interrupts_at_any_moment_cost_no_byte(any_objects: ObjectBucket) -> None:
    """Each read is broken off at another place, and begun again."""
    _store(any_objects)

    class Stop(Exception):  # noqa: N818  # no error
        pass

    def stop(_number: int, _frame: object) -> None:
        raise Stop

    previous = signal.signal(signal.SIGALRM, stop)
    chance, found = random.Random(3), bytearray()
    try:
        with any_objects.open("k", timeout=30) as reader:
            while reader.tell() < len(CONTENT):
                with suppress(Stop):
                    signal.setitimer(signal.ITIMER_REAL, chance.uniform(0.0001, 0.02))
                    piece = reader.read(chance.choice([10, 3000, 20_000]))
                    signal.setitimer(signal.ITIMER_REAL, 0)
                    found += piece
                signal.setitimer(signal.ITIMER_REAL, 0)
                reader.seek(len(found))  # the signal may have come behind the read
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    assert found == CONTENT


def test_read_that_is_interrupted_at_any_moment_costs_no_byte(objects: ObjectBucket) -> None:
    content, position = CONTENT[: 5 * SMALL], 0
    _store(objects, content)

    def stop() -> None:
        raise Stop

    for moment in itertools.count(1):
        with objects.open("k") as reader:
            assert reader.read(10) == content[:10]
            with suppress(Stop), Signalled(moment, stop, [_delivery, _source, _reader]) as signalled:
                reader.read(3 * SMALL)
            assert reader.tell() in (10, 10 + 3 * SMALL)
            position = reader.tell()
            assert reader.read() == content[position:]
        if not signalled.happened:
            break
    assert moment > 50  # all moments; how many there are depends on the interpreter
    assert position == 10 + 3 * SMALL


# --- the version is gone


@pytest.fixture
def begun(any_objects: ObjectBucket) -> Iterator[ObjectReader]:
    """A stream of which the first bytes have been read."""
    _store(any_objects)
    with any_objects.open("k", timeout=20) as reader:
        assert reader.read(10) == CONTENT[:10]
        yield reader


CHANGES: dict[str, Callable[[ObjectBucket], object]] = {
    "replaced": lambda bucket: bucket.put("k", b"n" * len(CONTENT)),
    "replaced by nothing": lambda bucket: bucket.put("k", b""),
    "deleted": lambda bucket: bucket.delete("k"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_object_that_changes_while_it_is_read_is_read_to_its_end_or_an_error(
    any_objects: ObjectBucket, begun: ObjectReader, change: str
) -> None:
    CHANGES[change](any_objects)
    started = time.monotonic()
    for _ in range(2):
        with pytest.raises(ObjectChangedError, match=f"'k' of bucket '{any_objects.name}' changed while it was"):
            begun.read()
        assert begun.tell() == 10
    begun.seek(30_000)
    with pytest.raises(ObjectChangedError):
        begun.read(1)
    assert time.monotonic() - started < 5


def test_object_that_changes_before_the_first_read_is_an_error(any_objects: ObjectBucket) -> None:
    any_objects.put("k", b"old")
    with any_objects.open("k") as reader:
        any_objects.put("k", b"new")
        with pytest.raises(ObjectChangedError):
            reader.read()


def test_what_has_arrived_is_read_to_its_end_though_the_object_is_gone(any_objects: ObjectBucket) -> None:
    any_objects.put("k", b"content")
    with any_objects.open("k") as reader:
        reader.read(1)
        any_objects.delete("k")
        assert reader.read() == b"ontent"


def test_object_that_expires_while_it_is_read_is_an_error(any_new_objects: NewObjects) -> None:
    bucket = any_new_objects(ttl=100, storage="file")  # 2.9 miscounts what is purged so from memory
    _store(bucket)
    with bucket.open("k") as reader:
        reader.read(10)
        raw_objects(bucket).api("STREAM.PURGE.{stream}", {"seq": 40})  # as expiry does: from the front
        with pytest.raises(ObjectChangedError):
            reader.read()
        reader.seek(20_000)
        with pytest.raises(ObjectChangedError):
            reader.read(1)
    assert bucket.get("k", b"d") == b"d"


def test_reader_of_a_version_whose_description_was_moved_reads_on(
    any_objects: ObjectBucket, begun: ObjectReader
) -> None:
    """As when another client renames it."""
    subject = f"$O.{any_objects.name}.M.aw=="
    raw_objects(any_objects).put(subject, b'{"name": "k", "deleted": true}', {"Nats-Rollup": "sub"})
    assert not any_objects.exists("k")
    begun.seek(30_000)
    assert begun.read() == CONTENT[30_000:]


def _sequentially(reader: ObjectReader) -> bytes:
    return reader.read()


def _at_the_end(reader: ObjectReader) -> bytes:
    reader.seek(-1, io.SEEK_END)
    return reader.read()


@pytest.mark.parametrize("read", [_sequentially, _at_the_end])
@pytest.mark.parametrize("begins", [0, 1, CHUNK * 8])
@pytest.mark.parametrize(("byte", "more"), [(b"\0", 0), (b"x", 0), (b"\0", 1)], ids=["same", "another", "longer"])
@pytest.mark.parametrize("chunks", [1, 20])
def test_later_version_with_the_same_name_of_chunks_is_not_taken_for_this_one(
    any_objects: ObjectBucket,
    *,
    chunks: int,
    byte: bytes,
    more: int,
    begins: int,
    read: Callable[[ObjectReader], bytes],
) -> None:
    first, second = bytes(chunks * _LARGE_CHUNK), byte * ((chunks + more) * _LARGE_CHUNK)
    any_objects.put_reader("k", io.BytesIO(first), resume="t")
    with any_objects.open("k", timeout=10) as reader:
        assert reader.read(begins) == first[:begins]
        any_objects.delete("k")
        any_objects.put_reader("k", io.BytesIO(second), resume="t")
        if not (chunks == 1 and begins):  # else all had arrived
            with pytest.raises(ObjectChangedError):
                read(reader)
    assert any_objects.get("k") == second


def test_chunks_that_are_gone_are_not_taken_for_those_before_them(
    any_objects: ObjectBucket, begun: ObjectReader
) -> None:
    for sequence in range(2, 30):
        raw_objects(any_objects).delete_message(sequence)
    found = bytearray(CONTENT[:10])

    def read_all() -> None:
        while piece := begun.read(100):
            found.extend(piece)

    with pytest.raises(DigestMismatchError):
        read_all()
    assert found == CONTENT[: len(found)]


def test_bucket_that_is_deleted_while_it_is_read_is_told(any_objects: ObjectBucket, begun: ObjectReader) -> None:
    raw_objects(any_objects).delete()
    with pytest.raises(BucketNotFoundError, match=any_objects.name):
        begun.read()


def test_readers_of_what_is_replaced_all_the_time_see_one_version_or_an_error(any_objects: ObjectBucket) -> None:
    def version(number: int) -> bytes:
        return bytes([number]) * (SMALL * 20)

    _store(any_objects, version(0))
    ended = threading.Event()

    def write(_: int) -> None:
        for number in range(1, 12):
            any_objects.put("k", version(number), timeout=30)
        ended.set()

    def read(number: int) -> None:
        chance = random.Random(number)
        while not ended.is_set():
            with any_objects.open("k", timeout=30) as reader, suppress(ObjectChangedError):
                first = reader.read(1)
                found = reader.read(chance.randrange(SMALL * 20)) + reader.read()
                assert first + found == version(first[0])

    together(4, lambda number: write(number) if number == 0 else read(number))


def test_any_number_of_streams_are_read_at_once(any_objects: ObjectBucket) -> None:
    _store(any_objects)

    def read(number: int) -> None:
        chance = random.Random(number)
        with any_objects.open("k", timeout=30) as reader:
            for _ in range(15):
                position, size = chance.randrange(len(CONTENT)), chance.choice([1, 2000, 20_000])
                reader.seek(position)
                assert reader.read(size) == CONTENT[position : position + size]
            reader.seek(0)
            assert reader.read() == CONTENT

    together(16, read)


# --- damage


def test_missing_chunk_is_damage(any_objects: ObjectBucket) -> None:
    _store(any_objects)
    raw_objects(any_objects).delete_message(30)
    with any_objects.open("k") as reader:
        with pytest.raises(DigestMismatchError, match="60 of 61 chunks are left"):
            reader.read()
        reader.seek(50_000)
        with pytest.raises(DigestMismatchError):
            reader.read(1)


@pytest.mark.parametrize("read", [ObjectReader.read, _read_in_pieces, ObjectReader.readlines])
def test_wrong_digest_is_told_before_the_end(any_objects: ObjectBucket, read: Callable[[ObjectReader], object]) -> None:
    foreign = ForeignUpload(any_objects, "k", chunk_size=SMALL)
    for _ in range(5):
        foreign.chunk(bytes(SMALL))
    foreign.describe(digest="SHA-256=47DEQpj8HBSa-_TImW-5JCeuQeRkm5NMpJWZG3hSuFU=")
    with any_objects.open("k") as reader:
        for _ in range(2):
            with pytest.raises(DigestMismatchError, match="the digest is wrong"):
                read(reader)
        assert reader.tell() < 5 * SMALL


def test_wrong_digest_is_told_also_when_the_comparison_was_interrupted(
    objects: ObjectBucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    foreign = ForeignUpload(objects, "k", chunk_size=SMALL)
    for _ in range(2):
        foreign.chunk(bytes(SMALL))
    foreign.describe(digest="SHA-256=47DEQpj8HBSa-_TImW-5JCeuQeRkm5NMpJWZG3hSuFU=")

    def stop(_: object) -> None:
        raise Stop

    with objects.open("k") as reader:
        with monkeypatch.context() as patch:
            patch.setattr(_source, "digest_of", stop)
            with pytest.raises(Stop):
                reader.read()
        with pytest.raises(DigestMismatchError, match="the digest is wrong"):
            reader.read()


@pytest.mark.parametrize(
    ("sizes", "chunks", "claimed"),
    [
        pytest.param([100, 100, 100], 3, 250, id="too much"),
        pytest.param([100, 100, 100], 3, 350, id="too little"),
        pytest.param([100, 100, 100], 2, 300, id="too few chunks told of"),
        pytest.param([100, 100, 100], 4, 300, id="too many chunks told of"),
        pytest.param([100, 100, 100], 0, 300, id="no chunks told of"),
    ],
)
def test_sizes_that_are_not_those_of_the_description_are_damage(
    any_objects: ObjectBucket, sizes: list[int], chunks: int, claimed: int
) -> None:
    foreign = ForeignUpload(any_objects, "k", chunk_size=100)
    for size in sizes:
        foreign.chunk(bytes(size))
    foreign.describe(chunks=chunks, size=claimed)
    with any_objects.open("k") as reader, pytest.raises(DigestMismatchError):
        reader.read()
    with any_objects.open("k") as reader:
        reader.seek(210)
        with pytest.raises(DigestMismatchError):
            reader.read(claimed)
    with pytest.raises(DigestMismatchError):
        any_objects.get("k")


def test_what_is_read_again_does_not_spoil_the_digest(any_objects: ObjectBucket) -> None:
    _store(any_objects)
    with any_objects.open("k") as reader:
        for position in (0, 3500, 1000, 59_000, 0):
            reader.seek(position)
            assert reader.read(2500) == CONTENT[position : position + 2500]
        reader.seek(0)
        assert _read_in_pieces(reader) == CONTENT
