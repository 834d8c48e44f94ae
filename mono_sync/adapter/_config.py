"""The options of a connection."""

from __future__ import annotations

import os
import ssl
from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import timedelta
from typing import Any, TypedDict

from mono_sync._durations import Duration, to_seconds
from mono_sync.adapter._address import ServerAddress
from mono_sync.adapter._message import check_subject
from mono_sync.errors import ConfigurationError, InvalidSubjectError
from mono_sync.loop import has_uvloop

_DEFAULT_SERVER = "nats://127.0.0.1:4222"
_SECRET = frozenset({"password", "token", "nkey"})


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class ConnectionConfig:
    """Options of a connection to NATS; immutable, checked when made, safe to log.

    Args:
        servers: ``nats://`` or ``tls://`` addresses: a sequence, or one str with commas between them. ``tls://`` means
            that the connection is encrypted or does not come about. Credentials in an address hold for that server
            only. None given: `connect` and `MonoApplication` take those of ``MONO_SYNC_SERVERS`` or start an embedded
            server, a `Connection` made directly takes ``nats://127.0.0.1:4222``.
        name: shown in the server's monitoring.
        user: with ``password``.
        password: with ``user``.
        token: instead of user and password.
        nkey: the NKEY seed: itself as a str, or the file that holds it as a path object. Needs the extra ``nkeys``.
        credentials: file with user JWT and NKEY seed (a ``.creds`` file). Needs the extra ``nkeys``.
        tls: context for TLS connections; None uses the system's certificate authorities.
        tls_hostname: name that the server's certificate must carry, where it differs from the address.
        tls_handshake_first: start TLS before the server speaks, for servers configured so.
        timeout: default deadline of every call, in seconds.
        connect_timeout: total deadline of opening the connection, all servers together, in seconds.
        reconnect_wait: pause before the second attempt in a row at a server, in seconds; it doubles with each further
            one, and is shortened at random by up to a half so that many clients do not return at the same moment.
        reconnect_max_wait: the longest such pause, in seconds.
        max_reconnect_attempts: attempts in a row at each server before the connection closes itself; None is for ever.
        pending_size: bytes that may wait inside the process when the socket takes no more; they are sent later, even
            when their calls have timed out meanwhile. At 0 a call writes only when the socket has taken all earlier
            bytes: no more than the rest of one message waits, and a call that timed out before its turn is never sent.
        ping_interval: seconds between two pings; a server that leaves two unanswered is taken for lost.
        inbox_prefix: first token(s) of the subjects on which answers arrive.
        uvloop: whether the connection's thread runs uvloop's event loop, which answers sooner, or asyncio's; None is
            uvloop's where it is installed, as the extra ``speed`` does.

    Raises:
        ConfigurationError: an option cannot be right; the message names it.
    """

    servers: str | Sequence[str] = ()
    name: str = "mono_sync"
    user: str | None = None
    password: str | None = None
    token: str | None = None
    nkey: str | os.PathLike[str] | None = None
    credentials: str | os.PathLike[str] | None = None
    tls: ssl.SSLContext | None = None
    tls_hostname: str | None = None
    tls_handshake_first: bool = False
    timeout: Duration = 5.0
    connect_timeout: Duration = 5.0
    reconnect_wait: Duration = 0.1
    reconnect_max_wait: Duration = 1.0
    max_reconnect_attempts: int | None = None
    pending_size: int = 0
    ping_interval: Duration = 20.0
    inbox_prefix: str = "_INBOX"
    uvloop: bool | None = None

    def __post_init__(self) -> None:
        self._normalise_servers()
        for name in ("timeout", "connect_timeout", "reconnect_wait", "reconnect_max_wait", "ping_interval"):
            self._normalise_duration(name)
        for name in ("name", "user", "password", "token", "tls_hostname", "inbox_prefix"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, str) or not value):
                raise ConfigurationError(f"{name} must be a str that is not empty")
        self._check_numbers()
        self._check_authentication()
        self._check_tls()
        self._check_inbox_prefix()
        self._check_loop()

    def _check_inbox_prefix(self) -> None:
        try:
            check_subject(self.inbox_prefix)
        except InvalidSubjectError as error:
            raise ConfigurationError(f"inbox_prefix must be a subject: {error}") from None
        if self.inbox_prefix.startswith("$"):
            raise ConfigurationError("inbox_prefix must be no subject of the server's own, which begin with $")

    def _check_loop(self) -> None:
        if not isinstance(self.uvloop, (bool, type(None))):
            raise ConfigurationError("uvloop must be True, False or None")
        if self.uvloop and not has_uvloop():
            raise ConfigurationError('uvloop is not installed: pip install "mono-sync[speed]"')

    def _normalise_servers(self) -> None:
        if not isinstance(self.servers, (str, Sequence)):
            raise ConfigurationError("servers must be a str or a sequence of str")
        given = self.servers.split(",") if isinstance(self.servers, str) else self.servers
        for url in given:
            ServerAddress.parse(url)
        object.__setattr__(self, "servers", tuple(dict.fromkeys(url.strip() for url in given)))

    def _normalise_duration(self, name: str) -> None:
        try:
            seconds = to_seconds(getattr(self, name), name)
        except (TypeError, ValueError) as error:
            raise ConfigurationError(str(error)) from None
        if seconds == 0:
            raise ConfigurationError(f"{name} must be more than 0 seconds")
        object.__setattr__(self, name, seconds)

    def _check_numbers(self) -> None:
        attempts = self.max_reconnect_attempts
        if attempts is not None and (not isinstance(attempts, int) or isinstance(attempts, bool) or attempts < 1):
            raise ConfigurationError("max_reconnect_attempts must be a whole number of at least 1, or None for ever")
        if not isinstance(self.pending_size, int) or isinstance(self.pending_size, bool) or self.pending_size < 0:
            raise ConfigurationError("pending_size must be a number of bytes, not negative")
        if self.reconnect_max < self.reconnect_min:
            raise ConfigurationError("reconnect_max_wait must not be shorter than reconnect_wait")

    def _check_authentication(self) -> None:
        if (self.user is None) != (self.password is None):
            raise ConfigurationError("user and password go together: give both or none")
        methods = [name for name in ("user", "token", "nkey", "credentials") if getattr(self, name) is not None]
        if len(methods) > 1:
            raise ConfigurationError(f"give one way to authenticate, not {' and '.join(methods)}")
        for name in ("nkey", "credentials"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, (str, os.PathLike)) or not os.fspath(value)):
                raise ConfigurationError(f"{name} must be a str or a path that is not empty")

    def _check_tls(self) -> None:
        if self.tls is not None and not isinstance(self.tls, ssl.SSLContext):
            raise ConfigurationError("tls must be an ssl.SSLContext")

    @property
    def addresses(self) -> tuple[ServerAddress, ...]:
        """The servers, parsed, each once."""
        return tuple(ServerAddress.parse(url) for url in self.servers or (_DEFAULT_SERVER,))

    @property
    def call_timeout(self) -> float:
        """``timeout`` in seconds."""
        return to_seconds(self.timeout)

    @property
    def open_timeout(self) -> float:
        """``connect_timeout`` in seconds."""
        return to_seconds(self.connect_timeout)

    @property
    def reconnect_min(self) -> float:
        """``reconnect_wait`` in seconds."""
        return to_seconds(self.reconnect_wait)

    @property
    def reconnect_max(self) -> float:
        """``reconnect_max_wait`` in seconds."""
        return to_seconds(self.reconnect_max_wait)

    @property
    def ping_seconds(self) -> float:
        """``ping_interval`` in seconds."""
        return to_seconds(self.ping_interval)

    def __repr__(self) -> str:
        """Show what differs from the defaults, without credentials."""
        shown = []
        for option in fields(self):
            value: Any = getattr(self, option.name)
            if option.name == "servers" and value:
                value = ",".join(address.url for address in self.addresses)
            elif value == option.default:
                continue
            elif option.name in _SECRET:
                shown.append(f"{option.name}=***")
                continue
            elif isinstance(value, timedelta):
                value = value.total_seconds()
            shown.append(f"{option.name}={value!r}")
        return f"ConnectionConfig({', '.join(shown)})"


class ConnectionOptions(TypedDict, total=False):
    """The options of `ConnectionConfig` as keyword arguments, servers aside."""

    name: str
    user: str | None
    password: str | None
    token: str | None
    nkey: str | os.PathLike[str] | None
    credentials: str | os.PathLike[str] | None
    tls: ssl.SSLContext | None
    tls_hostname: str | None
    tls_handshake_first: bool
    timeout: Duration
    connect_timeout: Duration
    reconnect_wait: Duration
    reconnect_max_wait: Duration
    max_reconnect_attempts: int | None
    pending_size: int
    ping_interval: Duration
    inbox_prefix: str
    uvloop: bool | None
