"""Transactions: what they read, what they write, when they refuse, and what they leave behind."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any

import pytest

from mono_sync import (
    ClosedError,
    Connection,
    ForkedError,
    KeyNotFoundError,
    KVBucket,
    Operation,
    RevisionMismatchError,
    Transaction,
)
from tests.fixtures.waiting import wait_until
from tests.storage.conftest import NewKV
from tests.storage.helpers import api_calls, raw_kv, refused, together

MANY = [f"k{number}" for number in range(1000)]


@pytest.fixture(params=[1, 5], ids=["history=1", "history=5"])
def any_history(request: pytest.FixtureRequest, new_kv: NewKV) -> KVBucket:
    return new_kv(history=request.param)


@pytest.fixture(params=["memory", "file"])
def stored(request: pytest.FixtureRequest, new_kv: NewKV) -> KVBucket:
    """A bucket in either kind of storage: the server takes different ways to store a batch."""
    return new_kv(storage=request.param)


# --- writing


def test_all_writes_are_there_after_the_with(any_history: KVBucket) -> None:
    kv = any_history
    for key in ("changed", "deleted", "purged"):
        kv.set(key, b"old")
    with kv.transaction() as tx:
        tx.set("changed", b"new")
        tx.set("made", b"new")
        tx.delete("deleted")
        tx.purge("purged")
    assert {key: kv.get(key) for key in ("changed", "made", "deleted", "purged")} == {
        "changed": b"new",
        "made": b"new",
        "deleted": None,
        "purged": None,
    }
    assert [entry.operation for entry in kv.history("purged")] == [Operation.PURGE]
    assert kv.history("deleted")[-1].operation is Operation.DELETE


@pytest.mark.parametrize("count", [1, 2, 7, 1000])
def test_revisions_are_those_that_the_bucket_has_afterwards(stored: KVBucket, count: int) -> None:
    with stored.transaction() as tx:
        for key in MANY[:count]:
            tx.set(key, key.encode())
    assert list(tx.revisions) == MANY[:count]
    for key in (*MANY[: min(count, 7)], MANY[count - 1]):
        entry = stored.get_entry(key)
        assert (entry.value, entry.revision) == (key.encode(), tx.revisions[key])


def test_revisions_of_deletions_are_those_of_their_marks(kv: KVBucket) -> None:
    kv.set("k", b"v")
    with kv.transaction() as tx:
        tx.get("other")
        tx.delete("k")
        tx.set("l", b"v")
    assert tx.revisions == {"k": kv.history("k")[-1].revision, "l": kv.get_entry("l").revision}


def test_nothing_is_sent_before_the_end_and_others_see_nothing(kv: KVBucket) -> None:
    with kv.transaction() as tx:
        tx.set("k", b"v")
        tx.set("l", b"v")
        assert kv.status().messages == 0
    assert sorted(kv.keys()) == ["k", "l"]


def test_last_write_of_a_key_counts(kv: KVBucket) -> None:
    with kv.transaction() as tx:
        tx.set("k", b"1")
        tx.delete("k")
        tx.set("k", b"2")
        tx.set("l", b"1")
        tx.delete("l")
    assert (kv.get("k"), kv.get("l")) == (b"2", None)
    assert kv.status().messages == 2


@pytest.mark.parametrize("history", [1, 5])
def test_ttl_inside_a_transaction_expires(new_kv: NewKV, history: int) -> None:
    kv = new_kv(history=history)
    kv.set("short", b"old")
    with kv.transaction() as tx:
        tx.set("short", b"v", ttl=1)
        tx.set("long", b"v")
    assert kv.get("short") == b"v"
    wait_until(lambda: kv.get("short") is None, "it has expired")
    assert kv.get("long") == b"v"


def test_values_as_large_as_the_server_takes_are_written_together(stored: KVBucket) -> None:
    size = stored._connection.server_info.max_payload - 1000
    with stored.transaction() as tx:
        for number in range(20):
            tx.set(MANY[number], bytes([number]) * size)
    assert all(stored.get(MANY[number]) == bytes([number]) * size for number in range(20))
    with stored.transaction() as tx:
        values = tx.get_many(MANY[:20])
    assert [len(value) for value in values.values()] == [size] * 20


def test_writes_on_marks_of_deletion_and_on_expired_keys_succeed(any_history: KVBucket) -> None:
    kv = any_history
    kv.set("deleted", b"old")
    kv.delete("deleted")
    kv.set("purged", b"old")
    kv.purge("purged")
    kv.set("expired", b"old", ttl=1)
    wait_until(lambda: kv.get("expired") is None, "it has expired")
    with kv.transaction() as tx:
        for key in ("deleted", "purged", "expired"):
            assert tx.get(key) is None
            tx.set(key, b"new")
    assert [kv.get(key) for key in ("deleted", "purged", "expired")] == [b"new"] * 3


# --- reading


def test_reads_see_what_the_transaction_has_written(kv: KVBucket) -> None:
    kv.set("k", b"old")
    kv.set("l", b"old")
    with kv.transaction() as tx:
        tx.set("k", b"new")
        tx.delete("l")
        assert (tx.get("k"), tx.get("l"), tx.get("l", b"nothing")) == (b"new", None, b"nothing")
        assert tx.get_many(["k", "l", "m"]) == {"k": b"new"}
        entry = tx.get_entry("k")
        assert (entry.bucket, entry.key, entry.value, entry.revision) == (kv.name, "k", b"new", 0)
        with pytest.raises(KeyNotFoundError):
            tx.get_entry("l")


def test_reads_are_repeatable(kv: KVBucket) -> None:
    kv.set("k", b"1")
    with refused(RevisionMismatchError, kv.transaction()) as (tx, _):
        assert tx.get_entry("k") == kv.get_entry("k")
        kv.set("k", b"2")
        assert tx.get("k") == b"1"


def test_get_many_returns_what_is_there_in_the_order_asked_and_reads_together(kv: KVBucket) -> None:
    for key in MANY[:300]:
        kv.set(key, key.encode())
    with api_calls(kv) as calls, kv.transaction() as tx:
        found = tx.get_many(["missing", *reversed(MANY[:300]), "k0"])
        assert tx.get_many(MANY[:300]) == found
        asked = [call for call in calls() if call.startswith("DIRECT.GET")]
    assert list(found) == MANY[:300][::-1]
    assert all(value == key.encode() for key, value in found.items())
    assert len(asked) == 2  # each for up to 250 keys


def test_keys_of_a_bucket_without_direct_get_are_read_from_the_leader(kv: KVBucket, connection: Connection) -> None:
    kv.set("k", b"v")
    kv.set("l", b"w")
    raw_kv(kv).update(allow_direct=False)
    for bucket in (kv, connection.kv(kv.name)):  # one that knows, and one that has to find out
        with bucket.transaction() as tx:
            assert tx.get_many(["k", "missing", "l"]) == {"k": b"v", "l": b"w"}


# --- conflicts


def test_key_that_was_read_and_written_and_has_changed_is_named(stored: KVBucket) -> None:
    stored.set("k", b"1")
    stored.set("l", b"1")
    read = stored.get_entry("l").revision
    with refused(RevisionMismatchError, stored.transaction()) as (tx, caught):
        tx.set("k", tx.get_entry("k").value + b"+")
        tx.set("l", tx.get_entry("l").value + b"+")
        now = stored.put_with_revision("l", b"2")
    assert (caught[0].bucket, caught[0].key, caught[0].expected, caught[0].actual) == (
        stored.name,
        "l",
        read,
        now,
    )
    assert (stored.get("k"), stored.get("l")) == (b"1", b"2")
    assert tx.revisions == {}


def test_key_only_read_that_has_changed_is_a_conflict(stored: KVBucket) -> None:
    stored.set("read", b"1")
    with refused(RevisionMismatchError, stored.transaction()) as (tx, caught):
        tx.get("read")
        tx.set("written", b"v")
        stored.set("read", b"2")
    assert caught[0].key == "read"
    assert stored.get("written") is None


@pytest.mark.parametrize("count", [1, 2])
def test_transaction_that_only_reads_is_checked_too(kv: KVBucket, count: int) -> None:
    with kv.transaction() as tx:
        assert tx.get_many(MANY[:count]) == {}
    kv.set("k0", b"1")
    with refused(RevisionMismatchError, kv.transaction()) as (tx, caught):
        tx.get_many(MANY[:count])
        now = kv.put_with_revision("k0", b"1")
    assert (caught[0].key, caught[0].actual) == ("k0", now)


def test_transaction_that_only_reads_writes_nothing(kv: KVBucket) -> None:
    kv.set("k", b"v")
    before = raw_kv(kv).state["last_seq"]
    with kv.transaction() as tx:
        tx.get_many(["k", "missing"])
    assert raw_kv(kv).state["last_seq"] == before
    assert tx.revisions == {}


@pytest.mark.parametrize("change", ["delete", "purge", "create"])
def test_key_deleted_or_created_meanwhile_is_a_conflict(kv: KVBucket, change: str) -> None:
    kv.set("other", b"v")
    if change != "create":
        kv.set("k", b"v")
    calls: dict[str, Callable[[], Any]] = {
        "delete": lambda: kv.delete("k"),
        "purge": lambda: kv.purge("k"),
        "create": lambda: kv.create("k", b"v"),
    }
    with refused(RevisionMismatchError, kv.transaction()) as (tx, caught):
        tx.get("k")
        tx.delete("other")
        calls[change]()
    assert caught[0].key == "k"
    assert (caught[0].expected == 0) is (change == "create")
    assert kv.get("other") == b"v"


def test_key_written_without_being_read_counts_from_then_on(kv: KVBucket) -> None:
    kv.set("k", b"1")
    with refused(RevisionMismatchError, kv.transaction()) as (tx, _):
        tx.set("k", b"mine")
        kv.set("k", b"2")
    assert kv.get("k") == b"2"
    with kv.transaction() as tx:
        kv.set("k", b"3")  # before it is touched
        tx.set("k", b"mine")
    assert kv.get("k") == b"mine"


def test_of_transactions_that_create_the_same_keys_exactly_one_wins(stored: KVBucket) -> None:
    def create(number: int) -> bool:
        try:
            with stored.transaction() as tx:
                assert tx.get_many(["k", "l"]) == {}
                begun.wait(10)
                tx.set("k", str(number).encode())
                tx.set("l", str(number).encode())
        except RevisionMismatchError:
            return False
        return True

    begun = threading.Barrier(8)
    assert sum(together(8, create)) == 1
    assert stored.get("k") == stored.get("l") is not None


# --- what is not written


def test_exception_in_the_with_discards_everything(kv: KVBucket) -> None:
    tx = kv.transaction()

    def fail() -> None:
        with tx:
            tx.set("k", b"v")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert kv.keys() == []
    with pytest.raises(ClosedError):
        tx.get("k")


def test_rollback_discards_everything_and_ends_the_transaction(kv: KVBucket) -> None:
    kv.set("read", b"1")
    with kv.transaction() as tx:
        tx.get("read")
        tx.set("k", b"v")
        kv.set("read", b"2")  # would be a conflict
        tx.rollback()
        tx.rollback()
        with pytest.raises(ClosedError, match="rolled back"):
            tx.set("k", b"v")
    assert kv.get("k") is None
    assert tx.revisions == {}


def _uses(tx: Transaction) -> dict[str, Callable[[], object]]:
    return {
        "get": lambda: tx.get("k"),
        "get_entry": lambda: tx.get_entry("k"),
        "get_many": lambda: tx.get_many(["k"]),
        "set": lambda: tx.set("k", b"v"),
        "delete": lambda: tx.delete("k"),
        "purge": lambda: tx.purge("k"),
    }


def test_use_outside_the_with_is_refused(kv: KVBucket) -> None:
    tx = kv.transaction()
    for use in _uses(tx).values():
        with pytest.raises(ClosedError, match=f"<Transaction of bucket '{kv.name}'> is used outside its `with`"):
            use()
    with tx:
        tx.set("k", b"v")
    for use in (*_uses(tx).values(), tx.__enter__):
        with pytest.raises(ClosedError):
            use()
    assert tx.revisions == {"k": kv.get_entry("k").revision}


def test_transaction_that_touches_nothing_asks_nothing(kv: KVBucket) -> None:
    with api_calls(kv) as calls:
        with kv.transaction() as tx:
            pass
        assert calls() == []
    assert tx.revisions == {}


def test_forked_child_can_neither_use_nor_commit_it(kv: KVBucket) -> None:
    with kv.transaction() as tx:
        tx.set("k", b"v")
        child = os.fork()
        if not child:
            refused = 0
            uses: list[Callable[[], object]] = [
                lambda: tx.set("k", b"child"),
                tx.rollback,
                lambda: tx.__exit__(None, None, None),
            ]
            for use in uses:
                try:
                    use()
                except ForkedError:
                    refused += 1
            os._exit(refused)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
    assert kv.get("k") == b"v"


# --- carriers of what was only read


def _carriers(kv: KVBucket) -> dict[str, int]:
    return {subject: count for subject, count in raw_kv(kv).subjects(">").items() if "$tx" in subject}


def test_messages_that_only_assert_vanish_and_leave_no_mark(any_history: KVBucket) -> None:
    kv = any_history
    for key in MANY[:5]:
        kv.set(key, b"v")
    for _ in range(3):
        with kv.transaction() as tx:
            tx.get_many([*MANY[:5], "missing"])
            tx.set("k", b"v")
    assert sum(_carriers(kv).values()) <= kv.status().history
    assert sorted(kv.keys()) == ["k", *MANY[:5]]
    wait_until(lambda: not _carriers(kv), "they are gone", timeout=3)
    state = raw_kv(kv).state
    assert state["num_subjects"] == 6
    wait_until(lambda: raw_kv(kv).state["last_seq"] == state["last_seq"], "and nothing came instead")


def test_watchers_lists_and_status_tell_of_what_was_written_and_of_nothing_else(kv: KVBucket) -> None:
    kv.set("read", b"v")
    with kv.watch_all(updates_only=True) as watcher:
        with kv.transaction() as tx:
            tx.get_many(["read", "missing"])
            tx.set("a", b"v")
            tx.set("b", b"v")
        kv.set("last", b"v")
        assert [watcher.next(timeout=10).key for _ in range(3)] == ["a", "b", "last"]
        assert sorted(kv) == ["a", "b", "last", "read"]
        assert (kv.status().keys, kv.status().tombstones) == (4, 0)
