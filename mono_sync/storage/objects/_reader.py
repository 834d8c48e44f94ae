"""An object as a stream to read from."""

from __future__ import annotations

import io
import operator
import os
import warnings
from collections.abc import Callable
from typing import Any, ClassVar, Final, NoReturn, Self, cast

from typing_extensions import Buffer

from mono_sync._durations import Deadline, Timeout
from mono_sync.errors import StorageError
from mono_sync.storage.objects._info import ObjectInfo
from mono_sync.storage.objects._lone_stream import LoneStream, LoneText, alone, in_turn
from mono_sync.storage.objects._source import Source
from mono_sync.storage.objects._views import room_in

_NOTHING: Final = (0, b"")
_READABLE: Final = (TypeError, UnicodeError)  # after which a text stream is read on, as those of files are


class ObjectReader(LoneStream):
    """One version of an object, as a binary stream: seekable, buffered, a context manager. One thread at a time.

    Get one from `ObjectBucket.get_reader` or `ObjectBucket.open`. It does what a file that is opened with mode ``"rb"``
    does, and whatever takes such a file takes it: `io.TextIOWrapper`, `zipfile`, `tarfile`, `csv`, `pickle`, `gzip`.

    All that it returns belongs to the version that was the newest when it was opened. Where that is replaced, deleted
    or expires meanwhile, it is read to its end, or `ObjectChangedError` is raised. Who reads all of it in order, in
    whatever portions, gets no last byte before the digest has been verified; parts of it are checked for their size.

    Chunks are fetched when they are read, some ahead of a reader who goes on and on: never more than 4 MiB, or the one
    chunk that is larger. So memory stays bounded, however slowly it is read, and the server does not mind. A jump costs
    the chunks that are read behind it, and at the first one a few questions where they are.

    Connections that break and servers that start anew are nothing to the reader: he goes on where he was. A call that
    raises, after its ``timeout`` or Ctrl-C for example, has not moved the position, and the next one does it again.

    Every call may raise:

    * `ObjectChangedError`: this version is gone.
    * `DigestMismatchError`: chunks are missing or damaged. What was read before may be damaged as well.
    * `OperationTimeoutError`: it took longer than the ``timeout`` that the stream was opened with.
    * `ConnectionClosedError`, `BucketNotFoundError`: the connection was closed, the bucket deleted.
    * `StorageError`: another thread is in a call at this moment.
    * ``ValueError``: the stream is closed.
    * `ForkedError`: it belongs to the parent process.

    One that is dropped without `close` gives a `ResourceWarning`; the server then forgets it within ten seconds.

    Attributes:
        mode: always ``"rb"``.
    """

    mode: str = "rb"

    def __init__(self, source: Source, *, timeout: Timeout, default_timeout: float | None) -> None:
        super().__init__()
        self._source = source
        self._timeout = timeout
        self._default_timeout = default_timeout
        self._position = 0
        self._held = _NOTHING  # the chunk that was read last, and where it begins

    # --- what is read

    @property
    def info(self) -> ObjectInfo:
        """What the bucket knew of the object when it was opened; of a link, its target."""
        return self._source.info

    @property
    def name(self) -> str:
        """Name of the object; of a link, its target."""
        return self.info.name

    def readable(self) -> bool:
        """Return True."""
        self._check_usable()
        return True

    def seekable(self) -> bool:
        """Return True."""
        self._check_usable()
        return True

    # --- reading

    @alone
    def read(self, size: int | None = -1, /) -> bytes:
        """Return so many bytes, or as many as there are; all that are left where ``size`` is negative or None."""
        size, deadline = self._clamp(_wanted(size)), None
        if not size:
            return b""
        start, data = self._held
        if not start <= self._position < start + len(data):
            deadline = self._deadline()
            start, data = self._chunk_at(self._position, size, deadline)
        begin = self._position - start
        if begin + size <= len(data):  # nearly always, of small portions
            self._position += size
            return data[begin : begin + size]
        gathered = io.BytesIO()
        self._transfer(size, gathered.write, deadline)
        return gathered.getvalue()

    @alone
    def read1(self, size: int | None = -1, /) -> bytes:
        """Return up to so many bytes of one chunk, at least one before the end; the rest of it without a size."""
        wanted = _wanted(size)
        piece = self._piece(self._clamp(wanted), need=max(1, wanted))
        self._position += len(piece)
        return piece

    @alone
    def readinto(self, buffer: Buffer, /) -> int:
        """Fill a buffer, as far as there are bytes, and return how many."""
        with room_in(buffer) as view:
            filled = 0

            def put(piece: memoryview) -> None:
                nonlocal filled
                view[filled : filled + len(piece)] = piece
                filled += len(piece)

            self._transfer(self._clamp(len(view)), put)
            return filled

    @alone
    def readinto1(self, buffer: Buffer, /) -> int:
        """Put bytes of one chunk into a buffer, at least one before the end, and return how many."""
        with room_in(buffer) as view:
            piece = self._piece(self._clamp(len(view)), need=len(view))
            view[: len(piece)] = piece
            self._position += len(piece)
            return len(piece)

    @alone
    def peek(self, size: int = 0, /) -> bytes:  # noqa: ARG002  # as of a file, of no consequence
        """Return the rest of a chunk, at least one byte before the end, and leave the position where it is."""
        return self._piece(self._clamp(-1), need=1)

    @alone
    def readline(self, size: int | None = -1, /) -> bytes:
        """Return the next line with its end, or up to so many bytes of it."""
        start, data = self._held
        begin, wanted = self._position - start, _wanted(size)
        if begin >= 0 and wanted < 0:  # nearly always
            end = data.find(b"\n", begin) + 1
            if end:
                self._position = start + end
                return data[begin:end]
        left, position, pieces = self._clamp(wanted), self._position, list[bytes]()
        deadline = self._deadline()
        while left:
            start, data = self._chunk_at(position, 1, deadline)
            begin = position - start
            end = data.find(b"\n", begin, begin + left) + 1
            piece = data[begin : end or begin + left]
            pieces.append(piece)
            position, left = position + len(piece), 0 if end else left - len(piece)
        self._position = position
        return b"".join(pieces)

    def readlines(self, hint: int | None = -1, /) -> list[bytes]:
        """Return the lines that are left, or until they are more than ``hint`` bytes."""
        position = self.tell()
        try:
            return super().readlines(-1 if hint is None else hint)
        except BaseException:
            self._position = position
            raise

    # --- the position

    @alone
    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Change the position, and return it; nothing is fetched."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.info.size}.get(whence)
        if base is None:
            raise ValueError(f"whence must be 0, 1 or 2, not {whence!r}")
        position = base + operator.index(offset)
        if position < 0:
            raise ValueError(f"negative position: {position}")
        self._position = position
        return position

    @alone
    def tell(self) -> int:
        """Return the position."""
        return self._position

    # --- the end

    def __enter__(self) -> Self:
        self._check_usable()
        return self

    def close(self) -> None:
        """Close the stream, and leave nothing on the server. Idempotent."""
        if self.closed:
            return
        if self._pid != os.getpid():
            self._source.abandon()
            super().close()
            return
        self._check_usable()
        with self._turn:
            try:
                self._source.close()
            finally:
                super().close()

    def _dealloc_warn(self, owner: object, warn: Any = warnings.warn) -> None:
        """Warn in the name of a text stream that is collected, whose end closes this one; CPython calls it."""
        warn(f"unclosed {owner!r}: call close() or use it as a context manager", ResourceWarning)
        self._source.abandon()

    def __del__(self) -> None:
        source = getattr(self, "_source", None)
        if source is not None and not self.closed and self._pid == os.getpid():
            self._dealloc_warn(self)

    def __repr__(self) -> str:
        if getattr(self, "_source", None) is None:
            return f"<{type(self).__name__}>"
        state = "closed" if self.closed else f"at {self._position} of {self.info.size}"
        return f"<{type(self).__name__} {self.name!r} of bucket {self.info.bucket!r}, {state}>"

    # ---

    def _deadline(self) -> Deadline:
        return Deadline.of(self._timeout, self._default_timeout)

    def _clamp(self, wanted: int) -> int:
        """Return how many bytes of a wanted size there are."""
        left = max(0, self._source.info.size - self._position)
        return left if wanted < 0 else min(wanted, left)

    def _chunk_at(self, position: int, need: int, deadline: Deadline | None = None) -> tuple[int, bytes]:
        start, data = self._held
        if not start <= position < start + len(data):
            self._held = self._source.chunk_at(position, need, deadline or self._deadline())
        return self._held

    def _piece(self, size: int, *, need: int) -> bytes:
        """Return up to so many bytes of the chunk at the position; a whole chunk is returned without a copy."""
        if not size:
            return b""
        start, data = self._chunk_at(self._position, need)
        begin = self._position - start
        return data[begin : begin + size]

    def _transfer(self, size: int, put: Callable[[memoryview], object], deadline: Deadline | None = None) -> None:
        """Pass on so many bytes, and move the position when all have been."""
        position, end, deadline = self._position, self._position + size, deadline or self._deadline()
        while position < end:
            start, data = self._chunk_at(position, end - position, deadline)
            piece = memoryview(data)[position - start : end - start]
            put(piece)
            position += len(piece)
        self._position = position


class TextObjectReader(LoneText):
    """An object as a stream of text: an `ObjectReader` with an encoding.

    A call that fails loses text, as those of all text streams do; reading and `tell` then raise `StorageError` until
    `seek`. One that is refused for its argument, or because another call is under way, loses nothing.

    Attributes:
        mode: as it was opened, ``"r"`` for example.
    """

    _loss: ClassVar[BaseException | None] = StorageError("text was lost")

    @property
    def info(self) -> ObjectInfo:
        """What the bucket knew of the object when it was opened; of a link, its target."""
        return self._binary.info

    @in_turn(_READABLE)
    def read(self, size: int | None = -1, /) -> str:
        """Return so many characters, or as many as there are; all that are left where ``size`` is negative or None."""
        if self._half._failure is not None:  # noqa: SLF001  # of both halves of this stream
            self._say_lost()
        return super().read(size)

    @in_turn(_READABLE)
    def readline(self, size: int = -1, /) -> str:  # type: ignore[override]  # as typeshed has it of files
        """Return the next line with its end, or up to so many characters of it."""
        if self._half._failure is not None:  # noqa: SLF001  # of both halves of this stream
            self._say_lost()
        return super().readline(size)

    @in_turn(_READABLE, admits=("readline",))
    def readlines(self, hint: int | None = -1, /) -> list[str]:  # type: ignore[override]  # as above
        """Return the lines that are left, or until they are more than ``hint`` characters."""
        return super().readlines(-1 if hint is None else hint)

    @in_turn(Exception, admits=("tell", "_seek"))
    def seek(self, cookie: int, whence: int = io.SEEK_SET, /) -> int:
        """Change the position to one that `tell` has returned, or to the beginning or the end, and return it."""
        if whence == io.SEEK_CUR and cookie == 0:  # where nobody may `tell`, nothing is lost
            cookie, whence = self.tell(), io.SEEK_SET
        return self._seek(cookie, whence)

    @in_turn((TypeError, ValueError, OverflowError), admits=("flush",))
    def _seek(self, cookie: int, whence: int) -> int:
        position = super().seek(cookie, whence)
        self._half._failure = None  # noqa: SLF001
        return position

    @in_turn(Exception, admits=("flush",))
    def tell(self) -> int:
        """Return what `seek` comes back by."""
        if self._half._failure is not None:  # noqa: SLF001  # of both halves of this stream
            self._say_lost()
        return super().tell()

    @in_turn()
    def flush(self) -> None:
        """Do nothing; `seek`, `tell`, `reconfigure`, `detach` and `close` call it first."""
        super().flush()

    @in_turn(admits=("flush",))
    def reconfigure(self, /, **options: Any) -> None:
        """Change how the text is read, as `io.TextIOWrapper.reconfigure` does."""
        super().reconfigure(**options)

    def close(self) -> None:
        """Close the stream, and leave nothing on the server. Idempotent."""
        if self._pid == os.getpid():
            self._close()
        else:
            self._binary.close()

    @in_turn(admits=("flush",))
    def _close(self) -> None:
        super().close()

    @property
    def _binary(self) -> ObjectReader:
        return cast(ObjectReader, super()._binary)

    def _say_lost(self) -> NoReturn:
        binary = self._binary
        binary._check_usable()  # noqa: SLF001  # the other half of this stream
        raise StorageError(f"object {binary.name!r}: text was lost in a call that failed; seek, or open it anew")


def _wanted(size: int | None) -> int:
    return -1 if size is None else operator.index(size)
