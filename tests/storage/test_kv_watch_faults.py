"""Watchers whose connection breaks, whose server dies, whose bucket vanishes, whose reader is interrupted."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

import mono_sync
from mono_sync import (
    BucketNotFoundError,
    ConnectionClosedError,
    ConnectionState,
    Entry,
    ForkedError,
    KVBucket,
    KVBucketConfig,
    MonoError,
    OperationTimeoutError,
    Watcher,
)
from mono_sync._durations import Deadline
from mono_sync.adapter import Listening
from mono_sync.connection import _follower, _pulling
from mono_sync.connection._inbox import Question
from mono_sync.server import EmbeddedServer
from tests.fixtures.processes import Program
from tests.fixtures.servers import RawServer, RunNatsServer
from tests.fixtures.waiting import wait_until
from tests.storage.conftest import NewKV
from tests.storage.helpers import CutProxy, raw_kv, write_at_once
from tests.support.threads import Background

CONFIG = "jetstream: enabled"


def revisions(entries: list[Entry]) -> list[int]:
    return [entry.revision for entry in entries]


@pytest.fixture
def server(run_nats_server: RunNatsServer, any_binary: str) -> RawServer:
    return run_nats_server(CONFIG, binary=any_binary)


@contextlib.contextmanager
def bucket_of(server: RawServer, **options: Any) -> Iterator[KVBucket]:
    with mono_sync.connect(server.url, name="watch") as connection:
        yield connection.kv(KVBucketConfig("b", **options))


def blocked_in(watcher: Watcher) -> Background:
    """Return a thread that waits for the next entry, once its pull has arrived."""
    reading = Background(lambda: next(watcher))
    consumer = watcher._follower._consumer
    assert consumer is not None

    def is_pulling() -> bool:
        return bool(consumer._asked) and consumer.caught_up

    wait_until(is_pulling, "it pulls")
    return reading


# --- lost connections


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize(
    ("step", "occurrence"),
    [
        (b"$JS.API.CONSUMER.CREATE", 1),
        (b"$JS.API.STREAM.INFO.KV_b ", 2),  # the first belongs to opening the bucket
        (b"$JS.API.CONSUMER.MSG.NEXT", 1),
        (b"$JS.API.CONSUMER.MSG.NEXT", 2),
        (b"$JS.API.CONSUMER.MSG.NEXT", 3),
    ],
)
@pytest.mark.parametrize("history", [1, 5])
def test_connection_that_breaks_at_any_step_costs_no_entry(
    server: RawServer, step: bytes, occurrence: int, after: bool, history: int
) -> None:
    with bucket_of(server, history=history) as kv, CutProxy(server.url) as proxy:
        write_at_once(kv, (f"k{number}" for number in range(1500)))
        with mono_sync.connect(proxy.url, name="cut") as connection:
            proxy.cut_at(step, occurrence=occurrence, after=after)
            with connection.kv("b").watch_all() as watcher:
                assert revisions(watcher.snapshot(timeout=10)) == list(range(1, 1501))
                kv.set("k0", b"v")
                assert watcher.next().revision == 1501
                kv.set("k1", b"v")
                assert watcher.next().revision == 1502
        assert proxy.cuts == 1


def test_updates_only_misses_nothing_though_the_connection_broke_before_the_first(server: RawServer) -> None:
    with bucket_of(server, history=5) as kv, CutProxy(server.url) as proxy:
        kv.set("k", b"before")
        with mono_sync.connect(proxy.url) as connection, connection.kv("b").watch_all(updates_only=True) as watcher:
            proxy.cut()
            for _ in range(3):
                kv.set("k", b"v")
            assert revisions([watcher.next() for _ in range(3)]) == [2, 3, 4]


def test_blocked_watcher_catches_up_after_a_cut(server: RawServer) -> None:
    with bucket_of(server, history=5) as kv, CutProxy(server.url) as proxy:  # noqa: SIM117  # one line would be too long
        with mono_sync.connect(proxy.url) as connection, connection.kv("b").watch_all() as watcher:
            for number in range(1, 6):
                reading = blocked_in(watcher)
                proxy.cut()
                kv.set("k", b"v")
                assert reading.result(2).revision == number


@pytest.mark.parametrize("history", [1, 5])
def test_watcher_catches_up_within_two_seconds_of_the_return_of_its_server(server: RawServer, history: int) -> None:
    with bucket_of(server, history=history) as kv, kv.watch_all() as watcher:
        seen: list[int] = []
        reading = Background(lambda: seen.extend(entry.revision for entry in watcher))
        for number in range(1, 4):
            kv.set("k", b"v")
            wait_until(lambda number=number: seen == list(range(1, number + 1)), "seen")  # type: ignore[misc]
            server.kill()
            server.start()
            wait_until(lambda: kv._connection.is_connected, "connected")
        returned = time.monotonic()
        kv.set("k", b"v")
        wait_until(lambda: seen == [1, 2, 3, 4], "caught up")
        assert time.monotonic() - returned < 2
        watcher.stop()
        reading.result()


def test_server_that_dies_in_the_middle_of_the_initial_state_costs_nothing(server: RawServer) -> None:
    with bucket_of(server, history=3) as kv:
        write_at_once(kv, (f"k{number % 3000}" for number in range(6000)))
        with kv.watch_all() as watcher:
            entries = [watcher.next() for _ in range(1000)]
            server.kill()
            server.start()
            entries += watcher.snapshot(timeout=20)
            assert revisions(entries) == list(range(3001, 6001))


def test_polls_find_their_way_back_to_a_server_that_was_restarted(server: RawServer) -> None:
    with bucket_of(server) as kv, kv.watch_all() as watcher:
        kv.set("k", b"v")
        assert watcher.next().revision == 1
        server.kill()
        with pytest.raises(OperationTimeoutError):
            watcher.next(timeout=0)
        server.start()
        kv.set("k", b"v")

        def poll() -> Entry | None:
            with contextlib.suppress(OperationTimeoutError):
                return watcher.next(timeout=0)
            return None

        assert wait_until(poll, "polled", timeout=5).revision == 2  # type: ignore[union-attr]


def test_a_server_that_falls_silent_is_asked_again(server: RawServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_pulling, "_HEARTBEAT", 0.2)
    with bucket_of(server) as kv, kv.watch_all() as watcher:
        reading = blocked_in(watcher)
        consumer = watcher._follower._consumer
        assert consumer is not None
        server.pause()
        wait_until(lambda: watcher._follower._consumer is not consumer, "it was given up")
        server.resume()
        kv.set("k", b"v", timeout=20)
        assert reading.result().revision == 1


def test_an_idle_watcher_outlives_its_pulls(any_kv: KVBucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_pulling, "_LIVE_TIME", 0.3)
    monkeypatch.setattr(_pulling, "_HEARTBEAT", 0.1)
    monkeypatch.setattr(_pulling, "_PATIENCE", 200)  # heartbeats may be late on a busy machine
    with any_kv.watch_all() as watcher:
        reading = blocked_in(watcher)
        consumer = watcher._follower._consumer
        assert consumer is not None
        wait_until(lambda: consumer._numbers > 6, "some pulls have ended")
        any_kv.set("k", b"v")
        assert reading.result().revision == 1
        assert watcher._follower._consumer is consumer


def test_consumer_that_the_server_has_forgotten_is_made_anew(any_new_kv: NewKV) -> None:
    kv = any_new_kv(history=5)
    raw = raw_kv(kv)
    with kv.watch_all() as watcher:
        for expected in range(1, 4):
            (name,) = wait_until(raw.consumers, "there is one")
            reading = blocked_in(watcher) if expected > 1 else None  # once it waits, once it is not read
            raw.api(f"CONSUMER.DELETE.{{stream}}.{name}")
            kv.set("k", b"v")
            assert (reading.result(2) if reading else watcher.next()).revision == expected


def test_a_message_that_is_lost_on_its_way_is_fetched_again(any_kv: KVBucket) -> None:
    with any_kv.watch_all() as watcher:
        reading = blocked_in(watcher)
        consumer = watcher._follower._consumer
        assert consumer is not None
        link = any_kv._connection._session.link  # type: ignore[union-attr]
        listening = link._inboxes.pop(consumer.name)
        any_kv.set("lost", b"v")
        any_kv._connection.flush()
        link._inboxes[consumer.name] = listening
        any_kv.set("arrives", b"v")
        assert reading.result().key == "lost"
        assert watcher.next().key == "arrives"


# --- buckets that vanish


def test_bucket_that_is_deleted_ends_the_iteration_at_once(any_kv: KVBucket) -> None:
    with any_kv.watch_all() as blocked, any_kv.watch_all() as unread, any_kv.watch_all() as waiting:
        reading = blocked_in(blocked)
        raw_kv(any_kv).delete()
        # Without a look of its own it would take two heartbeats, 10 s, where the server drops the pull.
        assert isinstance(reading.error(3), BucketNotFoundError)
        for watcher in (blocked, unread, waiting):
            with pytest.raises(BucketNotFoundError) as caught:
                watcher.next(timeout=1)
            assert caught.value.bucket == any_kv.name


@pytest.mark.parametrize("lost", [1, 2], ids=["the pull", "all"])
def test_bucket_that_takes_a_question_along_ends_the_iteration_soon(
    any_kv: KVBucket, monkeypatch: pytest.MonkeyPatch, lost: int
) -> None:
    silent = Listening("nobody.answers", lambda message: None, lambda error: None)
    any_kv._connection.start_listening(silent, Deadline(5))
    questions = _pulling.PullConsumer._questions

    def unanswered(consumer: _pulling.PullConsumer, tag: str) -> list[Question]:
        asked = questions(consumer, tag)
        is_pull = consumer._stage is _pulling._Stage.PULL
        lose = asked[:lost] if is_pull else []
        return [*[("nobody.answers", data, block, answer) for _, data, block, answer in lose], *asked[len(lose) :]]

    with any_kv.watch_all() as watcher:
        monkeypatch.setattr(_pulling.PullConsumer, "_questions", unanswered)
        reading = blocked_in(watcher)
        raw_kv(any_kv).delete()
        assert isinstance(reading.error(5), BucketNotFoundError)


def test_bucket_that_is_deleted_while_reconnecting_ends_the_iteration(server: RawServer) -> None:
    with bucket_of(server) as kv, CutProxy(server.url) as proxy:  # noqa: SIM117  # one line would be too long
        with mono_sync.connect(proxy.url) as connection, connection.kv("b").watch_all() as watcher:
            reading = blocked_in(watcher)
            proxy.stall()
            proxy.cut()
            raw_kv(kv).delete()
            proxy.resume()
            assert isinstance(reading.error(5), BucketNotFoundError)


def test_watch_of_a_bucket_that_is_gone_says_so(any_kv: KVBucket) -> None:
    raw_kv(any_kv).delete()
    with pytest.raises(BucketNotFoundError):
        any_kv.watch_all()


@pytest.mark.parametrize("options", [{}, {"updates_only": True}, {"include_history": True}, {"resume_from": 2}])
def test_bucket_that_was_made_anew_is_begun_with_from_its_first_revision(
    any_new_kv: NewKV, options: dict[str, Any]
) -> None:
    kv = any_new_kv(history=2)
    for _ in range(3):
        kv.set("old", b"v")
    with kv.watch_all(**options) as watcher:
        watcher.snapshot()
        assert watcher.position == 3
        reading = blocked_in(watcher)
        raw_kv(kv).delete()
        assert isinstance(reading.error(), BucketNotFoundError)
        kv = any_new_kv(name=kv.name, history=2)
        for number in range(5):  # goes further than the old one
            kv.set(f"new{number}", b"v")
        assert revisions([watcher.next() for _ in range(5)]) == [1, 2, 3, 4, 5]
        assert watcher.position == 5


def test_memory_bucket_that_is_made_anew_after_a_restart_is_begun_with_again(server: RawServer) -> None:
    with bucket_of(server, storage="memory") as kv, kv.watch_all() as watcher:
        for number in range(5):
            kv.set(f"old{number}", b"v")
        assert len([watcher.next() for _ in range(5)]) == 5
        server.kill()
        server.start()
        made_anew = kv._connection.kv(KVBucketConfig("b", storage="memory"), timeout=10)  # type: ignore[attr-defined]
        made_anew.set("new", b"v")
        assert watcher.next().key == "new"


# --- closed connections


def test_connection_that_is_closed_ends_the_iteration_at_once(server: RawServer) -> None:
    with bucket_of(server) as kv:
        kv.set("k", b"v")
        with kv.watch_all() as watcher, kv.watch_all() as unread:
            assert watcher.next().key == "k"
            reading = Background(lambda: next(watcher))
            waiting = Background(lambda: unread.wait_synced(timeout=None))
            wait_until(lambda: watcher.synced, "it waits")
            kv._connection.close()
            assert isinstance(reading.error(1), ConnectionClosedError)
            assert isinstance(waiting.error(2), ConnectionClosedError)
            for one in (watcher, unread):
                with pytest.raises(ConnectionClosedError):
                    one.next()
                with pytest.raises(ConnectionClosedError):
                    list(one)


@pytest.mark.parametrize("end", ["stop", "close"])
def test_watcher_ends_at_once_also_while_there_is_no_server(server: RawServer, end: str) -> None:
    with bucket_of(server) as kv, kv.watch_all() as watcher:
        reading = Background(lambda: list(watcher))
        connection = kv._connection
        wait_until(lambda: watcher._follower._consumer is not None, "it reads")
        server.kill()
        wait_until(lambda: connection.state is ConnectionState.RECONNECTING, "it is lost")
        started = time.monotonic()
        if end == "stop":
            watcher.stop()
            assert reading.result(2) == []
        else:
            connection.close()
            assert isinstance(reading.error(2), ConnectionClosedError)
        assert time.monotonic() - started < 2


def test_one_whose_connection_is_closed_needs_no_stop(server: RawServer) -> None:
    with bucket_of(server) as kv:
        watcher = kv.watch_all()
    del watcher  # warnings are errors


# --- interrupts and forks


class Interrupted(BaseException):
    """Raised in the middle of a read."""


@pytest.mark.parametrize("place", ["before", "after"])
@pytest.mark.parametrize("step", range(8))
def test_interrupt_at_any_step_loses_nothing(
    any_new_kv: NewKV, monkeypatch: pytest.MonkeyPatch, step: int, place: str
) -> None:
    kv = any_new_kv(history=3)
    for number in range(4):
        kv.set(f"k{number}", b"v")
    with kv.watch_all() as watcher:
        poll, polls = mono_sync.connection.Inbox.poll, iter(range(1000))

        def interrupted(*args: Any) -> Any:
            number = next(polls)
            if number == step and place == "before":
                raise Interrupted
            message = poll(*args)
            if number == step:
                raise Interrupted
            return message

        monkeypatch.setattr(mono_sync.connection.Inbox, "poll", interrupted)
        found: list[int] = []
        interrupts = 0
        while len(found) < 5:
            if len(found) == 4 and kv.get("k4") is None:
                kv.set("k4", b"v")
            try:
                found.append(watcher.next().revision)
            except Interrupted:
                interrupts += 1
        assert found == [1, 2, 3, 4, 5]
        assert interrupts <= 1


def test_interrupts_do_not_delay_what_comes_after_them(any_kv: KVBucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_follower, "_LONGEST_PAUSE", 60.0)
    monkeypatch.setattr(_follower, "_SHORTEST_PAUSE", 60.0)

    def interrupted(*_: Any) -> Any:
        raise Interrupted

    with any_kv.watch_all() as watcher:
        for _ in range(5):
            with monkeypatch.context() as patch:
                patch.setattr(mono_sync.connection.Inbox, "poll", interrupted)
                with pytest.raises(Interrupted):
                    watcher.next()
        any_kv.set("k", b"v")
        assert watcher.next(timeout=20).key == "k"


def test_interrupt_behind_the_last_step_delivers_the_entry_again(any_kv: KVBucket) -> None:
    any_kv.set("k", b"v")
    with any_kv.watch_all() as watcher:
        follower, lock = watcher._follower, watcher._follower._reading

        class Lock:
            def acquire(self, **options: Any) -> bool:
                return lock.acquire(**options)

            def release(self) -> None:
                lock.release()
                if follower._reading is self:  # type: ignore[comparison-overlap]
                    follower._reading = lock
                    raise Interrupted

        follower._reading = Lock()  # type: ignore[assignment]
        with pytest.raises(Interrupted):
            watcher.next()
        assert watcher.position == 0
        assert watcher.next().revision == 1
        assert Background(lambda: watcher.next(timeout=0.05)).error().__class__ is OperationTimeoutError


def test_interrupted_snapshot_begins_again(any_kv: KVBucket, monkeypatch: pytest.MonkeyPatch) -> None:
    write_at_once(any_kv, (f"k{number}" for number in range(3000)))
    with any_kv.watch_all() as watcher:
        first = watcher.next()
        take, calls = watcher._follower._take_few, itertools.count()

        def interrupted(deadline: Any) -> Any:
            found = take(deadline)
            if next(calls) == 1:
                raise Interrupted
            return found

        monkeypatch.setattr(watcher._follower, "_take_few", interrupted)
        with pytest.raises(Interrupted):
            watcher.snapshot()
        assert watcher.position == first.revision == 1
        assert revisions(watcher.snapshot()) == list(range(2, 3001))


def test_ctrl_c_leaves_the_watcher_usable(any_kv: KVBucket) -> None:
    with any_kv.watch_all() as watcher:
        for number in range(1, 4):
            timer = threading.Timer(0.05, os.kill, [os.getpid(), signal.SIGINT])
            timer.start()
            with pytest.raises(KeyboardInterrupt):
                watcher.next(timeout=20)
            timer.join()
            any_kv.set("k", b"v")
            assert watcher.next().revision == number
        assert Background(lambda: watcher.next(timeout=0.05)).error().__class__ is OperationTimeoutError


def test_stop_in_a_signal_handler_ends_the_iteration(any_kv: KVBucket) -> None:
    watcher = any_kv.watch_all()
    before = signal.signal(signal.SIGUSR1, lambda *_: watcher.stop())
    try:
        timer = threading.Timer(0.05, os.kill, [os.getpid(), signal.SIGUSR1])
        timer.start()
        assert list(watcher) == []
        timer.join()
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_watcher_belongs_to_the_process_that_made_it(kv: KVBucket) -> None:
    with kv.watch_all() as watcher:
        reading = blocked_in(watcher)  # holds the lock when the child is made
        pid = os.fork()
        if pid == 0:
            code = 1
            with contextlib.suppress(BaseException):
                code = _in_child(watcher)
            os._exit(code)
        _, status = os.waitpid(pid, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        kv.set("k", b"v")
        assert reading.result().revision == 1


def _in_child(watcher: Watcher) -> int:
    for call in (watcher.next, watcher.snapshot, watcher.wait_synced):
        try:
            call(timeout=1)
        except ForkedError:
            continue
        except MonoError:
            return 2
        if call != watcher.wait_synced and not watcher.synced:
            return 3
    watcher.stop()
    return 0


# --- another process goes on


RESUME = """
import sys, mono_sync
url, token, name, position = sys.argv[1:]
with mono_sync.connect(url, token=token) as connection:
    with connection.kv(name).watch_all(resume_from=int(position)) as watcher:
        print(*(entry.revision for entry in watcher.snapshot()), flush=True)
        print(watcher.next(timeout=20).revision, flush=True)
"""


def test_another_process_goes_on_at_a_stored_position(nats_server: EmbeddedServer, new_kv: NewKV) -> None:
    kv = new_kv(history=5)
    for _ in range(4):
        kv.set("k", b"v")
    with kv.watch_all(include_history=True) as watcher:
        assert revisions([watcher.next() for _ in range(2)]) == [1, 2]
        position = watcher.position
    assert nats_server.token is not None
    with Program(RESUME, nats_server.url, nats_server.token, kv.name, str(position)) as program:
        assert program.line() == "3 4"
        kv.set("k", b"v")
        assert program.line() == "5"
        code, _, err = program.finish()
        assert (code, err) == (0, "")
