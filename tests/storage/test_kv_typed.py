"""A bucket seen through a codec: the same calls, other values, and errors that name the key."""

from __future__ import annotations

from typing import Any

import pytest

from mono_sync import CodecError, JSONCodec, KeyNotFoundError, KVBucket, Operation, TextCodec, TypedBucket
from tests.storage.conftest import NewKV


@pytest.fixture
def people(any_kv: KVBucket) -> TypedBucket[Any]:
    return any_kv.typed(JSONCodec())


def test_values_come_back_as_they_were_written(people: TypedBucket[Any]) -> None:
    people.set("ada", {"born": 1815})
    assert people.get("ada") == {"born": 1815}
    assert people.get_entry("ada").value == {"born": 1815}
    assert people["ada"] == {"born": 1815}
    assert people.get("nobody") is None
    assert people.get("nobody", "default") == "default"


def test_the_bucket_holds_the_bytes(people: TypedBucket[Any]) -> None:
    people.set("ada", ["é"])
    assert people.bucket.get("ada") == '["é"]'.encode()
    assert people.name == people.bucket.name


def test_every_way_to_write_encodes(people: TypedBucket[Any]) -> None:
    revision = people.create("a", 1)
    assert people.update("a", 2, revision) == people.get_entry("a").revision
    assert people.put_with_revision("a", 3) > revision
    people["b"] = 4
    assert people.set_many({"c": 5, "d": None}).keys() == {"c", "d"}
    assert people.get_many(["a", "b", "c", "d", "e"]) == {"a": 3, "b": 4, "c": 5, "d": None}
    people.delete_many(["c", "d"])
    people.delete("b")
    assert people.keys() == list(people) == ["a"]
    assert ("a" in people, "b" in people, len(people)) == (True, False, 1)
    del people["a"]
    with pytest.raises(KeyNotFoundError):
        _ = people["a"]


def test_history_has_no_values_for_deletions(new_kv: NewKV) -> None:
    names = new_kv(history=3).typed(TextCodec())
    names.set("a", "one")
    names.delete("a")
    assert [(entry.value, entry.operation) for entry in names.history("a")] == [
        ("one", Operation.PUT),
        (None, Operation.DELETE),
    ]
    assert names.get_entry("a", revision=1).value == "one"
    names.purge("a")


def test_modify_sees_and_returns_values(people: TypedBucket[Any]) -> None:
    assert people.modify("count", lambda value: (value or 0) + 1).value == 1
    assert people.modify("count", lambda value: (value or 0) + 1).value == 2
    assert people.modify("count", lambda _: None).value is None
    assert people.get("count") is None


def test_touch_keeps_the_value(kv: KVBucket) -> None:
    names = kv.typed(TextCodec())
    names.set("a", "one", ttl=60)
    names.touch("a", None)
    assert names.get("a") == "one"


def test_a_value_that_cannot_be_encoded_names_the_key_and_nothing_is_sent(people: TypedBucket[Any]) -> None:
    with pytest.raises(CodecError, match=r"key 'a'.*cannot be encoded") as caught:
        people.set("a", object())
    assert (caught.value.bucket, caught.value.key) == (people.name, "a")
    with pytest.raises(CodecError, match="'b'"):
        people.set_many({"a": 1, "b": float("nan")})
    assert len(people) == 0


def test_bytes_that_cannot_be_decoded_name_the_key(people: TypedBucket[Any]) -> None:
    people.bucket.set("a", b"{")
    for read in (people.get, people.get_entry, people.__getitem__, lambda key: people.get_many([key])):
        with pytest.raises(CodecError, match=r"key 'a'.*cannot be decoded"):
            read("a")


def test_text_is_text(any_kv: KVBucket) -> None:
    names = any_kv.typed(TextCodec())
    names.set("a", "grüße")
    assert names.get("a") == "grüße"
    with pytest.raises(CodecError, match="must be a str, not bytes"):
        names.set("a", b"bytes")  # type: ignore[arg-type]


def test_a_codec_that_returns_no_bytes_is_told_so(any_kv: KVBucket) -> None:
    class Broken:
        def encode(self, value: str, /) -> bytes:
            return value  # type: ignore[return-value]

        def decode(self, data: bytes, /) -> str:
            return data.decode()

    with pytest.raises(CodecError, match="str instead of bytes"):
        any_kv.typed(Broken()).set("a", "text")
