"""Signals that the main thread gets again and again."""

from __future__ import annotations

import random
import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Self


class Stop(Exception):  # noqa: N818  # no error
    """What a signal handler raises."""


class Storm:
    """Interrupts the main thread with a signal every millisecond or so, until the end of the ``with``."""

    def __init__(self, handler: Callable[[], object]) -> None:
        self._handler = handler
        self._handles = False
        self._enough = threading.Event()
        self._thread = threading.Thread(target=self._send)

    def _send(self) -> None:
        main = threading.main_thread().ident
        assert main is not None
        while not self._enough.wait(random.uniform(0.0002, 0.002)):
            signal.pthread_kill(main, signal.SIGUSR1)

    def _handle(self, _number: int, _frame: FrameType | None) -> None:
        if self._handles:
            return  # signals may come faster than they are handled
        self._handles = True
        try:
            self._handler()
        finally:
            self._handles = False

    def __enter__(self) -> Self:
        self._previous = signal.signal(signal.SIGUSR1, self._handle)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._enough.set()
        self._thread.join()
        signal.signal(signal.SIGUSR1, self._previous)
