"""What happens in which order, and what each module is given."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from typing import Any

import pytest

from mono_sync import (
    ApplicationStateError,
    CircularDependencyError,
    ClosedError,
    MissingDependencyError,
    PluginNotFoundError,
    RegistrationError,
    ServiceError,
    ServiceNotFoundError,
)
from mono_sync.application import ApplicationState, ModuleLifecycleEvent, MonoApplication
from mono_sync.connection import ConnectionState
from mono_sync.messaging import ServiceContainer
from mono_sync.plugins import FSJetStreamPlugin, KVJetStreamPlugin
from mono_sync.storage import FSBucketConfig, KVBucketConfig
from tests.application.conftest import MakeApp
from tests.application.support import (
    Dependent,
    Journal,
    Middleware,
    Part,
    Plugin,
    PluginUser,
    Provider,
    ProviderPlugin,
)


class Everything(PluginUser, Dependent, Provider):
    """A module with every optional method."""

    def __init__(self, journal: Journal, name: str, dependencies: list[str]) -> None:
        Dependent.__init__(self, journal, name, dependencies)
        self.plugins = []


class GreatMiddleware(Middleware, Provider, PluginUser):
    def __init__(self, journal: Journal, name: str) -> None:
        Middleware.__init__(self, journal, name)
        self.plugins = []


def test_the_whole_order_of_start_and_stop(app: MonoApplication, journal: Journal) -> None:
    app.register(Everything(journal, "top", ["base", "other"]))
    app.register(GreatMiddleware(journal, "audit"))
    app.register(Part(journal, "base"))
    app.register_plugin(ProviderPlugin(journal, "kv"), "kv")
    app.register(Provider(journal, "other"))
    app.register_plugin(Plugin(journal, "fs"), "fs")
    app.start()
    assert journal == [
        "kv.set_container",
        "kv.register_services",
        "kv.start",
        "fs.set_container",
        "fs.start",
        "audit.set_plugin",
        "audit.set_plugin",
        "audit.register_services",
        "audit.start",
        "base.start",
        "audit.on_module_lifecycle",
        "other.register_services",
        "other.start",
        "audit.on_module_lifecycle",
        "top.set_plugin",
        "top.set_plugin",
        "top.set_dependency_container",
        "top.set_dependency_container",
        "top.register_services",
        "top.start",
        "audit.on_module_lifecycle",
    ]
    journal.clear()
    app.stop()
    assert journal == [
        "top.stop",
        "audit.on_module_lifecycle",
        "other.stop",
        "audit.on_module_lifecycle",
        "base.stop",
        "audit.on_module_lifecycle",
        "audit.stop",
        "fs.stop",
        "kv.stop",
    ]


def test_the_connection_is_open_as_long_as_anything_runs(app: MonoApplication, journal: Journal) -> None:
    states: list[ConnectionState] = []

    def look() -> None:
        states.append(app.connection.state)

    assert app.connection.state.name == "NEW"
    app.register_plugin(Plugin(journal, "kv", set_container=look, start=look, stop=look), "kv")
    app.register(Part(journal, "orders", start=look, stop=look))
    app.start()
    app.stop()
    assert states == [ConnectionState.CONNECTED] * 5
    assert app.connection.state is ConnectionState.CLOSED


def test_what_modules_published_while_stopping_arrives(make_app: MakeApp) -> None:
    journal = Journal()
    receiver, sender = make_app(name="receiver"), make_app(name="sender")
    sender.register(Part(journal, "last", stop=lambda: sender.connection.publish("mono.test.last", b"words")))
    receiver.start()
    with receiver.connection.inbox(deadline(10)) as inbox:
        subject = inbox.subject
        sender.register(Part(journal, "later", stop=lambda: sender.connection.publish(subject, b"last words")))
        sender.start()
        sender.stop()
        assert inbox.next("the last words").data == b"last words"


def deadline(seconds: float) -> Any:
    from mono_sync._durations import Deadline

    return Deadline(seconds)


# --- plugins


def test_every_plugin_is_handed_over_under_its_alias_in_the_order_of_registration(
    app: MonoApplication, journal: Journal
) -> None:
    user = PluginUser(journal, "user")
    app.register(user)
    plugins = {alias: Plugin(journal, "same-name") for alias in ("zeta", "alpha", "mid")}
    for alias, plugin in plugins.items():
        app.register_plugin(plugin, alias)
    app.start()
    assert user.plugins == list(plugins.items())


def test_a_plugin_gets_a_container_of_its_own_with_the_connection(app: MonoApplication, journal: Journal) -> None:
    first, second = Plugin(journal, "same-name"), Plugin(journal, "same-name")
    app.register_plugin(first, "one")
    app.register_plugin(second, "two")
    app.start()
    assert first.container is not None
    assert second.container is not None
    assert first.container is not second.container
    assert (first.container.module, second.container.module) == ("one", "two")
    assert first.container.connection is app.connection
    assert app.services("one") is first.container


def test_the_storage_plugins_work_in_a_module(app: MonoApplication, journal: Journal) -> None:
    app.register_plugin(KVJetStreamPlugin([KVBucketConfig("order-test-cache", storage="memory")]), "kv")
    app.register_plugin(FSJetStreamPlugin([FSBucketConfig("order-test-files", storage="memory")]), "files")
    read: list[bytes | None] = []

    def work() -> None:
        kv, files = (plugin for _, plugin in user.plugins)
        assert isinstance(kv, KVJetStreamPlugin)
        assert isinstance(files, FSJetStreamPlugin)
        kv.bucket("order-test-cache").set("key", b"value")
        files.bucket("order-test-files").set("name", b"content")
        read.append(kv.bucket("order-test-cache").get("key"))
        read.append(files.bucket("order-test-files").get("name"))

    user = PluginUser(journal, "user", start=work, stop=work)
    app.register(user)
    app.start()
    app.stop()
    assert read == [b"value", b"content"] * 2


def test_a_plugin_is_found_by_its_alias(app: MonoApplication, journal: Journal) -> None:
    plugin = Plugin(journal, "kv-jetstream")
    app.register_plugin(plugin, "cache")
    assert app.plugin("cache") is plugin
    assert dict(app.plugins) == {"cache": plugin}
    app.start()
    app.stop()
    assert app.plugin("cache") is plugin


def test_an_unknown_alias_is_named_with_those_there_are(app: MonoApplication, journal: Journal) -> None:
    app.register_plugin(Plugin(journal, "kv-jetstream"), "cache")
    with pytest.raises(PluginNotFoundError, match="no plugin is registered as 'kv-jetstream'; registered: cache"):
        app.plugin("kv-jetstream")


# --- dependencies and services


def test_a_dependant_finds_the_services_of_its_dependencies_and_cannot_register(
    app: MonoApplication, journal: Journal
) -> None:
    dependant = Dependent(journal, "shop", ["prices", "stock", "prices"])
    app.register(dependant)
    app.register(Provider(journal, "stock"))
    app.register(Provider(journal, "prices"))
    app.start()
    assert list(dependant.given) == ["prices", "stock"]
    assert journal.of("set_dependency_container") == ["shop.set_dependency_container"] * 2
    assert dependant.given["prices"].get("greeting") == "hello from prices"
    assert dependant.given["prices"].module == "prices"
    with pytest.raises(ServiceNotFoundError, match="'stock' offers no service 'tax'; it offers: greeting"):
        dependant.given["stock"].get("tax")
    with pytest.raises(ServiceError, match="only module 'prices' itself"):
        dependant.given["prices"].register("tax", 1)


def test_every_module_has_services_from_its_start_on(app: MonoApplication, journal: Journal) -> None:
    app.register(Part(journal, "plain"))
    app.register(Provider(journal, "prices"))
    app.register(GreatMiddleware(journal, "audit"))
    app.register_plugin(ProviderPlugin(journal, "plugin"), "kv")
    with pytest.raises(ApplicationStateError, match="is CREATED: module 'plain' has no services before it starts"):
        app.services("plain")
    app.start()
    offered = {name: app.services(name).names for name in ("plain", "prices", "audit", "kv")}
    assert offered == {"plain": (), "prices": ("greeting",), "audit": ("greeting",), "kv": ("store",)}


@pytest.mark.parametrize("name", ["", "nobody"])
def test_services_of_an_unknown_module_are_refused(app: MonoApplication, journal: Journal, name: str) -> None:
    app.register(Part(journal, "plain"))
    app.start()
    with pytest.raises(RegistrationError, match=f"no module '{name}' is registered; registered: plain"):
        app.services(name)


def test_after_the_stop_services_are_closed(app: MonoApplication, journal: Journal) -> None:
    dependant = Dependent(journal, "shop", ["prices"])
    provider = Provider(journal, "prices")
    app.register(provider)
    app.register(dependant)
    app.start()
    app.stop()
    for container in (provider.own, dependant.given["prices"], app.services("prices")):
        with pytest.raises(ClosedError):
            container.get("greeting")
    with pytest.raises(ClosedError):
        provider.own.register("tax", 1)


def test_services_can_be_used_until_the_last_module_has_stopped(app: MonoApplication, journal: Journal) -> None:
    found: list[str] = []
    user = Dependent(journal, "shop", ["prices"], stop=lambda: found.append(user.given["prices"].get("greeting")))
    app.register(Provider(journal, "prices"))
    app.register(user)
    app.start()
    app.stop()
    assert found == ["hello from prices"]


def starts_nothing(app: MonoApplication, journal: Journal) -> None:
    assert app.state is ApplicationState.FAILED
    assert journal == ["kv.set_container", "kv.start", "audit.start", "audit.stop", "kv.stop"]


@pytest.fixture
def with_plugin_and_middleware(app: MonoApplication, journal: Journal) -> MonoApplication:
    app.register_plugin(Plugin(journal, "kv"), "store")
    app.register(Middleware(journal, "audit"))
    return app


def test_a_missing_dependency_fails_the_start(with_plugin_and_middleware: MonoApplication, journal: Journal) -> None:
    app = with_plugin_and_middleware
    app.register(Dependent(journal, "shop", ["prices"]))
    with pytest.raises(MissingDependencyError, match="module 'shop' depends on 'prices': no module of that name"):
        app.start()
    starts_nothing(app, journal)


def test_a_circle_of_dependencies_fails_the_start(
    with_plugin_and_middleware: MonoApplication, journal: Journal
) -> None:
    app = with_plugin_and_middleware
    app.register(Dependent(journal, "shop", ["prices"]))
    app.register(Dependent(journal, "prices", ["tax"]))
    app.register(Dependent(journal, "tax", ["shop"]))
    with pytest.raises(CircularDependencyError, match="shop -> prices -> tax -> shop"):
        app.start()
    starts_nothing(app, journal)


class DependentPluginUser(PluginUser, Dependent):
    def __init__(self, journal: Journal, name: str, dependencies: list[str]) -> None:
        Dependent.__init__(self, journal, name, dependencies)
        self.plugins = []


@pytest.mark.parametrize("dependency", ["store", "kv"])
def test_a_plugin_as_dependency_is_explained(
    with_plugin_and_middleware: MonoApplication, journal: Journal, dependency: str
) -> None:
    app = with_plugin_and_middleware
    app.register(DependentPluginUser(journal, "shop", [dependency]))
    with pytest.raises(
        MissingDependencyError,
        match=rf"'shop' depends on '{dependency}': that is the plugin registered as 'store'\. Plugins are no "
        r"dependencies.*handed over through set_plugin\(alias, plugin\)$",
    ):
        app.start()


def test_a_plugin_as_dependency_of_a_module_that_cannot_take_it_names_the_method(
    with_plugin_and_middleware: MonoApplication, journal: Journal
) -> None:
    app = with_plugin_and_middleware
    app.register(Dependent(journal, "shop", ["store"]))
    with pytest.raises(MissingDependencyError, match=r"set_plugin\(alias, plugin\), a method that Dependent lacks$"):
        app.start()


def test_middleware_as_dependency_is_explained(with_plugin_and_middleware: MonoApplication, journal: Journal) -> None:
    app = with_plugin_and_middleware
    app.register(Dependent(journal, "shop", ["audit"]))
    with pytest.raises(MissingDependencyError, match="that is middleware, which starts before all modules and cannot"):
        app.start()


# --- middleware


def test_middleware_is_told_of_every_regular_module(app: MonoApplication, journal: Journal) -> None:
    audit = Middleware(journal, "audit")
    error = ValueError("no")
    app.register(audit)
    app.register(Middleware(journal, "second"))
    app.register_plugin(Plugin(journal, "kv"), "kv")
    pause = threading.Event()
    app.register(Part(journal, "base", start=lambda: pause.wait(0.05)))
    app.register(Part(journal, "broken", stop=error))
    app.start()
    with pytest.raises(ExceptionGroup):
        app.stop()
    assert [(event.name, event.kind, event.error) for event in audit.events] == [
        ("base", "started", None),
        ("broken", "started", None),
        ("broken", "stopped", error),
        ("base", "stopped", None),
    ]
    assert 0.05 <= audit.events[0].duration < 1
    assert all(0 <= event.duration < 0.05 for event in audit.events[1:])


def test_middleware_is_told_of_modules_that_a_failed_start_stops_again(app: MonoApplication, journal: Journal) -> None:
    audit = Middleware(journal, "audit")
    app.register(audit)
    app.register(Part(journal, "base"))
    app.register(Part(journal, "broken", start=ValueError("no")))
    with pytest.raises(RuntimeError):
        app.start()
    assert [(event.name, event.kind) for event in audit.events] == [
        ("base", "started"),
        ("broken", "stopped"),
        ("base", "stopped"),
    ]


def test_a_middleware_hook_that_raises_changes_nothing_and_is_logged(
    app: MonoApplication, journal: Journal, caplog: pytest.LogCaptureFixture
) -> None:
    app.register(Middleware(journal, "audit", on_module_lifecycle=SystemExit("no")))
    second = Middleware(journal, "second")
    app.register(second)
    app.register(Part(journal, "orders"))
    app.start()
    app.stop()
    assert len(second.events) == 2
    assert caplog.text.count("on_module_lifecycle() of 'audit' failed for 'orders': SystemExit: no") == 2


def test_an_event_is_immutable() -> None:
    event: Any = ModuleLifecycleEvent("orders", "started", 0.1)
    with pytest.raises(AttributeError):
        event.name = "other"


# --- where code of modules runs


def test_modules_run_on_the_thread_of_the_application(make_app: MakeApp, journal: Journal) -> None:
    app = make_app(name="shop")
    threads: list[threading.Thread] = []

    def look() -> None:
        threads.append(threading.current_thread())

    app.register_plugin(Plugin(journal, "kv", set_container=look, start=look), "kv")
    app.register(Middleware(journal, "audit", start=look, on_module_lifecycle=look))
    app.register(PluginUser(journal, "orders", set_plugin=look, start=look))
    app.start()
    assert {thread.name for thread in threads} == {"mono_sync-lifecycle-shop"}
    assert len(set(threads)) == 1
    assert threads[0].daemon
    assert not threads[0].is_alive(), "it ends with the start"


def test_modules_see_the_context_variables_of_the_caller(app: MonoApplication, journal: Journal) -> None:
    language = contextvars.ContextVar("language", default="none")
    seen: list[str] = []
    app.register(
        Part(journal, "orders", start=lambda: seen.append(language.get()), stop=lambda: seen.append(language.get()))
    )
    language.set("de")
    app.start()
    language.set("fr")
    app.stop()
    assert seen == ["de", "fr"]


def test_start_and_stop_work_inside_a_running_event_loop(app: MonoApplication, journal: Journal) -> None:
    """As in a notebook."""
    app.register(Part(journal, "orders", start=lambda: asyncio.run(asyncio.sleep(0))))

    async def cell() -> float:
        app.start()
        rtt = app.connection.rtt()
        app.stop()
        return rtt

    assert asyncio.run(cell()) > 0
    assert journal == ["orders.start", "orders.stop"]


def test_two_applications_run_in_one_process(make_app: MakeApp) -> None:
    journals = Journal(), Journal()
    apps = [make_app(name=name) for name in ("one", "two")]
    containers: list[ServiceContainer] = []
    for app, journal in zip(apps, journals, strict=True):
        app.register(Provider(journal, "same-name"))
        app.start()
        containers.append(app.services("same-name"))
    assert apps[0].connection is not apps[1].connection
    assert containers[0] is not containers[1]
    apps[0].stop()
    assert (apps[0].state, apps[1].state) == (ApplicationState.STOPPED, ApplicationState.RUNNING)
    assert containers[1].get("greeting") == "hello from same-name"
    assert apps[1].connection.rtt() > 0
    assert journals[1] == ["same-name.register_services", "same-name.start"]
