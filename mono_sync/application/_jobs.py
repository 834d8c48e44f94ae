"""One call into a module's code, on a thread of ours, while somebody waits for it with a bound."""

from __future__ import annotations

import contextvars
import inspect
import logging
import math
import queue
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any, NamedTuple

from mono_sync._threads import frame_of

_log = logging.getLogger("mono_sync.application")

_LOOK = 0.2  # seconds; a signal that comes as a wait begins, or to another thread, does not end the wait by itself


class Outcome(NamedTuple):
    """What came of a call.

    Attributes:
        result: what it returned; None if it failed.
        error: what it raised, or that it hung; None if it succeeded.
        seconds: how long it took, or was waited for.
        hung: whether it was given up.
    """

    result: Any
    error: BaseException | None
    seconds: float
    hung: bool = False


class Job:
    """One call: executed by one thread, waited for by others.

    Args:
        call: the call.
        label: what it is, for logs and errors, such as ``"start() of 'orders'"``.
    """

    __slots__ = ("_began", "_call", "_context", "_outcome", "_wake", "abandoned", "label", "thread_id")

    def __init__(self, call: Callable[[], Any], label: str) -> None:
        self._call = call
        self._context = contextvars.copy_context()  # what the caller has set, for example a language or a trace
        self._began = time.monotonic()
        self._outcome: Outcome | None = None
        self._wake: queue.SimpleQueue[None] = queue.SimpleQueue()  # unlike an Event, for use in signal handlers too
        self.label = label
        self.thread_id = 0
        self.abandoned = False

    def execute(self) -> None:
        """Make the call, unless it was abandoned before; never raises."""
        if self.abandoned:
            return
        self.thread_id = threading.get_ident()
        try:
            result = self._context.run(self._call)
            _refuse_unstarted(result)
        except BaseException as error:  # also SystemExit and KeyboardInterrupt: a module's code failed, no more
            self._outcome = Outcome(None, error, self.seconds)
        else:
            self._outcome = Outcome(result, None, self.seconds)
        self._wake.put(None)
        if self.abandoned:
            _log.warning("%s has ended at last, %.1f s after it began", self.label, self.seconds)

    def fail(self, error: BaseException) -> None:
        """End it, because there is no thread for it."""
        self._outcome = Outcome(None, error, self.seconds)
        self._wake.put(None)

    def wait(self, timeout: float | None, interrupted: Callable[[], bool] = lambda: False) -> Outcome | None:
        """Return what came of it; None if it is not finished in time, or `interrupted` says so after a `wake`."""
        end = None if timeout is None else time.monotonic() + timeout
        while self._outcome is None and not interrupted():
            left = math.inf if end is None else max(0.0, end - time.monotonic())
            try:
                self._wake.get(timeout=min(left, _LOOK))
            except queue.Empty:
                if left <= _LOOK:
                    break
        if self._outcome is not None:
            self._wake.put(None)  # for the next one who waits
        return self._outcome

    def wake(self) -> None:
        """Let whoever waits look again. Safe in a signal handler."""
        self._wake.put(None)

    @property
    def finished(self) -> bool:
        """Whether it has ended."""
        return self._outcome is not None

    @property
    def seconds(self) -> float:
        """Time since it began."""
        return time.monotonic() - self._began

    def stack(self) -> traceback.StackSummary:
        """Return where it is; empty if it is nowhere."""
        frame = frame_of(self.thread_id)
        return traceback.StackSummary() if frame is None or self.finished else traceback.extract_stack(frame)


def describe(error: BaseException) -> str:
    """Return an exception as text, also where it cannot show itself."""
    return "".join(traceback.format_exception_only(error)).strip()


def _refuse_unstarted(result: Any) -> None:
    """Refuse what a call returns instead of doing its work."""
    if inspect.iscoroutine(result):
        result.close()  # it would warn that nobody awaited it
    if inspect.isawaitable(result) or inspect.isgenerator(result) or inspect.isasyncgen(result):
        raise TypeError(f"it returned a {type(result).__name__} and did nothing: methods of modules are synchronous")
