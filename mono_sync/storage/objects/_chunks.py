"""The chunks of an object bucket, read back."""

from __future__ import annotations

from mono_sync._durations import Deadline
from mono_sync.connection import CoreConnection, JetStream
from mono_sync.errors import DigestMismatchError
from mono_sync.storage._values import ObjectInfo
from mono_sync.storage.objects._meta import sha256

_IN_FLIGHT = 16


class Chunks:
    """The chunks of all objects of a bucket. Thread-safe, stateless."""

    def __init__(self, connection: CoreConnection, jetstream: JetStream, bucket: str, stream: str) -> None:
        self._connection = connection
        self._jetstream = jetstream
        self._bucket = bucket
        self._stream = stream

    def read(self, info: ObjectInfo, deadline: Deadline, *, direct: bool) -> bytes:
        """Return the content of one version of an object.

        Raises:
            DigestMismatchError: chunks are missing or damaged.
        """
        content: bytes | bytearray = b""
        subject = self._subject(info.nuid)
        if info.chunks == 1:
            only = self._jetstream.last(self._stream, subject, direct=direct, deadline=deadline)
            content = b"" if only is None else only.data
        elif info.chunks:
            content = bytearray()
            for message in self._jetstream.pull(
                self._stream, subject, deadline, policy="all", batch=_IN_FLIGHT, count=info.chunks
            ):
                content += message.data
        if len(content) != info.size:
            raise DigestMismatchError(self._bucket, info.name, f"{len(content)} of {info.size} bytes are left")
        if sha256(content) != info.digest:
            raise DigestMismatchError(self._bucket, info.name, "the digest is wrong")
        return bytes(content)

    def _subject(self, nuid: str) -> str:
        return f"$O.{self._bucket}.C.{nuid}"
