"""What happens in which order when an application starts and stops."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Final, Literal, NamedTuple

from mono_sync._durations import DEFAULT, Deadline
from mono_sync.application._jobs import Outcome, describe
from mono_sync.application._protocols import ModuleLifecycleEvent
from mono_sync.application._registration import APPLICATION, Kind, Registration
from mono_sync.application._registry import Registry
from mono_sync.application._resolver import start_order
from mono_sync.application._steps import StepRunner
from mono_sync.client import Connection
from mono_sync.errors import ClosedError, ModuleStartError, ModuleStopError
from mono_sync.messaging import ServiceContainer

_log = logging.getLogger("mono_sync.application")

_HOOK_TIMEOUT: Final = 1.0
_ABORT_GRACE: Final = 2.0  # so that a step which only takes a moment is not stopped while it starts
_RESERVE: Final = 2.0
_OVERTIME: Final = 0.5


class _StepFailed(Exception):  # noqa: N818  # carries the error
    def __init__(self, owner: str, phase: str, error: BaseException) -> None:
        super().__init__(owner, phase)
        self.owner = owner
        self.phase = phase
        self.error = error


class _Undo(NamedTuple):
    """A step of the stop."""

    owner: str
    phase: str
    call: Callable[[float | None], object]  # gets the seconds that it may take
    module: Registration | None = None


class Lifecycle:
    """Starts and stops what is registered. Used by one thread at a time.

    Every step of the start puts the step that undoes it on a stack when it begins, so that a stop, the rollback of a
    failed start, and the continuation of an interrupted stop are the same: work off the stack from its top.

    Args:
        name: of the application.
        registry: what is registered; it does not change any more once `start` is called.
        connection: not open yet.
        start_timeout: seconds for the whole start; None is for ever.
        shutdown_timeout: seconds for the whole stop, and for the whole rollback of a failed start; None is for ever.
    """

    def __init__(
        self,
        name: str,
        registry: Registry,
        connection: Connection,
        start_timeout: float | None,
        shutdown_timeout: float | None,
    ) -> None:
        self._name = name
        self._registry = registry
        self._connection = connection
        self._start_timeout = start_timeout
        self._shutdown_timeout = shutdown_timeout
        self._undo: list[_Undo] = []
        self._containers: dict[str, ServiceContainer] = {}
        self._deaf: set[str] = set()  # middleware whose hook hung

    @property
    def containers(self) -> Mapping[str, ServiceContainer]:
        """The service containers of everything whose start has begun."""
        return self._containers

    @property
    def unfinished(self) -> bool:
        """Whether there is something to stop."""
        return bool(self._undo)

    # --- the order of things

    def _phases(self) -> Iterator[Callable[[StepRunner, Deadline], None]]:
        """The start, phase by phase; the stop is the reverse."""
        yield self._claim
        yield self._connect  # embedded server and connection
        yield self._each(self._registry.of(Kind.PLUGIN))  # in the order of registration
        yield self._each(self._registry.of(Kind.MIDDLEWARE))  # in the order of registration
        yield self._each(self._in_dependency_order())  # each one fully before the next

    def _calls(self, one: Registration) -> Iterator[tuple[str, tuple[Any, ...]]]:
        """The calls that a plugin, middleware or module gets in its phase; those it does not have are left out."""
        container = self._containers[one.name]
        if one.kind is Kind.PLUGIN:
            yield "set_container", (container,)
        else:
            for plugin in self._registry.of(Kind.PLUGIN):
                yield "set_plugin", (plugin.name, plugin.module)
        for name in dict.fromkeys(one.dependencies):
            yield "set_dependency_container", (name, self._containers[name].view())
        yield "register_services", (container,)
        yield "start", ()

    # --- start

    def start(self, runner: StepRunner) -> None:
        """Start everything, or nothing.

        Raises:
            ModuleStartError: a step failed or hung; its cause is the real error.
            DependencyError: the dependencies cannot be met.
            RegistrationError: something registered is in use by another application.
            StepsAborted: the runner was told to abort.
            BaseException: whatever interrupted the calling thread; errors of the rollback are in its notes.
        """
        began = time.monotonic()
        deadline = Deadline(self._start_timeout)
        try:
            for phase in self._phases():
                phase(runner, deadline)
            runner.close()  # here, where Ctrl-C while its thread ends still leads to the rollback
            _log.info("application %r started in %.0f ms", self._name, 1000 * (time.monotonic() - began))
            runner.commit()
        except BaseException as error:
            failures = [str(failure) for failure in self._roll_back(runner)]
            if isinstance(error, _StepFailed):
                reason = describe(error.error)
                raise ModuleStartError(error.owner, error.phase, reason, failures) from error.error
            for failure in failures:
                error.add_note(f"during rollback: {failure}")
            raise

    def _claim(self, _runner: StepRunner, _deadline: Deadline) -> None:
        self._registry.claim()

    def _connect(self, runner: StepRunner, deadline: Deadline) -> None:
        close = _Undo(APPLICATION, "close", partial(_close, self._connection))
        self._do(runner, deadline, APPLICATION, "connect", partial(_open, self._connection, deadline), undo=close)
        self._undo.append(_Undo(APPLICATION, "drain", partial(_drain, self._connection)))

    def _in_dependency_order(self) -> list[Registration]:
        modules = {one.name: one for one in self._registry.of(Kind.MODULE)}
        dependencies = {name: one.dependencies for name, one in modules.items()}
        return [modules[name] for name in start_order(dependencies, self._registry.explain_missing)]

    def _each(self, registrations: Sequence[Registration]) -> Callable[[StepRunner, Deadline], None]:
        def start_each(runner: StepRunner, deadline: Deadline) -> None:
            for one in registrations:
                self._start_one(runner, deadline, one)

        return start_each

    def _start_one(self, runner: StepRunner, deadline: Deadline, one: Registration) -> None:
        self._containers[one.name] = ServiceContainer(one.name, self._connection)
        undo: _Undo | None = _Undo(one.name, "stop", partial(_stop, one.module), one)
        outcome: Outcome | None = None
        for method, arguments in self._calls(one):
            if one.has(method):
                call = partial(_call, one.module, method, *arguments)
                outcome = self._do(runner, deadline, one.name, method, call, undo=undo)
                undo = None  # its first call has put it on the stack
        if outcome is not None:
            self._tell(runner, one, "started", outcome, deadline.remaining)

    def _do(
        self,
        runner: StepRunner,
        deadline: Deadline,
        owner: str,
        phase: str,
        call: Callable[[], object],
        *,
        undo: _Undo | None,
    ) -> Outcome:
        """Run a step, and put what undoes it on the stack as soon as it begins."""
        limit = f"start_timeout={self._start_timeout} s is the time of all steps together"
        begin = None if undo is None else partial(self._undo.append, undo)
        outcome = runner.run(call, _label(owner, phase), deadline.remaining, limit, begin)
        if outcome.error is not None:
            raise _StepFailed(owner, phase, outcome.error)
        _log.debug("%s took %.1f ms", _label(owner, phase), 1000 * outcome.seconds)
        return outcome

    def _roll_back(self, runner: StepRunner) -> list[ModuleStopError]:
        deadline = Deadline(self._shutdown_timeout)
        total = deadline.remaining
        runner.settle(_ABORT_GRACE if total is None else min(_ABORT_GRACE, total / 4))
        runner.seal()
        return self._work_off(runner, deadline)

    # --- stop

    def discard(self) -> None:
        """Stop without having started: the connection, which nothing has opened, cannot be opened any more."""
        self._connection.close()

    def stop(self, runner: StepRunner) -> list[ModuleStopError]:
        """Stop everything and return what went wrong. After an interrupt, calling it again goes on with the rest."""
        began = time.monotonic()
        failures = self._work_off(runner, Deadline(self._shutdown_timeout))
        _log.info("application %r stopped in %.0f ms", self._name, 1000 * (time.monotonic() - began))
        return failures

    def _work_off(self, runner: StepRunner, deadline: Deadline) -> list[ModuleStopError]:
        failures: list[ModuleStopError] = []
        steps = len(self._undo)
        while self._undo:
            undo = self._undo.pop()
            budget = share(self._shutdown_timeout, deadline.remaining, steps, len(self._undo))
            limit = f"its share of shutdown_timeout={self._shutdown_timeout} s"
            outcome = runner.run(partial(undo.call, budget), _label(undo.owner, undo.phase), budget, limit)
            if outcome.error is not None:
                failure = ModuleStopError(undo.owner, undo.phase, describe(outcome.error))
                failure.__cause__ = outcome.error
                failures.append(failure)
                _log.error("application %r: %s", self._name, failure)
            if undo.module is not None:
                left = share(self._shutdown_timeout, deadline.remaining, steps, len(self._undo))
                self._tell(runner, undo.module, "stopped", outcome, left)
        for container in self._containers.values():
            container.close()
        self._registry.release()
        return failures

    # --- middleware

    def _tell(
        self,
        runner: StepRunner,
        one: Registration,
        kind: Literal["started", "stopped"],
        outcome: Outcome,
        timeout: float | None,
    ) -> None:
        """Tell middleware of a regular module's start or stop."""
        if one.kind is not Kind.MODULE:
            return
        event = ModuleLifecycleEvent(one.name, kind, outcome.seconds, outcome.error)
        timeout = _HOOK_TIMEOUT if timeout is None else min(_HOOK_TIMEOUT, timeout)
        for middleware in self._registry.of(Kind.MIDDLEWARE):
            if middleware.name not in self._deaf:
                call = partial(_call, middleware.module, "on_module_lifecycle", event)
                label = _label(middleware.name, "on_module_lifecycle")
                told = runner.run(call, label, timeout, f"a hook gets {timeout:g} s")
                if told.error is not None:
                    _log.error("%s failed for %r: %s", label, one.name, describe(told.error), exc_info=told.error)
                if told.hung:
                    self._deaf.add(middleware.name)


def share(total: float | None, remaining: float | None, steps: int, later: int) -> float | None:
    """Return the seconds that the next step of a stop may take.

    It may take all that is left except a reserve for each later step: two seconds, or less where the steps together
    would reserve more than half of the total. So one slow module can use most of the time, and a module that hangs
    cannot starve the others.

    Args:
        total: seconds for all steps; None is for ever.
        remaining: seconds that are left of them.
        steps: number of all steps.
        later: number of steps after this one.
    """
    if total is None or remaining is None:
        return None
    reserve = min(_RESERVE, total / (2 * steps))
    return max(remaining - reserve * later, min(reserve, _OVERTIME / steps))


def _open(connection: Connection, deadline: Deadline) -> None:
    remaining, longest = deadline.remaining, connection.config.open_timeout
    # A little less than what is left: its own error says more than ours.
    connection.open(timeout=longest if remaining is None else min(longest, 0.9 * remaining))


def _drain(connection: Connection, budget: float | None) -> None:
    if connection.is_connected:  # else nothing can be in flight, and closing is all there is to do
        longest = connection.config.call_timeout
        with contextlib.suppress(ClosedError):  # closed by somebody else meanwhile, or by the end of the interpreter
            connection.drain(timeout=longest if budget is None else min(longest, 0.8 * budget))


def _close(connection: Connection, budget: float | None) -> None:
    connection.close(timeout=DEFAULT if budget is None else 0.8 * budget)


def _call(module: Any, method: str, *arguments: Any) -> object:
    """Call a method; looked up here, on the thread of the step, because it may be a property."""
    return getattr(module, method)(*arguments)


def _stop(module: Any, _budget: float | None) -> object:
    return _call(module, "stop")


def _label(owner: str, phase: str) -> str:
    return f"{phase} of the connection" if owner == APPLICATION else f"{phase}() of {owner!r}"
