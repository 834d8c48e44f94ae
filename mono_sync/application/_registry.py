"""Everything that was registered with an application."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping

from mono_sync.application._registration import Kind, Registration
from mono_sync.errors import DuplicateNameError, RegistrationError

_owners: dict[int, weakref.ref[Registry]] = {}
"""Whose each registered object is, by the object's identity, while an application runs."""


class Registry:
    """The registrations by name, plugins under their alias, in the order of registration.

    Names and aliases share one namespace: both name services, and an application's health.
    """

    def __init__(self) -> None:
        self._all: Mapping[str, Registration] = {}  # replaced, never changed: readers need no lock

    def add(self, new: Registration) -> None:
        """Add one. The caller keeps others from doing so at the same time.

        Raises:
            DuplicateNameError: name or alias is taken.
            RegistrationError: the same object is registered already.
        """
        what = f"{'alias' if new.kind is Kind.PLUGIN else 'name'} {new.name!r} of {type(new.module).__qualname__}"
        for old in self._all.values():
            if old.name == new.name:
                raise DuplicateNameError(new.name, f"the {what} is taken by {_shown(old)}")
            if old.module is new.module:
                raise RegistrationError(
                    new.name,
                    f"this {type(new.module).__qualname__} is registered already, as {old.name!r}: make another",
                )
        self._all = {**self._all, new.name: new}

    def claim(self) -> None:
        """Keep every other application from starting with one of the same objects.

        Raises:
            RegistrationError: another one runs with it.
        """
        mine = weakref.ref(self)
        for one in self._all.values():
            owner = _owners.setdefault(id(one.module), mine)()
            if owner is None:  # that application was dropped, its objects too: the identity is another object's now
                _owners[id(one.module)] = mine
            elif owner is not self:
                self.release()
                kind = type(one.module).__qualname__
                raise RegistrationError(one.name, f"this {kind} is in use by another application that runs")

    def release(self) -> None:
        """Let other applications use the objects."""
        for one in self._all.values():
            if _owners.get(id(one.module)) == weakref.ref(self):
                del _owners[id(one.module)]

    def get(self, name: str) -> Registration | None:
        """Return the registration of a module's name or a plugin's alias."""
        return self._all.get(name)

    def of(self, *kinds: Kind) -> tuple[Registration, ...]:
        """Return those of some kinds."""
        return tuple(one for one in self._all.values() if one.kind in kinds)

    def __iter__(self) -> Iterator[Registration]:
        """Plugins first."""
        yield from self.of(Kind.PLUGIN)
        yield from self.of(Kind.MIDDLEWARE, Kind.MODULE)

    def explain_missing(self, module: str, dependency: str) -> str:
        """Say why a dependency is no module's name, though something of that name is registered; else empty."""
        for other in self._all.values():
            if other.kind is Kind.PLUGIN and dependency in (other.name, other.own_name):
                user = self._all[module]
                lacks = "" if user.has("set_plugin") else f", a method that {type(user.module).__qualname__} lacks"
                return (
                    f"that is the plugin registered as {other.name!r}. Plugins are no dependencies: they start before "
                    f"all modules and are handed over through set_plugin(alias, plugin){lacks}"
                )
            if other.kind is Kind.MIDDLEWARE and dependency == other.name:
                return "that is middleware, which starts before all modules and cannot be depended on"
        return ""


def _shown(registration: Registration) -> str:
    return f"another {registration.kind.value}, {type(registration.module).__qualname__}"
