"""For how long a call that has failed may still clean up."""

from __future__ import annotations

from typing import Final

from mono_sync._durations import Deadline

MOST: Final = 5.0
LEAST = 0.25


def clean_up_deadline(reason: BaseException | None, deadline: Deadline) -> Deadline:
    """Return how long to clean up for: what is left of a call's deadline, or a moment when nothing is.

    After an interrupt it is a moment as well: whoever presses Ctrl-C does not want to wait.
    """
    interrupted = reason is not None and not isinstance(reason, Exception)
    left = 0.0 if interrupted else deadline.at_most(MOST).remaining or 0.0
    return Deadline(max(left, LEAST))
