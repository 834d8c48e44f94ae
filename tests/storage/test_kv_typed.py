"""A bucket seen through a codec: the same calls, other values, and errors that name the key."""

from __future__ import annotations

import inspect
from typing import Any, assert_type

import pytest

from mono_sync import (
    CodecError,
    Entry,
    JSONCodec,
    KeyNotFoundError,
    KVBucket,
    KVStoragePort,
    LockNotAcquiredError,
    Operation,
    RevisionMismatchError,
    TextCodec,
    Transaction,
    TypedBucket,
)
from tests.storage.conftest import NewKV
from tests.storage.helpers import refused


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


def test_the_message_does_not_repeat_what_the_codec_says_of_the_value(people: TypedBucket[Any]) -> None:
    class Number:
        def encode(self, value: int) -> bytes:
            return b"%d" % value

        def decode(self, data: bytes) -> int:
            return int(data)

    people.bucket.set("a", b"secret")
    with pytest.raises(CodecError, match=r"cannot be decoded: ValueError$") as caught:
        people.bucket.typed(Number()).get("a")
    assert "secret" in str(caught.value.__cause__)


def test_text_is_text(any_kv: KVBucket) -> None:
    names = any_kv.typed(TextCodec())
    names.set("a", "grüße")
    assert names.get("a") == "grüße"
    with pytest.raises(CodecError, match="cannot be encoded: TypeError") as caught:
        names.set("a", b"bytes")  # type: ignore[arg-type]
    assert "must be a str, not bytes" in str(caught.value.__cause__)


def test_a_codec_that_returns_no_bytes_is_told_so(any_kv: KVBucket) -> None:
    class Broken:
        def encode(self, value: str, /) -> bytes:
            return value  # type: ignore[return-value]

        def decode(self, data: bytes, /) -> str:
            return data.decode()

    with pytest.raises(CodecError, match="str instead of bytes"):
        any_kv.typed(Broken()).set("a", "text")


# --- all that the bucket can do


def calls_of(cls: type) -> dict[str, list[tuple[str, object, object]]]:
    """Return name, kind and default of the parameters of each call."""
    return {
        name: [(parameter.name, parameter.kind, parameter.default) for parameter in parameters]
        for name, call in inspect.getmembers(cls, inspect.isfunction)
        if name.strip("_") and (not name.startswith("_") or name in special)
        for parameters in [inspect.signature(call).parameters.values()]
    }


special = {f"__{name}__" for name in ("getitem", "setitem", "delitem", "contains", "iter", "len", "bool")}


def test_every_call_of_a_bucket_is_there_with_the_same_parameters() -> None:
    typed, plain = calls_of(TypedBucket), calls_of(KVBucket)
    assert plain.keys() - typed.keys() == {"typed"}
    assert typed == {name: parameters for name, parameters in plain.items() if name != "typed"}


def test_it_is_the_port_for_its_values(kv: KVBucket) -> None:
    port: KVStoragePort[str] = kv.typed(TextCodec())
    assert isinstance(port, KVStoragePort)
    port.set("a", "text")
    assert_type(port.get("a"), str | None)
    assert port.get_entry("a").value == "text"
    of_bytes: KVStoragePort = kv
    assert_type(of_bytes.get_entry("a"), Entry)


def test_types_are_inferred(kv: KVBucket) -> None:
    names = kv.typed(TextCodec())
    assert_type(names, TypedBucket[str])
    assert_type(names.bucket, KVBucket)
    names.set("a", "one")
    assert_type(names.get("a"), str | None)
    assert_type(names.get("a", 0), str | int)
    assert_type(names["a"], str)
    assert_type(names.get_entry("a"), Entry[str])
    assert_type(names.history("a"), list[Entry[str | None]])
    assert_type(names.get_many(["a"]), dict[str, str])
    assert_type(names.modify("a", lambda value: value), Entry[str | None])
    with names.transaction() as tx:
        assert_type(tx, Transaction[str, str])
        assert_type(tx.get("a"), str | None)
        assert_type(tx.get_entry("a"), Entry[str])
        assert_type(tx.get_many(["a"]), dict[str, str])
    with kv.transaction() as plain:
        assert_type(plain, Transaction)
        assert_type(plain.get("a"), bytes | None)


def test_what_has_no_values_is_the_same(kv: KVBucket) -> None:
    names = kv.typed(TextCodec())
    names.set_many({"a": "1", "b": "2"})
    names.delete("b")
    assert names.status() == kv.status()
    assert names.purge_deletes(0) == 1
    with kv.lock("lock"), pytest.raises(LockNotAcquiredError):
        names.lock("lock", timeout=0).acquire()
    names.reset()
    assert names.keys() == []


def test_an_empty_bucket_is_true(people: TypedBucket[Any]) -> None:
    assert people


# --- several keys as one


def test_transaction_reads_and_writes_values(kv: KVBucket) -> None:
    people = kv.typed(JSONCodec())
    people.set("ada", {"born": 1815})
    with people.transaction() as tx:
        ada = tx.get_many(["ada"])["ada"]
        ada["died"] = 1852
        assert tx.get("ada") == {"born": 1815}  # what was read is not what is written
        tx.set("ada", ada)
        tx.set("none", None)
        assert tx.get_many(["ada", "none", "nobody"]) == {"ada": ada, "none": None}
        assert tx.get_entry("ada").value == ada
        tx.delete("bob")
    assert tx.revisions.keys() == {"ada", "none", "bob"}
    assert people.get_many(["ada", "none"]) == {"ada": {"born": 1815, "died": 1852}, "none": None}


def test_transaction_meets_conflicts(kv: KVBucket) -> None:
    names = kv.typed(TextCodec())
    with refused(RevisionMismatchError, names.transaction()) as (tx, errors):
        tx.set("a", "one")
        names.set("a", "other")
    assert errors[0].key == "a"
    assert names.get("a") == "other"


def test_transaction_with_a_value_that_cannot_be_encoded_does_not_write_it(kv: KVBucket) -> None:
    people = kv.typed(JSONCodec())
    with people.transaction() as tx:
        with pytest.raises(CodecError, match=r"key 'b'.*cannot be encoded"):
            tx.set("b", object())
        assert tx.get("b") is None
        tx.set("a", 1)
    assert people.keys() == ["a"]


def test_transaction_can_replace_what_it_cannot_decode(kv: KVBucket) -> None:
    people = kv.typed(JSONCodec())
    kv.set("a", b"{")
    with people.transaction() as tx:
        with pytest.raises(CodecError, match="key 'a' at revision 1 "):
            tx.get("a")
        tx.set("a", {})
    assert people.get("a") == {}


def test_modify_many_sees_and_returns_values(kv: KVBucket) -> None:
    stock = kv.typed(JSONCodec())
    stock.set_many({"apples": 3, "pears": 1})

    def move(found: dict[str, Any]) -> dict[str, Any]:
        assert found == {"apples": 3, "pears": 1, "plums": None}
        return {"apples": found["apples"] - 1, "pears": None, "plums": 2}

    assert stock.modify_many(["apples", "pears", "plums"], move).keys() == {"apples", "pears", "plums"}
    assert stock.get_many(["apples", "pears", "plums"]) == {"apples": 2, "plums": 2}


# --- which revision


def test_errors_name_the_revision_where_it_is_known(new_kv: NewKV) -> None:
    kv = new_kv(history=3)
    people = kv.typed(JSONCodec())
    bad = kv.put_with_revision("a", b"{")
    people.set("a", {})
    with pytest.raises(CodecError, match=f"key 'a' at revision {bad} of bucket") as caught:
        people.history("a")
    assert caught.value.revision == bad
    with pytest.raises(CodecError) as caught:
        people.get_entry("a", revision=bad)
    assert caught.value.revision == bad
    with pytest.raises(CodecError) as caught:
        people.set("a", object())
    assert caught.value.revision is None
