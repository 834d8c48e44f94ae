"""Mistakes in registering are named exactly, and at once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from mono_sync import ApplicationStateError, DuplicateNameError, InvalidModuleError, RegistrationError
from mono_sync.application import (
    DependentModule,
    HealthCheckableModule,
    MiddlewareModule,
    Module,
    MonoApplication,
    PluginModule,
    ServiceProviderModule,
    UsePluginModule,
    _app,
)
from tests.application.support import (
    Checked,
    Dependent,
    Gate,
    Journal,
    Middleware,
    Part,
    Plugin,
    PluginUser,
    Provider,
)


class Good:
    name = "good"

    def start(self) -> None: ...

    def stop(self) -> None: ...


class GoodPlugin(Good):
    container = None

    def set_container(self, container: Any) -> None: ...


def changed(base: type = Good, **members: Any) -> Any:
    """Return an instance of a class ``Broken`` that differs from a good one; a member given as ... is left out."""
    names = {name for cls in base.__mro__ if cls is not object for name in vars(cls) if not name.startswith("__")}
    kept = {name: getattr(base, name) for name in names if members.get(name) is not ...}
    return type("Broken", (), {**kept, **{name: value for name, value in members.items() if value is not ...}})()


def raising(error: BaseException) -> property:
    def get(self: object) -> str:
        raise error

    return property(get)


async def coroutine_method(self: object) -> None: ...


def generator_method(self: object) -> Iterator[None]:
    yield


async def async_generator_method(self: object) -> Any:
    yield


def method(self: object) -> None: ...


def two_arguments(self: object, first: Any, second: Any) -> None: ...


# --- what is accepted


@pytest.mark.parametrize(
    ("instance", "protocol"),
    [
        (Part(Journal(), "p"), Module),
        (Dependent(Journal(), "p", []), DependentModule),
        (Provider(Journal(), "p"), ServiceProviderModule),
        (PluginUser(Journal(), "p"), UsePluginModule),
        (Plugin(Journal(), "p"), PluginModule),
        (Middleware(Journal(), "p"), MiddlewareModule),
        (Checked(Journal(), "p", None), HealthCheckableModule),
    ],
)
def test_protocols_are_structural_and_checkable_at_run_time(instance: Part, protocol: type) -> None:
    assert isinstance(instance, protocol)
    assert not isinstance(object(), protocol)


def test_name_may_be_a_property(app: MonoApplication) -> None:
    app.register(changed(name=property(lambda self: "orders")))
    assert app.modules == ("orders",)


def test_members_may_be_attributes_of_the_instance(app: MonoApplication) -> None:
    module: Any = type("Loose", (), {})()
    module.name, module.start, module.stop = "loose", lambda: None, lambda: None
    app.register(module)
    assert app.modules == ("loose",)


def test_members_may_come_from_getattr(app: MonoApplication) -> None:
    class Proxy:
        def __getattr__(self, name: str) -> Any:
            if name in ("name", "start", "stop"):
                return getattr(Good(), name)
            raise AttributeError(name)

    proxy: Any = Proxy()
    app.register(proxy)
    assert app.modules == ("good",)


def test_an_optional_method_that_is_none_is_not_there(app: MonoApplication) -> None:
    app.register(changed(set_plugin=None, on_module_lifecycle=None, dependencies=None, set_container=None))
    assert app.modules == ("good",)


def test_optional_arguments_of_methods_are_no_mistake(app: MonoApplication) -> None:
    def start(self: object, *args: Any, verbose: bool = False, **more: Any) -> None: ...

    app.register(changed(start=start))
    assert app.modules == ("good",)


def test_a_plugin_may_set_its_container_property_only_later(app: MonoApplication) -> None:
    app.register_plugin(changed(GoodPlugin, container=raising(RuntimeError("not yet"))), "late")
    assert list(app.plugins) == ["late"]


def test_name_and_dependencies_are_read_once(app: MonoApplication) -> None:
    reads: list[str] = []

    def read(member: str, value: Any) -> property:
        def get(self: object) -> Any:
            reads.append(member)
            return value

        return property(get)

    app.register(Part(Journal(), "base"))
    app.register(
        changed(name=read("name", "orders"), dependencies=read("dependencies", ["base"]), set_dependency_container=two)
    )
    app.start()
    app.stop()
    assert sorted(reads) == ["dependencies", "name"]


def two(self: object, name: str, container: Any) -> None: ...


# --- modules that are none

ASYNC = "is an `async def`, but modules are synchronous"
YIELD = "contains a `yield`, so calling it would do nothing"


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (None, "^None is no module"),
        (Good, r"^Good is a class: register an instance, Good\(\)"),
        (object(), "^object is no module: it has no name"),
        ("orders", "^str is no module: it has no name"),
        (changed(name=...), "^Broken is no module: it has no name"),
        (changed(name=""), "^Broken: name is empty"),
        (changed(name="  "), "^Broken: name is empty"),
        (changed(name="application"), "^Broken: 'application' stands for the application itself"),
        (changed(name=None), "^Broken: name must be a str, not NoneType"),
        (changed(name=7), "^Broken: name must be a str, not int"),
        (changed(name=b"orders"), "^Broken: name must be a str, not bytes"),
        (changed(name=method), "^Broken: name is a method; make it an attribute or a property"),
        (changed(name=raising(ValueError("boom"))), "^Broken: reading 'name' failed: ValueError: boom"),
        (changed(name=raising(AttributeError("typo"))), "^Broken: reading 'name' failed: AttributeError: typo"),
        (changed(name=raising(SystemExit(3))), "^Broken: reading 'name' failed: SystemExit: 3"),
        (changed(name=raising(KeyboardInterrupt())), "^Broken: reading 'name' failed: KeyboardInterrupt"),
        (changed(start=...), r"^Broken is no module: it has no start\(\)"),
        (changed(stop=...), r"^Broken is no module: it has no stop\(\)"),
        (changed(start=None), r"^Broken is no module: it has no start\(\)"),
        (changed(start="now"), "^Broken: start must be a method, not str"),
        (changed(stop=1), "^Broken: stop must be a method, not int"),
        (changed(start=raising(ValueError("boom"))), "^Broken: reading 'start' failed: ValueError: boom"),
        (changed(start=coroutine_method), f"^Broken: start {ASYNC}"),
        (changed(stop=coroutine_method), f"^Broken: stop {ASYNC}"),
        (changed(start=async_generator_method), f"^Broken: start {ASYNC}"),
        (changed(start=generator_method), f"^Broken: start {YIELD}"),
        (changed(stop=generator_method), f"^Broken: stop {YIELD}"),
        (changed(start=two_arguments), r"^Broken: start cannot be called as start\(\): missing"),
        (changed(set_plugin=method), r"^Broken: set_plugin cannot be called as set_plugin\(alias, plugin\): too many"),
        (changed(set_plugin=5), "^Broken: set_plugin must be a method"),
        (changed(register_services=coroutine_method), f"^Broken: register_services {ASYNC}"),
        (changed(register_services=method), r"cannot be called as register_services\(container\)"),
        (changed(health=coroutine_method), f"^Broken: health {ASYNC}"),
        (changed(health=two_arguments), r"cannot be called as health\(\)"),
        (changed(on_module_lifecycle=method), r"cannot be called as on_module_lifecycle\(event\)"),
        (changed(dependencies="base"), r"^Broken: dependencies must be a sequence of names, not one str.*\['base'\]"),
        (changed(dependencies=b"base"), "dependencies must be a sequence of names, not one bytes"),
        (changed(dependencies=method), "dependencies must be a sequence of names, not a method"),
        (changed(dependencies={"a", "b"}), "dependencies must be a sequence of names, not set, so that their order is"),
        (changed(dependencies=iter(["a"])), "dependencies must be a sequence of names, not list_iterator"),
        (changed(dependencies=7), "dependencies must be a sequence of names, not int"),
        (changed(dependencies=["a", 7]), "dependencies must be a sequence of names, which 7 is not"),
        (changed(dependencies=["a", " "]), "dependencies must be a sequence of names, which ' ' is not"),
        (changed(dependencies=raising(ValueError("boom"))), "^Broken: reading 'dependencies' failed: ValueError: boom"),
        (changed(dependencies=["base"]), r"it declares dependencies, so it needs set_dependency_container\("),
        (GoodPlugin(), r"^GoodPlugin has set_container, so it is a plugin: use register_plugin\(plugin, alias\)"),
        (
            changed(on_module_lifecycle=lambda self, event: None, dependencies=["base"]),
            "^Broken: middleware has no use for dependencies: middleware starts in the order",
        ),
    ],
)
def test_what_is_wrong_with_a_module_is_said_at_registration(app: MonoApplication, module: Any, message: str) -> None:
    with pytest.raises(InvalidModuleError, match=message) as caught:
        app.register(module)
    assert isinstance(caught.value, TypeError)
    assert app.modules == ()


def test_what_a_property_raised_is_the_cause(app: MonoApplication) -> None:
    error = ValueError("boom")
    with pytest.raises(InvalidModuleError) as caught:
        app.register(changed(name=raising(error)))
    assert caught.value.__cause__ is error


def test_a_sequence_that_raises_is_named_by_the_type_of_its_module(app: MonoApplication) -> None:
    class Sick(list[str]):
        def __iter__(self) -> Iterator[str]:
            raise ZeroDivisionError("sick")

    with pytest.raises(InvalidModuleError, match="Broken cannot be inspected: ZeroDivisionError: sick"):
        app.register(changed(dependencies=Sick()))


def test_a_name_that_hangs_is_given_up(app: MonoApplication, gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_app, "_INSPECTION_TIMEOUT", 0.1)
    with pytest.raises(InvalidModuleError, match=r"inspection of Broken timed out after 0\.1 s"):
        app.register(changed(name=property(lambda self: gate())))
    assert app.modules == ()


# --- plugins that are none


@pytest.mark.parametrize(
    ("plugin", "alias", "message"),
    [
        (None, "kv", "^None is no module"),
        (GoodPlugin, "kv", r"^GoodPlugin is a class: register an instance, GoodPlugin\(\)"),
        (GoodPlugin(), "", "the alias of plugin GoodPlugin must be a str that is not empty, not ''"),
        (GoodPlugin(), " ", "the alias of plugin GoodPlugin must be a str that is not empty"),
        (GoodPlugin(), None, "the alias of plugin GoodPlugin must be a str that is not empty, not None"),
        (GoodPlugin(), 7, "the alias of plugin GoodPlugin must be a str that is not empty, not 7"),
        (Good(), "kv", r"^Good: it is no plugin, for it has no set_container and no container: use register\(module\)"),
        (changed(GoodPlugin, container=...), "kv", "^Broken: it is no plugin, for it has no container: use"),
        (changed(GoodPlugin, set_container=...), "kv", "^Broken: it is no plugin, for it has no set_container: use"),
        (changed(GoodPlugin, set_container=method), "kv", r"cannot be called as set_container\(container\)"),
        (changed(GoodPlugin, set_container=coroutine_method), "kv", f"^Broken: set_container {ASYNC}"),
        (changed(GoodPlugin, set_container=3), "kv", "^Broken: set_container must be a method"),
        (changed(GoodPlugin, start=...), "kv", r"^Broken is no plugin: it has no start\(\)"),
        (changed(GoodPlugin, name=""), "kv", "^Broken: name is empty"),
        (changed(GoodPlugin), "application", "^Broken: 'application' stands for the application itself"),
        (
            changed(GoodPlugin, dependencies=["a"]),
            "kv",
            "^Broken: a plugin has no use for dependencies: plugins start in the order",
        ),
        (
            changed(GoodPlugin, set_plugin=two_arguments),
            "kv",
            "no use for set_plugin: plugins are not handed to plugins",
        ),
        (
            changed(GoodPlugin, on_module_lifecycle=two),
            "kv",
            "no use for on_module_lifecycle: register middleware with",
        ),
    ],
)
def test_what_is_wrong_with_a_plugin_is_said_at_registration(
    app: MonoApplication, plugin: Any, alias: Any, message: str
) -> None:
    with pytest.raises(InvalidModuleError, match=message):
        app.register_plugin(plugin, alias)
    assert not app.plugins


# --- names that are taken


def test_a_second_module_of_the_same_name_is_refused(app: MonoApplication, journal: Journal) -> None:
    app.register(Part(journal, "orders"))
    with pytest.raises(DuplicateNameError, match="the name 'orders' of Provider is taken by another module, Part"):
        app.register(Provider(journal, "orders"))
    assert app.modules == ("orders",)


def test_a_second_plugin_of_the_same_alias_is_refused(app: MonoApplication, journal: Journal) -> None:
    first = Plugin(journal, "one")
    app.register_plugin(first, "kv")
    with pytest.raises(DuplicateNameError, match="the alias 'kv' of Plugin is taken by another plugin, Plugin"):
        app.register_plugin(Plugin(journal, "two"), "kv")
    assert app.plugin("kv") is first


def test_names_and_aliases_share_one_namespace(app: MonoApplication, journal: Journal) -> None:
    app.register(Part(journal, "orders"))
    app.register_plugin(Plugin(journal, "plugin"), "kv")
    with pytest.raises(DuplicateNameError, match="the alias 'orders' of Plugin is taken by another module"):
        app.register_plugin(Plugin(journal, "plugin"), "orders")
    with pytest.raises(DuplicateNameError, match="the name 'kv' of Part is taken by another plugin"):
        app.register(Part(journal, "kv"))


def test_two_plugins_of_one_kind_and_name_need_only_two_aliases(app: MonoApplication, journal: Journal) -> None:
    app.register_plugin(Plugin(journal, "fs-jetstream"), "primary")
    app.register_plugin(Plugin(journal, "fs-jetstream"), "backup")
    assert list(app.plugins) == ["primary", "backup"]


def test_one_object_is_registered_once(app: MonoApplication, journal: Journal) -> None:
    module, plugin = Part(journal, "orders"), Plugin(journal, "plugin")
    app.register(module)
    app.register_plugin(plugin, "primary")
    with pytest.raises(RegistrationError, match="this Plugin is registered already, as 'primary': make another"):
        app.register_plugin(plugin, "backup")
    with pytest.raises(DuplicateNameError):
        app.register(module)
    module.name = "renamed"
    with pytest.raises(RegistrationError, match="this Part is registered already, as 'orders'"):
        app.register(module)


# --- too late


@pytest.mark.parametrize(
    "register",
    [
        lambda app: app.register(Part(Journal(), "late")),
        lambda app: app.register_plugin(Plugin(Journal(), "p"), "late"),
    ],
)
def test_nothing_is_registered_after_the_start(
    app: MonoApplication, register: Callable[[MonoApplication], None]
) -> None:
    app.start()
    with pytest.raises(ApplicationStateError, match="is RUNNING: register modules and plugins before it") as caught:
        register(app)
    assert caught.value.state == "RUNNING"


def test_nothing_is_registered_after_the_stop(app: MonoApplication, journal: Journal) -> None:
    app.stop()
    with pytest.raises(ApplicationStateError, match="is STOPPED: register modules"):
        app.register(Part(journal, "late"))


def test_nothing_is_registered_by_a_module_that_starts(app: MonoApplication, journal: Journal) -> None:
    errors: list[Exception] = []

    def register() -> None:
        try:
            app.register(Part(journal, "late"))
        except ApplicationStateError as error:
            errors.append(error)

    app.register(Part(journal, "early", start=register))
    app.start()
    assert [str(error) for error in errors] == [
        "application 'mono' is STARTING: register modules and plugins before it starts"
    ]


def test_that_it_comes_too_late_is_said_before_what_is_wrong_with_it(app: MonoApplication) -> None:
    app.start()
    nothing: Any = object()
    with pytest.raises(ApplicationStateError):
        app.register(nothing)


# --- what is registered


def test_modules_and_plugins_are_listed_in_the_order_of_registration(app: MonoApplication, journal: Journal) -> None:
    app.register(Part(journal, "b"))
    app.register_plugin(Plugin(journal, "x"), "q")
    app.register(Middleware(journal, "m"))
    app.register(Part(journal, "a"))
    app.register_plugin(Plugin(journal, "x"), "p")
    assert app.modules == ("b", "m", "a")
    assert list(app.plugins) == ["q", "p"]


@pytest.mark.parametrize("read", [lambda app: app.modules, lambda app: list(app.plugins)])
def test_an_application_begins_with_nothing(app: MonoApplication, read: Callable[[MonoApplication], Any]) -> None:
    assert len(read(app)) == 0


def test_registering_leaves_no_thread(app: MonoApplication, journal: Journal) -> None:
    app.register(Part(journal, "orders"))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("mono_sync-lifecycle")]
