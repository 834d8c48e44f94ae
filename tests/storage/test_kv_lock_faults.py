"""Locks while servers stall, die and come back: never two holders at once, and waiting goes on afterwards."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Self

import pytest

import mono_sync
from mono_sync import KVBucket, KVBucketConfig, Lock, LockLostError, LockNotAcquiredError, OutcomeUnknownError
from mono_sync._durations import DEFAULT, Timeout
from tests.fixtures.cluster import Cluster
from tests.fixtures.leaks import our_threads
from tests.fixtures.servers import RunNatsServer
from tests.fixtures.waiting import wait_until
from tests.storage.helpers import raw_kv
from tests.support.threads import Background


class Resource:
    """What a lock protects: it notices two who hold the lock at once, and refuses tokens that are not the newest."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._inside = set[Lock]()
        self._newest = 0
        self.overlaps = 0
        self.uses = 0

    def use(self, lock: Lock, token: int, until: Callable[[], bool]) -> None:
        """Be inside, and look around all the time, as long as the lock is held and until it is enough."""
        with self._guard:
            self._inside.add(lock)
        while lock.held:
            with self._guard:
                others = any(other.held for other in self._inside - {lock})
                if lock.held and (others or token < self._newest):  # both in the same moment
                    self.overlaps += 1
                self._newest = max(self._newest, token)
                self.uses += 1
            if until() or lock.lost.wait(0.002):
                break
        with self._guard:
            self._inside.remove(lock)


class Contenders:
    """Threads that want the same lock again and again, until the end of the ``with``."""

    def __init__(self, kvs: list[KVBucket], *, ttl: float) -> None:
        self.resource = Resource()
        self.turns = [0] * len(kvs)
        self.losses = 0
        self._ttl = ttl
        self._stop = threading.Event()
        self._threads = [Background(self._contend, number, kv) for number, kv in enumerate(kvs)]

    def _contend(self, number: int, kv: KVBucket) -> None:
        while not self._stop.is_set():
            lock = kv.lock("job", ttl=self._ttl, timeout=60)
            try:
                with lock:
                    entered = time.monotonic()
                    self.resource.use(lock, lock.token, lambda: time.monotonic() - entered > 0.02)  # noqa: B023
                self.turns[number] += 1
            except LockLostError:
                self.losses += 1

    def go_on(self) -> None:
        """Wait until each has had the lock twice more."""
        before = list(self.turns)

        def moved() -> bool:
            return all(now >= then + 2 for now, then in zip(self.turns, before, strict=True))

        wait_until(moved, "each gets its turn", timeout=50)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.result(60)


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    yield
    wait_until(lambda: not [name for name in our_threads() if name.startswith("mono_sync-lock-")], "no thread is left")


def _open(cluster: Cluster, **options: object) -> KVBucket:
    return cluster.connect().kv(KVBucketConfig("b", replicas=3, **options), timeout=30)  # type: ignore[arg-type]


# --- one server


def test_a_lock_that_took_longer_than_its_ttl_to_get_is_held_nevertheless(run_nats_server: RunNatsServer) -> None:
    server = run_nats_server("jetstream: enabled")
    with mono_sync.connect(server.url) as connection:
        lock = connection.kv(KVBucketConfig("b")).lock("job", ttl=1)
        server.pause()
        started = time.monotonic()
        getting = Background(lambda: lock.acquire(timeout=20))
        wait_until(lambda: time.monotonic() - started > 1.2, "longer than its ttl")
        server.resume()
        assert getting.result() == lock.token
        assert not lock.lost.wait(1.2)
        lock.release()


def test_who_waits_while_the_server_is_away_is_told_that_it_was_not_to_be_had(run_nats_server: RunNatsServer) -> None:
    server = run_nats_server("jetstream: enabled")
    with mono_sync.connect(server.url) as connection:
        lock = connection.kv(KVBucketConfig("b")).lock("job")
        server.kill()
        with pytest.raises(LockNotAcquiredError):
            lock.acquire(timeout=0.2)


def test_an_attempt_of_which_nothing_is_known_is_followed_by_another(
    kv: KVBucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    create, calls = kv.create, list[str]()

    def create_later(key: str, *args: Any, **options: Any) -> int:
        calls.append(key)
        if len(calls) == 1:
            raise OutcomeUnknownError("writing it", None, "the key has been overwritten and the server has restarted")
        return create(key, *args, **options)

    monkeypatch.setattr(kv, "create", create_later)
    with kv.lock("job", timeout=10) as lock:
        assert lock.held
    assert len(calls) == 2


@pytest.mark.parametrize("removed", [True, False])
def test_release_of_which_nothing_is_known_has_freed_it_unless_it_is_still_there(
    kv: KVBucket, monkeypatch: pytest.MonkeyPatch, removed: bool
) -> None:
    delete = kv.delete

    def answer_lost(key: str, *, revision: int | None = None, timeout: Timeout = DEFAULT) -> None:
        if removed:
            delete(key, revision=revision, timeout=timeout)
        raise OutcomeUnknownError("removing it", None, "the key has been overwritten and the server has restarted")

    monkeypatch.setattr(kv, "delete", answer_lost)
    lock = kv.lock("job")
    lock.acquire()
    with contextlib.nullcontext() if removed else pytest.raises(OutcomeUnknownError):
        lock.release()


def test_who_waits_goes_on_after_a_restart_of_the_server(run_nats_server: RunNatsServer) -> None:
    server = run_nats_server("jetstream: enabled")
    with mono_sync.connect(server.url) as one, mono_sync.connect(server.url) as other:
        kvs = [one.kv(KVBucketConfig("b")), other.kv("b"), other.kv("b")]
        with Contenders(kvs, ttl=2) as contenders:
            contenders.go_on()
            for _ in range(2):
                server.kill()
                server.start()
                contenders.go_on()
        assert contenders.resource.overlaps == 0


# --- a cluster


def test_it_is_lost_in_time_when_the_cluster_has_no_quorum_and_free_afterwards(cluster: Cluster) -> None:
    kv = _open(cluster)
    with Contenders([kv, *(cluster.connect(name).kv("b") for name in cluster.servers)], ttl=1) as contenders:
        contenders.go_on()
        leader = cluster.leader(raw_kv(kv).connection, "KV_b")
        stalled = [leader, cluster.bystander(kv)]
        for name in stalled:
            cluster.servers[name].pause()
        stalled_at, uses = time.monotonic(), -1

        def nobody_holds_it() -> bool:
            nonlocal uses
            before, uses = uses, contenders.resource.uses
            return uses == before and time.monotonic() - stalled_at > 1

        wait_until(nobody_holds_it, "nobody holds it")
        assert time.monotonic() - stalled_at < 3
        for name in stalled:
            cluster.servers[name].resume()
        contenders.go_on()
    assert contenders.resource.overlaps == 0


def test_it_is_kept_and_waited_for_when_a_server_dies_that_leads_nothing(cluster: Cluster) -> None:
    kv = _open(cluster)
    with kv.lock("job", ttl=3) as lock:
        waiting = [cluster.connect().kv("b").lock("job", ttl=3) for _ in range(3)]
        getting = [Background(lambda one=one: one.acquire(timeout=30)) for one in waiting]
        wait_until(lambda: len(raw_kv(kv).consumers()) >= 3, "they wait")
        cluster.servers[cluster.bystander(kv)].kill()
        before = kv.get_entry("job").revision
        wait_until(lambda: kv.get_entry("job").revision > before, "it is renewed")
        assert lock.held
        token = lock.token
    for _ in waiting:
        wait_until(lambda: any(one.held for one in waiting), "the next one has it")
        (holder,) = [one for one in waiting if one.held]
        assert holder.token > token
        token = holder.token
        holder.release()
    for one in getting:
        one.result()


@pytest.mark.slow
def test_never_two_hold_it_while_the_leader_dies_and_comes_back(cluster: Cluster) -> None:
    kv = _open(cluster)
    with (
        kv.lock("long", ttl=30) as kept,
        Contenders([kv, *(cluster.connect().kv("b") for _ in range(3))], ttl=2) as contenders,
    ):
        for _ in range(2):
            contenders.go_on()
            leader = cluster.leader(raw_kv(kv).connection, "KV_b")
            cluster.servers[leader].kill()
            contenders.go_on()
            cluster.servers[leader].start()
            cluster.wait_in_step(kv)
        assert kept.held
    assert contenders.resource.overlaps == 0
