"""The background thread that hosts the event loop."""

from mono_sync.loop._thread import LoopThread

__all__ = ["LoopThread"]
