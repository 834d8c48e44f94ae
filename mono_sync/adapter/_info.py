"""What a server says of itself when a client connects."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mono_sync.errors import UnsupportedByServerError

_NUMBERS = re.compile(r"(\d+)\.(\d+)(?:\.(\d+))?")


@functools.lru_cache
def _version_tuple(version: str) -> tuple[int, int, int]:
    match = _NUMBERS.match(version)
    return (int(match[1]), int(match[2]), int(match[3] or 0)) if match else (0, 0, 0)


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """The server that a connection talks to.

    Attributes:
        id: its identity, another one after each start.
        name: its name, generated unless configured.
        version: its version, for example ``"2.15.0"``.
        max_payload: the most bytes that payload and headers of one message may have.
        jetstream: whether JetStream is enabled on this server.
        cluster: name of its cluster; empty for a single server.
        client_id: its number for this connection.
        url: its address, without credentials.
    """

    id: str
    name: str
    version: str
    max_payload: int
    jetstream: bool
    cluster: str
    client_id: int
    url: str

    @classmethod
    def from_wire(cls, info: Mapping[str, Any], url: str) -> ServerInfo:
        """Read the INFO message."""
        return cls(
            id=str(info.get("server_id", "")),
            name=str(info.get("server_name", "")),
            version=str(info.get("version", "")),
            max_payload=int(info.get("max_payload", 1 << 20)),
            jetstream=bool(info.get("jetstream", False)),
            cluster=str(info.get("cluster", "")),
            client_id=int(info.get("client_id", 0)),
            url=url,
        )

    def require(self, feature: str, version: str) -> None:
        """Do nothing if the server is at least of that version.

        Raises:
            UnsupportedByServerError: it is older.
        """
        if _version_tuple(self.version) < _version_tuple(version):
            raise UnsupportedByServerError(feature, version, self.version or "of unknown version")

    def supports(self, version: str) -> bool:
        """Return whether the server is at least of that version."""
        return _version_tuple(self.version) >= _version_tuple(version)
