"""Watchers of a typed bucket: decoded values, and values that cannot be decoded, which neither block nor vanish."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any, assert_type

import pytest

from mono_sync import ClosedError, CodecError, Entry, JSONCodec, KVBucket, Operation, TextCodec, TypedBucket, Watcher
from tests.fixtures.waiting import wait_until
from tests.storage.conftest import NewKV
from tests.storage.helpers import raw_kv, write_at_once
from tests.support.threads import Background


class Interrupted(BaseException):
    """Raised in the middle of a codec."""


@pytest.fixture
def names(any_kv: KVBucket) -> TypedBucket[str]:
    return any_kv.typed(TextCodec())


def shown(entries: Sequence[Entry[str | None]]) -> list[tuple[str, str | None]]:
    return [(entry.key, entry.value) for entry in entries]


def spoil(bucket: TypedBucket[str], key: str) -> int:
    """Write what is no text, and return its revision."""
    return bucket.bucket.put_with_revision(key, b"\xff")


# --- values


def test_values_are_decoded_and_what_is_removed_has_none(any_new_kv: NewKV) -> None:
    names = any_new_kv(history=3).typed(TextCodec())
    names.set("a", "eins")
    with names.watch_all() as watcher:
        assert watcher.next() == names.get_entry("a")
        names.set("b", "zwölf")
        names.delete("a")
        entries = [watcher.next(), watcher.next()]
        names.purge("c")
        entries.append(watcher.next())
        assert shown(entries) == [("b", "zwölf"), ("a", None), ("c", None)]
        assert [entry.operation for entry in entries] == [Operation.PUT, Operation.DELETE, Operation.PURGE]


def test_an_expired_key_has_no_value(kv: KVBucket) -> None:
    names = kv.typed(TextCodec())
    with names.watch("k") as watcher:
        names.set("k", "v", ttl=1)
        assert watcher.next().value == "v"
        entry = watcher.next(timeout=5)
        assert (entry.value, entry.expired, entry.removed) == (None, True, True)


def test_meta_only_decodes_nothing(any_kv: KVBucket) -> None:
    any_kv.set("a", b"no JSON")
    with any_kv.typed(JSONCodec()).watch_all(meta_only=True) as watcher:
        entry = watcher.next()
        assert (entry.key, entry.value, entry.operation) == ("a", None, Operation.PUT)


def test_a_stored_null_is_a_value(any_kv: KVBucket) -> None:
    values = any_kv.typed(JSONCodec())
    values.set("a", None)
    with values.watch_all() as watcher:
        (entry,) = watcher.snapshot()
        assert (entry.value, entry.removed) == (None, False)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [("b", "2"), ("a", "3"), ("c", None)]),
        ({"ignore_deletes": True}, [("b", "2"), ("a", "3")]),
        ({"include_history": True}, [("a", "1"), ("b", "2"), ("a", "3"), ("c", None)]),
        ({"resume_from": 2}, [("a", "3"), ("c", None)]),
        ({"updates_only": True}, []),
    ],
)
def test_options_are_those_of_the_bucket(
    any_new_kv: NewKV, options: dict[str, Any], expected: list[tuple[str, str | None]]
) -> None:
    names = any_new_kv(history=3).typed(TextCodec())
    for key, value in (("a", "1"), ("b", "2"), ("a", "3")):
        names.set(key, value)
    names.delete("c")
    with names.watch_all(**options) as watcher, names.watch(">", **options) as same:
        assert shown([watcher.next() for _ in expected]) == expected
        assert shown([same.next() for _ in expected]) == expected
        names.set("d", "new")
        assert shown([watcher.next(), same.next()]) == [("d", "new")] * 2


def test_snapshot_position_and_stop_are_those_of_a_watcher(names: TypedBucket[str]) -> None:
    names.set_many({"a.1": "1", "a.2": "2", "b": "3"})
    with names.watch("a.*") as watcher:
        assert shown(watcher.snapshot()) == [("a.1", "1"), ("a.2", "2")]
        assert watcher.synced
        reading = Background(lambda: [shown([entry]) for entry in watcher])
        names.set("a.1", "4")
        wait_until(lambda: watcher.position == 4, "it was read")
        watcher.stop()
        assert reading.result() == [[("a.1", "4")]]
        with pytest.raises(ClosedError):
            watcher.next()
    with names.watch("a.*", resume_from=2) as watcher:
        assert shown(watcher.snapshot()) == [("a.1", "4")]


def test_types_are_inferred(names: TypedBucket[str]) -> None:
    names.set("a", "1")
    with names.watch_all() as watcher:
        assert_type(watcher, Watcher[str | None])
        assert_type(watcher.snapshot(), list[Entry[str | None]])
        names.set("a", "2")
        assert_type(watcher.next(), Entry[str | None])
        names.set("a", "3")
        for entry in watcher:
            assert_type(entry.value, str | None)
            break
    with names.bucket.watch_all() as plain:
        assert_type(plain, Watcher)
        assert_type(plain.next().value, bytes)


# --- values that cannot be decoded


def test_bad_value_is_raised_in_its_turn_and_reading_goes_on_after_it(names: TypedBucket[str]) -> None:
    names.set("a", "1")
    bad = spoil(names, "b")
    names.set("c", "3")
    with names.watch_all() as watcher:
        assert watcher.next().key == "a"
        with pytest.raises(CodecError, match=rf"key 'b' at revision {bad} of bucket .* cannot be decoded") as caught:
            watcher.next()
        assert (caught.value.bucket, caught.value.key, caught.value.revision) == (names.name, "b", bad)
        assert watcher.position == bad
        assert watcher.next().key == "c"
        spoil(names, "d")
        names.set("e", "5")
        with pytest.raises(CodecError, match="'d'"):
            next(watcher)
        assert next(watcher).value == "5"


def test_another_for_goes_on_after_a_bad_value(names: TypedBucket[str]) -> None:
    for number in range(6):
        if number % 2:
            spoil(names, f"k{number}")
        else:
            names.set(f"k{number}", "good")
    with names.watch_all() as watcher:
        good: list[str] = []
        bad: list[str] = []
        while len(good) + len(bad) < 6:
            try:
                good.extend(entry.key for entry in watcher)
            except CodecError as error:
                bad.append(error.key)
    assert (good, bad) == (["k0", "k2", "k4"], ["k1", "k3", "k5"])


def test_the_bytes_of_a_bad_value_can_still_be_read(names: TypedBucket[str]) -> None:
    spoil(names, "a")
    with names.watch_all() as watcher, pytest.raises(CodecError) as caught:
        watcher.next()
    assert names.bucket.get_entry(caught.value.key, revision=caught.value.revision).value == b"\xff"


def test_bad_value_is_raised_again_for_who_resumes_before_it(names: TypedBucket[str]) -> None:
    names.set("a", "1")
    spoil(names, "b")
    with names.watch_all() as watcher:
        watcher.next()
        position = watcher.position
        with pytest.raises(CodecError):
            watcher.next()
    with names.watch_all(resume_from=position) as watcher, pytest.raises(CodecError, match="'b'"):
        watcher.next()


def test_snapshot_raises_each_bad_value_once_and_leaves_it_out_then(any_new_kv: NewKV) -> None:
    names = any_new_kv().typed(TextCodec())
    write_at_once(names.bucket, (f"k{number}" for number in range(3000)))
    bad = {spoil(names, key): key for key in ("k10", "k2000")}
    with names.watch_all() as watcher:
        for revision, key in bad.items():
            with pytest.raises(CodecError, match=f"'{key}'") as caught:
                watcher.snapshot()
            assert caught.value.revision == revision
            assert watcher.position == 0
        keys = [entry.key for entry in watcher.snapshot()]
        assert keys == [f"k{number}" for number in range(3000) if number not in (10, 2000)]
        assert watcher.synced
        spoil(names, "k10")
        with pytest.raises(CodecError, match="'k10'"):  # another revision
            watcher.next()
        names.set("k10", "mended")
        assert watcher.next().value == "mended"


def test_what_a_snapshot_has_raised_is_there_again_for_next(names: TypedBucket[str]) -> None:
    names.set("a", "1")
    spoil(names, "b")
    with names.watch_all() as watcher:
        with pytest.raises(CodecError):
            watcher.snapshot()
        assert watcher.next().key == "a"
        with pytest.raises(CodecError, match="'b'"):
            watcher.next()


def test_value_that_was_mended_meanwhile_is_in_the_next_snapshot(names: TypedBucket[str]) -> None:
    spoil(names, "a")
    with names.watch_all() as watcher:
        with pytest.raises(CodecError):
            watcher.snapshot()
        names.set("a", "mended")
        assert shown(watcher.snapshot()) == [("a", "mended")]


def test_bad_value_of_a_bucket_made_anew_is_raised_though_its_revision_was_raised_before(any_new_kv: NewKV) -> None:
    names = any_new_kv().typed(TextCodec())
    assert spoil(names, "a") == 1
    with names.watch_all() as watcher:
        with pytest.raises(CodecError):
            watcher.snapshot()
        raw_kv(names.bucket).delete()
        names = any_new_kv(name=names.name).typed(TextCodec())
        assert spoil(names, "a") == 1
        with pytest.raises(CodecError):
            watcher.snapshot()


# --- interrupts


class Stubborn(TextCodec):
    """Is interrupted by one value, once, when it is told to."""

    def __init__(self) -> None:
        self.entered, self.go_on = threading.Event(), threading.Event()

    def decode(self, data: bytes, /) -> str:
        if data == b"stubborn" and not self.entered.is_set():
            self.entered.set()
            assert self.go_on.wait(10)
            raise Interrupted
        return super().decode(data)


@pytest.mark.parametrize("how", ["next", "snapshot"])
def test_interrupt_in_the_codec_delivers_the_entry_again(any_kv: KVBucket, how: str) -> None:
    codec = Stubborn()
    codec.go_on.set()
    names = any_kv.typed(codec)
    names.set_many({"a": "stubborn", "b": "2"})
    with names.watch_all() as watcher:
        with pytest.raises(Interrupted):
            watcher.next() if how == "next" else watcher.snapshot()
        assert watcher.position == 0
        assert shown(watcher.snapshot()) == [("a", "stubborn"), ("b", "2")]


def test_entry_of_an_interrupted_thread_goes_to_the_next_one_and_none_comes_twice(any_kv: KVBucket) -> None:
    codec = Stubborn()
    names = any_kv.typed(codec)
    names.set_many({"a": "stubborn", "b": "2", "c": "3"})
    with names.watch_all() as watcher:
        first = Background(watcher.next)
        assert codec.entered.wait(10)
        second = Background(lambda: [watcher.next() for _ in range(3)])
        codec.go_on.set()
        assert type(first.error()) is Interrupted
        assert shown(second.result()) == [("a", "stubborn"), ("b", "2"), ("c", "3")]
