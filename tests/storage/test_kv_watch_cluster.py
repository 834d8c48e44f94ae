"""Watchers of buckets in a cluster whose servers die, lag behind, and come back."""

from __future__ import annotations

import contextlib
import itertools
import os
import threading

import pytest

from mono_sync import BucketNotFoundError, ConnectionState, KVBucket, KVBucketConfig, OperationTimeoutError, Watcher
from tests.fixtures.cluster import Cluster
from tests.fixtures.waiting import wait_until
from tests.storage.helpers import raw_kv
from tests.support.threads import Background, Repeated


def _open(cluster: Cluster, **options: object) -> KVBucket:
    return cluster.connect().kv(KVBucketConfig("b", **{"replicas": 3} | options), timeout=30)  # type: ignore[arg-type]


def _home(watcher: Watcher) -> str | None:
    """Return the server that has the watcher's consumer."""
    consumer = watcher._follower._consumer
    return None if consumer is None else consumer._home


def _watcher_on(server: str, kv: KVBucket, ends: contextlib.ExitStack) -> Watcher:
    """Return a watcher whose consumer the cluster has put on a certain server."""
    while True:
        watcher = ends.enter_context(kv.watch_all())
        if _home(watcher) == server:
            return watcher


def _wait_until_it_reads(watcher: Watcher) -> None:
    wait_until(lambda: watcher.synced, "it waits for more")


# --- servers that die


def test_watcher_goes_on_when_the_server_dies_that_delivers_to_it_and_no_connection_breaks(cluster: Cluster) -> None:
    kv = _open(cluster)
    victim = cluster.bystander(kv)
    states = list[ConnectionState]()
    with contextlib.ExitStack() as ends:
        mine = cluster.connect(*cluster.servers.keys() - {victim})
        mine.add_listener(states.append)
        watcher = _watcher_on(victim, mine.kv("b"), ends)
        reading = Background(lambda: next(watcher))
        _wait_until_it_reads(watcher)
        cluster.servers[victim].kill()
        kv.set("k", b"v")
        assert reading.result(6).revision == 1
    assert not states
    wait_until(lambda: not raw_kv(kv).consumers(), "no consumer is left")


def test_watcher_goes_on_when_the_server_of_its_connection_dies(cluster: Cluster) -> None:
    kv = _open(cluster)
    victim = cluster.bystander(kv)
    kv = cluster.connect(*cluster.servers.keys() - {victim}).kv("b")
    mine = cluster.connect(victim, cluster.leader(raw_kv(kv).connection, "KV_b"))
    while mine.server_info.name != victim:
        mine = cluster.connect(victim, cluster.leader(raw_kv(kv).connection, "KV_b"))
    with mine.kv("b").watch_all() as watcher:
        reading = Background(lambda: [next(watcher).revision for _ in range(2)])
        _wait_until_it_reads(watcher)
        kv.set("k", b"v")
        wait_until(lambda: watcher.position == 1, "the first is there")
        cluster.servers[victim].kill()
        kv.set("k", b"v")
        assert reading.result(6) == [1, 2]


def test_a_lonely_replica_that_is_away_is_waited_for(cluster: Cluster) -> None:
    kv = _open(cluster, replicas=1)
    home = cluster.leader(raw_kv(kv).connection, "KV_b")
    kv = cluster.connect(*cluster.servers.keys() - {home}).kv("b")
    with kv.watch_all() as watcher:
        reading = Background(lambda: next(watcher))
        _wait_until_it_reads(watcher)
        cluster.servers[home].stop()  # in good order, so that the others know
        with pytest.raises(OperationTimeoutError):
            kv.watch_all(timeout=0.5)
        cluster.servers[home].start()
        kv.set("k", b"v")
        assert reading.result(6).revision == 1


class _Readers:
    """Watchers that note what they are told, in connections to one server each and to all."""

    def __init__(self, cluster: Cluster, bucket: str) -> None:
        self.seen = list[list[int]]()
        self._ends = contextlib.ExitStack()
        for names in [*([name] for name in cluster.servers), list(cluster.servers)]:
            for _ in range(2):
                self._read(self._ends.enter_context(cluster.connect(*names).kv(bucket).watch_all()))

    def _read(self, watcher: Watcher) -> None:
        seen = list[int]()
        self.seen.append(seen)
        reading = Background(lambda: seen.extend(entry.revision for entry in watcher))
        self._ends.callback(reading.result)
        self._ends.callback(watcher.stop)

    def stop(self) -> None:
        self._ends.close()


@pytest.mark.slow
def test_no_entry_is_lost_or_repeated_while_one_server_after_the_other_dies(cluster: Cluster) -> None:
    kv = _open(cluster)
    numbers, written = itertools.count(), list[int]()
    first = _Readers(cluster, "b")

    def write() -> None:
        written.append(kv.put_with_revision(f"k{next(numbers)}", b"v", timeout=60))

    def go_on() -> None:
        before = len(written)
        wait_until(lambda: len(written) > before + 20, "writes go on", timeout=50)

    with Repeated([write, write]):
        go_on()
        for server in [cluster.leader(raw_kv(kv).connection, "KV_b"), *cluster.servers]:
            cluster.servers[server].kill()
            go_on()
            cluster.servers[server].start()
            cluster.wait_in_step(kv)
        second = _Readers(cluster, "b")
        go_on()
    everything = list(range(1, max(written) + 1))
    for readers in (first, second):
        wait_until(lambda: all(len(seen) >= len(everything) for seen in readers.seen), "all is seen")  # noqa: B023
        readers.stop()
        assert readers.seen == [everything] * len(readers.seen)


# --- servers that lag behind


@pytest.fixture
def lagging(cluster: Cluster) -> tuple[KVBucket, int]:
    """A bucket and its last revision, while one of its servers fetches some 50 MB that it has missed."""
    kv = _open(cluster)
    late = cluster.bystander(kv)
    kv = cluster.connect(*cluster.servers.keys() - {late}).kv("b")
    cluster.servers[late].pause()
    kv.set_many({f"k{number}": os.urandom(200_000) for number in range(250)}, timeout=30)
    last = kv.put_with_revision("last", b"v")
    cluster.servers[late].resume()
    return kv, last


def test_initial_state_has_what_was_written_before_wherever_the_consumer_is(lagging: tuple[KVBucket, int]) -> None:
    kv, last = lagging

    def look() -> list[int]:
        with kv.watch("last", timeout=30) as watcher:
            return [entry.revision for entry in watcher.snapshot(timeout=30)]

    calls = [Background(look) for _ in range(16)]
    assert [one.result(30) for one in calls] == [[last]] * 16


def test_updates_only_leaves_out_what_was_written_before_wherever_it_is(lagging: tuple[KVBucket, int]) -> None:
    kv, last = lagging
    ready = threading.Barrier(17)

    def look() -> int:
        with kv.watch_all(updates_only=True, timeout=30) as watcher:
            ready.wait(30)
            return watcher.next(timeout=30).revision

    calls = [Background(look) for _ in range(16)]
    ready.wait(30)
    kv.set("new", b"v")
    assert [one.result(30) for one in calls] == [last + 1] * 16


# --- buckets that vanish


def test_bucket_that_is_deleted_in_a_cluster_ends_the_iteration_at_once(cluster: Cluster) -> None:
    kv = _open(cluster)
    with contextlib.ExitStack() as ends:
        watchers = [ends.enter_context(kv.watch_all()) for _ in range(8)]
        reading = [Background(lambda watcher=watcher: next(watcher)) for watcher in watchers]
        for watcher in watchers:
            _wait_until_it_reads(watcher)
        raw_kv(kv).delete()
        assert [type(one.error(2)) for one in reading] == [BucketNotFoundError] * 8
