"""Which objects a bucket has."""

from __future__ import annotations

from typing import ClassVar

from mono_sync._durations import DEFAULT, Deadline, Timeout
from mono_sync.connection import CoreConnection, Json, StoredMessage
from mono_sync.errors import ObjectNotFoundError
from mono_sync.storage._bucket import Bucket, check_subject_length
from mono_sync.storage._config import BucketConfig, FSBucketConfig
from mono_sync.storage._names import check_object_name, encode_object_name
from mono_sync.storage._values import ObjectInfo
from mono_sync.storage.objects._chunks import Chunks
from mono_sync.storage.objects._meta import read_info


class Catalog(Bucket[FSBucketConfig]):
    """The part of an object bucket that knows which objects there are."""

    _config_type: ClassVar[type[BucketConfig]] = FSBucketConfig

    def __init__(self, connection: CoreConnection, name: str, info: Json, *, stale_reads: bool) -> None:
        super().__init__(connection, name, info, stale_reads=stale_reads)
        self._chunks = Chunks(connection, self._jetstream, name, self._stream)
        self._expires = bool(info["config"].get("max_age"))

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
