"""What both storage plugins do: make their buckets at the start, hand them out, and give them back at the stop."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Generic, TypeVar

from mono_sync.connection import CoreConnection
from mono_sync.errors import BucketNotFoundError, ClosedError, ConfigurationError
from mono_sync.messaging import ServiceContainer
from mono_sync.storage import BucketConfig

ConfigT = TypeVar("ConfigT", bound=BucketConfig)
BucketT = TypeVar("BucketT")


class BucketPlugin(ABC, Generic[ConfigT, BucketT]):
    """A plugin that owns buckets of one kind. Thread-safe once started.

    Every instance works on its own list of buckets, so one kind can be registered several times under different
    aliases. Buckets that the configuration no longer names stay on the server.

    Args:
        buckets: the buckets; at least one, each name once.

    Raises:
        ConfigurationError: no bucket, a name twice, or something that is no configuration of this kind of bucket.
    """

    name: str
    _config_type: type[ConfigT]

    def __init__(self, buckets: Sequence[ConfigT]) -> None:
        kind = self._config_type.__name__
        if isinstance(buckets, BucketConfig) or not isinstance(buckets, Sequence):
            raise ConfigurationError(f"{type(self).__name__} takes a list of {kind}")
        if not buckets:
            raise ConfigurationError(f"{type(self).__name__} needs at least one {kind}")
        for config in buckets:
            if not isinstance(config, self._config_type):
                raise ConfigurationError(f"{type(self).__name__} takes {kind}, not {type(config).__name__}")
        names = [config.name for config in buckets]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ConfigurationError(f"{type(self).__name__}: bucket {', '.join(twice)} is configured more than once")
        self._configs = tuple(buckets)
        self._container: ServiceContainer | None = None
        self._buckets: Mapping[str, BucketT] = MappingProxyType({})

    def set_container(self, container: ServiceContainer) -> None:
        """Take the container, through which the application's connection is reached."""
        self._container = container

    @property
    def container(self) -> ServiceContainer | None:
        """The plugin's own service container; None before the application has given it one."""
        return self._container

    def start(self) -> None:
        """Create each bucket, or update it to its configuration.

        Raises:
            BucketConfigError: the server refuses; names bucket and field.
            UnsupportedByServerError: the server is too old for an option.
            ClosedError: the plugin is not registered with an application.
        """
        if self._container is None:
            raise ClosedError(f"plugin {self.name!r} has no container: register it with an application and start that")
        connection = self._container.connection
        buckets = {config.name: self._open(connection, config) for config in self._configs}
        self._buckets = MappingProxyType(buckets)

    def stop(self) -> None:
        """Hand out no more buckets. Those handed out work until the connection is closed."""
        self._buckets = MappingProxyType({})

    @abstractmethod
    def _open(self, connection: CoreConnection, config: ConfigT) -> BucketT: ...

    def bucket(self, name: str) -> BucketT:
        """Return a bucket.

        Raises:
            BucketNotFoundError: it is not configured for this plugin.
            ClosedError: the plugin is not started, or stopped again.
        """
        if not self.has_bucket(name):
            raise BucketNotFoundError(name, [config.name for config in self._configs])
        bucket = self._buckets.get(name)
        if bucket is None:
            raise ClosedError(f"plugin {self.name!r} is not running: bucket {name!r} is there between start and stop")
        return bucket

    @property
    def buckets(self) -> Mapping[str, BucketT]:
        """The buckets by name, in the order of the configuration; empty while the plugin is not running."""
        return self._buckets

    def has_bucket(self, name: str) -> bool:
        """Return whether the plugin is configured with such a bucket."""
        return any(config.name == name for config in self._configs)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {', '.join(config.name for config in self._configs)}>"
