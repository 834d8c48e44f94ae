"""What the tests of the loop thread share."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any

from mono_sync._durations import Deadline
from mono_sync.loop import LoopThread

GRACE = 2.0
"""The grace of the loop thread (0.75 s), with room for a busy machine."""


def run(loop: LoopThread, fn: Callable[..., Coroutine[Any, Any, Any]], *args: Any, timeout: float | None = 10.0) -> Any:
    return loop.run(fn, *args, deadline=Deadline(timeout), operation="test run")


def call(loop: LoopThread, fn: Callable[..., Any], *args: Any, timeout: float | None = 10.0) -> Any:
    return loop.call(fn, *args, deadline=Deadline(timeout), operation="test call")


async def answer(value: Any = 42) -> Any:
    return value


async def for_ever(begun: threading.Event | None = None, ended: list[str] | None = None) -> None:
    """Wait until cancelled, and note that."""
    if begun is not None:
        begun.set()
    try:
        await asyncio.get_running_loop().create_future()
    finally:
        if ended is not None:
            ended.append("cancelled")


class Background:
    """A function in a daemon thread."""

    def __init__(self, fn: Callable[..., Any], *args: Any) -> None:
        self._value: Any = None
        self._error: BaseException | None = None
        self.thread = threading.Thread(target=self._run, args=(fn, *args), name="test-background", daemon=True)
        self.thread.start()

    def _run(self, fn: Callable[..., Any], *args: Any) -> None:
        try:
            self._value = fn(*args)
        except BaseException as error:
            self._error = error

    def result(self, timeout: float = 10.0) -> Any:
        """Return or raise what the function did."""
        self.thread.join(timeout)
        assert not self.thread.is_alive(), f"still running after {timeout:g} s"
        if self._error is not None:
            raise self._error
        return self._value


class Clock:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self._begin = time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._begin
