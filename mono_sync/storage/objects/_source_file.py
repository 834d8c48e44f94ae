"""A file that is to become an object, read in pieces of one size."""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Iterator
from typing import Protocol


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


def chunks_of(fileobj: Readable, size: int) -> Iterator[bytes]:
    """Yield what is left of a file in chunks of ``size`` bytes; the last one may be smaller.

    Raises:
        TypeError: it reads something else than bytes.
        BlockingIOError: it does not block, and has no data now.
    """
    pieces, missing = list[bytes](), size
    while piece := _read(fileobj, missing):
        if len(piece) == size == missing:
            yield piece
            continue
        pieces.append(piece)
        missing -= len(piece)
        if missing <= 0:  # some files return more than they are asked for
            whole = b"".join(pieces)
            end = len(whole) - len(whole) % size
            yield from (whole[start : start + size] for start in range(0, end, size))
            pieces = [whole[end:]]
            missing = size - len(pieces[0])
    if rest := b"".join(pieces):
        yield rest


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
