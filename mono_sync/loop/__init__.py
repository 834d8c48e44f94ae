"""The background thread that hosts the event loop."""

from mono_sync.loop._kinds import has_uvloop, new_event_loop
from mono_sync.loop._thread import LoopThread

__all__ = ["LoopThread", "has_uvloop", "new_event_loop"]
