"""What was registered, and the checks that it can be used. Runs before anything starts, so mistakes show early."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType
from typing import Any, Final

from mono_sync.application._jobs import describe
from mono_sync.errors import InvalidModuleError


class Kind(Enum):
    """What was registered: decides when it starts and which of its methods are called."""

    PLUGIN = "plugin"
    MIDDLEWARE = "middleware"
    MODULE = "module"


APPLICATION: Final = "application"
"""Owner, in errors, of the steps that are no module's; so no module has this name."""

_ARGUMENTS: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "start": (),
        "stop": (),
        "set_container": ("container",),
        "set_plugin": ("alias", "plugin"),
        "set_dependency_container": ("name", "container"),
        "register_services": ("container",),
        "on_module_lifecycle": ("event",),
        "health": (),
    }
)
"""Every method that the application may call, with the arguments that it passes."""

_REQUIRED: Final = {
    Kind.PLUGIN: ("start", "stop", "set_container"),
    Kind.MIDDLEWARE: ("start", "stop"),
    Kind.MODULE: ("start", "stop"),
}
_NEVER_CALLED: Final = {
    Kind.PLUGIN: {
        "set_plugin": "plugins are not handed to plugins",
        "dependencies": "plugins start in the order of their registration, before all modules",
        "on_module_lifecycle": "register middleware with register()",
    },
    Kind.MIDDLEWARE: {"dependencies": "middleware starts in the order of its registration, before all other modules"},
    Kind.MODULE: {},
}


@dataclass(frozen=True, slots=True, eq=False)
class Registration:
    """A module, middleware or plugin that can be used.

    Attributes:
        name: of the module, or alias of the plugin.
        kind: what it is.
        module: the user's object.
        dependencies: names of modules, as declared.
        hooks: the methods of `_ARGUMENTS` that it has.
        own_name: the name it gives itself; that of a plugin may differ from its alias.
    """

    name: str
    kind: Kind
    module: Any
    dependencies: tuple[str, ...]
    hooks: frozenset[str]
    own_name: str

    def has(self, hook: str) -> bool:
        """Return whether it has this method."""
        return hook in self.hooks


def inspect_module(module: Any) -> Registration:
    """Check a module or middleware, and read its name and dependencies. Runs code of the module.

    Raises:
        InvalidModuleError: says what is wrong with which member.
    """
    shown = _check_instance(module)
    if _exists(module, "set_container", shown):
        raise InvalidModuleError(
            shown, f"{shown} has set_container, so it is a plugin: use register_plugin(plugin, alias)"
        )
    kind = Kind.MIDDLEWARE if _exists(module, "on_module_lifecycle", shown) else Kind.MODULE
    name = _read_name(module, shown)
    _check_reserved(name, shown)
    hooks = _check_members(module, kind, shown)
    dependencies = _read_dependencies(module, shown) if kind is Kind.MODULE else ()
    if dependencies and "set_dependency_container" not in hooks:
        reason = "it declares dependencies, so it needs set_dependency_container(name, container)"
        raise InvalidModuleError(shown, f"{shown}: {reason}")
    return Registration(name, kind, module, dependencies, hooks, name)


def inspect_plugin(plugin: Any, alias: str) -> Registration:
    """Check a plugin. Runs code of the plugin.

    Raises:
        InvalidModuleError: says what is wrong with which member.
    """
    shown = _check_instance(plugin)
    if not isinstance(alias, str) or not alias.strip():
        raise InvalidModuleError(shown, f"the alias of plugin {shown} must be a str that is not empty, not {alias!r}")
    _check_reserved(alias, shown)
    missing = [member for member in ("set_container", "container") if not _exists(plugin, member, shown)]
    if missing:
        reason = f"it is no plugin, for it has no {' and no '.join(missing)}: use register(module) for modules"
        raise InvalidModuleError(shown, f"{shown}: {reason}")
    name = _read_name(plugin, shown)
    return Registration(alias, Kind.PLUGIN, plugin, (), _check_members(plugin, Kind.PLUGIN, shown), name)


def _check_instance(module: Any) -> str:
    if isinstance(module, type):
        name = module.__name__
        raise InvalidModuleError(name, f"{name} is a class: register an instance, {name}()")
    if module is None:
        raise InvalidModuleError("None", "None is no module")
    return type(module).__qualname__


_MISSING: Final = object()


def _read(module: Any, member: str, shown: str) -> Any:
    """Return a member, or `_MISSING`; a property may do anything."""
    try:
        return getattr(module, member)
    except BaseException as error:  # this runs on a thread of ours, so no KeyboardInterrupt is the user's
        if isinstance(error, AttributeError) and not _is_declared(module, member):
            return _MISSING
        raise InvalidModuleError(shown, f"{shown}: reading {member!r} failed: {describe(error)}") from error


def _is_declared(module: Any, member: str) -> bool:
    """Return whether the member exists without asking the module for it.

    Not by `inspect.getattr_static`: in CPython 3.12.1 it keeps every class it has seen, and all that its methods see.
    """
    return member in getattr(module, "__dict__", ()) or any(member in vars(kind) for kind in type(module).__mro__)


def _exists(module: Any, member: str, shown: str) -> bool:
    """Return whether there is such a member; one that is only None in its class is there, and may be set later."""
    if _is_declared(module, member):
        return member == "container" or _read(module, member, shown) is not None
    return _read(module, member, shown) is not _MISSING


def _read_name(module: Any, shown: str) -> str:
    name = _read(module, "name", shown)
    if name is _MISSING:
        raise InvalidModuleError(shown, f"{shown} is no module: it has no name")
    if callable(name):
        raise InvalidModuleError(shown, f"{shown}: name is a method; make it an attribute or a property")
    if not isinstance(name, str):
        raise InvalidModuleError(shown, f"{shown}: name must be a str, not {type(name).__name__}")
    if not name.strip():
        raise InvalidModuleError(shown, f"{shown}: name is empty")
    return name


def _check_reserved(name: str, shown: str) -> None:
    if name == APPLICATION:
        raise InvalidModuleError(shown, f"{shown}: {name!r} stands for the application itself, in its errors")


def _check_members(module: Any, kind: Kind, shown: str) -> frozenset[str]:
    for member, reason in _NEVER_CALLED[kind].items():
        if _exists(module, member, shown):
            user = "a plugin" if kind is Kind.PLUGIN else kind.value
            raise InvalidModuleError(shown, f"{shown}: {user} has no use for {member}: {reason}")
    hooks = {member for member in _ARGUMENTS if _check_method(module, member, shown)}
    for member in _REQUIRED[kind]:
        if member not in hooks:
            raise InvalidModuleError(shown, f"{shown} is no {kind.value}: it has no {member}()")
    return frozenset(hooks)


def _check_method(module: Any, member: str, shown: str) -> bool:
    """Return whether the module has such a method; refuse one that cannot be called as the application calls it."""
    method = _read(module, member, shown)
    if method is _MISSING or method is None:
        return False
    if not callable(method):
        raise InvalidModuleError(shown, f"{shown}: {member} must be a method, not {type(method).__name__}")
    if inspect.iscoroutinefunction(method) or inspect.isasyncgenfunction(method):
        reason = (
            "modules are synchronous. Make it a plain `def`; code that needs asyncio runs it on a thread of its own"
        )
        raise InvalidModuleError(shown, f"{shown}: {member} is an `async def`, but {reason}")
    if inspect.isgeneratorfunction(method):
        raise InvalidModuleError(shown, f"{shown}: {member} contains a `yield`, so calling it would do nothing")
    try:
        inspect.signature(method).bind(*_ARGUMENTS[member])
    except TypeError as error:
        call = f"{member}({', '.join(_ARGUMENTS[member])})"
        raise InvalidModuleError(shown, f"{shown}: {member} cannot be called as {call}: {error}") from None
    except ValueError:
        pass  # a builtin that does not tell its signature
    return True


def _read_dependencies(module: Any, shown: str) -> tuple[str, ...]:
    declared = _read(module, "dependencies", shown)
    if declared is _MISSING or declared is None:
        return ()
    rule = "dependencies must be a sequence of names"
    if callable(declared):
        raise InvalidModuleError(shown, f"{shown}: {rule}, not a method; make it an attribute or a property")
    if isinstance(declared, (str, bytes)):
        raise InvalidModuleError(shown, f"{shown}: {rule}, not one {type(declared).__name__}: write [{declared!r}]")
    if not isinstance(declared, Sequence):
        raise InvalidModuleError(
            shown, f"{shown}: {rule}, not {type(declared).__name__}, so that their order is certain"
        )
    names = tuple(declared)
    for name in names:
        if not isinstance(name, str) or not name.strip():
            raise InvalidModuleError(shown, f"{shown}: {rule}, which {name!r} is not")
    return names
