"""The thread on which modules' code runs: deadlines, steps that hang, interrupts, aborts."""

from __future__ import annotations

import contextvars
import functools
import gc
import itertools
import logging
import os
import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mono_sync import LoopStartError, OperationTimeoutError
from mono_sync._threads import start_thread
from mono_sync.application import _jobs, _steps
from mono_sync.application._lifecycle import share
from mono_sync.application._steps import StepRunner, StepsAborted
from tests.application.support import BOUND, Gate
from tests.fixtures.threads import standing_threads
from tests.fixtures.waiting import wait_until
from tests.support.threads import Background

Threads = Callable[[], list[threading.Thread]]
START_NEW_THREAD = "_start_joinable_thread" if sys.version_info >= (3, 13) else "_start_new_thread"


numbers = itertools.count()


@pytest.fixture
def name() -> str:
    return f"test-{next(numbers)}"


@pytest.fixture
def runner(name: str) -> Iterator[StepRunner]:
    with StepRunner(name) as runner:
        yield runner


@pytest.fixture
def threads(name: str) -> Threads:
    """What lists the threads of this test's runner; those of earlier tests may still be ending."""
    return lambda: [thread for thread in threading.enumerate() if thread.name == f"mono_sync-lifecycle-{name}"]


def run(runner: StepRunner, call: Callable[[], Any], timeout: float | None = BOUND) -> _jobs.Outcome:
    return runner.run(call, "start() of 'orders'", timeout, "the limit")


def test_the_result_of_a_step_is_returned(runner: StepRunner) -> None:
    outcome = run(runner, lambda: 42)
    assert (outcome.result, outcome.error, outcome.hung) == (42, None, False)


def test_steps_run_on_one_named_daemon_thread(runner: StepRunner, threads: Threads) -> None:
    ran_on = {run(runner, threading.current_thread).result for _ in range(5)}
    assert ran_on == set(threads())
    assert all(thread.daemon for thread in ran_on)


def test_no_thread_is_made_before_it_is_needed(runner: StepRunner, threads: Threads) -> None:
    assert not threads()


def test_close_ends_the_thread() -> None:
    with StepRunner("test") as runner:
        (thread,) = (run(runner, threading.current_thread).result,)
        assert thread.is_alive()
    assert not thread.is_alive()


@pytest.mark.parametrize(
    "error", [ValueError("no"), SystemExit(3), KeyboardInterrupt(), GeneratorExit(), BaseException()]
)
def test_whatever_a_step_raises_is_its_outcome(runner: StepRunner, error: BaseException) -> None:
    def fail() -> None:
        raise error

    outcome = run(runner, fail)
    assert outcome.error is error
    assert not outcome.hung
    assert run(runner, lambda: 42).result == 42


def test_a_step_sees_the_context_variables_of_the_caller_and_keeps_its_changes_to_itself(runner: StepRunner) -> None:
    language = contextvars.ContextVar("language", default="none")
    language.set("de")

    def change() -> str:
        seen = language.get()
        language.set("fr")
        return seen

    assert run(runner, change).result == "de"
    assert language.get() == "de"


def test_the_time_that_a_step_took_is_measured(runner: StepRunner) -> None:
    outcome = run(runner, lambda: time.sleep(0.05))
    assert 0.05 <= outcome.seconds < 1


async def coroutine() -> None: ...


def generator() -> Iterator[int]:
    yield 1


async def async_generator() -> Any:
    yield 1


@pytest.mark.parametrize("call", [coroutine, generator, async_generator])
def test_a_step_that_only_returns_something_to_run_has_failed(runner: StepRunner, call: Callable[[], Any]) -> None:
    outcome = run(runner, call)
    assert isinstance(outcome.error, TypeError)
    assert "did nothing: methods of modules are synchronous" in str(outcome.error)
    gc.collect()  # a coroutine that nobody awaited would warn now


def test_everybody_who_waits_for_a_job_is_told_of_its_end(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_jobs, "_LOOK", BOUND)
    job = _jobs.Job(gate, "a job")
    begin = time.monotonic()
    waiting = [Background(lambda: job.wait(BOUND)) for _ in range(3)]
    worker = Background(job.execute)
    gate.wait_entered()
    gate.release()
    assert [one.result().error for one in waiting] == [None] * 3
    assert worker.error() is None
    assert time.monotonic() - begin < BOUND / 2


# --- steps that hang


def test_a_step_that_hangs_is_given_up_at_its_deadline(runner: StepRunner, gate: Gate) -> None:
    begin = time.monotonic()
    outcome = run(runner, gate, timeout=0.1)
    assert 0.1 <= time.monotonic() - begin < 1
    assert outcome.hung
    assert isinstance(outcome.error, OperationTimeoutError)
    assert outcome.error.operation == "start() of 'orders'"
    assert outcome.error.timeout == 0.1
    assert "the limit, at " in str(outcome.error)
    assert "threading.py" in str(outcome.error)


def test_the_stack_of_a_step_that_hangs_is_logged(
    runner: StepRunner, gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    run(runner, gate, timeout=0.05)
    (record,) = (record for record in caplog.records if record.levelno == logging.ERROR)
    assert record.name == "mono_sync.application"
    assert record.getMessage().startswith("start() of 'orders' hangs and is given up: the limit. Its stack:")
    assert "self._released.wait(BOUND)" in record.getMessage()


def test_after_a_step_that_hangs_the_next_one_runs_on_a_new_thread(
    runner: StepRunner, gate: Gate, threads: Threads
) -> None:
    first = run(runner, threading.current_thread).result
    run(runner, gate, timeout=0.05)
    second = run(runner, threading.current_thread).result
    assert second is not first
    assert set(threads()) == {first, second}


def test_the_thread_of_a_given_up_step_ends_with_the_step(
    runner: StepRunner, gate: Gate, threads: Threads, caplog: pytest.LogCaptureFixture
) -> None:
    run(runner, gate, timeout=0.05)
    gate.release()
    wait_until(lambda: not threads(), "the thread ends", BOUND)
    assert "start() of 'orders' has ended at last" in caplog.text


def test_a_step_without_a_timeout_is_waited_for(runner: StepRunner, gate: Gate) -> None:
    step = Background(lambda: run(runner, gate, timeout=None))
    gate.wait_entered()
    gate.release()
    assert step.result().error is None


@pytest.mark.parametrize("timeout", [threading.TIMEOUT_MAX * 10, 1e30])
def test_a_huge_timeout_is_no_error(runner: StepRunner, timeout: float) -> None:
    assert run(runner, lambda: 42, timeout).result == 42


# --- interrupts and aborts


def test_ctrl_c_ends_the_wait_for_a_step_at_once(runner: StepRunner, gate: Gate) -> None:
    thread = gate.when_entered(lambda: os.kill(os.getpid(), signal.SIGINT))
    begin = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run(runner, gate)
    assert time.monotonic() - begin < 1.5
    assert thread.error() is None


def test_a_signal_that_another_thread_gets_ends_the_wait_soon(runner: StepRunner, gate: Gate) -> None:
    thread = gate.when_entered(lambda: signal.raise_signal(signal.SIGINT))  # to the thread that calls it
    begin = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run(runner, gate)
    assert time.monotonic() - begin < 2.5
    assert thread.error() is None


def test_settle_waits_for_the_step_that_was_interrupted(runner: StepRunner, gate: Gate) -> None:
    abort = gate.when_entered(runner.abort)
    with pytest.raises(StepsAborted):
        run(runner, gate)
    gate.release()
    runner.settle(BOUND)
    assert gate.left.is_set()
    assert abort.error() is None


def test_settle_gives_the_interrupted_step_up_after_its_timeout(
    runner: StepRunner, gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    abort = gate.when_entered(runner.abort)
    with pytest.raises(StepsAborted):
        run(runner, gate)
    runner.settle(0.05)
    assert abort.error() is None
    assert not gate.left.is_set()
    assert "hangs and is given up: the wait for it was interrupted" in caplog.text


def test_an_error_of_the_interrupted_step_is_logged(
    runner: StepRunner, gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        gate()
        raise ValueError("too late")

    abort = gate.when_entered(runner.abort, runner.abort)
    with pytest.raises(StepsAborted):
        run(runner, fail)
    gate.release()
    runner.settle(BOUND)
    assert abort.error() is None
    assert "start() of 'orders' was interrupted, and failed: ValueError: too late" in caplog.text


def test_an_aborted_runner_begins_no_step(runner: StepRunner) -> None:
    runner.abort()
    ran: list[int] = []
    with pytest.raises(StepsAborted):
        run(runner, lambda: ran.append(1))
    runner.settle(BOUND)
    assert not ran


def test_commit_raises_if_it_was_aborted_before(runner: StepRunner) -> None:
    runner.abort()
    with pytest.raises(StepsAborted):
        runner.commit()


def test_after_commit_an_abort_changes_nothing(runner: StepRunner) -> None:
    runner.commit()
    runner.abort()
    assert run(runner, lambda: 42).result == 42


def test_after_seal_an_earlier_abort_changes_nothing(runner: StepRunner) -> None:
    runner.abort()
    runner.seal()
    assert run(runner, lambda: 42).result == 42


def test_abort_in_a_signal_handler_ends_the_wait(runner: StepRunner, gate: Gate) -> None:
    previous = signal.signal(signal.SIGUSR1, lambda *_: runner.abort())
    thread = gate.when_entered(lambda: os.kill(os.getpid(), signal.SIGUSR1))
    try:
        with pytest.raises(StepsAborted):
            run(runner, gate)
    finally:
        signal.signal(signal.SIGUSR1, previous)
    assert thread.error() is None


def test_it_is_known_whether_the_calling_thread_runs_the_step(runner: StepRunner) -> None:
    assert run(runner, runner.executes_here).result
    assert not runner.executes_here()


# --- what must not happen


def test_what_a_step_belongs_to_is_collected_without_the_garbage_collector(runner: StepRunner) -> None:
    class Owner:
        def step(self) -> None: ...

    gc.collect()
    gc.disable()
    try:
        owner = Owner()
        gone = weakref.ref(owner)
        run(runner, owner.step)
        run(runner, int)  # the thread lets go of a step when it gets the next one, at the latest
        del owner
        assert gone() is None
    finally:
        gc.enable()


def test_where_no_thread_can_be_had_a_step_runs_on_the_calling_thread(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    with StepRunner("test") as runner:
        monkeypatch.setattr(threading, START_NEW_THREAD, refuse)
        assert run(runner, threading.current_thread).result is threading.current_thread()
        assert run(runner, runner.executes_here).result
        monkeypatch.undo()
    assert "runs without a deadline: can't create new thread" in caplog.text


def test_a_thread_that_does_not_come_up_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_steps, "start_thread", functools.partial(start_thread, bound=0.05))
    with StepRunner("test") as runner, standing_threads():
        error = run(runner, int).error
    assert isinstance(error, LoopStartError)
    assert "did not run within 0.05 s. Under uWSGI set `enable-threads = true`" in str(error)


# --- how the time of a stop is divided


@given(st.floats(0.05, 1000), st.integers(1, 60))
def test_steps_that_all_hang_take_no_more_than_half_a_second_over_the_total(total: float, steps: int) -> None:
    remaining = total
    for later in range(steps - 1, -1, -1):
        budget = share(total, max(0.0, remaining), steps, later)
        assert budget is not None
        assert budget > 0
        remaining -= budget
    assert remaining >= -0.5 - 1e-9


@given(st.floats(0.05, 1000), st.integers(1, 60))
def test_the_first_step_of_a_stop_may_use_at_least_half_of_the_time(total: float, steps: int) -> None:
    budget = share(total, total, steps, steps - 1)
    assert budget is not None
    assert budget >= total / 2


def test_one_slow_step_among_few_may_use_nearly_all_the_time() -> None:
    assert share(30.0, 30.0, 5, 4) == 22.0


@given(st.floats(1, 1000), st.integers(2, 60), st.integers(1, 59))
def test_a_step_after_one_that_hung_still_has_its_reserve(total: float, steps: int, later: int) -> None:
    later = min(later, steps - 1)
    first = share(total, total, steps, later)
    assert first is not None
    second = share(total, total - first, steps, later - 1)
    assert second is not None
    assert second >= min(2.0, total / (2 * steps)) - 1e-9


def test_for_ever_is_for_ever_for_each_step() -> None:
    assert share(None, None, 5, 4) is None
