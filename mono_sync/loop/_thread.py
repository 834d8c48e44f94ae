"""One background thread that owns an event loop, and the blocking way into it."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import threading
import warnings
import weakref
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, TypeVar, TypeVarTuple

from mono_sync._durations import DEFAULT, Deadline, Timeout
from mono_sync._threads import UWSGI
from mono_sync.errors import BlockingCallError, ClosedError, ForkedError, LoopStartError, OperationTimeoutError
from mono_sync.loop._call import GRACE, CoroutineCall, Exchange, FunctionCall
from mono_sync.loop._core import Core

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

_log = logging.getLogger("mono_sync.loop")

_NO_DEADLINE = Deadline(None)
_STOP_TIMEOUT = 5.0
_UWSGI_WITH_THREADS = (2, 0, 26)  # from about here on they are enabled by default


class LoopThread:
    """A named daemon thread that runs an event loop. Thread-safe.

    `run` and `call` start it when needed. A call whose deadline passes has been cancelled and has ended when the caller
    learns of it; only a coroutine that refuses to end, or a loop that is stuck, is left behind after a short grace.
    Ctrl-C in a waiting thread cancels the call as well.

    Args:
        name: name of the thread.
        start_timeout: seconds that it may take until the thread runs.
        loop_factory: makes the event loop; called in the thread. The loop's default executor is replaced.

    It belongs to the process that made it: in a forked child every call raises `ForkedError`. At interpreter exit it is
    stopped, after the exit handlers that were registered later than the first start of any `LoopThread`; handlers
    registered earlier get `ClosedError`. Daemon threads that wait in a call at that moment end with the process.
    One that is dropped without `stop` gives a `ResourceWarning`, and its thread ends.
    """

    def __init__(
        self,
        name: str = "mono_sync-loop",
        *,
        start_timeout: float = 10.0,
        loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None,
    ) -> None:
        self._name = name
        self._start_timeout = start_timeout
        self._loop_factory = loop_factory
        self._lock = threading.RLock()  # held for moments only; re-entrant for signal handlers that stop us
        self._core: Core | None = None
        self._closed = False
        self._pid = os.getpid()

    @property
    def alive(self) -> bool:
        """Whether the thread runs and takes calls."""
        core = self._core
        return core is not None and self._pid == os.getpid() and core.up.is_set() and not core.stopping

    @property
    def closed(self) -> bool:
        """Whether it has been stopped, by `stop` or by the end of the interpreter."""
        core = self._core
        return self._closed or (core is not None and core.exiting)

    def start(self) -> None:
        """Start the thread and wait until its loop runs; does nothing when it does already.

        Raises:
            LoopStartError: it did not come up; the message says what usually prevents it. May be tried again.
            ClosedError: it has been stopped.
            ForkedError: it belongs to the parent process.
        """
        self._running(_NO_DEADLINE)

    def run(self, fn: Callable[[*Ts], Coroutine[Any, Any, T]], /, *args: *Ts, deadline: Deadline, operation: str) -> T:
        """Run the coroutine function ``fn(*args)`` as a task on the loop and return its result.

        The task runs in a copy of the caller's context (`contextvars`). Whatever the coroutine raises is raised here,
        `SystemExit` included, a `TimeoutError` of its own as it is. A result that it still returns while it is being
        cancelled at its deadline counts.

        Args:
            fn: called on the loop thread.
            *args: its arguments.
            deadline: when to give up; a deadline that has passed already submits nothing.
            operation: name of the call, for errors.

        Raises:
            OperationTimeoutError: the deadline passed.
            BlockingCallError: called from the loop thread itself.
            ClosedError: the thread was stopped, before or meanwhile.
            ForkedError: it belongs to the parent process.
            LoopStartError: the thread had to be started and could not.
            LoopError: something on the loop cancelled the coroutine.
        """
        call: CoroutineCall[T] = CoroutineCall(self.admit(deadline, operation), fn, args, deadline, operation)
        return call.carry_out()

    def call(self, fn: Callable[[*Ts], T], /, *args: *Ts, deadline: Deadline, operation: str) -> T:
        """Run the plain function ``fn(*args)`` on the loop thread and return its result.

        As `run`; but a function that has begun cannot be cancelled: a caller whose deadline passes leaves it behind.
        """
        call: FunctionCall[T] = FunctionCall(self.admit(deadline, operation), fn, args, deadline, operation)
        return call.carry_out()

    def admit(self, deadline: Deadline, operation: str) -> Core:
        """Raise what `run` would if it could not even begin; start the thread if need be."""
        core = self._running(deadline)
        if threading.current_thread() is core.thread:
            raise BlockingCallError(
                f"{operation}: a blocking call from the event-loop thread itself would wait for ever"
            )
        if deadline.expired:
            raise OperationTimeoutError(operation, deadline.timeout)
        return core

    def exchange(
        self,
        begin: Callable[[Exchange[T], *Ts], object],
        /,
        *args: *Ts,
        deadline: Deadline,
        operation: str,
    ) -> T:
        """Run ``begin(exchange, *args)`` in the calling thread, and wait for ``exchange.succeed`` or ``.fail``.

        They may be called in any thread; only the first counts. No task is made and nothing is scheduled: this is the
        short way for requests that the loop has nothing to do with but to hand over the answer. Whoever holds the
        exchange after the caller has given up, for which `run` has the reasons, finds that it no longer ``waits``.
        """
        call: Exchange[T] = Exchange(self.admit(deadline, operation), args, deadline, operation)
        return call.await_end(begin)

    def post(self, fn: Callable[[*Ts], object], /, *args: *Ts) -> bool:
        """Run the plain function ``fn(*args)`` on the loop thread soon, and return at once. It must not raise.

        For tidying up: it starts no thread and waits for nothing, so it takes no time from a call that is over.

        Returns:
            Whether there is a loop that will run it.
        """
        core = self._core
        if core is None or core.loop is None or self._pid != os.getpid():
            return False
        return core.post(partial(fn, *args))

    def stop(self, *, timeout: Timeout = DEFAULT) -> None:
        """Stop for good: calls that wait raise `ClosedError`, tasks are cancelled and awaited, the thread is joined.

        Idempotent, from any number of threads at once; does nothing in a forked child. If the thread does not end
        in time, its stack is logged and it is left alone.

        Args:
            timeout: total deadline; omitted: 5 seconds.

        Raises:
            BlockingCallError: called from the loop thread itself.
        """
        deadline = Deadline.of(timeout, _STOP_TIMEOUT)
        if self._pid != os.getpid():
            return
        core = self._core
        if core is not None and threading.current_thread() is core.thread:
            raise BlockingCallError("stop: the event-loop thread cannot wait for its own end")
        with self._lock:
            self._closed = True
            core = self._core
        if core is None:
            return
        core.request_stop(deadline.remaining)
        if not core.join(deadline):
            core.fail_calls()
            _log.warning("%s did not end within %g s; it is at:\n%s", self._name, deadline.timeout, core.stack())
        core.forget()

    # --- starting

    def _running(self, deadline: Deadline) -> Core:
        """Return the running core, started if need be."""
        if self._pid != os.getpid():
            raise ForkedError(f"the event-loop thread {self._name!r} belongs to process {self._pid}, not to its child")
        core = self._core
        if core is None or not core.up.is_set():
            core = self._start(deadline)
        if core.stopping and threading.current_thread() is not core.thread:
            raise core.refuse_new_call()
        return core

    def _start(self, deadline: Deadline) -> Core:
        if _is_uwsgi_without_threads():
            raise LoopStartError(f"the event-loop thread {self._name!r} would stand still between requests. {UWSGI}")
        with self._lock:
            if self._closed:
                raise ClosedError(f"the event-loop thread {self._name!r} is not running any more")
            core = self._core
            new = core is None
            if core is None:
                core = self._core = Core(self._name, self._loop_factory, self._start_timeout)
        bound = self._patience(core, deadline)
        if new:
            self._launch(core, bound)
        if not core.up.wait(self._patience(core, deadline)):
            reason = f"the event-loop thread {self._name!r} did not run within {bound:.3g} s. {UWSGI}"
            if core.start_deadline.expired:
                self._give_up(core, TimeoutError(reason))
            raise LoopStartError(reason)
        if core.failure is not None:
            self._give_up(core, core.failure)
            reason = f"the event-loop thread {self._name!r} cannot be started: {core.failure}"
            raise LoopStartError(reason) from core.failure
        return core

    def _patience(self, core: Core, deadline: Deadline) -> float:
        """Return how long to wait for the thread: the explanation is worth a moment after the caller's deadline."""
        left, remaining = core.start_deadline.remaining, deadline.remaining
        assert left is not None
        return left if remaining is None else min(left, remaining + GRACE)

    def _launch(self, core: Core, bound: float) -> None:
        weakref.finalize(self, _abandon, core).atexit = False
        try:
            core.launch(bound)
        except RuntimeError:  # no more threads, or the interpreter exits: kept as core.failure
            pass
        except BaseException as error:
            self._give_up(core, error)
            raise

    def _give_up(self, core: Core, error: BaseException) -> None:
        """Make room for another attempt."""
        core.fail_start(error)
        with self._lock:
            if self._core is core and not self._closed:
                self._core = None

    # --- the end

    def __repr__(self) -> str:
        state = "stopped" if self.closed else "running" if self.alive else "not running"
        return f"<LoopThread {self._name!r} {state}>"

    def __del__(self, warn: Any = warnings.warn, exiting: Callable[[], bool] = sys.is_finalizing) -> None:
        core = getattr(self, "_core", None)
        if core is not None and not (self._closed or core.exiting or exiting()) and self._pid == os.getpid():
            warn(f"{self!r} was never stopped: call stop()", ResourceWarning)


def _is_uwsgi_without_threads() -> bool:
    """Whether uWSGI keeps the interpreter lock between requests; a thread runs then only while a request waits."""
    uwsgi = sys.modules.get("uwsgi")  # exists only inside uWSGI
    version, options = getattr(uwsgi, "version_info", None), getattr(uwsgi, "opt", None)
    if not isinstance(version, tuple) or not isinstance(options, dict):
        return False
    return version[:3] < _UWSGI_WITH_THREADS and not {"enable-threads", "threads"} & options.keys()


def _abandon(core: Core) -> None:
    """Let the thread of a collected owner end by itself."""
    if core.pid == os.getpid():
        core.request_stop()
