"""Links to objects and to buckets."""

from __future__ import annotations

from typing import Any

import pytest

from mono_sync import (
    BucketNotFoundError,
    ConfigurationError,
    Connection,
    InvalidKeyError,
    KVBucketConfig,
    ObjectBucket,
    ObjectExistsError,
    ObjectNotFoundError,
    RevisionMismatchError,
    StorageError,
)
from tests.storage import descriptions
from tests.storage.conftest import NewObjects
from tests.storage.foreign import link
from tests.storage.helpers import chunk_subjects, raw_objects


def test_link_to_an_object_of_the_bucket_is_stored_as_the_specification_has_it(any_objects: ObjectBucket) -> None:
    any_objects.put("a/ü", b"v")
    info = any_objects.link("l/ö", "a/ü")
    assert (info.name, info.link, info.size, info.chunks) == ("l/ö", f"{any_objects.name}/a/ü", 0, 0)
    assert any_objects.stat("l/ö") == info
    assert [found.name for found in any_objects.list()] == ["a/ü", "l/ö"]
    assert any_objects.exists("l/ö")
    meta = descriptions.stored(any_objects, "l/ö")
    assert meta["options"] == {"link": {"bucket": any_objects.name, "name": "a/ü"}}
    assert meta["nuid"]


def test_link_to_an_object_of_another_bucket(any_new_objects: NewObjects) -> None:
    here, there = any_new_objects(), any_new_objects()
    assert here.link("l", there.put("a", b"v")).link == f"{there.name}/a"


def test_link_to_a_bucket_names_it(any_new_objects: NewObjects) -> None:
    here, there = any_new_objects(), any_new_objects()
    for target in (there, there.name):
        info = here.link_bucket("l", target)
        assert info.link == there.name
        assert here.stat("l") == info
    assert descriptions.stored(here, "l")["options"] == {"link": {"bucket": there.name}}


def test_link_to_what_is_missing_or_deleted_is_refused(any_objects: ObjectBucket) -> None:
    any_objects.put("deleted", b"v")
    any_objects.delete("deleted")
    for target in ("missing", "deleted"):
        with pytest.raises(ObjectNotFoundError, match=target):
            any_objects.link("l", target)
    assert any_objects.list() == []


def test_link_to_a_link_is_refused(any_objects: ObjectBucket) -> None:
    any_objects.put("a", b"v")
    links = [any_objects.link("l", "a"), any_objects.link_bucket("b", "other")]
    for target in ("l", links[0], "b", links[1]):
        with pytest.raises(ValueError, match=r"is a link to .*: link to that"):
            any_objects.link("m", target)
    assert not any_objects.exists("m")


def test_link_replaces_a_link_but_no_object(any_objects: ObjectBucket) -> None:
    for name in ("a", "b"):
        any_objects.put(name, b"v")
    any_objects.link("l", "a")
    assert any_objects.link("l", "b").link == f"{any_objects.name}/b"
    assert any_objects.link_bucket("l", "other").link == "other"
    with pytest.raises(ObjectExistsError, match="object 'a' already exists"):
        any_objects.link("a", "b")
    with pytest.raises(ObjectExistsError, match="object 'a' already exists"):
        any_objects.link_bucket("a", "other")
    with pytest.raises(ObjectExistsError):
        any_objects.link("a", "a")
    assert any_objects.get("a") == b"v"
    assert raw_objects(any_objects).state["messages"] == 5


def test_link_can_have_the_name_of_a_deleted_object(any_objects: ObjectBucket) -> None:
    any_objects.put("a", b"v")
    any_objects.put("l", b"v")
    any_objects.delete("l")
    assert any_objects.link("l", "a").link


def test_object_can_replace_a_link(any_objects: ObjectBucket) -> None:
    any_objects.put("a", b"v")
    any_objects.link("l", "a")
    assert any_objects.put("l", b"w").link is None
    assert (any_objects.get("a"), any_objects.get("l")) == (b"v", b"w")


def test_deleting_a_link_leaves_its_object(any_objects: ObjectBucket) -> None:
    any_objects.put("a", bytes(300_000))
    any_objects.link("l", "a")
    any_objects.link_bucket("b", "other")
    for name in ("l", "b"):
        any_objects.delete(name)
    assert [info.name for info in any_objects.list()] == ["a"]
    assert any_objects.get("a") == bytes(300_000)


def test_deleting_an_object_leaves_its_links_which_lead_nowhere(any_objects: ObjectBucket) -> None:
    any_objects.put("a", b"v")
    link = any_objects.link("l", "a")
    any_objects.delete("a")
    assert any_objects.list() == [link]
    assert chunk_subjects(any_objects) == {}


def test_link_can_be_described_and_renamed(any_objects: ObjectBucket) -> None:
    any_objects.put("a", b"v")
    old = any_objects.link("l", "a")
    info = any_objects.update_meta("l", name="m", description="d", metadata={"x": "y"}, if_match=old.revision)
    assert (info.name, info.link, info.description, info.metadata) == ("m", old.link, "d", {"x": "y"})
    assert [found.name for found in any_objects.list()] == ["a", "m"]
    with pytest.raises(RevisionMismatchError):
        any_objects.update_meta("m", description="e", if_match=old.revision)
    with pytest.raises(ObjectExistsError):
        any_objects.update_meta("a", name="m")


@pytest.mark.parametrize("target", [None, 5, b"a"])
def test_target_of_another_type_is_refused(objects: ObjectBucket, target: Any) -> None:
    with pytest.raises(TypeError, match="a link leads to an ObjectInfo or the name of an object"):
        objects.link("l", target)
    with pytest.raises(ConfigurationError, match="the name of a bucket must be a str"):
        objects.link_bucket("l", target)


def test_link_to_a_key_value_bucket_is_refused(connection: Connection, objects: ObjectBucket, name: str) -> None:
    keys: Any = connection.kv(KVBucketConfig(name, storage="memory"))
    with pytest.raises(ConfigurationError, match="not KVBucket"):
        objects.link_bucket("l", keys)
    assert objects.list() == []


def test_illegal_names_are_refused(objects: ObjectBucket) -> None:
    objects.put("a", b"v")
    with pytest.raises(InvalidKeyError, match="it is empty"):
        objects.link("", "a")
    with pytest.raises(InvalidKeyError, match="it is empty"):
        objects.link("l", "")
    with pytest.raises(InvalidKeyError, match="it is empty"):
        objects.link_bucket("", "b")
    with pytest.raises(ConfigurationError, match="invalid bucket name"):
        objects.link_bucket("l", "a/b")


def test_what_a_link_leads_to_may_become_a_link_itself(any_objects: ObjectBucket) -> None:
    any_objects.put("a", b"1")
    any_objects.link("l", "a")
    any_objects.delete("a")
    any_objects.put("b", b"2")
    any_objects.link("a", "b")
    assert any_objects.get("l") == b"2"
    assert any_objects.copy("l", "c").size == 1
    any_objects.delete("b")
    any_objects.link("b", "c")
    any_objects.delete("c")
    assert any_objects.get("l") is None
    any_objects.put("c", b"3")
    assert any_objects.get("l") == b"3"


# --- links that lead nowhere


@pytest.mark.parametrize("bucket_is_gone", [True, False])
def test_link_to_what_is_missing_is_missing_and_says_what_it_led_to(
    any_new_objects: NewObjects, *, bucket_is_gone: bool
) -> None:
    here, there = any_new_objects(), any_new_objects()
    here.link("l", there.put("a/b", b"v"))
    link(here, "m", {"bucket": here.name, "name": "l"})
    if bucket_is_gone:
        raw_objects(there).delete()
    else:
        there.delete("a/b")
    for name in ("l", "m"):
        assert here.exists(name)
        assert here.stat(name).link
        assert here.get(name, b"default") == b"default"
        target = f"{there.name}/a/b"
        message = f"object '{name}' of bucket '{here.name}' is a link that leads to '{target}', which is not there"
        for call in (here.get_reader, here.open, lambda name: here.copy(name, "c")):
            with pytest.raises(ObjectNotFoundError) as caught:
                call(name)
            assert str(caught.value) == message
            assert (caught.value.bucket, caught.value.key, caught.value.link) == (here.name, name, target)
            assert isinstance(caught.value.__cause__, BucketNotFoundError) == bucket_is_gone


def test_bucket_that_is_gone_itself_is_told_as_such(any_objects: ObjectBucket) -> None:
    raw_objects(any_objects).delete()
    for call in (any_objects.get, any_objects.get_reader, any_objects.open):
        with pytest.raises(BucketNotFoundError, match=any_objects.name):
            call("l")


# --- what other clients may have stored


@pytest.mark.parametrize("links", [16, 17])
def test_no_more_than_sixteen_links_in_a_row_are_followed(objects: ObjectBucket, links: int) -> None:
    objects.put("0", b"v")
    for number in range(links):
        link(objects, str(number + 1), {"bucket": objects.name, "name": str(number)})
    if links == 16:
        assert objects.get("16") == b"v"
        return
    for call in (objects.get, objects.get_reader, objects.open):
        with pytest.raises(StorageError, match=r"'17' of bucket .* to a link, and so on for more than 16 links"):
            call("17")


@pytest.mark.parametrize("target", [{"bucket": "bad name!", "name": "a"}, {"name": "\ud800"}])
def test_link_to_what_no_name_can_stand_for_is_told_as_such(objects: ObjectBucket, target: dict[str, str]) -> None:
    link(objects, "l", {"bucket": objects.name} | target)
    for call in (objects.get, objects.get_reader, objects.open):
        with pytest.raises(
            StorageError, match=r"'l' of bucket '\w+' is a link to what cannot exist: invalid "
        ) as caught:
            call("l")
        assert not isinstance(caught.value, ValueError)
    assert [info.name for info in objects.list()] == ["l"]
