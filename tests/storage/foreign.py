"""Objects as other NATS clients may store them: chunks of any size, uploads that overlap, links."""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
from collections.abc import Iterable, Sequence
from typing import Any

from mono_sync import ObjectBucket
from tests.storage.helpers import raw_objects


class ForeignUpload:
    """An upload whose every chunk and description is sent when the test says so."""

    def __init__(self, bucket: ObjectBucket, key: str, *, chunk_size: int | None = None) -> None:
        self._bucket = bucket
        self._key = key
        self._chunk_size = chunk_size
        self._raw = raw_objects(bucket)
        self._content = bytearray()
        self._chunks = 0
        self.nuid = secrets.token_hex(11)

    def chunk(self, data: bytes) -> None:
        self._raw.put(f"$O.{self._bucket.name}.C.{self.nuid}", data)
        self._content += data
        self._chunks += 1

    def describe(self, **changes: Any) -> None:
        digest = base64.urlsafe_b64encode(hashlib.sha256(self._content).digest()).decode()
        meta: dict[str, Any] = {
            "name": self._key,
            "bucket": self._bucket.name,
            "nuid": self.nuid,
            "size": len(self._content),
            "chunks": self._chunks,
            "digest": f"SHA-256={digest}",
            "mtime": "0001-01-01T00:00:00Z",
        }
        if self._chunk_size is not None:
            meta["options"] = {"max_chunk_size": self._chunk_size}
        describe(self._bucket, self._key, meta | changes)


def describe(bucket: ObjectBucket, key: str, meta: Any) -> None:
    """Store the description of an object."""
    subject = f"$O.{bucket.name}.M.{base64.urlsafe_b64encode(key.encode()).decode()}"
    raw_objects(bucket).put(subject, meta if isinstance(meta, bytes) else json.dumps(meta).encode())


def link(objects: ObjectBucket, key: str, target: dict[str, str]) -> None:
    """Store a link to ``bucket`` and ``name``, or to ``bucket`` as a whole."""
    describe(objects, key, {"name": key, "bucket": objects.name, "nuid": "n", "options": {"link": target}})


def upload(bucket: ObjectBucket, key: str, content: bytes, sizes: Sequence[int], *, chunk_size: int | None) -> None:
    """Store an object in chunks of the given sizes, the last of which is repeated."""
    foreign = ForeignUpload(bucket, key, chunk_size=chunk_size)
    for piece in split(content, sizes):
        foreign.chunk(piece)
    foreign.describe()


def split(content: bytes, sizes: Sequence[int]) -> Iterable[bytes]:
    position, number = 0, 0
    while position < len(content):
        size = sizes[min(number, len(sizes) - 1)]
        yield content[position : position + size]
        position, number = position + size, number + 1
