"""What is said of an object beside its content, and how it is changed: description, headers, metadata, name."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from mono_sync import (
    BucketNotFoundError,
    Connection,
    InvalidHeaderError,
    InvalidKeyError,
    KeyExistsError,
    ObjectBucket,
    ObjectExistsError,
    ObjectNotFoundError,
    OperationTimeoutError,
    RevisionMismatchError,
    StorageError,
    ValueTooLargeError,
)
from tests.fixtures.waiting import wait_until
from tests.storage import descriptions
from tests.storage.helpers import chunk_subjects, raw_objects

LARGE = bytes(300_000)


# --- what can be said


def test_metadata_and_headers_come_back_as_they_were_given(any_objects: ObjectBucket) -> None:
    info = any_objects.put("k", b"v", headers={"A": ["1", "2"], "B": "x"}, metadata={"owner": "ünï", "e": ""})
    assert dict(info.headers) == {"A": ("1", "2"), "B": ("x",)}
    assert info.metadata == {"owner": "ünï", "e": ""}
    assert any_objects.stat("k") == info
    assert any_objects.list() == [info]
    copy = pickle.loads(pickle.dumps(info))
    assert copy == info
    assert {info, copy, any_objects.stat(info.name)} == {info}
    assert hash(any_objects.list(delimiter="/")) == hash(any_objects.list(delimiter="/"))


def test_metadata_is_stored_where_the_object_store_specification_has_it(any_objects: ObjectBucket) -> None:
    any_objects.put("k", b"v", metadata={"owner": "me"})
    assert descriptions.stored(any_objects, "k")["metadata"] == {"owner": "me"}


def test_object_without_metadata_has_none_and_stores_none(any_objects: ObjectBucket) -> None:
    assert any_objects.put("k", b"v").metadata == {}
    assert "metadata" not in descriptions.stored(any_objects, "k")


@pytest.mark.parametrize("header", ["Content-Type", "content-type", "CONTENT-TYPE"])
def test_content_type_is_that_header_in_whatever_case(any_objects: ObjectBucket, header: str) -> None:
    info = any_objects.put("k", b"v", headers={"X": "y", header: ["text/plain", "text/html"]})
    assert info.content_type == "text/plain"
    assert any_objects.stat("k").content_type == "text/plain"


@pytest.mark.parametrize("headers", [None, {"X": "y"}, {"Content-Type": []}])
def test_object_without_a_content_type_has_none(objects: ObjectBucket, headers: Any) -> None:
    assert objects.put("k", b"v", headers=headers).content_type is None


WRONG: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"description": b"d"}, TypeError, "description must be a str, not bytes"),
    ({"headers": "A: 1"}, TypeError, "headers must be a mapping"),
    ({"headers": {"A": 1}}, TypeError, "headers map a str to one str or several"),
    ({"headers": {"A": "1\r\nB: 2"}}, InvalidHeaderError, "line breaks"),
    ({"metadata": [("a", "b")]}, TypeError, "metadata must be a mapping of str to str, not list"),
    ({"metadata": {"a": 1}}, TypeError, "metadata maps a str to a str, not 'a' to int"),
    ({"description": "\ud800"}, ValueError, "description cannot be encoded"),
    ({"metadata": {"\ud800": "a"}}, ValueError, "a name in metadata cannot be encoded"),
    ({"metadata": {"a": "\ud800"}}, ValueError, "metadata 'a' cannot be encoded"),
    ({"metadata": {1: "a"}}, TypeError, "metadata maps a str to a str, not 1 to str"),
]


@pytest.mark.parametrize(("wrong", "kind", "reason"), WRONG)
def test_wrong_descriptions_are_refused_before_anything_is_sent(
    objects: ObjectBucket, wrong: dict[str, Any], kind: type[Exception], reason: str
) -> None:
    objects.put("k", b"v")
    before = raw_objects(objects).state
    with pytest.raises(kind, match=reason):
        objects.put("k", b"w", **wrong)
    with pytest.raises(kind, match=reason):
        objects.update_meta("k", **wrong)
    assert raw_objects(objects).state == before


def test_metadata_of_another_client_that_is_no_mapping_is_named(any_objects: ObjectBucket) -> None:
    descriptions.store(any_objects, "k", {"name": "k", "nuid": "n", "metadata": [{"a": "b"}]})
    with pytest.raises(StorageError, match="does not describe an object"):
        any_objects.stat("k")


# --- update_meta


def test_update_changes_what_is_given_and_nothing_else(any_objects: ObjectBucket) -> None:
    old = any_objects.put("k", LARGE, description="d", headers={"A": "1"}, metadata={"m": "1"})
    chunks = chunk_subjects(any_objects)
    any_objects.update_meta("k", description="e")
    any_objects.update_meta("k", headers={"B": ["2", "3"]})
    info = any_objects.update_meta("k", metadata={"n": "2"})
    assert info == any_objects.stat("k")
    assert (info.description, dict(info.headers), info.metadata) == ("e", {"B": ("2", "3")}, {"n": "2"})
    assert info.revision == old.revision + 3
    unchanged = ["bucket", "name", "size", "digest", "modified", "chunks", "nuid", "link"]
    assert [getattr(info, field) for field in unchanged] == [getattr(old, field) for field in unchanged]
    assert any_objects.get("k") == LARGE
    assert chunk_subjects(any_objects) == chunks
    assert raw_objects(any_objects).state["messages"] == old.chunks + 1


def test_update_takes_away_what_is_given_as_empty(any_objects: ObjectBucket) -> None:
    any_objects.put("k", b"v", description="d", headers={"A": "1"}, metadata={"m": "1"})
    info = any_objects.update_meta("k", description="", headers={}, metadata={})
    assert (info.description, info.headers, info.metadata) == ("", {}, {})
    assert any_objects.stat("k") == info


def test_update_of_nothing_writes_nothing(any_objects: ObjectBucket) -> None:
    info = any_objects.put("k", b"v")
    assert any_objects.update_meta("k") == info
    assert any_objects.update_meta("k", name="k") == info
    with pytest.raises(RevisionMismatchError):
        any_objects.update_meta("k", if_match=info.revision + 1)
    with pytest.raises(ObjectNotFoundError):
        any_objects.update_meta("missing")


def test_update_keeps_what_other_clients_have_put_into_the_description(any_objects: ObjectBucket) -> None:
    options = {"max_chunk_size": 5, "theirs": [1]}
    descriptions.store(any_objects, "k", {"name": "k", "nuid": "n", "options": options, "new": {"a": 1}})
    any_objects.update_meta("k", description="d")
    found = descriptions.stored(any_objects, "k")
    assert (found["options"], found["new"], found["description"]) == (options, {"a": 1}, "d")


def test_update_names_what_another_client_has_stored_under_another_name(any_objects: ObjectBucket) -> None:
    descriptions.store(any_objects, "k", {"name": "wrong", "nuid": "n"})
    assert any_objects.update_meta("k", description="d").name == "k"
    assert any_objects.exists("k")
    assert not any_objects.exists("wrong")


def test_update_keeps_the_time_that_a_go_client_left_to_the_message(any_objects: ObjectBucket) -> None:
    descriptions.store(any_objects, "k", {"name": "k", "nuid": "n", "mtime": "0001-01-01T00:00:00Z"})
    before = any_objects.stat("k").modified
    assert abs(any_objects.update_meta("k", description="d").modified - before) < timedelta(milliseconds=1)
    assert any_objects.stat("k").modified == any_objects.update_meta("k", description="e").modified


def test_update_of_a_missing_or_deleted_object_is_told(any_objects: ObjectBucket) -> None:
    any_objects.put("deleted", b"v")
    any_objects.delete("deleted")
    for key in ("missing", "deleted"):
        with pytest.raises(ObjectNotFoundError, match=f"object '{key}' not found"):
            any_objects.update_meta(key, description="d")
        with pytest.raises(ObjectNotFoundError):
            any_objects.update_meta(key, name="other")
    assert any_objects.list() == []


def test_update_at_the_expected_revision_happens_and_at_another_does_not(any_objects: ObjectBucket) -> None:
    old = any_objects.put("k", b"v")
    new = any_objects.update_meta("k", description="d", if_match=old)
    for change in ({"description": "e"}, {"name": "l"}):
        with pytest.raises(RevisionMismatchError, match=f"not at revision {old.revision}, it is at {new.revision}"):
            any_objects.update_meta("k", if_match=old.revision, **change)  # type: ignore[arg-type]
    assert any_objects.list() == [new]


@pytest.mark.parametrize(
    ("revision", "kind"), [(0, ValueError), (-1, ValueError), (2**63, ValueError), ("1", TypeError)]
)
def test_revision_that_cannot_be_one_is_refused(objects: ObjectBucket, revision: Any, kind: type[Exception]) -> None:
    objects.put("k", b"v")
    with pytest.raises(kind, match=r"a revision |if_match must be a revision"):
        objects.update_meta("k", description="d", if_match=revision)


def test_description_that_is_too_large_is_refused_and_the_old_one_stays(any_objects: ObjectBucket) -> None:
    info = any_objects.put("k", b"v")
    changes: list[dict[str, Any]] = [{"description": "d" * 1_100_000}, {"metadata": {"m": "x" * 1_048_500}}]
    for change in changes:
        with pytest.raises(ValueTooLargeError, match="up to 1048576 bytes"):
            any_objects.update_meta("k", **change)
        with pytest.raises(ValueTooLargeError, match="up to 1048576 bytes"):
            any_objects.put("k", b"w", **change)
    assert any_objects.list() == [info]


# --- a new name


def test_renamed_object_has_its_new_name_only_and_its_chunks_are_not_copied(any_objects: ObjectBucket) -> None:
    old = any_objects.put("a/ü", LARGE, metadata={"m": "1"})
    chunks = chunk_subjects(any_objects)
    info = any_objects.update_meta("a/ü", name="b/ö", description="moved")
    assert (info.name, info.description, info.metadata, info.nuid) == ("b/ö", "moved", {"m": "1"}, old.nuid)
    assert any_objects.list() == [info]
    assert any_objects.stat("b/ö") == info
    assert any_objects.get("b/ö") == LARGE
    assert any_objects.get("a/ü") is None
    assert chunk_subjects(any_objects) == chunks


def test_old_name_is_free_after_a_renaming_and_names_nothing_of_the_new_one(any_objects: ObjectBucket) -> None:
    any_objects.put("a", LARGE)
    any_objects.update_meta("a", name="b")
    any_objects.put("a", b"other")
    any_objects.delete("a")
    assert any_objects.get("b") == LARGE
    any_objects.update_meta("b", name="a")
    assert any_objects.get("a") == LARGE
    any_objects.delete("a")
    assert chunk_subjects(any_objects) == {}


def test_renaming_to_a_name_that_is_taken_is_refused(any_objects: ObjectBucket) -> None:
    infos = [any_objects.put("a", LARGE), any_objects.put("b", b"v")]
    with pytest.raises(ObjectExistsError, match=f"object 'b' already exists at revision {infos[1].revision}") as caught:
        any_objects.update_meta("a", name="b", description="d")
    assert isinstance(caught.value, KeyExistsError)
    assert (caught.value.bucket, caught.value.key, caught.value.actual) == (any_objects.name, "b", infos[1].revision)
    assert any_objects.list() == infos


def test_renaming_to_a_name_that_was_deleted_is_not(any_objects: ObjectBucket) -> None:
    any_objects.put("a", LARGE)
    any_objects.put("b", b"v")
    any_objects.delete("b")
    any_objects.update_meta("a", name="b")
    assert any_objects.get("b") == LARGE


def test_illegal_new_name_is_refused(objects: ObjectBucket) -> None:
    objects.put("a", b"v")
    with pytest.raises(InvalidKeyError, match="it is empty"):
        objects.update_meta("a", name="")
    with pytest.raises(InvalidKeyError, match="too long"):
        objects.update_meta("a", name="n" * 3000)
    with pytest.raises(TypeError, match="the object name must be a str"):
        objects.update_meta("a", name=5)  # type: ignore[arg-type]
    assert objects.exists("a")


def test_bucket_of_another_client_needs_no_atomic_batches_for_a_renaming(
    connection: Connection, objects: ObjectBucket
) -> None:
    raw = raw_objects(objects)
    raw.update(allow_atomic=False)
    bucket = connection.objects(objects.name)
    bucket.put("a", LARGE)
    bucket.update_meta("a", name="b")
    assert [info.name for info in bucket.list()] == ["b"]
    assert bucket.get("b") == LARGE


def test_a_bucket_that_we_open_allows_atomic_batches(objects: ObjectBucket) -> None:
    assert raw_objects(objects).config["allow_atomic"]


# --- the remaining time


@pytest.fixture
def mortal(objects: ObjectBucket) -> ObjectBucket:
    """A bucket whose objects may have a TTL of their own."""
    raw_objects(objects).update(allow_msg_ttl=True)
    return objects


def _give_ttl(objects: ObjectBucket, key: str, ttl: str) -> None:
    descriptions.store(objects, key, descriptions.stored(objects, key), {"Nats-TTL": ttl})


def _ttl_of(objects: ObjectBucket, key: str) -> int:
    (line,) = [line for line in descriptions.headers_of(objects, key).splitlines() if line.startswith("Nats-TTL:")]
    return int(line.partition(":")[2])


@pytest.mark.parametrize("ttl", ["100", "100s", "1m40s", "1m40000ms"])
def test_update_keeps_what_is_left_of_a_ttl(mortal: ObjectBucket, ttl: str) -> None:
    mortal.put("k", b"v")
    _give_ttl(mortal, "k", ttl)
    for number in range(5):  # each counts from the first, so nothing adds up
        mortal.update_meta("k", description=str(number))
        assert 97 <= _ttl_of(mortal, "k") <= 99
    mortal.update_meta("k", name="l")
    assert 97 <= _ttl_of(mortal, "l") <= 99


def test_object_expires_when_it_would_have_though_it_was_described_anew(mortal: ObjectBucket) -> None:
    mortal.put("k", b"v")
    start = datetime.now(UTC)
    _give_ttl(mortal, "k", "2")

    def gone() -> bool:
        try:
            mortal.update_meta("k", description="d")
        except ObjectNotFoundError:
            return True
        return False

    wait_until(gone, "it expires however often it is described")
    assert timedelta(seconds=1) < datetime.now(UTC) - start < timedelta(seconds=4)
    wait_until(lambda: not mortal.exists("k"), "the server removes it", timeout=3)


@pytest.mark.parametrize("ttl", ["never", None])
def test_object_that_never_expires_gets_no_ttl(mortal: ObjectBucket, ttl: str | None) -> None:
    mortal.put("k", b"v")
    if ttl is not None:
        _give_ttl(mortal, "k", ttl)
    mortal.update_meta("k", description="d")
    assert "Nats-TTL" not in descriptions.headers_of(mortal, "k")


def test_object_with_the_ttl_of_its_bucket_does_not_outlive_its_chunks(
    new_objects: Callable[..., ObjectBucket],
) -> None:
    objects = new_objects(ttl=100)
    raw_objects(objects).update(allow_msg_ttl=True)
    objects.put("k", b"v")
    for number in range(3):
        objects.update_meta("k", description=str(number))
        assert 97 <= _ttl_of(objects, "k") <= 99


def test_new_content_has_none_of_the_time_of_the_old(mortal: ObjectBucket) -> None:
    mortal.put("k", b"v")
    _give_ttl(mortal, "k", "100")
    mortal.update_meta("k", description="d")
    mortal.put("k", b"w")
    mortal.update_meta("k", description="e")
    assert "Nats-TTL" not in descriptions.headers_of(mortal, "k")


# --- copies


def test_copy_has_content_and_description_of_the_object_and_a_life_of_its_own(any_objects: ObjectBucket) -> None:
    old = any_objects.put("a", LARGE, description="d", headers={"A": ["1", "2"]}, metadata={"m": "1"})
    info = any_objects.copy("a", "b/ü")
    assert (info.name, info.size, info.digest) == ("b/ü", old.size, old.digest)
    assert (info.description, info.headers, info.metadata) == (old.description, old.headers, old.metadata)
    assert any_objects.list() == [old, info]
    any_objects.delete("a")
    assert any_objects.get("b/ü") == LARGE


@pytest.mark.parametrize("content", [b"", b"v"])
def test_copy_replaces_what_is_there(any_objects: ObjectBucket, content: bytes) -> None:
    any_objects.put("a", content)
    any_objects.put("b", LARGE, description="d")
    info = any_objects.copy("a", "b")
    assert any_objects.get("b") == content
    assert info.description == ""
    assert len(chunk_subjects(any_objects)) == (2 if content else 0)


def test_copy_onto_itself_is_the_object_again(any_objects: ObjectBucket) -> None:
    any_objects.put("a", LARGE, description="d")
    assert any_objects.copy("a", "a").description == "d"
    assert any_objects.get("a") == LARGE
    assert len(chunk_subjects(any_objects)) == 1


def test_copy_of_a_link_is_a_copy_of_its_object(any_objects: ObjectBucket) -> None:
    any_objects.put("a", LARGE, description="d")
    any_objects.link("l", "a")
    info = any_objects.copy("l", "b")
    assert (info.link, info.description) == (None, "d")
    assert any_objects.get("b") == LARGE


def test_copy_begins_again_when_its_source_is_replaced(
    any_objects: ObjectBucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    any_objects.put("a", LARGE, description="old")
    get_reader = any_objects.get_reader

    def replaced_once_open(key: str, **options: Any) -> Any:
        monkeypatch.undo()
        reader = get_reader(key, **options)
        any_objects.put("a", LARGE[1:], description="new")
        return reader

    monkeypatch.setattr(any_objects, "get_reader", replaced_once_open)
    assert any_objects.copy("a", "b").description == "new"
    assert any_objects.get("b") == LARGE[1:]
    assert len(chunk_subjects(any_objects)) == 2


def test_copy_of_what_is_missing_is_told_and_replaces_nothing(any_objects: ObjectBucket) -> None:
    any_objects.put("b", b"v")
    with pytest.raises(ObjectNotFoundError, match="object 'a' not found"):
        any_objects.copy("a", "b")
    assert any_objects.get("b") == b"v"


def test_copy_to_an_illegal_name_is_refused_before_anything_is_read(objects: ObjectBucket) -> None:
    with pytest.raises(InvalidKeyError, match="it is empty"):
        objects.copy("missing", "")


# --- the bucket is gone, the time is over


def _calls(objects: ObjectBucket, timeout: float) -> list[Callable[[], object]]:
    return [
        lambda: objects.update_meta("k", description="d", timeout=timeout),
        lambda: objects.update_meta("k", name="l", timeout=timeout),
        lambda: objects.copy("k", "l", timeout=timeout),
        lambda: objects.link("l", "k", timeout=timeout),
        lambda: objects.link_bucket("l", "b", timeout=timeout),
        lambda: objects.list(delimiter="/", timeout=timeout),
        lambda: objects.status(timeout=timeout),
        lambda: objects.reset(timeout=timeout),
        lambda: objects.seal(timeout=timeout),
        lambda: objects.watch(timeout=timeout),
    ]


@pytest.mark.parametrize("number", range(9))  # a watcher asks the server when it is read
def test_call_without_time_says_so_and_changes_nothing(objects: ObjectBucket, number: int) -> None:
    info = objects.put("k", b"v")
    with pytest.raises(OperationTimeoutError, match=objects.name):
        _calls(objects, 0)[number]()
    assert objects.list() == [info]
    objects.put("k", b"w")


@pytest.mark.parametrize("number", range(10))
def test_call_says_that_the_bucket_was_deleted(any_objects: ObjectBucket, number: int, impatient: None) -> None:
    any_objects.put("k", b"v")
    raw_objects(any_objects).delete()
    with pytest.raises(BucketNotFoundError, match=any_objects.name):
        _calls(any_objects, 5)[number]()
