"""Timeouts and times to live: what callers may pass, and the one deadline that a call is held to."""

from __future__ import annotations

import math
import threading
import time
from datetime import timedelta
from enum import Enum
from typing import Final, TypeAlias


class _Default(Enum):
    DEFAULT = "the connection's default"

    def __repr__(self) -> str:
        return "DEFAULT"


DEFAULT: Final = _Default.DEFAULT
"""Stands for "no timeout given": the connection's default is used. ``None`` means for ever."""

Duration: TypeAlias = float | timedelta


def to_seconds(value: Duration, name: str = "timeout") -> float:
    """Return a duration in seconds.

    Raises:
        TypeError: it is neither a number nor a ``timedelta``.
        ValueError: it is negative, infinite or no number.
    """
    if isinstance(value, float):
        seconds = float(value)
    elif isinstance(value, timedelta):
        seconds = value.total_seconds()
    elif isinstance(value, int) and not isinstance(value, bool):
        try:
            seconds = float(value)
        except OverflowError:  # an integer beyond all floats
            seconds = math.inf
    else:
        raise TypeError(f"{name} must be seconds or a timedelta, not {type(value).__name__}")
    if not 0 <= seconds < math.inf:
        raise ValueError(f"{name} must be a finite number of seconds, not negative: {value!r}")
    return seconds


def to_ttl(value: Duration | None) -> int | None:
    """Return a time to live in whole seconds, rounded up: the server knows no finer ones (NATS ADR-43).

    Raises:
        TypeError: it is neither a number nor a ``timedelta``.
        ValueError: it is shorter than one second.
    """
    if value is None:
        return None
    seconds = to_seconds(value, "ttl")
    if seconds < 1:
        raise ValueError(f"ttl must be at least 1 second, the server's granularity: {value!r}")
    return math.ceil(seconds)


class Deadline:
    """The moment by which a call must have ended, shared by all of its steps.

    Args:
        timeout: seconds or a ``timedelta`` from now; None is for ever.

    Raises:
        TypeError: ``timeout`` is neither a number nor a ``timedelta``.
        ValueError: ``timeout`` is negative, infinite or no number.
    """

    __slots__ = ("_end", "timeout")

    def __init__(self, timeout: Duration | None) -> None:
        self.timeout: float | None = None if timeout is None else to_seconds(timeout)
        self._end = None if self.timeout is None else time.monotonic() + self.timeout

    @classmethod
    def of(cls, timeout: Timeout, default: float | None) -> Deadline:
        """Start the clock of a call that was given ``timeout``; a deadline already running goes on."""
        if timeout is DEFAULT:
            return cls(default)
        return timeout if isinstance(timeout, Deadline) else cls(timeout)

    def plus(self, seconds: float) -> Deadline:
        """Return a deadline that ends later."""
        remaining = self.remaining
        return Deadline(None if remaining is None else remaining + seconds)

    def at_most(self, seconds: float) -> Deadline:
        """Return this deadline, or one in ``seconds`` where that is sooner."""
        remaining = self.remaining
        return self if remaining is not None and remaining <= seconds else Deadline(seconds)

    @property
    def remaining(self) -> float | None:
        """Seconds that are left, never negative, and never more than a lock can wait for; None is for ever."""
        if self._end is None:
            return None
        left = self._end - time.monotonic()
        return min(left, threading.TIMEOUT_MAX) if left > 0 else 0.0

    @property
    def expired(self) -> bool:
        """Whether no time is left."""
        return self._end is not None and time.monotonic() >= self._end


Timeout: TypeAlias = Duration | Deadline | _Default | None
"""Type of every ``timeout=``: seconds or a ``timedelta``; None is for ever; omitted is the connection's default; a
`Deadline` is shared by several calls."""
