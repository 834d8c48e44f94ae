"""What the calls of an object bucket return and raise, on both servers."""

from __future__ import annotations

import base64
import hashlib
import pickle
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

import mono_sync
from mono_sync import (
    BucketFullError,
    BucketNotFoundError,
    Connection,
    DigestMismatchError,
    FileStoragePort,
    InvalidHeaderError,
    InvalidKeyError,
    ObjectBucket,
    ObjectNotFoundError,
    OperationTimeoutError,
    StorageError,
)
from mono_sync.connection import JetStream
from tests.fixtures.servers import RunNatsServer
from tests.fixtures.waiting import wait_until
from tests.storage.conftest import NewObjects
from tests.storage.foreign import describe, link
from tests.storage.helpers import chunk_subjects, raw_objects

CHUNK = 128 * 1024


def _content(size: int) -> bytes:
    return (bytes(range(251)) * (size // 251 + 1))[:size]


# --- put and get


@pytest.mark.parametrize("size", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 16 * CHUNK, 17 * CHUNK + 1, 40 * CHUNK, 5_000_000])
def test_object_comes_back_as_it_was_stored(any_objects: ObjectBucket, size: int) -> None:
    content = _content(size)
    info = any_objects.put("k", content)
    assert (info.size, info.chunks) == (size, -(-size // CHUNK))
    assert any_objects.get("k") == content
    assert sum(chunk_subjects(any_objects).values()) == info.chunks


def test_missing_object_gives_none_or_the_default(any_objects: ObjectBucket) -> None:
    assert any_objects.get("k") is None
    assert any_objects.get("k", b"d") == b"d"
    assert not any_objects.exists("k")
    with pytest.raises(ObjectNotFoundError, match="object 'k' not found") as caught:
        any_objects.stat("k")
    assert isinstance(caught.value, FileNotFoundError)
    assert (caught.value.bucket, caught.value.key) == (any_objects.name, "k")


def test_empty_object_is_there(any_objects: ObjectBucket) -> None:
    any_objects.set("k", b"")
    assert any_objects.get("k", b"d") == b""
    assert any_objects.exists("k")


def test_info_tells_what_was_stored(any_objects: ObjectBucket) -> None:
    content = _content(300_000)
    info = any_objects.put("k", content, description="dä", headers={"One": "1", "Two": ["a", "b"]})
    digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode()
    assert (info.bucket, info.name, info.size, info.chunks) == (any_objects.name, "k", 300_000, 3)
    assert info.digest == f"SHA-256={digest}"
    assert dict(info.headers) == {"One": ("1",), "Two": ("a", "b")}
    assert (info.description, info.link, info.revision) == ("dä", None, 4)
    assert timedelta(seconds=-5) < datetime.now(UTC) - info.modified < timedelta(seconds=5)
    assert any_objects.stat("k") == info
    assert any_objects.list() == [info]


def test_info_can_be_pickled(objects: ObjectBucket) -> None:
    info = objects.put("k", b"v", headers={"a": "b"})
    assert pickle.loads(pickle.dumps(info)) == info


NAMES = ["a", "a/b/c.txt", "with space", "ünïcödé ☃", "a.b", "*", ">", "$O.x", "new\nline", " ", "..", "a:b", "\0"]


@pytest.mark.parametrize("name", NAMES)
def test_any_text_is_a_name(any_objects: ObjectBucket, name: str) -> None:
    any_objects.put(name, b"v")
    any_objects.put("another", b"w")
    assert any_objects.get(name) == b"v"
    assert sorted(info.name for info in any_objects.list()) == sorted([name, "another"])
    any_objects.delete(name)
    assert not any_objects.exists(name)
    assert any_objects.get("another") == b"w"


def _calls(objects: ObjectBucket, key: Any) -> list[Callable[[], object]]:
    return [
        lambda: objects.get(key),
        lambda: objects.set(key, b"v"),
        lambda: objects.put(key, b"v"),
        lambda: objects.stat(key),
        lambda: objects.exists(key),
        lambda: objects.delete(key),
    ]


@pytest.mark.parametrize("letter", ["n", "ü"])
def test_name_that_is_too_long_says_by_how_much(objects: ObjectBucket, letter: str) -> None:
    name = letter + "n" * 2900
    with pytest.raises(InvalidKeyError, match="too long by") as caught:
        objects.put(name, b"")
    excess = int(str(caught.value).rpartition(" by ")[2].removesuffix(" bytes"))
    with pytest.raises(InvalidKeyError, match="too long by 1 bytes"):
        objects.put(name[: 1 - excess], b"")
    objects.put(name[:-excess], b"v")
    assert [info.name for info in objects.list()] == [name[:-excess]]


@pytest.mark.parametrize(
    ("key", "rule"), [("", "it is empty"), ("\ud800", "cannot be encoded"), ("x" * 3000, "too long")]
)
def test_impossible_name_is_refused_before_anything_is_sent(objects: ObjectBucket, key: str, rule: str) -> None:
    for call in _calls(objects, key):
        with pytest.raises(InvalidKeyError, match=f"(?s)invalid object name .*{rule}"):
            call()
    assert raw_objects(objects).state["last_seq"] == 0


@pytest.mark.parametrize("key", [b"k", 5, None])
def test_name_that_is_no_str_is_refused(objects: ObjectBucket, key: Any) -> None:
    for call in _calls(objects, key):
        with pytest.raises(TypeError, match="object name must be a str, not"):
            call()


def test_longest_name_works_with_every_call(any_objects: ObjectBucket) -> None:
    low, high = 1, 4000
    while high - low > 1:
        middle = (low + high) // 2
        try:
            any_objects.exists("x" * middle)
            low = middle
        except InvalidKeyError:
            high = middle
    key = "x" * low
    assert low > 2500
    for content in (b"1" * 200_000, b"2" * 200_000):
        any_objects.put(key, content)
        assert any_objects.get(key) == content
    assert [info.name for info in any_objects.list()] == [key]
    any_objects.delete(key)
    assert not any_objects.exists(key)


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ({"description": b"d"}, "description must be a str, not bytes"),
        ({"headers": {"a": 1}}, "headers map a str to one str or several, not 'a' to int"),
        ({"headers": {"a": ["b", 5]}}, "headers map a str to one str or several, not 'a' to list"),
        ({"headers": {"a": b"b"}}, "headers map a str to one str or several, not 'a' to bytes"),
        ({"headers": {5: "a"}}, "headers map a str to one str or several, not 5 to str"),
        ({"headers": [("a", "b")]}, "headers must be a mapping of str to one str or several, not list"),
        ({"headers": "x"}, "headers must be a mapping of str to one str or several, not str"),
        ({"headers": ""}, "headers must be a mapping of str to one str or several, not str"),
    ],
)
def test_description_and_headers_of_wrong_types_are_refused_before_anything_is_sent(
    objects: ObjectBucket, options: dict[str, Any], rule: str
) -> None:
    with pytest.raises(TypeError, match=rule):
        objects.put("k", b"v", **options)
    assert raw_objects(objects).state["last_seq"] == 0


@pytest.mark.parametrize(
    "headers", [{"": "v"}, {"a b": "v"}, {"a:b": []}, {"a": "x\n"}, {"a": "\0"}, {"a": ["good", "b\r\nc: d"]}]
)
def test_headers_that_no_message_could_carry_are_refused_before_anything_is_sent(
    objects: ObjectBucket, headers: Any
) -> None:
    with pytest.raises(InvalidHeaderError):
        objects.put("k", b"v", headers=headers)
    assert raw_objects(objects).state["last_seq"] == 0


# --- replace and delete


@pytest.mark.parametrize("size", [0, 10, 300_000])
def test_replaced_object_leaves_nothing_of_the_old_version(any_objects: ObjectBucket, size: int) -> None:
    any_objects.put("k", _content(400_000))
    any_objects.put("k", _content(size))
    assert any_objects.get("k") == _content(size)
    assert len(chunk_subjects(any_objects)) == (1 if size else 0)
    assert any_objects.status().messages == 1 + any_objects.stat("k").chunks


@pytest.mark.parametrize("size", [0, 10, 300_000])
def test_deleted_object_is_missing_and_its_chunks_are_gone(any_objects: ObjectBucket, size: int) -> None:
    any_objects.put("k", _content(size))
    any_objects.delete("k")
    any_objects.delete("k")
    assert any_objects.get("k") is None
    assert not any_objects.exists("k")
    assert any_objects.list() == []
    assert chunk_subjects(any_objects) == {}
    with pytest.raises(ObjectNotFoundError):
        any_objects.stat("k")
    any_objects.put("k", b"again")
    assert any_objects.get("k") == b"again"


def test_deleting_a_missing_object_writes_nothing(any_objects: ObjectBucket) -> None:
    any_objects.delete("k")
    assert raw_objects(any_objects).state["last_seq"] == 0


# --- list


def test_list_is_sorted_by_name_and_filtered_by_prefix(any_objects: ObjectBucket) -> None:
    for name in ("b", "a/2", "a/1", "ab", "a"):
        any_objects.put(name, b"")
    any_objects.put("a/3", b"")
    any_objects.delete("a/3")
    assert [info.name for info in any_objects.list()] == ["a", "a/1", "a/2", "ab", "b"]
    assert [info.name for info in any_objects.list("a/")] == ["a/1", "a/2"]
    assert [info.name for info in any_objects.list(prefix="")] == ["a", "a/1", "a/2", "ab", "b"]
    assert any_objects.list("x") == []


def test_list_of_an_empty_bucket_is_empty(any_objects: ObjectBucket) -> None:
    assert any_objects.list() == []


def test_prefix_that_is_no_str_is_refused(objects: ObjectBucket) -> None:
    with pytest.raises(TypeError, match="a prefix must be a str, not bytes"):
        objects.list(b"a")  # type: ignore[call-overload]


def test_many_objects_are_all_listed_and_no_consumer_is_left(any_objects: ObjectBucket) -> None:
    for number in range(300):
        any_objects.put(f"o{number:03}", b"")
    assert [info.name for info in any_objects.list()] == [f"o{number:03}" for number in range(300)]
    wait_until(lambda: not raw_objects(any_objects).consumers(), "the consumer is deleted", timeout=3)


# --- limits and damage


def test_full_bucket_keeps_the_old_object_and_no_partial_chunks(any_new_objects: NewObjects) -> None:
    objects = any_new_objects(max_bytes=1_000_000)
    objects.put("k", _content(300_000))
    for size in (900_000, 3_000_000):
        with pytest.raises(BucketFullError, match=objects.name):
            objects.put("k", _content(size))
        assert objects.get("k") == _content(300_000)
        assert len(chunk_subjects(objects)) == 1
    with pytest.raises(BucketFullError):
        objects.put("new", _content(900_000))
    assert not objects.exists("new")
    assert len(chunk_subjects(objects)) == 1
    objects.put("k", _content(400_000))


def test_server_that_takes_small_messages_gets_small_chunks(run_nats_server: RunNatsServer) -> None:
    server = run_nats_server("jetstream: enabled\nmax_payload: 16384")
    with mono_sync.connect(server.url) as connection:
        objects = connection.objects(mono_sync.FSBucketConfig("b", storage="memory"))
        info = objects.put("k", _content(100_000))
        assert info.chunks == 7
        assert objects.get("k") == _content(100_000)
        with pytest.raises(mono_sync.ValueTooLargeError, match="up to 16384 bytes"):
            objects.put("k", b"v", description="d" * 20_000)
        assert objects.get("k") == _content(100_000)
        assert len(chunk_subjects(objects)) == 1


@pytest.mark.parametrize("size", [100, 300_000])
def test_missing_chunk_is_a_digest_mismatch(any_objects: ObjectBucket, size: int) -> None:
    any_objects.put("other", b"x")
    info = any_objects.put("k", _content(size))
    raw_objects(any_objects).delete_message(info.revision - 1)
    with pytest.raises(DigestMismatchError, match=r"'k' of bucket .* is damaged: . of . chunks are left") as caught:
        any_objects.get("k", b"d")
    assert (caught.value.bucket, caught.value.key) == (any_objects.name, "k")


@pytest.mark.parametrize("size", [100, 300_000])
def test_changed_chunk_is_a_digest_mismatch(any_objects: ObjectBucket, size: int) -> None:
    info = any_objects.put("k", _content(size))
    raw = raw_objects(any_objects)
    raw.delete_message(info.revision - 1)
    raw.put(f"$O.{any_objects.name}.C.{info.nuid}", bytes(size % CHUNK))
    with pytest.raises(DigestMismatchError, match="a chunk was stored behind the description"):
        any_objects.get("k")
    any_objects.update_meta("k", description="now the description is behind it")
    with pytest.raises(DigestMismatchError, match="the digest is wrong"):
        any_objects.get("k")


def test_objects_expire_with_the_ttl_of_the_bucket(any_new_objects: NewObjects, impatient: None) -> None:
    objects = any_new_objects(ttl=1)
    objects.put("k", _content(3_000_000))
    objects.put("small", b"v")
    assert objects.get("k") is not None
    wait_until(lambda: objects.get("k") is None and objects.get("small") is None, "objects expire", timeout=5)
    wait_until(lambda: objects.list() == [], "what describes them, which is younger", timeout=5)
    assert not objects.exists("k")
    objects.put("k", b"again")
    assert objects.get("k") == b"again"


def test_object_that_was_stored_slowly_among_others_is_missing_when_it_begins_to_expire(
    any_new_objects: NewObjects,
) -> None:
    objects = any_new_objects(ttl=2)
    with objects.open("k", "wb") as writer:
        writer.write(bytes(2 * 128 * 1024))
        writer.flush()
        first = time.monotonic()
        objects.put("other", b"v")
        wait_until(lambda: time.monotonic() > first + 0.7, "the first chunks are older than the others")
        writer.write(bytes(2 * 128 * 1024))
    assert objects.get("k") == bytes(4 * 128 * 1024)
    subject = f"$O.{objects.name}.C.{objects.stat('k').nuid}"
    wait_until(lambda: chunk_subjects(objects).get(subject, 0) < 4, "it has begun to expire")
    assert objects.get("k") is None


def test_object_whose_chunks_have_expired_before_its_description_is_missing(new_objects: NewObjects) -> None:
    objects = new_objects(ttl=100)
    info = objects.put("k", _content(300_000))
    raw = raw_objects(objects)
    raw.api("STREAM.PURGE.{stream}", {"seq": 3})  # as expiry does: from the front
    assert raw.state["first_seq"] == info.revision - 1
    assert objects.get("k", b"d") == b"d"


def test_object_that_begins_to_expire_in_a_bucket_that_got_its_ttl_later_is_missing(new_objects: NewObjects) -> None:
    objects = new_objects()
    objects.put("k", _content(300_000))
    raw_objects(objects).update(max_age=100 * 10**9)
    raw_objects(objects).api("STREAM.PURGE.{stream}", {"seq": 3})
    assert objects.get("k") is None


def test_object_that_goes_on_expiring_while_that_is_found_out_is_missing(
    new_objects: NewObjects, monkeypatch: pytest.MonkeyPatch
) -> None:
    objects = new_objects(ttl=100)
    objects.put("k", _content(20 * CHUNK))
    raw = raw_objects(objects)
    raw.api("STREAM.PURGE.{stream}", {"seq": 3})
    next_of = JetStream.next_of

    def late(*args: Any) -> Any:
        raw.api("STREAM.PURGE.{stream}", {"seq": 9})
        return next_of(*args)

    monkeypatch.setattr(JetStream, "next_of", late)
    assert objects.get("k") is None


# --- what other clients may have stored


def test_links_are_listed_replaced_and_deleted(any_objects: ObjectBucket) -> None:
    link(any_objects, "link", {"bucket": any_objects.name, "name": "o"})
    link(any_objects, "bucket-link", {"bucket": "b"})
    assert {info.name: info.link for info in any_objects.list()} == {
        "link": f"{any_objects.name}/o",
        "bucket-link": "b",
    }
    any_objects.put("link", b"no link any more")
    assert any_objects.get("link") == b"no link any more"
    any_objects.delete("bucket-link")
    assert [info.name for info in any_objects.list()] == ["link"]


NO_DESCRIPTIONS: list[Any] = [
    b"no json",
    b"[1]",
    b"5",
    {"nuid": "n"},
    {"name": "k", "headers": 5},
    {"name": 5},
    {"name": "k", "nuid": []},
    {"name": "k", "mtime": 5},
    {"name": "k", "mtime": "yesterday"},
    {"name": "k", "size": "large"},
    {"name": "k", "options": 5},
    {"name": "k", "nuid": "n", "size": -5},
    {"name": "k", "nuid": "n", "chunks": -1},
    {"name": "k", "size": 5, "chunks": 1},
    {"name": "k", "nuid": "a b", "size": 5, "chunks": 1},
    {"name": "k", "nuid": "*", "size": 5, "chunks": 1},
    {"name": "k", "nuid": "\ud800", "size": 5, "chunks": 1},
    {"name": "k", "options": {"link": {}}},
    {"name": "k", "options": {"link": {"name": "other"}}},
]


def test_what_is_null_is_left_out(any_objects: ObjectBucket) -> None:
    describe(any_objects, "k", {"name": "k", "nuid": "n", **dict.fromkeys(["description", "headers", "digest"])})
    assert any_objects.stat("k").description == ""
    assert [info.name for info in any_objects.list()] == ["k"]


def test_header_with_a_single_value_may_be_stored_as_a_text(any_objects: ObjectBucket) -> None:
    """As nats-py does."""
    describe(any_objects, "k", {"name": "k", "headers": {"Content-Type": "text/plain", "A": ["1", "2"]}})
    info = any_objects.stat("k")
    assert info.headers == {"Content-Type": ("text/plain",), "A": ("1", "2")}
    assert info.content_type == "text/plain"


def test_time_that_a_go_client_leaves_out_is_that_of_the_message(any_objects: ObjectBucket) -> None:
    describe(any_objects, "k", {"name": "k", "nuid": "n", "mtime": "0001-01-01T00:00:00Z"})
    assert timedelta(seconds=-5) < datetime.now(UTC) - any_objects.stat("k").modified < timedelta(seconds=5)


@pytest.mark.parametrize("meta", NO_DESCRIPTIONS)
def test_what_describes_no_object_is_named_and_can_be_replaced(any_objects: ObjectBucket, meta: Any) -> None:
    describe(any_objects, "k", meta)
    for call in (lambda: any_objects.get("k"), lambda: any_objects.stat("k"), any_objects.list):
        with pytest.raises(StorageError, match=r"'k' does not describe an object: .* \(delete it\)"):
            call()
    any_objects.put("k", b"v")
    assert any_objects.get("k") == b"v"
    assert [info.name for info in any_objects.list()] == ["k"]


@pytest.mark.parametrize("meta", NO_DESCRIPTIONS)
def test_what_describes_no_object_can_be_deleted(any_objects: ObjectBucket, meta: Any) -> None:
    describe(any_objects, "k", meta)
    any_objects.delete("k")
    assert any_objects.list() == []


def test_mark_that_the_server_left_where_an_object_expired_is_no_object(any_objects: ObjectBucket) -> None:
    subject = f"$O.{any_objects.name}.M.aw=="
    raw_objects(any_objects).put(subject, b"", {"Nats-Marker-Reason": "MaxAge"})
    assert any_objects.get("k", b"d") == b"d"
    assert not any_objects.exists("k")
    assert any_objects.list() == []
    any_objects.delete("k")
    any_objects.put("k", b"again")
    assert any_objects.get("k") == b"again"


@pytest.mark.parametrize("nuid", [">", "*", "", "a b"])
def test_names_of_chunks_that_are_patterns_harm_nobody(any_objects: ObjectBucket, nuid: str) -> None:
    any_objects.put("other", b"v")
    describe(any_objects, "k", {"name": "k", "nuid": nuid})
    any_objects.put("k", b"w")
    any_objects.delete("k")
    assert any_objects.get("other") == b"v"


# --- the bucket is gone, the time is over


def test_every_call_says_that_the_bucket_was_deleted(any_objects: ObjectBucket, impatient: None) -> None:
    any_objects.put("k", b"v")
    raw_objects(any_objects).delete()
    calls: list[Callable[[], object]] = [
        *_calls(any_objects, "k"),
        lambda: any_objects.put("k", _content(300_000)),
        any_objects.list,
        any_objects.status,
    ]
    for call in calls:
        with pytest.raises(BucketNotFoundError, match=any_objects.name):
            call()


def test_put_without_time_stores_nothing(any_objects: ObjectBucket) -> None:
    any_objects.put("k", b"old")
    with pytest.raises(OperationTimeoutError):
        any_objects.put("k", _content(5_000_000), timeout=0)
    assert any_objects.get("k") == b"old"
    assert len(chunk_subjects(any_objects)) == 1


def test_answers_are_the_same_with_direct_get_switched_off(
    any_objects: ObjectBucket, any_connection: Connection
) -> None:
    raw_objects(any_objects).update(allow_direct=False)
    objects = any_connection.objects(any_objects.name)
    for size in (0, 1, 300_000):
        info = objects.put("k", _content(size))
        assert objects.get("k") == _content(size)
        assert objects.stat("k") == info
        assert objects.list() == [info]
    objects.delete("k")
    assert objects.get("k") is None


def test_bucket_fulfils_its_port(objects: ObjectBucket) -> None:
    port: FileStoragePort = objects
    assert isinstance(port, FileStoragePort)
    assert repr(objects).startswith(f"<ObjectBucket '{objects.name}' of ")
