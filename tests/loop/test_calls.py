"""run and call: results, errors, deadlines."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import logging
import signal
import threading
import time
import traceback
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from mono_sync._durations import Deadline
from mono_sync.errors import BlockingCallError, LoopError, OperationTimeoutError
from mono_sync.loop import LoopThread
from tests.fixtures.waiting import wait_until
from tests.loop.conftest import MakeLoop
from tests.loop.helpers import GRACE, Clock, answer, call, for_ever, run
from tests.support.threads import Background


def test_run_returns_the_result_of_the_coroutine(loop: LoopThread) -> None:
    assert run(loop, answer, "value") == "value"


def test_call_returns_the_result_of_the_function(loop: LoopThread) -> None:
    assert call(loop, divmod, 7, 3) == (2, 1)


@pytest.mark.parametrize("result", [None, ValueError("returned, not raised")])
def test_run_returns_whatever_object_the_coroutine_returns(loop: LoopThread, result: object) -> None:
    assert run(loop, answer, result) is result


def test_run_and_call_use_the_same_thread_which_has_the_name(make_loop: MakeLoop) -> None:
    loop = make_loop("mono_sync-loop-mine")

    async def current() -> threading.Thread:
        return threading.current_thread()

    thread = run(loop, current)
    assert thread is call(loop, threading.current_thread)
    assert thread.name == "mono_sync-loop-mine"
    assert thread.daemon


def test_the_function_runs_while_the_loop_runs(loop: LoopThread) -> None:
    assert call(loop, asyncio.get_running_loop).is_running()


def test_the_coroutine_sees_the_context_of_its_caller(loop: LoopThread) -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable")
    variable.set("of the caller")

    async def read() -> str:
        return variable.get()

    assert run(loop, read) == "of the caller"


class _OwnError(Exception):
    pass


async def _fail(error: BaseException) -> None:
    raise error


def _fail_plainly(error: BaseException) -> None:
    raise error


@pytest.mark.parametrize(
    "error",
    [_OwnError("own"), SystemExit(3), KeyboardInterrupt(), GeneratorExit(), TimeoutError("own"), OSError(1, "own")],
    ids=lambda error: type(error).__name__,
)
def test_whatever_the_coroutine_raises_reaches_the_caller_and_the_loop_lives_on(
    loop: LoopThread, error: BaseException
) -> None:
    with pytest.raises(type(error)) as caught:
        run(loop, _fail, error)
    assert caught.value is error
    assert run(loop, answer) == 42


@pytest.mark.parametrize(
    "error",
    [_OwnError("own"), SystemExit(3), KeyboardInterrupt(), StopIteration(1), asyncio.CancelledError()],
    ids=lambda error: type(error).__name__,
)
def test_whatever_the_function_raises_reaches_the_caller_and_the_loop_lives_on(
    loop: LoopThread, error: BaseException
) -> None:
    with pytest.raises(type(error)) as caught:
        call(loop, _fail_plainly, error)
    assert caught.value is error
    assert call(loop, int) == 0


def test_the_traceback_shows_where_the_coroutine_raised_and_who_called(loop: LoopThread) -> None:
    with pytest.raises(_OwnError) as caught:
        run(loop, _fail, _OwnError())
    names = [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]
    assert names[0] == "test_the_traceback_shows_where_the_coroutine_raised_and_who_called"
    assert names[-1] == "_fail"


@pytest.mark.parametrize("how", ["run", "call", "timeout"])
def test_an_error_keeps_nothing_alive_once_it_is_handled(loop: LoopThread, how: str) -> None:
    class Argument:
        pass

    async def fail(_: Argument) -> None:
        raise _OwnError

    def fail_plainly(_: Argument) -> None:
        raise _OwnError

    async def wait(_: Argument) -> None:
        await for_ever()

    def provoke() -> weakref.ref[Argument]:
        argument = Argument()
        attempts: dict[str, Callable[[], object]] = {
            "run": lambda: run(loop, fail, argument),
            "call": lambda: call(loop, fail_plainly, argument),
            "timeout": lambda: run(loop, wait, argument, timeout=0.01),
        }
        with pytest.raises((_OwnError, OperationTimeoutError)):
            attempts[how]()
        return weakref.ref(argument)

    gc.collect()
    gc.disable()
    try:
        reference = provoke()
        call(loop, int)  # the loop has left the failed call behind
        assert reference() is None
    finally:
        gc.enable()


def test_a_cancellation_from_inside_is_an_ordinary_error(loop: LoopThread) -> None:
    async def wait_for_what_is_cancelled() -> None:
        future = asyncio.get_running_loop().create_future()
        future.cancel()
        await future

    with pytest.raises(LoopError, match="test run was cancelled inside the event loop") as caught:
        run(loop, wait_for_what_is_cancelled)
    assert isinstance(caught.value.__cause__, asyncio.CancelledError)


def test_a_task_that_exits_does_not_end_the_loop(loop: LoopThread, caplog: pytest.LogCaptureFixture) -> None:
    async def spawn() -> None:
        with pytest.raises(SystemExit):
            await asyncio.create_task(_fail(SystemExit(3)))

    with caplog.at_level(logging.ERROR, "mono_sync.loop"):
        run(loop, spawn)
    assert "raised SystemExit; the loop goes on" in caplog.text


def test_a_function_that_stops_the_loop_does_not_end_the_thread(loop: LoopThread) -> None:
    call(loop, lambda: asyncio.get_running_loop().stop())
    assert run(loop, answer) == 42


# --- deadlines


def test_a_deadline_that_has_passed_submits_nothing(loop: LoopThread) -> None:
    begun: list[int] = []

    async def begin() -> None:
        begun.append(1)

    attempts: list[Callable[[], object]] = [
        lambda: run(loop, begin, timeout=0),
        lambda: call(loop, begun.append, 1, timeout=0),
    ]
    for attempt in attempts:
        with pytest.raises(OperationTimeoutError):
            attempt()
    call(loop, int)
    assert not begun


def test_at_the_deadline_the_coroutine_has_ended_before_the_caller_learns_of_it(loop: LoopThread) -> None:
    async def clean_up_slowly(steps: list[str]) -> None:
        try:
            await for_ever(ended=steps)
        finally:
            await asyncio.sleep(0.1)
            steps.append("cleaned up")

    steps: list[str] = []
    with pytest.raises(OperationTimeoutError, match=r"^test run timed out after 0\.2 s$") as caught:
        run(loop, clean_up_slowly, steps, timeout=0.2)
    assert steps == ["cancelled", "cleaned up"]
    assert (caught.value.operation, caught.value.timeout) == ("test run", 0.2)


def test_the_deadline_is_kept_on_the_loop_also_when_the_caller_is_held_up(loop: LoopThread) -> None:
    """The caller sits in a signal handler, so only the loop can have cancelled the coroutine."""
    ended: list[str] = []
    seen_in_handler: list[bool] = []

    def handler(*_: object) -> None:
        seen_in_handler.append(bool(wait_until(lambda: ended, "cancelled at the deadline", timeout=5)))

    previous = signal.signal(signal.SIGALRM, handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(OperationTimeoutError):
            run(loop, for_ever, None, ended, timeout=0.3)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    assert seen_in_handler == [True]


def test_a_timeout_error_of_the_coroutine_is_not_ours(loop: LoopThread) -> None:
    async def time_out() -> None:
        async with asyncio.timeout(0.01):
            await for_ever()

    with pytest.raises(TimeoutError) as caught:
        run(loop, time_out)
    assert not isinstance(caught.value, OperationTimeoutError)


def test_what_the_coroutine_makes_of_its_cancellation_is_the_cause_of_the_timeout(loop: LoopThread) -> None:
    async def translate() -> None:
        try:
            await for_ever()
        except asyncio.CancelledError:
            raise _OwnError from None

    with pytest.raises(OperationTimeoutError) as caught:
        run(loop, translate, timeout=0.2)
    assert isinstance(caught.value.__cause__, _OwnError)


def test_a_result_that_comes_in_spite_of_the_cancellation_counts(loop: LoopThread) -> None:
    async def finish() -> str:
        try:
            await for_ever()
        except asyncio.CancelledError:
            return "done all the same"
        return "never"

    assert run(loop, finish, timeout=0.2) == "done all the same"


def test_a_coroutine_that_refuses_to_end_does_not_hold_the_caller(loop: LoopThread, gate: threading.Event) -> None:
    async def refuse() -> None:
        while not gate.is_set():
            try:
                await asyncio.sleep(0.05)
            except asyncio.CancelledError:
                continue

    clock = Clock()
    with pytest.raises(OperationTimeoutError, match="refuses to end"):
        run(loop, refuse, timeout=0.2)
    assert clock.seconds < 0.2 + GRACE
    assert run(loop, answer) == 42
    gate.set()


@pytest.mark.parametrize("submit", [call, run])
def test_a_stuck_loop_does_not_hold_the_caller_and_what_it_had_not_begun_is_never_done(
    loop: LoopThread, background: Callable[..., Background], gate: threading.Event, submit: Callable[..., Any]
) -> None:
    stuck, begun = threading.Event(), []

    def block() -> None:
        stuck.set()
        gate.wait(10)

    async def begin() -> None:
        begun.append(1)

    blocked = background(call, loop, block)
    assert stuck.wait(10)
    clock = Clock()
    with pytest.raises(OperationTimeoutError, match="the event loop of thread 'mono_sync-loop' is blocked"):
        submit(loop, begin if submit is run else lambda: begun.append(1), timeout=0.1)
    assert clock.seconds < 0.1 + GRACE
    gate.set()
    blocked.result()
    call(loop, int)
    assert not begun


def test_a_call_that_the_loop_reaches_too_late_but_within_the_grace_is_not_begun(loop: LoopThread) -> None:
    begun: list[int] = []
    call(loop, lambda: asyncio.get_running_loop().call_soon(time.sleep, 0.3))
    with pytest.raises(OperationTimeoutError):
        call(loop, begun.append, 1, timeout=0.05)
    call(loop, int)
    assert not begun


@pytest.mark.parametrize("timeout", [None, 1e9, 1e300])
def test_very_long_deadlines_are_fine(loop: LoopThread, timeout: float | None) -> None:
    assert run(loop, answer, timeout=timeout) == 42
    assert call(loop, int, timeout=timeout) == 0


# --- from the loop thread itself


@pytest.mark.parametrize("what", ["run", "call", "stop"])
def test_a_blocking_call_from_the_loop_thread_is_refused_at_once(loop: LoopThread, what: str) -> None:
    attempts: dict[str, Callable[[], Any]] = {
        "run": lambda: run(loop, answer),
        "call": lambda: call(loop, int),
        "stop": loop.stop,
    }
    clock = Clock()
    with pytest.raises(BlockingCallError):
        call(loop, attempts[what])
    assert clock.seconds < 5
    assert loop.alive
    assert run(loop, answer) == 42


def test_a_caller_may_have_a_running_loop_of_its_own(loop: LoopThread) -> None:
    async def as_in_a_notebook() -> Any:
        return run(loop, answer), call(loop, int)

    assert asyncio.run(as_in_a_notebook()) == (42, 0)


def test_another_loop_thread_may_be_called_from_a_loop_thread(make_loop: MakeLoop) -> None:
    one, other = make_loop("mono_sync-one"), make_loop("mono_sync-other")
    assert call(one, run, other, answer) == 42


def test_the_deadline_is_a_total_that_calls_share(loop: LoopThread) -> None:
    deadline = Deadline(0.1)
    with pytest.raises(OperationTimeoutError):
        loop.run(for_ever, deadline=deadline, operation="first")
    with pytest.raises(OperationTimeoutError, match="second"):
        loop.run(answer, deadline=deadline, operation="second")


# --- interrupts


class _Interrupt(BaseException):
    pass


@pytest.mark.parametrize("timeout", [None, 30.0])
def test_an_interrupt_cancels_the_coroutine_and_gets_through_at_once(loop: LoopThread, timeout: float | None) -> None:
    begun, ended = threading.Event(), list[str]()

    def handler(*_: object) -> None:
        raise _Interrupt

    previous = signal.signal(signal.SIGALRM, handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        clock = Clock()
        with pytest.raises(_Interrupt):
            run(loop, for_ever, begun, ended, timeout=timeout)
        assert clock.seconds < 2
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    assert begun.is_set()
    wait_until(lambda: ended, "the coroutine is cancelled")
    assert run(loop, answer) == 42
