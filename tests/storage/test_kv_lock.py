"""A lock: one holder at a time, told when it is lost, free again when its holder is gone."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import mono_sync
from mono_sync import (
    Connection,
    ForkedError,
    KVBucket,
    KVBucketConfig,
    Lock,
    LockLostError,
    LockNotAcquiredError,
    OutcomeUnknownError,
    UnsupportedByServerError,
)
from mono_sync.recipes import _lock
from mono_sync.server import EmbeddedServer
from tests.fixtures.leaks import our_threads
from tests.fixtures.processes import Program
from tests.fixtures.servers import RunNatsServer
from tests.fixtures.waiting import wait_until
from tests.storage.conftest import NewKV
from tests.storage.helpers import raw_kv, together
from tests.support.threads import Background


def _expires(kv: KVBucket) -> None:
    wait_until(lambda: kv.get("job") is None, "it has expired")


def _no_renewal() -> bool:
    return not [name for name in our_threads() if name.startswith("mono_sync-lock-")]


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    yield
    wait_until(_no_renewal, "the threads of locks have ended")


# --- holding it


def test_the_body_runs_with_the_lock_and_it_is_free_afterwards(kv: KVBucket) -> None:
    with kv.lock("job") as lock:
        assert lock.held
        assert lock.token == kv.get_entry("job").revision
        with pytest.raises(LockNotAcquiredError):
            kv.lock("job").acquire(timeout=0)
    assert not lock.held
    assert kv.get("job") is None


def test_the_body_never_runs_without_the_lock(kv: KVBucket) -> None:
    entered = False
    with kv.lock("job"):
        with pytest.raises(LockNotAcquiredError) as caught, kv.lock("job", timeout=0.1):
            entered = True
        assert (caught.value.bucket, caught.value.key, caught.value.timeout) == (kv.name, "job", 0.1)
    assert not entered


def test_locks_of_other_names_are_free(kv: KVBucket) -> None:
    with kv.lock("one"), kv.lock("other") as other:
        assert other.held


def test_an_exception_in_the_body_frees_it_and_is_not_masked(kv: KVBucket) -> None:
    with pytest.raises(ZeroDivisionError), kv.lock("job"):
        _ = 1 / 0
    with kv.lock("job", timeout=0) as lock:
        assert lock.held


def test_an_exception_in_the_body_is_not_masked_by_the_loss_of_the_lock(kv: KVBucket) -> None:
    def body() -> None:
        with kv.lock("job", ttl=1) as lock:
            kv.purge("job")
            assert lock.lost.wait(5)
            _ = 1 / 0

    with pytest.raises(ZeroDivisionError) as caught:
        body()
    assert "not released" in caught.value.__notes__[0]


def test_it_can_be_acquired_again(kv: KVBucket) -> None:
    lock = kv.lock("job")
    tokens = []
    for _ in range(3):
        tokens.append(lock.acquire())
        lock.release()
    assert tokens == sorted(set(tokens))


def test_tokens_grow_from_holder_to_holder(kv: KVBucket) -> None:
    tokens = []
    for _ in range(5):
        with kv.lock("job") as lock:
            tokens.append(lock.token)
    assert tokens == sorted(set(tokens))


def test_another_thread_may_release_it(kv: KVBucket) -> None:
    lock = kv.lock("job")
    lock.acquire()
    Background(lock.release).result()
    assert not lock.held
    with pytest.raises(LockLostError):
        lock.release()


def test_the_token_of_a_lock_that_is_not_held_cannot_be_had(kv: KVBucket) -> None:
    with pytest.raises(LockLostError):
        _ = kv.lock("job").token


def test_a_lock_without_an_end_is_refused(kv: KVBucket) -> None:
    with pytest.raises(ValueError, match="needs a ttl"):
        kv.lock("job", ttl=None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least 1 second"):
        kv.lock("job", ttl=0.5)


@pytest.mark.old_server
def test_old_servers_know_no_locks(old_connection: Connection) -> None:
    kv = old_connection.kv(KVBucketConfig("locks", storage="memory"))
    with pytest.raises(UnsupportedByServerError):
        kv.lock("job").acquire()


# --- waiting for it


def _wait_in_background(lock: Lock) -> tuple[Background, Callable[[], float]]:
    acquired = [0.0]

    def acquire() -> None:
        lock.acquire(timeout=20)
        acquired[0] = time.monotonic()

    return Background(acquire), lambda: acquired[0]


def test_who_waits_is_told_when_it_becomes_free(kv: KVBucket) -> None:
    holder, waiter = kv.lock("job", ttl=30), kv.lock("job", ttl=30)
    holder.acquire()
    thread, when = _wait_in_background(waiter)
    wait_until(lambda: raw_kv(kv).consumers(), "it watches")
    released = time.monotonic()
    holder.release()
    thread.result()
    assert when() - released < 5  # the patience of one that is not told is 31 s
    waiter.release()


def test_who_waits_gets_it_when_it_expires(kv: KVBucket) -> None:
    kv.create("job", b"somebody who is dead", ttl=1)
    lock = kv.lock("job", ttl=30)
    lock.acquire(timeout=10)
    lock.release()


def test_who_waits_gets_it_when_it_expires_though_the_bucket_does_not_tell(kv: KVBucket) -> None:
    raw_kv(kv).update(subject_delete_marker_ttl=0)
    kv.create("job", b"somebody who is dead", ttl=1)
    lock = kv.lock("job", ttl=1)
    lock.acquire(timeout=10)
    lock.release()


def test_no_consumer_is_left_of_waiting(kv: KVBucket) -> None:
    with kv.lock("job"), pytest.raises(LockNotAcquiredError):
        kv.lock("job").acquire(timeout=0.1)
    wait_until(lambda: not raw_kv(kv).consumers(), "no consumer")


HOLD = """
import sys, mono_sync
with mono_sync.connect(sys.argv[1], token=sys.argv[2]) as connection:
    lock = connection.kv(sys.argv[3]).lock("job", ttl=1)
    lock.acquire()
    print("held", flush=True)
    sys.stdin.read()
"""


def test_it_is_free_again_when_its_holder_is_killed(kv: KVBucket, nats_server: EmbeddedServer) -> None:
    with Program(HOLD, nats_server.url, nats_server.token, kv.name) as holder:
        assert holder.line() == "held"
        first = kv.get_entry("job").revision
        wait_until(lambda: kv.get_entry("job").revision > first, "it is renewed")
        with pytest.raises(LockNotAcquiredError):
            kv.lock("job").acquire(timeout=0)
        holder.kill()
        with kv.lock("job", timeout=10) as lock:
            assert lock.held


# --- keeping it, and losing it


def test_it_is_renewed_for_as_long_as_it_is_held(kv: KVBucket) -> None:
    start = time.monotonic()
    with kv.lock("job", ttl=1) as lock:
        wait_until(lambda: time.monotonic() - start > 2.5, "two and a half times its ttl")
        assert lock.held
        assert kv.get_entry("job").revision > lock.token


@pytest.mark.parametrize("history", [1, 5])
def test_it_is_lost_when_somebody_removes_it(new_kv: NewKV, history: int) -> None:
    kv = new_kv(history=history)
    lock = kv.lock("job", ttl=1)
    lock.acquire()
    kv.purge("job")
    assert lock.lost.wait(5)
    assert not lock.held
    with pytest.raises(LockLostError):
        _ = lock.token
    with pytest.raises(LockLostError):
        lock.release()


def test_it_is_lost_at_once_when_the_bucket_is_deleted(kv: KVBucket) -> None:
    lock = kv.lock("job", ttl=30)
    lock.acquire()
    holding = lock._holding
    assert holding is not None
    raw_kv(kv).delete()
    assert not holding._renew_once()
    assert lock.lost.is_set()
    with pytest.raises(LockLostError):
        lock.release()


def test_who_lost_it_does_not_free_it_for_others(kv: KVBucket) -> None:
    lock = kv.lock("job", ttl=30)
    lock.acquire()
    kv.purge("job")
    other = kv.lock("job")
    other.acquire()
    with pytest.raises(LockLostError):
        lock.release()
    assert lock.lost.is_set()
    assert other.held
    other.release()


def test_threads_that_share_one_object_wait_for_who_lost_it_to_release_it(kv: KVBucket) -> None:
    lock = kv.lock("job", ttl=1)
    lock.acquire()
    kv.purge("job")
    assert lock.lost.wait(5)
    acquires = Background(lambda: lock.acquire(timeout=20))
    with pytest.raises(LockNotAcquiredError):
        Background(lambda: lock.acquire(timeout=0.2)).result()
    assert lock.lost.is_set()
    with pytest.raises(LockLostError):
        lock.release()
    assert acquires.result() == lock.token
    before = kv.get_entry("job").revision
    wait_until(lambda: kv.get_entry("job").revision > before, "it is renewed")
    assert lock.held
    lock.release()
    assert kv.get("job") is None


def test_who_lost_it_may_acquire_it_again_at_once(kv: KVBucket) -> None:
    lock = kv.lock("job", ttl=1)
    token = lock.acquire()
    kv.purge("job")
    assert lock.lost.wait(5)
    assert lock.acquire(timeout=5) > token
    assert lock.held
    lock.release()
    with lock:
        assert lock.held


class _Store:
    """A bucket whose answer to `create` is something else, the first time."""

    def __init__(self, kv: KVBucket, answered: Callable[[int], int]) -> None:
        self._kv = kv
        self._answered: Callable[[int], int] | None = answered

    def create(self, key: str, value: bytes, **options: Any) -> int:
        revision, answered = self._kv.create(key, value, **options), self._answered
        self._answered = None
        return revision if answered is None else answered(revision)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._kv, name)


def test_an_answer_that_comes_when_it_has_expired_does_not_give_it(kv: KVBucket) -> None:
    def late(revision: int) -> int:
        _expires(kv)
        return revision

    lock = kv.lock("job", ttl=1)
    lock._store = _Store(kv, late)
    with lock:
        assert lock.token == kv.get_entry("job").revision
        assert not lock.lost.is_set()


def test_nothing_is_left_where_it_is_not_known_whether_it_was_acquired(kv: KVBucket) -> None:
    def unknown(_: int) -> int:
        raise OutcomeUnknownError("writing key 'job'", 0.1)

    lock = kv.lock("job", ttl=1000)
    lock._store = _Store(kv, unknown)
    with pytest.raises(LockNotAcquiredError):
        lock.acquire(timeout=0.1)
    wait_until(lambda: kv.get("job") is None, "it is free again")
    with lock:
        assert lock.held


def test_nothing_is_left_where_it_cannot_be_renewed(kv: KVBucket, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_more(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    lock = kv.lock("job", ttl=1000)
    with monkeypatch.context() as patch:
        patch.setattr(_lock, "start_thread", no_more)
        with pytest.raises(RuntimeError, match="can't start"):
            lock.acquire()
    assert not lock.held
    assert kv.get("job") is None
    with lock:
        assert lock.held


def test_it_is_lost_in_time_when_the_server_stalls(run_nats_server: RunNatsServer) -> None:
    server = run_nats_server("jetstream: enabled")
    with mono_sync.connect(server.url) as connection:
        lock = connection.kv(KVBucketConfig("b")).lock("job", ttl=2)
        lock.acquire()
        server.pause()
        paused = time.monotonic()
        assert lock.lost.wait(10)
        assert time.monotonic() - paused < 2.5
        server.resume()
        with pytest.raises(LockLostError):
            lock.release()


def test_it_survives_a_restart_of_the_server(run_nats_server: RunNatsServer) -> None:
    server = run_nats_server("jetstream: enabled")
    with mono_sync.connect(server.url) as connection:
        kv = connection.kv(KVBucketConfig("b"))
        with kv.lock("job", ttl=3) as lock:
            server.kill()
            server.start()
            before = kv.get_entry("job").revision
            wait_until(lambda: kv.get_entry("job").revision > before, "it is renewed")
            assert lock.held


def test_it_is_lost_when_the_connection_is_closed(nats_server: EmbeddedServer, kv: KVBucket) -> None:
    connection = mono_sync.connect(nats_server.url, token=nats_server.token)
    lock = connection.kv(kv.name).lock("job", ttl=1)
    lock.acquire()
    connection.close()
    assert lock.lost.wait(5)
    with pytest.raises(LockLostError):
        lock.release()


def test_one_that_is_dropped_is_not_renewed_and_says_so(kv: KVBucket) -> None:
    lock = kv.lock("job", ttl=1)
    lock.acquire()
    with pytest.warns(ResourceWarning, match="never released"):
        del lock  # the last reference
    wait_until(lambda: kv.get("job") is None, "it has expired")


def test_a_child_process_does_not_hold_what_its_parent_holds(kv: KVBucket) -> None:
    with kv.lock("job") as lock:
        child = os.fork()
        if child == 0:
            try:
                assert not lock.held
                with pytest.raises(LockLostError):
                    _ = lock.token
                with pytest.raises(ForkedError):
                    lock.release()
            except BaseException:
                os._exit(1)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert lock.held


# --- many


def test_only_one_holds_it_at_a_time(kv: KVBucket) -> None:
    kv.set("count", b"0")
    inside = threading.Lock()

    def add(_: int) -> None:
        for _ in range(5):
            with kv.lock("job", timeout=50):
                assert inside.acquire(blocking=False)
                kv.set("count", str(int(kv.get("count", b"")) + 1).encode())
                inside.release()

    together(12, add)
    assert kv.get("count") == b"60"


ADD = """
import sys, mono_sync
with mono_sync.connect(sys.argv[1], token=sys.argv[2]) as connection:
    kv = connection.kv(sys.argv[3])
    for _ in range(25):
        with kv.lock("job", timeout=50):
            kv.set("count", str(int(kv.get("count")) + 1).encode())
"""


def test_processes_exclude_each_other(kv: KVBucket, nats_server: EmbeddedServer) -> None:
    kv.set("count", b"0")
    programs = [Program(ADD, nats_server.url, nats_server.token, kv.name) for _ in range(3)]
    for program in programs:
        code, _, err = program.finish(50)
        assert code == 0, err
    assert kv.get("count") == b"75"


def test_nobody_starves_beside_somebody_who_takes_it_again_at_once(kv: KVBucket) -> None:
    stop = threading.Event()

    def greedy() -> None:
        while not stop.is_set():
            with kv.lock("job", timeout=50):
                pass

    threads = [Background(greedy) for _ in range(3)]
    for _ in range(3):
        with kv.lock("job", timeout=20):
            pass
    stop.set()
    for thread in threads:
        thread.result()
