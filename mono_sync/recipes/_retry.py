"""Do again what lost against somebody else's change, within bounds.

Optimistic locking fails by design while others write the same key, so the waits are short and random: they spread the
writers out, and do not wait for anything to recover.
"""

from __future__ import annotations

import functools
import inspect
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType, TracebackType
from typing import TYPE_CHECKING, NoReturn, ParamSpec, Protocol, Self, TypeAlias, TypeVar

from mono_sync._durations import Deadline, Duration, to_seconds
from mono_sync._threads import start_thread
from mono_sync.errors import (
    ConfigurationError,
    ConflictError,
    ConflictRetriesExhaustedError,
    MonoError,
    OperationTimeoutError,
    StorageError,
)
from mono_sync.recipes._switch import rules_now

if TYPE_CHECKING:  # its import takes 4 ms, and 20 where tornado is installed: the first retry pays that
    from tenacity import RetryCallState

P = ParamSpec("P")
R = TypeVar("R")

Errors: TypeAlias = type[Exception] | tuple[type[Exception], ...]

_logger = logging.getLogger("mono_sync.retry")


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryDetails:
    """What a hook is told.

    Attributes:
        attempt: number of the attempt that failed, from 1.
        error: what it raised.
        wait: seconds until the next attempt begins.
        elapsed: seconds since the first one began.
    """

    attempt: int
    error: Exception
    wait: float
    elapsed: float


class RetryHook(Protocol):
    """A function that is called before each wait, in the thread that waits."""

    def __call__(self, details: RetryDetails, /) -> object:
        """Take note of a retry; what it returns is ignored."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How often and for how long to do again what met a conflict; immutable, checked when made, thread-safe.

    Three ways to use one::

        policy.call(function, argument)  # returns what the function returns


        @policy  # each call of the function is retried
        def function(): ...


        for attempt in policy:  # the body runs again until it raises no conflict
            with attempt:
                ...

    Each of them ends in one of four ways:

    * The attempt succeeds: its result is returned, or the loop ends.
    * It raises something else than ``retry_on``: that passes through at once, as it is.
    * The attempts or the ``timeout`` of the policy are used up: `ConflictRetriesExhaustedError`, with the last error as
      ``__cause__``.
    * The deadline given to `within` has passed: `OperationTimeoutError`, with the last error as ``__cause__``.

    An attempt that runs is never cut short, so the total time is that of the bounds and of one attempt; calls that the
    attempt makes have deadlines of their own. What is retried must read again: an `update` with the old revision would
    meet the same conflict each time.

    Between two attempts it waits for a random time of up to ``initial_wait`` after the first, twice that after the
    second and so on, up to ``max_wait``, and never longer than what is left of the time. Ctrl-C ends a wait at once.

    Args:
        attempts: how many there are at most, the first included.
        timeout: total time in seconds, waits included: an attempt that fails after it was the last. 0 leaves the first
            one, None sets no limit of time.
        initial_wait: the longest wait after the first attempt, in seconds; 0: no waits.
        max_wait: the longest wait of all, in seconds.
        retry_on: class or tuple of classes of the errors that are retried. A `ConflictRetriesExhaustedError` never is,
            whatever class is given: the policy that raised it has done what there was to do.
        hooks: called with `RetryDetails` before each wait, one after the other, so they should be quick. They watch and
            do not decide: an exception in one is logged, and the retry goes on. Retries are logged without a hook too,
            at level DEBUG of the logger ``mono_sync.retry``.

    Raises:
        ConfigurationError: an option cannot be right; the message names it.
    """

    attempts: int = 200
    timeout: Duration | None = 30.0
    initial_wait: Duration = 0.002
    max_wait: Duration = 0.1
    retry_on: Errors = ConflictError
    hooks: Sequence[RetryHook] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.attempts, int) or isinstance(self.attempts, bool) or self.attempts < 1:
            raise ConfigurationError(f"attempts must be a whole number of at least 1, not {self.attempts!r}")
        for name in ("timeout", "initial_wait", "max_wait"):
            self._normalise_duration(name)
        if to_seconds(self.max_wait) < to_seconds(self.initial_wait):
            raise ConfigurationError("max_wait must not be shorter than initial_wait")
        classes = self.retry_on if isinstance(self.retry_on, tuple) else (self.retry_on,)
        if not classes or not all(isinstance(cls, type) and issubclass(cls, Exception) for cls in classes):
            raise ConfigurationError("retry_on must be a class of exceptions or a tuple of them")
        if not isinstance(self.hooks, Sequence) or not all(callable(hook) for hook in self.hooks):
            raise ConfigurationError("hooks must be a sequence of functions")
        object.__setattr__(self, "hooks", tuple(self.hooks))

    def _normalise_duration(self, name: str) -> None:
        value = getattr(self, name)
        if name == "timeout" and value is None:
            return
        try:
            object.__setattr__(self, name, to_seconds(value, name))
        except (TypeError, ValueError) as error:
            raise ConfigurationError(str(error)) from None

    def call(self, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call a function until it raises no conflict, and return its result.

        Raises:
            ConflictRetriesExhaustedError: the attempts or the time are used up.
        """
        return self.within(None).call(function, *args, **kwargs)

    def __call__(self, function: Callable[P, R], /) -> Callable[P, R]:
        """Return a function that does with each of its calls what `call` does; for use as a decorator.

        Raises:
            TypeError: a coroutine function or generator: it runs only when the call has long returned.
        """
        later = (inspect.iscoroutinefunction, inspect.isgeneratorfunction, inspect.isasyncgenfunction)
        if any(is_kind(function) for is_kind in later):
            raise TypeError(f"only a function that does its work while it is called can be retried, not {function!r}")

        @functools.wraps(function)
        def retried(*args: P.args, **kwargs: P.kwargs) -> R:
            return self.call(function, *args, **kwargs)

        return retried

    def __iter__(self) -> Iterator[RetryAttempt]:
        """Begin a run of attempts, for one thread; any number of runs may be under way.

        Raises:
            ConflictRetriesExhaustedError: the attempts or the time are used up.
            RuntimeError: the loop went on without having entered the attempt.
        """
        return iter(self.within(None))

    def within(self, timeout: Duration | Deadline | None, operation: str = "retrying") -> BoundedRetry:
        """Return the policy held to a deadline as well, such as one that a call shares with the calls it makes.

        Whichever bound comes first ends the retries: the policy's own with `ConflictRetriesExhaustedError`, this one
        with `OperationTimeoutError`.

        Args:
            timeout: seconds or a ``timedelta`` from now, or a deadline already running; None is for ever.
            operation: what `OperationTimeoutError` is to call it.

        Raises:
            TypeError: ``timeout`` is none of these.
            ValueError: ``timeout`` is negative, infinite or no number.
        """
        return BoundedRetry(self, Deadline.of(timeout, None), operation)


@dataclass(frozen=True, slots=True)
class BoundedRetry:
    """A policy held to a deadline, which all its runs share; made by `RetryPolicy.within`. Thread-safe."""

    policy: RetryPolicy
    deadline: Deadline
    operation: str

    def call(self, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call a function until it raises no conflict, and return its result.

        Raises:
            ConflictRetriesExhaustedError: the attempts, or the time that the policy gives, are used up.
            OperationTimeoutError: the deadline passed between two attempts; nothing runs any more.
        """
        attempts = iter(self)
        while True:
            with next(attempts):
                return function(*args, **kwargs)

    def __iter__(self) -> Iterator[RetryAttempt]:
        """Begin a run of attempts, for one thread; raises what `call` raises.

        Raises:
            RuntimeError: the loop went on without having entered the attempt.
        """
        return _Run(self).attempts()


class RetryAttempt:
    """One attempt of ``for attempt in policy: with attempt: …``, to be entered once.

    The ``with`` swallows what is to be retried. So the whole attempt belongs into its block: what follows in the body
    of the loop runs after failed attempts too.
    """

    __slots__ = ("_entered", "_finish", "_number", "_retry_on")

    def __init__(self, number: int, retry_on: Errors, finish: Callable[[Exception | None], None]) -> None:
        self._number = number
        self._retry_on = retry_on
        self._finish = finish
        self._entered = False

    @property
    def number(self) -> int:
        """Which attempt it is, from 1."""
        return self._number

    def __enter__(self) -> Self:
        if self._entered:
            raise RuntimeError(f"attempt {self._number} was entered before; each is for one `with`")
        self._entered = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        if isinstance(error, self._retry_on) and not isinstance(error, ConflictRetriesExhaustedError):
            self._finish(error)
            return True
        self._finish(None)
        return False


class _Run:
    """The attempts of one call or loop: tenacity drives them, bounds and errors are ours."""

    def __init__(self, bounded: BoundedRetry) -> None:
        self._policy = policy = bounded.policy
        self._operation = bounded.operation
        self._rules = rules = rules_now()
        self._attempts = policy.attempts if rules.attempts is None else min(policy.attempts, rules.attempts)
        self._deadline = bounded.deadline
        timeout = policy.timeout
        self._end = self._deadline if timeout is None else self._deadline.at_most(to_seconds(timeout))
        self._started = time.monotonic()

    def attempts(self) -> Iterator[RetryAttempt]:
        retrying = _tenacity().Retrying(
            sleep=self._sleep,
            stop=self._stop,
            wait=self._wait,
            before_sleep=self._tell,
            retry_error_callback=self._give_up,
        )
        for manager in retrying:
            state = manager.retry_state
            yield RetryAttempt(state.attempt_number, self._policy.retry_on, functools.partial(_finish, state))
            if state.outcome is None:  # it would be yielded for ever
                raise RuntimeError("an attempt is made by `with attempt:` in the body of the loop")

    def _stop(self, retry_state: RetryCallState) -> bool:
        return retry_state.attempt_number >= self._attempts or self._end.expired

    def _wait(self, retry_state: RetryCallState) -> float:
        if not self._rules.waits:
            return 0.0
        longest = self._clipped(to_seconds(self._policy.max_wait))  # so that time is left for the next attempt
        wait = _tenacity().wait_random_exponential(to_seconds(self._policy.initial_wait), longest)
        return float(wait(retry_state))

    def _sleep(self, seconds: float) -> None:
        time.sleep(self._clipped(seconds))  # hooks may have taken time

    def _clipped(self, seconds: float) -> float:
        remaining = self._end.remaining
        return seconds if remaining is None else min(seconds, remaining)

    def _tell(self, retry_state: RetryCallState) -> None:
        assert retry_state.next_action is not None
        details = RetryDetails(
            attempt=retry_state.attempt_number,
            error=_error_of(retry_state),
            wait=retry_state.next_action.sleep,
            elapsed=time.monotonic() - self._started,
        )
        _logger.debug("attempt %d, next in %.2g s: %s", details.attempt, details.wait, _text(details.error))
        for hook in self._policy.hooks:
            try:
                hook(details)
            except Exception:
                _logger.exception("the hook %r failed", hook)

    def _give_up(self, retry_state: RetryCallState) -> NoReturn:
        error, number = _error_of(retry_state), retry_state.attempt_number
        retry_state.outcome = None  # breaks the circle of error, traceback, frame and attempt
        if self._end is self._deadline and number < self._attempts:
            hint = f"attempt {number} failed: {_text(error)}"
            raise OperationTimeoutError(self._operation, self._deadline.timeout, hint) from error
        facts = vars(error) if isinstance(error, StorageError) else {}
        raise ConflictRetriesExhaustedError(
            number,
            time.monotonic() - self._started,
            _text(error),
            bucket=facts.get("bucket"),
            key=facts.get("key"),
        ) from error


def _tenacity() -> ModuleType:
    """Return tenacity; a thread of its own imports it, for where an interrupt ends its import it can never be imported.

    The submodules that it had got stay imported then, and are no attributes of the next one.
    """
    if "tenacity" not in sys.modules:
        thread = threading.Thread(target=import_module, args=("tenacity",), name="mono_sync-import", daemon=True)
        start_thread(thread)
        thread.join()
    return import_module("tenacity")  # waits where another thread imports it


def _finish(retry_state: RetryCallState, error: Exception | None) -> None:
    if error is None:
        retry_state.set_result(None)
    else:
        retry_state.set_exception((type(error), error, error.__traceback__))


def _error_of(retry_state: RetryCallState) -> Exception:
    error = None if retry_state.outcome is None else retry_state.outcome.exception()
    assert isinstance(error, Exception)
    return error


def _text(error: Exception) -> str:
    """Describe an error; only of ours it is known that they hold no payload."""
    return str(error) if isinstance(error, MonoError) else type(error).__name__
