"""Buckets with three replicas: own writes are read, and a leader that dies costs nothing but time."""

from __future__ import annotations

import threading

import pytest

from mono_sync import KVBucket, KVBucketConfig, RevisionMismatchError
from tests.fixtures.cluster import Cluster
from tests.fixtures.waiting import wait_until
from tests.storage.helpers import api_calls, raw_kv
from tests.storage.load import Load
from tests.support.threads import Repeated

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]  # an election takes its time on a busy machine


def _open(cluster: Cluster, **options: object) -> KVBucket:
    return cluster.connect().kv(KVBucketConfig("b", replicas=3, **options), timeout=30)  # type: ignore[arg-type]


def _elsewhere(cluster: Cluster, bucket: KVBucket) -> str:
    """Return the name of a server that does not lead the bucket."""
    leader = cluster.leader(bucket._connection, f"KV_{bucket.name}")  # type: ignore[arg-type]
    return next(name for name in cluster.servers if name != leader)


def test_a_client_reads_its_own_writes_from_any_server(cluster: Cluster) -> None:
    kv = cluster.connect(_elsewhere(cluster, _open(cluster, storage="memory"))).kv("b")
    assert kv.status().replicas == 3
    for number in range(1000):
        value = str(number).encode()
        kv.set("k", value)
        assert kv.get("k") == value


def test_the_leader_answers_reads_unless_stale_ones_are_asked_for(cluster: Cluster) -> None:
    kv = _open(cluster, storage="memory")
    kv.set("k", b"v")
    stale = cluster.connect().kv("b", stale_reads=True)
    with api_calls(kv) as calls:
        assert kv.get("k") == b"v"
        assert kv.get_entry("k").value == b"v"
        assert calls() == ["STREAM.MSG.GET.KV_b"] * 2
        assert stale.get("k") in (None, b"v")
        assert calls()[2:] == ["DIRECT.GET.KV_b.$KV.b.k"]


def test_history_comes_from_the_leader(cluster: Cluster) -> None:
    kv = cluster.connect(_elsewhere(cluster, _open(cluster, history=5))).kv("b")
    for number in range(50):
        kv.set("k", str(number).encode())
        assert kv.history("k")[-1].value == str(number).encode()
    assert len(kv.history("k")) == 5


def test_conflicts_name_the_revision_that_won(cluster: Cluster) -> None:
    """A cluster refuses what meets another write under way without saying which revision that will get."""
    kv = _open(cluster, storage="memory")
    revision = kv.put_with_revision("k", b"")
    mismatches: list[RevisionMismatchError] = []
    winners: list[int] = []

    def update() -> None:
        try:
            winners.append(kv.update("k", b"", revision))
        except RevisionMismatchError as error:
            mismatches.append(error)

    threads = [threading.Thread(target=update) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(winners) == 1
    assert [error.actual for error in mismatches] == winners * 15


@pytest.mark.parametrize("history", [1, 64])
def test_no_write_fails_or_happens_twice_when_the_leader_is_killed(cluster: Cluster, history: int) -> None:
    kv = _open(cluster, history=history)
    with Load(kv, timeout=60, forgets_after=history) as load:
        load.wait_progress()
        leader = cluster.leader(raw_kv(kv).connection, "KV_b")
        cluster.servers[leader].kill()
        load.wait_progress()
        cluster.servers[leader].start()
        load.wait_progress()
    load.check()


def test_a_write_is_stored_when_the_leader_falls_silent_and_no_connection_breaks(cluster: Cluster) -> None:
    kv = _open(cluster)
    leader = cluster.leader(raw_kv(kv).connection, "KV_b")
    kv = cluster.connect(_elsewhere(cluster, kv)).kv("b")
    cluster.servers[leader].pause()
    assert kv.put_with_revision("k", b"v", timeout=25) == 1
    cluster.servers[leader].resume()


def test_listing_and_histories_go_on_when_the_server_is_killed_that_delivers_them(cluster: Cluster) -> None:
    kv = _open(cluster, history=5)
    for number in range(100):
        kv.set(f"k{number}", b"")
    stale = cluster.connect().kv("b", stale_reads=True)
    rounds = [0, 0, 0]

    def list_keys() -> None:
        assert len(kv.keys(timeout=60)) == 100
        rounds[0] += 1

    def read_history() -> None:
        assert len(kv.history("k1", timeout=60)) == 1
        rounds[1] += 1

    def read_stale_history() -> None:
        assert len(stale.history("k1", timeout=60)) == 1
        rounds[2] += 1

    def go_on() -> None:
        before = list(rounds)
        wait_until(
            lambda: all(now > then + 2 for now, then in zip(rounds, before, strict=True)), "all go on", timeout=60
        )

    with Repeated([list_keys, read_history, read_stale_history]):
        go_on()
        leader = cluster.leader(raw_kv(kv).connection, "KV_b")
        cluster.servers[leader].kill()
        go_on()
        cluster.servers[leader].start()
        go_on()
