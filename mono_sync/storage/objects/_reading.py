"""Reading objects."""

from __future__ import annotations

from typing import TypeVar, overload

from mono_sync._durations import DEFAULT, Deadline, Timeout
from mono_sync.errors import DigestMismatchError, ObjectChangedError, StorageError
from mono_sync.storage._values import ObjectInfo
from mono_sync.storage.objects._catalog import Catalog

T = TypeVar("T")

_READ_ATTEMPTS = 10


class Reading(Catalog):
    """The part of an object bucket that reads."""

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

    def _is_expiring(self, info: ObjectInfo, deadline: Deadline) -> bool:
        """Return whether chunks are missing because they, older than the description, have expired before it."""
        if not self._expires:
            return False
        with self._errors(deadline, "reading object", info.name):
            state = self._jetstream.stream_info(self._stream, deadline)["state"]
        return bool(state["first_seq"] > info.revision - info.chunks)
