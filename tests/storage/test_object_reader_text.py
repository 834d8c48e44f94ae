"""Objects that are read as text, when calls fail, are interrupted, or come from two threads at once."""

from __future__ import annotations

import io
import itertools
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest

from mono_sync import ObjectBucket, OperationTimeoutError, StorageError
from mono_sync.storage.objects import _lone_stream, _reader, _source
from mono_sync.storage.objects._source import Source
from tests.support.steps import Signalled
from tests.support.threads import Background


def _next_line(text: io.TextIOWrapper) -> str:
    return next(text)


@pytest.mark.parametrize("read", [io.TextIOWrapper.read, io.TextIOWrapper.readline, _next_line])
def test_text_does_not_go_on_after_an_error_in_which_some_of_it_was_lost(
    objects: ObjectBucket, monkeypatch: pytest.MonkeyPatch, read: Callable[[io.TextIOWrapper], str]
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
        text.seek(0)
        assert text.read() == line * 2


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


def test_text_that_is_interrupted_at_any_moment_does_not_go_on(objects: ObjectBucket) -> None:
    lines = ["a line that is longer than a chunk" * 5_000 + "\n"] * 2
    objects.put("k", "".join(lines).encode())
    begins = False

    def ctrl_c() -> None:
        nonlocal begins
        frame = sys._getframe(2)  # when the outermost function begins Python gives nobody a chance
        begins = frame.f_code.co_name == "call" and frame.f_code.co_filename == _reader.__file__
        raise KeyboardInterrupt

    for moment in itertools.count(1):
        signalled = Signalled(moment, ctrl_c, [_lone_stream, _reader, _source])
        with objects.open("k", "r") as text:
            try:
                with signalled:
                    assert next(text) == lines[0]
            except KeyboardInterrupt:
                if not begins:
                    with pytest.raises(StorageError, match="text was lost in a call that failed"):
                        next(text)
            text.seek(0)
            assert text.read() == "".join(lines)
        if not signalled.happened:
            break
    assert moment > 20
