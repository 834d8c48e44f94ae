"""What has the bytes of an object."""

from __future__ import annotations

import array
import mmap
from pathlib import Path
from typing import Any

import pytest

from mono_sync import BucketFullError, ObjectBucket, ObjectExistsError
from tests.storage.conftest import NewObjects
from tests.storage.helpers import raw_objects


@pytest.mark.parametrize("value", ["text", 5, None])
def test_content_that_is_not_bytes_like_is_refused(objects: ObjectBucket, value: Any) -> None:
    with pytest.raises(TypeError, match="a bytes-like object is required, not"):
        objects.put("k", value)
    assert raw_objects(objects).state["last_seq"] == 0


@pytest.mark.parametrize(
    "value", [bytearray(b"abc"), memoryview(b"aXbXcX")[::2], memoryview(b"abc"), array.array("B", b"abc")]
)
def test_bytes_like_content_is_taken(any_objects: ObjectBucket, value: Any) -> None:
    any_objects.put("k", value)
    assert any_objects.get("k") == b"abc"
    any_objects.set("l", value)
    assert any_objects.get("l") == b"abc"


def test_numbers_are_taken_as_their_bytes(objects: ObjectBucket) -> None:
    for numbers in (array.array("I", range(100_000)), array.array("I")):
        objects.put("k", numbers)
        assert objects.get("k") == numbers.tobytes()


def test_mapped_file_is_taken_and_can_be_closed_also_when_it_is_refused(objects: ObjectBucket, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"abc" * 100_000)
    with (tmp_path / "f").open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        objects.put("k", mapped)
    assert objects.get("k") == b"abc" * 100_000
    with (
        pytest.raises(ObjectExistsError),
        (tmp_path / "f").open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
    ):
        objects.put("k", mapped, if_match=0)


def test_numbers_are_written_as_their_bytes(objects: ObjectBucket) -> None:
    numbers = array.array("I", range(100_000))
    with objects.open("k", "wb") as writer:
        assert writer.write(numbers) == 400_000
        assert writer.write(array.array("I")) == 0
        assert writer.write(memoryview(b"aXbX")[::2]) == 2
    assert objects.get("k") == numbers.tobytes() + b"ab"


def test_mapped_file_can_be_closed_also_when_its_write_fails(new_objects: NewObjects, tmp_path: Path) -> None:
    objects = new_objects(max_bytes=1_000_000)
    (tmp_path / "f").write_bytes(b"abc" * 1_000_000)
    with (
        pytest.raises(BucketFullError),
        (tmp_path / "f").open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
        objects.open("k", "wb") as writer,
    ):
        writer.write(mapped)


def test_bytes_are_read_into_numbers_and_into_nothing(objects: ObjectBucket) -> None:
    numbers = array.array("I", range(100))
    objects.put("k", numbers)
    room = array.array("I", bytes(400))
    with objects.open("k") as reader:
        assert reader.readinto(array.array("I")) == 0
        assert reader.readinto1(bytearray()) == 0
        assert reader.readinto(room) == 400
        with pytest.raises(ValueError, match="one after the other"):
            reader.readinto(memoryview(bytearray(4))[::2])
    assert room == numbers
