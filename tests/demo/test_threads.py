"""Work that several threads share."""

from __future__ import annotations

import threading
import time

import pytest

from mono_sync.demo._threads import Cancelled, Feed, share


def test_each_item_goes_to_exactly_one_thread() -> None:
    results = share(range(10_000), list[int], threads=8, name="test")
    assert len(results) == 8
    assert sorted(number for result in results for number in result) == list(range(10_000))


def test_work_runs_in_that_many_threads_at_once() -> None:
    barrier = threading.Barrier(4)

    def work(feed: Feed[int]) -> str:
        barrier.wait(10)
        return threading.current_thread().name

    assert set(share([], work, threads=4, name="test")) == {f"mono_sync-demo-test-{number}" for number in range(4)}


def test_first_error_ends_the_others_and_is_raised() -> None:
    cancelled = threading.Event()

    def work(feed: Feed[int]) -> None:
        if next(feed) == 0:
            raise LookupError("on purpose")
        try:
            feed.pause(30)
        except Cancelled:
            cancelled.set()
            raise

    with pytest.raises(LookupError, match="on purpose"):
        share(range(2), work, threads=2, name="test")
    assert cancelled.is_set()


def test_cancelled_feed_hands_out_nothing_more() -> None:
    feed = Feed(range(3))
    assert next(feed) == 0
    feed.cancel()
    with pytest.raises(Cancelled):
        next(feed)
    with pytest.raises(Cancelled):
        feed.check()


def test_thread_that_is_held_by_a_call_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mono_sync.demo._threads._PATIENCE", 0.1)
    release = threading.Event()

    def work(feed: Feed[int]) -> None:
        if next(feed) == 0:
            raise LookupError("on purpose")
        release.wait(30)

    begun = time.monotonic()
    with pytest.raises(LookupError):
        share(range(2), work, threads=2, name="test")
    release.set()
    assert time.monotonic() - begun < 5
