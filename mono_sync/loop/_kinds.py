"""The event loops that a loop thread can run."""

from __future__ import annotations

import asyncio
import importlib.util


def has_uvloop() -> bool:
    """Return whether uvloop is installed."""
    return importlib.util.find_spec("uvloop") is not None


def new_event_loop(*, uvloop: bool | None = None) -> asyncio.AbstractEventLoop:
    """Return a loop of uvloop's if True, of asyncio's if False, and if None one of uvloop's where that is installed."""
    if uvloop is False:
        return asyncio.new_event_loop()
    try:
        from uvloop import new_event_loop as new_uvloop  # noqa: PLC0415  # optional, and nobody pays for it unused
    except ImportError:
        if uvloop:
            raise
        return asyncio.new_event_loop()
    return new_uvloop()
