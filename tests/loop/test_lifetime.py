"""Start and stop under bad conditions: slow, stuck, interrupted, forked, at the same time."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import random
import signal
import sys
import threading
import types
import warnings
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mono_sync._durations import Deadline
from mono_sync.errors import ClosedError, LoopStartError, OperationTimeoutError
from mono_sync.loop import LoopThread
from tests.fixtures.leaks import open_files
from tests.fixtures.waiting import wait_until
from tests.loop.conftest import MakeLoop
from tests.loop.helpers import GRACE, Clock, answer, call, for_ever, run
from tests.support.threads import Background

InBackground = Callable[..., Background]


class SlowStart:
    """A loop factory that waits for a gate."""

    def __init__(self, gate: threading.Event) -> None:
        self.reached = threading.Event()
        self._gate = gate

    def __call__(self) -> asyncio.AbstractEventLoop:
        self.reached.set()
        self._gate.wait(30)
        return asyncio.new_event_loop()


# --- start


def test_a_call_with_a_short_deadline_does_not_wait_for_a_slow_start(
    make_loop: MakeLoop, gate: threading.Event
) -> None:
    loop = make_loop(start_timeout=30, loop_factory=SlowStart(gate))
    clock = Clock()
    with pytest.raises(LoopStartError, match="enable-threads"):
        run(loop, answer, timeout=0.05)
    assert clock.seconds < 0.05 + GRACE
    gate.set()
    assert run(loop, answer) == 42  # the thread came up late, and serves


@pytest.mark.parametrize(
    ("version", "options", "refused"),
    [
        ((2, 0, 21, 0, ""), {"master": True}, True),
        ((2, 0, 21, 0, ""), {"enable-threads": True}, False),
        ((2, 0, 21, 0, ""), {"threads": b"2"}, False),
        ((2, 0, 31, 0, ""), {"master": True}, False),
    ],
)
def test_under_uwsgi_without_threads_the_start_is_refused_with_the_cure(
    monkeypatch: pytest.MonkeyPatch, version: tuple[int, ...], options: dict[str, object], refused: bool
) -> None:
    """uWSGI tells by a module that exists only in it; there the thread would start, and stop between requests."""
    uwsgi = types.ModuleType("uwsgi")
    uwsgi.__dict__.update(version_info=version, opt=options)
    monkeypatch.setitem(sys.modules, "uwsgi", uwsgi)
    loop = LoopThread()
    if refused:
        with pytest.raises(LoopStartError, match=r"stand still between requests.*enable-threads = true"):
            run(loop, answer)
    else:
        assert run(loop, answer) == 42
    loop.stop()


def test_all_who_wait_for_a_start_that_fails_learn_why(
    make_loop: MakeLoop, background: InBackground, gate: threading.Event
) -> None:
    reached = threading.Event()

    def factory() -> asyncio.AbstractEventLoop:
        reached.set()
        gate.wait(10)
        raise OSError("no more files")

    loop = make_loop(loop_factory=factory)
    waiting = [background(loop.start) for _ in range(4)]
    assert reached.wait(10)
    gate.set()
    for one in waiting:
        with pytest.raises(LoopStartError, match="no more files"):
            one.result()


def test_stop_during_the_start_is_bounded_and_the_late_thread_ends(
    background: InBackground, gate: threading.Event, caplog: pytest.LogCaptureFixture
) -> None:
    slow = SlowStart(gate)
    loop = LoopThread("mono_sync-late", loop_factory=slow)
    starting = background(loop.start)
    assert slow.reached.wait(10)
    clock = Clock()
    loop.stop(timeout=0.1)
    assert clock.seconds < 0.1 + GRACE
    assert "mono_sync-late did not end within 0.1 s" in caplog.text
    gate.set()
    with pytest.raises(ClosedError):
        starting.result()
    wait_until(lambda: "mono_sync-late" not in {thread.name for thread in threading.enumerate()}, "it has ended")


def test_an_interrupted_start_leaves_the_object_usable(make_loop: MakeLoop, gate: threading.Event) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    loop = make_loop(loop_factory=SlowStart(gate))
    previous = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        clock = Clock()
        with pytest.raises(KeyboardInterrupt):
            loop.start()
        assert clock.seconds < 2
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    gate.set()
    assert run(loop, answer) == 42


# --- stop


def test_stop_wakes_who_waits_for_a_stuck_loop(
    background: InBackground, gate: threading.Event, caplog: pytest.LogCaptureFixture
) -> None:
    loop, stuck = LoopThread(), threading.Event()

    def block_here() -> None:
        stuck.set()
        gate.wait(30)

    blocking = background(lambda: call(loop, block_here, timeout=None))
    assert stuck.wait(10)
    waiting = background(lambda: run(loop, answer, timeout=None))
    clock = Clock()
    loop.stop(timeout=0.2)
    assert clock.seconds < 0.2 + GRACE
    for one in (blocking, waiting):
        with pytest.raises(ClosedError, match="not running any more"):
            one.result(2)
    assert "block_here" in caplog.text


def test_stop_is_bounded_by_a_task_that_refuses_to_end_which_is_named(
    background: InBackground, gate: threading.Event, caplog: pytest.LogCaptureFixture
) -> None:
    loop, begun = LoopThread("mono_sync-stubborn"), threading.Event()

    async def refuse() -> None:
        begun.set()
        while not gate.is_set():
            try:
                await asyncio.sleep(0.01)
            except asyncio.CancelledError:
                continue

    waiting = background(lambda: run(loop, refuse, timeout=None))
    assert begun.wait(10)
    clock = Clock()
    loop.stop(timeout=0.3)
    assert clock.seconds < 0.3 + GRACE
    with pytest.raises(ClosedError):
        waiting.result(2)
    assert "cancelled, but refuse to end: test run" in caplog.text
    gate.set()
    wait_until(lambda: "mono_sync-stubborn" not in {thread.name for thread in threading.enumerate()}, "it has ended")
    gc.collect()
    assert "destroyed" not in caplog.text


def test_stop_gives_tasks_time_to_clean_up(background: InBackground) -> None:
    loop, begun, steps = LoopThread(), threading.Event(), list[str]()

    async def clean_up() -> None:
        try:
            await for_ever(begun)
        finally:
            await asyncio.sleep(0.3)
            steps.append("cleaned up")

    waiting = background(lambda: run(loop, clean_up, timeout=None))
    assert begun.wait(10)
    loop.stop()
    assert steps == ["cleaned up"]
    with pytest.raises(ClosedError):
        waiting.result()


def test_stop_also_ends_tasks_that_tasks_begin_while_they_end() -> None:
    loop, ended = LoopThread(), list[str]()

    async def last_word() -> None:
        try:
            await for_ever()
        finally:
            late.append(asyncio.create_task(for_ever(None, ended)))
            await asyncio.sleep(0)

    async def begin() -> None:
        late.append(asyncio.create_task(last_word()))
        await asyncio.sleep(0)

    late: list[asyncio.Task[None]] = []
    run(loop, begin)
    loop.stop()
    assert all(task.done() for task in late)
    assert ended == ["cancelled"]


def test_a_job_in_the_executor_that_cannot_be_interrupted_does_not_hold_stop(
    gate: threading.Event, caplog: pytest.LogCaptureFixture
) -> None:
    """As a name look-up whose server does not answer."""
    loop, begun = LoopThread("mono_sync-jobs"), threading.Event()

    def job() -> None:
        begun.set()
        gate.wait(30)

    async def look_up() -> None:
        await asyncio.get_running_loop().run_in_executor(None, job)

    with pytest.raises(OperationTimeoutError):
        run(loop, look_up, timeout=0.3)
    assert begun.is_set()
    clock = Clock()
    loop.stop()
    assert clock.seconds < 0.5 + GRACE
    assert "mono_sync-jobs-worker_0 is busy" in caplog.text
    assert "did not end" not in caplog.text


def test_calls_that_a_stop_overtakes_all_end(background: InBackground) -> None:
    for _ in range(50):
        loop = LoopThread()
        loop.start()
        ready = threading.Barrier(9)

        def submit(loop: LoopThread = loop, ready: threading.Barrier = ready) -> str:
            ready.wait()
            try:
                run(loop, for_ever, timeout=None)
            except ClosedError:
                return "closed"
            return "impossible"

        callers = [background(submit) for _ in range(8)]
        ready.wait()
        loop.stop()
        assert [caller.result() for caller in callers] == ["closed"] * 8


def test_stops_at_the_same_time_begin_only_one_end(caplog: pytest.LogCaptureFixture, background: InBackground) -> None:
    for _ in range(50):
        loop = LoopThread()
        loop.start()
        for stopping in [background(loop.stop) for _ in range(6)]:
            stopping.result()
    gc.collect()
    assert caplog.text == ""


@settings(deadline=None, max_examples=40)
@given(
    st.lists(
        st.tuples(st.sampled_from(["instant", "short", "long", "fail", "plain"]), st.sampled_from([0.0, 0.001, 0.01])),
        max_size=20,
    ),
    st.floats(0, 0.02),
)
def test_whenever_stop_comes_every_call_ends_in_a_documented_way(calls: list[tuple[str, float]], pause: float) -> None:
    loop = LoopThread()

    async def work(kind: str) -> str:
        if kind == "fail":
            raise ValueError(kind)
        await asyncio.sleep({"short": 0.005, "long": 60.0}.get(kind, 0.0))
        return kind

    def one(kind: str, timeout: float) -> str:
        try:
            return str(
                call(loop, str, kind, timeout=timeout) if kind == "plain" else run(loop, work, kind, timeout=timeout)
            )
        except (OperationTimeoutError, ClosedError, ValueError) as error:
            return type(error).__name__

    running = [Background(one, kind, timeout) for kind, timeout in calls]
    threading.Event().wait(pause)
    loop.stop()
    allowed = {"OperationTimeoutError", "ClosedError"}
    for (kind, _), caller in zip(calls, running, strict=True):
        assert caller.result(5) in allowed | {"ValueError" if kind == "fail" else kind}


def test_two_hundred_lives_with_tasks_and_timeouts_leave_no_thread_and_no_file() -> None:
    LoopThread().stop()
    threads, files = threading.active_count(), open_files()
    for _ in range(200):
        loop = LoopThread()
        with pytest.raises(OperationTimeoutError):
            run(loop, for_ever, timeout=0.001)
        loop.stop()
    assert threading.active_count() <= threads  # fewer, where another test's thread has ended by itself
    assert len(open_files()) <= len(files)


# --- owners that are dropped


def test_a_dropped_owner_lets_its_tasks_end_in_good_order(caplog: pytest.LogCaptureFixture) -> None:
    loop: LoopThread | None = LoopThread("mono_sync-dropped")
    assert loop is not None
    ended: list[str] = []
    tasks: list[asyncio.Task[None]] = []

    async def begin() -> None:
        tasks.append(asyncio.create_task(for_ever(None, ended)))
        await asyncio.sleep(0)

    run(loop, begin)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        loop = None
        gc.collect()
    assert [warning.category for warning in caught] == [ResourceWarning]
    wait_until(lambda: "mono_sync-dropped" not in {thread.name for thread in threading.enumerate()}, "it has ended")
    assert ended == ["cancelled"]
    assert caplog.text == ""


@pytest.mark.parametrize("use", [LoopThread.start, LoopThread.stop])
def test_an_owner_that_was_stopped_or_never_started_is_dropped_without_a_word(
    use: Callable[[LoopThread], None],
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loop = LoopThread()
        if use is LoopThread.start:
            loop.start()
            loop.stop()
        del loop
        gc.collect()


# --- forks


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_child_forked_at_any_moment_is_refused_and_has_a_loop_of_its_own_at_once(
    background: InBackground, gate: threading.Event
) -> None:
    """Forked while other threads start, call and stop, so that whatever they hold is inherited as held."""
    loop = LoopThread()

    def keep_busy(seed: int) -> None:
        chance = random.Random(seed)
        while not gate.is_set():
            own = LoopThread()
            run(own, answer)
            run(loop, asyncio.sleep, chance.random() / 1000)
            own.stop()

    busy = [background(keep_busy, seed) for seed in range(3)]
    run(loop, answer)
    for _ in range(20):
        child = os.fork()
        if child == 0:
            signal.alarm(20)  # should it hang
            _in_the_child(loop)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    gate.set()
    for one in busy:
        one.result()
    assert run(loop, answer) == 42
    loop.stop()


def _in_the_child(inherited: LoopThread) -> None:
    code = 1
    try:
        with pytest.raises(Exception, match="belongs to process"):
            run(inherited, answer, timeout=None)
        inherited.stop()
        own = LoopThread()
        assert run(own, answer) == 42
        own.stop()
        code = 0
    finally:
        os._exit(code)


def test_the_name_of_an_operation_names_its_task(loop: LoopThread) -> None:
    async def name() -> str:
        task = asyncio.current_task()
        assert task is not None
        return task.get_name()

    assert loop.run(name, deadline=Deadline(5), operation="get key") == "get key"


def test_what_fails_after_its_caller_has_gone_is_logged_for_debugging(
    loop: LoopThread, gate: threading.Event, caplog: pytest.LogCaptureFixture
) -> None:
    began = threading.Event()

    async def fail_late() -> None:
        began.set()
        while not gate.is_set():
            try:
                await asyncio.sleep(0.01)
            except asyncio.CancelledError:
                continue
        raise SystemExit

    with caplog.at_level(logging.DEBUG, "mono_sync.loop"):
        while not began.is_set():  # on a busy machine the deadline may pass before the loop gets to it
            with pytest.raises(OperationTimeoutError):
                run(loop, fail_late, timeout=0.2)
        gate.set()
        wait_until(lambda: "test run failed with SystemExit after its caller had gone" in caplog.text, "logged")
    assert run(loop, answer) == 42
