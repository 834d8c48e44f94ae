"""The object bucket."""

from __future__ import annotations

from typing import overload

from mono_sync._durations import DEFAULT, Duration, Timeout
from mono_sync.storage.objects._describing import Describing
from mono_sync.storage.objects._info import ObjectInfo
from mono_sync.storage.objects._meta import Headers, Metadata
from mono_sync.storage.objects._modes import (
    BinaryReading,
    BinaryWriting,
    TextReading,
    TextWriting,
    parse_mode,
)
from mono_sync.storage.objects._reader import ObjectReader, TextObjectReader
from mono_sync.storage.objects._writer import ObjectWriter, TextObjectWriter


class ObjectBucket(Describing):
    """An object bucket (NATS ADR-20). Thread-safe; other NATS clients read what it writes and the reverse.

    Names are any text that is not empty. An object is replaced as a whole: readers see the old one or the new one.
    Every call takes ``timeout``, a total deadline in seconds for all chunks together; omitted, it is the connection's.

    Calls may raise, besides what they list:

    * `OperationTimeoutError`: the deadline passed. The object has not changed and never will, unless the error is the
      kind `OutcomeUnknownError`.
    * `OutcomeUnknownError`: the answer to the last step was lost, and whether it happened could not be found out.
    * `ConnectionClosedError`: the connection is closed; a write under way may have happened.
    * `BucketNotFoundError`: the bucket was deleted meanwhile.
    * `InvalidKeyError`, `TypeError`: bad name or argument; nothing was sent.
    * `JetStreamUnavailableError`: the server has no JetStream, or no leader for the bucket until the deadline.
    * `StorageError`: another client has left something that does not describe an object; it says what repairs that.

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
    ) -> TextObjectReader: ...
    @overload
    def open(
        self,
        key: str,
        mode: BinaryWriting,
        *,
        description: str = "",
        headers: Headers | None = None,
        metadata: Metadata | None = None,
        ttl: Duration | None = None,
        if_match: ObjectInfo | int | None = None,
        timeout: Timeout = DEFAULT,
    ) -> ObjectWriter: ...
    @overload
    def open(
        self,
        key: str,
        mode: TextWriting,
        *,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
        description: str = "",
        headers: Headers | None = None,
        metadata: Metadata | None = None,
        ttl: Duration | None = None,
        if_match: ObjectInfo | int | None = None,
        timeout: Timeout = DEFAULT,
    ) -> TextObjectWriter: ...
    @overload
    def open(
        self,
        key: str,
        mode: str,
        *,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
        description: str = "",
        headers: Headers | None = None,
        metadata: Metadata | None = None,
        ttl: Duration | None = None,
        if_match: ObjectInfo | int | None = None,
        timeout: Timeout = DEFAULT,
    ) -> ObjectReader | ObjectWriter | TextObjectReader | TextObjectWriter: ...

    def open(
        self,
        key: str,
        mode: str = "rb",
        *,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
        description: str = "",
        headers: Headers | None = None,
        metadata: Metadata | None = None,
        ttl: Duration | None = None,
        if_match: ObjectInfo | int | None = None,
        timeout: Timeout = DEFAULT,
    ) -> ObjectReader | ObjectWriter | TextObjectReader | TextObjectWriter:
        """Open an object as a file.

        What is written becomes the object as a whole when the stream is closed; an exception in its ``with``, and
        ``abort()``, leave what was there before. See `ObjectWriter`.

        Args:
            key: its name.
            mode: ``"rb"`` is `get_reader`; ``"wb"`` writes a new version; ``"xb"`` does so only if there is no object,
                which is looked at now and decided at the end. ``"r"``, ``"w"`` and ``"x"`` are the same as text.
            encoding: of text; omitted: UTF-8, whatever the machine is set to.
            errors: what to do about what the encoding does not know, as for the built-in ``open``.
            newline: which ends lines have, as for the built-in ``open``.
            description: as for `put`; this and what follows is for writing only.
            headers: as for `put`.
            metadata: as for `put`.
            ttl: as for `put`. From the first chunk that is sent to the end it may take ten minutes, or as long as the
                object lives if that is longer, at most a day: else `ObjectWriter.close` raises `UploadLostError`. The
                room may stay taken for that much and two minutes after the object has expired.
            if_match: as for `put`.
            timeout: deadline of this call, and of each call of the stream. A text stream for reading in which a call
                has failed raises `StorageError` until its ``seek``, for text was lost in that call.

        Raises:
            ObjectNotFoundError: it is to be read, and missing; or it is a link, and its object is missing, or the
                bucket of that.
            ObjectExistsError: it is there, and the mode has an ``x``.
            StorageError: it is a link to a bucket, or links lead in a circle, or through more than 16.
            TypeError: the mode or an option is of a wrong type, or one that only the built-in ``open`` has, such as
                ``buffering``.
            ValueError: no such mode, or options that do not go with it.
            LookupError: no such encoding.
        """
        wanted = parse_mode(mode, encoding=encoding, errors=errors, newline=newline)
        if wanted.action == "r":
            given = (description or None, headers, metadata, ttl, if_match)
            if any(option is not None for option in given):
                raise ValueError(f"mode {mode!r} is for reading: what describes a new version goes with 'w' or 'x'")
            if not wanted.text:
                return self.get_reader(key, timeout=timeout)
            reader = self.get_reader(key, timeout=timeout)
            try:
                return TextObjectReader(reader, mode, encoding=encoding, errors=errors, newline=newline)
            except BaseException:
                reader.close()
                raise
        writer = self._new_writer(
            key,
            exclusive=wanted.action == "x",
            if_match=if_match,
            description=description,
            headers=headers,
            metadata=metadata,
            ttl=ttl,
            timeout=timeout,
        )
        if not wanted.text:
            return writer
        try:
            return TextObjectWriter(writer, mode, encoding=encoding, errors=errors, newline=newline)
        except BaseException:
            writer.abort()
            raise
