"""A connection with its buckets, and the ways to get one: what scripts and notebooks use without an application."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Unpack

from mono_sync import storage
from mono_sync._durations import DEFAULT, Timeout
from mono_sync.adapter import ConnectionConfig, ConnectionOptions
from mono_sync.connection import CoreConnection
from mono_sync.errors import ConfigurationError
from mono_sync.server import EmbeddedServer, EmbeddedServerConfig
from mono_sync.storage import FSBucketConfig, KVBucket, KVBucketConfig

SERVERS_VARIABLE = "MONO_SYNC_SERVERS"

_FOR_SERVERS = (
    "user",
    "password",
    "token",
    "nkey",
    "credentials",
    "tls",
    "tls_hostname",
    "tls_handshake_first",
)


class Connection(CoreConnection):
    """A connection to NATS with key-value and object buckets. Thread-safe; a context manager. Made by `connect`."""

    def kv(self, bucket: str | KVBucketConfig, *, stale_reads: bool = False, timeout: Timeout = DEFAULT) -> KVBucket:
        """Open a key-value bucket: an existing one by its name, or by a configuration, which creates or updates it.

        Use the name unless you own the bucket. A configuration sets every option, those left out to their defaults: on
        a bucket that exists this undoes what its owner has chosen, and a lower ``history`` or a shorter ``ttl`` deletes
        data.

        Args:
            bucket: its name or configuration.
            stale_reads: of a replicated bucket, let any replica answer reads. That spreads them over the cluster; but a
                replica that lags behind may not know the newest writes, the caller's own included.
            timeout: total deadline.

        Raises:
            BucketNotFoundError: there is none of that name.
            ConfigurationError: not a legal name, or no configuration of a key-value bucket.
            BucketConfigError: the server refuses the configuration.
            UnsupportedByServerError: the server is too old for an option.
        """
        return KVBucket.bind(self, bucket, stale_reads=stale_reads, timeout=timeout)

    def objects(
        self, bucket: str | FSBucketConfig, *, stale_reads: bool = False, timeout: Timeout = DEFAULT
    ) -> storage.ObjectBucket:
        """Open an object bucket: an existing one by its name, or by a configuration, which creates or updates it.

        Use the name unless you own the bucket. A configuration sets every option, those left out to their defaults: on
        a bucket that exists this undoes what its owner has chosen, and a shorter ``ttl`` deletes data.

        Args:
            bucket: its name or configuration.
            stale_reads: as for `kv`.
            timeout: total deadline.

        Raises:
            BucketNotFoundError: there is none of that name.
            ConfigurationError: not a legal name, or no configuration of an object bucket.
            BucketConfigError: the server refuses the configuration.
            UnsupportedByServerError: the server is too old for an option.
        """
        return storage.ObjectBucket.bind(self, bucket, stale_reads=stale_reads, timeout=timeout)


def connect(
    servers: str | Sequence[str] | None = None,
    *,
    server: EmbeddedServerConfig | None = None,
    **options: Unpack[ConnectionOptions],
) -> Connection:
    """Connect and return the open connection; close it, or use it as a context manager.

    Args:
        servers: one or more addresses. None: those in the environment variable ``MONO_SYNC_SERVERS``, and where that is
            not set an embedded server, started for this connection and stopped with it.
        server: options of the embedded server. Unless its ``store_dir`` keeps what it holds, all that is forgotten.
        **options: options of the connection, see `ConnectionConfig`.

    Raises:
        ConfigurationError: an option cannot be right.
        ConnectFailedError: no server accepted us.
        ServerError: the embedded server could not be started.
        UnsupportedByServerError: the embedded server is too old for one of its options.
    """
    try:
        config = ConnectionConfig(**options)
    except TypeError as error:
        raise ConfigurationError(f"not an option of a connection: {error}") from None
    connection = make_connection(servers, server, config)
    connection.open()
    return connection


def make_connection(
    servers: str | Sequence[str] | None, server: EmbeddedServerConfig | None, config: ConnectionConfig | None
) -> Connection:
    """Return a connection that is not open yet. Arguments as for `connect`; nothing is started."""
    _check_type("server", server, EmbeddedServerConfig)
    _check_type("connection", config, ConnectionConfig)
    config = config or ConnectionConfig()
    if servers is not None:
        if not servers:
            raise ConfigurationError("servers names no server; leave it out for an embedded one")
        if config.servers:
            raise ConfigurationError("servers are given twice: as servers and in the options of the connection")
        config = replace(config, servers=servers)
    if server is not None and config.servers:
        raise ConfigurationError("give servers to connect to, or options of an embedded server, not both")
    if server is None and not config.servers and os.environ.get(SERVERS_VARIABLE):
        config = replace(config, servers=os.environ[SERVERS_VARIABLE])
    if config.servers:
        return Connection(config)
    if given := [name for name in _FOR_SERVERS if getattr(config, name)]:
        raise ConfigurationError(f"{', '.join(given)}: of no use without servers; an embedded one needs no credentials")
    return Connection(config, server=EmbeddedServer(server or EmbeddedServerConfig()))


def _check_type(option: str, value: object, kind: type) -> None:
    if value is not None and not isinstance(value, kind):
        raise ConfigurationError(f"{option} must be {kind.__name__} or None, not {type(value).__name__}")
