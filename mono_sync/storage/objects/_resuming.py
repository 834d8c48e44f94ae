"""Uploads that are gone on with, by this process or another one."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Final, NamedTuple, Protocol

from mono_sync._durations import Deadline
from mono_sync.connection import JetStream, Json, StoredMessage, parse_time
from mono_sync.errors import OperationTimeoutError
from mono_sync.storage.objects._lifetime import TTL
from mono_sync.storage.objects._meta import digest_of
from mono_sync.storage.objects._sink import OVERTAKEN, ChunksLostError

PREFIX: Final = "Mono-Sync-Prefix"
"""Header of chunks that can be gone on from: how many bytes end with this one, their digest, and if that is all."""

_PIECE: Final = 1 << 20
_END: Final = ":end"


class Seekable(Protocol):
    """A binary file that can be read twice."""

    def read(self, size: int, /) -> bytes:
        """Return up to so many bytes, and none at the end."""

    def seek(self, offset: int, /) -> object:
        """Move to another position."""

    def tell(self) -> int:
        """Return the position."""


def check_seekable(fileobj: object, token: str) -> None:
    """Do nothing if an upload can be gone on with.

    Raises:
        TypeError: the token is no str.
        ValueError: it is empty, or the file cannot seek.
    """
    if not isinstance(token, str):
        raise TypeError(f"resume must be a str that stands for the upload, not {type(token).__name__}")
    if not token:
        raise ValueError("resume must not be empty: it stands for one upload of one content")
    seekable: Callable[[], bool] | None = getattr(fileobj, "seekable", None)
    if seekable is None or not seekable():
        raise ValueError("an upload can be resumed only from a file that can seek")


class PutBack:
    """Puts a file back where it was where a ``with`` does not end well: the next attempt begins there.

    Args:
        fileobj: the file; None: there is nothing to put back.
    """

    def __init__(self, fileobj: Any) -> None:
        self._file: Seekable | None = fileobj
        self._start = 0 if fileobj is None else fileobj.tell()

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None or self._file is None:
            return
        try:
            self._file.seek(self._start)
        except Exception as failure:  # a file may raise anything, and the first error says more
            error.add_note(f"the file could not be put back to position {self._start}: {failure!r}")


def name_of_chunks(bucket: str, key: str, token: str) -> str:
    """Return the name of the chunks of the upload for which a token stands."""
    return hashlib.sha256(json.dumps([bucket, key, token]).encode()).hexdigest()[:32]


def prefix_header(size: int, content: hashlib._Hash, *, last: bool = False) -> dict[str, str]:
    """Return the header of a chunk with which so many bytes of such a digest end; ``last``: there are no more.

    A description can have been stored only on the last one. So whoever finds chunks without it knows that none was, and
    that nobody is about to remove them with a version that has been replaced.
    """
    return {PREFIX: f"{size}:{content.hexdigest()}{_END * last}"}


class Found(NamedTuple):
    """What the stream holds of an upload, and the file as well.

    Attributes:
        size: bytes.
        chunks: how many.
        newest: sequence of the last one.
        content: the hash of the bytes.
        age: seconds since the first chunk was stored, at least.
        idle: seconds since the last one was, at least.
        ttl: for how long the last one lives, as its header says; None: it stays.
        complete: whether that is all that the file has.
        ended: whether the last one was stored as the last of all.
        before: what described the object before that was looked for; None: nothing did.
    """

    size: int
    chunks: int
    newest: int
    content: hashlib._Hash
    age: float
    idle: float
    ttl: str | None
    complete: bool
    ended: bool
    before: StoredMessage | None


class Resumption:
    """Compares what the stream holds of an upload with the file. The file stands behind that afterwards.

    Args:
        jetstream: the API.
        stream: its name.
        subject: that of the chunks.
        chunk_size: bytes of one.
        fileobj: the file, at the beginning of what is to become the object.
        deadline: total.
    """

    def __init__(
        self,
        jetstream: JetStream,
        *,
        stream: str,
        subject: str,
        chunk_size: int,
        fileobj: Seekable,
        deadline: Deadline,
    ) -> None:
        self._jetstream = jetstream
        self._stream = stream
        self._subject = subject
        self._chunk_size = chunk_size
        self._file = fileobj
        self._start = fileobj.tell()
        self._deadline = deadline

    def find(self, before: StoredMessage | None) -> Found | None:
        """Return what there is, None if that is nothing; ``before`` is what describes the object now.

        Raises:
            ChunksLostError: it is not the beginning of the file, or not whole.
        """
        newest = self._jetstream.last(self._stream, self._subject, direct=False, deadline=self._deadline)
        if newest is None:
            self._file.seek(self._start)
            return None
        size, digest, ended = _read_prefix(newest)
        looked = time.monotonic()
        now, chunks, expires = self._count()
        if chunks != -(-size // self._chunk_size):
            why = "a ttl has removed some, or another" if expires or TTL in newest.headers else "another"
            left = f"{chunks} chunks are left of those before byte {size}"
            raise ChunksLostError(f"{left}; perhaps {why} upload goes by the same resume")
        content = self._hash(size)
        if content.hexdigest() != digest:
            raise ChunksLostError(f"the {size} bytes that were stored before are not those of the file")
        first = self._jetstream.next_of(self._stream, self._subject, 1, self._deadline)
        complete = not self._file.read(1)
        if ended and not complete:
            raise ChunksLostError(f"the file has more than the {size} bytes that were stored before as all of it")
        if ended and before is not None and before.sequence > newest.sequence:
            raise ChunksLostError(OVERTAKEN)
        self._file.seek(self._start + size)
        compared = time.monotonic() - looked  # a large file takes minutes
        age = (now - (first or newest).time).total_seconds() + compared
        idle = (now - newest.time).total_seconds() + compared
        ttl = newest.headers.get(TTL)
        return Found(size, chunks, newest.sequence, content, age, idle, ttl, complete, ended, before)

    def is_whole(self, meta: Json) -> bool:
        """Return whether all chunks of an object are there, which has the content of the file.

        Raises:
            ChunksLostError: it has not.
        """
        content = self._hash(meta["size"])
        if digest_of(content) != meta["digest"] or self._file.read(1):
            raise ChunksLostError("this resume stands for another content, which is stored")
        _, chunks, _ = self._count()
        return bool(chunks == meta["chunks"])

    def take_back(self, found: Found) -> None:
        """Remove the last chunk, on which no description was stored and none will be: it is to be stored once more."""
        self._jetstream.remove_newest(
            self._stream, self._subject, lambda newest: newest.sequence == found.newest, self._deadline
        )

    def _count(self) -> tuple[datetime, int, bool]:
        """Return the server's time, how many chunks there are, and whether they expire with the bucket's ttl."""
        chunks, answer = self._jetstream.count(self._stream, self._subject, self._deadline)
        now = parse_time(answer["ts"]) if "ts" in answer else datetime.now(UTC)
        return now, chunks, bool(answer["config"].get("max_age"))

    def _hash(self, size: int) -> hashlib._Hash:
        """Return the hash of the first so many bytes of the file, or of all if it has less."""
        self._file.seek(self._start)
        content = hashlib.sha256()
        while size and (piece := self._file.read(min(size, _PIECE))):
            content.update(piece)
            size -= len(piece)
            if self._deadline.expired:
                raise OperationTimeoutError("comparing the file with what was stored", self._deadline.timeout)
        return content


def _read_prefix(newest: StoredMessage) -> tuple[int, str, bool]:
    prefix = newest.headers.get(PREFIX, "")
    size, colon, digest = prefix.removesuffix(_END).partition(":")
    if not colon:
        raise ChunksLostError("it was given up by a sweep")
    return int(size), digest, prefix.endswith(_END)
