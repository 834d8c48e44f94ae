"""A file that is to become an object, read in pieces of one size."""

from __future__ import annotations

import io
import os
import stat
from collections import deque
from typing import Protocol

from mono_sync._durations import Deadline
from mono_sync.errors import OperationTimeoutError


class Readable(Protocol):
    """What `ObjectBucket.put_reader` reads from: a binary file, the body of a response, the end of a pipe."""

    def read(self, size: int, /) -> bytes:
        """Return up to so many bytes, and none at the end."""


def check_readable(fileobj: Readable) -> None:
    """Do nothing if bytes can be read from it, as far as that can be seen.

    Raises:
        TypeError: it is a text file, or has no ``read``.
    """
    if isinstance(fileobj, io.TextIOBase):
        raise TypeError("put_reader takes a binary file: open it with mode 'rb', or use its .buffer")
    if not callable(getattr(fileobj, "read", None)):
        raise TypeError(f"put_reader takes an object with read(size), not {type(fileobj).__name__}")


class Chunks:
    """What is left of a file, in chunks of ``size`` bytes; the last one may be smaller.

    No iterator, for which a file that raises ``StopIteration`` would have come to its end.

    Args:
        fileobj: the file.
        size: bytes of a chunk.
        deadline: looked at after each read, of which a chunk may need many.
        operation: what to call it in errors.
    """

    def __init__(self, fileobj: Readable, size: int, deadline: Deadline, operation: str) -> None:
        self._file = fileobj
        self._size = size
        self._deadline = deadline
        self._operation = operation
        self._whole = deque[bytes]()
        self._pieces = list[bytes]()
        self._missing = size
        self._ended = False

    def next(self) -> bytes:
        """Return the next chunk, an empty one at the end.

        Raises:
            TypeError: the file reads something else than bytes.
            BlockingIOError: it does not block, and has no data now.
            OperationTimeoutError: the deadline passed.
        """
        size = self._size
        while not (self._whole or self._ended):
            piece = _read(self._file, self._missing)
            if self._deadline.expired:
                raise OperationTimeoutError(self._operation, self._deadline.timeout)
            if len(piece) == size == self._missing:
                return piece
            self._pieces.append(piece)
            self._missing -= len(piece)
            self._ended = not piece
            if self._ended or self._missing <= 0:  # some files return more than they are asked for
                data = b"".join(self._pieces)
                end = len(data) - (0 if self._ended else len(data) % size)
                self._whole.extend(data[start : start + size] for start in range(0, end, size))
                self._pieces = [data[end:]]
                self._missing = size - len(self._pieces[0])
        return self._whole.popleft() if self._whole else b""


def _read(fileobj: Readable, size: int) -> bytes:
    piece: object = fileobj.read(size)
    if isinstance(piece, bytes):
        return piece
    if isinstance(piece, (bytearray, memoryview)):
        return bytes(piece)
    if piece is None:
        raise BlockingIOError("the file does not block, and has no data now; put_reader needs one that blocks")
    hint = ": it is a text file, open it with mode 'rb'" if isinstance(piece, str) else ""
    raise TypeError(f"read() of the file returned {type(piece).__name__}, not bytes{hint}")


def size_of(fileobj: Readable) -> int | None:
    """Return how many bytes are left in a file of the disk or of memory; None for all others.

    They are not asked to seek: for a compressed file that means to read it as a whole.
    """
    if isinstance(fileobj, io.BytesIO):
        return max(0, len(fileobj.getbuffer()) - fileobj.tell())
    raw = getattr(fileobj, "raw", fileobj)
    if isinstance(raw, io.FileIO) and not raw.closed:
        status = os.fstat(raw.fileno())
        if stat.S_ISREG(status.st_mode):
            position: int = fileobj.tell()  # type: ignore[attr-defined]  # whatever has a raw file tells
            return max(0, status.st_size - position)
    return None
