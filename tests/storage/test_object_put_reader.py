"""Files that become objects: sources of all kinds, their failures, progress, and time to live."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import resource
import socket
import sys
import threading
import tracemalloc
from base64 import b64decode, urlsafe_b64encode
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mono_sync import (
    BucketConfigError,
    BucketFullError,
    Connection,
    FSBucketConfig,
    ObjectBucket,
    ObjectInfo,
    ObjectWriter,
    OperationTimeoutError,
    UnsupportedByServerError,
    UploadLostError,
)
from mono_sync.adapter import parse_header_block
from mono_sync.storage.objects import _writing
from tests.fixtures.waiting import wait_until
from tests.storage.conftest import NewObjects
from tests.storage.helpers import chunk_subjects, raw_objects

CHUNK = 128 * 1024


def content(size: int) -> bytes:
    return (bytes(range(251)) * (size // 251 + 1))[:size]


class Source:
    """A binary file that returns what a test wants."""

    def __init__(self, *pieces: Any) -> None:
        self._pieces = list(pieces)
        self.threads = set[int]()
        self.asked = list[int]()

    def read(self, size: int, /) -> Any:
        self.asked.append(size)
        self.threads.add(threading.get_ident())
        piece = self._pieces.pop(0) if self._pieces else b""
        return piece() if callable(piece) else piece


class Sparse:
    """So many zero bytes, which take no memory."""

    def __init__(self, size: int) -> None:
        self._left = size
        self._zeros = bytes(1 << 20)

    def read(self, size: int, /) -> bytes:
        size = min(size, self._left)
        self._left -= size
        return self._zeros[:size]


# --- sources


@pytest.mark.parametrize("size", [0, 1, CHUNK, CHUNK + 1, 40 * CHUNK + 7])
def test_file_is_stored(any_objects: ObjectBucket, tmp_path: Path, size: int) -> None:
    (tmp_path / "f").write_bytes(content(size))
    with (tmp_path / "f").open("rb") as file:
        info = any_objects.put_reader("k", file, description="d", headers={"A": "1"})
        assert not file.closed
    assert info == any_objects.stat("k")
    assert (info.size, info.chunks, info.description) == (size, -(-size // CHUNK), "d")
    assert any_objects.get("k") == content(size)


def test_file_is_stored_from_where_it_stands(objects: ObjectBucket) -> None:
    file = io.BytesIO(content(300_000))
    file.seek(1000)
    objects.put_reader("k", file)
    assert objects.get("k") == content(300_000)[1000:]


def test_short_reads_are_gathered_into_full_chunks(objects: ObjectBucket) -> None:
    source = Source(*[content(1000)] * 500)
    info = objects.put_reader("k", source)
    assert info.chunks == 4
    assert objects.get("k") == content(1000) * 500


def test_source_that_returns_more_than_it_is_asked_for_is_stored_in_full_chunks(objects: ObjectBucket) -> None:
    info = objects.put_reader("k", Source(b"x" * 10, content(3 * CHUNK), content(5)))
    assert info.chunks == 4
    assert objects.get("k") == b"x" * 10 + content(3 * CHUNK) + content(5)


def test_source_that_returns_a_full_chunk_where_less_was_asked_for_is_stored_in_order(objects: ObjectBucket) -> None:
    pieces = b"a" * 10, b"b" * CHUNK, b"c" * 5, b"d" * CHUNK
    objects.put_reader("k", Source(*pieces))
    assert objects.get("k") == b"".join(pieces)


@pytest.mark.parametrize("kind", [bytearray, memoryview])
def test_other_buffers_are_taken(objects: ObjectBucket, kind: Callable[[bytes], Any]) -> None:
    objects.put_reader("k", Source(kind(b"abc"), kind(b"d")))
    assert objects.get("k") == b"abcd"


def test_pipes_sockets_and_compressed_files_are_read(objects: ObjectBucket) -> None:
    near, far = socket.socketpair()
    with near, far.makefile("rb") as incoming:
        near.sendall(b"abc")
        near.shutdown(socket.SHUT_WR)
        objects.put_reader("socket", incoming)
    far.close()
    read_end, write_end = os.pipe()
    os.write(write_end, b"def")
    os.close(write_end)
    with os.fdopen(read_end, "rb", buffering=0) as pipe:
        objects.put_reader("pipe", pipe)
    with gzip.open(io.BytesIO(gzip.compress(content(300_000)))) as unpacked:
        objects.put_reader("gz", unpacked, progress=lambda done, total: None)
    assert (objects.get("socket"), objects.get("pipe"), objects.get("gz")) == (b"abc", b"def", content(300_000))


def test_source_is_read_in_the_calling_thread(objects: ObjectBucket) -> None:
    source = Source(content(CHUNK), content(CHUNK))
    objects.put_reader("k", source)
    assert source.threads == {threading.get_ident()}
    assert set(source.asked) == {CHUNK}


def test_source_that_blocks_keeps_nobody_else_waiting(objects: ObjectBucket) -> None:
    free = threading.Event()

    def block() -> bytes:
        assert free.wait(10)
        return b"x"

    thread = threading.Thread(target=objects.put_reader, args=("k", Source(content(CHUNK), block)))
    thread.start()
    objects.put("other", b"y", timeout=2)
    free.set()
    thread.join(10)
    assert objects.stat("k").size == CHUNK + 1


@pytest.mark.parametrize("source", [io.StringIO("text"), b"bytes", "name", None, Source("text")])
def test_what_is_no_binary_file_is_refused(objects: ObjectBucket, source: Any) -> None:
    with pytest.raises(TypeError, match=r"binary file|an object with read|it is a text file"):
        objects.put_reader("k", source)
    assert raw_objects(objects).state["last_seq"] == 0


def test_text_file_is_refused_before_it_is_read(objects: ObjectBucket, tmp_path: Path) -> None:
    (tmp_path / "f").write_text("text")
    with (tmp_path / "f").open(encoding="utf-8") as file:
        with pytest.raises(TypeError, match=r"open it with mode 'rb', or use its \.buffer"):
            objects.put_reader("k", file)  # type: ignore[arg-type]
        assert file.read() == "text"


def test_source_that_has_no_data_now_is_told(objects: ObjectBucket) -> None:
    with pytest.raises(BlockingIOError, match="needs one that blocks"):
        objects.put_reader("k", Source(content(3 * CHUNK), None))
    assert chunk_subjects(objects) == {}


# --- failures


class OopsError(Exception):
    pass


def _fail() -> bytes:
    raise OopsError


def _interrupt() -> bytes:
    raise KeyboardInterrupt


def _stop() -> bytes:
    raise StopIteration


@pytest.mark.parametrize(
    ("failure", "error"), [(_fail, OopsError), (_interrupt, KeyboardInterrupt), (_stop, StopIteration)]
)
def test_failing_source_leaves_the_old_object_and_no_chunks(
    any_objects: ObjectBucket, failure: Callable[[], bytes], error: type[BaseException]
) -> None:
    any_objects.put("k", b"old")
    with pytest.raises(error):
        any_objects.put_reader("k", Source(*[content(CHUNK)] * 10, failure))
    assert any_objects.get("k") == b"old"
    assert len(chunk_subjects(any_objects)) == 1


def test_file_stays_where_a_failure_found_it(objects: ObjectBucket) -> None:
    class Failing(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            if self.tell():
                raise OopsError
            return super().read(size)

    file = Failing(content(2 * CHUNK))
    with pytest.raises(OopsError):
        objects.put_reader("k", file)
    assert file.tell() == CHUNK


def test_full_bucket_leaves_the_old_object_and_no_chunks(any_new_objects: NewObjects) -> None:
    objects = any_new_objects(max_bytes=1_000_000)
    objects.put("k", b"old")
    with pytest.raises(BucketFullError, match=objects.name):
        objects.put_reader("k", Sparse(3_000_000))
    assert objects.get("k") == b"old"
    assert len(chunk_subjects(objects)) == 1


def test_deadline_counts_the_time_in_the_source(objects: ObjectBucket) -> None:
    waiting = threading.Event()

    def slow() -> bytes:
        waiting.wait(0.3)
        return b"x"

    objects.put("k", b"old")
    with pytest.raises(OperationTimeoutError, match=r"storing object 'k' .* after 0.2 s"):
        objects.put_reader("k", Source(content(2 * CHUNK), slow), timeout=0.2)
    assert objects.get("k") == b"old"
    assert len(chunk_subjects(objects)) == 1


@pytest.mark.parametrize("resume", [None, "t"])
def test_deadline_is_looked_at_between_the_reads_of_which_a_chunk_is_made(
    objects: ObjectBucket, resume: str | None
) -> None:
    waiting, reads = threading.Event(), list[int]()

    class Trickle(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            reads.append(1)
            if len(reads) == 3:
                waiting.wait(0.3)
            return b"x" if len(reads) < 10 else b""

    with pytest.raises(OperationTimeoutError, match=r"storing object 'k' .* after 0.2 s"):
        objects.put_reader("k", Trickle(), resume=resume, timeout=0.2)
    assert len(reads) == 3
    assert chunk_subjects(objects) == {}


def test_file_that_stops_while_an_upload_is_gone_on_with_is_told(objects: ObjectBucket) -> None:
    class Stopping(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            raise StopIteration

    class Failing(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            if self.tell() > CHUNK * 10:
                raise OopsError
            return super().read(size)

    with pytest.raises(OopsError):
        objects.put_reader("k", Failing(content(20 * CHUNK)), resume="t")
    with pytest.raises(StopIteration):
        objects.put_reader("k", Stopping(content(20 * CHUNK)), resume="t")
    assert not objects.exists("k")


# --- progress


class Bar:
    """What tqdm has."""

    def __init__(self) -> None:
        self.total: float | None = None
        self.n = 0
        self.threads = set[int]()

    def update(self, n: int = 1) -> bool:
        self.n += n
        self.threads.add(threading.get_ident())
        return True


def test_function_is_told_what_is_stored_and_how_much_there_is(objects: ObjectBucket, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(content(40 * CHUNK))
    told = list[tuple[int, int | None]]()
    with (tmp_path / "f").open("rb") as file:
        objects.put_reader("k", file, progress=lambda done, total: told.append((done, total)))
    assert told[-1] == (40 * CHUNK, 40 * CHUNK)
    assert {total for _, total in told} == {40 * CHUNK}
    assert [done for done, _ in told] == sorted({done for done, _ in told})


def test_bar_gets_its_total_and_every_byte_once_in_the_calling_thread(objects: ObjectBucket) -> None:
    bar = Bar()
    objects.put_reader("k", io.BytesIO(content(500_000)), progress=bar)
    assert (bar.total, bar.n) == (500_000, 500_000)
    assert bar.threads == {threading.get_ident()}


def test_total_is_unknown_where_the_file_does_not_tell(objects: ObjectBucket) -> None:
    bar, told = Bar(), list[int | None]()
    objects.put_reader("k", Source(b"abc"), progress=bar)
    assert (bar.total, bar.n) == (None, 3)
    objects.put_reader("k", Source(b"abc"), progress=lambda _done, total: told.append(total))
    assert told == [None]


@pytest.mark.parametrize("resume", [None, "t"])
def test_empty_file_is_told_once(objects: ObjectBucket, resume: str | None) -> None:
    told = list[tuple[int, int | None]]()
    for _ in range(2):  # with resume it is there the second time
        objects.put_reader("k", io.BytesIO(), resume=resume, progress=lambda *numbers: told.append(numbers))
    assert told == [(0, 0)] * 2
    bar = Bar()
    objects.put_reader("k", Source(), progress=bar)
    assert (bar.total, bar.n) == (0, 0)


@pytest.mark.parametrize("error", [OopsError, StopIteration])
@pytest.mark.parametrize("size", [0, 100, 30 * CHUNK])
def test_exception_in_progress_leaves_the_old_object_and_no_chunks(
    objects: ObjectBucket, size: int, error: type[Exception]
) -> None:
    objects.put("k", b"old")

    def fail(_done: int, _total: int | None) -> None:
        raise error

    with pytest.raises(error):
        objects.put_reader("k", io.BytesIO(content(size)), progress=fail)
    assert objects.get("k") == b"old"
    assert len(chunk_subjects(objects)) == 1


def test_progress_that_is_neither_is_refused(objects: ObjectBucket) -> None:
    with pytest.raises(TypeError, match=r"progress must be a function or have total and update\(n\), not int"):
        objects.put_reader("k", io.BytesIO(), progress=5)  # type: ignore[arg-type]


# --- time to live


def test_object_expires_whole(new_objects: NewObjects) -> None:
    objects = new_objects()
    objects.put("stays", b"x")
    objects.put("small", b"x", ttl=1)
    objects.put("empty", b"", ttl=1)
    objects.put_reader("large", io.BytesIO(content(10 * CHUNK)), ttl=1)
    assert objects.get("large") == content(10 * CHUNK)
    names = ["large", "small", "empty"]
    wait_until(lambda: not any(objects.exists(name) for name in names), "they expire", timeout=5)
    assert [info.name for info in objects.list()] == ["stays"]
    assert objects.get("large") is None
    objects.put("large", b"again")
    assert objects.get("large") == b"again"


def test_longest_ttl_is_taken(objects: ObjectBucket) -> None:
    objects.put("k", content(3 * CHUNK), ttl=2**63 // 10**9 - 2**32, timeout=None)
    assert objects.get("k") == content(3 * CHUNK)


def _ttls(objects: ObjectBucket, info: ObjectInfo) -> list[int]:
    """Return for how long all messages up to a description live."""
    raw, ttls = raw_objects(objects), list[int]()
    for sequence in range(raw.state["first_seq"], info.revision + 1):
        block = b64decode(raw.api("STREAM.MSG.GET.{stream}", {"seq": sequence})["message"]["hdrs"])
        ttls.append(int(parse_header_block(block)[0]["Nats-TTL"]))
    return ttls


def test_chunks_outlive_the_description_by_the_time_that_the_upload_may_take(objects: ObjectBucket) -> None:
    info = objects.put("k", content(3 * CHUNK), ttl=10, timeout=20)
    assert len(ttls := _ttls(objects, info)) == 4
    assert ttls[-1] == 10
    assert min(ttls[:-1]) > 30


def _stream(objects: ObjectBucket, ttl: int) -> ObjectInfo:
    writer: ObjectWriter = objects.open("k", "wb", ttl=ttl)
    with writer:
        writer.write(content(3 * CHUNK))
    assert writer.info is not None
    return writer.info


def _unhurried(objects: ObjectBucket, ttl: int) -> ObjectInfo:
    return objects.put_reader("k", io.BytesIO(content(3 * CHUNK)), ttl=ttl, timeout=None)


@pytest.mark.parametrize("store", [_stream, _unhurried])
@pytest.mark.parametrize(("ttl", "may_take"), [(1, 600), (3600, 3600), (10 * 86400, 86400)])
def test_chunks_of_an_upload_without_a_deadline_live_little_longer_than_that_of_a_short_one(
    objects: ObjectBucket, store: Callable[[ObjectBucket, int], ObjectInfo], ttl: int, may_take: int
) -> None:
    *chunks, description = _ttls(objects, store(objects, ttl))
    assert description == ttl
    assert chunks == [ttl + may_take + 121] * 3


def test_chunks_that_may_be_gone_on_with_live_for_a_day_longer_whatever_the_timeout(objects: ObjectBucket) -> None:
    for timeout in (10, None):
        info = objects.put_reader("k", io.BytesIO(b"x"), ttl=5, resume=f"{timeout}", timeout=timeout)
        assert _ttls(objects, info)[-2:] == [5 + 86400 + 121, 5]


def test_stream_that_took_longer_than_its_chunks_live_is_refused(
    objects: ObjectBucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_writing, "_LONGEST_UPLOAD", 0.0)
    with pytest.raises(UploadLostError, match="its chunks would expire before it"):
        _stream(objects, 5)
    assert chunk_subjects(objects) == {}


def test_upload_that_took_longer_than_its_chunks_live_is_refused(
    objects: ObjectBucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_writing, "_LONGEST_UPLOAD", 0.1)
    waiting = threading.Event()

    def slow() -> bytes:
        waiting.wait(0.2)
        return content(CHUNK)

    objects.put("k", b"old")
    with pytest.raises(UploadLostError, match="its chunks would expire before it"):
        objects.put_reader("k", Source(content(CHUNK), content(CHUNK), slow), ttl=5)
    assert objects.get("k") == b"old"
    assert len(chunk_subjects(objects)) == 1


@pytest.mark.parametrize("ttl", [0, 0.9, -1, 2**63 // 10**9])
def test_impossible_ttl_is_refused(objects: ObjectBucket, ttl: float) -> None:
    with pytest.raises(ValueError, match="ttl must be"):
        objects.put("k", b"", ttl=ttl)


@pytest.mark.old_server
def test_old_server_has_no_ttl_per_object(old_connection: Connection, name: str) -> None:
    objects = old_connection.objects(FSBucketConfig(name, storage="memory"))
    with pytest.raises(UnsupportedByServerError, match=r"a TTL per object needs nats-server 2.11.0"):
        objects.put("k", b"", ttl=5)


def test_bucket_of_another_client_that_allows_no_ttl_says_how_to_allow_it(objects: ObjectBucket) -> None:
    raw = raw_objects(objects)
    config = raw.config
    raw.delete()
    raw.create(**{key: value for key, value in config.items() if key not in ("name", "allow_msg_ttl")})
    with pytest.raises(BucketConfigError, match="open it with a KVBucketConfig or FSBucketConfig"):
        objects.put("k", b"x", ttl=5)


# --- size


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts in kilobytes there")
def test_a_large_file_takes_little_memory(new_objects: NewObjects) -> None:
    objects, size = new_objects(storage="file", compression=True), 1 << 30
    objects.put_reader("warm", Sparse(8 << 20), timeout=30)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    info = objects.put_reader("k", Sparse(size), timeout=60)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert info.size == size
    assert grown < 16


def test_memory_in_python_is_bounded_by_the_window(objects: ObjectBucket) -> None:
    objects.put_reader("warm", Sparse(8 << 20))
    tracemalloc.start()
    try:
        info = objects.put_reader("k", Sparse(64 << 20), timeout=30)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8 << 20
    digest = hashlib.sha256(bytes(64 << 20)).digest()
    assert info.digest == f"SHA-256={urlsafe_b64encode(digest).decode()}"
