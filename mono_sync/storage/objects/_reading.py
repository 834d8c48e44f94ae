"""Reading objects."""

from __future__ import annotations

import io
from functools import partial
from typing import Self, TypeVar, overload

from mono_sync._durations import DEFAULT, Deadline, Timeout
from mono_sync.errors import (
    ConfigurationError,
    DigestMismatchError,
    InvalidKeyError,
    ObjectChangedError,
    ObjectNotFoundError,
    StorageError,
)
from mono_sync.storage._names import check_bucket_name, check_object_name
from mono_sync.storage.objects._catalog import Catalog
from mono_sync.storage.objects._info import ObjectInfo
from mono_sync.storage.objects._reader import ObjectReader
from mono_sync.storage.objects._sink import number_of_chunk
from mono_sync.storage.objects._source import Source

R = TypeVar("R", bound=ObjectReader)
T = TypeVar("T")

_READ_ATTEMPTS = 100  # a few milliseconds each; many may be replacing it all the time
_MOST_LINKS = 16


class Reading(Catalog):
    """The part of an object bucket that reads."""

    @overload
    def get(self, key: str, default: None = None, *, timeout: Timeout = DEFAULT) -> bytes | None: ...
    @overload
    def get(self, key: str, default: T, *, timeout: Timeout = DEFAULT) -> bytes | T: ...

    def get(self, key: str, default: object = None, *, timeout: Timeout = DEFAULT) -> object:
        """Return the bytes of an object, or ``default`` when it is missing. Links are followed.

        They are those of one version, and their digest has been verified.

        Raises:
            DigestMismatchError: chunks are missing or damaged.
            ObjectChangedError: it was replaced again and again while being read.
            StorageError: it is a link to a bucket, or links lead in a circle.
        """
        deadline, previous = self._deadline(timeout), None
        for _ in range(_READ_ATTEMPTS):
            found = self._resolve(key, deadline, direct=None if previous is None else False)
            if found is None or found[1] == previous:  # no other one came: it expires, its chunks first
                return default
            previous = found[1]
            try:
                return found[0]._read(found[1], deadline)  # noqa: SLF001  # perhaps another bucket of this class
            except ObjectChangedError:
                continue
        raise ObjectChangedError(self._name, key)

    def get_reader(self, key: str, *, timeout: Timeout = DEFAULT) -> ObjectReader:
        """Open an object for reading. Links are followed.

        Args:
            key: its name.
            timeout: deadline of this call, and of each call of the stream.

        Raises:
            ObjectNotFoundError: it is missing.
            StorageError: it is a link to a bucket, or links lead in a circle.
        """
        return self._new_reader(ObjectReader, key, timeout)

    def _new_reader(self, kind: type[R], key: str, timeout: Timeout) -> R:
        found = self._resolve(key, self._deadline(timeout))
        if found is None:
            raise ObjectNotFoundError(self._name, key)
        bucket, info = found
        source = bucket._source(info)  # noqa: SLF001  # perhaps another bucket of this class
        return kind(source, timeout=timeout, default_timeout=self._connection.config.call_timeout)

    def _resolve(self, key: str, deadline: Deadline, *, direct: bool | None = None) -> tuple[Self, ObjectInfo] | None:
        """Return the description of an object, and the bucket in which it is; links are followed."""
        bucket, name = self, key
        for _ in range(_MOST_LINKS):
            info = bucket._find(name, deadline, direct=direct)
            if info is None or info.link is None:
                return None if info is None else (bucket, info)
            target, is_object, name = info.link.partition("/")
            if not is_object:
                raise StorageError(f"object {key!r} of bucket {self._name!r} is a link to a bucket, {target!r}")
            try:
                check_bucket_name(target)
                check_object_name(name)
            except (ConfigurationError, InvalidKeyError) as error:
                reason = f"object {key!r} of bucket {self._name!r} is a link to what cannot exist: {error}"
                raise StorageError(reason) from error
            if target != bucket.name:
                bucket = type(self).bind(self._connection, target, timeout=deadline)
        raise StorageError(f"object {key!r} of bucket {self._name!r} is a link to a link, and so on without an end")

    def _source(self, info: ObjectInfo) -> Source:
        return Source(
            self._connection,
            self._jetstream,
            self._stream,
            info,
            direct=self._direct,
            explain=self._explain,
            check=partial(self._check, info),
        )

    def _read(self, info: ObjectInfo, deadline: Deadline) -> bytes:
        """Return the content of a version."""
        source, content = self._source(info), io.BytesIO()
        try:
            while content.tell() < info.size:
                _, data = source.chunk_at(content.tell(), info.size, deadline)
                if len(data) == info.size:
                    return data
                content.write(data)
        finally:
            source.close()
        return content.getvalue()

    def _check(self, info: ObjectInfo, deadline: Deadline) -> None:
        """Return if all chunks of a version are there.

        Raises:
            ObjectChangedError: it was replaced, was deleted or expires.
            DigestMismatchError: it should be there.
        """
        subject = f"$O.{self._name}.C.{info.nuid}"
        stream = self._jetstream.api(f"STREAM.INFO.{self._stream}", {"subjects_filter": subject}, deadline)
        state = stream["state"]
        count = (state.get("subjects") or {}).get(subject, 0)
        if count == info.chunks:
            return
        newest = self._find(info.name, deadline, direct=False)
        if newest is None or newest.nuid != info.nuid:
            raise ObjectChangedError(self._name, info.name)
        expires = stream["config"].get("max_age")  # as it is now: the bucket may have got a ttl since it was opened
        if expires and self._has_lost_its_beginning(newest, count, state["first_seq"], deadline):
            raise ObjectChangedError(self._name, info.name)  # chunks are older than the description, and go first
        raise DigestMismatchError(self._name, info.name, f"{count} of {info.chunks} chunks are left")

    def _has_lost_its_beginning(self, info: ObjectInfo, count: int, first_of_stream: int, deadline: Deadline) -> bool:
        """Return whether chunks that were left, and counted, a moment ago are the last ones, as far as can be told."""
        first = self._jetstream.next_of(self._stream, f"$O.{self._name}.C.{info.nuid}", 1, deadline)
        if first is None:
            return True
        number = number_of_chunk(first)
        if number is not None:
            return number > 0 and count >= info.chunks - number  # more: it has lost some of them since
        return count == 1 or first_of_stream > info.revision - info.chunks
