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


class Clock:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self._begin = time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._begin
