"""Reading objects."""

from __future__ import annotations

import io
from functools import partial
from typing import Self, TypeVar, overload

from mono_sync._durations import DEFAULT, Deadline, Timeout
from mono_sync.errors import (
    BucketNotFoundError,
    ConfigurationError,
    DigestMismatchError,
    InvalidKeyError,
    ObjectChangedError,
    ObjectNotFoundError,
    StorageError,
)
from mono_sync.storage.objects._catalog import Catalog
from mono_sync.storage.objects._info import ObjectInfo
from mono_sync.storage.objects._reader import ObjectReader
from mono_sync.storage.objects._sink import number_of_chunk
from mono_sync.storage.objects._source import Source

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

        They are those of one version, and their digest has been verified. A link whose object is missing, or the bucket
        of that, is missing here.

        Raises:
            DigestMismatchError: chunks are missing or damaged.
            ObjectChangedError: it was replaced again and again while being read.
            StorageError: it is a link to a bucket, or links lead in a circle, or through more than 16.
        """
        deadline, previous = self._deadline(timeout), None
        for _ in range(_READ_ATTEMPTS):
            try:
                bucket, info = self._resolve(key, deadline, direct=None if previous is None else False)
            except ObjectNotFoundError:
                return default
            if info == previous:  # no other one came: it expires, its chunks first
                return default
            previous = info
            try:
                return bucket._read(info, deadline)  # noqa: SLF001  # perhaps another bucket of this class
            except ObjectChangedError:
                continue
        raise ObjectChangedError(self._name, key)

    def get_reader(self, key: str, *, timeout: Timeout = DEFAULT) -> ObjectReader:
        """Open an object for reading. Links are followed.

        Args:
            key: its name.
            timeout: deadline of this call, and of each call of the stream.

        Raises:
            ObjectNotFoundError: it is missing; or it is a link, and its object is missing, or the bucket of that.
            StorageError: it is a link to a bucket, or links lead in a circle, or through more than 16.
        """
        bucket, info = self._resolve(key, self._deadline(timeout))
        source = bucket._source(info)  # noqa: SLF001  # perhaps another bucket of this class
        return ObjectReader(source, timeout=timeout, default_timeout=self._connection.config.call_timeout)

    def _resolve(self, key: str, deadline: Deadline, *, direct: bool | None = None) -> tuple[Self, ObjectInfo]:
        """Return the description of an object, and the bucket in which it is; links are followed."""
        info, links = self._find(key, deadline, direct=direct), list[str]()
        if info is None:
            raise ObjectNotFoundError(self._name, key)
        bucket, it_is = self, f"object {key!r} of bucket {self._name!r} is a link"
        while info.link is not None:
            if info.link in links:
                raise StorageError(f"{it_is} to a link, and so on without an end")
            if len(links) == _MOST_LINKS:
                raise StorageError(f"{it_is} to a link, and so on for more than {_MOST_LINKS} links")
            if "/" not in info.link:
                raise StorageError(f"{it_is} to a bucket, {info.link!r}")
            links.append(info.link)
            try:
                bucket, found = bucket._find_linked(info.link, deadline, direct=direct)
            except BucketNotFoundError as error:
                raise ObjectNotFoundError(self._name, key, link=info.link) from error
            except (ConfigurationError, InvalidKeyError) as error:
                raise StorageError(f"{it_is} to what cannot exist: {error}") from error
            if found is None:
                raise ObjectNotFoundError(self._name, key, link=info.link)
            info = found
        return bucket, info

    def _find_linked(self, link: str, deadline: Deadline, *, direct: bool | None) -> tuple[Self, ObjectInfo | None]:
        """Return what a link of this bucket leads to, and the bucket in which that is."""
        target, _, name = link.partition("/")
        bucket = self if target == self._name else type(self).bind(self._connection, target, timeout=deadline)
        return bucket, bucket._find(name, deadline, direct=direct)  # noqa: SLF001  # perhaps another one

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

    def _check(self, info: ObjectInfo, deadline: Deadline, *, later: bool = False) -> None:
        """Return if all chunks of a version are there, and no ``later`` ones.

        Raises:
            ObjectChangedError: it was replaced, was deleted or expires.
            DigestMismatchError: it should be there.
        """
        subject = f"$O.{self._name}.C.{info.nuid}"
        count, stream = self._jetstream.count(self._stream, subject, deadline)
        if count == info.chunks and not later:
            return
        newest = self._find(info.name, deadline, direct=False)
        if newest is None or _content(newest) != _content(info):
            raise ObjectChangedError(self._name, info.name)
        expires = stream["config"].get("max_age")  # as it is now: the bucket may have got a ttl since it was opened
        if expires and self._has_lost_its_beginning(newest, count, stream["state"]["first_seq"], deadline):
            raise ObjectChangedError(self._name, info.name)  # chunks are older than the description, and go first
        damage = "a chunk was stored behind the description" if later else f"{count} of {info.chunks} chunks are left"
        raise DigestMismatchError(self._name, info.name, damage)

    def _has_lost_its_beginning(self, info: ObjectInfo, count: int, first_of_stream: int, deadline: Deadline) -> bool:
        """Return whether chunks that were left, and counted, a moment ago are the last ones, as far as can be told."""
        first = self._jetstream.next_of(self._stream, f"$O.{self._name}.C.{info.nuid}", 1, deadline)
        if first is None:
            return True
        number = number_of_chunk(first)
        if number is not None:
            return number > 0 and count >= info.chunks - number  # more: it has lost some of them since
        return count == 1 or first_of_stream > info.revision - info.chunks


def _content(info: ObjectInfo) -> tuple[object, ...]:
    """Return what two versions do not have in common, unless only what describes them differs.

    Of repeated uploads by one text the chunks have the same name.
    """
    return info.nuid, info.modified, info.size, info.digest
