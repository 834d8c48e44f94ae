"""A bucket as a dict, what it counts, and clearing it up."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from mono_sync import InvalidKeyError, KeyNotFoundError, KVBucket, ObjectBucket, TextCodec
from tests.fixtures.waiting import wait_until
from tests.storage.conftest import NewKV
from tests.storage.helpers import raw_kv, together


def test_items_are_written_read_found_and_deleted(any_kv: KVBucket) -> None:
    any_kv["k"] = b"v"
    assert any_kv["k"] == b"v"
    assert "k" in any_kv
    del any_kv["k"]
    assert "k" not in any_kv
    assert "never" not in any_kv


def test_a_missing_key_is_a_key_error(any_kv: KVBucket) -> None:
    any_kv["deleted"] = b"v"
    any_kv.delete("deleted")
    for key in ("never", "deleted"):
        with pytest.raises(KeyError) as caught:
            any_kv[key]
        assert isinstance(caught.value, KeyNotFoundError)
        with pytest.raises(KeyNotFoundError) as gone:
            del any_kv[key]
        assert (gone.value.bucket, gone.value.key) == (any_kv.name, key)
    assert raw_kv(any_kv).state["last_seq"] == 2


def test_bad_keys_are_refused_also_by_in(kv: KVBucket) -> None:
    for call in (lambda: kv["a:b"], lambda: kv.__setitem__("a:b", b""), lambda: kv.__delitem__("a:b")):
        with pytest.raises(InvalidKeyError):
            call()
    with pytest.raises(InvalidKeyError):
        assert "a:b" in kv
    with pytest.raises(TypeError, match="the key must be a str"):
        assert 5 in kv  # type: ignore[operator]


def test_iteration_and_length_are_those_of_the_live_keys(any_kv: KVBucket) -> None:
    any_kv.set_many({"a": b"1", "b": b"2", "c": b"3"})
    del any_kv["b"]
    assert list(any_kv) == ["a", "c"]
    assert len(any_kv) == 2
    assert dict(any_kv) == {"a": b"1", "c": b"3"}


def test_an_empty_bucket_is_true_without_asking_the_server(kv: KVBucket) -> None:
    raw_kv(kv).delete()
    assert kv
    assert kv.typed(TextCodec())


def test_of_threads_that_delete_the_same_item_one_succeeds(any_kv: KVBucket) -> None:
    def delete(_: int) -> bool:
        try:
            del any_kv["k"]
        except KeyNotFoundError:
            return False
        return True

    for _ in range(10):
        any_kv["k"] = b"v"
        assert sum(together(8, delete)) == 1


def test_an_item_that_is_overwritten_meanwhile_is_deleted_all_the_same(
    any_kv: KVBucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    newest, calls = KVBucket._newest, list[int]()

    def newest_then_overwritten(self: KVBucket, *arguments: Any, **options: Any) -> Any:
        entry = newest(self, *arguments, **options)
        if not calls:
            calls.append(self.put_with_revision("k", b"other"))
        return entry

    any_kv["k"] = b"v"
    monkeypatch.setattr(KVBucket, "_newest", newest_then_overwritten)
    del any_kv["k"]
    assert calls == [2]
    assert any_kv.keys() == []


# --- status


def test_status_counts_live_and_removed_keys_apart(any_new_kv: NewKV) -> None:
    kv = any_new_kv(history=3)
    assert (kv.status().keys, kv.status().tombstones) == (0, 0)
    for _ in range(2):
        kv.set_many({f"k{number}": b"v" for number in range(10)})
    kv.delete_many(["k1", "k2", "never"])
    kv.purge("k3")
    kv.delete("k4")
    kv.set("k4", b"again")
    status = kv.status()
    assert (status.keys, status.tombstones) == (7, 4)
    assert status.messages == raw_kv(kv).state["messages"]


def test_status_of_an_object_bucket_counts_no_keys(objects: ObjectBucket) -> None:
    assert objects.status().keys is None


def test_what_others_store_under_no_legal_key_is_not_counted(any_kv: KVBucket) -> None:
    """Nobody could read it; and under ``$`` transactions keep what must not be seen."""
    any_kv.set("k", b"v")
    raw_kv(any_kv).put(f"$KV.{any_kv.name}.$internal", b"")
    raw_kv(any_kv).put(f"$KV.{any_kv.name}.of:others", b"")
    raw_kv(any_kv).put(f"$KV.{any_kv.name}.$gone", b"", {"KV-Operation": "DEL"})
    assert any_kv.keys() == ["k"]
    assert (any_kv.status().keys, any_kv.status().tombstones) == (1, 0)
    assert any_kv.purge_deletes(0) == 0


# --- purge_deletes


@pytest.mark.parametrize("history", [1, 4])
def test_marks_of_deletions_are_removed_with_what_lies_under_them(any_new_kv: NewKV, history: int) -> None:
    kv = any_new_kv(history=history)
    kv.set_many({f"k{number}": b"v" for number in range(300)})
    kv.delete_many([f"k{number}" for number in range(200)])
    kv.purge("k250")
    assert kv.purge_deletes(0) == 201
    assert kv.purge_deletes(0) == 0
    assert (kv.status().keys, kv.status().tombstones, kv.status().messages) == (99, 0, 99)
    assert kv.history("k0") == []
    assert kv.create("k0", b"again") > 500


def test_marks_that_the_server_leaves_of_expired_keys_are_removed_too(kv: KVBucket) -> None:
    kv.set("k", b"v", ttl=1)
    wait_until(lambda: kv.status().tombstones == 1, "its mark is there", timeout=5)
    assert kv.purge_deletes(timedelta(0)) == 1
    assert raw_kv(kv).state["messages"] == 0


def test_young_marks_stay(any_kv: KVBucket) -> None:
    any_kv.delete_many(["a", "b"])
    assert any_kv.purge_deletes() == 0
    assert any_kv.purge_deletes(timedelta(minutes=1)) == 0
    wait_until(lambda: any_kv.purge_deletes(0.2) == 2, "they are older than 0.2 s")


@pytest.mark.parametrize("age", [-1, float("nan"), float("inf")])
def test_impossible_age_is_refused(kv: KVBucket, age: float) -> None:
    with pytest.raises(ValueError, match="older_than must be"):
        kv.purge_deletes(age)


@pytest.mark.parametrize("history", [1, 4])
def test_what_is_written_to_a_deleted_key_meanwhile_stays(
    any_new_kv: NewKV, monkeypatch: pytest.MonkeyPatch, history: int
) -> None:
    kv = any_new_kv(history=history)
    kv.set("k", b"v")
    kv.delete_many(["k", "other"])
    found = kv._list

    def list_then_write(*arguments: Any) -> Any:
        marks = found(*arguments)
        kv.set("k", b"new")
        return marks

    monkeypatch.setattr(kv, "_list", list_then_write)
    assert kv.purge_deletes(0) == (1 if history == 1 else 2)
    monkeypatch.undo()
    assert [entry.value for entry in kv.history("k")] == [b"new"]


# --- reset


@pytest.mark.parametrize("storage", ["memory", "file"])
@pytest.mark.parametrize("history", [1, 4])
def test_reset_leaves_nothing_and_revisions_go_on(any_new_kv: NewKV, history: int, storage: str) -> None:
    kv = any_new_kv(history=history, storage=storage)
    kv.reset()
    for _ in range(2):
        kv.set_many({f"k{number}": b"v" for number in range(100)})
    kv.delete("k5")
    kv.reset()
    assert (kv.keys(), kv.history("k1"), kv.get("k1")) == ([], [], None)
    assert raw_kv(kv).state["messages"] == 0
    assert kv.create("k5", b"again") == 202
    assert len(kv) == 1


def test_what_is_written_while_a_reset_is_repeated_stays(any_kv: KVBucket, monkeypatch: pytest.MonkeyPatch) -> None:
    any_kv.set("old", b"v")
    purge = any_kv._jetstream.purge_before

    def purge_twice(*arguments: Any) -> None:
        purge(*arguments)
        any_kv.set("new", b"v")
        purge(*arguments)

    monkeypatch.setattr(any_kv._jetstream, "purge_before", purge_twice)
    any_kv.reset()
    assert any_kv.keys() == ["new"]
