"""Keys whose time is up count as missing, however the server shows that."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from mono_sync import (
    BucketConfigError,
    Connection,
    KeyNotFoundError,
    KVBucket,
    KVBucketConfig,
    RevisionMismatchError,
)
from tests.fixtures.waiting import wait_until
from tests.storage.conftest import NewKV
from tests.storage.helpers import RawStream, raw_kv

SECOND = 10**9


def _expired(kv: KVBucket, *keys: str) -> None:
    wait_until(lambda: all(kv.get(key) is None for key in keys), "keys expire", timeout=5)


def _assert_missing(kv: KVBucket, key: str) -> None:
    assert kv.get(key, b"d") == b"d"
    assert kv.keys() == []
    with pytest.raises(KeyNotFoundError):
        kv.get_entry(key)


def test_keys_expire_with_the_ttl_of_the_bucket(any_new_kv: NewKV) -> None:
    kv = any_new_kv(ttl=1)
    kv.set("k", b"v")
    revision = kv.put_with_revision("updated", b"v")
    assert kv.get("k") == b"v"
    _expired(kv, "k", "updated")
    _assert_missing(kv, "k")
    with pytest.raises(RevisionMismatchError) as caught:
        kv.update("updated", b"w", revision)
    marker = kv.history("updated")  # which old servers do not leave
    assert caught.value.actual == (marker[0].revision if marker else 0)
    kv.create("k", b"again")
    assert kv.get("k") == b"again"


def test_each_way_to_write_takes_a_ttl_and_the_key_expires(kv: KVBucket) -> None:
    kv.set("set", b"v", ttl=1)
    kv.put_with_revision("put", b"v", ttl=timedelta(seconds=1))
    kv.create("created", b"v", ttl=0.5 + 0.5)
    kv.update("updated", b"w", kv.put_with_revision("updated", b"v"), ttl=1)
    kv.set("stays", b"v")
    assert len(kv.keys()) == 5
    _expired(kv, "set", "put", "created", "updated")
    assert kv.keys() == ["stays"]
    for key in ("set", "created"):
        kv.create(key, b"again", ttl=5)
        assert kv.get(key) == b"again"


def test_a_ttl_lasts_at_least_as_long_as_asked_for(kv: KVBucket) -> None:
    kv.set("k", b"v", ttl=1.1)  # rounded up to 2
    kv.set("shorter", b"v", ttl=1)
    _expired(kv, "shorter")
    assert kv.get("k") == b"v"


def test_the_ttl_of_the_bucket_holds_for_keys_of_a_longer_one(new_kv: NewKV) -> None:
    kv = new_kv(ttl=1)
    kv.set("k", b"v", ttl=100)
    _expired(kv, "k")


# The server takes up to 292 years, but counts until 2262: what goes beyond that would be gone at once.
@pytest.mark.parametrize("ttl", [0, 0.5, -1, timedelta(0), float("nan"), float("inf"), 240 * 366 * 86400, 1e10, 2**62])
def test_impossible_ttl_is_refused(kv: KVBucket, ttl: Any) -> None:
    for call in (
        lambda: kv.set("k", b"v", ttl=ttl),
        lambda: kv.create("k", b"v", ttl=ttl),
        lambda: kv.update("k", b"v", 1, ttl=ttl),
    ):
        with pytest.raises(ValueError, match="ttl must be"):
            call()
    assert raw_kv(kv).state["last_seq"] == 0


def test_longest_ttl_is_taken_by_the_server(kv: KVBucket) -> None:
    kv.set("k", b"v", ttl=9_223_372_036 - 2**32)
    kv.set("short", b"v", ttl=1)
    _expired(kv, "short")
    assert kv.get("k") == b"v"


def test_ttl_of_a_wrong_type_is_refused(kv: KVBucket) -> None:
    with pytest.raises(TypeError, match="ttl must be seconds or a timedelta"):
        kv.set("k", b"v", ttl="5")  # type: ignore[arg-type]


@pytest.mark.parametrize("history", [1, 5])
def test_write_without_ttl_clears_an_earlier_one(new_kv: NewKV, history: int) -> None:
    kv = new_kv(history=history)
    kv.set("k", b"1", ttl=1)
    kv.set("other", b"1", ttl=1)
    kv.set("k", b"2")
    _expired(kv, "other")
    assert kv.get("k") == b"2"


def test_no_older_value_comes_back_when_a_key_with_history_expires(new_kv: NewKV) -> None:
    kv = new_kv(history=5)
    for value in (b"1", b"2", b"3"):
        kv.set("set", value)
        kv.set("updated", value)
    revision = kv.put_with_revision("updated", b"4")
    kv.set("set", b"last", ttl=1)
    kv.update("updated", b"last", revision, ttl=1)
    assert kv.get("set") == b"last"
    _expired(kv, "set", "updated")
    _assert_missing(kv, "set")
    _assert_missing(kv, "updated")
    assert all(entry.expired for key in ("set", "updated") for entry in kv.history(key))
    wait_until(lambda: kv.status().messages == 0, "the markers expire as well", timeout=5)


@pytest.mark.parametrize(("before", "after"), [(1, 5), (5, 1)])
def test_no_older_value_comes_back_though_the_history_was_changed_later(
    new_kv: NewKV, connection: Connection, before: int, after: int
) -> None:
    kv = new_kv(history=before)
    connection.kv(KVBucketConfig(kv.name, storage="memory", history=after))
    kv.set("k", b"1")
    kv.set("k", b"2", ttl=1)
    _expired(kv, "k")
    _assert_missing(kv, "k")


@pytest.fixture(params=[True, False], ids=["direct", "not-direct"])
def marking(request: pytest.FixtureRequest, new_kv: NewKV, connection: Connection) -> KVBucket:
    """A bucket where the server leaves markers, as another client may have set it up."""
    kv = new_kv()
    raw_kv(kv).update(subject_delete_marker_ttl=100 * SECOND, allow_direct=request.param)
    return connection.kv(kv.name)


def test_marker_of_an_expired_key_counts_as_missing(marking: KVBucket) -> None:
    revision = marking.put_with_revision("k", b"v", ttl=1)
    _expired(marking, "k")
    assert raw_kv(marking).subjects(">") == {f"$KV.{marking.name}.k": 1}  # the marker
    _assert_missing(marking, "k")
    with pytest.raises(RevisionMismatchError):
        marking.update("k", b"w", revision)
    marking.create("k", b"again")
    assert marking.get("k") == b"again"
    marking.delete("k")
    marking.create("k", b"and again")


def test_marker_of_a_key_that_the_server_purged_counts_as_missing(marking: KVBucket) -> None:
    marking.set("k", b"v")
    raw = raw_kv(marking)
    raw.put(f"$KV.{marking.name}.k", b"", {"Nats-Marker-Reason": "Purge", "Nats-TTL": "100"})
    _assert_missing(marking, "k")
    marking.create("k", b"again")
    assert marking.get("k") == b"again"


def test_ttl_in_a_bucket_that_allows_none_says_what_to_do(connection: Connection, name: str) -> None:
    raw = RawStream(connection, f"KV_{name}")
    raw.create(subjects=[f"$KV.{name}.>"], storage="memory", allow_rollup_hdrs=True, max_msgs_per_subject=1)
    kv = connection.kv(name)
    with pytest.raises(BucketConfigError, match="allows no TTL per key or object; open it with a KVBucketConfig"):
        kv.set("k", b"v", ttl=5)
    assert kv.get("k") is None
    raw.delete()
