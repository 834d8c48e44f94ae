"""Writers of objects that are interrupted: nobody is kept out of a stream, and no chunks are left behind."""

from __future__ import annotations

import contextlib
import functools
import gc
import itertools
import random
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from typing import Any, Literal

import pytest

from mono_sync import ObjectBucket, ObjectWriter, StorageError
from mono_sync.storage.objects import (
    _at_once,
    _committing,
    _lone_stream,
    _sink,
    _sinks,
    _upload,
    _views,
    _writer,
    _writing,
)
from tests.storage.helpers import chunk_subjects
from tests.support.signals import Stop, Storm
from tests.support.steps import Signalled

CHUNK = 128 * 1024
CONTENT = random.Random(1).randbytes(CHUNK + 5)
MODULES = [contextlib, _at_once, _committing, _lone_stream, _sink, _sinks, _upload, _writer, _writing]

UNCLOSED = pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")  # a stream that did not get to its ``with``
UNRAISABLE = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # also if its end is hit


@pytest.fixture(autouse=True)
def _quick_collections() -> Iterator[None]:
    """Collections look at what a test makes only."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


class CtrlC:
    """What is pressed.

    Args:
        last_step: the functions in which the last step is made.

    Attributes:
        too_late: whether that was in the last step, of which nobody can tell whether it was done, or before the first
            step of the end of a ``with``, where Python gives nobody a chance.
    """

    def __init__(self, *last_step: str) -> None:
        self._last_step = {"commit", *last_step}
        self.too_late = False

    def __call__(self) -> None:
        frames = [frame for frame, _ in traceback.walk_stack(sys._getframe(2))]
        begins_exit = (frames[0].f_code.co_filename, frames[0].f_code.co_name) == (_writer.__file__, "__exit__")
        self.too_late = begins_exit or any(frame.f_code.co_name in self._last_step for frame in frames)
        raise KeyboardInterrupt


def left_behind(objects: ObjectBucket, said: str) -> set[str]:
    """Return which chunks belong to nothing and were not said to: a busy server may take longer than there is time."""
    names = {subject.rpartition(".")[2] for subject in chunk_subjects(objects)} - {info.nuid for info in objects.list()}
    return {name for name in names if f"chunks {name} may be left behind" not in said}


@pytest.mark.parametrize(
    "call",
    [
        lambda writer: writer.write(b"x"),
        lambda writer: writer.write(CONTENT),
        lambda writer: writer.flush(),
    ],
    ids=["small", "large", "flush"],
)
def test_stream_that_is_interrupted_at_any_moment_can_be_aborted(
    objects: ObjectBucket, call: Callable[[ObjectWriter], Any], caplog: pytest.LogCaptureFixture
) -> None:
    for moment in itertools.count(1):
        gc.collect()
        writer: ObjectWriter = objects.open("k", "wb")
        caught: KeyboardInterrupt | None = None
        writer.write(b"begin")
        with Signalled(moment, CtrlC(), MODULES) as signalled:
            try:
                call(writer)
            except KeyboardInterrupt as error:
                caught = error
        writer.abort()  # while what holds the frames of the call is still there
        assert not left_behind(objects, caplog.text)
        del caught
        if not signalled.happened:
            break
    assert moment > 10  # all moments; how many there are depends on the interpreter


Mode = Literal["wb", "w"]

LARGE = "x" * (CHUNK + 5)
STEPS: dict[str, tuple[Mode, Callable[[Any], object], str]] = {
    "small": ("wb", lambda stream: stream.write(b"x"), "x"),
    "large": ("wb", lambda stream: stream.write(LARGE.encode()), LARGE),
    "lines": ("wb", lambda stream: stream.writelines([b"x", b"y"]), "xy"),
    "flush": ("wb", lambda stream: stream.flush(), ""),
    "text": ("w", lambda stream: stream.write("x"), "x"),
    "large text": ("w", lambda stream: stream.write(LARGE), LARGE),
    "lines of text": ("w", lambda stream: stream.writelines(["x", "y"]), "xy"),
    "flush of text": ("w", lambda stream: stream.flush(), ""),
}


def _in_mode(mode: Mode, text: str) -> Any:
    return text if mode == "w" else text.encode()


@UNRAISABLE
@pytest.mark.parametrize("step", STEPS)
def test_stream_that_is_interrupted_at_any_moment_of_a_call_is_not_stored_whatever_is_written_later(
    objects: ObjectBucket, step: str
) -> None:
    mode, call, _ = STEPS[step]
    objects.put("k", b"old")
    too_early = 0
    for moment in itertools.count(1):
        gc.collect()
        stream: Any = objects.open("k", mode)
        stream.write(_in_mode(mode, "begin"))
        with contextlib.suppress(KeyboardInterrupt), Signalled(moment, CtrlC(), [*MODULES, _views]) as signalled:
            call(stream)
        if not signalled.happened:
            stream.abort()
            break
        with contextlib.suppress(ValueError):  # that it is of no use
            stream.write(_in_mode(mode, "end"))
        try:
            stream.close()
        except StorageError as error:
            assert "was not stored, for a call before failed: KeyboardInterrupt" in str(error)  # noqa: PT017  # below
            assert objects.get("k") == b"old"
        else:
            too_early += 1
            assert objects.get("k") == b"beginend"
            objects.put("k", b"old")
    assert moment > 5  # all moments; how many there are depends on the interpreter
    assert too_early == 1  # before the first step, which is before the call


@pytest.mark.parametrize("step", STEPS)
def test_what_a_signal_handler_writes_at_any_moment_of_a_call_is_refused_or_stored_once(
    objects: ObjectBucket, step: str
) -> None:
    mode, call, taken = STEPS[step]
    refused, wrote = 0, ""

    def handle() -> None:
        nonlocal refused, wrote
        try:
            stream.write(_in_mode(mode, "+"))
            wrote = "+"
        except StorageError as error:
            assert "one call at a time" in str(error)  # noqa: PT017  # or nothing is raised
            refused += 1

    for moment in itertools.count(1):
        wrote = ""
        stream: Any = objects.open("k", mode)
        stream.write(_in_mode(mode, "begin"))
        with Signalled(moment, handle, [_lone_stream, _upload, _views, _writer]) as signalled:
            call(stream)
        stream.write(_in_mode(mode, "end"))
        told = stream.tell()
        stream.close()
        stored = objects.get("k", b"").decode()
        assert (stored.replace("+", ""), stored.count("+")) == (f"begin{taken}end", len(wrote))
        assert told == len(stored)
        if not signalled.happened:
            break
    assert refused > 1


@pytest.mark.parametrize("step", ["small", "large", "text", "large text"])
def test_call_that_raises_because_a_signal_handler_was_refused_has_taken_nothing_or_nothing_is_stored(
    objects: ObjectBucket, step: str
) -> None:
    mode, call, taken = STEPS[step]
    objects.put("k", b"old")
    raised = 0
    for moment in itertools.count(1):
        stream: Any = objects.open("k", mode)
        stream.write(_in_mode(mode, "begin"))
        rest = taken
        handle = functools.partial(stream.write, _in_mode(mode, ""))
        with Signalled(moment, handle, [_lone_stream, _upload, _views, _writer]) as signalled:
            try:
                call(stream)
            except StorageError:
                raised, rest = raised + 1, ""
        try:
            stream.close()
        except StorageError:
            assert objects.get("k") == b"old"
        else:
            assert objects.get("k") == f"begin{rest}".encode()
            objects.put("k", b"old")
        if not signalled.happened:
            break
    assert raised > 0


@pytest.mark.parametrize("mode", ["wb", "w"])
def test_what_a_signal_handler_writes_at_any_moment_of_a_close_is_refused_or_stored(
    objects: ObjectBucket, mode: Mode
) -> None:
    refused, wrote = 0, ""

    def handle() -> None:
        nonlocal refused, wrote
        try:
            stream.write(_in_mode(mode, "+"))
            wrote = "+"
        except (StorageError, ValueError):
            refused += 1

    for moment in itertools.count(1):
        wrote = ""
        stream: Any = objects.open("k", mode)
        stream.write(_in_mode(mode, LARGE))
        with Signalled(moment, handle, [_lone_stream, _upload, _views, _writer]) as signalled:
            stream.close()
        assert objects.get("k") == (LARGE + wrote).encode()
        if not signalled.happened:
            break
    assert refused > 10


def _with(objects: ObjectBucket) -> None:
    with objects.open("k", "wb") as writer:
        writer.write(CONTENT)


def _small(objects: ObjectBucket) -> None:
    objects.put("k", b"x")


def _with_text(objects: ObjectBucket) -> None:
    with objects.open("k", "w", encoding="latin-1") as stream:
        stream.write(CONTENT.decode("latin-1"))


@UNCLOSED
@UNRAISABLE
@pytest.mark.parametrize(
    ("store", "last_step"),
    [
        pytest.param(lambda objects: objects.put("k", CONTENT), [], id="put"),
        pytest.param(_small, ["_hear"], id="small"),  # an answer may get lost between two lines
        pytest.param(_with, [], id="open"),
        pytest.param(_with_text, [], id="text"),
    ],
)
def test_upload_that_is_interrupted_at_any_moment_but_the_last_step_leaves_no_chunks(
    objects: ObjectBucket,
    store: Callable[[ObjectBucket], Any],
    last_step: list[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    for moment in itertools.count(1):
        gc.collect()  # generators that an interrupt has left would end in the next one
        ctrl_c = CtrlC(*last_step)
        with contextlib.suppress(KeyboardInterrupt), Signalled(moment, ctrl_c, MODULES) as signalled:
            store(objects)
        left = left_behind(objects, caplog.text)
        assert ctrl_c.too_late or not left
        if not signalled.happened:
            break
        if left or store is _small:  # only what is new goes in one step
            objects.reset()
    assert moment > 50  # all moments; how many there are depends on the interpreter
    assert objects.get("k") is not None


@UNRAISABLE
@pytest.mark.parametrize("mode", ["wb", "w"])
def test_close_that_is_interrupted_at_any_moment_has_closed_the_stream_and_stores_all_or_nothing(
    objects: ObjectBucket, mode: Literal["wb", "w"], caplog: pytest.LogCaptureFixture
) -> None:
    objects.put("k", b"old")
    too_early = 0
    for moment in itertools.count(1):
        gc.collect()
        stream: Any = objects.open("k", mode) if mode == "wb" else objects.open("k", mode, encoding="latin-1")
        for part in (CONTENT[:CHUNK], CONTENT[CHUNK:]):
            stream.write(part if mode == "wb" else part.decode("latin-1"))
        ctrl_c = CtrlC()
        with contextlib.suppress(KeyboardInterrupt), Signalled(moment, ctrl_c, MODULES) as signalled:
            stream.close()
        if not stream.closed:  # it came before the first step
            too_early += 1
            stream.abort()
        stream.close()
        assert objects.get("k") in (b"old", CONTENT)
        assert ctrl_c.too_late or not left_behind(objects, caplog.text)
        if not signalled.happened:
            break
        if ctrl_c.too_late:
            objects.reset()
            objects.put("k", b"old")
    assert moment > 50  # all moments; how many there are depends on the interpreter
    assert 0 < too_early < 15
    assert objects.get("k") == CONTENT


@UNCLOSED
@UNRAISABLE
@pytest.mark.skipif(threading.current_thread() is not threading.main_thread(), reason="signals need the main thread")
def test_signals_keep_nobody_out_of_a_stream(objects: ObjectBucket) -> None:
    armed, interrupts = False, 0

    def interrupt() -> None:
        nonlocal armed
        if armed:
            armed = False
            raise Stop

    with Storm(interrupt):
        for _ in range(100):
            try:
                armed = True
                with objects.open("k", "wb") as writer:
                    for _ in range(20_000):  # it is not endless, for Python may swallow what a handler raises
                        writer.write(b"x" * 10)
            except Stop:
                interrupts += 1
    assert interrupts > 80
