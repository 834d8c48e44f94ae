"""The services that one module offers to others."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Self

from mono_sync.client import Connection
from mono_sync.errors import ClosedError, ConfigurationError, ServiceError, ServiceExistsError, ServiceNotFoundError

_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")


class _Registered:
    """One registration; its identity tells who was first where two threads register the same name."""

    __slots__ = ("service",)

    def __init__(self, service: Any) -> None:
        self.service = service


class _Shelf:
    """The services of one module, shared by its container and the views of it.

    It needs no lock, which a fork could leave held: a registration is one atomic operation of the dict.
    """

    __slots__ = ("closed", "services")

    def __init__(self) -> None:
        self.services: dict[str, _Registered] = {}
        self.closed = False


class ServiceContainer:
    """The services of one module or plugin, by name. Thread-safe.

    The application makes one for every module, middleware and plugin. Its owner registers services in
    ``register_services``; modules that depend on the owner get a view, through which they can look up but not register.
    Any object can be a service. A container keeps its services until the application has stopped, then it is closed.

    Args:
        module: name of the module, or alias of the plugin, that the services belong to.
        connection: the application's connection, open while the module runs.
    """

    __slots__ = ("_connection", "_module", "_shelf", "_view")

    def __init__(self, module: str, connection: Connection) -> None:
        self._module = module
        self._connection = connection
        self._shelf = _Shelf()
        self._view = False

    @property
    def module(self) -> str:
        """Name of the module, or alias of the plugin, that offers the services."""
        return self._module

    @property
    def connection(self) -> Connection:
        """The application's connection."""
        return self._connection

    @property
    def read_only(self) -> bool:
        """Whether this is another module's view, which cannot register."""
        return self._view

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the services, in the order of their registration."""
        return tuple(self._shelf.services.copy())

    def register(self, name: str, service: Any) -> None:
        """Offer a service.

        Args:
            name: lower-case letters and digits, words joined by single hyphens, for example ``"price-list"``.
            service: any object except None.

        Raises:
            ConfigurationError: not such a name, or no service.
            ServiceExistsError: the module has registered a service of this name already.
            ServiceError: the container is another module's.
            ClosedError: the application has stopped.
        """
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ConfigurationError(
                f"module {self._module!r}: the name of a service is kebab-case, such as 'price-list', not {name!r}"
            )
        if service is None:
            raise ConfigurationError(f"module {self._module!r}: service {name!r} is None")
        if self._view:
            reason = f"only module {self._module!r} itself can register service {name!r} in its container"
            raise ServiceError(self._module, name, reason)
        self._check_open()
        mine = _Registered(service)
        if self._shelf.services.setdefault(name, mine) is not mine:
            raise ServiceExistsError(self._module, name)

    def get(self, name: str) -> Any:
        """Return a service.

        Raises:
            ServiceNotFoundError: the module offers none of this name; lists those that it does offer.
            ClosedError: the application has stopped.
        """
        self._check_open()
        found = self._shelf.services.get(name)
        if found is None:
            raise ServiceNotFoundError(self._module, name, self.names)
        return found.service

    def has(self, name: str) -> bool:
        """Return whether the module offers a service of this name."""
        return name in self._shelf.services

    def view(self) -> Self:
        """Return the same services for another module: to look up, not to register."""
        view = type(self)(self._module, self._connection)
        view._shelf, view._view = self._shelf, True  # noqa: SLF001  # of the same class
        return view

    def close(self) -> None:
        """Refuse `register` and `get` from now on, in every view too. The application does this when it has stopped.

        Raises:
            ServiceError: the container is another module's.
        """
        if self._view:
            raise ServiceError(self._module, "", f"only module {self._module!r} itself can close its services")
        self._shelf.closed = True

    def _check_open(self) -> None:
        if self._shelf.closed:
            raise ClosedError(f"the services of module {self._module!r} are closed: its application has stopped")

    def __contains__(self, name: object) -> bool:
        return name in self._shelf.services

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self._shelf.services)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._module!r}: {', '.join(self.names) or 'no services'}>"
