"""What modules use to talk to each other."""

from __future__ import annotations

from mono_sync.messaging._container import ServiceContainer

__all__ = ["ServiceContainer"]
