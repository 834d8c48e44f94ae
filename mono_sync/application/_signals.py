"""Waiting for the signals that end a program."""

from __future__ import annotations

import queue
import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Self

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_LOOK = 0.5  # seconds; a signal that comes as a wait begins, or to another thread, does not end the wait by itself


class EndSignals:
    """Catches SIGINT and SIGTERM while it is entered, in the main thread; restores the handlers afterwards.

    Args:
        on_first: called in the signal handler for the first one. Every further one raises `KeyboardInterrupt`.
    """

    def __init__(self, on_first: Callable[[], object]) -> None:
        self.received: signal.Signals | None = None
        self._on_first = on_first
        self._wake: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        for number in _SIGNALS:
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: it was not set from Python

    def wait(self) -> None:
        """Return when a signal came, or `wake` was called."""
        while True:
            try:
                return self._wake.get(timeout=_LOOK)
            except queue.Empty:
                continue

    def wake(self) -> None:
        """End `wait`. Safe in a signal handler."""
        self._wake.put(None)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self.received is not None:
            raise KeyboardInterrupt(f"{signal.Signals(number).name} after {self.received.name}")
        self.received = signal.Signals(number)
        self._on_first()
        self.wake()


def in_main_thread() -> bool:
    """Whether signal handlers can be set here."""
    return threading.current_thread() is threading.main_thread()
