"""Transactions in buckets with three replicas."""

from __future__ import annotations

import pytest

from mono_sync import KVBucketConfig, RevisionMismatchError
from tests.fixtures.cluster import Cluster
from tests.storage.bank import Bank
from tests.storage.helpers import refused

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]  # an election takes its time on a busy machine


def test_keys_are_asserted_and_revisions_told_as_on_one_server(cluster: Cluster) -> None:
    kv = cluster.connect().kv(KVBucketConfig("b", replicas=3), timeout=30)
    kv.set("read", b"1")
    with kv.transaction() as tx:
        assert tx.get_many(["read", "missing"]) == {"read": b"1"}
        for number in range(300):
            tx.set(f"k{number}", b"v")
    assert tx.revisions == {key: kv.get_entry(key).revision for key in tx.revisions}
    with refused(RevisionMismatchError, kv.transaction()) as (tx, caught):
        tx.get("read")
        tx.set("k0", b"w")
        kv.set("read", b"2")
    assert (caught[0].key, kv.get("k0")) == ("read", b"v")


def test_the_leader_is_asked_also_where_stale_reads_are_allowed(cluster: Cluster) -> None:
    kv = cluster.connect().kv(KVBucketConfig("b", replicas=3, storage="memory"), stale_reads=True, timeout=30)
    for number in range(200):
        with kv.transaction() as tx:
            assert int(tx.get("a", b"0")) == number
            tx.set("a", b"%d" % (number + 1))
            tx.set("b", b"")
        kv.modify("c", lambda value: b"%d" % (int(value or b"0") + 1))
    assert int(kv.modify("c", lambda value: value).value) == 200


@pytest.mark.parametrize("history", [1, 64])
def test_transfers_survive_the_death_of_the_leader(cluster: Cluster, history: int) -> None:
    connection = cluster.connect()
    kv = connection.kv(KVBucketConfig("bank", replicas=3, history=history), timeout=30)
    bank = Bank(kv, transferring=12, checking=4)
    bank.wait("transfer", 20)
    server = cluster.servers[cluster.leader(connection, "KV_bank")]
    server.kill()
    bank.wait("transfer", 20)
    server.start()
    bank.wait("transfer", 20)
    bank.end()
    assert history == 1 or not bank.done["unknown"]
