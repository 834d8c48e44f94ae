"""Several threads that share one list of work."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")

_PATIENCE = 2.0
"""Seconds that the threads get to notice that they shall end; a call under way may hold one longer."""


class Cancelled(Exception):  # noqa: N818  # as asyncio's: it ends a thread, it is no fault
    """The work is not to be finished."""


class Feed(Generic[T]):
    """An iterator that several threads share: each item goes to one of them."""

    def __init__(self, items: Iterable[T]) -> None:
        self._items = iter(items)
        self._lock = threading.Lock()
        self._cancelled = threading.Event()

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        self.check()
        with self._lock:
            return next(self._items)

    def cancel(self) -> None:
        """Let every thread end at its next look at the feed."""
        self._cancelled.set()

    def check(self) -> None:
        """Return if the work goes on.

        Raises:
            Cancelled: it does not.
        """
        self.pause(0)

    def pause(self, seconds: float) -> None:
        """Wait for a time.

        Raises:
            Cancelled: the work does not go on.
        """
        if self._cancelled.wait(seconds):
            raise Cancelled


def share(items: Iterable[T], work: Callable[[Feed[T]], R], *, threads: int, name: str) -> list[R]:
    """Run ``work(feed)`` in several threads and return their results.

    The first exception of a thread, or Ctrl-C in the caller, ends them all and is raised. Threads that a call holds are
    not waited for: they are daemons, and the call ends when its connection is closed.
    """
    feed = Feed(items)
    outcomes: queue.SimpleQueue[tuple[R | None, BaseException | None]] = queue.SimpleQueue()

    def run() -> None:
        try:
            outcomes.put((work(feed), None))
        except BaseException as error:
            outcomes.put((None, error))

    workers = [
        threading.Thread(target=run, name=f"mono_sync-demo-{name}-{number}", daemon=True) for number in range(threads)
    ]
    results: list[R] = []
    try:
        for worker in workers:
            worker.start()
        for _ in workers:
            result, error = outcomes.get()
            if error is not None:
                raise error
            results.append(result)  # type: ignore[arg-type]  # without an error it is what `work` returned
    finally:
        feed.cancel()
        end = time.monotonic() + _PATIENCE
        for worker in workers:
            if worker.ident is not None:
                worker.join(max(0.0, end - time.monotonic()))
    return results
