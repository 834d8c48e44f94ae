"""A retry policy: waits, deadlines, and the switch for tests."""

from __future__ import annotations

import random
import signal
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mono_sync import (
    ConflictRetriesExhaustedError,
    Deadline,
    OperationTimeoutError,
    RetryDetails,
    RetryPolicy,
    RevisionMismatchError,
    retries,
)
from mono_sync._threads import frame_of
from mono_sync.recipes import _retry
from tests.fixtures.waiting import wait_until
from tests.support.threads import Background

CONFLICT = RevisionMismatchError("stock", "apples", 3, 4)
MILLISECOND = 0.001


def conflict() -> None:
    raise CONFLICT


def waits_of(policy: RetryPolicy, **options: Any) -> list[float]:
    """Return the waits of a hopeless retry."""
    heard: list[RetryDetails] = []
    fields = {name: getattr(policy, name) for name in ("attempts", "timeout", "initial_wait", "max_wait")}
    with pytest.raises(ConflictRetriesExhaustedError):
        RetryPolicy(**fields | options, hooks=[heard.append]).call(conflict)
    return [details.wait for details in heard]


def seconds_of(function: Callable[[], object]) -> float:
    begin = time.monotonic()
    function()
    return time.monotonic() - begin


def give_up(policy: RetryPolicy) -> None:
    with pytest.raises(ConflictRetriesExhaustedError):
        policy.call(conflict)


# --- waits

waits = st.floats(0, MILLISECOND)


@settings(deadline=None, max_examples=50)
@given(attempts=st.integers(1, 15), waits=st.tuples(waits, waits).map(sorted))
def test_waits_stay_below_a_bound_that_doubles_up_to_the_longest(attempts: int, waits: list[float]) -> None:
    initial, longest = waits
    policy = RetryPolicy(attempts=attempts, initial_wait=initial, max_wait=longest)
    drawn = waits_of(policy)
    assert len(drawn) == attempts - 1
    assert all(0 <= wait <= min(longest, initial * 2**number) for number, wait in enumerate(drawn))


@settings(deadline=None, max_examples=30)
@given(initial=st.floats(1e-9, 1e-5), doublings=st.integers(0, 6))
def test_the_bound_grows_and_is_reached(initial: float, doublings: int) -> None:
    longest = initial * 2**doublings
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(random, "uniform", lambda _low, high: high)
        drawn = waits_of(RetryPolicy(attempts=10, initial_wait=initial, max_wait=longest))
    assert drawn == pytest.approx([initial * 2 ** min(number, doublings) for number in range(9)])
    assert drawn == sorted(drawn)


def test_waits_are_random() -> None:
    first_waits = {waits_of(RetryPolicy(attempts=2, initial_wait=MILLISECOND))[0] for _ in range(50)}
    assert len(first_waits) > 40
    assert min(first_waits) < MILLISECOND / 4
    assert max(first_waits) > MILLISECOND * 3 / 4


def test_it_does_wait() -> None:
    heard: list[RetryDetails] = []
    policy = RetryPolicy(attempts=5, initial_wait=0.01, max_wait=0.01, hooks=[heard.append])
    took = seconds_of(lambda: give_up(policy))
    assert took >= sum(details.wait for details in heard) > 0


@pytest.mark.skipif(threading.current_thread() is not threading.main_thread(), reason="signals need the main thread")
def test_ctrl_c_ends_a_wait_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(random, "uniform", lambda _low, high: high)
    main = threading.main_thread().ident
    assert main is not None
    interrupted = []

    def interrupt() -> None:
        wait_until(lambda: (frame := frame_of(main)) is not None and frame.f_code.co_name == "_sleep", "it sleeps")
        interrupted.append(time.monotonic())
        signal.pthread_kill(main, signal.SIGINT)

    thread = Background(interrupt)
    with pytest.raises(KeyboardInterrupt):
        RetryPolicy(initial_wait=50, max_wait=50, timeout=None).call(conflict)
    assert time.monotonic() - interrupted[0] < 1
    thread.result()


# --- the time of the policy


@settings(deadline=None, max_examples=20)
@given(timeout=st.floats(0, 0.03), initial=st.floats(MILLISECOND, 10))
def test_the_time_ends_the_retry_neither_early_nor_late(timeout: float, initial: float) -> None:
    policy = RetryPolicy(attempts=10**9, timeout=timeout, initial_wait=initial, max_wait=10)
    took = seconds_of(lambda: give_up(policy))
    assert timeout <= took < timeout + 1  # a sleep past it would take seconds


@settings(deadline=None, max_examples=20)
@given(timeout=st.floats(0, 0.03))
def test_no_wait_is_longer_than_what_is_left(timeout: float) -> None:
    drawn = waits_of(RetryPolicy(timeout=timeout, initial_wait=10, max_wait=10))
    assert all(wait <= timeout for wait in drawn)
    assert sum(drawn) <= timeout


def test_time_that_hooks_take_shortens_the_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[float] = []
    slept: list[float] = []

    def slow(details: RetryDetails) -> None:
        told.append(details.wait)
        threading.Event().wait(0.05)

    monkeypatch.setattr(random, "uniform", lambda _low, high: high)
    monkeypatch.setattr(_retry, "time", SimpleNamespace(monotonic=time.monotonic, sleep=slept.append))
    give_up(RetryPolicy(attempts=2, timeout=60, initial_wait=90, max_wait=90, hooks=[slow]))
    assert 0 < slept[0] <= told[0] - 0.05
    assert told[0] <= 60


def test_a_timeout_of_0_leaves_one_attempt() -> None:
    with pytest.raises(ConflictRetriesExhaustedError) as caught:
        RetryPolicy(timeout=0).call(conflict)
    assert caught.value.attempts == 1


def test_without_a_timeout_the_attempts_end_it() -> None:
    with pytest.raises(ConflictRetriesExhaustedError) as caught:
        RetryPolicy(attempts=3, timeout=None).call(conflict)
    assert caught.value.attempts == 3


# --- a deadline from outside


@pytest.mark.parametrize("timeout", [0.02, timedelta(milliseconds=20)])
def test_a_deadline_that_passes_is_a_timeout(timeout: float | timedelta) -> None:
    with pytest.raises(OperationTimeoutError) as caught:
        RetryPolicy(attempts=10**9).within(timeout, "adding apples").call(conflict)
    error = caught.value
    assert (error.operation, error.timeout) == ("adding apples", 0.02)
    assert str(error).startswith("adding apples timed out after 0.02 s: attempt ")
    assert str(error).endswith(f" failed: {CONFLICT}")
    assert error.__cause__ is CONFLICT


def test_the_loop_within_a_deadline_is_held_to_it() -> None:
    numbers = []

    def loop() -> None:
        for attempt in RetryPolicy().within(0.02):
            with attempt:
                numbers.append(attempt.number)
                conflict()

    with pytest.raises(OperationTimeoutError, match=r"^retrying timed out after 0\.02 s: attempt \d+ failed"):
        loop()
    assert numbers == list(range(1, len(numbers) + 1))


@settings(deadline=None, max_examples=10)
@given(timeout=st.floats(0, 0.03))
def test_a_deadline_is_never_slept_past(timeout: float) -> None:
    def run_out() -> None:
        with pytest.raises(OperationTimeoutError):
            RetryPolicy(initial_wait=10, max_wait=10).within(timeout).call(conflict)

    assert timeout <= seconds_of(run_out) < timeout + 1


def test_time_of_the_policy_that_ends_before_the_deadline_exhausts_it() -> None:
    with pytest.raises(ConflictRetriesExhaustedError):
        RetryPolicy(timeout=0.01).within(60).call(conflict)


def test_attempts_that_end_before_the_deadline_exhaust_it() -> None:
    with pytest.raises(ConflictRetriesExhaustedError) as caught:
        RetryPolicy(attempts=2).within(60).call(conflict)
    assert caught.value.attempts == 2


def test_the_only_attempt_of_a_passed_deadline_exhausts_nothing_but_the_deadline() -> None:
    with pytest.raises(OperationTimeoutError):
        RetryPolicy().within(0).call(conflict)
    with pytest.raises(ConflictRetriesExhaustedError):
        RetryPolicy(attempts=1).within(0).call(conflict)


def test_a_running_deadline_is_shared_by_all_that_is_held_to_it() -> None:
    deadline = Deadline(0.02)
    bounded = RetryPolicy().within(deadline)
    with pytest.raises(OperationTimeoutError):
        bounded.call(conflict)
    assert deadline.expired
    calls: list[None] = []

    def once_more() -> None:
        calls.append(None)
        conflict()

    with pytest.raises(OperationTimeoutError):
        bounded.call(once_more)
    assert len(calls) == 1


def test_without_a_deadline_the_policy_alone_decides() -> None:
    with pytest.raises(ConflictRetriesExhaustedError):
        RetryPolicy(attempts=2, timeout=None).within(None).call(conflict)


@pytest.mark.parametrize(("timeout", "error"), [(-1, ValueError), ("1", TypeError)])
def test_what_is_no_deadline_is_refused(timeout: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=r"^timeout must be "):
        RetryPolicy().within(timeout)


# --- the switch for tests


def attempts_of(policy: RetryPolicy) -> int:
    with pytest.raises(ConflictRetriesExhaustedError) as caught:
        policy.call(conflict)
    return caught.value.attempts


HASTY = RetryPolicy(attempts=5, initial_wait=0)
PATIENT = RetryPolicy(attempts=5, initial_wait=60, max_wait=60, timeout=300)


def test_one_attempt_switches_retrying_off() -> None:
    with retries(attempts=1):
        assert attempts_of(PATIENT) == 1
    assert attempts_of(HASTY) == 5


def test_attempts_can_be_capped_but_not_added() -> None:
    with retries(attempts=3):
        assert attempts_of(HASTY) == 3
    with retries(attempts=100):
        assert attempts_of(HASTY) == 5


def test_waits_can_be_switched_off() -> None:
    with retries(waits=False):
        assert seconds_of(lambda: give_up(PATIENT)) < 30


def test_the_switch_holds_for_every_thread() -> None:
    with retries(attempts=2, waits=False):
        assert Background(attempts_of, PATIENT).result() == 2


def test_of_nested_switches_the_inner_one_alone_holds() -> None:
    with retries(attempts=2):
        with retries():
            assert attempts_of(HASTY) == 5
        with retries(attempts=3):
            assert attempts_of(HASTY) == 3
        assert attempts_of(HASTY) == 2


def test_the_switch_is_restored_after_an_error() -> None:
    with pytest.raises(ZeroDivisionError), retries(attempts=1):
        raise ZeroDivisionError
    assert attempts_of(HASTY) == 5


def test_switches_that_overlap_leave_nothing_behind() -> None:
    first, second = retries(attempts=1), retries(attempts=2)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert attempts_of(HASTY) == 2
    second.__exit__(None, None, None)
    assert attempts_of(HASTY) == 5


def test_switches_of_many_threads_leave_nothing_behind() -> None:
    barrier = threading.Barrier(8)

    def switch(attempts: int) -> None:
        barrier.wait(20)
        for _ in range(200):
            with retries(attempts=attempts):
                assert attempts_of(HASTY) in {1, 2}

    threads = [Background(switch, 1 + number % 2) for number in range(8)]
    for thread in threads:
        thread.result()
    assert attempts_of(HASTY) == 5


def test_a_retry_that_has_begun_keeps_to_what_held_then() -> None:
    numbers = []

    def loop() -> None:
        for attempt in HASTY:
            with retries(attempts=1), attempt:
                numbers.append(attempt.number)
                conflict()

    with pytest.raises(ConflictRetriesExhaustedError), retries(attempts=3):
        loop()
    assert numbers == [1, 2, 3]


def test_fewer_attempts_than_one_are_refused() -> None:
    with pytest.raises(ValueError, match="attempts must be at least 1, not 0"), retries(attempts=0):
        pass
    assert attempts_of(HASTY) == 5
