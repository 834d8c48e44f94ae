"""Objects written as files: what is stored when, and what is not."""

from __future__ import annotations

import contextlib
import copy
import csv
import functools
import gc
import gzip
import hashlib
import io
import json
import os
import pickle
import random
import shutil
import tarfile
import threading
import warnings
import zipfile
from array import array
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, cast

import pytest

from mono_sync import (
    BucketFullError,
    ForkedError,
    ObjectBucket,
    ObjectExistsError,
    ObjectWriter,
    OperationTimeoutError,
    RevisionMismatchError,
    StorageError,
    TextObjectWriter,
)
from mono_sync.storage.objects._upload import Upload
from tests.storage.conftest import NewObjects
from tests.storage.helpers import chunk_subjects, raw_objects
from tests.support.threads import Background

CHUNK = 128 * 1024


def opened(objects: ObjectBucket, key: str = "k", mode: Literal["wb", "xb"] = "wb", **options: Any) -> ObjectWriter:
    stream: ObjectWriter = objects.open(key, mode, **options)
    return stream


def text(objects: ObjectBucket, **options: Any) -> TextObjectWriter:
    stream: TextObjectWriter = objects.open("k", "w", **options)
    return stream


def content(size: int) -> bytes:
    return random.Random(size).randbytes(size)


# --- what is written is stored


@pytest.mark.parametrize("size", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK, 40 * CHUNK + 7])
@pytest.mark.parametrize("step", [1000, CHUNK, 300_000, 10**9])
def test_what_is_written_in_pieces_is_one_object(objects: ObjectBucket, size: int, step: int) -> None:
    whole = content(size)
    with opened(objects) as writer:
        for start in range(0, size, step):
            assert writer.write(whole[start : start + step]) == len(whole[start : start + step])
            assert writer.tell() == min(start + step, size)
    assert objects.get("k") == whole
    assert writer.info == objects.stat("k")
    assert writer.info is not None
    assert (writer.info.size, writer.info.chunks) == (size, -(-size // CHUNK))


def test_pieces_of_any_size_are_gathered_into_full_chunks(any_objects: ObjectBucket) -> None:
    chance, whole = random.Random(5), content(900_000)
    position = 0
    with opened(any_objects) as writer:
        while position < len(whole):
            piece = whole[position : position + chance.choice([1, 70_000, CHUNK, 200_000])]
            position += writer.write(piece)
    assert any_objects.get("k") == whole
    assert any_objects.stat("k").chunks == 7


@pytest.mark.parametrize(
    "data", [bytearray(b"abcd"), memoryview(b"abcd"), array("H", [1, 2]), memoryview(b"aabbccdd")[::2]]
)
def test_whatever_holds_bytes_can_be_written(objects: ObjectBucket, data: Any) -> None:
    with opened(objects) as writer:
        assert writer.write(data) == 4
    assert objects.get("k") == bytes(data)


def test_buffer_may_be_changed_after_it_was_written(objects: ObjectBucket) -> None:
    buffer = bytearray(b"1" * CHUNK)
    with opened(objects) as writer:
        for digit in b"123":
            buffer[:] = bytes([digit]) * CHUNK
            writer.write(buffer)
            buffer[:] = b"x" * CHUNK
    assert objects.get("k") == b"1" * CHUNK + b"2" * CHUNK + b"3" * CHUNK


def test_str_is_refused_and_the_stream_stays_of_use(objects: ObjectBucket) -> None:
    with opened(objects) as writer:
        with pytest.raises(TypeError, match=r"bytes-like .* call .encode\(\), or open with mode 'w'"):
            writer.write("text")  # type: ignore[arg-type]
        with pytest.raises(TypeError):
            writer.write(5)  # type: ignore[arg-type]
        writer.write(b"bytes")
    assert objects.get("k") == b"bytes"


def test_nothing_is_seen_before_the_end(objects: ObjectBucket) -> None:
    objects.put("k", b"old")
    with opened(objects) as writer:
        writer.write(content(5 * CHUNK))
        writer.flush()
        assert objects.get("k") == b"old"
        assert writer.info is None
    assert objects.get("k") == content(5 * CHUNK)
    assert len(chunk_subjects(objects)) == 1


def test_flush_waits_for_all_chunks_but_the_last(objects: ObjectBucket) -> None:
    with opened(objects) as writer:
        writer.write(content(5 * CHUNK + 10))
        writer.flush()
        assert list(chunk_subjects(objects).values()) == [4]
        writer.flush()


def test_it_is_a_stream_that_can_only_be_written(objects: ObjectBucket) -> None:
    with opened(objects) as writer:
        assert isinstance(writer, io.BufferedIOBase)
        assert (writer.writable(), writer.readable(), writer.seekable(), writer.isatty()) == (True, False, False, False)
        assert (writer.name, writer.mode, writer.closed) == ("k", "wb", False)
        lines = text(objects)
        assert (lines.writable(), lines.readable(), lines.seekable(), lines.isatty()) == (True, False, False, False)
        for stream in (writer, lines):
            for call in (stream.read, functools.partial(stream.seek, 0), stream.fileno, stream.truncate):
                with pytest.raises(io.UnsupportedOperation):
                    call()
        lines.abort()
        writer.writelines([b"a", b"b"])
        assert repr(writer) == f"<ObjectWriter 'k' of bucket {objects.name!r}, at 2>"
    assert writer.closed
    assert repr(writer) == f"<ObjectWriter 'k' of bucket {objects.name!r}, closed>"
    assert objects.get("k") == b"ab"


def test_stream_can_neither_be_copied_nor_pickled(objects: ObjectBucket) -> None:
    with opened(objects) as writer, text(objects) as lines:
        for call in (copy.copy, copy.deepcopy, pickle.dumps):
            with pytest.raises(TypeError, match=r"cannot pickle <ObjectWriter 'k' of bucket .*: it is a stream"):
                call(writer)
            with pytest.raises(TypeError, match=r"cannot pickle <.*Text.* name='k' .*: it is a stream"):
                call(lines)


@pytest.mark.parametrize("mode", ["wb", "w"])
def test_what_makes_lines_may_use_the_stream_that_they_are_written_to(
    objects: ObjectBucket, mode: Literal["wb", "w"]
) -> None:
    def piece(text: str) -> Any:
        return text if mode == "w" else text.encode()

    def lines() -> Iterator[Any]:
        yield piece("a")
        stream.flush()
        yield piece(str(stream.tell()))
        stream.writelines([piece("b"), piece("c")])
        stream.write(piece("d"))
        yield piece("e")

    with objects.open("k", mode) as stream:
        stream.writelines(lines())
    assert objects.get("k") == b"a1bcde"


class BadLinesError(Exception):
    pass


@pytest.mark.parametrize("error", [BadLinesError, OSError, KeyError, ValueError, TypeError, UnicodeError, StorageError])
@pytest.mark.parametrize("mode", ["wb", "w"])
def test_lines_that_end_in_the_middle_are_not_stored_whatever_the_error(
    objects: ObjectBucket, mode: Literal["wb", "w"], error: type[Exception]
) -> None:
    def lines(*, some: bool) -> Iterator[Any]:
        if some:
            yield "line\n" if mode == "w" else b"line\n"
        raise error("bad")

    stream: Any = objects.open("k", mode)
    for bad, why in ((lines(some=False), error), (5, TypeError)):
        with pytest.raises(why):
            stream.writelines(bad)
    stream.close()
    assert objects.get("k") == b""
    stream = objects.open("k", mode)
    with pytest.raises(error):
        stream.writelines(lines(some=True))
    with pytest.raises(StorageError, match="was not stored, for a call before failed"):
        stream.close()
    assert objects.get("k") == b""


def test_description_and_headers_are_stored(objects: ObjectBucket) -> None:
    with opened(objects, description="d", headers={"A": ["1", "2"]}) as writer:
        writer.write(b"x")
    info = objects.stat("k")
    assert (info.description, dict(info.headers)) == ("d", {"A": ("1", "2")})


def test_what_cannot_be_described_is_refused_at_the_opening(objects: ObjectBucket) -> None:
    types: list[dict[str, Any]] = [
        {"description": 5},
        {"headers": 5},
        {"if_match": "1"},
        {"ttl": "1"},
        {"timeout": "1"},
    ]
    for wrong in types:
        with pytest.raises(TypeError):
            opened(objects, **wrong)
    values: list[dict[str, Any]] = [
        {"ttl": 0.5},
        {"timeout": -1},
        {"if_match": -1},
        {"if_match": 2**63},
        {"if_match": 1, "mode": "xb"},
    ]
    for wrong in values:
        with pytest.raises(ValueError, match=r"."):
            opened(objects, **wrong)
    assert raw_objects(objects).state["last_seq"] == 0


# --- libraries that write files


def test_zipfile_tarfile_gzip_pickle_and_csv_write_objects(objects: ObjectBucket) -> None:
    whole = content(300_000)
    with opened(objects, "zip") as writer, zipfile.ZipFile(writer, "w") as archive:
        archive.writestr("a", whole)
    with zipfile.ZipFile(io.BytesIO(objects.get("zip", b""))) as archive:
        assert archive.read("a") == whole
    with opened(objects, "tar") as writer, tarfile.open(fileobj=writer, mode="w:gz") as tar:
        member = tarfile.TarInfo("a")
        member.size = len(whole)
        tar.addfile(member, io.BytesIO(whole))
    with tarfile.open(fileobj=io.BytesIO(objects.get("tar", b""))) as tar:
        found = tar.extractfile("a")
        assert found is not None
        assert found.read() == whole
    with opened(objects, "gz") as writer, gzip.GzipFile(fileobj=writer, mode="wb") as packed:
        packed.write(whole)
    assert gzip.decompress(objects.get("gz", b"")) == whole
    with opened(objects, "pickle") as writer:
        pickle.dump({"a": whole}, writer)
    assert pickle.loads(objects.get("pickle", b"")) == {"a": whole}
    with text(objects, newline="") as lines:
        csv.writer(lines).writerows([["a", "ü"], [1, 2]])
    assert objects.get("k") == "a,ü\r\n1,2\r\n".encode()


@pytest.mark.parametrize("mode", ["w", "w|", "w:gz", "w|gz"])
def test_tar_file_is_written_to_it(objects: ObjectBucket, mode: Any) -> None:
    whole = content(300_000)
    with opened(objects) as writer, tarfile.open(fileobj=writer, mode=mode) as archive:
        member = tarfile.TarInfo("a")
        member.size = len(whole)
        archive.addfile(member, io.BytesIO(whole))
    with objects.open("k") as reader, tarfile.open(fileobj=reader) as archive:
        found = archive.extractfile("a")
        assert found is not None
        assert found.read() == whole


def test_objects_are_copied_and_packed_from_stream_to_stream(objects: ObjectBucket) -> None:
    whole = content(3 * CHUNK + 5)
    with opened(objects, "raw") as writer:
        shutil.copyfileobj(io.BytesIO(whole), writer)
    with objects.open("raw") as reader, opened(objects, "copy") as writer:
        shutil.copyfileobj(reader, writer)
    with (
        objects.open("copy") as reader,
        opened(objects, "zip") as writer,
        zipfile.ZipFile(writer, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("a", "w") as packed,
    ):
        shutil.copyfileobj(reader, packed)
    with objects.open("zip") as reader, zipfile.ZipFile(reader) as archive:
        assert archive.read("a") == whole
    with objects.open("copy") as reader:
        assert hashlib.file_digest(reader, "sha256").digest() == hashlib.sha256(whole).digest()
    with objects.open("copy") as reader, opened(objects, "gz") as writer, gzip.open(writer, "wb") as packed_too:
        shutil.copyfileobj(reader, packed_too)
    with objects.open("gz") as reader, gzip.open(reader) as unpacked_too:
        assert unpacked_too.read() == whole
    with objects.open("copy") as reader:
        assert objects.put_reader("again", reader).digest == objects.stat("raw").digest


def test_text_wrapper_of_the_library_writes_to_it(objects: ObjectBucket) -> None:
    with io.TextIOWrapper(opened(objects), encoding="utf-8", newline="") as lines:
        csv.writer(lines).writerow(["ü", 1])
        json.dump({"a": 1}, lines)
    assert objects.get("k") == 'ü,1\r\n{"a": 1}'.encode()


# --- the old object stays


class OopsError(Exception):
    pass


def write_and_fail(stream: ObjectWriter | TextObjectWriter, data: Any) -> None:
    with stream:
        stream.write(data)
        raise OopsError


def write_and_forget(stream: ObjectWriter | TextObjectWriter, data: Any) -> None:
    stream.write(data)
    del stream
    gc.collect()


def test_exception_in_the_with_leaves_the_old_object_and_no_chunks(any_objects: ObjectBucket) -> None:
    any_objects.put("k", b"old")
    writer = opened(any_objects)
    with pytest.raises(OopsError):
        write_and_fail(writer, content(5 * CHUNK))
    assert writer.closed
    assert any_objects.get("k") == b"old"
    assert len(chunk_subjects(any_objects)) == 1


def test_abort_leaves_the_old_object_and_no_chunks(objects: ObjectBucket) -> None:
    objects.put("k", b"old")
    with opened(objects) as writer:
        writer.write(content(5 * CHUNK))
        writer.abort()
        assert writer.closed
        writer.abort()
    writer.close()
    assert writer.info is None
    assert objects.get("k") == b"old"
    assert len(chunk_subjects(objects)) == 1


def test_abort_after_the_end_changes_nothing(objects: ObjectBucket) -> None:
    with opened(objects) as writer:
        writer.write(b"new")
    writer.abort()
    writer.close()
    assert objects.get("k") == b"new"


def test_calls_after_the_end_are_refused_as_files_do(objects: ObjectBucket) -> None:
    with opened(objects) as writer:
        pass
    for call in (lambda: writer.write(b"x"), writer.flush, writer.tell, writer.writable, writer.__enter__):
        with pytest.raises(ValueError, match="closed"):
            call()


def test_a_stream_that_is_never_closed_stores_nothing_and_says_so(objects: ObjectBucket) -> None:
    objects.put("k", b"old")
    with pytest.warns(ResourceWarning, match="unclosed <ObjectWriter 'k' of bucket .*, at 393216>: it is not stored"):
        write_and_forget(opened(objects), content(3 * CHUNK))
    assert objects.get("k") == b"old"


def test_no_warning_for_streams_that_have_ended(objects: ObjectBucket) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with opened(objects) as writer:
            pass
        aborted = opened(objects)
        aborted.abort()
        del writer, aborted
        gc.collect()


def test_stream_that_failed_once_is_of_no_use_and_its_close_says_that_nothing_is_stored(
    new_objects: NewObjects,
) -> None:
    objects = new_objects(max_bytes=1_000_000)
    objects.put("k", b"old")
    writer = opened(objects)
    with pytest.raises(BucketFullError):
        writer.write(content(6_000_000))
    with pytest.raises(
        ValueError, match=r"the stream of object 'k' is of no use, for a call before failed: bucket .* is full"
    ):
        writer.write(b"more")
    with pytest.raises(StorageError, match=r"object 'k' was not stored, for a call before failed: bucket .* is full"):
        writer.close()
    assert writer.closed
    writer.close()
    assert objects.get("k") == b"old"
    assert len(chunk_subjects(objects)) == 1


def test_timeout_is_for_each_call(objects: ObjectBucket) -> None:
    objects.put("k", b"old")
    writer = opened(objects, timeout=0)
    with pytest.raises(OperationTimeoutError, match="storing object 'k'"):
        writer.write(content(30 * CHUNK))
    assert objects.get("k") == b"old"
    with opened(objects, timeout=5) as writer:
        for _ in range(3):
            writer.write(content(CHUNK))
    assert objects.stat("k").size == 3 * CHUNK


# --- conditions


def test_exclusive_stream_stores_what_is_missing(any_objects: ObjectBucket) -> None:
    with opened(any_objects, mode="xb") as writer:
        assert writer.mode == "xb"
        writer.write(b"new")
    any_objects.delete("k")
    with opened(any_objects, mode="xb") as writer:
        writer.write(b"again")
    assert any_objects.get("k") == b"again"


def test_exclusive_stream_fails_at_the_end_where_an_object_has_come_meanwhile(any_objects: ObjectBucket) -> None:
    writer = opened(any_objects, mode="xb")
    writer.write(content(3 * CHUNK))
    any_objects.put("k", b"theirs")
    with pytest.raises(ObjectExistsError) as caught:
        writer.close()
    assert isinstance(caught.value, FileExistsError)
    assert caught.value.actual == any_objects.stat("k").revision
    assert any_objects.get("k") == b"theirs"
    assert len(chunk_subjects(any_objects)) == 1


def test_exclusive_stream_for_an_object_that_is_there_is_refused_at_once(any_objects: ObjectBucket) -> None:
    any_objects.put("k", b"old")
    for mode in ("xb", "x"):
        with pytest.raises(ObjectExistsError, match="object 'k' already exists"):
            any_objects.open("k", mode)


def test_options_of_new_versions_are_refused_when_reading(objects: ObjectBucket) -> None:
    objects.put("k", b"old")
    options: list[dict[str, Any]] = [
        {"description": "d"},
        {"headers": {}},
        {"metadata": {}},
        {"ttl": 1},
        {"if_match": 0},
    ]
    for option in options:
        with pytest.raises(ValueError, match="mode 'rb' is for reading"):
            objects.open("k", "rb", **option)


@pytest.mark.parametrize("mode", ["w", "x"])
def test_unknown_encoding_is_refused_and_nothing_is_left(objects: ObjectBucket, mode: str) -> None:
    with pytest.raises(LookupError):
        objects.open("k", mode, encoding="no-such")
    gc.collect()
    assert objects.list() == []


def test_of_many_exclusive_writers_one_stores(objects: ObjectBucket) -> None:
    barrier = threading.Barrier(8)

    def write(number: int) -> bool:
        writer = opened(objects, mode="xb")
        writer.write(b"%d" % number * CHUNK * 2)
        barrier.wait(10)
        try:
            writer.close()
        except ObjectExistsError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        stored = list(pool.map(write, range(8)))
    assert sum(stored) == 1
    assert objects.get("k") == b"%d" % stored.index(True) * CHUNK * 2
    assert len(chunk_subjects(objects)) == 1


def test_if_match_replaces_that_version_only(any_objects: ObjectBucket) -> None:
    info = any_objects.put("k", b"1")
    second = any_objects.put("k", b"2", if_match=info)
    with pytest.raises(RevisionMismatchError, match=r"^object 'k' of bucket .* is not at revision") as caught:
        any_objects.put("k", b"3", if_match=info)
    assert (caught.value.expected, caught.value.actual) == (info.revision, second.revision)
    with opened(any_objects, if_match=second.revision) as writer:
        writer.write(b"3")
    any_objects.delete("k")
    with pytest.raises(RevisionMismatchError, match="it does not exist"):
        any_objects.put("k", b"4", if_match=writer.info)
    assert chunk_subjects(any_objects) == {}


def test_if_match_of_another_bucket_is_refused(objects: ObjectBucket, new_objects: NewObjects) -> None:
    info = new_objects().put("k", b"other")
    objects.put("k", b"mine")
    for call in (objects.put, lambda *args, **options: objects.open(args[0], "wb", **options)):
        with pytest.raises(ValueError, match="if_match describes object 'k' of bucket"):
            call("k", b"", if_match=info)
    with pytest.raises(ValueError, match="if_match describes object 'k' of bucket"):
        objects.update_meta("k", description="d", if_match=info)
    assert objects.get("k") == b"mine"


def test_if_match_of_0_wants_no_object(any_objects: ObjectBucket) -> None:
    any_objects.put("k", b"1", if_match=0)
    with pytest.raises(ObjectExistsError):
        any_objects.put("k", b"2", if_match=0)
    assert any_objects.get("k") == b"1"


def test_if_match_of_another_object_is_refused(objects: ObjectBucket) -> None:
    info = objects.put("other", b"")
    with pytest.raises(ValueError, match=r"describes object 'other' of bucket .*, not 'k' of "):
        objects.put("k", b"", if_match=info)


# --- text


def test_text_is_encoded(objects: ObjectBucket) -> None:
    with text(objects, encoding="utf-16", newline="\r\n") as lines:
        assert lines.mode == "w"
        assert lines.write("ü\n") == 2
        print("line", file=lines)
    assert objects.get("k") == "ü\r\nline\r\n".encode("utf-16")
    assert lines.info == objects.stat("k")


def test_text_stream_tells_where_it_is_until_it_is_closed(objects: ObjectBucket) -> None:
    with text(objects) as lines:
        lines.write("ü\n" * CHUNK)
        assert lines.tell() == 3 * CHUNK
    with pytest.raises(ValueError, match="closed"):
        lines.tell()


def test_text_is_utf_8_where_nothing_else_is_said(objects: ObjectBucket) -> None:
    with text(objects) as lines:
        lines.write("ü")
    assert objects.get("k") == "ü".encode()


def test_exception_in_the_with_of_a_text_stream_leaves_the_old_object(objects: ObjectBucket) -> None:
    objects.put("k", b"old")
    lines = text(objects)
    with pytest.raises(OopsError):
        write_and_fail(lines, "x" * 300_000)
    assert lines.closed
    lines.close()
    assert objects.get("k") == b"old"
    assert len(chunk_subjects(objects)) == 1


def test_text_stream_can_be_aborted(objects: ObjectBucket) -> None:
    with text(objects) as lines:
        lines.write("x")
        lines.abort()
    assert not objects.exists("k")


def _wrapped_text(binary: ObjectWriter) -> io.TextIOWrapper:
    text = io.TextIOWrapper(binary, "utf-8")
    text.write("half")
    return text


def _buffered(binary: ObjectWriter) -> io.IOBase:
    buffered = io.BufferedWriter(cast(io.RawIOBase, binary))
    buffered.write(b"half")
    return buffered


@pytest.mark.parametrize("wrap", [_wrapped_text, _buffered])
def test_stream_that_is_never_closed_stores_nothing_under_another_one_either(
    objects: ObjectBucket, wrap: Callable[[ObjectWriter], io.IOBase]
) -> None:
    dropped = [wrap(objects.open("k", "wb"))]
    with pytest.warns(ResourceWarning, match="it is not stored"):
        dropped.clear()
    assert objects.list() == []
    with wrap(objects.open("k", "wb")):
        pass
    assert objects.get("k") == b"half"


@pytest.mark.parametrize("mode", ["w", "wb"])
def test_close_says_what_kept_the_rest_from_being_stored(
    objects: ObjectBucket, monkeypatch: pytest.MonkeyPatch, mode: Literal["w", "wb"]
) -> None:
    def late(*_: object) -> None:
        raise OperationTimeoutError("storing", 1)

    stream: Any = objects.open("k", mode)
    stream.write("x" * 5 if mode == "w" else b"x" * 5)
    monkeypatch.setattr(Upload, "add", late)
    monkeypatch.setattr(Upload, "flush", late)
    with pytest.raises(OperationTimeoutError, match="storing timed out"):
        stream.close()
    stream.abort()
    assert stream.closed
    assert objects.list() == []


def test_text_stream_that_is_never_closed_stores_nothing_and_says_so(objects: ObjectBucket) -> None:
    with pytest.warns(ResourceWarning, match=r"unclosed <ObjectWriter 'k' of bucket .*, at \d+>: it is not stored"):
        write_and_forget(text(objects), "x" * 300_000)
    assert not objects.exists("k")


@pytest.mark.parametrize("error", [OopsError, KeyboardInterrupt])
def test_text_stream_whose_flush_fails_at_the_end_stores_nothing_and_says_why(
    objects: ObjectBucket, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    """`TextIOWrapper.close` closes the stream below all the same, which must not take that for the end of the text."""
    objects.put("k", b"old")
    lines = text(objects)
    lines.write("x")

    def fail(_deadline: object) -> None:
        raise error

    monkeypatch.setattr(lines._binary._upload, "flush", fail)
    with pytest.raises(error):
        lines.close()
    assert lines.closed
    assert objects.get("k") == b"old"


@pytest.mark.parametrize("ends", [lambda lines: lines.write("y" * 20_000), lambda lines: lines.flush()])
def test_text_stream_that_was_refused_by_the_binary_one_is_never_stored_without_what_it_held(
    objects: ObjectBucket, ends: Callable[[Any], object]
) -> None:
    objects.put("k", b"old")
    lines = text(objects)
    lines.write("x" * CHUNK * 2)
    lines.write("held")
    with lines._binary._turn, pytest.raises(StorageError, match="in use"):
        ends(lines)
    with pytest.raises(StorageError, match="was not stored, for a call before failed"):
        lines.close()
    assert objects.get("k") == b"old"
    assert len(chunk_subjects(objects)) == 1


def test_text_that_cannot_be_encoded_is_refused_and_the_rest_is_stored(objects: ObjectBucket) -> None:
    with text(objects) as lines:
        lines.write("a")
        with pytest.raises(UnicodeEncodeError):
            lines.write("\ud800")
        with pytest.raises(TypeError):
            lines.write(b"bytes")  # type: ignore[arg-type]
        lines.write("b")
    assert objects.get("k") == b"ab"


# --- threads and processes


def test_second_thread_at_the_same_moment_is_refused(objects: ObjectBucket, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = opened(objects)
    inside, leave = threading.Event(), threading.Event()
    add = writer._upload.add

    def slow(*arguments: Any) -> None:
        inside.set()
        assert leave.wait(10)
        add(*arguments)

    monkeypatch.setattr(writer._upload, "add", slow)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(writer.write, content(CHUNK))
        assert inside.wait(10)
        for call in (lambda: writer.write(b"x"), writer.flush, writer.close, writer.abort):
            with pytest.raises(StorageError, match="in use: one thread at a time"):
                call()
        leave.set()
        assert first.result(10) == CHUNK
    writer.close()
    assert objects.get("k") == content(CHUNK)


def test_second_thread_in_a_text_is_refused_while_the_first_passes_on_what_it_has(
    objects: ObjectBucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, errors = ObjectWriter.write, list[BaseException | None]()

    def interleaved(self: ObjectWriter, data: Any, /) -> int:
        size = write(self, data)
        if not errors:  # the binary stream is free, and the text stream is about to forget what it has passed on
            errors.extend(Background(call).error() for call in calls)
        return size

    monkeypatch.setattr(ObjectWriter, "write", interleaved)
    with text(objects) as lines:
        calls: list[Callable[[], object]] = [
            *(lambda: lines.write("second"), lambda: lines.writelines(["second"]), lines.flush, lines.tell),
            *(lambda: lines.reconfigure(newline="\r\n"), lines.detach, lines.close),
        ]
        lines.write("a" * 5_000 + "\n")
        lines.write("b" * 5_000 + "\n")
    assert len(errors) == len(calls)
    for error in errors:
        assert isinstance(error, StorageError)
        assert "is in use: one thread at a time" in str(error)
    assert objects.get("k") == b"a" * 5_000 + b"\n" + b"b" * 5_000 + b"\n"


def test_second_thread_in_a_text_is_refused_between_two_lines_of_the_first(objects: ObjectBucket) -> None:
    def lines_of_the_first() -> Iterator[str]:
        yield "first\n"
        for call in (lambda: lines.write("second"), lines.close):
            with pytest.raises(StorageError, match="in use: one thread at a time"):
                Background(call).result()
        lines.write("from within\n")
        yield "last\n"

    with text(objects) as lines:
        lines.writelines(lines_of_the_first())
    assert objects.get("k") == b"first\nfrom within\nlast\n"


def test_what_comes_into_a_text_out_of_its_own_thread_is_refused_while_it_passes_on_what_it_has(
    objects: ObjectBucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As ``__del__`` and signal handlers do. CPython, up to 3.12.4, would store freed memory (gh-119506)."""
    write, calls = ObjectWriter.write, list[Callable[[], object]]()

    def entered(self: ObjectWriter, data: Any, /) -> int:
        size = write(self, data)
        while calls:
            with pytest.raises(StorageError, match=r"is in use: .* one call at a time"):
                calls.pop()()
        return size

    monkeypatch.setattr(ObjectWriter, "write", entered)
    with text(objects) as lines:
        for outer in (
            lambda: lines.write("a" * 10_000),
            lines.flush,
            lines.tell,
            lambda: lines.writelines(["b"] * 9_000),
        ):
            lines.write("x" * 5_000)
            calls += [lambda: lines.write("+"), lambda: lines.writelines(["+"]), lines.flush, lines.tell, lines.close]
            calls += [lambda: lines.reconfigure(newline="\r\n"), lines.detach, lambda: print("+", file=lines)]
            outer()
            assert not calls
        lines.write("y")
    assert objects.get("k") == b"x" * 5_000 + b"a" * 10_000 + b"x" * 15_000 + b"b" * 9_000 + b"y"


def test_one_thread_after_the_other_may_use_it(objects: ObjectBucket) -> None:
    writer = opened(objects)
    for _ in range(3):
        with ThreadPoolExecutor(1) as pool:
            pool.submit(writer.write, b"x" * CHUNK).result(10)
    writer.close()
    assert objects.stat("k").size == 3 * CHUNK


@pytest.mark.parametrize("mode", ["wb", "w"])
def test_stream_of_the_parent_process_is_refused_in_a_forked_child(objects: ObjectBucket, mode: str) -> None:
    stream: Any = objects.open("k", mode) if mode == "wb" else objects.open("k", mode, encoding="latin-1")
    with stream as writer:
        data = content(2 * CHUNK)
        writer.write(data if mode == "wb" else data.decode("latin-1"))
        child = os.fork()
        if child == 0:
            code = 1
            with contextlib.suppress(BaseException):
                small = b"x" if mode == "wb" else "x"
                for call in (lambda: writer.write(small), writer.flush, writer.close, writer.abort):
                    with pytest.raises(ForkedError, match="belongs to the parent process"):
                        call()
                code = 0
            os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert objects.get("k") == content(2 * CHUNK)
