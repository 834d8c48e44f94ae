"""The short ways: a call that is begun where it is made, and a function that nobody waits for."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from mono_sync import BlockingCallError, ClosedError, OperationTimeoutError
from mono_sync._durations import Deadline
from mono_sync.loop import LoopThread
from tests.loop.conftest import MakeLoop


def exchange(loop: LoopThread, begin: Any, timeout: float | None = 20) -> Any:
    return loop.exchange(begin, deadline=Deadline(timeout), operation="test")


def test_it_begins_in_the_calling_thread_and_ends_where_it_is_completed(loop: LoopThread) -> None:
    begun: list[threading.Thread] = []

    def begin(call: Any) -> None:
        begun.append(threading.current_thread())
        loop.post(call.succeed, 5)

    assert exchange(loop, begin) == 5
    assert begun == [threading.current_thread()]


def test_only_the_first_completion_counts(loop: LoopThread) -> None:
    def begin(call: Any) -> None:
        call.succeed(1)
        call.succeed(2)
        call.fail(ValueError())

    assert exchange(loop, begin) == 1


def test_its_error_is_raised_also_that_of_beginning(loop: LoopThread) -> None:
    with pytest.raises(ZeroDivisionError):
        exchange(loop, lambda call: call.fail(ZeroDivisionError()))
    with pytest.raises(ValueError, match="begin"):
        exchange(loop, lambda _: (_ for _ in ()).throw(ValueError("begin")).send(None))


def test_who_gave_up_no_longer_waits(loop: LoopThread) -> None:
    calls: list[Any] = []
    with pytest.raises(OperationTimeoutError, match=r"^test timed out after 0\.02 s$"):
        exchange(loop, calls.append, timeout=0.02)
    assert not calls[0].waits
    calls[0].succeed("late")


def test_a_stop_ends_it(loop: LoopThread) -> None:
    begun = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(exchange, loop, lambda _: begun.set(), None)
        assert begun.wait(20)
        loop.stop()
        with pytest.raises(ClosedError):
            waiting.result(20)


def test_the_loop_thread_itself_is_refused(loop: LoopThread) -> None:
    with pytest.raises(BlockingCallError):
        loop.call(lambda: exchange(loop, lambda call: call.succeed(1)), deadline=Deadline(20), operation="test")


def test_post_does_not_wait_and_tells_whether_there_is_a_loop(make_loop: MakeLoop) -> None:
    loop = make_loop()
    assert not loop.post(int), "nothing has started it"
    loop.start()
    free, done = threading.Event(), threading.Event()
    assert loop.post(free.wait, 20)
    assert loop.post(done.set)
    assert not done.is_set()
    free.set()
    assert done.wait(20)
    loop.stop()
    assert not loop.post(int)
