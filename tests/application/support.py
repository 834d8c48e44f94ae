"""Modules that write down what happens to them, and misbehave on request."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from mono_sync.application import HealthStatus, ModuleLifecycleEvent, PluginModule
from mono_sync.messaging import ServiceContainer
from tests.support.threads import Background

BOUND = 20.0  # seconds that a test waits at most for what should happen at once


class Journal(list[str]):
    """What happened, in order; entries such as ``"orders.start"``."""

    def of(self, *methods: str) -> list[str]:
        """Return the entries of some methods only."""
        return [entry for entry in self if entry.rpartition(".")[2] in methods]


class Part:
    """The least that a module is.

    Args:
        journal: where it writes.
        name: its name.
        acts: for a method, what it does after it was written down; an exception is raised, a function called.
    """

    def __init__(self, journal: Journal, name: str, **acts: Callable[[], Any] | BaseException) -> None:
        self.journal = journal
        self.name = name
        self.acts = acts

    def happened(self, method: str) -> None:
        self.journal.append(f"{self.name}.{method}")
        act = self.acts.get(method)
        if isinstance(act, BaseException):
            raise act
        if act is not None:
            act()

    def start(self) -> None:
        self.happened("start")

    def stop(self) -> None:
        self.happened("stop")

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}>"


class Dependent(Part):
    def __init__(
        self, journal: Journal, name: str, dependencies: Sequence[str], **acts: Callable[[], Any] | BaseException
    ) -> None:
        super().__init__(journal, name, **acts)
        self.dependencies = dependencies
        self.given: dict[str, ServiceContainer] = {}

    def set_dependency_container(self, name: str, container: ServiceContainer) -> None:
        self.given[name] = container
        self.happened("set_dependency_container")


class Provider(Part):
    own: ServiceContainer

    def register_services(self, container: ServiceContainer) -> None:
        self.own = container
        container.register("greeting", f"hello from {self.name}")
        self.happened("register_services")


class PluginUser(Part):
    def __init__(self, journal: Journal, name: str, **acts: Callable[[], Any] | BaseException) -> None:
        super().__init__(journal, name, **acts)
        self.plugins: list[tuple[str, PluginModule]] = []

    def set_plugin(self, alias: str, plugin: PluginModule) -> None:
        self.plugins.append((alias, plugin))
        self.happened("set_plugin")


class Plugin(Part):
    container: ServiceContainer | None = None

    def set_container(self, container: ServiceContainer) -> None:
        self.container = container
        self.happened("set_container")


class ProviderPlugin(Plugin):
    def register_services(self, container: ServiceContainer) -> None:
        container.register("store", self)
        self.happened("register_services")


class Middleware(Part):
    def __init__(self, journal: Journal, name: str, **acts: Callable[[], Any] | BaseException) -> None:
        super().__init__(journal, name, **acts)
        self.events: list[ModuleLifecycleEvent] = []

    def on_module_lifecycle(self, event: ModuleLifecycleEvent) -> None:
        self.events.append(event)
        self.happened("on_module_lifecycle")


class Checked(Part):
    """Its ``health`` returns or raises what it is given."""

    def __init__(self, journal: Journal, name: str, answer: Any) -> None:
        super().__init__(journal, name)
        self.answer = answer

    def health(self) -> HealthStatus:
        answer = self.answer() if callable(self.answer) else self.answer
        if isinstance(answer, BaseException):
            raise answer
        status: HealthStatus = answer
        return status


class Gate:
    """Code that waits until the test lets it go on; for steps that hang."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self._released = threading.Event()
        self.left = threading.Event()

    def __call__(self) -> None:
        self.entered.set()
        assert self._released.wait(BOUND), "the test never let the step go on"
        self.left.set()

    def when_entered(self, *acts: Callable[[], object]) -> Background:
        """Do something on another thread as soon as the step has been entered."""

        def wait_and_act() -> None:
            self.wait_entered()
            for act in acts:
                act()

        return Background(wait_and_act)

    def wait_entered(self) -> None:
        assert self.entered.wait(BOUND), "the step was never reached"

    def release(self) -> None:
        self._released.set()


def names_started(journal: Iterable[str]) -> list[str]:
    return [entry.rpartition(".")[0] for entry in journal if entry.endswith(".start")]


def names_stopped(journal: Iterable[str]) -> list[str]:
    return [entry.rpartition(".")[0] for entry in journal if entry.endswith(".stop")]
