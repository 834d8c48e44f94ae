"""What the calls of a key-value bucket return and raise, on both servers."""

from __future__ import annotations

import copy
import pickle
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from mono_sync import (
    Connection,
    Entry,
    InvalidKeyError,
    JSONCodec,
    KeyExistsError,
    KeyNotFoundError,
    KVBucket,
    KVStoragePort,
    ObjectBucket,
    Operation,
    RevisionMismatchError,
)
from tests.storage.conftest import NewKV
from tests.storage.helpers import api_calls, raw_kv, together

# --- get


def test_missing_key_gives_none_or_the_default(any_kv: KVBucket) -> None:
    assert any_kv.get("k") is None
    assert any_kv.get("k", b"d") == b"d"
    assert any_kv.get("k", 5) == 5


def test_empty_value_is_empty_bytes_and_not_the_default(any_kv: KVBucket) -> None:
    any_kv.set("k", b"")
    assert any_kv.get("k", b"d") == b""
    assert any_kv.get_entry("k").value == b""
    assert any_kv.keys() == ["k"]


@pytest.mark.parametrize("value", [b"v", b"\0\r\n\xff", bytes(range(256)) * 400])
def test_value_comes_back_as_it_was_written(any_kv: KVBucket, value: bytes) -> None:
    any_kv.set("k", value)
    assert any_kv.get("k") == value


def test_entry_has_value_revision_time_and_operation(any_kv: KVBucket) -> None:
    any_kv.set("other", b"")
    any_kv.set("a.b", b"v")
    entry = any_kv.get_entry("a.b")
    expected = Entry(any_kv.name, "a.b", b"v", 2, entry.created, Operation.PUT)
    assert entry == expected
    assert not entry.expired
    assert timedelta(seconds=-5) < datetime.now(UTC) - entry.created < timedelta(seconds=5)


def test_entry_of_a_missing_key_is_not_found(any_kv: KVBucket) -> None:
    with pytest.raises(KeyNotFoundError, match="key 'k' not found in bucket") as caught:
        any_kv.get_entry("k")
    assert (caught.value.bucket, caught.value.key) == (any_kv.name, "k")
    assert isinstance(caught.value, KeyError)


# --- put, create, update


def test_set_returns_nothing_and_put_the_revision(any_kv: KVBucket) -> None:
    assert any_kv.set("k", b"1") is None  # type: ignore[func-returns-value]
    assert any_kv.put_with_revision("k", b"2") == 2
    assert any_kv.put_with_revision("other", b"3") == 3
    assert (any_kv.get("k"), any_kv.get_entry("k").revision) == (b"2", 2)


def _delete(kv: KVBucket) -> None:
    kv.delete("k")


def _purge(kv: KVBucket) -> None:
    kv.purge("k")


REMOVALS = pytest.mark.parametrize("remove", [_delete, _purge])


def test_create_writes_a_missing_key(any_kv: KVBucket) -> None:
    assert any_kv.create("k", b"v") == 1
    assert any_kv.get("k") == b"v"


def test_create_of_an_existing_key_is_refused(any_kv: KVBucket) -> None:
    any_kv.set("k", b"1")
    with pytest.raises(KeyExistsError, match="'k' already exists at revision 1 in bucket") as caught:
        any_kv.create("k", b"2")
    assert (caught.value.bucket, caught.value.key, caught.value.actual) == (any_kv.name, "k", 1)
    assert any_kv.get("k") == b"1"


def test_create_asks_the_leader_what_is_there_after_a_conflict(any_kv: KVBucket) -> None:
    """Other replicas, which answer direct gets, may not know the mark of a deletion yet."""
    any_kv.set("k", b"v")
    any_kv.delete("k")
    stream = f"KV_{any_kv.name}"
    with api_calls(any_kv) as calls:
        any_kv.get("k")
        assert calls() == [f"DIRECT.GET.{stream}.$KV.{any_kv.name}.k"]
        any_kv.create("k", b"again")
        assert calls()[1:] == [f"STREAM.MSG.GET.{stream}"]
        with pytest.raises(KeyExistsError):
            any_kv.create("k", b"and again")
        assert calls()[2:] == [f"STREAM.MSG.GET.{stream}"]


def test_create_of_an_existing_empty_value_is_refused(any_kv: KVBucket) -> None:
    any_kv.set("k", b"")
    with pytest.raises(KeyExistsError):
        any_kv.create("k", b"2")


@REMOVALS
@pytest.mark.parametrize("history", [1, 3])
def test_removed_key_counts_as_missing(any_new_kv: NewKV, remove: Any, history: int) -> None:
    kv = any_new_kv(history=history)
    kv.set("k", b"v")
    remove(kv)
    assert kv.get("k", b"d") == b"d"
    assert kv.keys() == []
    with pytest.raises(KeyNotFoundError):
        kv.get_entry("k")


@REMOVALS
@pytest.mark.parametrize("history", [1, 3])
def test_create_works_after_a_removal_again_and_again(any_new_kv: NewKV, remove: Any, history: int) -> None:
    kv = any_new_kv(history=history)
    for number in range(5):
        value = str(number).encode()
        revision = kv.create("k", value)
        assert (kv.get("k"), kv.get_entry("k").revision) == (value, revision)
        remove(kv)


def test_update_of_the_newest_revision_writes(any_kv: KVBucket) -> None:
    first = any_kv.put_with_revision("k", b"1")
    second = any_kv.update("k", b"2", first)
    assert second > first
    assert any_kv.get_entry("k").revision == second
    assert any_kv.get("k") == b"2"


def test_update_of_an_older_revision_is_a_mismatch(any_kv: KVBucket) -> None:
    first = any_kv.put_with_revision("k", b"1")
    second = any_kv.put_with_revision("k", b"2")
    with pytest.raises(RevisionMismatchError, match="is not at revision 1, it is at 2") as caught:
        any_kv.update("k", b"3", first)
    error = caught.value
    assert (error.bucket, error.key, error.expected, error.actual) == (any_kv.name, "k", first, second)
    assert any_kv.get("k") == b"2"


def test_update_of_a_missing_key_is_a_mismatch(any_kv: KVBucket) -> None:
    with pytest.raises(RevisionMismatchError, match="it does not exist") as caught:
        any_kv.update("k", b"v", 7)
    assert (caught.value.expected, caught.value.actual) == (7, 0)
    assert any_kv.get("k") is None


@REMOVALS
def test_update_of_a_removed_key_is_a_mismatch(any_kv: KVBucket, remove: Any) -> None:
    revision = any_kv.put_with_revision("k", b"1")
    remove(any_kv)
    with pytest.raises(RevisionMismatchError) as caught:
        any_kv.update("k", b"v", revision)
    assert (caught.value.expected, caught.value.actual) == (revision, revision + 1)
    assert any_kv.get("k") is None


@pytest.mark.parametrize(
    ("revision", "error"),
    [
        (0, ValueError),
        (-1, ValueError),
        (2**63, ValueError),
        (2**64 + 1, ValueError),
        (True, TypeError),
        ("1", TypeError),
    ],
)
def test_impossible_revision_is_refused(any_kv: KVBucket, revision: Any, error: type[Exception]) -> None:
    any_kv.set("k", b"v")
    for call in (
        lambda: any_kv.update("k", b"w", revision),
        lambda: any_kv.delete("k", revision=revision),
        lambda: any_kv.purge("k", revision=revision),
    ):
        with pytest.raises(error, match="a revision "):
            call()
    assert any_kv.get("k") == b"v"


def test_update_without_revision_is_a_type_error(any_kv: KVBucket) -> None:
    with pytest.raises(TypeError):
        any_kv.update("k", b"v", None)  # type: ignore[arg-type]


@pytest.mark.parametrize("operation", ["create", "update"])
def test_of_32_threads_exactly_one_wins(any_kv: KVBucket, operation: str) -> None:
    revision = any_kv.put_with_revision("updated", b"")
    for round_number in range(3):

        def write(number: int, key: str = f"created{round_number}", revision: int = revision) -> int | None:
            value = str(number).encode()
            try:
                return any_kv.create(key, value) if operation == "create" else any_kv.update("updated", value, revision)
            except (KeyExistsError, RevisionMismatchError):
                return None

        won = {number: result for number, result in enumerate(together(32, write)) if result is not None}
        assert len(won) == 1
        ((winner, revision),) = won.items()
        entry = any_kv.get_entry(f"created{round_number}" if operation == "create" else "updated")
        assert (entry.value, entry.revision) == (str(winner).encode(), revision)


@REMOVALS
def test_of_32_threads_that_create_a_removed_key_exactly_one_wins(any_kv: KVBucket, remove: Any) -> None:
    def create(number: int) -> bool:
        try:
            any_kv.create("k", str(number).encode())
        except KeyExistsError:
            return False
        return True

    for _ in range(3):
        any_kv.set("k", b"")
        remove(any_kv)
        results = together(32, create)
        assert sum(results) == 1
        assert any_kv.get("k") == str(results.index(True)).encode()


def test_no_increment_of_8_threads_is_lost(any_kv: KVBucket) -> None:
    any_kv.set("k", b"0")

    def increment(_number: int) -> None:
        done = 0
        while done < 10:
            entry = any_kv.get_entry("k")
            try:
                any_kv.update("k", str(int(entry.value) + 1).encode(), entry.revision)
            except RevisionMismatchError:
                continue
            done += 1

    together(8, increment)
    assert any_kv.get("k") == b"80"


# --- delete, purge


@REMOVALS
def test_removal_is_idempotent(any_kv: KVBucket, remove: Any) -> None:
    remove(any_kv)
    any_kv.set("k", b"v")
    remove(any_kv)
    remove(any_kv)
    assert any_kv.get("k") is None


def test_delete_keeps_older_revisions_and_purge_does_not(any_new_kv: NewKV) -> None:
    kv = any_new_kv(history=5)
    for key in ("deleted", "purged"):
        kv.set(key, b"1")
        kv.set(key, b"2")
    kv.delete("deleted")
    kv.purge("purged")
    subjects = raw_kv(kv).subjects(f"$KV.{kv.name}.>")
    assert subjects == {f"$KV.{kv.name}.deleted": 3, f"$KV.{kv.name}.purged": 1}


@pytest.mark.parametrize("call", ["delete", "purge"])
def test_conditional_removal_needs_the_newest_revision(any_kv: KVBucket, call: str) -> None:
    remove = getattr(any_kv, call)
    old = any_kv.put_with_revision("k", b"1")
    new = any_kv.put_with_revision("k", b"2")
    with pytest.raises(RevisionMismatchError) as caught:
        remove("k", revision=old)
    assert (caught.value.expected, caught.value.actual) == (old, new)
    assert any_kv.get("k") == b"2"
    remove("k", revision=new)
    assert any_kv.get("k") is None


@pytest.mark.parametrize("call", ["delete", "purge"])
def test_conditional_removal_of_a_missing_key_is_a_mismatch(any_kv: KVBucket, call: str) -> None:
    with pytest.raises(RevisionMismatchError, match="does not exist") as caught:
        getattr(any_kv, call)("k", revision=3)
    assert (caught.value.expected, caught.value.actual) == (3, 0)


def test_conditional_purge_drops_the_history(any_new_kv: NewKV) -> None:
    kv = any_new_kv(history=5)
    kv.set("k", b"1")
    kv.purge("k", revision=kv.put_with_revision("k", b"2"))
    assert kv.status().messages == 1


# --- keys and values that are refused

BAD_KEYS = [
    ("user:123", "NATS allows no colon in a key; write 'user.123' instead"),
    ("a:b:c", "write 'a.b.c' instead"),
    ("a..b", "nor hold two in a row"),
    (".a", "must not begin or end with a dot"),
    ("a.", "must not begin or end with a dot"),
    (".", "must not begin or end with a dot"),
    ("a b", "letters, digits and - / _ = . are allowed"),
    ("a\n", "letters, digits"),
    ("a\0", "letters, digits"),
    ("ü", "letters, digits"),
    ("a*", "letters, digits"),
    ("*", "letters, digits"),
    (">", "letters, digits"),
    ("", "it is empty"),
    ("x" * 4096, "too long"),
]


def _calls(kv: KVBucket, key: Any) -> dict[str, Any]:
    return {
        "get": lambda: kv.get(key),
        "get_entry": lambda: kv.get_entry(key),
        "set": lambda: kv.set(key, b"v"),
        "put_with_revision": lambda: kv.put_with_revision(key, b"v"),
        "create": lambda: kv.create(key, b"v"),
        "update": lambda: kv.update(key, b"v", 1),
        "delete": lambda: kv.delete(key),
        "purge": lambda: kv.purge(key),
    }


@pytest.mark.parametrize(("key", "rule"), BAD_KEYS)
def test_every_call_refuses_a_bad_key_with_the_rule(kv: KVBucket, key: str, rule: str) -> None:
    for call in _calls(kv, key).values():
        with pytest.raises(InvalidKeyError, match=rule) as caught:
            call()
        assert caught.value.key == key
        assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize("key", [b"k", 5, None, ["k"]])
def test_every_call_refuses_a_key_that_is_no_str(kv: KVBucket, key: Any) -> None:
    for call in _calls(kv, key).values():
        with pytest.raises(TypeError, match=f"the key must be a str, not {type(key).__name__}"):
            call()


def test_refused_keys_change_nothing_on_the_server(any_kv: KVBucket) -> None:
    for number in range(3):
        any_kv.set(f"k{number}", b"v")
    for key in ("*", "k*", ">", "k1 ", "k.*", "a:b"):
        for call in ("purge", "delete"):
            with pytest.raises(InvalidKeyError):
                getattr(any_kv, call)(key)
    assert raw_kv(any_kv).state["last_seq"] == 3
    assert len(any_kv.keys()) == 3


@pytest.mark.parametrize("key", ["a", "A.b.C", "-", "_", "=", "/", "a/b=c_d-e.0", "path/to/file.txt"])
def test_legal_key_is_written_read_listed_and_removed(any_kv: KVBucket, key: str) -> None:
    any_kv.create(key, b"v")
    assert any_kv.get(key) == b"v"
    assert any_kv.keys() == [key]
    any_kv.purge(key)
    assert any_kv.keys() == []


def _longest_key(kv: KVBucket) -> str:
    """Find the longest key that can be written."""
    low, high = 1, 5000
    while high - low > 1:
        middle = (low + high) // 2
        try:
            kv.set("x" * middle, b"v")
            low = middle
        except InvalidKeyError:
            high = middle
    return "x" * low


def test_longest_key_that_can_be_written_works_with_every_call(any_kv: KVBucket) -> None:
    key = _longest_key(any_kv)
    assert len(key) > 3500
    any_kv.purge(key)
    revision = any_kv.create(key, b"1" * 100_000)
    revision = any_kv.update(key, b"2" * 100_000, revision)
    assert any_kv.get(key) == b"2" * 100_000
    assert any_kv.get_entry(key).revision == revision
    assert any_kv.keys()[-1] == key
    any_kv.purge(key, revision=revision)
    assert any_kv.get(key) is None


def test_longest_key_works_in_the_bucket_with_the_longest_name(any_new_kv: NewKV) -> None:
    kv = any_new_kv(name="x" * 251)
    key = _longest_key(kv)
    kv.set(key, b"v")
    assert kv.get(key) == b"v"
    kv.delete(key)
    assert kv.get(key) is None


def test_longest_key_can_be_read_without_direct_get(any_kv: KVBucket, any_connection: Connection) -> None:
    key = _longest_key(any_kv)
    raw_kv(any_kv).update(allow_direct=False)
    assert any_connection.kv(any_kv.name).get(key) == b"v"


def test_str_as_value_is_a_type_error_that_says_encode(kv: KVBucket) -> None:
    for call in (
        lambda: kv.set("k", "text"),  # type: ignore[arg-type]
        lambda: kv.create("k", "text"),  # type: ignore[arg-type]
        lambda: kv.update("k", "text", 1),  # type: ignore[arg-type]
    ):
        with pytest.raises(TypeError, match=r"not str: call \.encode\(\) first"):
            call()


@pytest.mark.parametrize("value", [5, None, ["a"], 1.5])
def test_value_that_is_not_bytes_like_is_a_type_error(kv: KVBucket, value: Any) -> None:
    with pytest.raises(TypeError, match=f"not {type(value).__name__}$"):
        kv.set("k", value)
    assert raw_kv(kv).state["last_seq"] == 0


@pytest.mark.parametrize(
    ("value", "stored"),
    [
        (bytearray(b"abc"), b"abc"),
        (memoryview(b"abc"), b"abc"),
        (memoryview(b"abcdef")[::2], b"ace"),
        (memoryview(b"abcdef")[::-1], b"fedcba"),
        (memoryview(bytes(8)).cast("I"), bytes(8)),
        (memoryview(b""), b""),
    ],
)
def test_bytes_like_values_are_taken(any_kv: KVBucket, value: Any, stored: bytes) -> None:
    any_kv.set("k", value)
    assert any_kv.get("k") == stored


def test_changing_a_mutable_value_after_the_call_changes_nothing(any_kv: KVBucket) -> None:
    value = bytearray(b"x" * 100_000)
    any_kv.set("k", value)
    value[:] = b"y" * 100_000
    assert any_kv.get("k") == b"x" * 100_000


# --- what code that only needs storage may rely on


def test_bucket_fulfils_its_port(kv: KVBucket) -> None:
    port: KVStoragePort = kv
    assert isinstance(port, KVStoragePort)
    assert port.name == kv.name


def test_bucket_and_connection_belong_to_their_process(kv: KVBucket, objects: ObjectBucket) -> None:
    advice = "open the bucket on a connection of the other process"
    for call in (pickle.dumps, copy.deepcopy):
        for bucket in (kv, kv.typed(JSONCodec()), objects):
            with pytest.raises(TypeError, match=rf"cannot pickle <.*Bucket .*: {advice}"):
                call(bucket)
        with pytest.raises(TypeError, match=r"cannot pickle <Connection .*: it belongs to this process, connect anew"):
            call(kv._connection)


def test_repr_names_bucket_and_connection(kv: KVBucket) -> None:
    assert repr(kv).startswith(f"<KVBucket '{kv.name}' of <Connection 'tests'")
