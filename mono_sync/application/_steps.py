"""Runs the code of modules step by step, each step with a deadline, and gives up on steps that hang."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from mono_sync._threads import WaitedForThread, start_thread
from mono_sync.application._jobs import Job, Outcome, describe
from mono_sync.errors import LoopStartError, OperationTimeoutError

_log = logging.getLogger("mono_sync.application")

_JOIN_TIMEOUT = 1.0

_Jobs = queue.SimpleQueue[Job | None]


class StepsAborted(Exception):  # noqa: N818  # no error: somebody asked for it
    """`StepRunner.abort` was called."""


class StepRunner:
    """Runs steps one after the other on a daemon thread, while the calling thread waits and can be interrupted.

    The thread is made when it is needed and ends with `close`. A step that does not end in time is abandoned: it keeps
    its thread, its stack is logged, and the next step gets a new thread. One thread at a time may use it; only `abort`
    may be called from any thread, and from a signal handler. Its threads know nothing of its users, and so keep no
    application alive.

    Args:
        name: of the application, for the name of the thread.
    """

    def __init__(self, name: str) -> None:
        self._name = f"mono_sync-lifecycle-{name}"
        self._thread: threading.Thread | None = None
        self._jobs: _Jobs = queue.SimpleQueue()
        self._current: Job | None = None
        self._aborted = False
        self._sealed = False

    def run(
        self,
        call: Callable[[], Any],
        label: str,
        timeout: float | None,
        limit: str,
        on_begin: Callable[[], object] | None = None,
    ) -> Outcome:
        """Run a step and return what came of it. What the step raises, BaseException included, is in the outcome.

        Args:
            call: the step.
            label: what it is, for logs and errors, such as ``"start() of 'orders'"``.
            timeout: seconds that it may take; None is for ever.
            limit: where the timeout comes from, for the error.
            on_begin: called by the calling thread just before the step begins, unless the step was aborted before that.

        Raises:
            StepsAborted: `abort` was called, before or meanwhile. As after a KeyboardInterrupt of the calling thread,
                the step may still run: `settle` waits for it.
        """
        job = Job(call, label)
        self._current = job  # before the flag is read: abort() sets the flag before it looks for a job to wake
        if self._is_aborted():
            self._current = None
            raise StepsAborted
        if on_begin is not None:
            on_begin()
        self._submit(job)
        outcome = job.wait(timeout, self._is_aborted)
        if outcome is None:
            if self._is_aborted():
                raise StepsAborted
            outcome = self._abandon(job, timeout, limit)
        self._current = None
        return outcome

    def settle(self, timeout: float) -> None:
        """Give a step that an exception of `run` left behind this much time to end, then abandon it."""
        job = self._current
        if job is not None:
            outcome = job.wait(timeout)
            if outcome is None:
                self._abandon(job, timeout, "the wait for it was interrupted")
            elif outcome.error is not None:
                _log.warning("%s was interrupted, and failed: %s", job.label, describe(outcome.error))
        self._current = None

    def abort(self) -> None:
        """Let `run` and `commit` raise `StepsAborted`, now and later."""
        self._aborted = True
        job = self._current
        if job is not None:
            job.wake()

    def commit(self) -> None:
        """Take no notice of later aborts.

        Raises:
            StepsAborted: `abort` was called before.
        """
        self._sealed = True  # before the flag is read: an abort in between is seen here
        if self._aborted:
            raise StepsAborted

    def seal(self) -> None:
        """Take no notice of aborts, earlier ones included."""
        self._sealed = True

    def executes_here(self) -> bool:
        """Whether the calling thread is the one that runs the present step."""
        job = self._current
        return job is not None and not job.finished and job.thread_id == threading.get_ident()

    def close(self) -> None:
        """End the thread; a step that still runs is abandoned."""
        self.settle(0)
        thread, self._thread = self._thread, None
        if thread is not None:
            self._jobs.put(None)
            thread.join(_JOIN_TIMEOUT)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _is_aborted(self) -> bool:
        return self._aborted and not self._sealed

    def _submit(self, job: Job) -> None:
        if self._thread is None:
            self._jobs = queue.SimpleQueue()
            self._thread = WaitedForThread(target=_work, args=(self._jobs,), name=self._name, daemon=True)
            try:
                start_thread(self._thread)
            except RuntimeError as error:
                self._thread = None
                if isinstance(error, LoopStartError):
                    self._jobs.put(None)  # should the thread come up after all
                    job.fail(error)
                    return
                # Better without a deadline than not at all. In an atexit handler of Python 3.12 that is nobody's fault.
                level = logging.WARNING if threading.main_thread().is_alive() else logging.INFO
                _log.log(level, "%s runs without a deadline: %s", job.label, error)
                job.execute()
                return
        self._jobs.put(job)

    def _abandon(self, job: Job, timeout: float | None, reason: str) -> Outcome:
        job.abandoned = True
        stack = job.stack()
        where = f", at {stack[-1].filename}:{stack[-1].lineno} in {stack[-1].name}" if stack else ""
        _log.error("%s hangs and is given up: %s. Its stack:\n%s", job.label, reason, "".join(stack.format()))
        self._jobs.put(None)  # ends the thread, should the step end after all
        self._thread = self._current = None
        return Outcome(None, OperationTimeoutError(job.label, timeout, f"{reason}{where}"), job.seconds, hung=True)


def _work(jobs: _Jobs) -> None:
    while (job := jobs.get()) is not None:
        job.execute()
        del job  # else it lives, with the module's exception, until the next one
