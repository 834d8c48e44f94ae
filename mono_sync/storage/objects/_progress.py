"""Who is told how far a transfer has got."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeAlias, runtime_checkable


@runtime_checkable
class ProgressBar(Protocol):
    """What shows progress; a bar of tqdm is one.

    Attributes:
        total: bytes in all, which is set where it is known.
    """

    total: float | None

    def update(self, n: int, /) -> object:
        """Take so many bytes more as done."""


Progress: TypeAlias = Callable[[int, int | None], object] | ProgressBar
"""A function of the bytes done so far and in all, None where that is not known; or a `ProgressBar`."""


class Reporter:
    """Tells somebody, in the calling thread, how far a transfer has got; nobody, where nobody asks.

    Args:
        progress: who wants to know.
        total: bytes in all, where that is known.

    Attributes:
        is_heard: whether anybody wants to know.

    Raises:
        TypeError: it is neither a function nor a `ProgressBar`.
    """

    def __init__(self, progress: Progress | None, total: int | None) -> None:
        self._done = 0
        self._total = total
        self._bar: ProgressBar | None = None
        self._function: Callable[[int, int | None], object] | None = None
        if isinstance(progress, ProgressBar):
            self._bar = progress
            if total is not None:
                progress.total = total
        elif callable(progress):
            self._function = progress
        elif progress is not None:
            raise TypeError(f"progress must be a function or have total and update(n), not {type(progress).__name__}")
        self.is_heard: bool = progress is not None

    def report(self, done: int) -> None:
        """Tell that so many bytes are done, if that is more than last time."""
        more = done - self._done
        if more <= 0:
            return
        self._done = done
        if self._bar is not None:
            self._bar.update(more)
        elif self._function is not None:
            self._function(done, self._total)

    def report_all(self, size: int) -> None:
        """Tell that all that there is, perhaps nothing, is done."""
        if size:
            self.report(size)
        elif self._bar is not None:
            self._bar.total = 0
        elif self._function is not None:
            self._function(0, 0)
