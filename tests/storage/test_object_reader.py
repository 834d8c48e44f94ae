"""What a stream of an object does, as any file does, and what only it does."""

from __future__ import annotations

import copy
import csv
import gzip
import hashlib
import io
import os
import pickle
import random
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

import mono_sync
from mono_sync import (
    Connection,
    ConnectionClosedError,
    DigestMismatchError,
    ForkedError,
    InvalidKeyError,
    ObjectBucket,
    ObjectNotFoundError,
    ObjectReader,
    OperationTimeoutError,
    StorageError,
    TextObjectReader,
)
from tests.fixtures.waiting import wait_until
from tests.storage.conftest import NewObjects
from tests.storage.foreign import ForeignUpload, link, upload
from tests.storage.helpers import raw_objects

CHUNK = 128 * 1024
CONTENT = random.Random(1).randbytes(3 * CHUNK + 1000)


@pytest.fixture
def bucket(any_objects: ObjectBucket) -> ObjectBucket:
    any_objects.put("k", CONTENT)
    return any_objects


# --- opening


@pytest.mark.parametrize("opened", [ObjectBucket.get_reader, ObjectBucket.open])
def test_reader_is_a_seekable_binary_stream_of_one_object(
    bucket: ObjectBucket, opened: Callable[[ObjectBucket, str], ObjectReader]
) -> None:
    with opened(bucket, "k") as reader:
        assert isinstance(reader, io.BufferedIOBase)
        assert isinstance(reader, ObjectReader)
        assert (reader.readable(), reader.seekable(), reader.writable(), reader.closed) == (True, True, False, False)
        assert (reader.name, reader.mode, reader.info) == ("k", "rb", bucket.stat("k"))
        assert reader.read() == CONTENT
        assert reader.read() == reader.read1() == reader.readline() == reader.peek() == b""
        assert repr(reader) == f"<ObjectReader 'k' of bucket '{bucket.name}', at {len(CONTENT)} of {len(CONTENT)}>"
    assert reader.closed
    assert "closed" in repr(reader)


@pytest.mark.parametrize("size", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 33 * CHUNK])
def test_objects_of_all_sizes_are_read_to_their_end(any_objects: ObjectBucket, size: int) -> None:
    content = random.Random(size).randbytes(size)
    any_objects.put("k", content)
    with any_objects.get_reader("k") as reader:
        assert reader.read() == content
        assert reader.seek(0) == 0
        assert b"".join(iter(lambda: reader.read(50_000), b"")) == content
        assert reader.seek(-1, os.SEEK_END) == size - 1 if size else reader.tell() == 0
        assert reader.read() == content[-1:]


def test_missing_object_cannot_be_opened(any_objects: ObjectBucket) -> None:
    any_objects.put("deleted", b"v")
    any_objects.delete("deleted")
    for name in ("k", "deleted"):
        with pytest.raises(ObjectNotFoundError, match=f"object '{name}' not found"):
            any_objects.get_reader(name)
        with pytest.raises(FileNotFoundError):
            any_objects.open(name)


@pytest.mark.parametrize("timeout", [-1, float("nan"), "5"])
def test_impossible_timeout_is_refused_when_the_stream_is_opened(objects: ObjectBucket, timeout: Any) -> None:
    objects.put("k", b"v")
    with pytest.raises((ValueError, TypeError)):
        objects.get_reader("k", timeout=timeout)


@pytest.mark.parametrize("mode", ["", "a", "r+", "rb+", "w+b", "rbt", "rr", "U", "rU", "b", "t", "bb"])
def test_mode_that_an_object_has_not_is_refused(objects: ObjectBucket, mode: str) -> None:
    with pytest.raises(ValueError, match=f"invalid mode '{mode}'".replace("+", r"\+")):
        objects.open("k", mode)


def test_text_options_are_refused_with_a_binary_mode(objects: ObjectBucket) -> None:
    for options in ({"encoding": "utf-8"}, {"errors": "strict"}, {"newline": ""}):
        with pytest.raises(ValueError, match=f"binary mode 'rb' takes no {next(iter(options))}"):
            objects.open("k", "rb", **options)  # type: ignore[call-overload]


def test_there_is_no_buffering_to_be_chosen(objects: ObjectBucket) -> None:
    for mode in ("rb", "w"):
        with pytest.raises(TypeError, match="unexpected keyword argument 'buffering'"):
            objects.open("k", mode, buffering=0)  # type: ignore[call-overload]


def test_arguments_of_wrong_types_are_refused(objects: ObjectBucket) -> None:
    with pytest.raises(TypeError, match="a mode must be a str, not bytes"):
        objects.open("k", b"rb")  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="object name must be a str"):
        objects.open(5)  # type: ignore[call-overload]
    with pytest.raises(InvalidKeyError):
        objects.open("")


def test_unknown_encoding_leaves_nothing_open(objects: ObjectBucket) -> None:
    objects.put("k", b"v")
    with pytest.raises(LookupError):
        objects.open("k", "r", encoding="none such")


# --- as text


@pytest.mark.parametrize("mode", ["r", "rt", "tr"])
def test_text_is_utf_8_unless_told_otherwise(any_objects: ObjectBucket, mode: str) -> None:
    text = "grün\r\nund ☃\n" * 20_000
    any_objects.put("k", text.encode())
    with any_objects.open("k", mode) as stream:
        assert isinstance(stream, io.TextIOWrapper)
        assert (stream.name, stream.mode, stream.encoding) == ("k", mode, "utf-8")
        assert isinstance(stream, TextObjectReader)
        assert stream.info == any_objects.stat("k")
        assert stream.read() == text.replace("\r\n", "\n")
    with any_objects.open("k", "r", newline="") as stream:
        assert stream.readline() == "grün\r\n"
        place = stream.tell()
        assert list(stream) == text.splitlines(keepends=True)[1:]
        stream.seek(place)
        assert stream.readline() == "und ☃\n"
    with any_objects.open("k", "r", encoding="ascii", errors="replace") as stream:
        assert stream.read(5) == "gr��n"


def test_closing_the_text_closes_the_object(objects: ObjectBucket) -> None:
    objects.put("k", b"text")
    stream = objects.open("k", "r")
    binary = stream.buffer
    stream.close()
    assert binary.closed


# --- what takes a file takes it


def test_zip_file_is_read_from_it(any_objects: ObjectBucket) -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("small.txt", b"small")
        archive.writestr("large.bin", CONTENT)
    any_objects.put("k.zip", packed.getvalue())
    with any_objects.open("k.zip") as reader, zipfile.ZipFile(reader) as archive:
        assert archive.namelist() == ["small.txt", "large.bin"]
        assert archive.read("small.txt") == b"small"
        assert archive.read("large.bin") == CONTENT
        assert archive.testzip() is None


@pytest.mark.parametrize("mode", ["r:", "r:gz", "r|*", "r"])
def test_tar_file_is_read_from_it(any_objects: ObjectBucket, mode: Any) -> None:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz" if "gz" in mode else "w") as archive:
        entry = tarfile.TarInfo("large.bin")
        entry.size = len(CONTENT)
        archive.addfile(entry, io.BytesIO(CONTENT))
    any_objects.put("k.tar", packed.getvalue())
    with any_objects.open("k.tar") as reader, tarfile.open(fileobj=reader, mode=mode) as archive:
        found = archive.next()
        assert found is not None
        member = archive.extractfile(found)
        assert member is not None
        assert member.read() == CONTENT


def test_gzip_csv_pickle_and_copies_read_from_it(any_objects: ObjectBucket, tmp_path: Path) -> None:
    any_objects.put("gz", gzip.compress(CONTENT))
    with any_objects.open("gz") as reader, gzip.open(reader) as unpacked:
        assert unpacked.read() == CONTENT

    rows = [[str(number), "x,y\n" * 5] for number in range(20_000)]
    table = io.StringIO(newline="")
    csv.writer(table).writerows(rows)
    any_objects.put("csv", table.getvalue().encode())
    with any_objects.open("csv", "r", newline="") as text:
        assert list(csv.reader(text)) == rows

    value = {"rows": rows, "content": CONTENT}
    any_objects.put("pickle", pickle.dumps(value) + pickle.dumps("and more"))
    with any_objects.open("pickle") as reader:
        assert pickle.load(reader) == value
        assert pickle.load(reader) == "and more"

    any_objects.put("k", CONTENT)
    with any_objects.open("k") as reader, (tmp_path / "copy").open("wb") as target:
        shutil.copyfileobj(reader, target)
    assert (tmp_path / "copy").read_bytes() == CONTENT
    with any_objects.open("k") as reader:
        assert hashlib.file_digest(reader, "sha256").digest() == hashlib.sha256(CONTENT).digest()
        reader.seek(5)
        assert io.BufferedReader(reader).read(10) == CONTENT[5:15]


def test_lines_may_be_longer_than_chunks(any_objects: ObjectBucket) -> None:
    lines = [b"a" * 300_000 + b"\n", b"\n", b"b\n", b"c" * CHUNK]
    any_objects.put("k", b"".join(lines))
    with any_objects.open("k") as reader:
        assert list(reader) == lines
        reader.seek(0)
        assert reader.readlines() == lines
        reader.seek(0)
        assert reader.readline(200_000) == b"a" * 200_000
        assert reader.readline() == b"a" * 100_000 + b"\n"


def test_sizes_are_whole_numbers_of_any_kind(bucket: ObjectBucket) -> None:
    class Two:
        def __index__(self) -> int:
            return 2

    with bucket.open("k") as reader:
        for read in (reader.read, reader.read1, reader.readline):
            reader.seek(1)
            with pytest.raises(TypeError):
                read(2.0)  # type: ignore[arg-type]
            assert reader.tell() == 1
            assert read(Two()) == CONTENT[1:3]  # type: ignore[arg-type]
            assert reader.tell() == 3


def test_readinto_fills_buffers_of_any_kind(any_objects: ObjectBucket) -> None:
    any_objects.put("k", CONTENT)
    with any_objects.open("k") as reader:
        wide = memoryview(bytearray(200_000)).cast("I")
        assert reader.readinto(wide) == 200_000
        assert wide.tobytes() == CONTENT[:200_000]
        assert reader.readinto(bytearray()) == 0
        rest = bytearray(500_000)
        assert reader.readinto(rest) == len(CONTENT) - 200_000
        assert rest.startswith(CONTENT[200_000:])
        for call in (reader.readinto, reader.readinto1):
            with pytest.raises(TypeError, match="a buffer that can be written to is wanted, not bytes"):
                call(b"read only")


# --- what it refuses


def test_it_is_not_written_to_truncated_or_detached(bucket: ObjectBucket) -> None:
    with bucket.open("k") as reader:
        for call in (lambda: reader.write(b"x"), reader.truncate, reader.detach, reader.fileno):
            with pytest.raises(io.UnsupportedOperation):
                call()
        assert not reader.isatty()
        for offset, whence in ((-1, 0), (-len(CONTENT) - 1, 2), (-1, 1)):
            with pytest.raises(ValueError, match="negative position"):
                reader.seek(offset, whence)
        with pytest.raises(ValueError, match="whence must be 0, 1 or 2"):
            reader.seek(0, 7)
        with pytest.raises(TypeError):
            reader.seek(1.5)  # type: ignore[arg-type]
        assert reader.tell() == 0


def test_it_is_neither_pickled_nor_copied(bucket: ObjectBucket) -> None:
    with bucket.open("k") as reader:
        for call in (pickle.dumps, copy.copy, copy.deepcopy):
            with pytest.raises(TypeError, match="cannot pickle"):
                call(reader)


def _calls(reader: ObjectReader) -> list[Callable[[], object]]:
    return [
        reader.read,
        lambda: reader.read(0),
        reader.read1,
        lambda: reader.readinto(bytearray(1)),
        lambda: reader.readinto1(bytearray(1)),
        reader.peek,
        reader.readline,
        reader.readlines,
        lambda: next(reader),
        lambda: reader.seek(0),
        reader.tell,
        reader.readable,
        reader.seekable,
        reader.__enter__,
    ]


def test_closed_stream_raises_what_a_closed_file_raises(bucket: ObjectBucket) -> None:
    reader = bucket.open("k")
    reader.read(5)
    reader.close()
    reader.close()
    for call in _calls(reader):
        with pytest.raises(ValueError, match="closed"):
            call()


# --- on the server


def test_opening_and_seeking_ask_for_no_chunk(bucket: ObjectBucket) -> None:
    with bucket.open("k") as reader:
        reader.seek(0, os.SEEK_END)
        assert reader.tell() == len(CONTENT)
        assert raw_objects(bucket).consumers() == []


def test_nothing_is_left_on_the_server(bucket: ObjectBucket) -> None:
    reader = bucket.open("k")
    for position in (0, 300_000, 5, 200_000):
        reader.seek(position)
        reader.read(1)
        assert len(raw_objects(bucket).consumers()) <= 1
    reader.close()
    wait_until(lambda: not raw_objects(bucket).consumers(), "the consumer is deleted")


def test_dropped_stream_warns_and_sends_nothing(bucket: ObjectBucket) -> None:
    dropped = [bucket.open("k")]
    dropped[0].read(5)
    with pytest.warns(ResourceWarning, match=r"unclosed <ObjectReader 'k' .*at 5 of"):
        dropped.clear()
    assert len(raw_objects(bucket).consumers()) == 1  # it ends by itself


def test_dropped_text_stream_warns_and_sends_nothing(bucket: ObjectBucket) -> None:
    dropped = [bucket.open("k", "r", encoding="latin-1")]
    dropped[0].read(5)
    with pytest.warns(ResourceWarning, match=r"unclosed <(_io.TextIOWrapper|TextObjectReader) name='k'"):
        dropped.clear()
    assert len(raw_objects(bucket).consumers()) == 1


# --- objects of other clients

SIZES = {
    "even": [1000],
    "one": [50_000],
    "shrinking": [5000, 3000, 1000],
    "growing": [1, 10, 100, 1000],
    "with empty ones": [100, 0, 0, 1000],
    "tiny": [7],
}


@pytest.mark.parametrize("chunk_size", [None, 5000])
@pytest.mark.parametrize("sizes", SIZES)
def test_any_place_is_found_whatever_the_sizes_of_the_chunks(
    any_objects: ObjectBucket, sizes: str, chunk_size: int | None
) -> None:
    content = random.Random(2).randbytes(30_123 if sizes != "tiny" else 700)
    upload(any_objects, "k", content, SIZES[sizes], chunk_size=chunk_size)
    assert any_objects.get("k") == content
    chance = random.Random(3)
    with any_objects.open("k") as reader:
        for _ in range(40):
            position, size = chance.randrange(len(content)), chance.choice([1, 100, 6000])
            reader.seek(position)
            assert reader.read(size) == content[position : position + size]


def test_any_place_is_found_among_interleaved_uploads_and_under_a_later_description(any_objects: ObjectBucket) -> None:
    chance = random.Random(4)
    uploads = [ForeignUpload(any_objects, f"k{number}", chunk_size=100) for number in range(3)]
    contents = [bytearray(), bytearray(), bytearray()]
    for _ in range(150):
        number = chance.choices([0, 1, 2], [1, 5, 20])[0]
        contents[number] += (piece := chance.randbytes(100))
        uploads[number].chunk(piece)
    for number in (0, 1, 2):
        uploads[number].describe()
    for number in (0, 1, 2):
        content = contents[number]
        with any_objects.open(f"k{number}") as reader:
            for _ in range(20):
                position = chance.randrange(len(content))
                reader.seek(position)
                assert reader.read(150) == content[position : position + 150]


def test_chunk_of_another_size_than_its_writer_told_is_damage_where_it_is_jumped_to(
    any_objects: ObjectBucket,
) -> None:
    content = random.Random(6).randbytes(350)
    upload(any_objects, "k", content, [200, 100, 50], chunk_size=150)  # the last is as small as it should be
    with any_objects.open("k") as reader:
        assert reader.read() == content
        reader.seek(150)
        with pytest.raises(DigestMismatchError, match="chunk 2 of 3 has 100 bytes"):
            reader.read(10)


@pytest.mark.parametrize("size", [0, -5, 10**12])
def test_chunk_size_that_means_nothing_does_no_harm(any_objects: ObjectBucket, size: int) -> None:
    content = random.Random(5).randbytes(5000)
    upload(any_objects, "k", content, [100], chunk_size=size)
    with any_objects.open("k") as reader:
        assert reader.read(3) == content[:3]
        reader.seek(3333)
        assert reader.read() == content[3333:]
        reader.seek(0)
        assert reader.read() == content


def test_object_without_a_digest_is_read(any_objects: ObjectBucket) -> None:
    foreign = ForeignUpload(any_objects, "k")
    foreign.chunk(b"content")
    foreign.describe(digest="")
    assert any_objects.get("k") == b"content"


# --- links


def test_links_are_followed_also_into_other_buckets(any_new_objects: NewObjects) -> None:
    here, there = any_new_objects(), any_new_objects()
    there.put("target/x", CONTENT)
    link(there, "second", {"bucket": there.name, "name": "target/x"})
    link(here, "first", {"bucket": there.name, "name": "second"})
    assert here.get("first") == CONTENT
    with here.get_reader("first") as reader:
        assert (reader.info, reader.name) == (there.stat("target/x"), "target/x")
        reader.seek(200_000)
        assert reader.read() == CONTENT[200_000:]
    there.put("target/x", b"new")
    assert here.get("first") == b"new"


def test_link_to_a_bucket_is_not_read(any_objects: ObjectBucket) -> None:
    link(any_objects, "k", {"bucket": "other"})
    for call in (any_objects.get, any_objects.get_reader, any_objects.open):
        with pytest.raises(StorageError, match=r"'k' of bucket '\w+' is a link to a bucket, 'other'"):
            call("k")


def test_links_in_a_circle_are_an_error(any_objects: ObjectBucket) -> None:
    link(any_objects, "a", {"bucket": any_objects.name, "name": "b"})
    link(any_objects, "b", {"bucket": any_objects.name, "name": "a"})
    for call in (any_objects.get, any_objects.get_reader):
        with pytest.raises(StorageError, match=r"'a' of bucket .* is a link to a link, and so on without an end"):
            call("a")


# --- time, threads, processes


def test_timeout_is_that_of_each_call(bucket: ObjectBucket) -> None:
    with bucket.get_reader("k", timeout=timedelta(seconds=20)) as reader:
        assert reader.read(10) == CONTENT[:10]
    with pytest.raises(OperationTimeoutError):
        bucket.get_reader("k", timeout=0)


def test_forked_child_gets_an_error_and_the_parent_reads_on(bucket: ObjectBucket) -> None:
    with bucket.open("k") as reader:
        reader.read(5)
        child = os.fork()
        if child == 0:
            code = 1
            try:
                for call in _calls(reader):
                    try:
                        call()
                    except ForkedError:
                        continue
                    os._exit(2)
                reader.close()
                code = 0 if bucket.get("k") == CONTENT else 3
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert reader.read() == CONTENT[5:]


def test_closed_connection_ends_a_read(bucket: ObjectBucket, any_connection: Connection) -> None:
    server, token = any_connection.server_info.url, any_connection.config.token
    with mono_sync.connect(server, token=token) as connection:
        reader = connection.objects(bucket.name).open("k")
        reader.read(5)
    with pytest.raises(ConnectionClosedError):
        reader.read()
    assert reader.tell() == 5
    reader.close()
