"""What has the bytes of an object."""

from __future__ import annotations

import array
import mmap
from pathlib import Path
from typing import Any

import pytest

from mono_sync import ObjectBucket, ObjectExistsError
from tests.storage.helpers import raw_objects


@pytest.mark.parametrize("value", ["text", 5, None])
def test_content_that_is_not_bytes_like_is_refused(objects: ObjectBucket, value: Any) -> None:
    with pytest.raises(TypeError, match="the content of an object must be bytes-like, not"):
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
