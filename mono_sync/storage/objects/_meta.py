"""The description of an object, as all NATS clients store it (NATS ADR-20)."""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from base64 import urlsafe_b64encode
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TypeAlias

from mono_sync.adapter import check_header
from mono_sync.connection import Json, StoredMessage, parse_time
from mono_sync.errors import StorageError, ValueTooLargeError
from mono_sync.storage._names import decode_object_name, encode_object_name
from mono_sync.storage.objects._info import ObjectInfo

Headers: TypeAlias = Mapping[str, str | Sequence[str]]
Metadata: TypeAlias = Mapping[str, str]

_FIELDS = {"name": str, "nuid": str, "mtime": str, "digest": str, "description": str, "size": int, "chunks": int}
_NUID = re.compile(r"[^\s.*>\ud800-\udfff]+")  # of any client: one token of a subject
_NO_TIME = "0001-01-01"  # what Go clients store: there the time of the message counts
_MESSAGE_HEADERS = 256  # of a description, at most


def digest_of(content: hashlib._Hash) -> str:
    """Return the digest of content that was hashed piece by piece, in the form in which it is stored."""
    return f"SHA-256={urlsafe_b64encode(content.digest()).decode()}"


_DIGEST_OF_NOTHING = digest_of(hashlib.sha256())


def new_time() -> str:
    """Return the present time in the form in which it is stored."""
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")


def new_meta(
    bucket: str,
    name: str,
    *,
    chunk: int,
    description: str,
    headers: Headers | None,
    metadata: Metadata | None = None,
) -> Json:
    """Describe a new version of an object, which has no content so far. Raises what `said` raises."""
    return _stamped(
        name=name,
        bucket=bucket,
        **said(description=description, headers={} if headers is None else headers, metadata=metadata),
        options={"max_chunk_size": chunk},
        size=0,
        chunks=0,
        digest=_DIGEST_OF_NOTHING,
    )


def said(*, description: str | None, headers: Headers | None, metadata: Metadata | None) -> Json:
    """Return the fields of a description that its owner chooses, as far as they are given.

    Raises:
        TypeError: they hold something that is no str.
        InvalidHeaderError: a header that no message could carry.
        ValueError: description or metadata with lone surrogates, which others could not read.
    """
    fields: Json = {}
    if description is not None:
        if not isinstance(description, str):
            raise TypeError(f"description must be a str, not {type(description).__name__}")
        fields["description"] = _encodable(description, "description")
    if headers is not None:
        fields["headers"] = _values(headers)
    if metadata is not None:
        if not isinstance(metadata, Mapping):
            raise TypeError(f"metadata must be a mapping of str to str, not {type(metadata).__name__}")
        for name, value in metadata.items():
            if not isinstance(name, str) or not isinstance(value, str):
                raise TypeError(f"metadata maps a str to a str, not {name!r} to {type(value).__name__}")
            _encodable(name, "a name in metadata")
            _encodable(value, f"metadata {name!r}")
        fields["metadata"] = dict(metadata)
    return fields


def _encodable(text: str, what: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{what} cannot be encoded: {error.reason}") from None
    return text


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


def link_to(bucket: str, name: str, to_bucket: str, to_name: str | None) -> Json:
    """Describe a link to an object, or to a bucket as a whole."""
    target = {"bucket": to_bucket} if to_name is None else {"bucket": to_bucket, "name": to_name}
    return _stamped(name=name, bucket=bucket, options={"link": target}, size=0, chunks=0, digest="")


def changed(meta: Json, message: StoredMessage, fields: Json) -> Json:
    """Return a description that was read from a message with other fields.

    What other clients have put into it stays. The time of the message becomes another one, so where that counted it
    is written down.
    """
    return {**meta, **fields, "mtime": _modified(meta, message)}


def encode_meta(bucket: str, meta: Json, limit: int) -> bytes:
    """Return a description as it is stored in one message, of which the server takes ``limit`` bytes.

    Raises:
        ValueTooLargeError: it is larger.
    """
    data = json.dumps(meta).encode()
    if len(data) > limit - _MESSAGE_HEADERS:
        reason = f"all that describes an object goes into one message, and the server takes up to {limit} bytes"
        raise ValueTooLargeError(bucket, meta["name"], len(data), reason, kind="description of object")
    return data


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
            if meta.get(field) is None:
                meta[field] = kind()
            if not isinstance(meta[field], kind):
                raise TypeError(f"{field} is no {kind.__name__}")
        if meta["size"] < 0 or meta["chunks"] < 0:
            raise ValueError("it has less than nothing")
        if meta["size"] and not _NUID.fullmatch(meta["nuid"]):
            raise ValueError("nuid names no chunks")
        return meta
    except (ValueError, AttributeError, TypeError) as error:
        raise _no_description(bucket, message.subject, str(error)) from error


def _no_description(bucket: str, subject: str, reason: str) -> StorageError:
    token = subject.split(".", 3)[3]
    name = decode_object_name(token)
    if name is None or encode_object_name(name) != token:  # no call can name it
        advice = "it is of no object, and other NATS clients can remove it"
        return StorageError(f"bucket {bucket!r}: {subject} does not describe an object: {reason} ({advice})")
    what = f"what is stored of {name!r} does not describe an object: {reason}"
    return StorageError(f"bucket {bucket!r}: {what} (delete it)")


def is_deletion(bucket: str, message: StoredMessage) -> bool:
    """Return whether a message marks an object as deleted or expired; one that describes nothing does not."""
    try:
        return read_meta(bucket, message) is None
    except StorageError:
        return False


def _modified(meta: Json, message: StoredMessage) -> str:
    time: str = meta["mtime"]
    return message.time.isoformat().replace("+00:00", "Z") if not time or time.startswith(_NO_TIME) else time


def read_info(bucket: str, message: StoredMessage) -> ObjectInfo | None:
    """Return what is known of an object; None where it is deleted or expired.

    Raises:
        StorageError: the message is no description of an object.
    """
    meta = read_meta(bucket, message)
    if meta is None:
        return None
    try:
        return to_info(bucket, meta | {"mtime": _modified(meta, message)}, message.sequence)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _no_description(bucket, message.subject, repr(error)) from error


def _all_of(values: str | list[str]) -> tuple[str, ...]:
    return (values,) if isinstance(values, str) else tuple(values)  # nats-py stores a str as it is given


def _target(link: dict[str, str] | None) -> str | None:
    if link is None:
        return None
    if not link.get("bucket"):
        raise ValueError("it is a link to nothing")
    return "/".join(filter(None, (link["bucket"], link.get("name"))))


def to_info(bucket: str, meta: Json, revision: int) -> ObjectInfo:
    """Return a description as our own type."""
    headers = {name: _all_of(values) for name, values in (meta.get("headers") or {}).items()}
    metadata = {name: str(value) for name, value in (meta.get("metadata") or {}).items()}
    options = meta.get("options") or {}
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
        link=_target(options.get("link")),
        metadata=metadata,
        chunk_size=max(0, int(options.get("max_chunk_size") or 0)),
    )
