"""The end of streams that write objects: a `close` that fails has closed them, as that of a file has."""

from __future__ import annotations

import contextlib
import gc
import io
import os
from collections.abc import Callable
from typing import Any, Literal, cast

import pytest

import mono_sync
from mono_sync import (
    BucketFullError,
    FSBucketConfig,
    ObjectBucket,
    ObjectExistsError,
    ObjectWriter,
    OutcomeUnknownError,
    StorageError,
)
from tests.fixtures.servers import RunNatsServer
from tests.fixtures.waiting import wait_until
from tests.storage.conftest import NewObjects
from tests.storage.helpers import chunk_subjects

CHUNK = 128 * 1024


class OopsError(Exception):
    pass


def beaten(objects: ObjectBucket, mode: Literal["xb", "x"]) -> Any:
    """Return a stream for an object that somebody else has stored meanwhile."""
    stream: Any = objects.open("k", mode)
    stream.write("x" if mode == "x" else b"x")
    objects.put("k", b"theirs")
    return stream


@pytest.mark.parametrize("mode", ["xb", "x"])
def test_close_that_fails_has_closed_the_stream(objects: ObjectBucket, mode: Literal["xb", "x"]) -> None:
    stream = beaten(objects, mode)
    with pytest.raises(ObjectExistsError):
        stream.close()
    assert stream.closed
    assert stream.info is None
    stream.close()
    stream.abort()
    with pytest.raises(ValueError, match="closed"):
        stream.write("y" if mode == "x" else b"y")
    assert objects.get("k") == b"theirs"
    assert len(chunk_subjects(objects)) == 1


@pytest.mark.parametrize("mode", ["xb", "x"])
def test_with_has_nothing_to_add_where_its_close_failed_and_was_caught(
    objects: ObjectBucket, mode: Literal["xb", "x"]
) -> None:
    with beaten(objects, mode) as stream, pytest.raises(FileExistsError):
        stream.close()
    assert objects.get("k") == b"theirs"


def test_buffer_around_a_stream_that_failed_at_its_end_is_closed_too(objects: ObjectBucket) -> None:
    """Else it is flushed once more when it is collected, which ``-X dev`` and pytest tell of."""
    buffered = io.BufferedWriter(cast(io.RawIOBase, beaten(objects, "xb")))
    with pytest.raises(FileExistsError):
        buffered.close()
    assert buffered.closed
    del buffered
    gc.collect()


@pytest.mark.parametrize("mode", ["wb", "w"])
def test_after_an_unknown_outcome_nobody_says_that_nothing_was_stored(
    run_nats_server: RunNatsServer, mode: Literal["wb", "w"]
) -> None:
    server = run_nats_server("jetstream: enabled")
    with mono_sync.connect(server.url) as connection:
        objects = connection.objects(FSBucketConfig("b", storage="memory"))
        stream: Any = objects.open("k", mode, timeout=1)
        stream.write("x" if mode == "w" else b"x")
        server.pause()
        with pytest.raises(OutcomeUnknownError):
            stream.close()
        server.resume()
        assert stream.closed
        stream.close()
        wait_until(lambda: objects.exists("k"), "it is stored after all")


def filled(new_objects: NewObjects, mode: Literal["wb", "w"]) -> tuple[ObjectBucket, Any, Any]:
    """Return a bucket with an object, a stream that is to replace it, and more than there is room for."""
    objects = new_objects(max_bytes=1_000_000)
    objects.put("k", b"old")
    return objects, objects.open("k", mode), "x" * 6_000_000 if mode == "w" else b"x" * 6_000_000


@pytest.mark.parametrize("mode", ["wb", "w"])
def test_with_that_swallowed_a_failed_write_does_not_look_successful(
    new_objects: NewObjects, mode: Literal["wb", "w"]
) -> None:
    objects, stream, too_much = filled(new_objects, mode)

    def write_and_go_on() -> None:
        with stream:
            with pytest.raises(BucketFullError):
                stream.write(too_much)
            assert not stream.closed

    with pytest.raises(StorageError, match=r"was not stored, for a call before failed: bucket .* is full"):
        write_and_go_on()
    assert stream.closed
    stream.close()
    assert objects.get("k") == b"old"


@pytest.mark.parametrize("mode", ["wb", "w"])
def test_with_that_a_failed_write_ends_raises_what_that_did(new_objects: NewObjects, mode: Literal["wb", "w"]) -> None:
    objects, stream, too_much = filled(new_objects, mode)
    with pytest.raises(BucketFullError), stream:
        stream.write(too_much)
    assert stream.closed
    stream.close()
    assert objects.get("k") == b"old"


@pytest.mark.parametrize("mode", ["wb", "w"])
def test_close_that_is_refused_because_another_thread_is_in_the_stream_changes_nothing(
    objects: ObjectBucket, mode: Literal["wb", "w"]
) -> None:
    stream: Any = objects.open("k", mode)
    binary: ObjectWriter = stream if mode == "wb" else stream.buffer
    stream.write("whole" if mode == "w" else b"whole")
    with binary._turn, pytest.raises(StorageError, match="in use: one thread at a time"):
        stream.close()
    assert not stream.closed
    stream.close()
    assert objects.get("k") == b"whole"


def fail_in(stream: Any) -> None:
    with stream:
        raise OopsError


def notes_of_failing_in(stream: Any) -> list[str]:
    with pytest.raises(OopsError) as caught:
        fail_in(stream)
    return getattr(caught.value, "__notes__", [])


@pytest.mark.parametrize("mode", ["wb", "w"])
def test_with_that_may_not_abort_because_another_thread_is_in_the_stream_raises_what_its_block_did(
    objects: ObjectBucket, mode: Literal["wb", "w"]
) -> None:
    stream: Any = objects.open("k", mode)
    binary: ObjectWriter = stream if mode == "wb" else stream.buffer
    with binary._turn:
        (note,) = notes_of_failing_in(stream)
    assert "the stream was not aborted: <ObjectWriter 'k' " in note
    assert "in use: one thread at a time" in note
    assert not stream.closed
    assert notes_of_failing_in(stream) == []
    assert stream.closed


@pytest.mark.parametrize("mode", ["wb", "w"])
def test_with_in_a_forked_child_raises_what_its_block_did(objects: ObjectBucket, mode: Literal["wb", "w"]) -> None:
    stream: Any = objects.open("k", mode)
    child = os.fork()
    if child == 0:
        code = 1
        with contextlib.suppress(BaseException):
            (note,) = notes_of_failing_in(stream)
            code = 0 if "belongs to the parent process" in note else 1
        os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    stream.close()
    assert objects.get("k") == b""


# --- what is said of a call before


def test_stream_of_no_use_is_named_once(objects: ObjectBucket) -> None:
    lines: Any = objects.open("k", "w")
    lines.write("x" * CHUNK)
    with lines.buffer._turn, pytest.raises(StorageError, match="in use: one thread at a time"):
        lines.flush()
    with pytest.raises(ValueError, match=r"of no use, for a call before failed: .* in use: one thread") as caught:
        lines.flush()
    assert str(caught.value).count("<ObjectWriter") == 1
    lines.abort()


def test_call_that_was_interrupted_before_is_told_of(objects: ObjectBucket, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_deadline: object) -> None:
        raise KeyboardInterrupt

    stream: Any = objects.open("k", "wb")
    stream.write(b"x")
    monkeypatch.setattr(stream._upload, "flush", interrupt)
    with pytest.raises(KeyboardInterrupt):
        stream.flush()
    with pytest.raises(ValueError, match="is of no use, for a call before failed: KeyboardInterrupt"):
        stream.write(b"y")
    with pytest.raises(StorageError, match="object 'k' was not stored, for a call before failed: KeyboardInterrupt"):
        stream.close()


# --- text streams that are detached


def test_detached_binary_stream_is_stored_without_the_text_stream(objects: ObjectBucket) -> None:
    lines = objects.open("k", "w")
    lines.write("ü")
    with io.TextIOWrapper(lines.detach(), encoding="latin-1") as others:
        others.write("ü")
    assert objects.get("k") == "ü".encode() + "ü".encode("latin-1")


def test_with_of_a_text_stream_that_was_detached_raises_what_its_block_did(objects: ObjectBucket) -> None:
    def detach_and_fail() -> None:
        with objects.open("k", "w") as lines:
            lines.detach().close()
            raise OopsError

    with pytest.raises(OopsError):
        detach_and_fail()
    assert objects.get("k") == b""


def test_with_of_a_text_stream_that_was_detached_ends_as_that_of_a_file(objects: ObjectBucket) -> None:
    def detach_in_a_with() -> None:
        with objects.open("k", "w") as lines:
            lines.write("whole")
            lines.detach().close()

    with pytest.raises(ValueError, match=r"^underlying buffer has been detached$") as caught:
        detach_in_a_with()
    assert caught.value.__context__ is None
    assert objects.get("k") == b"whole"


@pytest.mark.parametrize(
    "call",
    [
        lambda lines: lines.write("x"),
        lambda lines: lines.flush(),
        lambda lines: lines.tell(),
        lambda lines: lines.close(),
        lambda lines: lines.abort(),
        lambda lines: lines.info,
        lambda lines: lines.detach(),
        lambda lines: lines.__enter__(),
    ],
    ids=["write", "flush", "tell", "close", "abort", "info", "detach", "with"],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_calls_of_a_text_stream_that_was_detached_are_refused_as_those_of_a_file(
    objects: ObjectBucket, encoding: str, call: Callable[[Any], object]
) -> None:
    lines = objects.open("k", "w", encoding=encoding)
    binary = lines.detach()
    with pytest.raises(ValueError, match=r"^underlying buffer has been detached$"):
        call(lines)
    binary.close()
    assert objects.get("k") == b""
