"""A retry policy: what is retried, how it ends, and how it is used."""

from __future__ import annotations

import copy
import gc
import inspect
import pickle
import subprocess
import sys
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import FrozenInstanceError
from datetime import timedelta
from typing import Any, assert_type

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mono_sync import (
    ConfigurationError,
    ConflictError,
    ConflictRetriesExhaustedError,
    KeyExistsError,
    KeyNotFoundError,
    MonoError,
    RetryDetails,
    RetryPolicy,
    RevisionMismatchError,
    StorageError,
)
from tests.support.threads import Background

CONFLICT = RevisionMismatchError("stock", "apples", 3, 4)

Run = Callable[[RetryPolicy, Callable[[], Any]], Any]


def by_call(policy: RetryPolicy, function: Callable[[], Any]) -> Any:
    return policy.call(function)


def by_decorator(policy: RetryPolicy, function: Callable[[], Any]) -> Any:
    return policy(function)()


def by_loop(policy: RetryPolicy, function: Callable[[], Any]) -> Any:
    result = None
    for attempt in policy:
        with attempt:
            result = function()
    return result


def by_deadline(policy: RetryPolicy, function: Callable[[], Any]) -> Any:
    return policy.within(60).call(function)


every_way = pytest.mark.parametrize("run", [by_call, by_decorator, by_loop, by_deadline])


class Failing:
    """A function that raises the given errors, one at each call, and then returns the number of its calls."""

    def __init__(self, *errors: BaseException) -> None:
        self._errors = errors
        self.calls = 0

    def __call__(self) -> int:
        self.calls += 1
        if self.calls <= len(self._errors):
            raise self._errors[self.calls - 1]
        return self.calls


class Hopeless(Failing):
    """A function that raises the same error at each call."""

    def __call__(self) -> int:
        self.calls += 1
        raise self._errors[0]


def quick(**options: Any) -> RetryPolicy:
    return RetryPolicy(**{"initial_wait": 0, "max_wait": 0} | options)


# --- the policy itself


def test_the_defaults_are_bounds_that_the_signature_shows() -> None:
    shown = {name: option.default for name, option in inspect.signature(RetryPolicy).parameters.items()}
    assert shown == {
        "attempts": 200,
        "timeout": 30.0,
        "initial_wait": 0.002,
        "max_wait": 0.1,
        "retry_on": ConflictError,
        "hooks": (),
    }


def test_a_policy_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        RetryPolicy().attempts = 3  # type: ignore[misc]


def test_policies_with_the_same_options_are_equal() -> None:
    policy = RetryPolicy(timeout=2, initial_wait=timedelta(milliseconds=1), hooks=[print])
    assert policy == RetryPolicy(timeout=timedelta(seconds=2), initial_wait=0.001, hooks=(print,))
    assert len({policy, copy.copy(policy), pickle.loads(pickle.dumps(policy))}) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attempts": 0}, "attempts must be a whole number of at least 1, not 0"),
        ({"attempts": True}, "attempts must be a whole number of at least 1, not True"),
        ({"attempts": None}, "attempts must be a whole number of at least 1, not None"),
        ({"timeout": -1}, "timeout must be a finite number of seconds, not negative: -1"),
        ({"timeout": "1"}, "timeout must be seconds or a timedelta, not str"),
        ({"initial_wait": -0.1}, "initial_wait must be a finite number of seconds, not negative: -0.1"),
        ({"max_wait": None}, "max_wait must be seconds or a timedelta, not NoneType"),
        ({"initial_wait": 2, "max_wait": 1}, "max_wait must not be shorter than initial_wait"),
        ({"retry_on": "ConflictError"}, "retry_on must be a class of exceptions or a tuple of them"),
        ({"retry_on": ()}, "retry_on must be a class of exceptions or a tuple of them"),
        ({"retry_on": [ConflictError]}, "retry_on must be a class of exceptions or a tuple of them"),
        ({"retry_on": KeyboardInterrupt}, "retry_on must be a class of exceptions or a tuple of them"),
        ({"hooks": print}, "hooks must be a sequence of functions"),
        ({"hooks": [1]}, "hooks must be a sequence of functions"),
    ],
)
def test_an_option_that_cannot_be_right_is_refused_when_the_policy_is_made(options: Any, message: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        RetryPolicy(**options)
    assert str(caught.value) == message


def test_tenacity_is_imported_with_the_first_retry_only() -> None:
    program = "import sys, mono_sync; assert 'tenacity' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=30)


def test_an_interrupt_while_tenacity_is_imported_does_no_harm_to_later_retries() -> None:
    program = """
import signal, sys, threading
from mono_sync import RetryPolicy

class Interrupting:
    def find_spec(self, name, *rest):
        if name == "tenacity.wait" and self in sys.meta_path:
            sys.meta_path.remove(self)
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

sys.meta_path.insert(0, Interrupting())
try:
    RetryPolicy().call(int)
except KeyboardInterrupt:
    print("interrupted")
assert RetryPolicy().call(int) == 0
"""
    done = subprocess.run([sys.executable, "-c", program], check=True, timeout=30, capture_output=True)
    assert done.stdout == b"interrupted\n"


# --- what is retried


@every_way
def test_the_result_of_the_first_attempt_without_a_conflict_is_returned(run: Run) -> None:
    function = Failing(CONFLICT, KeyExistsError("stock", "apples"), CONFLICT)
    assert run(quick(), function) == 4
    assert function.calls == 4


@every_way
def test_what_succeeds_runs_once(run: Run) -> None:
    assert run(quick(), Failing()) == 1


@every_way
@pytest.mark.parametrize("error", [KeyNotFoundError("stock", "pears"), ValueError(), KeyboardInterrupt(), SystemExit()])
def test_another_error_passes_through_at_once(run: Run, error: BaseException) -> None:
    function = Failing(CONFLICT, error)
    with pytest.raises(type(error)) as caught:
        run(quick(), function)
    assert caught.value is error
    assert function.calls == 2


@every_way
@pytest.mark.parametrize("retry_on", [OSError, (ValueError, OSError)])
def test_retry_on_says_which_errors_are_retried(run: Run, retry_on: Any) -> None:
    assert run(quick(retry_on=retry_on), Failing(FileNotFoundError())) == 2
    with pytest.raises(RevisionMismatchError):
        run(quick(retry_on=retry_on), Failing(CONFLICT))


@every_way
def test_an_interrupt_is_never_retried(run: Run) -> None:
    function = Failing(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        run(quick(retry_on=Exception), function)
    assert function.calls == 1


# --- giving up


@every_way
@settings(deadline=None, max_examples=20)
@given(attempts=st.integers(1, 30))
def test_it_gives_up_after_exactly_so_many_attempts(run: Run, attempts: int) -> None:
    function = Hopeless(CONFLICT)
    with pytest.raises(ConflictRetriesExhaustedError) as caught:
        run(quick(attempts=attempts), function)
    assert (function.calls, caught.value.attempts) == (attempts, attempts)


@every_way
def test_the_last_attempt_may_succeed(run: Run) -> None:
    assert run(quick(attempts=3), Failing(CONFLICT, CONFLICT)) == 3


@every_way
def test_giving_up_tells_the_facts(run: Run) -> None:
    last = RevisionMismatchError("stock", "apples", 4, 5)
    with pytest.raises(
        ConflictRetriesExhaustedError, match=r"^gave up after 2 attempts in .* s: key 'apples'"
    ) as caught:
        run(quick(attempts=2), Failing(CONFLICT, last))
    error = caught.value
    assert error.__cause__ is last
    assert (error.attempts, error.bucket, error.key) == (2, "stock", "apples")
    assert 0 <= error.elapsed < 10


def test_an_error_of_somebody_else_is_named_without_its_text_and_facts() -> None:
    class OtherError(OSError):
        def __init__(self, text: str) -> None:
            super().__init__(text)
            self.bucket = self.key = text

    with pytest.raises(ConflictRetriesExhaustedError) as caught:
        quick(attempts=1, retry_on=OSError).call(Hopeless(OtherError("payload")))
    error = caught.value
    assert str(error).startswith("gave up after 1 attempt in ")
    assert str(error).endswith(" s: OtherError")
    assert (error.bucket, error.key) == (None, None)


@every_way
@pytest.mark.parametrize("retry_on", [ConflictError, StorageError, MonoError, Exception])
def test_a_retry_around_it_does_not_begin_again(run: Run, retry_on: Any) -> None:
    function = Hopeless(CONFLICT)
    with pytest.raises(ConflictRetriesExhaustedError):
        run(quick(retry_on=retry_on), lambda: quick(attempts=3).call(function))
    assert function.calls == 3


@every_way
def test_giving_up_leaves_no_garbage(run: Run) -> None:
    errors: list[weakref.ref[Exception]] = []

    def new_conflict() -> Exception:
        error = RevisionMismatchError("stock", "apples", 3)
        errors.append(weakref.ref(error))
        return error

    def function() -> None:
        raise new_conflict()

    gc.disable()
    try:
        with pytest.raises(ConflictRetriesExhaustedError):
            run(quick(attempts=3), function)
        assert [error() for error in errors] == [None] * 3
    finally:
        gc.enable()


# --- call and decorator


def test_call_passes_arguments_and_result_on() -> None:
    @quick().call
    def noted(*args: Any, **kwargs: Any) -> Any:
        return args, kwargs

    assert noted == ((), {})
    assert_type(quick().call(divmod, 7, 2), tuple[int, int])
    assert quick().call(divmod, 7, 2) == (3, 1)
    assert quick().call(dict, function=1, timeout=2) == {"function": 1, "timeout": 2}


def test_the_decorated_function_keeps_name_docstring_and_signature() -> None:
    @quick()
    def add(key: str, amount: int = 1) -> int:
        """Add."""
        return amount

    assert_type(add("apples", amount=2), int)
    assert add("apples", amount=2) == 2
    assert (add.__name__, add.__doc__) == ("add", "Add.")
    assert list(inspect.signature(add).parameters) == ["key", "amount"]
    with pytest.raises(TypeError):
        add(1, 2, 3)  # type: ignore[arg-type, call-arg]


def test_each_call_of_the_decorated_function_has_attempts_of_its_own() -> None:
    failing = Failing(CONFLICT, CONFLICT)
    decorated = quick(attempts=2)(failing)
    with pytest.raises(ConflictRetriesExhaustedError):
        decorated()
    assert decorated() == 3


def test_a_method_can_be_decorated() -> None:
    class Counter:
        def __init__(self) -> None:
            self.failing = Failing(CONFLICT)

        @quick()
        def add(self, amount: int) -> int:
            return self.failing() + amount

    assert Counter().add(5) == 7


def test_what_runs_only_after_the_call_is_refused() -> None:
    async def coroutine() -> None: ...

    def generator() -> Iterator[int]:
        yield 1

    async def asynchronous_generator() -> AsyncIterator[int]:
        yield 1

    for function in (coroutine, generator, asynchronous_generator):
        with pytest.raises(TypeError, match="only a function that does its work while it is called can be retried"):
            RetryPolicy()(function)


def test_one_policy_serves_many_threads_and_nested_runs() -> None:
    policy = quick(attempts=3)
    barrier = threading.Barrier(8)

    def nested() -> int:
        barrier.wait(20)
        return policy.call(Failing(CONFLICT, CONFLICT)) + policy.call(lambda: policy.call(Failing(CONFLICT)))

    threads = [Background(policy.call, nested) for _ in range(8)]
    assert [thread.result() for thread in threads] == [5] * 8


# --- the loop


def test_attempts_are_numbered_from_1() -> None:
    numbers = []
    function = Failing(CONFLICT, CONFLICT)
    for attempt in quick():
        with attempt as entered:
            numbers.append(attempt.number)
            assert entered is attempt
            function()
    assert numbers == [1, 2, 3]
    assert attempt.number == 3


def test_an_attempt_keeps_its_number() -> None:
    attempts = []
    function = Failing(CONFLICT, CONFLICT)
    for attempt in quick():
        attempts.append(attempt)
        with attempt:
            function()
    assert [attempt.number for attempt in attempts] == [1, 2, 3]


def test_a_loop_may_be_left_from_inside_the_attempt() -> None:
    function = Failing(CONFLICT)

    def add() -> int:
        for attempt in quick():
            with attempt:
                return function()
        raise AssertionError

    assert add() == 2


def test_an_error_that_the_loop_itself_handles_ends_it() -> None:
    numbers = []
    for attempt in quick():
        try:
            with attempt:
                numbers.append(attempt.number)
                raise KeyNotFoundError("stock", "pears")
        except KeyNotFoundError:
            numbers.append(0)
    assert numbers == [1, 0]


def test_a_loop_that_forgets_the_with_is_told_so() -> None:
    def loop() -> None:
        for _attempt in quick():
            Failing()()

    with pytest.raises(RuntimeError, match="with attempt:"):
        loop()


def test_an_attempt_can_be_entered_once_only() -> None:
    def loop() -> None:
        for attempt in quick():
            for _ in range(2):
                with attempt:
                    raise CONFLICT

    with pytest.raises(RuntimeError, match="attempt 1 was entered before"):
        loop()


# --- hooks


def test_a_hook_is_told_of_each_retry() -> None:
    heard: list[RetryDetails] = []
    exists = KeyExistsError("stock", "apples")
    RetryPolicy(hooks=[heard.append]).call(Failing(CONFLICT, exists))
    assert [(details.attempt, details.error) for details in heard] == [(1, CONFLICT), (2, exists)]
    assert 0 <= heard[0].elapsed <= heard[1].elapsed < 10
    assert 0 <= heard[0].wait <= 0.002
    with pytest.raises(FrozenInstanceError):
        heard[0].wait = 0  # type: ignore[misc]


def test_hooks_are_called_in_order_in_the_retrying_thread_before_the_next_attempt() -> None:
    journal: list[Any] = []
    failing = Failing(CONFLICT)

    def function() -> None:
        journal.append("attempt")
        failing()

    hooks = [lambda _: journal.append("first"), lambda _: journal.append(threading.get_ident())]
    quick(hooks=hooks).call(function)
    assert journal == ["attempt", "first", threading.get_ident(), "attempt"]


def test_no_hook_is_called_after_the_last_attempt() -> None:
    heard: list[RetryDetails] = []
    with pytest.raises(ConflictRetriesExhaustedError):
        quick(attempts=3, hooks=[heard.append]).call(Hopeless(CONFLICT))
    assert [details.attempt for details in heard] == [1, 2]


def test_a_failing_hook_is_logged_and_the_retry_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    heard: list[RetryDetails] = []

    def broken(details: RetryDetails) -> None:
        raise ZeroDivisionError

    assert quick(hooks=[broken, heard.append]).call(Failing(CONFLICT)) == 2
    assert len(heard) == 1
    (record,) = (record for record in caplog.records if record.levelname == "ERROR")
    assert record.name == "mono_sync.retry"
    assert "broken" in record.message
    assert record.exc_info is not None
    assert record.exc_info[0] is ZeroDivisionError


def test_an_interrupt_in_a_hook_ends_the_retry() -> None:
    def interrupted(details: RetryDetails) -> None:
        raise KeyboardInterrupt

    function = Failing(CONFLICT)
    with pytest.raises(KeyboardInterrupt):
        quick(hooks=[interrupted]).call(function)
    assert function.calls == 1


def test_each_retry_is_logged_without_payloads(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG", "mono_sync.retry")
    quick(retry_on=(ConflictError, OSError)).call(Failing(CONFLICT, OSError("payload")))
    assert [(record.name, record.levelname) for record in caplog.records] == [("mono_sync.retry", "DEBUG")] * 2
    assert str(CONFLICT) in caplog.messages[0]
    assert caplog.messages[1].endswith("OSError")
