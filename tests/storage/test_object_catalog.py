"""What a bucket has as a whole: folders, numbers, and the end of all changes."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mono_sync import (
    BucketSealedError,
    Connection,
    Folder,
    FSBucketConfig,
    ObjectBucket,
    StorageError,
)
from tests.storage import descriptions
from tests.storage.conftest import NewKV, NewObjects
from tests.storage.helpers import chunk_subjects, raw_kv, raw_objects

NAMES = ["a", "b/1", "b/2", "b/c/1", "b/c/2", "b/d/e/1", "b/", "ü/x", "/", "//"]


def _fill(objects: ObjectBucket, names: list[str]) -> None:
    for name in names:
        objects.put(name, b"")


def _names(folder: Folder) -> list[str]:
    return [info.name for info in folder.objects]


# --- folders


@pytest.mark.parametrize(
    ("prefix", "objects_there", "folders_there"),
    [
        ("", ["a"], ["/", "b/", "ü/"]),
        ("b/", ["b/", "b/1", "b/2"], ["b/c/", "b/d/"]),
        ("b/c", [], ["b/c/"]),
        ("b/c/", ["b/c/1", "b/c/2"], []),
        ("b/d/", [], ["b/d/e/"]),
        ("/", ["/"], ["//"]),
        ("ü/", ["ü/x"], []),
        ("none/", [], []),
    ],
)
def test_folder_has_what_is_right_below_the_prefix(
    any_objects: ObjectBucket, prefix: str, objects_there: list[str], folders_there: list[str]
) -> None:
    _fill(any_objects, NAMES)
    folder = any_objects.list(prefix, delimiter="/")
    assert (folder.prefix, _names(folder), list(folder.folders)) == (prefix, objects_there, folders_there)
    assert list(folder.objects) == [info for info in any_objects.list(prefix) if info.name in objects_there]


def test_without_a_prefix_the_folder_is_that_of_all(objects: ObjectBucket) -> None:
    _fill(objects, NAMES)
    assert objects.list(delimiter="/") == objects.list("", delimiter="/")


def test_any_text_delimits(objects: ObjectBucket) -> None:
    _fill(objects, ["a::b", "a::c::d", "a:e", "f"])
    folder = objects.list(delimiter="::")
    assert (_names(folder), list(folder.folders)) == (["a:e", "f"], ["a::"])
    assert list(objects.list("a::", delimiter="::").folders) == ["a::c::"]


def test_deleted_objects_make_no_folders_and_links_are_in_them(any_objects: ObjectBucket) -> None:
    _fill(any_objects, ["a/1", "b/1"])
    any_objects.link("c/l", "b/1")
    any_objects.delete("a/1")
    assert list(any_objects.list(delimiter="/").folders) == ["b/", "c/"]
    assert _names(any_objects.list("c/", delimiter="/")) == ["c/l"]


def test_wrong_delimiters_are_refused(objects: ObjectBucket) -> None:
    with pytest.raises(ValueError, match="must not be empty"):
        objects.list(delimiter="")
    with pytest.raises(TypeError, match="a delimiter must be a str, not bytes"):
        objects.list(delimiter=b"/")  # type: ignore[call-overload]


@pytest.fixture(scope="module")
def of_many_names(connection: Connection) -> ObjectBucket:
    return connection.objects(FSBucketConfig("folders", storage="memory"))


@given(names=st.sets(st.text("ab/", min_size=1, max_size=6), max_size=8), delimiter=st.sampled_from(["/", "//", "ab"]))
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_walking_through_the_folders_meets_every_object_once(
    of_many_names: ObjectBucket, names: set[str], delimiter: str
) -> None:
    objects = of_many_names
    objects.reset()
    _fill(objects, sorted(names))
    met: list[str] = []

    def walk(prefix: str) -> None:
        folder = objects.list(prefix, delimiter=delimiter)
        met.extend(_names(folder))
        assert list(folder.folders) == sorted(set(folder.folders))
        for deeper in folder.folders:
            walk(deeper)

    walk("")
    assert sorted(met) == sorted(names)


# --- status and reset


def test_status_counts_objects_and_deletions(any_objects: ObjectBucket) -> None:
    assert (any_objects.status().objects, any_objects.status().tombstones) == (0, 0)
    _fill(any_objects, ["a", "b", "c"])
    any_objects.link("l", "a")
    any_objects.put("large", bytes(300_000))
    any_objects.delete("b")
    any_objects.update_meta("c", name="d")
    status = any_objects.status()
    assert (status.objects, status.tombstones, status.keys, status.sealed) == (4, 2, None, False)
    assert status.objects == len(any_objects.list())


def test_status_counts_what_describes_no_object_as_one_that_is_there(any_objects: ObjectBucket) -> None:
    descriptions.store(any_objects, "k", b"no json")
    status = any_objects.status()
    assert (status.objects, status.tombstones) == (1, 0)


def test_status_of_a_key_value_bucket_counts_no_objects(new_kv: NewKV) -> None:
    status = new_kv().status()
    assert (status.objects, status.sealed) == (None, False)


def test_reset_removes_every_object_and_revisions_go_on(any_objects: ObjectBucket) -> None:
    _fill(any_objects, ["a", "b"])
    last = any_objects.put("c", bytes(300_000))
    any_objects.delete("a")
    any_objects.reset()
    any_objects.reset()
    assert any_objects.list() == []
    assert raw_objects(any_objects).state["messages"] == 0
    assert any_objects.put("a", b"v").revision > last.revision
    assert any_objects.get("a") == b"v"


# --- seal


def _writes(objects: ObjectBucket) -> list[Callable[[], object]]:
    return [
        lambda: objects.put("k", b"w"),
        lambda: objects.put("new", b""),
        lambda: objects.put("new", bytes(3_000_000)),
        lambda: objects.set("k", b"w"),
        lambda: objects.delete("k"),
        lambda: objects.update_meta("k", description="d"),
        lambda: objects.update_meta("k", name="l"),
        lambda: objects.copy("k", "l"),
        lambda: objects.link("l", "k"),
        lambda: objects.link_bucket("l", "b"),
        objects.reset,
    ]


def test_sealed_bucket_is_read_and_not_written(any_objects: ObjectBucket) -> None:
    info = any_objects.put("k", bytes(300_000))
    any_objects.seal()
    any_objects.seal()
    assert any_objects.status().sealed
    for write in _writes(any_objects):
        with pytest.raises(BucketSealedError, match=f"bucket '{any_objects.name}' is sealed") as caught:
            write()
        assert isinstance(caught.value, PermissionError)
        assert caught.value.bucket == any_objects.name
    assert any_objects.list() == [info]
    assert any_objects.get("k") == bytes(300_000)
    assert len(chunk_subjects(any_objects)) == 1
    any_objects.delete("missing")
    assert any_objects.update_meta("k") == info


def test_sealed_bucket_is_watched(any_objects: ObjectBucket) -> None:
    any_objects.put("k", b"v")
    any_objects.seal()
    with any_objects.watch() as watcher:
        assert [entry.key for entry in watcher.snapshot()] == ["k"]


@pytest.mark.parametrize("options", [{}, {"ttl": 100}, {"description": "new"}])
def test_sealed_bucket_is_opened_by_its_configuration_as_it_is(
    any_connection: Connection, any_new_objects: NewObjects, options: dict[str, str | int]
) -> None:
    objects = any_new_objects(ttl=50)
    objects.put("k", b"v")
    objects.seal()
    config = FSBucketConfig(objects.name, storage="memory", **options)  # type: ignore[arg-type]
    assert any_connection.objects(config).get("k") == b"v"


def test_ttl_of_a_bucket_ends_when_it_is_sealed(any_new_objects: NewObjects) -> None:
    objects = any_new_objects(ttl=100)
    objects.seal()
    assert objects.status().ttl is None


def test_key_value_bucket_that_was_sealed_says_so_too(new_kv: NewKV) -> None:
    kv = new_kv()
    kv.set("k", b"v")
    raw_kv(kv).update(sealed=True)
    writes: list[Callable[[], object]] = [lambda: kv.set("k", b"w"), lambda: kv.delete("k"), kv.reset]
    for write in writes:
        with pytest.raises(BucketSealedError, match=kv.name):
            write()
    assert kv.get("k") == b"v"
    assert kv.status().sealed


@pytest.mark.parametrize("token", ["x", "_w==", "aw==", "YQ", "a.aw=="])
def test_what_describes_no_object_is_shown_as_it_can_be_removed(objects: ObjectBucket, token: str) -> None:
    subject = f"$O.{objects.name}.M.{token}"
    raw_objects(objects).put(subject, b"{not json")
    mine, foreign = r"what is stored of 'k' .* \(delete it", rf"{re.escape(subject)} .* \(it is of no object"
    with pytest.raises(StorageError, match=mine if token == "aw==" else foreign):
        objects.list()
    if token == "aw==":
        objects.delete("k")
    else:
        raw_objects(objects).purge(subject)
    assert objects.list() == []
