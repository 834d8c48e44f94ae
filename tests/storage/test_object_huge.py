"""Objects that are larger than what 31 and 32 bits can count."""

from __future__ import annotations

import hashlib
import io
import os
from array import array
from bisect import bisect_left
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mono_sync import ObjectInfo, ObjectReader
from mono_sync._durations import Deadline
from mono_sync.adapter import Message
from mono_sync.storage.objects import _sinks
from mono_sync.storage.objects._layout import Place, measure, seek
from mono_sync.storage.objects._source_file import size_of
from tests.storage.conftest import NewObjects
from tests.storage.helpers import chunk_subjects

BORDERS = (2**31, 2**32)
FOR_EVER = Deadline(None)
_WORD = 8


def content(start: int, size: int) -> bytes:
    """Return a part of endless content in which every eight bytes count on."""
    first, last = start // _WORD, -(-(start + size) // _WORD)
    return array("Q", range(first, last)).tobytes()[start - first * _WORD :][:size]


# --- objects that nobody has stored


class Imagined:
    """Chunks of the sizes given, again and again, in a stream in which after so many comes one of another upload."""

    def __init__(self, size: int, sizes: list[int], *, first: int = 1, every: int = 10**9, told: int = 0) -> None:
        self._sizes = sizes
        self._round = sum(sizes)
        self._first, self._every = first, every
        rounds, rest = divmod(size, self._round)
        self.chunks = rounds * len(sizes) + bisect_left(range(len(sizes)), rest, key=lambda n: sum(sizes[:n]))
        self.size = size
        self.info = ObjectInfo(
            bucket="b",
            name="k",
            size=size,
            digest="",
            modified=datetime.now(UTC),
            chunks=self.chunks,
            nuid="n",
            description="",
            headers={},
            revision=self.sequence(self.chunks),
            chunk_size=told,
        )

    def sequence(self, number: int) -> int:
        return self._first + number + number // self._every

    def begin(self, number: int) -> int:
        rounds, rest = divmod(number, len(self._sizes))
        return min(rounds * self._round + sum(self._sizes[:rest]), self.size)

    def number_of(self, offset: int) -> int:
        return bisect_left(range(self.chunks), offset + 1, key=self.begin) - 1

    def open(self, start: int | None, /, *, headers_only: bool = False) -> Any:
        number = self.chunks - 1 if start is None else bisect_left(range(self.chunks), start, key=self.sequence)
        return ImaginedDelivery(self, number)

    # --- what a reader wants of its source

    def chunk_at(self, offset: int, _need: int, _deadline: Deadline) -> tuple[int, bytes]:
        assert 0 <= offset < self.size
        number = self.number_of(offset)
        begin = self.begin(number)
        return begin, content(begin, self.begin(number + 1) - begin)

    def close(self) -> None:
        pass


class ImaginedDelivery:
    """The headers of chunks, from one of them on."""

    def __init__(self, imagined: Imagined, number: int) -> None:
        self._imagined = imagined
        self.number = number

    def begin(self, _deadline: Deadline) -> int:
        return self._imagined.chunks - self.number

    def next(self, _deadline: Deadline, *, ahead: int) -> tuple[Message, int]:
        imagined, number = self._imagined, self.number
        self.number += 1
        length = imagined.begin(number + 1) - imagined.begin(number)
        block = f"NATS/1.0\r\nNats-Msg-Size: {length}\r\n\r\n".encode()
        return Message("s", b"", "", block), imagined.sequence(number)

    def close(self) -> None:
        pass

    abandon = close


def _near_borders(size: int) -> st.SearchStrategy[int]:
    """Return offsets within an object, many of them near a border or the end."""
    near = (st.integers(max(0, place - 300), min(place + 300, size - 1)) for place in (0, *BORDERS, size))
    return st.one_of(st.integers(0, size - 1), *near)


@settings(deadline=None)
@given(data=st.data())
def test_chunk_of_any_place_is_found_where_all_have_one_size(data: st.DataObject) -> None:
    chunk = data.draw(st.sampled_from([100, 2**17, 2**20 - 256, 1_000_003, 2**26]))
    size = data.draw(st.integers(2**32 + 1, 2**42))
    imagined = Imagined(
        size,
        [chunk],
        first=data.draw(st.integers(1, 2**40)),
        every=data.draw(st.sampled_from([1, 3, 1000, 10**9])),
        told=chunk,
    )
    layout = measure(imagined.info, imagined.open, FOR_EVER)
    for offset in data.draw(st.lists(_near_borders(size), min_size=5, max_size=5)):
        place = layout.place_at(offset)
        assert place == Place(offset // chunk, offset // chunk * chunk, 0)
        found = seek(place.number, imagined.chunks, layout.last_sequence, imagined.open, FOR_EVER)
        assert isinstance(found, ImaginedDelivery)
        assert found.number == place.number


@settings(deadline=None)
@given(data=st.data())
def test_chunk_of_any_place_is_found_where_they_have_any_sizes(data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.integers(2**24, 2**26), min_size=1, max_size=5))
    size = data.draw(st.integers(2**32 + 1, 2**33))
    imagined = Imagined(size, sizes, first=data.draw(st.integers(1, 2**40)), every=data.draw(st.integers(1, 9)))
    layout = measure(imagined.info, imagined.open, FOR_EVER)
    for offset in data.draw(st.lists(_near_borders(size), min_size=5, max_size=5)):
        number = imagined.number_of(offset)
        assert layout.place_at(offset) == Place(number, imagined.begin(number), imagined.sequence(number))


@settings(deadline=None)
@given(data=st.data())
def test_any_place_is_read(data: st.DataObject) -> None:
    size = data.draw(st.integers(2**32 + 1, 2**42))
    imagined: Any = Imagined(size, [1000, 77])
    with ObjectReader(imagined, timeout=None, default_timeout=None) as reader:
        for offset in data.draw(st.lists(_near_borders(size), min_size=5, max_size=5)):
            whence = data.draw(st.sampled_from([io.SEEK_SET, io.SEEK_CUR, io.SEEK_END]))
            base = {io.SEEK_SET: 0, io.SEEK_CUR: reader.tell(), io.SEEK_END: size}[whence]
            assert reader.seek(offset - base, whence) == offset
            wanted = data.draw(st.integers(0, 3000))
            expected = content(offset, min(wanted, size - offset))
            assert reader.read(wanted) == expected
            position, buffer = offset + len(expected), bytearray(50)
            assert reader.tell() == position
            filled = reader.readinto(buffer)
            assert buffer[:filled] == content(position, min(50, size - position))
        assert reader.seek(0, io.SEEK_END) == size
        assert reader.read() == b""


def _sparse_file(path: Path, size: int, marks: list[int]) -> None:
    """Write a file of zeros that takes no room on the disk, in which marks tell where they stand."""
    with path.open("wb") as file:
        file.truncate(size)
        for mark in marks:
            file.seek(mark)
            file.write(f"{mark:16}".encode())


@pytest.mark.parametrize("border", BORDERS)
def test_size_of_a_file_beyond_a_border_is_known(tmp_path: Path, border: int) -> None:
    _sparse_file(tmp_path / "f", border + 100, [])
    with (tmp_path / "f").open("rb") as file:
        assert size_of(file) == border + 100
        file.seek(border - 5)
        assert size_of(file) == 105


# --- an object that is really stored


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.skipif(
    os.environ.get("MONO_SYNC_HUGE_OBJECTS") != "1", reason="takes its time; MONO_SYNC_HUGE_OBJECTS=1 lets it run"
)
def test_object_of_more_than_4_gibibytes(
    new_objects: NewObjects, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_sinks, "_CHUNK", 1 << 20)  # as much as the server takes: less time, and a chunk on each border
    size, told = max(BORDERS) + 300_005, list[tuple[int, int | None]]()
    marks = [0, *(border + away for border in BORDERS for away in (-16, 0, 16, 100_000)), size - 16]
    _sparse_file(tmp_path / "f", size, marks)
    objects = new_objects(storage="file", compression=True)
    with (tmp_path / "f").open("rb") as file:
        info = objects.put_reader("k", file, progress=lambda *done: told.append(done), timeout=None)
    assert (info.size, told[-1]) == (size, (size, size))
    assert info == objects.stat("k")
    assert list(chunk_subjects(objects).values()) == [info.chunks]
    assert objects.status().bytes > size
    with objects.open("k") as reader:
        for mark in reversed(marks):
            reader.seek(mark)
            assert reader.read(16) == f"{mark:16}".encode()
        assert (reader.tell(), reader.seek(0, io.SEEK_END)) == (16, size)
        assert reader.read() == b""
        for border in BORDERS:
            reader.seek(border - 2_000_000)
            with (tmp_path / "f").open("rb") as file:
                assert reader.read(4_000_000) == os.pread(file.fileno(), 4_000_000, border - 2_000_000)
        reader.seek(0)
        assert hashlib.file_digest(reader, hashlib.sha256).digest() == _digest_of(tmp_path / "f")
        assert reader.tell() == size
    objects.delete("k")
    assert chunk_subjects(objects) == {}


def _digest_of(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, hashlib.sha256).digest()
