"""Transactions that are refused: too much, not supported, bad arguments, no time, no bucket."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from mono_sync import (
    BucketConfigError,
    BucketFullError,
    BucketNotFoundError,
    Connection,
    InvalidKeyError,
    KVBucket,
    KVBucketConfig,
    OperationTimeoutError,
    Transaction,
    UnsupportedByServerError,
    ValueTooLargeError,
)
from tests.storage.conftest import NewKV
from tests.storage.helpers import api_calls, raw_kv, refused

MANY = [f"k{number}" for number in range(1000)]


# --- refused before anything is sent


def test_more_keys_than_the_server_takes_are_refused_where_they_are_named(kv: KVBucket) -> None:
    with kv.transaction() as tx:
        tx.get_many(MANY[:500])
        for key in MANY[500:]:
            tx.set(key, b"v")
        for touch in (lambda: tx.set("more", b"v"), lambda: tx.get("more"), lambda: tx.get_many(["k0", "more"])):
            with pytest.raises(ValueError, match="a transaction can touch 1000 keys"):
                touch()
    assert len(tx.revisions) == 500


def test_a_thousand_keys_written_and_read_are_one_batch(kv: KVBucket) -> None:
    with kv.transaction() as tx:
        tx.get_many(MANY)
        for key in MANY[::2]:
            tx.set(key, b"v")
    assert len(kv.keys()) == len(tx.revisions) == 500


@pytest.mark.parametrize("others", [0, 1, 30])
def test_value_larger_than_the_server_takes_is_refused_with_its_key(kv: KVBucket, others: int) -> None:
    size = kv._connection.server_info.max_payload
    with refused(ValueTooLargeError, kv.transaction()) as (tx, caught):
        for key in MANY[:others]:
            tx.set(key, bytes(size // 2))
        tx.set("large", bytes(size + 1))
    assert (caught[0].bucket, caught[0].key, caught[0].size) == (kv.name, "large", size + 1)
    assert kv.status().messages == 0
    kv.set("k", b"the connection is still there")


@pytest.mark.parametrize("others", [0, 3])
def test_value_larger_than_the_bucket_takes_is_refused_with_its_key(new_kv: NewKV, others: int) -> None:
    kv = new_kv(max_value_size=1000)
    with refused(ValueTooLargeError, kv.transaction()) as (tx, caught):
        for key in MANY[:others]:
            tx.set(key, b"v")
        tx.set("large", bytes(1001))
        for key in MANY[others : 2 * others]:
            tx.set(key, b"v")
    assert (caught[0].bucket, caught[0].key, caught[0].size) == (kv.name, "large", 1001)
    assert kv.status().messages == 0


def test_full_bucket_takes_nothing_of_a_transaction(new_kv: NewKV) -> None:
    kv = new_kv(max_bytes=10_000)
    with refused(BucketFullError, kv.transaction()) as (tx, caught):
        for key in MANY[:5]:
            tx.set(key, bytes(3000))
    assert caught[0].bucket == kv.name
    assert kv.status().messages == 0


def test_bad_arguments_are_refused_at_once(kv: KVBucket) -> None:
    cases: list[tuple[type[Exception], Callable[[Transaction], object]]] = [
        (InvalidKeyError, lambda tx: tx.get("a:b")),
        (InvalidKeyError, lambda tx: tx.set("$tx", b"v")),
        (InvalidKeyError, lambda tx: tx.get_many(["k", ""])),
        (TypeError, lambda tx: tx.get_many("key")),
        (TypeError, lambda tx: tx.set("k", "text")),  # type: ignore[arg-type]
        (ValueError, lambda tx: tx.set("k", b"v", ttl=0.5)),
        (ValueError, lambda tx: tx.get("k", timeout=-1)),
    ]
    with api_calls(kv) as calls:
        with kv.transaction() as tx:
            for error, call in cases:
                with pytest.raises(error):
                    call(tx)
        assert calls() == []
    with pytest.raises(ValueError, match="timeout"):
        kv.transaction(timeout=-1)


@pytest.mark.old_server
def test_old_server_is_refused_before_anything_is_read(old_connection: Connection) -> None:
    kv = old_connection.kv(KVBucketConfig("transactions", storage="memory"))
    with pytest.raises(UnsupportedByServerError, match=r"a transaction needs nats-server 2\.12\.0 or newer"):
        kv.transaction()


def test_bucket_of_another_client_is_refused_until_it_is_opened_by_a_configuration(
    new_kv: NewKV, connection: Connection
) -> None:
    kv = new_kv()
    raw_kv(kv).update(allow_atomic=False)
    others = connection.kv(kv.name)
    with pytest.raises(BucketConfigError, match="open it with a KVBucketConfig") as caught:
        others.transaction()
    assert caught.value.bucket == kv.name
    with refused(BucketConfigError, kv.transaction()) as (tx, errors):  # this one was opened before
        tx.set("k", b"v")
        tx.set("l", b"v")
    assert "open it with a KVBucketConfig" in str(errors[0])
    assert kv.keys() == []
    with new_kv(name=kv.name).transaction() as tx:
        tx.set("k", b"v")
        tx.set("l", b"v")
    assert len(kv.keys()) == 2


# --- time, and buckets that go away


def test_deadline_of_the_transaction_is_that_of_its_end(kv: KVBucket) -> None:
    with refused(OperationTimeoutError, kv.transaction(timeout=0)) as (tx, caught):
        tx.set("k", b"v")
        tx.set("l", b"v")
    assert str(caught[0]) == f"committing a transaction of bucket '{kv.name}' timed out after 0 s"
    assert kv.keys() == []


def test_deadline_of_a_read_is_its_own(kv: KVBucket) -> None:
    with kv.transaction(timeout=None) as tx:
        with pytest.raises(OperationTimeoutError, match="reading key 'k'"):
            tx.get("k", timeout=0)
        tx.set("k", b"v")
    assert kv.get("k") == b"v"


@pytest.mark.parametrize("count", [1, 3])
def test_bucket_that_was_deleted_meanwhile_is_said_to_be_missing(kv: KVBucket, count: int) -> None:
    with refused(BucketNotFoundError, kv.transaction()) as (tx, _):
        for key in MANY[:count]:
            tx.set(key, b"v")
        raw_kv(kv).delete()
    with kv.transaction() as tx, pytest.raises(BucketNotFoundError):
        tx.get("k")
