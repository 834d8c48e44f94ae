"""Who may start and stop an application when, and who waits for whom."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Callable, Iterator

from mono_sync.application._lifecycle import Lifecycle
from mono_sync.application._signals import EndSignals, in_main_thread
from mono_sync.application._states import ApplicationState
from mono_sync.application._steps import StepRunner, StepsAborted
from mono_sync.errors import ApplicationStateError, ForkedError, ModuleStopError

_log = logging.getLogger("mono_sync.application")

_CREATED, _STARTING, _RUNNING, _STOPPING, _STOPPED, _FAILED = ApplicationState


class _Work:
    """A start or stop under way: who does it, and what came of it."""

    __slots__ = ("ended", "failures", "runner", "thread")

    def __init__(self, name: str) -> None:
        self.runner = StepRunner(name)
        self.thread = threading.get_ident()
        self.ended = threading.Event()
        self.failures: list[ModuleStopError] | None = None  # None: no stop, or one that was interrupted


class Control:
    """The state machine of an application; drives its `Lifecycle`. Thread-safe.

    At most one thread works at a time, without holding the lock; others wait for the end of its work.
    """

    def __init__(self, name: str, lifecycle: Lifecycle) -> None:
        self._name = name
        self._lifecycle = lifecycle
        self._lock = threading.RLock()  # a signal handler may call stop() while its thread holds it
        self._work: _Work | None = None
        self._final = _STOPPED  # the state after the next stop
        self._on_end: Callable[[], object] | None = None
        self.state = _CREATED
        self.pid = os.getpid()

    @property
    def unfinished(self) -> bool:
        """Whether there is something to stop."""
        return self._lifecycle.unfinished

    @contextlib.contextmanager
    def registering(self) -> Iterator[None]:
        """Keep others from registering or starting meanwhile."""
        self._adopt()
        with self._lock:
            if self.state is not _CREATED:
                raise self._error("register modules and plugins before it starts")
            yield

    # --- start

    def start(self) -> None:
        """Start; see `MonoApplication.start`."""
        try:
            self._start()
        except StepsAborted as aborted:
            error = ApplicationStateError(f"application {self._name!r} was stopped during start", _STOPPED.name)
            for note in getattr(aborted, "__notes__", ()):
                error.add_note(note)
            raise error from None

    def _start(self) -> None:
        work = self._begin_start()
        state = _FAILED
        try:
            with work.runner:
                self._lifecycle.start(work.runner)
            state = _RUNNING
        except StepsAborted:
            state = _STOPPED
            raise
        finally:
            with self._lock:
                self.state = state
                self._final = _FAILED if state is _FAILED else _STOPPED
                self._work = None
            work.ended.set()

    def _begin_start(self) -> _Work:
        self._adopt()
        if self._is_inherited():
            raise ForkedError(f"application {self._name!r} was started by process {self.pid}; make one of your own")
        with self._lock:
            if self.state in (_STARTING, _RUNNING):
                raise self._error("it cannot be started twice")
            if self.state is not _CREATED:
                raise self._error("it cannot be restarted: make a new MonoApplication")
            self._work = work = _Work(self._name)
            self.state = _STARTING
            return work

    # --- stop

    def stop(self) -> None:
        """Stop; see `MonoApplication.stop`."""
        while not self._is_inherited():
            work, is_mine = self._begin_stop()
            if work is None:
                return
            if is_mine:
                self._perform_stop(work)
            else:
                work.ended.wait()
            if work.failures:
                raise ExceptionGroup(f"application {self._name!r} did not stop cleanly", work.failures)
            if work.failures is not None:
                return

    def _begin_stop(self) -> tuple[_Work | None, bool]:
        """Return the work to wait for, and whether it is the caller's to do; None if there is nothing to wait for."""
        self._adopt()
        with self._lock:
            if self._work is not None:
                return self._join(self._work), False
            if self.state is _CREATED:
                self.state = _STOPPED
                self._lifecycle.discard()
            if self.state in (_STOPPED, _FAILED) and not self._lifecycle.unfinished:
                return None, False
            self._work = work = _Work(self._name)
            self.state = _STOPPING
            return work, True

    def _join(self, work: _Work) -> _Work | None:
        if work.runner.executes_here():
            raise self._error(
                "stop() was called by a method of one of its modules and would wait for itself. "
                "To abort a start raise an exception, or call stop() on another thread"
            )
        if self.state is _STARTING:
            work.runner.abort()
        return None if work.thread == threading.get_ident() else work

    def _perform_stop(self, work: _Work) -> None:
        try:
            with work.runner:
                work.failures = self._lifecycle.stop(work.runner)
        finally:
            with self._lock:
                self._work = None
                if work.failures is not None:
                    self.state = self._final
            work.ended.set()
            if self._on_end is not None:
                self._on_end()

    # --- run

    def run(self) -> None:
        """Start, wait and stop; see `MonoApplication.run`."""
        if not in_main_thread():
            raise self._error("run() works in the main thread only, where signals arrive: use start() and stop()")
        with EndSignals(self._abort_start) as signals:
            self._on_end = signals.wake
            try:
                self._start()
                signals.wait()
                self.stop()
            except StepsAborted:
                _log.info("application %r was stopped during start", self._name)
            finally:
                self._on_end = None

    def _abort_start(self) -> None:
        work = self._work
        if work is not None and self.state is _STARTING:
            work.runner.abort()

    # --- errors and processes

    def _error(self, reason: str) -> ApplicationStateError:
        return ApplicationStateError(f"application {self._name!r} is {self.state.name}: {reason}", self.state.name)

    def _is_inherited(self) -> bool:
        """Whether this is a forked child, and the parent has started the application."""
        return self.pid != os.getpid() and self.state is not _CREATED

    def _adopt(self) -> None:
        """In a forked child, make an application that nobody has started its own."""
        if self.pid != os.getpid() and self.state is _CREATED:
            self.pid = os.getpid()
            self._lock = threading.RLock()  # the inherited one may be held by a thread that the child does not have
