"""Starting a thread where threads may not run, and looking where one is."""

from __future__ import annotations

import gc
import sys
import threading
from types import FrameType
from typing import Final

from mono_sync.errors import LoopStartError

START_TIMEOUT: Final = 10.0
UWSGI: Final = (
    "Under uWSGI set `enable-threads = true` (or --enable-threads): without it the threads of an application do not run"
)


def frame_of(thread_id: int) -> FrameType | None:
    """Return what a thread executes; None: it does not run.

    A garbage collection in the middle of that may stop all threads for ever in CPython 3.11 (gh-106883).
    """
    frames = sys._current_frames  # noqa: SLF001  # documented way to a thread's stack
    if sys.version_info >= (3, 12):
        return frames().get(thread_id)
    collects = gc.isenabled()
    try:
        gc.disable()
        return frames().get(thread_id)
    finally:
        if collects:
            gc.enable()


class WaitedForThread(threading.Thread):
    """A daemon thread of ours that another one waits for: what it raises reaches somebody, also at interpreter exit."""


class _BoundedStart(threading.Event):
    """Lets `Thread.start` return although the thread does not run, so that we can say why.

    `Thread.start` waits without a limit until the new thread has reported; there is no public way to bound that.
    """

    def __init__(self, bound: float) -> None:
        super().__init__()
        self._bound = bound

    def wait(self, timeout: float | None = None) -> bool:
        return super().wait(self._bound if timeout is None else timeout)


def start_thread(thread: threading.Thread, bound: float = START_TIMEOUT) -> None:
    """Start a thread, and wait at most ``bound`` seconds until it runs.

    Raises:
        LoopStartError: it has not come up, though it still may; the message says what usually prevents it.
        RuntimeError: there can be no more threads.
    """
    started = thread._started = _BoundedStart(bound)  # type: ignore[attr-defined]  # noqa: SLF001  # start() waits for it
    thread.start()
    if not started.is_set():
        raise LoopStartError(f"the thread {thread.name!r} did not run within {bound:.3g} s. {UWSGI}")
