"""What the application expects of modules. All of it is structural: no class has to inherit from these."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from mono_sync.application._health import HealthStatus
from mono_sync.messaging import ServiceContainer


@runtime_checkable
class Module(Protocol):
    """A part of an application that is started and stopped with it.

    Its methods run on a thread of the application, one after the other, none at the same time as another module's.
    Start and stop may run on different threads. Methods that hang are given up at their deadline.
    """

    @property
    def name(self) -> str:
        """What other modules call it in their dependencies. An attribute will do. Read once, at registration."""
        ...

    def start(self) -> None:
        """Get ready for work, and return. Long work belongs on a thread of the module's own."""
        ...

    def stop(self) -> None:
        """Undo `start`.

        Called once. After a failed start it is called too, for every module that had got any of its calls: it must cope
        with a `start` that failed, that was not reached, or that was given up and still hangs.
        """
        ...


@runtime_checkable
class PluginModule(Module, Protocol):
    """Infrastructure for modules: started before them, stopped after them, handed to them under its alias."""

    def set_container(self, container: ServiceContainer) -> None:
        """Take the plugin's own service container; it also holds the application's connection."""
        ...

    @property
    def container(self) -> ServiceContainer | None:
        """The container that `set_container` was given."""
        ...


@runtime_checkable
class UsePluginModule(Module, Protocol):
    """A module or middleware that uses plugins."""

    def set_plugin(self, alias: str, plugin: PluginModule) -> None:
        """Take a started plugin. Called before `start`, for every plugin in the order of registration."""
        ...


@runtime_checkable
class DependentModule(Module, Protocol):
    """A module that starts after others and uses their services."""

    @property
    def dependencies(self) -> Sequence[str]:
        """Names of the modules that must have started before. An attribute will do. Read once, at registration."""
        ...

    def set_dependency_container(self, name: str, container: ServiceContainer) -> None:
        """Take the services of a module it depends on, to look up. Called before `start`, once per dependency."""
        ...


@runtime_checkable
class ServiceProviderModule(Module, Protocol):
    """A module, middleware or plugin that offers services."""

    def register_services(self, container: ServiceContainer) -> None:
        """Register services in the module's own container. Called just before `start`."""
        ...


@runtime_checkable
class HealthCheckableModule(Module, Protocol):
    """A module, middleware or plugin that knows whether it is well."""

    def health(self) -> HealthStatus:
        """Return how the module is.

        Called from threads of the application while modules run, at most one call per module at a time.
        """
        ...


@dataclass(frozen=True, slots=True)
class ModuleLifecycleEvent:
    """What happened to a regular module.

    Attributes:
        name: name of the module.
        kind: ``"started"`` after its start succeeded, ``"stopped"`` after its stop, whatever came of it.
        duration: seconds that its ``start()`` or ``stop()`` took.
        error: what its ``stop()`` raised; None otherwise.
    """

    name: str
    kind: Literal["started", "stopped"]
    duration: float
    error: BaseException | None = None


@runtime_checkable
class MiddlewareModule(Module, Protocol):
    """A module that watches the others: it starts before them and stops after them. Registered like a module."""

    def on_module_lifecycle(self, event: ModuleLifecycleEvent) -> None:
        """Take note of a regular module that started or stopped.

        Called after the fact, in the order of registration. An exception is logged and changes nothing; a call that
        hangs is given up after a second, and this middleware is not called again.
        """
        ...
