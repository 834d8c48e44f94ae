"""Changing what is said of objects, naming them anew, copies and links."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import suppress
from types import MappingProxyType
from typing import Final

from mono_sync._durations import DEFAULT, Deadline, Timeout
from mono_sync.connection import (
    AtomicBatches,
    BatchRefusedError,
    Conditional,
    CoreConnection,
    Json,
    StoredMessage,
    is_conflict,
)
from mono_sync.errors import (
    ConnectionClosedError,
    JetStreamAPIError,
    MonoError,
    ObjectChangedError,
    ObjectExistsError,
    ObjectNotFoundError,
    OutcomeUnknownError,
)
from mono_sync.storage._names import check_bucket_name
from mono_sync.storage.objects._clean_up import clean_up_deadline
from mono_sync.storage.objects._committing import Condition
from mono_sync.storage.objects._info import ObjectInfo
from mono_sync.storage.objects._lifetime import expires_by_itself, remaining
from mono_sync.storage.objects._meta import (
    Headers,
    Metadata,
    changed,
    deletion,
    encode_meta,
    link_to,
    read_info,
    read_meta,
    said,
    to_info,
)
from mono_sync.storage.objects._writing import Writing

_log = logging.getLogger("mono_sync.storage")

_COPY_ATTEMPTS: Final = 10
_FOR_GOOD: Final = MappingProxyType[str, str]({})


class Describing(Writing):
    """The part of an object bucket that changes what is said of objects, and not their content."""

    def __init__(self, connection: CoreConnection, name: str, info: Json, *, stale_reads: bool) -> None:
        super().__init__(connection, name, info, stale_reads=stale_reads)
        self._batches = AtomicBatches(connection, self._jetstream, self._stream, info)

    def update_meta(
        self,
        key: str,
        *,
        name: str | None = None,
        description: str | None = None,
        headers: Headers | None = None,
        metadata: Metadata | None = None,
        if_match: ObjectInfo | int | None = None,
        timeout: Timeout = DEFAULT,
    ) -> ObjectInfo:
        """Change the name of an object or link, or what is said of it, and return what the bucket knows of it then.

        What is given replaces what was there as a whole; what is left out stays. The content is not touched: whoever
        is reading it reads on. When somebody else changes the object at the same moment, the changes are made on top of
        that. What is left of a TTL stays what it was.

        A new name takes effect together with the end of the old one where the server is 2.12 or newer and the bucket
        was opened with an `FSBucketConfig`. Elsewhere the object is there under both names for a moment, and stays so
        if the program is killed or interrupted just then, the connection is closed, or the error says that the outcome
        is unknown; both have one content, which is deleted with either of them.

        Args:
            key: its name.
            name: a new name.
            description: for people.
            headers: by name, one value or several.
            metadata: custom values by name.
            if_match: change it only if it is at this revision, given as one or by an `ObjectInfo`.
            timeout: total deadline.

        Raises:
            ObjectNotFoundError: it is missing.
            ObjectExistsError: there is an object or link with the new name already.
            RevisionMismatchError: it is not at the revision ``if_match``.
            BucketSealedError: the bucket is sealed.
            InvalidHeaderError: a header that no message could carry; nothing was sent.
            ValueError: description or metadata with lone surrogates; nothing was sent.
            ValueTooLargeError: name, description, headers and metadata are more than the server takes in one message.
        """
        fields = said(description=description, headers=headers, metadata=metadata)
        if name is not None and name != key:
            self._meta_subject(name)
            fields["name"] = name
        changes = {"name": key, **fields}  # other clients may have stored it under another name than it says
        condition = Condition.of(self._name, key, if_match)
        if condition.revision == 0:
            raise ValueError("a revision is 1 or more: what is described is there")
        deadline = self._deadline(timeout)
        with self._errors(deadline, "describing object", key):
            while True:
                message = self._last_meta(key, deadline, direct=False)
                meta = None if message is None else read_meta(self._name, message)
                if message is None or meta is None:
                    raise ObjectNotFoundError(self._name, key)
                condition.check(self._name, key, message, lives=True)
                described = changed(meta, message, changes)
                if not fields:
                    return to_info(self._name, described, message.sequence)
                revision = self._describe_anew(key, message, described, deadline)
                if revision is not None:
                    return to_info(self._name, described, revision)

    def _describe_anew(self, key: str, seen: StoredMessage, meta: Json, deadline: Deadline) -> int | None:
        """Put a description in the place of one that was read; return None if something else has changed meanwhile."""
        lifetime: Mapping[str, str] = _FOR_GOOD
        if self._expires or expires_by_itself(seen):
            rest = remaining(seen, self._jetstream.stream_info(self._stream, deadline))
            if rest is None:
                raise ObjectNotFoundError(self._name, key)
            lifetime = rest
        if meta["name"] == key:
            return self._store(self._conditional(meta, seen.sequence, lifetime), deadline)
        there = self._last_meta(meta["name"], deadline, direct=False)
        if there is not None and read_meta(self._name, there) is not None:
            raise ObjectExistsError(self._name, meta["name"], there.sequence)
        new = self._conditional(meta, 0 if there is None else there.sequence, lifetime)
        old = self._conditional(deletion(self._name, key), seen.sequence)
        if self._batches.allowed:
            return self._move(new, old, deadline)
        return self._move_in_steps(new, old, meta["name"], deadline)

    def _move(self, new: Conditional, old: Conditional, deadline: Deadline) -> int | None:
        try:
            return self._batches.store_all([new, old], deadline, self._describe("renaming an object"))
        except BatchRefusedError as refused:
            if isinstance(refused.reason, JetStreamAPIError) and is_conflict(refused.reason):
                return None
            raise refused.reason from refused

    def _move_in_steps(self, new: Conditional, old: Conditional, name: str, deadline: Deadline) -> int | None:
        """Store the new name first, so that the object is never without one; take it back if the old one must stay."""
        revision = self._store(new, deadline)
        if revision is None:
            return None
        try:
            if self._store(old, deadline) is not None:
                return revision
        except MonoError as error:
            if not isinstance(error, (OutcomeUnknownError, ConnectionClosedError)):
                self._take_back(name, revision, clean_up_deadline(error, deadline))
            raise
        self._take_back(name, revision, clean_up_deadline(None, deadline))
        return None

    def _take_back(self, name: str, revision: int, deadline: Deadline) -> None:
        try:
            self._store(self._conditional(deletion(self._name, name), revision), deadline)
        except MonoError as error:
            _log.warning("bucket %s: an object may be left under the name %r too: %s", self._name, name, error)

    def _conditional(self, meta: Json, expected: int, lifetime: Mapping[str, str] = _FOR_GOOD) -> Conditional:
        data = encode_meta(self._name, meta, self._connection.server_info.max_payload)
        return Conditional(self._meta_subject(meta["name"]), data, {"Nats-Rollup": "sub", **lifetime}, expected)

    def _store(self, message: Conditional, deadline: Deadline) -> int | None:
        """Store a description; return its revision, or None if another one has come in between."""
        operation, headers = self._describe("describing an object"), dict(message.headers)
        try:
            return self._writer.store(
                message.subject, message.data, headers, deadline, operation, expected=message.expected
            )
        except JetStreamAPIError as error:
            if is_conflict(error):
                return None
            raise

    # --- links

    def link(self, name: str, target: ObjectInfo | str, *, timeout: Timeout = DEFAULT) -> ObjectInfo:
        """Let a name stand for an object, and return what the bucket knows of the link.

        Whoever reads the link reads the object as it is then; `stat`, `list`, `update_meta` and `delete` mean the link
        itself. A link stays when its object is renamed or deleted, and then leads nowhere.

        Args:
            name: of the link; one that is there already is replaced.
            target: the name of an object of this bucket, or what any bucket of this server knows of an object.
            timeout: total deadline.

        Raises:
            ObjectNotFoundError: there is no object of that name in this bucket.
            ObjectExistsError: there is an object with the name of the link.
            BucketSealedError: the bucket is sealed.
            ValueError: the target is itself a link.
        """
        deadline = self._deadline(timeout)
        self._meta_subject(name)
        if isinstance(target, str):
            target = self.stat(target, timeout=deadline)
        elif not isinstance(target, ObjectInfo):
            raise TypeError(f"a link leads to an ObjectInfo or the name of an object, not {type(target).__name__}")
        if target.link is not None:
            raise ValueError(f"{target.name!r} is a link to {target.link}: link to that")
        return self._store_link(link_to(self._name, name, target.bucket, target.name), deadline)

    def link_bucket(self, name: str, bucket: Describing | str, *, timeout: Timeout = DEFAULT) -> ObjectInfo:
        """Let a name stand for an object bucket as a whole, and return what this bucket knows of the link.

        It cannot be read, but tells others where to look: its ``link`` is the name of the bucket.

        Args:
            name: of the link; one that is there already is replaced.
            bucket: an object bucket of this server, or its name.
            timeout: total deadline.

        Raises:
            ObjectExistsError: there is an object with the name of the link.
            BucketSealedError: the bucket is sealed.
            ConfigurationError: not a legal name of a bucket.
        """
        deadline = self._deadline(timeout)
        target = check_bucket_name(bucket.name if isinstance(bucket, Describing) else bucket)
        self._meta_subject(name)
        return self._store_link(link_to(self._name, name, target, None), deadline)

    def _store_link(self, meta: Json, deadline: Deadline) -> ObjectInfo:
        name = meta["name"]
        with self._errors(deadline, "storing link", name):
            while True:
                there = self._last_meta(name, deadline, direct=False)
                info = None if there is None else read_info(self._name, there)
                if info is not None and info.link is None:
                    raise ObjectExistsError(self._name, name, info.revision)
                revision = self._store(self._conditional(meta, 0 if there is None else there.sequence), deadline)
                if revision is not None:
                    return to_info(self._name, meta, revision)

    # --- copies

    def copy(self, src: str, dst: str, *, timeout: Timeout = DEFAULT) -> ObjectInfo:
        """Store an object under another name too, and return what the bucket knows of the copy.

        It is a copy of one version with its description, headers and metadata. A link is followed. What is there under
        the other name is replaced as `put` does it. The bytes go through this client, for the server cannot copy, but
        are never in memory all at once. A ttl is not copied.

        Args:
            src: name of the object.
            dst: name of the copy.
            timeout: total deadline.

        Raises:
            ObjectNotFoundError: there is nothing to copy, or it is a link, and what that leads to is missing.
            StorageError: it is a link to a bucket, or links lead in a circle, or through more than 16.
            BucketFullError: the bucket's limit is reached.
            BucketSealedError: the bucket is sealed.
            DigestMismatchError: chunks of the object are missing or damaged.
            ObjectChangedError: it was replaced again and again meanwhile.
        """
        deadline = self._deadline(timeout)
        self._meta_subject(dst)
        for _ in range(_COPY_ATTEMPTS - 1):
            with suppress(ObjectChangedError):
                return self._copy(src, dst, deadline)
        return self._copy(src, dst, deadline)

    def _copy(self, src: str, dst: str, deadline: Deadline) -> ObjectInfo:
        with self.get_reader(src, timeout=deadline) as source:
            info = source.info
            return self.put_reader(
                dst,
                source,
                description=info.description,
                headers=info.headers,
                metadata=info.metadata,
                timeout=deadline,
            )

    # --- the whole bucket

    def seal(self, *, timeout: Timeout = DEFAULT) -> None:
        """Let nothing in the bucket be changed any more, by nobody and for good. Idempotent.

        It can still be read. The ``ttl`` of the bucket ends as well: what it holds stays.
        Whoever writes gets `BucketSealedError`.
        """
        deadline = self._deadline(timeout)
        with self._errors(deadline, "sealing"):
            config = self._jetstream.stream_info(self._stream, deadline)["config"]
            if not config.get("sealed"):
                self._jetstream.update_stream(config | {"sealed": True}, deadline)

    def reset(self, *, timeout: Timeout = DEFAULT) -> None:
        """Remove every object, at once; what is written after the call began may stay.

        Nothing is left of them, so watchers are not told. Revisions go on counting. An upload that is under way loses
        the chunks that it has stored: it fails, or, if it was about to end, leaves an object that cannot be read; the
        latter also on nats-server 2.9, which miscounts.

        Raises:
            BucketSealedError: the bucket is sealed.
        """
        self._remove_all(self._deadline(timeout))
