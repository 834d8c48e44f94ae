"""Which objects a bucket has."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, TypeAlias, overload

from mono_sync._durations import DEFAULT, Deadline, Timeout
from mono_sync.connection import CoreConnection, Json, StoredMessage, StreamReader
from mono_sync.errors import InvalidKeyError, ObjectNotFoundError
from mono_sync.storage._bucket import LONGEST_SUBJECT, Bucket, check_revision
from mono_sync.storage._config import BucketConfig, FSBucketConfig
from mono_sync.storage._names import check_object_name, decode_object_name, encode_object_name
from mono_sync.storage._values import BucketStatus, Entry, Operation
from mono_sync.storage._watcher import Watcher
from mono_sync.storage.objects._info import Folder, ObjectInfo
from mono_sync.storage.objects._meta import is_deletion, read_info

_Infos: TypeAlias = list[ObjectInfo]  # in the class, list is a method
_Messages: TypeAlias = list[StoredMessage]


class Catalog(Bucket[FSBucketConfig]):
    """The part of an object bucket that knows which objects there are."""

    _config_type: ClassVar[type[BucketConfig]] = FSBucketConfig

    def __init__(self, connection: CoreConnection, name: str, info: Json, *, stale_reads: bool) -> None:
        super().__init__(connection, name, info, stale_reads=stale_reads)
        self._replicated = info["config"]["num_replicas"] > 1
        self._lists_from_leader = self._replicated and not stale_reads
        self._reader = StreamReader(connection, self._jetstream, self._stream)
        self._expires = bool(info["config"].get("max_age"))
        self._descriptions = f"$O.{name}.M."

    def stat(self, key: str, *, timeout: Timeout = DEFAULT) -> ObjectInfo:
        """Return size, digest and description of an object, or of a link itself.

        Raises:
            ObjectNotFoundError: it is missing.
        """
        info = self._find(key, self._deadline(timeout))
        if info is None:
            raise ObjectNotFoundError(self._name, key)
        return info

    def exists(self, key: str, *, timeout: Timeout = DEFAULT) -> bool:
        """Return whether there is such an object, or link."""
        return self._find(key, self._deadline(timeout)) is not None

    @overload
    def list(self, prefix: str | None = None, *, delimiter: None = None, timeout: Timeout = DEFAULT) -> _Infos: ...
    @overload
    def list(self, prefix: str | None = None, *, delimiter: str, timeout: Timeout = DEFAULT) -> Folder: ...

    def list(
        self, prefix: str | None = None, *, delimiter: str | None = None, timeout: Timeout = DEFAULT
    ) -> _Infos | Folder:
        """Return the objects whose names begin with ``prefix``, or all, sorted by name.

        The server cannot choose by prefix: the descriptions of all objects are read.

        Args:
            prefix: the beginning of names.
            delimiter: what separates the parts of names, for example ``"/"``: return a `Folder`, in which all that
                comes after the next delimiter is summed up. None: return a list of all.
            timeout: total deadline.
        """
        prefix = _check_prefix(prefix)
        if delimiter is not None and not isinstance(delimiter, str):
            raise TypeError(f"a delimiter must be a str, not {type(delimiter).__name__}")
        if delimiter == "":
            raise ValueError("a delimiter must not be empty")
        deadline, from_leader = self._deadline(timeout), self._lists_from_leader
        messages = self._newest_descriptions(deadline, "listing objects", from_leader=from_leader)
        infos = (read_info(self._name, message) for message in messages)
        found = [info for info in infos if info is not None and info.name.startswith(prefix)]
        found.sort(key=lambda info: info.name)
        return found if delimiter is None else Folder.of(prefix, delimiter, found)

    def status(self, *, timeout: Timeout = DEFAULT) -> BucketStatus:
        """Return size and limits of the bucket, and the numbers of its objects and of those deleted.

        Counting takes as long as `list`.
        """
        deadline = self._deadline(timeout)
        status = super().status(timeout=deadline)
        messages = self._newest_descriptions(deadline, "status", from_leader=self._lists_from_leader)
        deleted = sum(is_deletion(self._name, message) for message in messages)
        return replace(status, objects=len(messages) - deleted, tombstones=deleted)

    def watch(
        self,
        prefix: str | None = None,
        *,
        updates_only: bool = False,
        ignore_deletes: bool = False,
        resume_from: int | None = None,
        timeout: Timeout = DEFAULT,
    ) -> Watcher[ObjectInfo | None]:
        """Return a watcher of objects: first those that the bucket holds, then every change.

        Its entries have the name as ``key`` and an `ObjectInfo` as ``value``, None where the object was deleted. They
        come when a version is complete, or only its description has changed; an object that is renamed comes with its
        new name, and then as deleted with its old one. Objects that expire leave no trace, and neither does `reset`.
        Where another client has left something that does not describe an object, `StorageError` is raised in its turn.

        Args:
            prefix: the beginning of names.
            updates_only: begin with what is written after this call has begun.
            ignore_deletes: leave out deletions.
            resume_from: begin after this revision, the `Watcher.position` of an earlier watcher; 0: with all that the
                bucket holds.
            timeout: total deadline of this call.

        Raises:
            BucketNotFoundError: the bucket was deleted.
            ValueError: both ``updates_only`` and ``resume_from``; a negative revision.
        """
        wanted = _check_prefix(prefix)
        if updates_only and resume_from is not None:
            raise ValueError("updates_only and resume_from exclude each other")
        if resume_from:
            check_revision(resume_from)

        def read(entry: Entry) -> Entry[ObjectInfo | None] | None:
            change = self._change(entry)
            return change if change is not None and change.key.startswith(wanted) else None

        follower = self._follow(
            f"{self._descriptions}>",
            wanted,
            self._deadline(timeout),
            start="new" if updates_only else "last_per_subject",
            after=resume_from,
        )
        return Watcher(
            self._name,
            self._descriptions,
            wanted,
            follower,
            read,
            default_timeout=self._connection.config.call_timeout,
            explain=self._explain,
            ignore_deletes=ignore_deletes,
            whole_history=resume_from is not None,
        )

    # --- descriptions

    def _meta_subject(self, key: str) -> str:
        subject = self._descriptions + encode_object_name(check_object_name(key))
        if len(subject) > LONGEST_SUBJECT:
            longest = (LONGEST_SUBJECT - len(self._descriptions)) // 4 * 3  # base64 makes four of three
            raise InvalidKeyError(key, f"it is too long by {len(key.encode()) - longest} bytes", kind="object name")
        return subject

    def _last_meta(self, key: str, deadline: Deadline, *, direct: bool) -> StoredMessage | None:
        return self._jetstream.last(self._stream, self._meta_subject(key), direct=direct, deadline=deadline)

    def _find(self, key: str, deadline: Deadline, *, direct: bool | None = None) -> ObjectInfo | None:
        with self._errors(deadline, "looking for object", key):
            message = self._last_meta(key, deadline, direct=self._direct if direct is None else direct)
        return None if message is None else read_info(self._name, message)

    def _newest_descriptions(self, deadline: Deadline, doing: str, *, from_leader: bool) -> _Messages:
        with self._errors(deadline, doing):
            return self._reader.newest_of_each(f"{self._descriptions}>", deadline, from_leader=from_leader)

    def _change(self, entry: Entry) -> Entry[ObjectInfo | None] | None:
        """Return what the message of an entry did to an object; None: it concerns none."""
        name = decode_object_name(entry.key)
        if name is None:
            return None
        message = StoredMessage(self._descriptions + entry.key, entry.value, {}, entry.revision, entry.created)
        info = None if entry.removed else read_info(self._name, message)
        operation = Operation.DELETE if info is None and not entry.removed else entry.operation
        return Entry(self._name, name, info, entry.revision, entry.created, operation, entry.expired)


def _check_prefix(prefix: str | None) -> str:
    if prefix is not None and not isinstance(prefix, str):
        raise TypeError(f"a prefix must be a str, not {type(prefix).__name__}")
    return prefix or ""
