"""The loop thread: how it starts, carries calls, and ends."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import random
import threading
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mono_sync import ClosedError, Deadline, ForkedError, LoopStartError, LoopThread
from mono_sync._durations import Timeout
from mono_sync.errors import MonoError, OperationTimeoutError
from tests.fixtures.leaks import open_files
from tests.fixtures.threads import standing_threads
from tests.fixtures.waiting import wait_until

NAME = "mono_sync-loop-test"


@pytest.fixture
def loop() -> Iterator[LoopThread]:
    loop = LoopThread(NAME)
    yield loop
    loop.stop()


def soon() -> Deadline:
    return Deadline(10)


async def double(number: int) -> int:
    await asyncio.sleep(0)
    return 2 * number


async def forever(started: threading.Event | None = None, ended: list[str] | None = None) -> None:
    try:
        if started is not None:
            started.set()
        await asyncio.get_running_loop().create_future()
    finally:
        if ended is not None:
            ended.append("ended")


def thread_names() -> list[str]:
    return [thread.name for thread in threading.enumerate()]


# --- start


def test_the_constructor_starts_nothing() -> None:
    LoopThread("mono_sync-loop-unstarted")
    assert "mono_sync-loop-unstarted" not in thread_names()


def test_the_first_call_starts_a_named_daemon_thread(loop: LoopThread) -> None:
    assert not loop.alive
    thread = loop.call(threading.current_thread, deadline=soon(), operation="test")
    assert (thread.name, thread.daemon, loop.alive) == (NAME, True, True)


def test_starting_twice_or_from_many_threads_starts_one_thread(loop: LoopThread) -> None:
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda _: loop.start(), range(64)))
    assert thread_names().count(NAME) == 1


def test_a_loop_that_cannot_be_made_is_a_start_error_and_it_can_be_tried_again() -> None:
    attempts: list[int] = []

    def factory() -> asyncio.AbstractEventLoop:
        attempts.append(1)
        if len(attempts) == 1:
            raise OSError("no more files")
        return asyncio.new_event_loop()

    loop = LoopThread(NAME, loop_factory=factory)
    with pytest.raises(LoopStartError, match="no more files") as caught:
        loop.start()
    assert isinstance(caught.value.__cause__, OSError)
    assert loop.run(double, 2, deadline=soon(), operation="test") == 4
    loop.stop()


def test_a_thread_that_does_not_get_going_is_explained_in_time() -> None:
    go = threading.Event()

    def factory() -> asyncio.AbstractEventLoop:
        go.wait(30)
        return asyncio.new_event_loop()

    loop = LoopThread(NAME, start_timeout=0.2, loop_factory=factory)
    start = time.monotonic()
    with pytest.raises(LoopStartError, match="enable-threads = true"):
        loop.start()
    assert time.monotonic() - start < 2
    go.set()
    wait_until(lambda: NAME not in thread_names(), "the late thread has ended")


def test_a_thread_that_never_runs_is_explained_and_no_hang() -> None:
    start = time.monotonic()
    with standing_threads(), pytest.raises(LoopStartError, match=r"did not run within 0.2 s. Under uWSGI"):
        LoopThread(NAME, start_timeout=0.2).start()
    assert time.monotonic() - start < 2


def test_a_system_without_more_threads_is_a_start_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(LoopStartError, match="can't start new thread"):
        LoopThread(NAME).start()


# --- calls: one by one in test_calls.py


@settings(deadline=None, max_examples=30)
@given(st.lists(st.sampled_from(["value", "error", "timeout", "call"]), max_size=12))
def test_every_call_gets_its_own_outcome(kinds: list[str]) -> None:
    loop = LoopThread(NAME)

    async def fail(number: int) -> int:
        raise ValueError(number)

    def one(number: int, kind: str) -> bool:
        try:
            if kind == "value":
                return loop.run(double, number, deadline=soon(), operation="test") == 2 * number
            if kind == "call":
                return loop.call(str, number, deadline=soon(), operation="test") == str(number)
            if kind == "error":
                loop.run(fail, number, deadline=soon(), operation="test")
            loop.run(forever, deadline=Deadline(0.01), operation=str(number))
        except ValueError as error:
            return kind == "error" and error.args == (number,)
        except OperationTimeoutError as error:
            return kind == "timeout" and error.operation == str(number)
        return False

    try:
        with ThreadPoolExecutor(4) as pool:
            assert all(pool.map(one, range(len(kinds)), kinds))
    finally:
        loop.stop()


# --- end


def test_stop_is_idempotent_and_final(loop: LoopThread) -> None:
    loop.start()
    loop.stop()
    loop.stop()
    assert (loop.alive, loop.closed) == (False, True)
    assert NAME not in thread_names()
    for call in (loop.start, lambda: loop.run(double, 1, deadline=soon(), operation="test")):
        with pytest.raises(ClosedError, match="not running any more"):
            call()


def test_stopping_what_never_started_is_fine() -> None:
    loop = LoopThread(NAME)
    loop.stop()
    with pytest.raises(ClosedError):
        loop.start()


@pytest.mark.parametrize("timeout", [None, timedelta(seconds=5), 1e300])
def test_stop_takes_every_timeout_and_only_by_name(loop: LoopThread, timeout: Timeout) -> None:
    loop.start()
    with pytest.raises(TypeError):
        loop.stop(5)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="timeout must be"):
        loop.stop(timeout=-1)
    assert loop.alive
    loop.stop(timeout=timeout)
    assert NAME not in thread_names()


def test_stop_wakes_those_who_wait_and_lets_their_coroutines_end(loop: LoopThread) -> None:
    started, ended = threading.Event(), list[str]()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(lambda: loop.run(forever, started, ended, deadline=Deadline(None), operation="test"))
        started.wait(5)
        loop.stop()
        assert ended == ["ended"]
        with pytest.raises(ClosedError):
            waiting.result(5)


def test_stop_from_many_threads_at_once(loop: LoopThread) -> None:
    for _ in range(30):
        one = LoopThread(NAME)
        one.start()
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda _, one=one: one.stop(), range(8)))
        assert NAME not in thread_names()


def test_stop_ends_tasks_generators_and_executor_without_a_warning(
    loop: LoopThread, caplog: pytest.LogCaptureFixture
) -> None:
    ended: list[str] = []

    async def generate() -> Any:
        try:
            yield 1
        finally:
            await asyncio.sleep(0)
            ended.append("generator")

    async def busy() -> None:
        background.append(asyncio.create_task(forever(None, ended)))
        generator = generate()
        generators.append(generator)
        await anext(generator)
        await asyncio.get_running_loop().run_in_executor(None, int)

    background: list[asyncio.Task[None]] = []
    generators: list[Any] = []
    loop.run(busy, deadline=soon(), operation="test")
    loop.stop()
    generators.clear()
    background.clear()
    gc.collect()
    assert sorted(ended) == ["ended", "generator"]
    assert caplog.text == ""


def test_a_thread_that_does_not_end_is_reported_with_its_stack(caplog: pytest.LogCaptureFixture) -> None:
    loop, stuck, release = LoopThread(NAME), threading.Event(), threading.Event()

    def stuck_here() -> None:
        stuck.set()
        release.wait(30)

    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(lambda: loop.call(stuck_here, deadline=soon(), operation="test"))
        assert stuck.wait(5)
        start = time.monotonic()
        with caplog.at_level(logging.WARNING, "mono_sync.loop"):
            loop.stop(timeout=0.2)
        assert time.monotonic() - start < 2
        release.set()
        waiting.exception(5)
    assert "stuck_here" in caplog.text
    wait_until(lambda: NAME not in thread_names(), "ended in the end")


def test_two_hundred_lives_leak_nothing() -> None:
    LoopThread(NAME).stop()
    before = open_files()
    for _ in range(200):
        loop = LoopThread(NAME)
        assert loop.run(double, 1, deadline=soon(), operation="test") == 2
        loop.stop()
    assert NAME not in thread_names()
    assert len(open_files()) == len(before)


def test_one_that_nobody_refers_to_says_so_and_ends() -> None:
    loop: LoopThread | None = LoopThread(NAME)
    assert loop is not None
    loop.start()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        loop = None
        gc.collect()
    assert [str(warning.message) for warning in caught if warning.category is ResourceWarning] == [
        f"<LoopThread {NAME!r} running> was never stopped: call stop()"
    ]
    wait_until(lambda: NAME not in thread_names(), "the thread has ended")


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_in_a_forked_child_it_refuses_and_stop_does_nothing(loop: LoopThread) -> None:
    loop.start()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            refused = 0
            for call in (loop.start, lambda: loop.run(double, 1, deadline=soon(), operation="test")):
                try:
                    call()
                except ForkedError:
                    refused += 1
            loop.stop()
            code = 0 if refused == 2 and not loop.alive else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert loop.run(double, 1, deadline=soon(), operation="test") == 2


def test_many_threads_with_short_deadlines_and_a_stop_in_the_middle_all_come_back() -> None:
    loop = LoopThread(NAME)
    outcomes: list[str] = []
    enough = threading.Event()

    def work(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(200):
            try:
                if rng.random() < 0.5:
                    loop.run(asyncio.sleep, rng.random() * 0.004, deadline=Deadline(0.002), operation="test")
                else:
                    assert loop.run(double, seed, deadline=soon(), operation="test") == 2 * seed
                outcomes.append("result")
            except MonoError as error:
                outcomes.append(type(error).__name__)
            if len(outcomes) > 2000:
                enough.set()

    with ThreadPoolExecutor(32) as pool:
        workers = [pool.submit(work, seed) for seed in range(32)]
        enough.wait(30)
        loop.stop()
        for worker in workers:
            worker.result(30)
    assert len(outcomes) == 32 * 200
    assert set(outcomes) == {"result", "OperationTimeoutError", "ClosedError"}


def test_deadlines_take_timedeltas_and_share_their_time() -> None:
    deadline = Deadline.of(timedelta(seconds=5), None)
    assert Deadline.of(deadline, 1.0) is deadline
    assert 4 < (deadline.remaining or 0) <= 5
