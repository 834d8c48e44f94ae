"""Many keys in one call: any number of them, and each as its single call would have it."""

from __future__ import annotations

from datetime import timedelta
from itertools import count
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import mono_sync
from mono_sync import (
    BucketFullError,
    BucketNotFoundError,
    InvalidKeyError,
    KVBucket,
    KVBucketConfig,
    KVStoragePort,
    OperationTimeoutError,
    PartialWriteError,
    UnsupportedByServerError,
    ValueTooLargeError,
)
from mono_sync.connection import _reading
from tests.fixtures.waiting import wait_until
from tests.storage.conftest import NewKV
from tests.storage.helpers import raw_kv, together
from tests.support.threads import Repeated

SIZES = [0, 1, 2, 249, 250, 251, 1_000, 1_023, 1_024, 1_025, 3_000]  # chunks are of 250, windows of 500, pulls of 4,096


def values_of(size: int) -> dict[str, bytes]:
    return {f"k.{number}": b"v%d" % number for number in range(size)}


@pytest.mark.parametrize("direct", [True, False])
@pytest.mark.parametrize("size", SIZES)
def test_any_number_of_keys_is_written_read_and_deleted(any_kv: KVBucket, size: int, direct: bool) -> None:
    raw_kv(any_kv).update(allow_direct=direct)
    kv = any_kv if direct else any_kv._connection.kv(any_kv.name)  # type: ignore[attr-defined]
    values = values_of(size)
    revisions = kv.set_many(values)
    assert list(revisions.items()) == [(key, number + 1) for number, key in enumerate(values)]
    found = kv.get_many(values)
    assert list(found.items()) == list(values.items())
    assert kv.keys() == list(values)
    kv.delete_many(values)
    assert (kv.get_many(values), kv.keys()) == ({}, [])
    assert raw_kv(kv).state["last_seq"] == 2 * size


def test_missing_deleted_and_purged_keys_are_left_out(any_kv: KVBucket) -> None:
    any_kv.set_many(values_of(10))
    any_kv.delete("k.1")
    any_kv.purge("k.2")
    any_kv.set("k.1.empty", b"")
    found = any_kv.get_many(["k.3", "k.2", "never", "k.1", "k.1.empty", "k.0"])
    assert list(found.items()) == [("k.3", b"v3"), ("k.1.empty", b""), ("k.0", b"v0")]


def test_a_key_that_is_named_twice_is_read_once_and_comes_where_it_was_named_first(any_kv: KVBucket) -> None:
    any_kv.set_many(values_of(3))
    assert list(any_kv.get_many(["k.2", "k.0", "k.2", "k.0"])) == ["k.2", "k.0"]


def test_keys_may_be_any_iterable(any_kv: KVBucket) -> None:
    any_kv.set_many(values_of(3))
    assert set(any_kv.get_many(f"k.{number}" for number in range(3))) == set(values_of(3))
    any_kv.delete_many(iter(["k.0", "k.0"]))
    assert raw_kv(any_kv).state["last_seq"] == 4


def test_expired_keys_are_left_out_and_a_ttl_is_that_of_all(kv: KVBucket) -> None:
    kv.set_many(values_of(5), ttl=timedelta(seconds=1))
    kv.set_many({"k.3": b"stays", "other": b"stays"})
    assert len(kv.get_many(values_of(5))) == 5
    wait_until(lambda: kv.get("k.0") is None, "keys expire", timeout=5)
    wait_until(lambda: kv.get_many([*values_of(5), "other"]) == {"k.3": b"stays", "other": b"stays"}, "all of them")


def test_no_older_value_comes_back_when_keys_with_history_expire(new_kv: NewKV) -> None:
    kv = new_kv(history=3)
    kv.set_many(values_of(5))
    kv.set_many(dict.fromkeys(values_of(5), b"last"), ttl=1)
    wait_until(lambda: len(kv.get_many(values_of(5))) < 5, "keys expire", timeout=5)
    wait_until(lambda: kv.get_many(values_of(5)) == {}, "all of them")


@pytest.mark.old_server
def test_ttl_on_an_old_server_is_refused_before_anything_is_sent(old_connection: Any, name: str) -> None:
    kv = old_connection.kv(KVBucketConfig(name, storage="memory"))
    with pytest.raises(UnsupportedByServerError):
        kv.set_many({"k": b"v"}, ttl=5)
    assert raw_kv(kv).state["last_seq"] == 0
    raw_kv(kv).delete()


def test_history_counts_writes_of_many_like_single_ones(any_new_kv: NewKV) -> None:
    kv = any_new_kv(history=3)
    for number in range(4):
        kv.set_many({"a": b"%d" % number, "b": b"%d" % number})
    kv.delete_many(["a"])
    assert [entry.value for entry in kv.history("a")] == [b"2", b"3", b""]
    assert [entry.value for entry in kv.history("b")] == [b"1", b"2", b"3"]


def test_values_far_beyond_what_may_be_under_way_are_written_and_read(any_kv: KVBucket) -> None:
    values = {f"k{number}": bytes([number]) * 1_000_000 for number in range(30)}
    any_kv.set_many(values, timeout=30)
    assert any_kv.get_many([*values, "never"], timeout=30) == values


def test_a_server_that_takes_small_messages_is_asked_about_long_keys_in_several_parts(
    run_nats_server: Any,
) -> None:
    server = run_nats_server("jetstream: enabled\nmax_payload: 8192")
    with mono_sync.connect(server.url) as connection:
        kv = connection.kv(KVBucketConfig("b", storage="memory"))
        values = {f"{'long' * 700}.{number}": b"%d" % number for number in range(20)}
        kv.set_many(values)
        assert kv.get_many(values) == values


def test_values_larger_than_all_that_may_be_under_way_are_read_one_by_one(run_nats_server: Any) -> None:
    server = run_nats_server("jetstream: enabled\nmax_payload: 64MB\nmax_pending: 128MB")
    with mono_sync.connect(server.url) as connection:
        connection.kv(KVBucketConfig("b", storage="memory"))
        raw_kv(connection.kv("b")).update(allow_direct=False)
        kv = connection.kv("b")
        values = {f"k{number}": bytes([number]) * 10_000_000 for number in range(3)}
        kv.set_many(values, timeout=30)
        assert kv.get_many(values, timeout=30) == values


BAD: list[tuple[Any, type[Exception], str]] = [
    ({"k": b"v", "user:1": b"v"}, InvalidKeyError, "write 'user.1' instead"),
    ({"k": b"v", "": b"v"}, InvalidKeyError, "it is empty"),
    ({"k": b"v", "l" * 4_000: b"v", "m": b"v"}, InvalidKeyError, "it is too long by"),
    ({"k": b"v", 5: b"v"}, TypeError, "the key must be a str"),
    ({"k": b"v", "l": "text"}, TypeError, r"call .encode\(\) first"),
    ({"k": b"v", "l": None}, TypeError, "a payload must be bytes"),
    ({"k": b"v", "l": bytes(2_000_000)}, ValueTooLargeError, "key 'l'"),
    ([("k", b"v")], TypeError, "a mapping of keys to values, not list"),
]


@pytest.mark.parametrize(("mapping", "error", "reason"), BAD)
def test_bad_input_is_refused_before_anything_is_sent(
    any_kv: KVBucket, mapping: Any, error: type[Exception], reason: str
) -> None:
    with pytest.raises(error, match=reason):
        any_kv.set_many(mapping)
    assert raw_kv(any_kv).state["last_seq"] == 0


def test_bad_keys_are_refused_before_anything_is_sent(any_kv: KVBucket) -> None:
    for bad in ("a:b", "l" * 4_000):
        with pytest.raises(InvalidKeyError):
            any_kv.delete_many(["k", bad, "m"])
        with pytest.raises(InvalidKeyError):
            any_kv.get_many(["k", bad, "m"])
    assert raw_kv(any_kv).state["last_seq"] == 0


def test_one_str_is_not_taken_for_many_keys(kv: KVBucket) -> None:
    for call in (kv.get_many, kv.delete_many):
        with pytest.raises(TypeError, match=r"write \['key'\]"):
            call("key")


def test_no_time_at_all_writes_nothing_and_says_so(any_kv: KVBucket) -> None:
    for call in (lambda: any_kv.set_many(values_of(3), timeout=0), lambda: any_kv.delete_many(["k.0"], timeout=0)):
        with pytest.raises(
            OperationTimeoutError, match=f"key 'k.0' of bucket '{any_kv.name}' timed out after 0 s$"
        ) as e:
            call()
        assert not e.value.sent
    with pytest.raises(OperationTimeoutError, match=f"^reading keys of bucket '{any_kv.name}' timed out after 0 s$"):
        any_kv.get_many(["k"], timeout=0)
    assert raw_kv(any_kv).state["last_seq"] == 0


# --- what the server refuses


def test_a_bucket_that_gets_full_tells_which_keys_were_written(any_new_kv: NewKV) -> None:
    kv = any_new_kv(max_bytes=200_000)
    values = {f"k{number}": bytes(1000) for number in range(300)}
    with pytest.raises(PartialWriteError, match=f"bucket '{kv.name}': .* keys were written") as caught:
        kv.set_many(values)
    error = caught.value
    assert error.bucket == kv.name
    assert list(error.written) == kv.keys() == list(values)[: len(error.written)]
    assert error.written == {key: kv.get_entry(key).revision for key in error.written}
    assert list(error.errors) == list(values)[len(error.written) :]
    assert {type(why) for why in error.errors.values()} == {BucketFullError}
    assert error.__cause__ is next(iter(error.errors.values()))


def test_where_nothing_was_written_the_first_error_is_raised_itself(any_new_kv: NewKV) -> None:
    kv = any_new_kv(max_value_size=100)
    with pytest.raises(ValueTooLargeError) as caught:
        kv.set_many({"a": bytes(200), "b": bytes(200)})
    assert (caught.value.key, caught.value.size) == ("a", 200)


def test_keys_around_a_refused_one_are_written(any_new_kv: NewKV) -> None:
    kv = any_new_kv(max_value_size=200)
    with pytest.raises(PartialWriteError) as caught:
        kv.set_many({"a": b"1", "b": bytes(300), "c": b"3"})
    assert caught.value.written == {"a": 1, "c": 2}
    why = caught.value.errors["b"]
    assert isinstance(why, ValueTooLargeError)
    assert (why.key, why.size) == ("b", 300)


def test_a_bucket_that_is_gone_is_told(any_kv: KVBucket) -> None:
    raw_kv(any_kv).delete()
    for call in (
        lambda: any_kv.set_many(values_of(700)),
        lambda: any_kv.delete_many(values_of(3)),
        lambda: any_kv.get_many(values_of(700)),
        any_kv.keys,
        any_kv.purge_deletes,
        any_kv.reset,
    ):
        with pytest.raises(BucketNotFoundError):
            call()


def test_direct_gets_that_another_client_has_switched_off_are_done_without(any_kv: KVBucket, impatient: None) -> None:
    any_kv.set_many(values_of(700))
    raw_kv(any_kv).update(allow_direct=False)
    for _ in range(2):
        assert any_kv.get_many([*values_of(700), "never"]) == values_of(700)


# --- much at once


def test_keys_that_are_there_all_the_time_are_always_read(any_new_kv: NewKV, monkeypatch: pytest.MonkeyPatch) -> None:
    kv = any_new_kv()
    values = values_of(300)
    kv.set_many(values)
    numbers = count()

    def overwrite() -> None:
        kv.set(f"k.{next(numbers) % 300}", b"new")

    with Repeated([overwrite] * 4):
        for _ in range(30):
            assert kv.get_many(values).keys() == values.keys()


def test_what_an_older_server_does_not_find_is_looked_for_one_by_one(
    kv: KVBucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before 2.15 a key that is written at this moment may be overlooked; here the answer is taken for such a one's."""
    kv.set_many(values_of(600))
    monkeypatch.setattr(_reading, "_MULTI_IN_ONE_MOMENT", "99.0.0")
    overlooked = {"k.5", "k.599"}
    stored_subject = _reading._stored_subject

    def overlook(message: Any) -> str:
        subject = stored_subject(message)
        return "overlooked" if subject.removeprefix(f"$KV.{kv.name}.") in overlooked else subject

    monkeypatch.setattr(_reading, "_stored_subject", overlook)
    assert kv.get_many([*values_of(600), "never"]) == values_of(600)


def test_threads_write_and_read_at_the_same_time(any_kv: KVBucket) -> None:
    def work(number: int) -> dict[str, int]:
        mine = {f"t{number}.{key}": b"%d" % number for key in range(1000)}
        revisions = any_kv.set_many(mine, timeout=30)
        assert any_kv.get_many(mine, timeout=30) == mine
        return revisions

    revisions = [revision for written in together(8, work) for revision in written.values()]
    assert sorted(revisions) == list(range(1, 8001))


KEYS = st.sampled_from([f"{letter}{number}" for letter in ("a", "b.", "c/") for number in range(5)])


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    steps=st.lists(
        st.one_of(
            st.tuples(st.just("set"), st.dictionaries(KEYS, st.binary(max_size=20))),
            st.tuples(st.just("delete"), st.lists(KEYS)),
            st.tuples(st.just("get"), st.lists(KEYS)),
        ),
        max_size=15,
    )
)
def test_a_bucket_is_what_a_dict_would_be(any_kv: KVBucket, steps: list[tuple[str, Any]]) -> None:
    any_kv.reset()
    model: dict[str, bytes] = {}
    for call, argument in steps:
        if call == "set":
            revisions = any_kv.set_many(argument)
            assert list(revisions) == list(argument)
            model.update(argument)
        elif call == "delete":
            any_kv.delete_many(argument)
            model = {key: value for key, value in model.items() if key not in argument}
        else:
            expected = {key: model[key] for key in argument if key in model}
            assert list(any_kv.get_many(argument).items()) == list(expected.items())
    assert set(any_kv.keys()) == set(model)


def test_a_bucket_fulfills_the_port(kv: KVBucket) -> None:
    port: KVStoragePort = kv
    assert isinstance(port, KVStoragePort)
