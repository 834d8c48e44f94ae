"""Uploads through connections that break and servers that die in the middle."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import mono_sync
from mono_sync import (
    BucketFullError,
    BucketNotFoundError,
    BucketSealedError,
    Connection,
    ConnectionLostError,
    FSBucketConfig,
    KVBucketConfig,
    MonoError,
    ObjectBucket,
    OperationTimeoutError,
    OutcomeUnknownError,
    PermissionDeniedError,
    UploadLostError,
)
from mono_sync.connection import ExactlyOnce, Write
from mono_sync.storage.objects import _sink
from mono_sync.storage.objects._committing import Commit
from mono_sync.storage.objects._writer import ObjectWriter
from tests.fixtures.servers import RawServer, RunNatsServer
from tests.fixtures.waiting import wait_until
from tests.storage.conftest import NewObjects
from tests.storage.helpers import CutProxy, Interrupting, chunk_subjects, raw_objects, restricting, through
from tests.support.threads import Repeated

CHUNK = 128 * 1024
CONTENT = bytes(range(256)) * 512 * 40


# --- servers that die


@pytest.fixture
def server(run_nats_server: RunNatsServer) -> RawServer:
    return run_nats_server("jetstream: enabled")


@pytest.fixture
def objects(server: RawServer) -> Iterator[ObjectBucket]:
    with mono_sync.connect(server.url, reconnect_wait=0.02, reconnect_max_wait=0.1) as connection:
        yield connection.objects(FSBucketConfig("b"))


def test_upload_outlasts_a_server_that_is_killed_and_started_again(objects: ObjectBucket, server: RawServer) -> None:
    objects.put("k", b"old", timeout=10)

    def restart() -> None:
        server.kill()
        server.start()

    info = objects.put_reader("k", Interrupting(CONTENT, 20 * CHUNK, restart), timeout=20)
    assert info.chunks == 40
    assert objects.get("k", timeout=10) == CONTENT
    assert list(chunk_subjects(objects).values()) == [40]


def test_upload_to_a_server_that_stays_away_fails_and_the_old_object_stays(
    objects: ObjectBucket, server: RawServer
) -> None:
    objects.put("k", b"old", timeout=10)
    with pytest.raises(OperationTimeoutError, match="storing object 'k' of bucket 'b'"):
        objects.put_reader("k", Interrupting(CONTENT, 20 * CHUNK, server.kill), timeout=1)
    server.start()
    assert objects.get("k", timeout=10) == b"old"
    assert [info.name for info in objects.list(timeout=10)] == ["k"]


@pytest.mark.parametrize("size", [5, 3 * CHUNK])
@pytest.mark.parametrize("step", ["look", "store"])
def test_nothing_is_built_on_chunks_that_a_server_loses_before_the_last_step(
    run_nats_server: RunNatsServer, monkeypatch: pytest.MonkeyPatch, step: str, size: int
) -> None:
    server = run_nats_server("jetstream: enabled")
    look, send, lost = Commit.look, ExactlyOnce._send, iter([True])

    def restart() -> None:
        server.kill()
        server.start()
        with mono_sync.connect(server.url) as another:
            another.objects(FSBucketConfig("b", storage="memory"))

    def restart_and_look(*arguments: Any) -> Any:
        restart()
        return look(*arguments)

    def restart_and_send(writer: ExactlyOnce, write: Write, *arguments: Any, **options: Any) -> int:
        if ".M." in write.subject and next(lost, False):
            restart()
            raise ConnectionLostError("it has")
        return send(writer, write, *arguments, **options)

    with mono_sync.connect(server.url, reconnect_wait=0.02, reconnect_max_wait=0.1) as connection:
        objects = connection.objects(FSBucketConfig("b", storage="memory"))
        objects._sinks.expects_new = False
        if step == "look":
            monkeypatch.setattr(Commit, "look", restart_and_look)
        else:
            monkeypatch.setattr(ExactlyOnce, "_send", restart_and_send)
        with pytest.raises(UploadLostError, match="its chunks are gone"):
            objects.put("k", bytes(size), timeout=20)
        assert objects.list(timeout=10) == []


@pytest.fixture
def before_the_last_step(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], None]:
    """Let something happen when it is known what a description is going to replace."""

    def let(happen: Callable[[], object]) -> None:
        look = Commit.look

        def look_and_wait(*arguments: Any) -> Any:
            newest = look(*arguments)
            monkeypatch.setattr(Commit, "look", look)
            happen()
            return newest

        monkeypatch.setattr(Commit, "look", look_and_wait)

    return let


def test_last_step_goes_to_a_server_that_started_meanwhile_and_nothing_is_in_doubt(
    objects: ObjectBucket, server: RawServer, before_the_last_step: Callable[[Callable[[], object]], None]
) -> None:
    objects.put("k", b"old", timeout=10)

    def restart_and_overwrite() -> None:
        server.kill()
        server.start()
        with mono_sync.connect(server.url) as another:
            for theirs in (b"1", b"2"):
                another.objects("b").put("k", theirs)

    before_the_last_step(restart_and_overwrite)
    info = objects.put("k", b"mine", timeout=20)
    assert objects.stat("k", timeout=10) == info
    assert objects.get("k", timeout=10) == b"mine"
    assert list(chunk_subjects(objects).values()) == [1]


def test_last_step_that_cannot_be_made_in_time_was_not_made(
    objects: ObjectBucket, server: RawServer, before_the_last_step: Callable[[Callable[[], object]], None]
) -> None:
    objects.put("k", b"old", timeout=10)

    def restart_and_pause() -> None:
        server.kill()
        server.start()
        wait_until(lambda: objects._connection.is_connected, "it is connected again")
        server.pause()

    before_the_last_step(restart_and_pause)
    with pytest.raises(OperationTimeoutError) as caught:
        objects.put("k", b"mine", timeout=1)
    assert not isinstance(caught.value, OutcomeUnknownError)
    server.resume()
    assert objects.get("k", timeout=10) == b"old"


def test_nothing_is_left_of_an_upload_of_which_a_chunk_is_gone(
    objects: ObjectBucket, server: RawServer, before_the_last_step: Callable[[Callable[[], object]], None]
) -> None:
    objects._sinks.expects_new = False

    def remove_and_restart() -> None:
        raw_objects(objects).delete_message(1)
        server.kill()
        server.start()

    before_the_last_step(remove_and_restart)
    with pytest.raises(UploadLostError, match="its chunks are gone"):
        objects.put("k", bytes(3 * CHUNK), timeout=20)
    assert chunk_subjects(objects) == {}


def test_nothing_is_left_of_an_upload_that_may_not_be_described(run_nats_server: RunNatsServer) -> None:
    server = run_nats_server(restricting("$O.b.M.>"))
    with (
        mono_sync.connect(server.url, user="a", password="p") as admin,
        mono_sync.connect(server.url, user="u", password="p") as connection,
    ):
        whole, ours = admin.objects(FSBucketConfig("b")), connection.objects("b")
        ours._sinks.expects_new = False
        with pytest.raises(PermissionDeniedError):
            ours.put("k", b"mine")
        assert chunk_subjects(whole) == {}
        assert whole.list() == []


def test_upload_whose_chunks_a_server_has_lost_fails(run_nats_server: RunNatsServer) -> None:
    server = run_nats_server("jetstream: enabled")
    with mono_sync.connect(server.url, reconnect_wait=0.02, reconnect_max_wait=0.1) as connection:
        objects = connection.objects(FSBucketConfig("b", storage="memory"))

        def restart() -> None:
            server.kill()
            server.start()
            with mono_sync.connect(server.url) as another:
                another.objects(FSBucketConfig("b", storage="memory"))

        with pytest.raises(UploadLostError, match="the stream holds 0 chunks"):
            objects.put_reader("k", Interrupting(CONTENT, 20 * CHUNK, restart), timeout=20)
        assert objects.list(timeout=10) == []


# --- connections that break


@pytest.fixture
def proxy(connection: Connection) -> Iterator[CutProxy]:
    with CutProxy(connection.server_info.url) as proxy:
        yield proxy


@pytest.fixture
def cut(connection: Connection, proxy: CutProxy, memory: ObjectBucket) -> Iterator[ObjectBucket]:
    with through(proxy, connection, memory) as bucket:
        yield bucket


@pytest.fixture
def memory(connection: Connection, name: str) -> Iterator[ObjectBucket]:
    objects = connection.objects(FSBucketConfig(name, storage="memory"))
    yield objects
    raw_objects(objects).delete()


def test_upload_outlasts_many_broken_connections(cut: ObjectBucket, proxy: CutProxy, memory: ObjectBucket) -> None:
    memory.put("k", b"old")
    cuts, begun = [(5, True), (12, False), (13, True), (30, False), (31, False)], 0

    class Cutting(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            nonlocal begun
            if cuts and self.tell() >= cuts[0][0] * CHUNK and proxy.cuts == begun:  # else the last one is yet to come
                begun += 1
                proxy.cut_at(b".C.", after=cuts.pop(0)[1])
            return super().read(size)

    cut.put_reader("k", Cutting(CONTENT), timeout=20)
    assert proxy.cuts > 2  # for an upload is never more than 8 chunks ahead of what it knows
    assert memory.get("k") == CONTENT
    assert list(chunk_subjects(memory).values()) == [40]


@pytest.mark.parametrize("after", [True, False])
def test_stream_outlasts_a_broken_connection(
    cut: ObjectBucket, proxy: CutProxy, memory: ObjectBucket, after: bool
) -> None:
    writer: ObjectWriter = cut.open("k", "wb", timeout=10)
    with writer:
        for start in range(0, len(CONTENT), 100_000):
            if start == 1_000_000:
                proxy.cut_at(b".C.", after=after)
            writer.write(CONTENT[start : start + 100_000])
    assert proxy.cuts == 1
    assert memory.get("k") == CONTENT


@pytest.mark.parametrize("size", [5, 3 * CHUNK])
def test_upload_whose_last_chunk_is_not_answered_in_time_is_known_not_to_be_stored(
    cut: ObjectBucket, proxy: CutProxy, memory: ObjectBucket, size: int
) -> None:
    memory.put("k", b"older")
    cut.put("k", b"old")  # else its description would go along with the only chunk
    proxy.mute_at(b".C.", occurrence=-(-size // CHUNK))
    with pytest.raises(OperationTimeoutError, match="storing object 'k' of bucket") as caught:
        cut.put("k", bytes(size), timeout=0.5)
    assert not isinstance(caught.value, OutcomeUnknownError)
    assert memory.get("k") == b"old"


def test_chunk_that_another_client_puts_between_ours_is_noticed_after_a_break(
    cut: ObjectBucket, proxy: CutProxy, memory: ObjectBucket
) -> None:
    memory.put("k", b"old")

    def disturb() -> None:
        proxy.cut_at(b".C.", after=True)
        subject = next(name for name, count in chunk_subjects(memory).items() if count > 1)
        raw_objects(memory).put(subject, b"foreign")

    with pytest.raises(UploadLostError, match="the stream holds"):
        cut.put_reader("k", Interrupting(CONTENT, 20 * CHUNK, disturb), timeout=10)
    assert memory.get("k") == b"old"
    assert len(chunk_subjects(memory)) == 1


def test_upload_that_was_long_under_way_notices_that_its_chunks_are_gone(
    memory: ObjectBucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    def purge() -> None:
        raw_objects(memory).purge(f"$O.{memory.name}.C.>")

    monkeypatch.setattr(_sink, "STALE", 0.0)
    with pytest.raises(UploadLostError):
        memory.put_reader("k", Interrupting(CONTENT, 20 * CHUNK, purge))
    assert memory.list() == []


def test_upload_during_which_the_bucket_is_reset_fails(new_objects: NewObjects) -> None:
    """Servers of 2.9 go on counting the messages of a subject that such a purge removes."""
    objects = new_objects()
    writer = objects.open("k", "wb")
    writer.write(CONTENT[: 3 * CHUNK])
    writer.flush()
    objects.reset()
    writer.write(CONTENT[: 3 * CHUNK])
    with pytest.raises(UploadLostError, match=r"the stream holds \d chunks?, and not the [2-5] that were stored"):
        writer.close()
    assert not objects.exists("k")
    assert chunk_subjects(objects) == {}


def test_nothing_is_said_of_chunks_that_a_sealed_bucket_did_not_take(
    new_objects: NewObjects, caplog: pytest.LogCaptureFixture
) -> None:
    objects = new_objects()
    objects.seal()
    for size in (5, 10 * CHUNK):
        with pytest.raises(BucketSealedError):
            objects.put("k", bytes(size))
    assert caplog.text == ""


def test_chunks_that_are_left_behind_in_a_bucket_that_is_sealed_meanwhile_are_told_of(
    new_objects: NewObjects, caplog: pytest.LogCaptureFixture
) -> None:
    objects = new_objects()
    with pytest.raises(BucketSealedError):
        objects.put_reader("k", Interrupting(CONTENT, 20 * CHUNK, objects.seal))
    assert "may be left behind" in caplog.text


def test_upload_whose_first_chunks_have_expired_in_the_meantime_fails(any_new_objects: NewObjects) -> None:
    bucket = any_new_objects(ttl=1)
    writer = bucket.open("k", "wb", timeout=10)
    writer.write(bytes(2 * CHUNK))
    writer.flush()
    wait_until(lambda: not chunk_subjects(bucket), "the chunk has expired")
    with pytest.raises(UploadLostError):
        writer.write(bytes(2 * CHUNK))
    writer.abort()
    assert not bucket.exists("k")


def test_upload_notices_at_its_end_that_its_first_chunks_have_expired(any_new_objects: NewObjects) -> None:
    bucket = any_new_objects(ttl=1)
    writer = bucket.open("k", "wb", timeout=10)
    written = 1
    writer.write(bytes(CHUNK))
    while sum(chunk_subjects(bucket).values()) >= written - 1:  # it does not stand still for as long as they live
        writer.write(bytes(CHUNK))
        writer.flush()
        written += 1
    with pytest.raises(UploadLostError, match="the stream holds"):
        writer.close()
    assert not bucket.exists("k")


def test_bucket_that_is_deleted_meanwhile_is_named(memory: ObjectBucket, connection: Connection) -> None:
    raw = raw_objects(memory)
    config = raw.config
    with pytest.raises(BucketNotFoundError, match=memory.name):
        memory.put_reader("k", Interrupting(CONTENT, 20 * CHUNK, raw.delete))
    raw.create(**{key: value for key, value in config.items() if key != "name"})


# --- many at once


def test_uploads_and_key_value_calls_of_one_connection_do_not_disturb_each_other(
    connection: Connection, memory: ObjectBucket, name: str
) -> None:
    kv = connection.kv(KVBucketConfig(f"kv_{name}", storage="memory"))
    kv.set("k", b"v")
    errors = list[MonoError]()

    def get() -> None:
        try:
            assert kv.get("k", timeout=1) == b"v"
        except MonoError as error:
            errors.append(error)

    with Repeated([get, get]):
        for number in range(3):
            memory.put_reader(f"k{number}", io.BytesIO(CONTENT), timeout=20)
    assert not errors


# --- full buckets


def _write_in_pieces(objects: ObjectBucket, content: bytes) -> None:
    with objects.open("k", "wb") as writer:
        for start in range(0, len(content), 50_000):
            writer.write(content[start : start + 50_000])
        writer.flush()


WAYS: dict[str, Callable[[ObjectBucket, bytes], object]] = {
    "stream": _write_in_pieces,
    "put": lambda objects, content: objects.put("k", content),
    "put_reader": lambda objects, content: objects.put_reader("k", io.BytesIO(content)),
    "resumable": lambda objects, content: objects.put_reader("k", io.BytesIO(content), resume=str(len(content))),
}


@pytest.mark.parametrize("way", WAYS)
def test_wherever_a_bucket_gets_full_there_is_the_old_object_or_the_new_one(new_objects: NewObjects, way: str) -> None:
    """In the middle, at the last chunk, and at the description, as where a single byte is too much."""
    objects, fits, too_large = new_objects(max_bytes=600_000), 0, 700_000
    while too_large - fits > 1:
        size = (fits + too_large) // 2
        old = objects.put("k", b"old")
        try:
            WAYS[way](objects, bytes(size))
        except BucketFullError:
            too_large = size
        else:
            fits = size
        assert (objects.stat("k") == old) is (too_large == size)
        left = chunk_subjects(objects)
        assert left.pop(f"$O.{objects.name}.C.{objects.stat('k').nuid}") == objects.stat("k").chunks
        assert way == "resumable" or not left
        for subject in left:
            raw_objects(objects).purge(subject)
        assert objects.get("k") == (bytes(size) if fits == size else b"old")
    assert 500_000 < fits < 600_000
    objects.delete("k")
    WAYS[way](objects, bytes(fits))
    assert objects.get("k") == bytes(fits)
