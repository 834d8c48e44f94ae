"""Objects under many hands at once, and under connections that break at the worst moment."""

from __future__ import annotations

import gc
import hashlib
import io
import random
import signal
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import mono_sync
from mono_sync import (
    BucketFullError,
    BucketNotFoundError,
    Connection,
    FSBucketConfig,
    ObjectBucket,
    ObjectInfo,
    OperationTimeoutError,
    OutcomeUnknownError,
    UploadLostError,
)
from mono_sync._durations import Deadline
from mono_sync.connection import ExactlyOnce, Inbox, Write
from mono_sync.server import EmbeddedServer, EmbeddedServerConfig
from mono_sync.storage.objects import _clean_up, _sink
from mono_sync.storage.objects._source import Source
from tests.fixtures.servers import RunNatsServer
from tests.fixtures.waiting import wait_until
from tests.storage.helpers import CutProxy, chunk_subjects, raw_objects, through, together
from tests.support.peer import Answer, Peer
from tests.support.threads import Repeated

CHUNK = 128 * 1024


def _version(number: int, size: int) -> bytes:
    """Content that tells its number in every part, so that a mixture of two versions cannot pass."""
    return (f"{number:08}".encode() * (size // 8 + 1))[:size]


def _is_one_version(content: bytes) -> bool:
    return content == _version(int(content[:8]), len(content))


# --- what old servers count wrong


@pytest.mark.old_server
def test_no_chunk_is_missed_on_a_server_that_counts_wrong_after_a_restart(
    old_server_binary: str, tmp_path: Path
) -> None:
    """nats-server 2.9 recovers its files in the order of their names: 1, 10, 2 and so on."""
    options = EmbeddedServerConfig(binary=old_server_binary, store_dir=tmp_path)
    content = random.Random(1).randbytes(1 << 20) * 80

    class Breaks(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            if self.tell() > len(content) - (1 << 20):
                raise ConnectionError
            return super().read(size)

    with mono_sync.connect(server=options) as connection:
        objects = connection.objects(FSBucketConfig("b"))
        objects.put("before", bytes(20 << 20), timeout=30)
        with objects.open("mixed", "wb", timeout=30) as stream:
            stream.write(content[:CHUNK])
            objects.put("in between", b"")
            stream.write(content[CHUNK:])
        half = connection.objects(FSBucketConfig("half"))
        half.put("before", bytes(20 << 20), timeout=30)
        with pytest.raises(ConnectionError):
            half.put_reader("k", Breaks(content), resume="t", timeout=30)
    with mono_sync.connect(server=options) as connection:
        assert connection.objects("b").get("mixed", timeout=30) == content
        for _ in range(2):
            connection.objects("half").put_reader("k", io.BytesIO(content), resume="t", timeout=30)
        assert connection.objects("half").get("k", timeout=30) == content


# --- many at once


@pytest.mark.parametrize("size", [1000, CHUNK * 3 + 1000])
def test_32_readers_and_writers_always_see_one_whole_version(any_objects: ObjectBucket, size: int) -> None:
    any_objects.put("k", _version(0, size))

    def work(number: int) -> None:
        for turn in range(4):
            if number % 4 == 0:
                any_objects.put("k", _version(number * 100 + turn, size - number * 8), timeout=30)
            else:
                content = any_objects.get("k", timeout=30)
                assert content is not None
                assert _is_one_version(content)
                assert len(content) == size - int(content[:8]) // 100 * 8

    together(32, work)
    assert len(chunk_subjects(any_objects)) == 1
    assert list(chunk_subjects(any_objects).values()) == [any_objects.stat("k").chunks]


def test_writers_and_deleters_leave_no_chunks_of_objects_that_are_gone(any_objects: ObjectBucket) -> None:
    def work(number: int) -> None:
        chance = random.Random(number)
        for turn in range(6):
            key = f"k{chance.randrange(4)}"
            if chance.random() < 0.4:
                any_objects.delete(key, timeout=30)
            else:
                any_objects.put(key, _version(number * 100 + turn, chance.choice([0, 1000, 2 * CHUNK])), timeout=30)

    together(16, work)
    chunks = {f"$O.{any_objects.name}.C.{info.nuid}": info.chunks for info in any_objects.list() if info.chunks}
    assert chunk_subjects(any_objects) == chunks
    for info in any_objects.list():
        content = any_objects.get(info.name)
        assert content is not None
        assert len(content) == info.size


def test_objects_that_are_there_all_the_time_are_always_listed(any_objects: ObjectBucket) -> None:
    names = [f"o{number}" for number in range(10)]
    for name in names:
        any_objects.put(name, b"")
    choice = random.Random(7).choice
    with Repeated([lambda: any_objects.set(choice(names), b"x", timeout=30)] * 4):
        for _ in range(20):
            assert [info.name for info in any_objects.list(timeout=30)] == names


# --- changes in the middle of a read


def _then(objects: ObjectBucket, monkeypatch: pytest.MonkeyPatch, change: Callable[[], object]) -> None:
    """Make a change once, right after the description was read and before the chunks are."""
    read, pending = objects._read, [change]

    def changed_first(info: ObjectInfo, deadline: Deadline) -> bytes:
        if pending:
            pending.pop()()
        return read(info, deadline)

    monkeypatch.setattr(objects, "_read", changed_first)


@pytest.mark.parametrize("size", [1000, 300_000])
def test_object_that_is_replaced_while_it_is_read_gives_the_new_version(
    any_objects: ObjectBucket, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    any_objects.put("k", _version(1, size))
    _then(any_objects, monkeypatch, lambda: any_objects.put("k", _version(2, size)))
    assert any_objects.get("k") == _version(2, size)


@pytest.mark.parametrize("size", [1000, 300_000])
def test_object_that_is_deleted_while_it_is_read_is_missing(
    any_objects: ObjectBucket, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    any_objects.put("k", _version(1, size))
    _then(any_objects, monkeypatch, lambda: any_objects.delete("k"))
    assert any_objects.get("k", b"d") == b"d"


def test_object_that_is_replaced_before_each_read_is_an_error_in_the_end(
    objects: ObjectBucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    objects.put("k", b"0")
    read = objects._read

    def replaced_first(info: ObjectInfo, deadline: Deadline) -> bytes:
        objects.put("k", b"1")
        return read(info, deadline)

    monkeypatch.setattr(objects, "_read", replaced_first)
    with pytest.raises(mono_sync.ObjectChangedError, match=r"'k' of bucket .* changed while it was being read"):
        objects.get("k")


def test_chunks_that_are_removed_in_the_middle_of_the_transfer_give_the_new_version(
    any_objects: ObjectBucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = 40 * CHUNK
    any_objects.put("k", _version(1, size))
    chunk_at, taken = Source.chunk_at, list[int]()

    def replaced_in_the_middle(self: Source, *arguments: Any) -> tuple[int, bytes]:
        found = chunk_at(self, *arguments)
        taken.append(found[0] // CHUNK)
        if taken == list(range(5)):
            any_objects.put("k", _version(2, size))
        return found

    monkeypatch.setattr(Source, "chunk_at", replaced_in_the_middle)
    assert any_objects.get("k", timeout=20) == _version(2, size)
    assert len(taken) < 80
    assert taken[-40:] == list(range(40))


# --- broken connections

NUID = b".C."
META = b".M."
PUT = [
    pytest.param(NUID, 1, id="the first chunk"),
    pytest.param(NUID, 10, id="a chunk"),
    pytest.param(NUID, 20, id="the last chunk"),
    pytest.param(META, 2, id="the description"),  # the first is the question what is there
    pytest.param(b"STREAM.PURGE", 1, id="the removal of the old chunks"),
]


@pytest.fixture
def proxy(connection: Connection) -> Iterator[CutProxy]:
    with CutProxy(connection.server_info.url) as proxy:
        yield proxy


@pytest.fixture
def cut(connection: Connection, proxy: CutProxy, objects: ObjectBucket) -> Iterator[ObjectBucket]:
    with through(proxy, connection, objects) as bucket:
        yield bucket


@pytest.mark.parametrize("after", [True, False])
@pytest.mark.parametrize(("pattern", "occurrence"), PUT)
def test_put_that_loses_its_connection_goes_on_with_the_next(
    cut: ObjectBucket, proxy: CutProxy, *, pattern: bytes, occurrence: int, after: bool, objects: ObjectBucket
) -> None:
    old, new = _version(1, 3 * CHUNK), _version(2, 20 * CHUNK)
    objects.put("k", old)
    proxy.cut_at(pattern, occurrence=occurrence, after=after)
    info = cut.put("k", new)  # what was lost is sent again, in order and once
    assert proxy.cuts == 1
    assert objects.stat("k") == info
    assert objects.get("k") == new
    assert list(chunk_subjects(objects).values()) == [20]


@pytest.mark.parametrize("after", [True, False])
def test_put_whose_answer_is_lost_finds_out_though_somebody_else_writes_at_that_moment(
    cut: ObjectBucket, proxy: CutProxy, objects: ObjectBucket, monkeypatch: pytest.MonkeyPatch, after: bool
) -> None:
    objects.put("k", b"old")
    proxy.cut_at(META, occurrence=3, after=after)  # after one that takes it for new, and the question what is there
    settle = cut._writer._settle

    def somebody_else_writes_first(*arguments: object) -> int:
        wait_until(lambda: not after or objects.get("k") == b"mine", "ours is stored")
        objects.put("k", b"theirs")
        return settle(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(cut._writer, "_settle", somebody_else_writes_first)
    info = cut.put("k", b"mine")
    if after:  # theirs replaced ours
        assert info.revision < objects.stat("k").revision
        assert objects.get("k") == b"theirs"
    else:  # ours replaced theirs
        assert info == objects.stat("k")
        assert objects.get("k") == b"mine"
    assert len(chunk_subjects(objects)) == 1


def test_put_whose_answer_does_not_come_keeps_the_chunks_of_what_may_be_stored(
    cut: ObjectBucket, proxy: CutProxy, objects: ObjectBucket
) -> None:
    proxy.mute_at(META, occurrence=2)
    with pytest.raises(OperationTimeoutError):
        cut.put("k", _version(1, 3 * CHUNK), timeout=1)
    assert proxy.cuts == 1
    assert objects.get("k") == _version(1, 3 * CHUNK)


def test_put_whose_time_is_up_right_before_its_last_step_is_known_not_to_be_stored(
    objects: ObjectBucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, carry_out = objects.put("k", b"old"), ExactlyOnce.carry_out

    def too_late(writer: ExactlyOnce, write: Write, deadline: Deadline, **options: Any) -> int:
        wait_until(lambda: deadline.expired, "the time is up")
        return carry_out(writer, write, deadline, **options)

    monkeypatch.setattr(ExactlyOnce, "carry_out", too_late)
    objects._sinks.expects_new = False  # else it would have no such step
    with pytest.raises(OperationTimeoutError) as caught:
        objects.put("k", bytes(3 * CHUNK), timeout=0.5)
    assert not caught.value.sent
    assert objects.stat("k") == old
    assert list(chunk_subjects(objects).values()) == [1]


@pytest.mark.parametrize("after", [True, False])
def test_delete_that_loses_its_connection_deletes(
    cut: ObjectBucket, proxy: CutProxy, objects: ObjectBucket, after: bool
) -> None:
    objects.put("k", _version(1, 3 * CHUNK))
    proxy.cut_at(META, occurrence=2, after=after)
    cut.delete("k")
    assert proxy.cuts == 1
    assert not objects.exists("k")
    assert chunk_subjects(objects) == {}


@pytest.mark.parametrize("after", [True, False])
@pytest.mark.parametrize("call", [b"CONSUMER.CREATE", b"MSG.NEXT"])
def test_get_that_loses_its_connection_goes_on(
    cut: ObjectBucket, proxy: CutProxy, objects: ObjectBucket, call: bytes, after: bool
) -> None:
    objects.put("k", _version(1, 40 * CHUNK))
    proxy.cut_at(call, after=after)
    assert cut.get("k") == _version(1, 40 * CHUNK)
    assert proxy.cuts == 1


@pytest.mark.parametrize("is_new", [True, False])
def test_chunks_stay_where_a_lost_attempt_may_be_stored_though_the_next_is_refused(is_new: bool) -> None:
    """The description of the lost attempt may arrive at any time, also behind the question what is there."""
    asked: list[str] = []
    chunks: dict[str, int] = {}

    def refusal(code: int) -> Answer:
        return {"error": {"code": 503, "err_code": code, "description": "no"}}

    def answer(subject: str, reply: str) -> Answer | None:
        call = "description" if META in subject.encode() else subject.removeprefix("$JS.API.STREAM.")
        asked.append(call)
        if NUID in subject.encode():
            chunks[subject] = 1
        if call == "INFO.OBJ_b":
            return {"config": {"name": "OBJ_b", "num_replicas": 1}, "state": {"last_seq": 0, "subjects": chunks}}
        if call == "MSG.GET.OBJ_b":
            return refusal(10037)
        if call == "description" and asked.count(call) == 1:
            peer.cut()
            return None
        return refusal(10077) if call == "description" else {"stream": "OBJ_b", "seq": 1, "purged": 1}

    with Peer(answer) as peer, mono_sync.connect(peer.url, reconnect_wait=0.02) as connection:
        objects = connection.objects("b")
        objects._sinks.expects_new = is_new
        with pytest.raises(OutcomeUnknownError, match="the next attempt refused"):
            objects.put("k", b"v")
        assert asked.count("description") == 2
        assert "PURGE.OBJ_b" not in asked


# --- chunks under way


def test_chunks_are_removed_only_after_the_last_one_under_way_has_arrived(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else one that comes later would stay for ever."""
    monkeypatch.setattr(_clean_up, "LEAST", 20.0)
    under_way: list[str] = []
    removed = threading.Event()

    def answer(subject: str, reply: str) -> Answer | None:
        if subject == "$JS.API.STREAM.INFO.OBJ_b":
            return {"config": {"name": "OBJ_b", "num_replicas": 1}, "state": {"last_seq": 0}}
        if subject == "$JS.API.STREAM.PURGE.OBJ_b":
            removed.set()
            return {"purged": 3}
        under_way.append(reply)
        return None

    with Peer(answer) as peer, mono_sync.connect(peer.url) as connection, ThreadPoolExecutor(1) as pool:
        stored = pool.submit(connection.objects("b").put, "k", bytes(5 * CHUNK), timeout=20)
        wait_until(lambda: len(under_way) == 4, "all chunks but the last have been sent")
        peer.reply(under_way[0], {"error": {"code": 503, "err_code": 10077, "description": "maximum bytes exceeded"}})
        for number in (1, 2, 3):
            assert not removed.wait(0.1)
            peer.reply(under_way[number], {"stream": "OBJ_b", "seq": number})
        with pytest.raises(BucketFullError):
            stored.result(10)
        assert removed.is_set()


def test_chunks_that_arrive_behind_their_removal_are_removed_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_clean_up, "LEAST", 1.0)
    under_way: list[str] = []
    calls: list[str] = []

    def answer(subject: str, reply: str) -> Answer | None:
        if subject == "$JS.API.STREAM.INFO.OBJ_b":
            return {"config": {"name": "OBJ_b", "num_replicas": 1}, "state": {"last_seq": 0}}
        if subject == "$JS.API.STREAM.PURGE.OBJ_b":
            calls.append("removal")
            if under_way:
                calls.append("chunk")
                peer.reply(under_way.pop(), {"stream": "OBJ_b", "seq": 4})
            return {"purged": 1}
        calls.append("sent")
        if len(calls) < 4:
            return {"stream": "OBJ_b", "seq": len(calls)}
        under_way.append(reply)
        return None

    with Peer(answer) as peer, mono_sync.connect(peer.url) as connection:
        with pytest.raises(OperationTimeoutError):
            connection.objects("b").put("k", bytes(5 * CHUNK), timeout=0.5)
        assert calls == ["sent"] * 4 + ["removal", "chunk", "removal"]


@pytest.mark.parametrize("code", [10008, 10158])
def test_chunks_that_a_cluster_refuses_for_the_moment_are_all_sent_once_more(code: int) -> None:
    """10158: the chunk is under way already, as when it is sent again after an election."""
    sent = list[str]()

    def answer(subject: str, reply: str) -> Answer | None:
        call = subject.removeprefix("$JS.API.STREAM.")
        if call == "INFO.OBJ_b":
            subjects = {told: stored for told, stored in chunks.items() if stored}
            return {"config": {"name": "OBJ_b", "num_replicas": 1}, "state": {"last_seq": 0, "subjects": subjects}}
        if call == "MSG.GET.OBJ_b":
            ((chunk, stored),) = chunks.items()
            if stored in (0, 5):  # nothing yet; or the question is about the description
                return {"error": {"code": 404, "err_code": 10037, "description": "no message found"}}
            return {"message": {"subject": chunk, "seq": stored, "time": "2026-01-01T00:00:00Z"}}
        if META in subject.encode():
            return {"stream": "OBJ_b", "seq": 6}
        sent.append(reply)
        if len(sent) <= 4:
            chunks[subject] = 0
            for refused in sent if len(sent) == 4 else []:
                peer.reply(refused, {"error": {"code": 503, "err_code": code, "description": "not now"}})
            return None
        chunks[subject] += 1
        return {"stream": "OBJ_b", "seq": chunks[subject]}

    chunks: dict[str, int] = {}
    with Peer(answer, cluster="c") as peer, mono_sync.connect(peer.url) as connection:
        assert connection.objects("b").put("k", bytes(5 * CHUNK)).chunks == 5
    assert len(sent) == 4 + 4 + 1


@pytest.mark.parametrize("sequences", [[2, 1], [1, 1]])
def test_nothing_is_built_on_chunks_that_were_not_stored_one_behind_the_other(sequences: list[int]) -> None:
    asked = list[str]()

    def answer(subject: str, reply: str) -> Answer | None:
        if subject == "$JS.API.STREAM.INFO.OBJ_b":
            return {"config": {"name": "OBJ_b", "num_replicas": 1}, "state": {"last_seq": 0}}
        asked.append(subject)
        return {"purged": 2} if "PURGE" in subject else {"stream": "OBJ_b", "seq": sequences[len(asked) - 1]}

    with Peer(answer) as peer, mono_sync.connect(peer.url) as connection:
        with pytest.raises(UploadLostError, match="chunk 1 was stored out of turn"):
            connection.objects("b").put("k", bytes(3 * CHUNK))
        assert len(asked) == 3


@pytest.mark.parametrize("refused", [{"description"}, {"chunk", "description"}])
def test_new_object_that_a_server_refuses_for_the_moment_is_stored_with_the_next_attempt(refused: set[str]) -> None:
    asked = list[str]()

    def answer(subject: str, reply: str) -> Answer | None:
        call = subject.removeprefix("$JS.API.STREAM.")
        if call == "INFO.OBJ_b":
            return {"config": {"name": "OBJ_b", "num_replicas": 1}, "state": {"last_seq": 0}}
        if call == "MSG.GET.OBJ_b":
            return {"error": {"code": 404, "err_code": 10037, "description": "no message found"}}
        asked.append("description" if META in subject.encode() else "chunk")
        if len(asked) <= 2 and asked[-1] in refused:
            return {"error": {"code": 429, "err_code": 10167, "description": "too many requests"}}
        return {"stream": "OBJ_b", "seq": len(asked)}

    with Peer(answer) as peer, mono_sync.connect(peer.url) as connection:
        assert connection.objects("b").put("k", b"v").revision == len(asked)
    assert asked == ["chunk", "description", *sorted(refused)]


def test_chunks_that_were_lost_with_their_bucket_are_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream may be deleted when it has taken a message and not answered yet."""
    monkeypatch.setattr(_sink, "_PATIENCE", 0.1)
    sent = list[str]()

    def answer(subject: str, reply: str) -> Answer | None:
        if subject == "$JS.API.STREAM.INFO.OBJ_b" and not sent:
            return {"config": {"name": "OBJ_b", "num_replicas": 1}, "state": {"last_seq": 0}}
        if subject.startswith("$JS.API."):
            return {"error": {"code": 404, "err_code": 10059, "description": "stream not found"}}
        sent.append(reply)
        return None

    with Peer(answer) as peer, mono_sync.connect(peer.url) as connection, pytest.raises(BucketNotFoundError):
        connection.objects("b").put("k", bytes(20 * CHUNK), timeout=30)
    assert 0 < len(sent) < 20


# --- stalled servers


def test_put_on_a_stalled_server_ends_in_time_and_the_old_object_stays(run_nats_server: RunNatsServer) -> None:
    server = run_nats_server("jetstream: enabled")
    with mono_sync.connect(server.url) as connection:
        objects = connection.objects(FSBucketConfig("b", storage="memory"))
        objects.put("k", b"old")
        server.pause()
        started = time.monotonic()
        with pytest.raises(OperationTimeoutError):
            objects.put("k", _version(2, 3_000_000), timeout=0.3)
        assert time.monotonic() - started < 1.5
        server.resume()
        assert objects.get("k") == b"old"


@pytest.mark.skipif(threading.current_thread() is not threading.main_thread(), reason="signals need the main thread")
def test_an_interrupt_ends_a_put_on_a_stalled_server_at_once(run_nats_server: RunNatsServer) -> None:
    server = run_nats_server("jetstream: enabled")
    main = threading.main_thread().ident
    assert main is not None
    with mono_sync.connect(server.url) as connection:
        objects = connection.objects(FSBucketConfig("b", storage="memory"))
        server.pause()
        asked = threading.Event()
        inbox = connection.inbox

        def watched(deadline: Deadline) -> Inbox:
            asked.set()
            return inbox(deadline)

        connection.inbox = watched  # type: ignore[method-assign]
        interrupted = []

        def interrupt() -> None:
            assert asked.wait(20)
            wait_until(lambda: connection._session and connection._session.link._inboxes, "it waits for answers")
            interrupted.append(time.monotonic())
            signal.pthread_kill(main, signal.SIGUSR1)

        previous = signal.signal(signal.SIGUSR1, signal.default_int_handler)
        thread = threading.Thread(target=interrupt)
        thread.start()
        try:
            with pytest.raises(KeyboardInterrupt):
                objects.put("k", bytes(300_000), timeout=60)
        finally:
            thread.join(20)
            signal.signal(signal.SIGUSR1, previous)
        assert time.monotonic() - interrupted[0] < 1.0
        server.resume()


@pytest.mark.parametrize("timeout", [0.005, 0.02, 0.05])
def test_put_that_times_out_on_a_running_server_leaves_no_chunks_or_says_so(
    any_objects: ObjectBucket, timeout: float, caplog: pytest.LogCaptureFixture
) -> None:
    any_objects.put("k", b"old")
    for _ in range(3):
        with pytest.raises(OperationTimeoutError):
            any_objects.put("k", bytes(100_000_000), timeout=timeout)
        assert any_objects.get("k") == b"old"
        left = caplog.text.count("may be left behind")  # a busy server may take longer than the moment that there is
        wait_until(lambda: len(chunk_subjects(any_objects)) <= 1 + left, "the chunks are removed")  # noqa: B023


# --- large objects


def test_large_object_takes_linear_time_and_memory(objects: ObjectBucket) -> None:
    content = random.Random(1).randbytes(48 << 20)
    digest = hashlib.sha256(content).digest()
    started = time.perf_counter()
    objects.put("k", content, timeout=30)
    stored = time.perf_counter()
    tracemalloc.start()
    try:
        found = objects.get("k", timeout=30)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    read = time.perf_counter()
    assert found is not None
    assert hashlib.sha256(found).digest() == digest
    assert peak < 2.5 * len(content)
    assert stored - started < 10
    assert read - stored < 10


def test_nothing_of_a_read_object_is_kept(objects: ObjectBucket, nats_server: EmbeddedServer) -> None:
    objects.put("k", bytes(8 << 20))
    objects.get("k")
    tracemalloc.start()
    try:
        for _ in range(3):
            objects.get("k")
        gc.collect()
        current, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert current < 4 << 20
    assert raw_objects(objects).state["consumer_count"] == 0
