"""The object bucket."""

from __future__ import annotations

import json
import logging
from typing import ClassVar, TypeVar, overload

from mono_sync._durations import DEFAULT, Deadline, Timeout
from mono_sync.adapter import Payload, check_payload
from mono_sync.connection import CoreConnection, Json, StoredMessage, is_conflict
from mono_sync.errors import (
    DigestMismatchError,
    JetStreamAPIError,
    MessageError,
    NoRespondersError,
    ObjectChangedError,
    ObjectNotFoundError,
    OperationTimeoutError,
    StorageError,
    ValueTooLargeError,
)
from mono_sync.storage._bucket import Bucket, check_subject_length
from mono_sync.storage._chunks import Chunks, clean_up_deadline
from mono_sync.storage._config import BucketConfig, FSBucketConfig
from mono_sync.storage._meta import Headers, deletion, new_meta, read_info, read_meta, to_info
from mono_sync.storage._names import check_object_name, encode_object_name
from mono_sync.storage._values import ObjectInfo

T = TypeVar("T")

_log = logging.getLogger("mono_sync.storage")

_READ_ATTEMPTS = 10
_HEADERS = 256  # of a description, at most


class ObjectBucket(Bucket[FSBucketConfig]):
    """An object bucket (NATS ADR-20). Thread-safe; other NATS clients read what it writes and the reverse.

    Names are any text that is not empty. An object is replaced as a whole: readers see the old one or the new one.
    Every call takes ``timeout``, a total deadline in seconds for all chunks together; omitted, it is the connection's.
    Calls may raise, besides what they list, `OperationTimeoutError`, `ConnectionLostError` and `ConnectionClosedError`
    (a write may have happened in the first two cases), `BucketNotFoundError` when the bucket was deleted meanwhile,
    `InvalidKeyError` and `TypeError` on bad arguments, `JetStreamUnavailableError`, and `StorageError` where another
    client has left something that does not describe an object.

    Get one from a plugin, or from ``connection.objects(name)``.
    """

    _config_type: ClassVar[type[BucketConfig]] = FSBucketConfig

    def __init__(self, connection: CoreConnection, name: str, info: Json, *, stale_reads: bool) -> None:
        super().__init__(connection, name, info, stale_reads=stale_reads)
        self._chunks = Chunks(connection, self._jetstream, name, self._stream)
        self._expires = bool(info["config"].get("max_age"))

    # --- reading

    @overload
    def get(self, key: str, default: None = None, *, timeout: Timeout = DEFAULT) -> bytes | None: ...
    @overload
    def get(self, key: str, default: T, *, timeout: Timeout = DEFAULT) -> bytes | T: ...

    def get(self, key: str, default: object = None, *, timeout: Timeout = DEFAULT) -> object:
        """Return the bytes of an object, or ``default`` when it is missing.

        They are those of one version, and their digest has been verified.

        Raises:
            DigestMismatchError: chunks are missing or damaged.
            ObjectChangedError: it was replaced again and again while being read.
            StorageError: it is a link to another object, which other NATS clients can make.
        """
        deadline, direct = self._deadline(timeout), self._direct
        info = self._find(key, deadline)
        for _ in range(_READ_ATTEMPTS):
            if info is None:
                return default
            if info.link is not None:
                raise StorageError(f"object {key!r} of bucket {self._name!r} is a link to {info.link}: read that")
            try:
                with self._errors(deadline, "reading object", key):
                    return self._chunks.read(info, deadline, direct=direct)
            except DigestMismatchError:
                newer = self._find(key, deadline, direct=False)
                if not direct and newer is not None and newer.nuid == info.nuid:
                    if self._is_expiring(newer, deadline):
                        return default
                    raise
                info, direct = newer, False  # the leader knows; other replicas may be behind
        raise ObjectChangedError(self._name, key)

    def stat(self, key: str, *, timeout: Timeout = DEFAULT) -> ObjectInfo:
        """Return size, digest and description of an object.

        Raises:
            ObjectNotFoundError: it is missing.
        """
        info = self._find(key, self._deadline(timeout))
        if info is None:
            raise ObjectNotFoundError(self._name, key)
        return info

    def exists(self, key: str, *, timeout: Timeout = DEFAULT) -> bool:
        """Return whether there is such an object."""
        return self._find(key, self._deadline(timeout)) is not None

    def list(self, prefix: str | None = None, *, timeout: Timeout = DEFAULT) -> list[ObjectInfo]:
        """Return the objects whose names begin with ``prefix``, or all, sorted by name."""
        if prefix is not None and not isinstance(prefix, str):
            raise TypeError(f"a prefix must be a str, not {type(prefix).__name__}")
        deadline = self._deadline(timeout)
        with self._errors(deadline, "listing objects"):
            messages = self._jetstream.last_of_each(self._stream, f"$O.{self._name}.M.>", deadline, direct=self._direct)
        infos = (read_info(self._name, message) for message in messages)
        found = [info for info in infos if info is not None and info.name.startswith(prefix or "")]
        return sorted(found, key=lambda info: info.name)

    # --- writing

    def set(self, key: str, data: Payload, *, timeout: Timeout = DEFAULT) -> None:
        """Store an object, replacing what was there. Errors as for `put`."""
        self.put(key, data, timeout=timeout)

    def put(
        self,
        key: str,
        data: Payload,
        *,
        description: str = "",
        headers: Headers | None = None,
        timeout: Timeout = DEFAULT,
    ) -> ObjectInfo:
        """Store an object, replacing what was there, and return what the bucket knows of it.

        The new version becomes visible as a whole at the end, and the old one is removed after that. When anything goes
        wrong before, the old one stays, and what was written of the new one is removed again. That may take a quarter
        of a second beyond the deadline, or after an interrupt; where the server does not answer by then, and where an
        interrupt comes in the last step, chunks that nothing refers to may be left behind.

        Args:
            key: its name.
            data: its bytes.
            description: for people.
            headers: by name, one value or several.
            timeout: total deadline.

        Raises:
            BucketFullError: the bucket's limit is reached; old and new version need room together.
            InvalidHeaderError: a header that no message could carry; nothing was sent.
            ValueTooLargeError: name, description and headers are more than the server takes in one message.
        """
        deadline = self._deadline(timeout)
        self._meta_subject(key)
        view = memoryview(check_payload(data))
        size = self._chunks.size
        meta = new_meta(self._name, key, view, chunk=size, description=description, headers=headers)
        if (length := len(json.dumps(meta))) > (limit := self._connection.server_info.max_payload) - _HEADERS:
            reason = f"name, description and headers go into one message, and the server takes up to {limit} bytes"
            raise ValueTooLargeError(self._name, key, length, reason)
        with self._errors(deadline, "storing object", key, len(view)):
            self._chunks.write(meta["nuid"], view, size, deadline)
            revision = self._commit(meta, deadline)
        return to_info(self._name, meta, revision)

    def delete(self, key: str, *, timeout: Timeout = DEFAULT) -> None:
        """Delete an object; deleting a missing one is no error."""
        deadline = self._deadline(timeout)
        with self._errors(deadline, "deleting object", key):
            newest = self._last_meta(key, deadline, direct=False)
            if self._replaceable(newest) is not None:
                self._commit(deletion(self._name, key), deadline)

    def _commit(self, meta: Json, deadline: Deadline) -> int:
        """Publish a description on top of exactly the version that it replaces, and remove that one's chunks.

        Several writers at once replace each other one after the other, so each version's chunks are removed by the one
        who replaced it. The new chunks are removed when it is certain that nothing refers to them.
        """
        key, subject, payload = meta["name"], self._meta_subject(meta["name"]), json.dumps(meta).encode()
        operation = self._describe("storing object", key)
        maybe_stored = False
        try:
            while True:
                newest = self._last_meta(key, deadline, direct=False)
                replaced = self._replaceable(newest)
                maybe_stored = True
                try:
                    revision = self._writer.store(
                        subject, payload, {"Nats-Rollup": "sub"}, deadline, operation, expected=_revision(newest)
                    )
                except (JetStreamAPIError, MessageError, NoRespondersError) as error:
                    maybe_stored = False
                    if not isinstance(error, JetStreamAPIError) or not is_conflict(error):
                        raise
                except OperationTimeoutError as error:
                    maybe_stored = error.sent
                    raise
                else:
                    return self._committed(revision, replaced, deadline)
        except BaseException as error:
            if not maybe_stored:
                self._chunks.discard(meta["nuid"], clean_up_deadline(error, deadline))
            raise

    def _replaceable(self, message: StoredMessage | None) -> Json | None:
        """Return the description of what is going to be replaced: None for nothing, empty if it cannot be read."""
        try:
            return None if message is None else read_meta(self._name, message)
        except StorageError as error:
            _log.warning("%s; it is replaced, and its chunks, if there are any, are left behind", error)
            return {}

    def _committed(self, revision: int, replaced: Json | None, deadline: Deadline) -> int:
        if replaced is not None:
            self._chunks.discard(replaced.get("nuid", ""), clean_up_deadline(None, deadline))
        return revision

    # --- descriptions

    def _meta_subject(self, key: str) -> str:
        subject = f"$O.{self._name}.M.{encode_object_name(check_object_name(key))}"
        return check_subject_length(subject, key, "object name")

    def _last_meta(self, key: str, deadline: Deadline, *, direct: bool) -> StoredMessage | None:
        return self._jetstream.last(self._stream, self._meta_subject(key), direct=direct, deadline=deadline)

    def _find(self, key: str, deadline: Deadline, *, direct: bool | None = None) -> ObjectInfo | None:
        with self._errors(deadline, "looking for object", key):
            message = self._last_meta(key, deadline, direct=self._direct if direct is None else direct)
        return None if message is None else read_info(self._name, message)

    def _is_expiring(self, info: ObjectInfo, deadline: Deadline) -> bool:
        """Return whether chunks are missing because they, older than the description, have expired before it."""
        if not self._expires:
            return False
        with self._errors(deadline, "reading object", info.name):
            state = self._jetstream.stream_info(self._stream, deadline)["state"]
        return bool(state["first_seq"] > info.revision - info.chunks)


def _revision(message: StoredMessage | None) -> int:
    return 0 if message is None else message.sequence
