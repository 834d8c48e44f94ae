"""One blocking call: begun on the loop, waited for in another thread, completed exactly once."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Coroutine
from typing import Any, Final, Generic, Protocol, TypeVar

from mono_sync._durations import Deadline
from mono_sync.errors import ClosedError, LoopError, OperationTimeoutError

T = TypeVar("T")

GRACE: Final = 0.75
"""Seconds past its deadline for which a stuck loop, or a coroutine that refuses to end, can hold a caller."""

_log = logging.getLogger("mono_sync.loop")


class Host(Protocol):
    """What a call needs of the thread that carries it out."""

    calls: dict[Call[Any], bool]
    ended: threading.Event
    loop: asyncio.AbstractEventLoop | None
    stopping: bool
    thread: threading.Thread

    def post(self, callback: Callable[[], object]) -> bool:
        """Run ``callback`` on the loop soon; return whether there is a loop left."""

    def refuse(self, call: Call[Any]) -> None:
        """End a call that a stop has overtaken."""

    def closed_error(self) -> ClosedError:
        """Return the error of a call that finds no loop."""


class Call(Generic[T]):
    """A call under way.

    It is open as long as it is in ``core.calls``. Whoever takes it out, which is one atomic step, decides how it ends:
    the loop with an outcome, the caller who gives up, or whoever stops the thread.
    """

    __slots__ = ("_args", "_core", "_deadline", "_error", "_operation", "_result", "_waiter")

    def __init__(self, core: Host, args: tuple[Any, ...], deadline: Deadline, operation: str) -> None:
        self._core = core
        self._args = args
        self._deadline = deadline
        self._operation = operation
        self._error: BaseException | None = None
        self._result: T
        self._waiter = threading.Lock()
        self._waiter.acquire()

    # --- in the calling thread

    def carry_out(self) -> T:
        """Have the loop begin, wait for the end, and return or raise what came of it."""
        core = self._core
        try:
            core.calls[self] = True
            if not core.post(self._begin):
                self.fail(core.closed_error())
            remaining = self._deadline.remaining
            if not self._waiter.acquire(
                timeout=-1 if remaining is None else min(remaining + GRACE, threading.TIMEOUT_MAX)
            ):
                if self._withdraw():
                    raise OperationTimeoutError(self._operation, self._deadline.timeout, self._why_late())
                self._waiter.acquire()  # completed at this very moment
        except BaseException:  # an interrupt above all
            self._withdraw()
            raise
        return self._outcome()

    def _outcome(self) -> T:
        error = self._error
        if error is None:
            return self._result
        try:
            raise error
        finally:
            self._error = error = None  # else the error's traceback and these frames keep each other alive

    def _withdraw(self) -> bool:
        """Give up; return whether the call was still open."""
        if self._core.calls.pop(self, False):
            self._core.post(self._cancel)
            return True
        return False

    def _why_late(self) -> str:
        return f"the event loop of thread {self._core.thread.name!r} is blocked"

    # --- completion: anywhere, once

    @property
    def waits(self) -> bool:
        """Whether nothing has ended it yet."""
        return self in self._core.calls

    def succeed(self, result: T) -> bool:
        """End with a result, if nothing else has ended it; return whether that was so."""
        if not self._core.calls.pop(self, False):
            return False
        self._result = result
        self._waiter.release()
        return True

    def fail(self, error: BaseException) -> None:
        """End with an error, if nothing else has ended it."""
        if self._core.calls.pop(self, False):
            self._error = error
            self._waiter.release()
        else:
            _log.debug("%s failed with %s after its caller had gone", self._operation, type(error).__name__)

    # --- on the loop

    def _begin(self) -> None:
        if self not in self._core.calls:
            return  # the caller has given up: nothing is done in his name any more
        if self._core.stopping:
            self._core.refuse(self)
        elif self._deadline.expired:
            self.fail(self._timeout_error())
        else:
            self._start()

    def _start(self) -> None:
        raise NotImplementedError

    def _cancel(self) -> None:
        """Take back what can be taken back."""

    def _timeout_error(self) -> OperationTimeoutError:
        return OperationTimeoutError(self._operation, self._deadline.timeout)


class FunctionCall(Call[T]):
    """A plain function, which cannot be interrupted once it runs."""

    __slots__ = ("_fn",)

    def __init__(
        self, core: Host, fn: Callable[..., T], args: tuple[Any, ...], deadline: Deadline, operation: str
    ) -> None:
        super().__init__(core, args, deadline, operation)
        self._fn = fn

    def _start(self) -> None:
        try:
            result = self._fn(*self._args)
        except BaseException as error:  # also SystemExit, which would end the loop: it is the caller's
            self.fail(error)
        else:
            self.succeed(result)


class CoroutineCall(Call[T]):
    """A coroutine function, run as a task that is cancelled at the deadline."""

    __slots__ = ("_expired", "_fn", "_task", "_timer")

    def __init__(
        self,
        core: Host,
        fn: Callable[..., Coroutine[Any, Any, T]],
        args: tuple[Any, ...],
        deadline: Deadline,
        operation: str,
    ) -> None:
        super().__init__(core, args, deadline, operation)
        self._fn = fn
        self._expired = False
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    def _start(self) -> None:
        loop = self._core.loop
        assert loop is not None
        remaining = self._deadline.remaining
        self._task = loop.create_task(self._supervise(), name=self._operation)
        if remaining is not None:
            self._timer = loop.call_later(remaining, self._expire)

    def _expire(self) -> None:
        self._timer = None
        self._expired = True
        self._cancel()

    def _cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def _supervise(self) -> None:
        try:
            result = await self._fn(*self._args)
        except asyncio.CancelledError as error:
            self._cancelled(error)
        except Exception as error:
            if self._expired:  # what it made of being cancelled
                late = self._timeout_error()
                late.__cause__ = error
                self.fail(late)
            else:
                self.fail(error)
        except BaseException as error:  # SystemExit and KeyboardInterrupt would end the loop: they are the caller's
            self.fail(error)
        else:
            self.succeed(result)
        finally:
            if self._timer is not None:
                self._timer.cancel()

    def _cancelled(self, error: asyncio.CancelledError) -> None:
        if self._expired:
            self.fail(self._timeout_error())
        elif self._core.stopping:
            self._core.refuse(self)
        else:
            inside = LoopError(f"{self._operation} was cancelled inside the event loop")
            inside.__cause__ = error
            self.fail(inside)

    def _why_late(self) -> str:
        return "it was cancelled and refuses to end" if self._expired else super()._why_late()


class Exchange(Call[T]):
    """A call that is begun in the calling thread, and that somebody on the loop, or anywhere, completes."""

    __slots__ = ()

    def await_end(self, begin: Callable[..., object]) -> T:
        """Begin, wait for the end, and return or raise what came of it."""
        core = self._core
        try:
            core.calls[self] = True
            begin(self, *self._args)
            if self._waiter.acquire(blocking=False):  # `begin` has ended it
                return self._outcome()
            if core.ended.is_set():  # nobody is left to complete it
                self.fail(core.closed_error())
            remaining = self._deadline.remaining
            if not self._waiter.acquire(timeout=-1 if remaining is None else remaining):
                if core.calls.pop(self, False):
                    raise self._timeout_error()
                self._waiter.acquire()  # completed at this very moment
        except BaseException:  # an interrupt above all
            core.calls.pop(self, False)
            raise
        return self._outcome()
