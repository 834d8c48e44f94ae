"""The key-value bucket."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, TypeVar, overload

from mono_sync._durations import DEFAULT, Deadline, Duration, Timeout, to_ttl
from mono_sync.adapter import Payload, check_payload
from mono_sync.connection import CoreConnection, Json, StoredMessage
from mono_sync.errors import (
    JetStreamAPIError,
    KeyExistsError,
    KeyNotFoundError,
    RevisionMismatchError,
)
from mono_sync.storage._bucket import Bucket, check_subject_length
from mono_sync.storage._config import MAX_SECONDS, BucketConfig, KVBucketConfig
from mono_sync.storage._errors import EXPECTED_REVISION, actual_revision, is_conflict
from mono_sync.storage._names import check_key, check_pattern
from mono_sync.storage._values import Entry, Operation

T = TypeVar("T")

_OPERATIONS = {operation.value: operation for operation in Operation}
_LARGEST_REVISION = 2**63 - 1
_MARKED = {"MaxAge": Operation.PURGE, "Purge": Operation.PURGE, "Remove": Operation.DELETE}


class KVBucket(Bucket[KVBucketConfig]):
    """A key-value bucket (NATS ADR-8). Thread-safe; other NATS clients read what it writes and the reverse.

    Keys are letters, digits and ``- / _ = .``; values are bytes. Every call takes ``timeout``, a total deadline in
    seconds; omitted, it is the connection's. Calls may raise, besides what they list:

    * `OperationTimeoutError`: the deadline passed; a write may still have happened.
    * `ConnectionLostError`: the connection broke before the answer came; a write may still have happened.
    * `ConnectionClosedError`: the connection is closed.
    * `BucketNotFoundError`: the bucket was deleted meanwhile.
    * `InvalidKeyError`, `TypeError`: bad key or value; nothing was sent.
    * `JetStreamUnavailableError`: the server has no JetStream, or no leader for the bucket now.

    Get one from a plugin, or from ``connection.kv(name)``.
    """

    _config_type: ClassVar[type[BucketConfig]] = KVBucketConfig

    def __init__(self, connection: CoreConnection, name: str, stream_config: Json) -> None:
        super().__init__(connection, name, stream_config)
        self._prefix = f"$KV.{name}."

    # --- reading

    @overload
    def get(self, key: str, default: None = None, *, timeout: Timeout = DEFAULT) -> bytes | None: ...
    @overload
    def get(self, key: str, default: T, *, timeout: Timeout = DEFAULT) -> bytes | T: ...

    def get(self, key: str, default: object = None, *, timeout: Timeout = DEFAULT) -> object:
        """Return the value of a key, or ``default`` when it is missing, deleted, purged or expired."""
        entry = self._newest(key, self._deadline(timeout))
        return default if entry is None or entry.operation is not Operation.PUT else entry.value

    def get_entry(self, key: str, *, timeout: Timeout = DEFAULT) -> Entry:
        """Return the newest revision of a key, with its number and time.

        Raises:
            KeyNotFoundError: the key is missing, deleted, purged or expired.
        """
        entry = self._newest(key, self._deadline(timeout))
        if entry is None or entry.operation is not Operation.PUT:
            raise KeyNotFoundError(self._name, key)
        return entry

    def keys(self, pattern: str = ">", *, timeout: Timeout = DEFAULT) -> list[str]:
        """Return the live keys that match a pattern, each once, in the order of their last writes.

        Keys that exist during the whole call are never left out, however much is written meanwhile.

        Args:
            pattern: tokens between dots; ``*`` stands for one token, ``>`` at the end for all that follow.
            timeout: total deadline.
        """
        subject, deadline = self._prefix + check_pattern(pattern), self._deadline(timeout)
        with self._errors(deadline, "listing keys", pattern):
            messages = self._jetstream.last_of_each(
                self._stream, subject, deadline, direct=self._direct, headers_only=True
            )
        return [
            message.subject[len(self._prefix) :] for message in messages if _operation(message.headers) is Operation.PUT
        ]

    # --- writing

    def set(self, key: str, value: Payload, *, ttl: Duration | None = None, timeout: Timeout = DEFAULT) -> None:
        """Write a value, whatever was there before.

        Args:
            key: the key.
            value: bytes, bytearray or memoryview; empty is a value.
            ttl: the key expires after this time, in seconds or as ``timedelta``, rounded up to whole seconds, at least
                1; needs nats-server 2.11. In a bucket with history the older revisions are then dropped, for they would
                come back otherwise.
            timeout: total deadline.

        Raises:
            ValueTooLargeError: more than bucket or server take.
            BucketFullError: the bucket's limit is reached.
            ValueError: a ttl of less than a second, or longer than the server can count.
            UnsupportedByServerError: a ttl, and a server that knows none.
            BucketConfigError: a ttl, and a bucket that another client made without a TTL per key.
        """
        self.put_with_revision(key, value, ttl=ttl, timeout=timeout)

    def put_with_revision(
        self, key: str, value: Payload, *, ttl: Duration | None = None, timeout: Timeout = DEFAULT
    ) -> int:
        """Write a value, whatever was there before, and return its revision. Arguments and errors as for `set`."""
        return self._write(key, value, self._ttl_headers(ttl), self._deadline(timeout))

    def create(self, key: str, value: Payload, *, ttl: Duration | None = None, timeout: Timeout = DEFAULT) -> int:
        """Write a value if the key is missing, deleted, purged or expired, and return its revision.

        Of any number of callers at the same moment exactly one succeeds. Arguments and errors are those of `set`, and:

        Raises:
            KeyExistsError: the key is there.
        """
        headers = self._ttl_headers(ttl)
        deadline = self._deadline(timeout)
        expected = 0
        while True:
            try:
                return self._write(key, value, headers | {EXPECTED_REVISION: str(expected)}, deadline)
            except JetStreamAPIError as error:
                if not is_conflict(error):
                    raise
            # A deletion leaves a mark with a revision of its own; other replicas than the leader may not know it yet.
            newest = self._newest(key, deadline, direct=False)
            if newest is not None and newest.operation is Operation.PUT:
                raise KeyExistsError(self._name, key, newest.revision)
            expected = 0 if newest is None else newest.revision

    def update(
        self, key: str, value: Payload, revision: int, *, ttl: Duration | None = None, timeout: Timeout = DEFAULT
    ) -> int:
        """Write a value if the key is still at ``revision``, and return its new revision.

        Arguments and errors are those of `set`, and:

        Raises:
            RevisionMismatchError: it is at another revision, or missing; nothing was written.
            ValueError: ``revision`` is less than 1; to write a new key use `create`.
        """
        headers = self._ttl_headers(ttl) | _expecting(revision)
        return self._write_expecting(key, value, headers, revision, timeout)

    def delete(self, key: str, *, revision: int | None = None, timeout: Timeout = DEFAULT) -> None:
        """Delete a key; deleting a missing one is no error. In a bucket with history its older revisions stay.

        Args:
            key: the key.
            revision: delete only if the key is still at this revision.
            timeout: total deadline.

        Raises:
            RevisionMismatchError: it is at another revision, or missing; nothing was deleted.
            ValueError: ``revision`` is less than 1.
        """
        self._remove(key, {"KV-Operation": "DEL"}, revision, timeout)

    def purge(self, key: str, *, revision: int | None = None, timeout: Timeout = DEFAULT) -> None:
        """Delete a key with all its history; purging a missing one is no error. Otherwise as `delete`."""
        self._remove(key, {"KV-Operation": "PURGE", "Nats-Rollup": "sub"}, revision, timeout)

    def _remove(self, key: str, headers: dict[str, str], revision: int | None, timeout: Timeout) -> None:
        if revision is None:
            self._write(key, b"", headers, self._deadline(timeout))
        else:
            self._write_expecting(key, b"", headers | _expecting(revision), revision, timeout)

    def _write_expecting(
        self, key: str, value: Payload, headers: Mapping[str, str], revision: int, timeout: Timeout
    ) -> int:
        try:
            return self._write(key, value, headers, self._deadline(timeout))
        except JetStreamAPIError as error:
            if is_conflict(error):
                raise RevisionMismatchError(self._name, key, revision, actual_revision(error)) from error
            raise

    def _write(self, key: str, value: Payload, headers: Mapping[str, str], deadline: Deadline) -> int:
        subject = self._subject(key)
        data = check_payload(value)
        with self._errors(deadline, "writing key", key, len(data)):
            return self._jetstream.publish(subject, data, headers, deadline, context=f"key {key!r}").sequence

    def _ttl_headers(self, ttl: Duration | None) -> dict[str, str]:
        seconds = to_ttl(ttl)
        if seconds is None:
            return {}
        if seconds > MAX_SECONDS:
            raise ValueError(f"ttl must be at most {MAX_SECONDS} seconds, the server's largest: {ttl!r}")
        self._connection.server_info.require("a TTL per key", "2.11.0")
        # Older revisions are dropped, else the previous one would come back when this one expires.
        return {"Nats-TTL": str(seconds), "Nats-Rollup": "sub"}

    def _subject(self, key: str) -> str:
        return check_subject_length(self._prefix + check_key(key), key)

    def _newest(self, key: str, deadline: Deadline, *, direct: bool | None = None) -> Entry | None:
        direct = self._direct if direct is None else direct
        with self._errors(deadline, "reading key", key):
            message = self._jetstream.last(self._stream, self._subject(key), direct=direct, deadline=deadline)
        return None if message is None else self._entry(message)

    def _entry(self, message: StoredMessage) -> Entry:
        return Entry(
            bucket=self._name,
            key=message.subject[len(self._prefix) :],
            value=message.data,
            revision=message.sequence,
            created=message.time,
            operation=_operation(message.headers),
            expired=message.headers.get("Nats-Marker-Reason") == "MaxAge",
        )


def _operation(headers: Mapping[str, str]) -> Operation:
    """Tell what a message did: a client's mark of a deletion, or one that the server left (NATS ADR-8, ADR-48)."""
    if "Nats-Marker-Reason" in headers:
        return _MARKED.get(headers["Nats-Marker-Reason"], Operation.PURGE)
    return _OPERATIONS.get(headers.get("KV-Operation", ""), Operation.PUT)


def _expecting(revision: int) -> dict[str, str]:
    if not isinstance(revision, int) or isinstance(revision, bool):
        raise TypeError(f"a revision must be an int, not {type(revision).__name__}")
    if revision < 1:
        raise ValueError(f"a revision is 1 or more, not {revision}; to write a new key use create()")
    if revision > _LARGEST_REVISION:  # the server would take it modulo 2**64, and so for another one
        raise ValueError(f"a revision is at most {_LARGEST_REVISION}, not {revision}")
    return {EXPECTED_REVISION: str(revision)}
