"""The switch that lets tests do without retries, or without their waits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(slots=True, eq=False, repr=False)
class Rules:
    """What `retries` says."""

    attempts: int | None = None
    waits: bool = True


_open = [Rules()]  # those of the open `retries()`, the last one holds; append and remove need no lock


def rules_now() -> Rules:
    """Return what holds for a retry that begins now."""
    return _open[-1]


@contextmanager
def retries(*, attempts: int | None = None, waits: bool = True) -> Iterator[None]:
    """Limit every retry of the process that begins inside the ``with``; for tests.

    ``with retries(attempts=1):`` switches retrying off: a conflict becomes `ConflictRetriesExhaustedError` at once, as
    the program would see it in the end. ``with retries(waits=False):`` lets retries run without waiting. Inside each
    other, the inner one alone holds, so that ``with retries():`` is as if there were none; on exit exactly what was
    before holds again, also when threads leave theirs in another order than they entered.

    Args:
        attempts: at most so many, where the policy allows more.
        waits: whether to wait between attempts.

    Raises:
        ValueError: ``attempts`` is less than 1.
    """
    if attempts is not None and attempts < 1:
        raise ValueError(f"attempts must be at least 1, not {attempts}")
    rules = Rules(attempts, waits)
    _open.append(rules)
    try:
        yield
    finally:
        _open.remove(rules)
