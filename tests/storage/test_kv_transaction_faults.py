"""Transactions whose answers are lost, whose server dies, and many at once: whole, once, and told as they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

import mono_sync
from mono_sync import (
    Connection,
    JetStreamAPIError,
    KVBucket,
    KVBucketConfig,
    OperationTimeoutError,
    OutcomeUnknownError,
    RevisionMismatchError,
)
from tests.fixtures.servers import RawServer, RunNatsServer
from tests.fixtures.waiting import wait_until
from tests.storage.bank import Bank
from tests.storage.helpers import CutProxy, raw_kv, refused
from tests.support.threads import Background

COMMIT = b"Nats-Batch-Commit"


@pytest.fixture
def proxy(connection: Connection) -> Iterator[CutProxy]:
    with CutProxy(connection.server_info.url) as proxy:
        yield proxy


@pytest.fixture
def cut(connection: Connection, proxy: CutProxy, kv: KVBucket) -> Iterator[KVBucket]:
    """The bucket through a connection that the proxy can break."""
    token = connection.config.token
    with mono_sync.connect(proxy.url, token=token, reconnect_wait=0.02, reconnect_max_wait=0.1) as cut:
        yield cut.kv(kv.name)


# --- lost answers


@pytest.mark.parametrize("after", [True, False], ids=["after", "before"])
@pytest.mark.parametrize("count", [1, 3, 300])
def test_commit_whose_connection_breaks_happens_once(
    cut: KVBucket, proxy: CutProxy, kv: KVBucket, *, count: int, after: bool
) -> None:
    keys = [f"k{number}" for number in range(count)]
    for key in keys:
        kv.set(key, b"old")
    last = raw_kv(kv).state["last_seq"]
    proxy.cut_at(COMMIT if count > 1 else b"Nats-Expected", after=after)
    with cut.transaction() as tx:
        tx.get_many(keys)
        for key in keys:
            tx.set(key, b"new")
    assert proxy.cuts == 1
    assert tx.revisions == {key: kv.get_entry(key).revision for key in keys}
    assert list(tx.revisions.values()) == list(range(last + 1, last + count + 1))
    assert raw_kv(kv).state["last_seq"] == last + count


def test_commit_that_only_reads_is_repeated(cut: KVBucket, proxy: CutProxy, kv: KVBucket) -> None:
    kv.set("k", b"v")
    with cut.transaction() as tx:
        tx.get_many(["k", "l"])
        proxy.cut_at(b"DIRECT.GET", after=False)
    assert proxy.cuts == 1


def test_commit_lost_before_a_change_by_somebody_else_is_a_conflict(
    cut: KVBucket, proxy: CutProxy, kv: KVBucket
) -> None:
    kv.set("k", b"1")
    kv.set("l", b"1")
    with refused(RevisionMismatchError, cut.transaction()) as (tx, caught):
        tx.set("k", b"mine")
        tx.set("l", b"mine")
        kv.set("l", b"2")
        proxy.cut_at(COMMIT, after=False)
    assert proxy.cuts == 1
    assert (caught[0].key, kv.get("k"), kv.get("l")) == ("l", b"1", b"2")


def test_commit_that_was_stored_and_overwritten_before_its_answer_came_is_known(
    cut: KVBucket, proxy: CutProxy, kv: KVBucket
) -> None:
    proxy.mute_at(COMMIT, occurrence=1)

    def commit() -> dict[str, int]:
        with cut.transaction(timeout=10) as tx:
            tx.set("k", b"mine")
            tx.set("l", b"mine")
        return tx.revisions

    committing = Background(commit)
    wait_until(lambda: kv.get("l"), "it is stored")
    mine = {key: kv.get_entry(key).revision for key in ("k", "l")}
    for key in mine:
        kv.set(key, b"theirs")
    proxy.cut()
    proxy._answering.set()
    assert committing.result() == mine
    assert (kv.get("k"), kv.get("l")) == (b"theirs", b"theirs")


@pytest.mark.parametrize("was_stored", [True, False])
def test_refusal_after_a_lost_answer_does_not_tell_what_happened(
    cut: KVBucket, proxy: CutProxy, kv: KVBucket, *, was_stored: bool
) -> None:
    def commit() -> dict[str, int]:
        with cut.transaction(timeout=20) as tx:
            tx.set("k", b"v")
            tx.set("l", b"v")
            proxy.babble(b"no server")  # to whoever connects again
            proxy.cut_at(COMMIT, after=was_stored)
        return tx.revisions

    committing = Background(commit)
    wait_until(lambda: proxy.cuts, "the connection is broken")
    raw_kv(kv).update(allow_atomic=False)
    proxy.babble(b"")
    if was_stored:
        assert committing.result() == {key: kv.get_entry(key).revision for key in ("k", "l")}
    else:
        error = committing.error()
        assert isinstance(error, OutcomeUnknownError)
        assert "atomic publish is disabled" in str(error)


def test_answer_that_never_comes_is_an_unknown_outcome(cut: KVBucket, proxy: CutProxy, kv: KVBucket) -> None:
    with refused(OutcomeUnknownError, cut.transaction(timeout=0.5)) as (tx, caught):
        tx.set("k", b"v")
        tx.set("l", b"v")
        proxy.mute_at(COMMIT, occurrence=1)
    assert "committing a transaction of bucket" in str(caught[0])
    assert tx.revisions == {}
    wait_until(lambda: kv.get("l"), "it was stored all the same")


def test_commit_that_could_not_be_sent_has_not_happened(cut: KVBucket, proxy: CutProxy, kv: KVBucket) -> None:
    tx = cut.transaction(timeout=0.3)
    with refused(OperationTimeoutError, tx) as (_, caught):
        tx.set("k", b"v")
        tx.set("l", b"v")
        proxy.babble(b"no server")
        proxy.cut()
        wait_until(lambda: not cut._connection.is_connected, "it has noticed")
    assert not isinstance(caught[0], OutcomeUnknownError)
    assert not caught[0].sent
    proxy.babble(b"")
    wait_until(lambda: cut._connection.is_connected, "connected again")
    assert cut.keys() == []


def test_batch_of_many_portions_whose_connection_breaks_in_the_middle_happens_once(
    cut: KVBucket, proxy: CutProxy, kv: KVBucket
) -> None:
    keys = [f"k{number}" for number in range(12)]
    with cut.transaction(timeout=30) as tx:
        for key in keys:
            tx.set(key, bytes(1_000_000))
        proxy.cut_at(b"Nats-Batch-Sequence: 7\r", after=True)
    assert proxy.cuts == 1
    assert tx.revisions == {key: kv.get_entry(key).revision for key in keys}
    assert kv.status().messages == 12


# --- limits of the server


def _left_open(kv: KVBucket) -> None:
    """Begin a batch as another client would, and leave it at that."""
    raw_kv(kv).connection.request(
        f"$KV.{kv.name}.unfinished", headers={"Nats-Batch-Id": "unfinished", "Nats-Batch-Sequence": "1"}
    )


def _limited(run_nats_server: RunNatsServer, limits: str) -> RawServer:
    return run_nats_server(f"jetstream {{ limits {{ batch {{ {limits} }} }} }}")


def test_commit_waits_while_too_many_others_are_under_way(run_nats_server: RunNatsServer) -> None:
    server = _limited(run_nats_server, 'max_inflight_per_stream: 1, timeout: "300ms"')
    with mono_sync.connect(server.url) as connection:
        kv = connection.kv(KVBucketConfig("b"))
        _left_open(kv)
        with kv.transaction() as tx:
            tx.set("k", b"v")
            tx.set("l", b"v")
        assert sorted(kv.keys()) == ["k", "l"]


def test_commit_that_waits_for_others_keeps_its_deadline(run_nats_server: RunNatsServer) -> None:
    server = _limited(run_nats_server, "max_inflight_per_stream: 1")
    with mono_sync.connect(server.url) as connection:
        kv = connection.kv(KVBucketConfig("b"))
        _left_open(kv)
        with refused(OperationTimeoutError, kv.transaction(timeout=0.2)) as (tx, caught):
            tx.set("k", b"v")
            tx.set("l", b"v")
        assert not isinstance(caught[0], OutcomeUnknownError)
        assert kv.keys() == []


def test_server_that_takes_fewer_messages_says_so(run_nats_server: RunNatsServer) -> None:
    server = _limited(run_nats_server, "max_msgs: 5")
    with mono_sync.connect(server.url) as connection:
        kv = connection.kv(KVBucketConfig("b"))
        with refused(JetStreamAPIError, kv.transaction()) as (tx, caught):
            for number in range(6):
                tx.set(f"k{number}", b"v")
        assert "batch is too large: 5" in str(caught[0])
        assert kv.keys() == []


# --- a server that restarts


@pytest.fixture
def server(run_nats_server: RunNatsServer) -> RawServer:
    return run_nats_server("jetstream {}")


@pytest.fixture(params=[1, 64], ids=["history=1", "history=64"])
def history(request: pytest.FixtureRequest) -> int:
    count: int = request.param
    return count


@pytest.fixture
def restarted(server: RawServer, history: int) -> Iterator[KVBucket]:
    """A bucket on a disk, whose server may die and come back."""
    with mono_sync.connect(server.url, reconnect_wait=0.02, reconnect_max_wait=0.1) as connection:
        yield connection.kv(KVBucketConfig("bank", history=history))


def _muted(server: RawServer, act: Callable[[KVBucket, CutProxy], Any]) -> Any:
    """Do something through a proxy that can be muted."""
    with (
        CutProxy(server.url) as proxy,
        mono_sync.connect(proxy.url, reconnect_wait=0.02, reconnect_max_wait=0.1) as connection,
    ):
        return act(connection.kv("bank"), proxy)


@pytest.mark.parametrize("overwritten", ["none", "one", "both", "conditionally"])
def test_outcome_is_found_after_a_restart_as_far_as_something_tells(
    server: RawServer, restarted: KVBucket, history: int, overwritten: str
) -> None:
    def act(kv: KVBucket, proxy: CutProxy) -> tuple[dict[str, int], dict[str, int]]:
        proxy.mute_at(COMMIT, occurrence=1)

        def commit() -> dict[str, int]:
            with kv.transaction(timeout=20) as tx:
                tx.set("k", b"mine")
                tx.set("l", b"mine")
            return tx.revisions

        committing = Background(commit)
        wait_until(lambda: restarted.get("l"), "it is stored")
        mine = {key: restarted.get_entry(key).revision for key in ("k", "l")}
        if overwritten in ("one", "both"):
            restarted.set("k", b"theirs")
        if overwritten == "both":
            restarted.set("l", b"theirs")
        if overwritten == "conditionally":
            restarted.update("k", b"theirs", mine["k"])
        server.kill()
        proxy.cut()  # with the answers that it held back
        proxy._answering.set()
        server.start()
        return committing.result(), mine

    if overwritten == "both" and history == 1:
        with pytest.raises(OutcomeUnknownError, match="nothing tells any more"):
            _muted(server, act)
    else:
        found, mine = _muted(server, act)
        assert found == mine


def test_transfers_by_32_threads_never_change_the_sum(kv: KVBucket) -> None:
    bank = Bank(kv, transferring=28, checking=4)
    bank.wait("transfer", 200)
    bank.end()


def test_what_is_read_while_others_write_was_true_at_one_moment(kv: KVBucket) -> None:
    bank = Bank(kv, transferring=1, checking=4)
    bank.wait("check", 20)
    bank.end()
    assert bank.done["transfer"]


def test_transfers_by_32_threads_survive_the_death_of_the_server(
    server: RawServer, restarted: KVBucket, history: int
) -> None:
    bank = Bank(restarted, transferring=28, checking=4)
    for _ in range(2):
        bank.wait("transfer", 10)
        server.kill()
        server.start()
    bank.wait("transfer", 10)
    bank.end()
    assert history == 1 or not bank.done["unknown"]
