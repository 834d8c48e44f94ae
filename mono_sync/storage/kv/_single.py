"""Reading and writing one key at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Final, TypeVar, overload

from mono_sync._durations import DEFAULT, Deadline, Duration, Timeout, to_ttl
from mono_sync.adapter import Message, Payload, check_payload
from mono_sync.connection import (
    CoreConnection,
    Json,
    StoredMessage,
    actual_revision,
    is_conflict,
    read_direct,
)
from mono_sync.errors import JetStreamAPIError, KeyExistsError, KeyNotFoundError, MonoError, RevisionMismatchError
from mono_sync.storage._bucket import Bucket, check_revision, check_subject_length
from mono_sync.storage._config import MAX_SECONDS, BucketConfig, KVBucketConfig
from mono_sync.storage._marks import is_value, operation_of
from mono_sync.storage._names import check_key
from mono_sync.storage._values import Entry, Operation

T = TypeVar("T")

DELETION: Final = {"KV-Operation": "DEL"}
PURGE: Final = {"KV-Operation": "PURGE", "Nats-Rollup": "sub"}
_LONGEST_TTL: Final = MAX_SECONDS - 2**32  # the server adds it to the seconds since 1970, and would overflow unnoticed
_NEW: Final = "; to write a new key use create()"


class SingleKeys(Bucket[KVBucketConfig]):
    """The calls of a key-value bucket that concern one key."""

    _config_type: ClassVar[type[BucketConfig]] = KVBucketConfig

    def __init__(self, connection: CoreConnection, name: str, info: Json, *, stale_reads: bool) -> None:
        super().__init__(connection, name, info, stale_reads=stale_reads)
        self._prefix = f"$KV.{name}."
        replicated = info["config"]["num_replicas"] > 1
        self._replicated = replicated and not stale_reads
        self._direct_is_newest = self._direct and not replicated

    # --- reading

    @overload
    def get(self, key: str, default: None = None, *, timeout: Timeout = DEFAULT) -> bytes | None: ...
    @overload
    def get(self, key: str, default: T, *, timeout: Timeout = DEFAULT) -> bytes | T: ...

    def get(self, key: str, default: object = None, *, timeout: Timeout = DEFAULT) -> object:
        """Return the value of a key, or ``default`` when it is missing, deleted, purged or expired."""
        deadline = self._deadline(timeout)
        if self._direct:  # the short way: no more of the answer is decoded than is needed
            message = self._direct_answer(key, deadline)
            if message is not None and message.status is None and is_value(message.header_block):
                return message.data
            entry = self._newest(key, deadline, direct=False) if message is None else self._read(message)
        else:
            entry = self._newest(key, deadline)
        return default if entry is None or entry.operation is not Operation.PUT else entry.value

    def get_entry(self, key: str, *, revision: int | None = None, timeout: Timeout = DEFAULT) -> Entry:
        """Return a revision of a key, the newest if none is named, with its number and time.

        Args:
            key: the key.
            revision: one of those that the bucket still holds, see `history`.
            timeout: total deadline.

        Raises:
            KeyNotFoundError: the key is missing, deleted, purged or expired, or was so at that revision, or there is no
                such revision of it.
            ValueError: ``revision`` is less than 1.
        """
        deadline = self._deadline(timeout)
        entry = self._newest(key, deadline) if revision is None else self._at(key, check_revision(revision), deadline)
        if entry is None or entry.operation is not Operation.PUT:
            raise KeyNotFoundError(self._name, key, revision)
        return entry

    def history(self, key: str, *, timeout: Timeout = DEFAULT) -> list[Entry]:
        """Return the revisions of a key that the bucket still holds, oldest first; deletions are among them.

        How many it holds is the ``history`` of its configuration. An unknown key has none.
        """
        subject, deadline = self._subject(key), self._deadline(timeout)
        with self._errors(deadline, "reading the history of key", key):
            if self._replicated:
                messages = list(self._revisions(subject, deadline))
            else:
                messages = self._jetstream.pull_all(self._stream, subject, deadline, policy="all")
        return [self._entry(message) for message in messages]

    def _revisions(self, subject: str, deadline: Deadline) -> Iterator[StoredMessage]:
        """Ask the leader; a consumer may live on another replica, which may lag behind."""
        position = 1
        while (message := self._jetstream.next_of(self._stream, subject, position, deadline)) is not None:
            yield message
            position = message.sequence + 1

    # --- writing

    def set(self, key: str, value: Payload, *, ttl: Duration | None = None, timeout: Timeout = DEFAULT) -> None:
        """Write a value, whatever was there before.

        Args:
            key: the key.
            value: bytes, bytearray or memoryview; empty is a value.
            ttl: the key expires after this time, in seconds or as ``timedelta``, rounded up to whole seconds, at least
                1, and at the latest after the bucket's own ``ttl``; needs nats-server 2.11. In a bucket with history
                the older revisions are then dropped, for they would come back otherwise.
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
                return self._write(key, value, headers, deadline, expected=expected)
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
        return self._write_expecting(key, value, self._ttl_headers(ttl), check_revision(revision, _NEW), timeout)

    def touch(self, key: str, ttl: Duration | None, *, timeout: Timeout = DEFAULT) -> int:
        """Let a key expire ``ttl`` from now, or never, without changing its value; return its new revision.

        Whatever others write meanwhile stays. It is a revision like any other: watchers are told of it.

        Raises:
            KeyNotFoundError: the key is missing, deleted, purged or expired.
            ValueError: a ttl of less than a second, or longer than the server can count.
            UnsupportedByServerError: a ttl, and a server that knows none.
        """
        headers, deadline = self._ttl_headers(ttl), self._deadline(timeout)
        while True:
            entry = self.get_entry(key, timeout=deadline)
            try:
                return self._write(key, entry.value, headers, deadline, expected=entry.revision)
            except JetStreamAPIError as error:
                if not is_conflict(error):
                    raise

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
        self._remove(key, DELETION, revision, timeout)

    def purge(self, key: str, *, revision: int | None = None, timeout: Timeout = DEFAULT) -> None:
        """Delete a key with all its history; purging a missing one is no error. Otherwise as `delete`."""
        self._remove(key, PURGE, revision, timeout)

    def _remove(self, key: str, headers: dict[str, str], revision: int | None, timeout: Timeout) -> None:
        if revision is None:
            self._write(key, b"", headers, self._deadline(timeout))
        else:
            self._write_expecting(key, b"", headers, check_revision(revision), timeout)

    def _write_expecting(
        self, key: str, value: Payload, headers: dict[str, str], revision: int, timeout: Timeout
    ) -> int:
        try:
            return self._write(key, value, headers, self._deadline(timeout), expected=revision)
        except JetStreamAPIError as error:
            if is_conflict(error):
                raise RevisionMismatchError(self._name, key, revision, actual_revision(error)) from error
            raise

    def _write(
        self, key: str, value: Payload, headers: dict[str, str], deadline: Deadline, *, expected: int | None = None
    ) -> int:
        subject = self._subject(key)
        data = check_payload(value)
        operation = self._describe("writing key", key)
        try:
            return self._writer.store(subject, data, headers, deadline, operation, expected=expected)
        except MonoError as error:
            self._explain(error, deadline, "writing key", key, len(data))

    def _ttl_headers(self, ttl: Duration | None) -> dict[str, str]:
        seconds = to_ttl(ttl)
        if seconds is None:
            return {}
        if seconds > _LONGEST_TTL:
            raise ValueError(f"ttl must be at most {_LONGEST_TTL} seconds, the server's largest: {ttl!r}")
        self._connection.server_info.require("a TTL per key", "2.11.0")
        # Older revisions are dropped, else the previous one would come back when this one expires.
        return {"Nats-TTL": str(seconds), "Nats-Rollup": "sub"}

    def _subject(self, key: str) -> str:
        return check_subject_length(self._prefix + check_key(key), key)

    # --- what the server holds

    def _direct_answer(self, key: str, deadline: Deadline) -> Message | None:
        subject = self._subject(key)
        try:
            return self._jetstream.last_direct(self._stream, subject, deadline)
        except MonoError as error:
            self._explain(error, deadline, "reading key", key)

    def _read(self, message: Message) -> Entry | None:
        found = read_direct(message)
        return None if found is None else self._entry(found)

    def _newest(self, key: str, deadline: Deadline, *, direct: bool | None = None) -> Entry | None:
        direct = self._direct if direct is None else direct
        with self._errors(deadline, "reading key", key):
            message = self._jetstream.last(self._stream, self._subject(key), direct=direct, deadline=deadline)
        return None if message is None else self._entry(message)

    def _at(self, key: str, revision: int, deadline: Deadline) -> Entry | None:
        subject = self._subject(key)
        with self._errors(deadline, "reading key", key):
            message = self._jetstream.at(self._stream, revision, deadline)
        return None if message is None or message.subject != subject else self._entry(message)

    def _entry(self, message: StoredMessage) -> Entry:
        return Entry(
            bucket=self._name,
            key=message.subject[len(self._prefix) :],
            value=message.data,
            revision=message.sequence,
            created=message.time,
            operation=operation_of(message.headers),
            expired=message.headers.get("Nats-Marker-Reason") == "MaxAge",
        )
