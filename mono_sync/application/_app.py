"""The application: what users register modules with, start and stop."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType, TracebackType
from typing import Any, Final, Self

from mono_sync._durations import Duration, to_seconds
from mono_sync.adapter import ConnectionConfig
from mono_sync.application._control import Control
from mono_sync.application._health import ApplicationHealth
from mono_sync.application._health_checks import HealthChecks
from mono_sync.application._jobs import describe
from mono_sync.application._lifecycle import Lifecycle
from mono_sync.application._protocols import Module, PluginModule
from mono_sync.application._registration import Kind, Registration, inspect_module, inspect_plugin
from mono_sync.application._registry import Registry
from mono_sync.application._states import ApplicationState
from mono_sync.application._steps import StepRunner
from mono_sync.client import Connection, make_connection
from mono_sync.errors import (
    ApplicationStateError,
    ConfigurationError,
    InvalidModuleError,
    MonoError,
    PluginNotFoundError,
    RegistrationError,
)
from mono_sync.messaging import ServiceContainer
from mono_sync.server import EmbeddedServerConfig

_INSPECTION_TIMEOUT: Final = 5.0


class MonoApplication:
    """Modules, plugins and a connection to NATS that start and stop together. Thread-safe; a context manager.

    Start: embedded server and connection; plugins, then middleware, in the order of registration; then each module
    after those it depends on, registration order among equals. Stop: the exact reverse. Methods of modules run on a
    thread of the application, one at a time, with a copy of the caller's context variables.

    Args:
        name: shown in logs, names of threads and, unless ``connection`` has a name, in the server's monitoring.
        servers: one or more ``nats://`` or ``tls://`` addresses. None: those in the environment variable
            ``MONO_SYNC_SERVERS``, and where that is not set an embedded server, which lives as long as the application
            runs.
        server: options of the embedded server.
        connection: options of the connection.
        start_timeout: seconds for the whole start. A step that still runs then is given up, and the start fails.
        shutdown_timeout: seconds for the whole stop, and for undoing a failed start. A step may use what is left of it,
            except two seconds, or less if there are many, for each later step. None is for ever, for both timeouts.

    Raises:
        ConfigurationError: an option cannot be right. Nothing is started before `start`, `run` or ``with``.

    In a forked child, an application that the parent has started stays the parent's: `stop` does nothing, `start`
    raises `ForkedError`; plugins and the connection can be used. One that was not started yet can be started in the
    child.
    """

    def __init__(
        self,
        *,
        name: str = "mono",
        servers: str | Sequence[str] | None = None,
        server: EmbeddedServerConfig | None = None,
        connection: ConnectionConfig | None = None,
        start_timeout: Duration | None = 30.0,
        shutdown_timeout: Duration | None = 30.0,
    ) -> None:
        if not isinstance(name, str) or not name.strip():
            raise ConfigurationError(f"name must be a str that is not empty, not {name!r}")
        self._name = name
        connection = ConnectionConfig(name=name) if connection is None else connection
        self._connection = make_connection(servers, server, connection)
        self._registry = Registry()
        self._lifecycle = Lifecycle(
            name,
            self._registry,
            self._connection,
            _timeout("start_timeout", start_timeout),
            _timeout("shutdown_timeout", shutdown_timeout),
        )
        self._checks = HealthChecks()
        self._control = Control(name, self._lifecycle)

    # --- registering

    def register(self, module: Module) -> None:
        """Register a module, or middleware: a module with ``on_module_lifecycle``.

        Its name and dependencies are read and its methods checked now.

        Raises:
            InvalidModuleError: it is none; says which member is missing or wrong.
            DuplicateNameError: its name is taken, by a module or as alias of a plugin.
            RegistrationError: this very object is registered already.
            ApplicationStateError: the application has been started or stopped.
        """
        self._register(module, partial(inspect_module, module))

    def register_plugin(self, plugin: PluginModule, alias: str) -> None:
        """Register a plugin under the alias by which modules get it. Several of one kind need several aliases.

        Raises:
            InvalidModuleError: it is none, or the alias is empty; says which member is missing or wrong.
            DuplicateNameError: the alias is taken, by a plugin or as name of a module.
            RegistrationError: this very object is registered already.
            ApplicationStateError: the application has been started or stopped.
        """
        self._register(plugin, partial(inspect_plugin, plugin, alias))

    def _register(self, module: object, inspection: Callable[[], Registration]) -> None:
        with self._control.registering():
            pass  # before the module is looked at: that it comes too late matters more than what is wrong with it
        registration = self._inspect(type(module).__qualname__, inspection)
        with self._control.registering():
            self._registry.add(registration)

    def _inspect(self, shown: str, inspection: Callable[[], Registration]) -> Registration:
        """Run the inspection as a step, for its properties run code of the module: it may hang, or raise anything."""
        with StepRunner(self._name) as runner:
            outcome = runner.run(
                inspection, f"inspection of {shown}", _INSPECTION_TIMEOUT, "its properties must be quick"
            )
        if isinstance(outcome.error, MonoError) and not outcome.hung:
            raise outcome.error
        if outcome.error is not None:
            reason = f"{shown} cannot be inspected: {describe(outcome.error)}"
            raise InvalidModuleError(shown, reason) from outcome.error
        registration: Registration = outcome.result
        return registration

    # --- starting and stopping

    def start(self) -> None:
        """Start everything; returns when all modules have started.

        If a step fails, hangs until ``start_timeout``, or is interrupted by Ctrl-C, everything that was begun is
        stopped again in reverse order, the module of that step included, before this raises. That takes at most
        ``shutdown_timeout`` plus one second.

        Raises:
            ModuleStartError: a step failed; names module and step, its ``__cause__`` is the real error.
            MissingDependencyError: a module depends on what is no module.
            CircularDependencyError: modules depend on each other in a circle.
            RegistrationError: a module or plugin is in use by another application that runs.
            ApplicationStateError: it was started or stopped before, or was stopped meanwhile. It cannot be restarted.
            ForkedError: it was started by the parent process.
        """
        self._control.start()

    def stop(self) -> None:
        """Stop everything in the reverse order of the start; returns when it has stopped, and may be called again.

        Every step is tried. A step that hangs is given up when its share of ``shutdown_timeout`` is over; this returns
        within that timeout plus one second. Called by several threads at once, it stops once, and each gets the same
        outcome. Called while another thread starts the application, it aborts the start, whose current step gets up to
        two seconds to end. Interrupted by Ctrl-C, it leaves the rest undone; calling it again goes on with that.

        As an `atexit` handler it must be registered after `start`: handlers run in the reverse order, and the
        connection ends with those that `start` registers.

        In a signal handler that interrupts this application's own `start` or `stop`, it returns at once and lets that
        take its course: the start is aborted.

        Raises:
            ExceptionGroup: of one `ModuleStopError` for each step that failed; everything is stopped all the same.
            ApplicationStateError: called by a module's own method while the application starts or stops. To abort the
                start, a module raises an exception.
        """
        self._control.stop()

    def run(self) -> None:
        """Start, wait for SIGINT, SIGTERM or a `stop` by another thread, and stop. For the main thread.

        A signal during the start aborts it; `run` returns all the same when everything is stopped. A second signal
        raises `KeyboardInterrupt` at once. The previous signal handlers are restored in the end.

        Raises:
            ApplicationStateError: called on another thread, where signals cannot be caught; or as for `start`.
            Exception: whatever `start` and `stop` raise.
        """
        self._control.run()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop. An exception of the body goes on; what goes wrong while stopping is then in its notes."""
        try:
            self.stop()
        except Exception as failure:
            if error is None:
                raise
            reasons = failure.exceptions if isinstance(failure, ExceptionGroup) else (failure,)
            for reason in reasons:
                error.add_note(f"while stopping application {self._name!r}: {reason}")

    # --- what is known of it

    @property
    def name(self) -> str:
        """Its name."""
        return self._name

    @property
    def state(self) -> ApplicationState:
        """The present state; it may be another one by the time you look at it."""
        return self._control.state

    @property
    def connection(self) -> Connection:
        """The connection that all modules share; open while the application runs."""
        return self._connection

    @property
    def modules(self) -> tuple[str, ...]:
        """The names of modules and middleware, in the order of registration."""
        return tuple(one.name for one in self._registry.of(Kind.MIDDLEWARE, Kind.MODULE))

    @property
    def plugins(self) -> Mapping[str, PluginModule]:
        """The plugins by alias, in the order of registration."""
        return MappingProxyType({one.name: one.module for one in self._registry.of(Kind.PLUGIN)})

    def plugin(self, alias: str) -> PluginModule:
        """Return a plugin.

        Raises:
            PluginNotFoundError: none is registered under the alias; lists those that are.
        """
        plugins = self.plugins
        if alias not in plugins:
            raise PluginNotFoundError(alias, tuple(plugins))
        return plugins[alias]

    def services(self, module: str) -> ServiceContainer:
        """Return the services of a module, middleware or plugin, by its name or alias; from its start on.

        Raises:
            RegistrationError: nothing is registered under the name.
            ApplicationStateError: it has not been started yet.
        """
        if self._registry.get(module) is None:
            known = ", ".join(one.name for one in self._registry) or "none"
            raise RegistrationError(module, f"no module {module!r} is registered; registered: {known}")
        container = self._lifecycle.containers.get(module)
        if container is None:
            state = self._control.state.name
            reason = f"application {self._name!r} is {state}: module {module!r} has no services before it starts"
            raise ApplicationStateError(reason, state)
        return container

    def health(self, *, timeout: Duration | None = 5.0) -> ApplicationHealth:
        """Ask all modules, middleware and plugins at once how they are. Never raises what a module raises.

        Args:
            timeout: seconds that each gets to answer; one that has not answered by then is unhealthy. None: for ever.
        """
        seconds = math.inf if timeout is None else to_seconds(timeout)
        modules = self._checks.run(self._registry, seconds) if self._control.state is ApplicationState.RUNNING else {}
        state = self._control.state
        connected = self._connection.is_connected
        healthy = state is ApplicationState.RUNNING and connected and all(one.healthy for one in modules.values())
        return ApplicationHealth(healthy, state, connected, modules)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._name!r} {self._control.state.name}>"

    def __del__(self, warn: Any = warnings.warn, getpid: Callable[[], int] = os.getpid) -> None:
        control = getattr(self, "_control", None)  # missing if __init__ failed
        if control is not None and control.unfinished and control.pid == getpid():
            warn(f"{self!r} was never stopped: call stop() or use it as a context manager", ResourceWarning)


def _timeout(name: str, value: Duration | None) -> float | None:
    if value is None:
        return None
    try:
        seconds = to_seconds(value, name)
    except (TypeError, ValueError) as error:
        raise ConfigurationError(str(error)) from None
    if seconds == 0:
        raise ConfigurationError(f"{name} must be more than 0 seconds")
    return seconds
