"""What code that only needs object storage may ask for: a structural type, which any test double can fulfil."""

from __future__ import annotations

import io
from typing import Protocol, TypeAlias, overload, runtime_checkable

from typing_extensions import TypeVar

from mono_sync._durations import DEFAULT, Duration, Timeout
from mono_sync.adapter import Payload
from mono_sync.storage._values import BucketStatus
from mono_sync.storage._watcher import Watcher
from mono_sync.storage.objects._info import Folder, ObjectInfo
from mono_sync.storage.objects._meta import Headers, Metadata
from mono_sync.storage.objects._progress import Progress
from mono_sync.storage.objects._source_file import Readable

_Infos: TypeAlias = list[ObjectInfo]  # where list is a method
T = TypeVar("T")


@runtime_checkable
class FileStoragePort(Protocol):
    """Object storage; `ObjectBucket` has the contract of each call."""

    @property
    def name(self) -> str:
        """Name of the bucket."""

    @overload
    def get(self, key: str, default: None = None, *, timeout: Timeout = DEFAULT) -> bytes | None: ...
    @overload
    def get(self, key: str, default: T, *, timeout: Timeout = DEFAULT) -> bytes | T: ...

    def get_reader(self, key: str, *, timeout: Timeout = DEFAULT) -> io.BufferedIOBase:
        """Open an object for reading."""

    def set(self, key: str, data: Payload, *, ttl: Duration | None = None, timeout: Timeout = DEFAULT) -> None:
        """Store an object."""

    def put(
        self,
        key: str,
        data: Payload,
        *,
        description: str = "",
        headers: Headers | None = None,
        metadata: Metadata | None = None,
        ttl: Duration | None = None,
        if_match: ObjectInfo | int | None = None,
        timeout: Timeout = DEFAULT,
    ) -> ObjectInfo:
        """Store an object and return what the bucket knows of it."""

    def put_reader(
        self,
        key: str,
        fileobj: Readable,
        *,
        description: str = "",
        headers: Headers | None = None,
        metadata: Metadata | None = None,
        ttl: Duration | None = None,
        if_match: ObjectInfo | int | None = None,
        progress: Progress | None = None,
        resume: str | None = None,
        timeout: Timeout = DEFAULT,
    ) -> ObjectInfo:
        """Store what a binary file has, and return what the bucket knows of it."""

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
        """Change the name of an object, or what is said of it."""

    def copy(self, src: str, dst: str, *, timeout: Timeout = DEFAULT) -> ObjectInfo:
        """Store an object under another name too."""

    def delete(self, key: str, *, timeout: Timeout = DEFAULT) -> None:
        """Delete an object."""

    def stat(self, key: str, *, timeout: Timeout = DEFAULT) -> ObjectInfo:
        """Return size, digest and description."""

    def exists(self, key: str, *, timeout: Timeout = DEFAULT) -> bool:
        """Return whether there is such an object."""

    @overload
    def list(self, prefix: str | None = None, *, delimiter: None = None, timeout: Timeout = DEFAULT) -> _Infos: ...
    @overload
    def list(self, prefix: str | None = None, *, delimiter: str, timeout: Timeout = DEFAULT) -> Folder: ...

    def watch(
        self,
        prefix: str | None = None,
        *,
        updates_only: bool = False,
        ignore_deletes: bool = False,
        resume_from: int | None = None,
        timeout: Timeout = DEFAULT,
    ) -> Watcher[ObjectInfo | None]:
        """Return a watcher of the objects whose names begin with a prefix."""

    def status(self, *, timeout: Timeout = DEFAULT) -> BucketStatus:
        """Return size and limits, and count the objects."""

    def reset(self, *, timeout: Timeout = DEFAULT) -> None:
        """Remove every object."""
