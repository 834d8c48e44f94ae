"""How long an object still lives when its description is written anew."""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from typing import Final

from mono_sync.connection import Json, StoredMessage, parse_time
from mono_sync.storage._bucket import server_time

TTL: Final = "Nats-TTL"
_EXPIRES: Final = "Mono-Sync-Expires"
"""When an object expires whose description was written anew: what is left of its time is counted in whole seconds."""
_DURATION: Final = re.compile(r"([\d.]+)(h|ms|m|s)")
_SECONDS: Final = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}


def expires_by_itself(message: StoredMessage) -> bool:
    """Return whether a description has a time of its own, whatever its bucket says."""
    return message.headers.get(TTL, "never").lower() != "never"


def remaining(message: StoredMessage, stream: Json) -> dict[str, str] | None:
    """Return the headers with which a new description lives as long as the one in a message would have.

    So it never outlives the chunks. The server counts, for its clock is the one that dates messages.

    Args:
        message: the present description.
        stream: the server's description of the stream.

    Returns:
        None: its time is up.
    """
    config = stream["config"]
    expires = _expiry(message, config.get("max_age", 0) / 1e9)
    if expires is None or not config.get("allow_msg_ttl"):
        return {}
    left = (expires - server_time(stream)).total_seconds()
    return {TTL: str(max(1, int(left))), _EXPIRES: expires.isoformat()} if left > 0 else None


def _expiry(message: StoredMessage, max_age: float) -> datetime | None:
    if _EXPIRES in message.headers:
        return parse_time(message.headers[_EXPIRES])
    if expires_by_itself(message):
        max_age = _seconds(message.headers[TTL])
    return message.time + timedelta(seconds=max_age) if max_age else None


def _seconds(ttl: str) -> float:
    """Read what the server has taken as a TTL: seconds, or as Go writes durations."""
    return float(ttl) if ttl.isdecimal() else sum(float(n) * _SECONDS[unit] for n, unit in _DURATION.findall(ttl))
