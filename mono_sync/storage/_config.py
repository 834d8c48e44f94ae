"""Configuration of buckets: checked before anything is sent, then created or updated on the server."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from time import sleep
from typing import ClassVar, Literal, TypeAlias

from mono_sync._durations import Deadline, Duration, to_seconds, to_ttl
from mono_sync.adapter import ServerInfo
from mono_sync.connection import JetStream, Json
from mono_sync.errors import (
    BucketConfigError,
    BucketNotFoundError,
    ConfigurationError,
    JetStreamAPIError,
)
from mono_sync.storage._names import check_bucket_name

Storage: TypeAlias = Literal["file", "memory"]

STREAM_NOT_FOUND = 10059
_NAME_IN_USE = 10058
_STORE_FAILED = "error creating store"
_FURTHER_ATTEMPTS = 2
_PAUSE = 0.05
_TOO_MANY_CONSUMERS = 10026
_MANY_CONSUMERS = 1_000_000
_MAX_HISTORY = 64
_MAX_REPLICAS = 5
_NANOSECONDS = 1_000_000_000
_MAX_DESCRIPTION = 4096
_INT32, _INT64 = 2**31 - 1, 2**63 - 1
MAX_SECONDS = _INT64 // _NANOSECONDS
"""The longest duration that the server can count, about 292 years."""
_DUPLICATE_WINDOW = 30
_MARKER_TTL = 15 * 60
"""For how long a watcher that was away can still learn that a key has expired."""
_MARKER_TTL_WITH_HISTORY = 1  # the server lets no message with history expire sooner than its marker would


@dataclass(frozen=True, slots=True, eq=False, repr=False)  # its two kinds have their own
class BucketConfig:
    """What both kinds of buckets have; use `KVBucketConfig` or `FSBucketConfig`."""

    name: str
    _: KW_ONLY
    description: str = ""
    ttl: Duration | None = None
    max_bytes: int | None = None
    storage: Storage = "file"
    replicas: int = 1
    compression: bool = False

    prefix: ClassVar[str]

    def __post_init__(self) -> None:
        check_bucket_name(self.name)
        try:
            object.__setattr__(self, "ttl", to_ttl(self.ttl))
        except (TypeError, ValueError) as error:
            raise ConfigurationError(f"bucket {self.name!r}: {error}") from None
        if self.ttl is not None and to_seconds(self.ttl) > MAX_SECONDS:
            raise ConfigurationError(f"bucket {self.name!r}: ttl must be at most {MAX_SECONDS} seconds")
        if not isinstance(self.description, str) or len(json.dumps(self.description)) > _MAX_DESCRIPTION:
            raise ConfigurationError(
                f"bucket {self.name!r}: description must be a str of up to {_MAX_DESCRIPTION} bytes"
            )
        if self.storage not in ("file", "memory"):
            raise ConfigurationError(f"bucket {self.name!r}: storage must be 'file' or 'memory', not {self.storage!r}")
        if not isinstance(self.compression, bool):
            raise ConfigurationError(f"bucket {self.name!r}: compression must be True or False")
        self._check_whole("max_bytes", 1, _INT64, optional=True)
        self._check_whole("replicas", 1, _MAX_REPLICAS)

    def _check_whole(self, option: str, low: int, high: int, *, optional: bool = False) -> None:
        value = getattr(self, option)
        if value is None and optional:
            return
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            rule = f"a whole number, {low} to {high}" + (", or None" if optional else "")
            raise ConfigurationError(f"bucket {self.name!r}: {option} must be {rule}, not {value!r}")

    @property
    def stream(self) -> str:
        """Name of the stream that holds the bucket."""
        return f"{self.prefix}{self.name}"

    def stream_config(self, server: ServerInfo) -> Json:
        """Return the stream's configuration for a server.

        Raises:
            UnsupportedByServerError: the server is too old for an option that is used.
        """
        seconds = to_ttl(self.ttl) or 0
        config: Json = {
            "name": self.stream,
            "description": self.description,
            "retention": "limits",
            "max_bytes": self.max_bytes or -1,
            "max_age": seconds * _NANOSECONDS,
            "duplicate_window": min(seconds or _DUPLICATE_WINDOW, _DUPLICATE_WINDOW) * _NANOSECONDS,
            "storage": self.storage,
            "num_replicas": self.replicas,
            "discard": "new",
            "allow_rollup_hdrs": True,
            "allow_direct": True,
        }
        if self.compression:
            server.require("compression of a bucket", "2.10.0")
        if server.supports("2.10.0"):
            config["compression"] = "s2" if self.compression else "none"
        if server.supports("2.15.0"):  # which allows a stream that does not say how many 1,000 only
            config["max_consumers"] = _MANY_CONSUMERS
        return config


@dataclass(frozen=True, slots=True)
class KVBucketConfig(BucketConfig):
    """Configuration of a key-value bucket; immutable, checked when made.

    It describes the whole bucket: opening an existing one with it sets every option, those left out to their defaults.

    Args:
        name: letters, digits, ``-`` and ``_``.
        description: for people.
        ttl: every key expires this long after it was last written (seconds or ``timedelta``, rounded up to whole
            seconds, at least 1); None: never.
        max_bytes: size of the whole bucket; when it is reached, writes are refused. None: unlimited.
        storage: ``"file"`` or ``"memory"``; it cannot be changed later.
        replicas: copies in a cluster, 1 to 5.
        compression: compress on the server; needs nats-server 2.10.
        history: revisions kept of each key, 1 to 64.
        max_value_size: the largest message in bytes, headers included; the id of each write takes about 45 of them.
            None: as large as the server takes.

    Raises:
        ConfigurationError: an option cannot be right; the message names it.
    """

    _: KW_ONLY
    history: int = 1
    max_value_size: int | None = None

    prefix: ClassVar[str] = "KV_"

    def __post_init__(self) -> None:
        BucketConfig.__post_init__(self)
        self._check_whole("history", 1, _MAX_HISTORY)
        self._check_whole("max_value_size", 1, _INT32, optional=True)

    def stream_config(self, server: ServerInfo) -> Json:
        """Return the stream's configuration for a server (NATS ADR-8)."""
        config = BucketConfig.stream_config(self, server)
        config.update(
            subjects=[f"$KV.{self.name}.>"],
            max_msgs_per_subject=self.history,
            max_msg_size=self.max_value_size or -1,
            deny_delete=True,
        )
        if server.supports("2.11.0"):
            seconds = _MARKER_TTL if self.history == 1 else _MARKER_TTL_WITH_HISTORY
            config.update(allow_msg_ttl=True, subject_delete_marker_ttl=seconds * _NANOSECONDS)
        if server.supports("2.12.0"):
            config["allow_atomic"] = True
        return config


@dataclass(frozen=True, slots=True)
class FSBucketConfig(BucketConfig):
    """Configuration of an object bucket; immutable, checked when made.

    It describes the whole bucket: opening an existing one with it sets every option, those left out to their defaults.

    Args:
        name: letters, digits, ``-`` and ``_``.
        description: for people.
        ttl: every object expires this long after it was stored (seconds or ``timedelta``, rounded up to whole seconds,
            at least 1); None: never.
        max_bytes: size of the whole bucket; when it is reached, writes are refused. None: unlimited.
        storage: ``"file"`` or ``"memory"``; it cannot be changed later.
        replicas: copies in a cluster, 1 to 5.
        compression: compress on the server; needs nats-server 2.10.

    Raises:
        ConfigurationError: an option cannot be right; the message names it.
    """

    prefix: ClassVar[str] = "OBJ_"

    def stream_config(self, server: ServerInfo) -> Json:
        """Return the stream's configuration for a server (NATS ADR-20)."""
        config = BucketConfig.stream_config(self, server)
        config.update(subjects=[f"$O.{self.name}.C.>", f"$O.{self.name}.M.>"])
        if server.supports("2.11.0"):  # no marks where objects expire: other clients take them for descriptions
            config["allow_msg_ttl"] = True
        if server.supports("2.12.0"):
            config["allow_atomic"] = True
        return config


_OPTION_OF = {
    "max_age": "ttl",
    "num_replicas": "replicas",
    "max_msgs_per_subject": "history",
    "max_msg_size": "max_value_size",
}
"""Options that the server knows by another name."""


def ensure_stream(jetstream: JetStream, config: BucketConfig, server: ServerInfo, deadline: Deadline) -> Json:
    """Create the stream of a bucket, or update it where it differs; return the server's description of it.

    Raises:
        BucketConfigError: the server refuses; names the bucket and the fields.
        UnsupportedByServerError: the server is too old for an option.
    """
    wanted = config.stream_config(server)
    try:
        existing = open_stream(jetstream, config.name, config.prefix, deadline)
    except BucketNotFoundError:
        try:
            created = _create_stream(jetstream, wanted, deadline)
        except JetStreamAPIError as error:
            if error.err_code != _NAME_IN_USE:
                raise BucketConfigError(config.name, f"the server refuses to create it: {error.description}") from error
            existing = open_stream(jetstream, config.name, config.prefix, deadline)  # somebody else was faster
        else:
            return created
    present = existing["config"]
    if present.get("sealed"):  # it cannot be changed any more, and need not be, to be read
        return existing
    if present.get("max_consumers", 0) > 0:  # somebody has thought about it
        wanted.pop("max_consumers", None)
    changes = {field: value for field, value in wanted.items() if present.get(field, _absent(value)) != value}
    if not changes:
        return existing
    try:
        updated = _within_account(jetstream.update_stream, present | changes, deadline)
    except JetStreamAPIError as error:
        fields = [_OPTION_OF.get(field, field) for field in changes]
        reason = f"the server refuses to change {', '.join(fields)}: {error.description}"
        raise BucketConfigError(config.name, reason, fields) from error
    return updated


def _create_stream(jetstream: JetStream, config: Json, deadline: Deadline) -> Json:
    """Create a stream, again if its store could not be made.

    A server that has just deleted an account's last stream removes the account's directory, which may be at the moment
    at which it makes a directory for the next one.
    """
    for _ in range(_FURTHER_ATTEMPTS):
        try:
            return _within_account(jetstream.create_stream, config, deadline)
        except JetStreamAPIError as error:
            if not error.description.startswith(_STORE_FAILED):
                raise
        sleep(_PAUSE)
    return _within_account(jetstream.create_stream, config, deadline)


def _within_account(apply: Callable[[Json, Deadline], Json], config: Json, deadline: Deadline) -> Json:
    """Create or update a stream; where its account may have fewer consumers, that limit holds."""
    try:
        return apply(config, deadline)
    except JetStreamAPIError as error:
        if error.err_code != _TOO_MANY_CONSUMERS:
            raise
        return apply({**config, "max_consumers": -1}, deadline)


def open_stream(jetstream: JetStream, bucket: str, prefix: str, deadline: Deadline) -> Json:
    """Return the server's description of an existing bucket's stream.

    Raises:
        BucketNotFoundError: there is none.
    """
    try:
        return jetstream.stream_info(f"{prefix}{bucket}", deadline)
    except JetStreamAPIError as error:
        if error.err_code == STREAM_NOT_FOUND:
            raise BucketNotFoundError(bucket) from error
        raise


def _absent(value: object) -> object:
    """What a field that the server leaves out of its answer means."""
    return type(value)()
