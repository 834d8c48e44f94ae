"""The description of an object, as all NATS clients store it (NATS ADR-20)."""

from __future__ import annotations

import hashlib
import json
import secrets
from base64 import urlsafe_b64encode
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TypeAlias

from mono_sync.adapter import Payload, check_header
from mono_sync.connection import Json, StoredMessage, parse_time
from mono_sync.errors import StorageError
from mono_sync.storage._values import ObjectInfo

Headers: TypeAlias = Mapping[str, str | Sequence[str]]

_FIELDS = {"name": str, "nuid": str, "mtime": str, "digest": str, "description": str, "size": int, "chunks": int}
_NO_TIME = "0001-01-01"  # what Go clients store: there the time of the message counts


def sha256(data: Payload) -> str:
    """Return the digest in the form in which it is stored."""
    return digest_of(hashlib.sha256(data))


def digest_of(content: hashlib._Hash) -> str:
    """Return the digest of content that was hashed piece by piece, in the same form."""
    return f"SHA-256={urlsafe_b64encode(content.digest()).decode()}"


def new_time() -> str:
    """Return the present time in the form in which it is stored."""
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")


def new_meta(
    bucket: str, name: str, view: memoryview, *, chunk: int, description: str, headers: Headers | None
) -> Json:
    """Describe a new version of an object.

    Raises:
        TypeError: description or headers are no str.
        InvalidHeaderError: a header that no message could carry.
    """
    if not isinstance(description, str):
        raise TypeError(f"description must be a str, not {type(description).__name__}")
    return _stamped(
        name=name,
        bucket=bucket,
        description=description,
        headers={} if headers is None else _values(headers),
        options={"max_chunk_size": chunk},
        size=len(view),
        chunks=-(-len(view) // chunk),
        digest=sha256(view),
    )


def _values(headers: Headers) -> dict[str, list[str]]:
    if not isinstance(headers, Mapping):
        raise TypeError(f"headers must be a mapping of str to one str or several, not {type(headers).__name__}")
    found: dict[str, list[str]] = {}
    for name, given in headers.items():
        values = [given] if isinstance(given, str) else list(given) if isinstance(given, Sequence) else [given]
        if not isinstance(name, str) or not all(isinstance(value, str) for value in values):
            raise TypeError(f"headers map a str to one str or several, not {name!r} to {type(given).__name__}")
        for value in values or [""]:
            check_header(name, value)
        found[name] = values
    return found


def deletion(bucket: str, name: str) -> Json:
    """Describe a deleted object."""
    return _stamped(name=name, bucket=bucket, size=0, chunks=0, digest="", deleted=True)


def _stamped(**meta: object) -> Json:
    return {**meta, "nuid": secrets.token_hex(11), "mtime": new_time()}


def read_meta(bucket: str, message: StoredMessage) -> Json | None:
    """Return what any client stored to describe an object; None where the object is deleted or expired.

    Raises:
        StorageError: it is no description.
    """
    if not message.data:  # left by the server where a message expired
        return None
    try:
        meta: Json = json.loads(message.data)
        if meta.get("deleted"):
            return None
        if not meta.get("name"):
            raise ValueError("it has no name")
        for field, kind in _FIELDS.items():
            if not isinstance(meta.setdefault(field, kind()), kind):
                raise TypeError(f"{field} is no {kind.__name__}")
        return meta
    except (ValueError, AttributeError, TypeError) as error:
        raise StorageError(f"bucket {bucket!r}: {message.subject} does not describe an object: {error}") from error


def read_info(bucket: str, message: StoredMessage) -> ObjectInfo | None:
    """Return what is known of an object; None where it is deleted or expired.

    Raises:
        StorageError: the message is no description of an object.
    """
    meta = read_meta(bucket, message)
    if meta is None:
        return None
    if not meta["mtime"] or meta["mtime"].startswith(_NO_TIME):
        meta["mtime"] = message.time.isoformat()
    try:
        return to_info(bucket, meta, message.sequence)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise StorageError(f"bucket {bucket!r}: {message.subject} does not describe an object: {error!r}") from error


def to_info(bucket: str, meta: Json, revision: int) -> ObjectInfo:
    """Return a description as our own type."""
    headers = {name: tuple(values) for name, values in (meta.get("headers") or {}).items()}
    link = (meta.get("options") or {}).get("link")
    return ObjectInfo(
        bucket=bucket,
        name=meta["name"],
        size=meta["size"],
        digest=meta["digest"],
        modified=parse_time(meta["mtime"]),
        chunks=meta["chunks"],
        nuid=meta["nuid"],
        description=meta.get("description", ""),
        headers=headers,
        revision=revision,
        link=None if link is None else "/".join(filter(None, (link.get("bucket"), link.get("name")))),
    )
