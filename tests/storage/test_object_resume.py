"""Uploads that were interrupted and are gone on with."""

from __future__ import annotations

import io
import json
import math
import random
import threading
import time
from base64 import b64decode
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import mono_sync
from mono_sync import Connection, FSBucketConfig, ObjectBucket, ObjectInfo, RevisionMismatchError, UploadLostError
from mono_sync._durations import Deadline
from mono_sync.adapter import parse_header_block
from mono_sync.connection import Json, StoredMessage
from mono_sync.storage.objects import _sweep, _upload, _writing
from mono_sync.storage.objects._committing import Commit
from mono_sync.storage.objects._resuming import Found, Resumption
from mono_sync.storage.objects._sinks import Sinks
from tests.fixtures.processes import Program
from tests.fixtures.servers import RunNatsServer
from tests.fixtures.waiting import wait_until
from tests.storage.conftest import NewObjects
from tests.storage.helpers import LIVE, CutProxy, chunk_subjects, raw_objects, restart_at_a_removal, through

CHUNK = 512 * 1024
CONTENT = random.Random(1).randbytes(10 * CHUNK + 5)


class OopsError(Exception):
    pass


class Failing(io.BytesIO):
    """A file that fails behind a position."""

    def __init__(self, content: bytes, fails_at: int) -> None:
        super().__init__(content)
        self._fails_at = fails_at

    def read(self, size: int | None = -1, /) -> bytes:
        if self.tell() >= self._fails_at:
            raise OopsError
        return super().read(size)


class Interrupted(io.BytesIO):
    """A file during whose first reading something else happens."""

    def __init__(self, content: bytes, event: Callable[[], object]) -> None:
        super().__init__(content)
        self._events = iter([event])

    def read(self, size: int | None = -1, /) -> bytes:
        for event in self._events:
            event()
        return super().read(size)


def interrupt(objects: ObjectBucket, at: int, content: bytes = CONTENT, token: str = "t", **options: Any) -> None:
    with pytest.raises(OopsError):
        objects.put_reader("k", Failing(content, at), resume=token, **options)


def upload_all_but_the_description(objects: ObjectBucket) -> None:
    with pytest.raises(RevisionMismatchError):
        objects.put_reader("k", io.BytesIO(CONTENT), resume="t", if_match=99)


def ttls(objects: ObjectBucket) -> list[str | None]:
    """Return for how long each message lives, from the oldest to the newest."""
    raw, found = raw_objects(objects), list[str | None]()
    for sequence in range(1, raw.state["last_seq"] + 1):
        message = raw.api("STREAM.MSG.GET.{stream}", {"seq": sequence})["message"]
        found.append(parse_header_block(b64decode(message["hdrs"]))[0].get("Nats-TTL"))
    return found


@pytest.mark.parametrize("chunks", [0, 1, 2, 5, 10])
def test_only_what_is_missing_is_uploaded(any_objects: ObjectBucket, chunks: int) -> None:
    any_objects.put("k", b"old")
    interrupt(any_objects, chunks * CHUNK)
    assert any_objects.get("k") == b"old"
    wait_until(lambda: sum(chunk_subjects(any_objects).values()) == max(chunks, 1), "what was sent has arrived")
    before = raw_objects(any_objects).state["last_seq"]
    told = list[int]()
    info = any_objects.put_reader("k", io.BytesIO(CONTENT), resume="t", progress=lambda done, _total: told.append(done))
    assert any_objects.get("k") == CONTENT
    assert (info, info.chunks) == (any_objects.stat("k"), 11)
    assert raw_objects(any_objects).state["last_seq"] - before == 11 - max(chunks - 1, 0) + 1
    assert list(chunk_subjects(any_objects).values()) == [11]
    assert told[-1] == len(CONTENT)
    assert told[0] >= max(chunks - 1, 0) * CHUNK


def test_upload_that_is_interrupted_again_and_again_ends_at_last(objects: ObjectBucket) -> None:
    for chunks in (2, 3, 3, 7):
        interrupt(objects, chunks * CHUNK)
    objects.put_reader("k", io.BytesIO(CONTENT), resume="t")
    assert objects.get("k") == CONTENT


def test_upload_is_gone_on_with_from_the_position_of_the_file(objects: ObjectBucket) -> None:
    file = Failing(b"head" + CONTENT, 4 * CHUNK)
    file.seek(4)
    with pytest.raises(OopsError):
        objects.put_reader("k", file, resume="t")
    whole = io.BytesIO(b"head" + CONTENT)
    whole.seek(4)
    objects.put_reader("k", whole, resume="t")
    assert objects.get("k") == CONTENT


def test_upload_that_fails_again_and_again_is_gone_on_with_from_the_same_file(objects: ObjectBucket) -> None:
    failures = iter([OopsError(), KeyboardInterrupt(), OopsError()])

    class FailsThrice(io.BytesIO):
        reads = 0

        def read(self, size: int | None = -1, /) -> bytes:
            self.reads += 1
            if self.reads % 9 == 0 and (failure := next(failures, None)) is not None:
                raise failure
            return super().read(size)

    file = FailsThrice(b"head" + CONTENT)
    file.seek(4)
    failed = 0
    while not objects.exists("k"):
        try:
            objects.put_reader("k", file, resume="t")
        except (OopsError, KeyboardInterrupt):
            failed += 1
            assert file.tell() == 4
    assert failed == 3
    assert objects.get("k") == CONTENT


def test_file_that_cannot_be_put_back_does_not_hide_why_the_upload_failed(objects: ObjectBucket) -> None:
    class Broken(Failing):
        def seek(self, offset: int, whence: int = 0, /) -> int:
            if self.tell() >= 2 * CHUNK:
                raise OSError("no way back")
            return super().seek(offset, whence)

    with pytest.raises(OopsError) as caught:
        objects.put_reader("k", Broken(CONTENT, 2 * CHUNK), resume="t")
    assert caught.value.__notes__ == ["the file could not be put back to position 0: OSError('no way back')"]


def test_upload_whose_process_was_killed_is_gone_on_with(
    connection: Connection, objects: ObjectBucket, tmp_path: Path
) -> None:
    (tmp_path / "f").write_bytes(CONTENT)
    program = f"""
import sys, time, mono_sync
class Slow:
    def __init__(self, file): self.file, self.tell, self.seek, self.seekable = file, file.tell, file.seek, file.seekable
    def read(self, size):
        if self.file.tell() > {6 * CHUNK}:
            print("now", flush=True)
            time.sleep(60)
        return self.file.read(size)
with mono_sync.connect({connection.server_info.url!r}, token={connection.config.token!r}) as connection:
    with open({str(tmp_path / "f")!r}, "rb") as file:
        connection.objects({objects.name!r}).put_reader("k", Slow(file), resume="t", timeout=60)
"""
    with Program(program) as process:
        assert process.line() == "now"
        wait_until(lambda: sum(chunk_subjects(objects).values()) == 6, "its chunks are stored")
        process.kill()
    before = raw_objects(objects).state["last_seq"]
    with (tmp_path / "f").open("rb") as file:
        objects.put_reader("k", file, resume="t")
    assert raw_objects(objects).state["last_seq"] - before == 11 - 6 + 1
    assert objects.get("k") == CONTENT


def test_same_upload_once_more_returns_what_is_stored(objects: ObjectBucket) -> None:
    info = objects.put_reader("k", io.BytesIO(CONTENT), resume="t")
    before = raw_objects(objects).state["last_seq"]
    assert objects.put_reader("k", io.BytesIO(CONTENT), resume="t") == info
    assert raw_objects(objects).state["last_seq"] == before


@pytest.mark.parametrize("content", [CONTENT[:-1], CONTENT + b"x", b"y" + CONTENT[1:], b""])
def test_text_that_stands_for_another_content_is_refused(objects: ObjectBucket, content: bytes) -> None:
    objects.put_reader("k", io.BytesIO(CONTENT), resume="t")
    with pytest.raises(UploadLostError, match="stands for another content"):
        objects.put_reader("k", io.BytesIO(content), resume="t")
    assert objects.get("k") == CONTENT


@pytest.mark.parametrize("content", [b"y" + CONTENT[1:], CONTENT[: 2 * CHUNK], b""])
def test_file_that_has_changed_meanwhile_is_refused(objects: ObjectBucket, content: bytes) -> None:
    objects.put("k", b"old")
    interrupt(objects, 5 * CHUNK)
    with pytest.raises(UploadLostError, match="are not those of the file"):
        objects.put_reader("k", io.BytesIO(content), resume="t")
    assert objects.get("k") == b"old"
    objects.put_reader("k", io.BytesIO(content), resume="another")
    assert objects.get("k") == content


def test_upload_that_a_sweep_has_given_up_is_refused(objects: ObjectBucket, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt(objects, 5 * CHUNK)
    (subject,) = chunk_subjects(objects)
    raw_objects(objects).put(subject, b"", {"Mono-Sync-Given-Up": "1"})
    with pytest.raises(UploadLostError, match="given up by a sweep"):
        objects.put_reader("k", io.BytesIO(CONTENT), resume="t")


def test_upload_that_was_swept_begins_anew(objects: ObjectBucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_sweep, "_LEAST_GRACE", timedelta(0))
    interrupt(objects, 5 * CHUNK)
    assert objects.sweep(older_than=0) == 4
    objects.put_reader("k", io.BytesIO(CONTENT), resume="t")
    assert objects.get("k") == CONTENT


@pytest.mark.parametrize(("of_the_bucket", "of_the_object"), [(None, None), (60, None), (None, 60)])
def test_upload_of_which_a_chunk_is_gone_is_refused_and_says_why_that_may_be(
    new_objects: NewObjects, of_the_bucket: float | None, of_the_object: float | None
) -> None:
    objects = new_objects(ttl=of_the_bucket)
    interrupt(objects, 5 * CHUNK, ttl=of_the_object)
    raw_objects(objects).delete_message(2)
    why = "a ttl has removed some, or another" if of_the_bucket or of_the_object else "another"
    with pytest.raises(UploadLostError, match=rf"chunks are left .*; perhaps {why} upload goes by the same resume"):
        objects.put_reader("k", io.BytesIO(CONTENT), resume="t", ttl=of_the_object)


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("size", [5, CHUNK, len(CONTENT)])
def test_upload_that_was_interrupted_at_its_last_step_is_ended(
    any_objects: ObjectBucket, monkeypatch: pytest.MonkeyPatch, *, size: int, late: bool
) -> None:
    if late:
        monkeypatch.setattr(_writing, "COMMIT_TIME", -1.0)

    def fail(*_: Any, **__: Any) -> int:
        raise OopsError

    with monkeypatch.context() as patch:
        patch.setattr(Commit, "commit", fail)
        with pytest.raises(OopsError):
            any_objects.put_reader("k", io.BytesIO(CONTENT[:size]), resume="t")
    stored = raw_objects(any_objects).state["last_seq"]
    assert stored == -(-size // CHUNK)
    any_objects.put_reader("k", io.BytesIO(CONTENT[:size]), resume="t")
    assert any_objects.get("k") == CONTENT[:size]
    assert list(chunk_subjects(any_objects).values()) == [-(-size // CHUNK)]


@pytest.mark.parametrize("swept", [True, False])
def test_upload_that_stands_still_before_its_last_step_is_refused_and_can_be_gone_on_with(
    objects: ObjectBucket, monkeypatch: pytest.MonkeyPatch, *, swept: bool
) -> None:
    monkeypatch.setattr(_sweep, "_LEAST_GRACE", timedelta(0))
    objects.put("k", b"old")
    upload_all_but_the_description(objects)
    told = list[int]()

    def stand_still(done: int, _total: int | None) -> None:
        told.append(done)
        patch.setattr(_upload, "COMMIT_TIME", 0.0)
        if swept:
            assert objects.sweep(older_than=0) == 11

    with monkeypatch.context() as patch, pytest.raises(UploadLostError, match="stood still for longer than"):
        objects.put_reader("k", io.BytesIO(CONTENT), resume="t", progress=stand_still, timeout=None)
    assert told == [len(CONTENT)]
    assert objects.get("k") == b"old"
    objects.put_reader("k", io.BytesIO(CONTENT), resume="t")
    assert objects.get("k") == CONTENT


def test_upload_of_which_all_is_there_has_as_little_time_for_its_last_step_as_others(
    objects: ObjectBucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload_all_but_the_description(objects)
    commit, left = Commit.commit, list[float]()

    def note(
        self: Commit, meta: Json, newest: StoredMessage | None, deadline: Deadline, *arguments: Any, **firm: Any
    ) -> int:
        left.append(deadline.remaining or math.inf)
        return commit(self, meta, newest, deadline, *arguments, **firm)

    monkeypatch.setattr(Commit, "commit", note)
    slow = Interrupted(CONTENT, partial(threading.Event().wait, 0.5))
    objects.put_reader("k", slow, resume="t", timeout=None)
    assert left[0] < _upload.COMMIT_TIME - 0.5  # it counts from when the last chunk was stored
    assert objects.get("k") == CONTENT


def test_nothing_is_built_on_chunks_that_a_server_loses_while_the_file_is_compared(
    run_nats_server: RunNatsServer,
) -> None:
    server = run_nats_server("jetstream: enabled")
    kept_in_memory = FSBucketConfig("b", storage="memory")

    def restart() -> None:
        server.kill()
        server.start()
        with mono_sync.connect(server.url) as another:
            another.objects(kept_in_memory)

    with mono_sync.connect(server.url, reconnect_wait=0.02, reconnect_max_wait=0.1) as connection:
        objects = connection.objects(kept_in_memory)
        upload_all_but_the_description(objects)
        with pytest.raises(UploadLostError, match="its chunks are gone"):
            objects.put_reader("k", Interrupted(CONTENT, restart), resume="t", timeout=20)
        assert objects.list(timeout=10) == []
        objects.put_reader("k", io.BytesIO(CONTENT), resume="t", timeout=20)
        assert objects.get("k") == CONTENT


def test_last_chunk_that_has_become_old_while_the_file_was_compared_is_stored_once_more(
    objects: ObjectBucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload_all_but_the_description(objects)
    before = raw_objects(objects).state["last_seq"]
    monkeypatch.setattr(_writing, "COMMIT_TIME", 1.0)
    objects.put_reader("k", Interrupted(CONTENT, partial(threading.Event().wait, 1.1)), resume="t")
    assert raw_objects(objects).state["last_seq"] - before == 2
    assert objects.get("k") == CONTENT
    assert list(chunk_subjects(objects).values()) == [11]


def test_object_that_was_renamed_is_not_written_to(objects: ObjectBucket) -> None:
    info = objects.put_reader("k", io.BytesIO(CONTENT), resume="t")
    raw = raw_objects(objects)
    meta = {"name": "new", "nuid": info.nuid, "size": info.size, "chunks": info.chunks, "digest": info.digest}
    raw.put(f"$O.{objects.name}.M.bmV3", json.dumps(meta).encode())
    raw.delete_message(info.revision)
    for content, why in ((CONTENT, "stored under another name"), (CONTENT + b"more", "the file has more than")):
        with pytest.raises(UploadLostError, match=why):
            objects.put_reader("k", io.BytesIO(content), resume="t")
    assert objects.get("new") == CONTENT


def test_uploads_of_other_texts_and_objects_have_nothing_to_do_with_it(objects: ObjectBucket) -> None:
    interrupt(objects, 5 * CHUNK)
    objects.put_reader("k", io.BytesIO(b"1"), resume="u")
    objects.put_reader("l", io.BytesIO(b"2"), resume="t")
    assert (objects.get("k"), objects.get("l")) == (b"1", b"2")


@pytest.mark.parametrize("other", [CONTENT, CONTENT[::-1]])
def test_two_uploads_of_one_text_at_a_time_leave_one_whole_object(objects: ObjectBucket, other: bytes) -> None:
    """One of them may fail; whatever is stored is whole."""
    started = list[int]()

    class Nested(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            if self.tell() == 3 * CHUNK and not started:
                started.append(1)
                wait_until(lambda: list(chunk_subjects(objects).values()) == [2], "its first chunks are stored")
                try:
                    objects.put_reader("k", io.BytesIO(other), resume="t")
                except UploadLostError:
                    started.append(0)
            return super().read(size)

    if other == CONTENT:  # the second goes on with what the first has begun
        with pytest.raises(UploadLostError):
            objects.put_reader("k", Nested(CONTENT), resume="t")
        assert started == [1]
    else:
        objects.put_reader("k", Nested(CONTENT), resume="t")
        assert started == [1, 0]
    assert objects.get("k") == CONTENT
    assert list(chunk_subjects(objects).values()) == [11]


OTHERS_GO_ON = [ObjectBucket.delete, partial(ObjectBucket.put, data=b"newer")]


@pytest.mark.parametrize("then", OTHERS_GO_ON)
@pytest.mark.parametrize("all_there", [True, False])
def test_nothing_is_built_on_chunks_that_another_upload_of_one_text_has_described_and_lost(
    any_objects: ObjectBucket, then: Callable[[ObjectBucket, str], object], all_there: bool
) -> None:
    objects = any_objects
    if all_there:
        upload_all_but_the_description(objects)
    told = list[int]()

    def be_overtaken(done: int, _total: int | None) -> None:
        told.append(done)
        if done == len(CONTENT):
            objects.put_reader("k", io.BytesIO(CONTENT), resume="t")
            then(objects, "k")

    with pytest.raises(UploadLostError, match="was stored, deleted or described anew since"):
        objects.put_reader("k", io.BytesIO(CONTENT), resume="t", progress=be_overtaken)
    assert told[-1] == len(CONTENT)
    assert objects.get("k", b"none") in (b"newer", b"none")
    objects.put_reader("k", io.BytesIO(CONTENT), resume="t")
    assert objects.get("k") == CONTENT


def test_upload_of_one_text_does_not_begin_on_top_of_what_another_one_has_begun_meanwhile(
    objects: ObjectBucket,
) -> None:
    with pytest.raises(UploadLostError):
        objects.put_reader("k", Interrupted(CONTENT, lambda: interrupt(objects, 3 * CHUNK)), resume="t")
    assert list(chunk_subjects(objects).values()) == [2]
    objects.put_reader("k", io.BytesIO(CONTENT), resume="t")
    assert objects.get("k") == CONTENT


@pytest.mark.parametrize("then", OTHERS_GO_ON)
@pytest.mark.parametrize(
    ("content", "why"),
    [(CONTENT, "was stored, deleted or described anew since"), (CONTENT + b"more", "the file has more than")],
)
def test_nothing_is_built_on_chunks_that_are_about_to_be_removed(
    any_objects: ObjectBucket,
    then: Callable[[ObjectBucket, str], object],
    content: bytes,
    why: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    any_objects.put_reader("k", io.BytesIO(CONTENT), resume="t")
    discard = Sinks.discard

    def repeat_the_upload_first(*arguments: Any, **options: Any) -> None:
        monkeypatch.undo()
        with pytest.raises(UploadLostError, match=why):
            any_objects.put_reader("k", io.BytesIO(content), resume="t")
        discard(*arguments, **options)

    monkeypatch.setattr(Sinks, "discard", repeat_the_upload_first)
    then(any_objects, "k")
    assert discard is Sinks.discard
    assert any_objects.get("k", b"none") in (b"newer", b"none")
    any_objects.put_reader("k", io.BytesIO(content), resume="t")
    assert any_objects.get("k") == content


def test_nothing_is_built_on_chunks_whose_description_came_and_went_while_the_file_was_compared(
    objects: ObjectBucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload_all_but_the_description(objects)
    discard, held = Sinks.discard, list[Callable[[], None]]()

    def come_and_go() -> None:
        objects.put_reader("k", io.BytesIO(CONTENT), resume="t")
        with monkeypatch.context() as patch:
            patch.setattr(Sinks, "discard", lambda *these, **those: held.append(lambda: discard(*these, **those)))
            objects.delete("k")
        monkeypatch.setattr(_writing, "COMMIT_TIME", -1.0)

    with pytest.raises(UploadLostError, match="was stored, deleted or described anew since"):
        objects.put_reader("k", Interrupted(CONTENT, come_and_go), resume="t")
    held.pop()()
    assert objects.get("k") is None
    objects.put_reader("k", io.BytesIO(CONTENT), resume="t")
    assert objects.get("k") == CONTENT


def test_no_chunk_of_an_object_is_taken_back_that_was_stored_while_the_file_was_compared(
    objects: ObjectBucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload_all_but_the_description(objects)
    stored = list[ObjectInfo]()

    def end() -> None:
        stored.append(objects.put_reader("k", io.BytesIO(CONTENT), resume="t"))
        monkeypatch.setattr(_writing, "COMMIT_TIME", -1.0)

    assert objects.put_reader("k", Interrupted(CONTENT, end), resume="t") == stored[0]
    assert objects.get("k") == CONTENT


def test_last_step_of_an_earlier_attempt_that_comes_late_is_no_object_of_another_name(
    objects: ObjectBucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    find, stored = Resumption.find, list[ObjectInfo]()

    def come_late(self: Resumption, before: StoredMessage | None) -> Found | None:
        monkeypatch.undo()
        stored.append(objects.put_reader("k", io.BytesIO(CONTENT), resume="t"))
        return find(self, before)

    monkeypatch.setattr(Resumption, "find", come_late)
    assert objects.put_reader("k", io.BytesIO(CONTENT), resume="t") == stored[0]


def test_object_that_is_damaged_is_not_returned_as_stored(objects: ObjectBucket) -> None:
    info = objects.put_reader("k", io.BytesIO(CONTENT), resume="t")
    raw_objects(objects).delete_message(info.revision - 3)
    with pytest.raises(UploadLostError, match="it is stored, but damaged: chunks are missing"):
        objects.put_reader("k", io.BytesIO(CONTENT), resume="t")


def change_the_old_one(objects: ObjectBucket) -> None:
    objects.update_meta("k", description="another")


@pytest.mark.parametrize("change", [change_the_old_one, partial(ObjectBucket.delete, key="k")])
def test_upload_that_lacks_its_last_step_is_refused_where_what_it_replaces_has_changed_since(
    objects: ObjectBucket, change: Callable[[ObjectBucket], object]
) -> None:
    objects.put("k", b"old")
    upload_all_but_the_description(objects)
    change(objects)
    with pytest.raises(UploadLostError, match="was stored, deleted or described anew since"):
        objects.put_reader("k", io.BytesIO(CONTENT), resume="t")
    objects.put_reader("k", io.BytesIO(CONTENT), resume="u")
    assert objects.get("k") == CONTENT


def test_file_that_ends_where_a_chunk_of_a_longer_one_did_is_stored(objects: ObjectBucket) -> None:
    interrupt(objects, 5 * CHUNK)
    assert list(chunk_subjects(objects).values()) == [4]
    objects.put_reader("k", io.BytesIO(CONTENT[: 4 * CHUNK]), resume="t")
    assert objects.get("k") == CONTENT[: 4 * CHUNK]
    with pytest.raises(UploadLostError):
        objects.put_reader("k", io.BytesIO(CONTENT), resume="t")


def test_chunks_of_a_later_upload_by_the_same_name_are_not_removed_with_those_before(any_objects: ObjectBucket) -> None:
    first = any_objects.put_reader("k", io.BytesIO(CONTENT), resume="t")
    any_objects.put("k", b"newer")
    second = any_objects.put_reader("k", io.BytesIO(CONTENT), resume="t")
    assert second.nuid == first.nuid
    any_objects._sinks.discard(first.nuid, Deadline(5), before=first.revision)  # as one whose answer was lost does
    assert any_objects.get("k") == CONTENT


def test_last_chunk_is_taken_back_once_though_the_answer_is_lost(
    any_connection: Connection, any_objects: ObjectBucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    with CutProxy(any_connection.server_info.url) as proxy, through(proxy, any_connection, any_objects) as objects:
        upload_all_but_the_description(objects)
        monkeypatch.setattr(_writing, "COMMIT_TIME", 0.0)
        proxy.cut_at(b".MSG.DELETE.", after=True)
        with monkeypatch.context() as patch:
            taken_back = Resumption.take_back

            def once(resumption: Resumption, found: Found) -> None:
                taken_back(resumption, found)
                patch.undo()
                monkeypatch.setattr(_writing, "COMMIT_TIME", 120.0)

            patch.setattr(Resumption, "take_back", once)
            objects.put_reader("k", io.BytesIO(CONTENT), resume="t")
        assert proxy.cuts == 1
        assert any_objects.get("k") == CONTENT


def test_upload_of_which_all_is_there_ends_though_the_same_one_has_just_ended_elsewhere(objects: ObjectBucket) -> None:
    upload_all_but_the_description(objects)

    def be_overtaken(_done: int, _total: int | None) -> None:
        objects.put_reader("k", io.BytesIO(CONTENT), resume="t")

    info = objects.put_reader("k", io.BytesIO(CONTENT), resume="t", progress=be_overtaken)
    assert objects.stat("k") == info
    assert objects.get("k") == CONTENT


def test_no_chunk_of_an_object_is_taken_back_that_got_its_place_when_the_server_started_anew(
    run_nats_server: RunNatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = run_nats_server("jetstream: enabled")
    with mono_sync.connect(server.url, reconnect_wait=0.02, reconnect_max_wait=0.1) as connection:
        objects = connection.objects(FSBucketConfig("b", storage="memory"))
        upload_all_but_the_description(objects)
        monkeypatch.setattr(_writing, "COMMIT_TIME", 0.0)
        restart_at_a_removal(server, monkeypatch)
        objects.put_reader("k", io.BytesIO(CONTENT), resume="t", timeout=20)
        assert objects.get("k", timeout=10) == CONTENT
        assert objects.get("live") == LIVE


def test_file_that_cannot_seek_is_refused(objects: ObjectBucket) -> None:
    class Pipe:
        def read(self, size: int, /) -> bytes:
            raise AssertionError(size)

    with pytest.raises(ValueError, match="only from a file that can seek"):
        objects.put_reader("k", Pipe(), resume="t")


@pytest.mark.parametrize(("token", "error"), [("", ValueError), (5, TypeError)])
def test_text_that_is_none_is_refused(objects: ObjectBucket, token: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="resume must"):
        objects.put_reader("k", io.BytesIO(), resume=token)


def test_upload_is_gone_on_with_whatever_the_timeouts_and_all_its_chunks_outlive_the_object(
    objects: ObjectBucket,
) -> None:
    for chunks, timeout in ((2, 5), (4, 30), (6, None)):
        interrupt(objects, chunks * CHUNK, ttl=60, timeout=timeout)
    objects.put_reader("k", io.BytesIO(CONTENT), resume="t", ttl=60, timeout=10)
    assert objects.get("k") == CONTENT
    *chunks_live, lives = ttls(objects)
    assert (len(chunks_live), lives) == (11, "60")
    assert {int(ttl or 0) for ttl in chunks_live} == {60 + 24 * 3600 + 120 + 1}


def test_time_to_live_counts_from_the_first_attempt(objects: ObjectBucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_writing, "_LONGEST_UPLOAD", 1.0)
    begun = time.monotonic()
    with pytest.raises(OopsError):
        objects.put_reader("k", Failing(CONTENT, 5 * CHUNK), resume="t", ttl=60)
    wait_until(lambda: time.monotonic() - begun > 1.5, "more than a second has passed")
    with pytest.raises(UploadLostError, match="its chunks would expire before it"):
        objects.put_reader("k", io.BytesIO(CONTENT), resume="t", ttl=60)


@pytest.mark.parametrize(("first", "second"), [(60, None), (None, 60), (60, 61)])
def test_upload_cannot_go_on_with_another_time_to_live(
    objects: ObjectBucket, first: int | None, second: int | None
) -> None:
    """Its chunks would expire before it, or stay when it does."""
    interrupt(objects, 5 * CHUNK, ttl=first)
    with pytest.raises(UploadLostError, match="what was stored before was to live for another time"):
        objects.put_reader("k", io.BytesIO(CONTENT), resume="t", ttl=second)
    objects.put_reader("k", io.BytesIO(CONTENT), resume="t", ttl=first, timeout=None)
    assert objects.get("k") == CONTENT


def test_once_it_is_stored_it_is_returned_whatever_else_is_asked(objects: ObjectBucket) -> None:
    first = objects.put_reader("k", io.BytesIO(CONTENT), resume="t", description="first", if_match=0)
    assert objects.put_reader("k", io.BytesIO(CONTENT), resume="t", description="second", if_match=0) == first
