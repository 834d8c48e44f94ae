"""What has the bytes of an object."""

from __future__ import annotations

import array
import mmap
import sys
from collections.abc import Callable
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


class Times:
    """Gives bytes, and does not say what they mean: an array of numpy with times does so."""

    def __buffer__(self, flags: int) -> memoryview:
        if flags & 4:  # PyBUF_FORMAT
            raise ValueError("cannot include dtype 'M' in a buffer")
        return memoryview(b"abc")


def _without_shape() -> Any:
    testbuffer = pytest.importorskip("_testbuffer")
    return testbuffer.ndarray(testbuffer.ndarray(list(b"abc"), shape=[3]), getbuf=testbuffer.PyBUF_ND)


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(Times, marks=pytest.mark.skipif(sys.version_info < (3, 12), reason="of Python 3.12")),
        _without_shape,
    ],
)
def test_bytes_of_which_nobody_can_say_what_they_mean_are_stored(
    objects: ObjectBucket, make: Callable[[], Any]
) -> None:
    data = make()
    with pytest.raises((ValueError, BufferError)):
        memoryview(data)
    objects.put("k", data)
    assert objects.get("k") == b"abc"
    with objects.open("l", "wb") as writer:
        assert writer.write(data) == 3
    assert objects.get("l") == b"abc"


def test_view_that_was_released_is_refused_and_the_stream_stays_of_use(objects: ObjectBucket) -> None:
    released = memoryview(b"abc")
    released.release()
    with objects.open("k", "wb") as writer:
        with pytest.raises(ValueError, match="released memoryview"):
            writer.write(released)
        writer.write(b"x")
    assert objects.get("k") == b"x"


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
        with pytest.raises(TypeError, match="one after the other"):
            reader.readinto(memoryview(bytearray(4))[::2])
    assert room == numbers
