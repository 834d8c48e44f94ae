"""The object bucket."""

from __future__ import annotations

import io
from typing import overload

from mono_sync._durations import DEFAULT, Timeout
from mono_sync.storage.objects._describing import Describing
from mono_sync.storage.objects._modes import BinaryReading, TextReading, parse_mode, text_reader
from mono_sync.storage.objects._reader import ObjectReader


class ObjectBucket(Describing):
    """An object bucket (NATS ADR-20). Thread-safe; other NATS clients read what it writes and the reverse.

    Names are any text that is not empty. An object is replaced as a whole: readers see the old one or the new one.
    Every call takes ``timeout``, a total deadline in seconds for all chunks together; omitted, it is the connection's.
    Calls may raise, besides what they list, `OperationTimeoutError`, `ConnectionLostError` and `ConnectionClosedError`
    (a write may have happened in the first two cases), `BucketNotFoundError` when the bucket was deleted meanwhile,
    `InvalidKeyError` and `TypeError` on bad arguments, `JetStreamUnavailableError`, and `StorageError` where another
    client has left something that does not describe an object.

    Get one from a plugin, or from ``connection.objects(name)``.
    """

    @overload
    def open(self, key: str, mode: BinaryReading = "rb", *, timeout: Timeout = DEFAULT) -> ObjectReader: ...
    @overload
    def open(
        self,
        key: str,
        mode: TextReading,
        *,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
        timeout: Timeout = DEFAULT,
    ) -> io.TextIOWrapper: ...
    @overload
    def open(
        self,
        key: str,
        mode: str,
        *,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
        timeout: Timeout = DEFAULT,
    ) -> ObjectReader | io.TextIOWrapper: ...

    def open(
        self,
        key: str,
        mode: str = "rb",
        *,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
        timeout: Timeout = DEFAULT,
    ) -> ObjectReader | io.TextIOWrapper:
        """Open an object as a file.

        Args:
            key: its name.
            mode: ``"rb"`` is `get_reader`; ``"r"`` the same as text.
            encoding: of text; omitted: UTF-8, whatever the machine is set to.
            errors: what to do about bytes that the encoding does not know, as for the built-in ``open``.
            newline: which ends lines have, as for the built-in ``open``.
            timeout: deadline of this call, and of each call of the stream.

        Raises:
            ObjectNotFoundError: it is missing.
            StorageError: it is a link to a bucket, or links lead in a circle.
            ValueError: no such mode, or text options with a binary one.
            LookupError: no such encoding.
        """
        is_text = parse_mode(mode, encoding=encoding, errors=errors, newline=newline).text
        reader = self.get_reader(key, timeout=timeout)
        if not is_text:
            return reader
        try:
            return text_reader(reader, mode, encoding=encoding, errors=errors, newline=newline)
        except BaseException:
            reader.close()
            raise
