"""Objects that are read as text, when calls fail, are interrupted, or come from two threads at once."""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest

from mono_sync import ForkedError, ObjectBucket, ObjectReader, OperationTimeoutError, StorageError, TextObjectReader
from mono_sync.storage.objects import _lone_stream, _reader, _source
from mono_sync.storage.objects._source import Source
from tests.support.steps import Signalled
from tests.support.threads import Background


def _next_line(text: TextObjectReader) -> str:
    return next(text)


@pytest.mark.parametrize("read", [TextObjectReader.read, TextObjectReader.readline, _next_line])
def test_text_does_not_go_on_after_an_error_in_which_some_of_it_was_lost(
    objects: ObjectBucket, monkeypatch: pytest.MonkeyPatch, read: Callable[[TextObjectReader], str]
) -> None:
    line = "a line that is longer than a chunk" * 10_000 + "\n"
    objects.put("k", (line * 2).encode())
    chunk_at, calls = Source.chunk_at, itertools.count()

    def late(self: Source, *arguments: Any) -> tuple[int, bytes]:
        if next(calls) == 1:
            raise OperationTimeoutError("reading", 1)
        return chunk_at(self, *arguments)

    monkeypatch.setattr(Source, "chunk_at", late)
    with objects.open("k", "r") as text:
        with pytest.raises(OperationTimeoutError):
            read(text)
        for _ in range(2):
            with pytest.raises(StorageError, match="text was lost in a call that failed"):
                read(text)
        others: list[Callable[[], object]] = [text.readlines, text.tell, lambda: text.seek(0, io.SEEK_CUR)]
        for call in others:
            with pytest.raises(StorageError, match="text was lost in a call that failed"):
                call()
        text.seek(0)
        assert text.read() == line * 2
    with pytest.raises(ValueError, match="I/O operation on closed file"):
        read(text)


def test_text_that_failed_is_let_go_at_once_when_it_is_dropped(
    objects: ObjectBucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    def late(*_: object) -> None:
        raise OperationTimeoutError("reading", 1)

    objects.put("k", b"x")
    monkeypatch.setattr(Source, "chunk_at", late)
    text = [objects.open("k", "r")]
    with pytest.raises(OperationTimeoutError):
        text[0].read()
    with pytest.warns(ResourceWarning, match="unclosed"):
        text.clear()


def test_second_thread_in_a_text_gets_an_error_and_the_first_its_lines(
    objects: ObjectBucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = ["a line that is longer than a chunk" * 10_000 + "\n"] * 3
    objects.put("k", "".join(lines).encode())
    inside, leave, chunk_at = threading.Event(), threading.Event(), Source.chunk_at

    def slow(self: Source, *arguments: Any) -> tuple[int, bytes]:
        inside.set()
        assert leave.wait(20)
        return chunk_at(self, *arguments)

    monkeypatch.setattr(Source, "chunk_at", slow)
    with objects.open("k", "r") as text:
        first = Background(list, text)
        assert inside.wait(20)
        for call in (text.readline, text.read, lambda: text.read(1), lambda: text.seek(0), text.flush, text.close):
            with pytest.raises(StorageError, match=r"'k' .* is in use: one thread at a time"):
                call()
        leave.set()
        assert first.result() == lines


@pytest.mark.parametrize("portion", [1, 2])
@pytest.mark.parametrize("read", [TextObjectReader.readline, TextObjectReader.readlines])
def test_second_thread_is_refused_between_two_portions_of_one_line(
    objects: ObjectBucket, monkeypatch: pytest.MonkeyPatch, read: Callable[[TextObjectReader], Any], portion: int
) -> None:
    lines = ["a line that is longer than a portion" * 1_000 + "\n"] * 3
    objects.put("k", "".join(lines).encode())
    read1, portions, errors = ObjectReader.read1, itertools.count(1), list[BaseException | None]()

    def interleaved(self: ObjectReader, size: int | None = -1, /) -> bytes:
        data = read1(self, size)
        if next(portions) == portion:  # the binary stream is free, and the text stream has gathered something
            errors.extend(Background(call).error() for call in calls)
        return data

    monkeypatch.setattr(ObjectReader, "read1", interleaved)
    with objects.open("k", "r") as text:
        calls: list[Callable[[], object]] = [
            *(lambda: text.seek(0), text.tell, text.readline, text.readlines, text.read, lambda: next(text)),
            *(text.flush, lambda: text.reconfigure(errors="replace"), text.truncate, text.detach, text.close),
        ]
        assert read(text) == (lines[0] if read is TextObjectReader.readline else lines)
        assert len(errors) == len(calls)
        for error in errors:
            assert isinstance(error, StorageError)
            assert "is in use: one thread at a time" in str(error)
        assert text.errors == "strict"


def _all_lines(text: TextObjectReader) -> str:
    return "".join(text.readlines())


@pytest.mark.parametrize("read", [_next_line, _all_lines])
def test_text_that_is_interrupted_at_any_moment_does_not_go_on(
    objects: ObjectBucket, read: Callable[[TextObjectReader], str]
) -> None:
    lines = ["a line that is longer than a chunk" * 5_000 + "\n"] * 2
    lines[1] = lines[1].upper()
    objects.put("k", "".join(lines).encode())
    kept = 0

    def ctrl_c() -> None:
        raise KeyboardInterrupt

    for moment in itertools.count(1):
        signalled = Signalled(moment, ctrl_c, [_lone_stream, _reader, _source])
        with objects.open("k", "r") as text:
            with contextlib.suppress(KeyboardInterrupt), signalled:
                assert read(text).startswith(lines[0])
            if not signalled.happened:
                break
            try:
                following = next(text)
            except StorageError as error:
                assert "text was lost in a call that failed" in str(error)  # noqa: PT017  # or nothing is raised
            else:
                assert following == lines[0]  # it came before anything was read
                kept += 1
            text.seek(0)
            assert text.read() == "".join(lines)
    assert moment > 20
    assert kept < 5


def _stay(text: TextObjectReader) -> str:
    text.seek(0, io.SEEK_CUR)
    return ""


def _tell(text: TextObjectReader) -> str:
    text.tell()
    return ""


@pytest.mark.parametrize("read", [_next_line, _all_lines, _stay])
def test_what_a_signal_handler_reads_at_any_moment_of_a_call_is_refused_or_missing_nowhere_else(
    objects: ObjectBucket, read: Callable[[TextObjectReader], str]
) -> None:
    lines = [f"{number} and more than a portion" * 500 + "\n" for number in range(3)]
    objects.put("k", "".join(lines).encode())
    refused = 0

    def handle() -> None:
        nonlocal refused
        try:
            parts.append(text.readline())
        except StorageError:
            refused += 1

    for moment in itertools.count(1):
        signalled = Signalled(moment, handle, [_lone_stream, _reader, _source])
        with objects.open("k", "r") as text:
            parts = [text.read(8190)]
            with signalled:
                parts.append(read(text))
            parts.append(text.read())
        assert sorted("".join(parts)) == sorted("".join(lines))
        if not signalled.happened:
            break
    assert refused > 5


@pytest.mark.parametrize("call", [_next_line, _stay, _tell])
def test_signal_handler_that_seeks_in_a_call_is_refused_and_the_text_is_not_called_lost(
    objects: ObjectBucket, call: Callable[[TextObjectReader], str]
) -> None:
    objects.put("k", b"0\n" * 20_000)
    refused = 0

    def handle() -> None:
        nonlocal refused
        try:
            text.seek(0)
        except StorageError as error:
            assert "is in use" in str(error)  # noqa: PT017  # counted
            refused += 1

    for moment in itertools.count(1):
        signalled = Signalled(moment, handle, [_lone_stream, _reader, _source])
        with objects.open("k", "r") as text:
            with signalled:
                call(text)
            text.read()
        if not signalled.happened:
            break
    assert refused > 3


def test_call_that_is_refused_for_its_argument_loses_no_text(objects: ObjectBucket) -> None:
    objects.put("k", b"first\nsecond\n")
    with objects.open("k", "r") as text:
        assert text.readline() == "first\n"
        for call in (lambda: text.readline("x"), lambda: text.read("x"), lambda: text.seek("x")):  # type: ignore[arg-type]
            with pytest.raises(TypeError):
                call()
        for bad in ((-1,), (0, 5), (1, io.SEEK_CUR), (1 << 200,)):
            with pytest.raises((ValueError, OverflowError)):
                text.seek(*bad)
        assert text.readline() == "second\n"


def test_seek_in_a_loop_over_lines_is_refused_as_by_a_file_and_loses_no_text(objects: ObjectBucket) -> None:
    objects.put("k", b"first\nsecond\n")
    with objects.open("k", "r") as text:
        for line in text:
            assert line in ("first\n", "second\n")
            for call in (text.tell, lambda: text.seek(0, io.SEEK_CUR)):
                with pytest.raises(OSError, match="telling position disabled by next"):
                    call()
        assert line == "second\n"
        assert text.seek(0, io.SEEK_CUR) == 13
        assert text.seek(6) == 6
        assert text.seek(0, io.SEEK_CUR) == 6
        assert text.read() == line


def test_what_cannot_be_decoded_is_an_error_after_which_it_is_read_on_as_a_file(objects: ObjectBucket) -> None:
    objects.put("k", b"\xff" * 10_000 + b"\nsecond\n")
    with objects.open("k", "r") as text:
        with pytest.raises(UnicodeDecodeError):
            text.readline()
        with pytest.raises(UnicodeDecodeError):
            text.readline()
        assert text.seek(10_001) == 10_001
        assert text.readlines(None) == ["second\n"]


def _in_a_child(check: Callable[[], object]) -> None:
    """Call something in a forked child, which has to come to its end."""
    child = os.fork()
    if child == 0:
        code = 1
        with contextlib.suppress(BaseException):
            check()
            code = 0
        os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_text_belongs_to_the_process_that_opened_it(objects: ObjectBucket, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = ["first\n", "second\n", "a line that is longer than a chunk" * 10_000 + "\n"]
    objects.put("k", "".join(lines).encode())
    text = objects.open("k", "r")

    def refused() -> None:
        for call in (text.readline, text.read, text.readlines, text.tell, text.flush, text.detach, lambda: next(text)):
            with pytest.raises(ForkedError, match="belongs to the parent process"):
                call()
        for call in (lambda: text.seek(0), lambda: text.reconfigure(errors="replace")):
            with pytest.raises(ForkedError, match="belongs to the parent process"):
                call()
        with text:
            pass
        text.close()
        assert text.closed

    assert text.readline() == lines[0]
    _in_a_child(refused)  # the second line is decoded already
    inside, leave, chunk_at = threading.Event(), threading.Event(), Source.chunk_at

    def slow(self: Source, *arguments: Any) -> tuple[int, bytes]:
        inside.set()
        assert leave.wait(20)
        return chunk_at(self, *arguments)

    monkeypatch.setattr(Source, "chunk_at", slow)
    rest = Background(text.readlines)
    assert inside.wait(20)
    _in_a_child(refused)  # another thread of the parent has the turn
    leave.set()
    assert rest.result() == lines[1:]
    text.close()


@pytest.mark.parametrize(
    "call",
    [
        *(lambda text: text.read(), lambda text: text.readline(), lambda text: text.readlines(), next),
        *(lambda text: text.seek(0), lambda text: text.tell(), lambda text: text.flush(), lambda text: text.info),
        *(lambda text: text.close(), lambda text: text.detach(), lambda text: text.__enter__()),
    ],
)
@pytest.mark.parametrize("has_lost", [False, True])
def test_calls_of_a_text_that_was_detached_are_refused_as_those_of_a_file(
    objects: ObjectBucket, monkeypatch: pytest.MonkeyPatch, call: Callable[[Any], object], has_lost: bool
) -> None:
    objects.put("k", b"x")
    text = objects.open("k", "r")

    def late(*_: object) -> None:
        raise OperationTimeoutError("reading", 1)

    if has_lost:
        monkeypatch.setattr(Source, "chunk_at", late)
        with pytest.raises(OperationTimeoutError):
            text.read()
    binary = text.detach()
    for _ in range(2):
        with pytest.raises(ValueError, match=r"^underlying buffer has been detached$"):
            call(text)
    binary.close()


def test_first_text_of_a_child_process_may_be_read_in_it() -> None:
    code = """
import os, mono_sync
from mono_sync.storage import ObjectBucket, TextObjectReader  # imported before the fork, and not used
child = os.fork()
if child:
    raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
with mono_sync.connect() as connection:
    objects = connection.objects(mono_sync.FSBucketConfig("b"))
    with objects.open("k", "w") as writer:
        writer.write("text")
    with objects.open("k", "r") as reader:
        assert reader.read() == "text"
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=60)
