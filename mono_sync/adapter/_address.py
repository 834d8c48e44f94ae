"""Server addresses: what a user may write, and what of it may be shown."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

from mono_sync.errors import ConfigurationError

_DEFAULT_PORT = 4222
_SCHEMES = ("nats", "tls")


@dataclass(frozen=True, slots=True)
class ServerAddress:
    """One server: where it listens, whether TLS is a must, and the credentials that its URL carried."""

    scheme: str
    host: str
    port: int
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    token: str | None = field(default=None, repr=False)

    @classmethod
    def parse(cls, url: str) -> ServerAddress:
        """Parse ``nats://host:port``, ``tls://host`` or ``host:port``.

        ``user:password@`` or ``token@`` may stand before the host. User, password and token
        may be percent-encoded.

        Raises:
            ConfigurationError: it is no such address. The message never repeats credentials.
        """
        if not isinstance(url, str):
            raise ConfigurationError(f"a server address must be a str, not {type(url).__name__}")
        text = url.strip()
        shown = text.rpartition("@")[2]  # whatever stands before may be a secret, also where it was not encoded
        try:
            parts = urlsplit(text if "://" in text else f"nats://{text}")
            host, port = parts.hostname, parts.port
        except ValueError:  # its text may repeat a password
            reason = "host or port is not valid; in user, password and token percent-encode / ? # @"
            raise ConfigurationError(f"invalid server address {shown!r}: {reason}") from None
        if parts.scheme not in _SCHEMES:
            raise ConfigurationError(f"invalid server address {shown!r}: the scheme must be nats:// or tls://")
        if not host or re.search(r"\s", host):
            raise ConfigurationError(f"invalid server address {shown!r}: it names no host")
        if parts.path.strip("/") or parts.query or parts.fragment:
            raise ConfigurationError(f"invalid server address {shown!r}: nothing may follow the port")
        if port == 0:
            raise ConfigurationError(f"invalid server address {shown!r}: port 0 is no port")
        user = None if parts.username is None else unquote(parts.username)
        if parts.password is None:  # a name alone is a token, as in every NATS client
            return cls(parts.scheme, host, port or _DEFAULT_PORT, token=user or None)
        return cls(parts.scheme, host, port or _DEFAULT_PORT, user=user, password=unquote(parts.password))

    @property
    def url(self) -> str:
        """The address without credentials."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"

    @property
    def location(self) -> str:
        """Host and port, the part that identifies a server in the pool."""
        return self.url.partition("://")[2]

    def __str__(self) -> str:
        return self.url
