"""How an application and its modules are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mono_sync.application._states import ApplicationState


@dataclass(frozen=True, slots=True)
class HealthStatus:
    """What a module says of itself.

    Attributes:
        healthy: whether it can do its work.
        message: for people; empty where there is nothing to say.
        details: anything else, for example counters.

    Raises:
        TypeError: ``healthy`` is no bool.
    """

    healthy: bool
    message: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.healthy, bool):
            raise TypeError(f"healthy must be a bool, not {type(self.healthy).__name__}")


@dataclass(frozen=True, slots=True)
class ModuleHealth:
    """How a module, middleware or plugin is.

    Attributes:
        healthy: whether it can do its work. One that cannot be asked counts as healthy.
        message: what it says; or why it could not be asked.
        details: as in `HealthStatus`.
        supports_health: whether it has a ``health`` method.
    """

    healthy: bool
    message: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)
    supports_health: bool = False


@dataclass(frozen=True, slots=True)
class ApplicationHealth:
    """How an application is.

    Attributes:
        healthy: whether it is RUNNING, connected, and every module is healthy.
        state: the state of the application.
        connected: whether the connection to NATS is up at this moment.
        modules: by name of the module or alias of the plugin, in the order of registration, plugins first; empty unless
            the application is RUNNING.
    """

    healthy: bool
    state: ApplicationState
    connected: bool
    modules: Mapping[str, ModuleHealth]
