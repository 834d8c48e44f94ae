"""The embedded nats-server: find, start, supervise and stop one that belongs to this process."""

from __future__ import annotations

from mono_sync.server._config import EmbeddedServerConfig
from mono_sync.server._embedded import EmbeddedServer

__all__ = ["EmbeddedServer", "EmbeddedServerConfig"]
