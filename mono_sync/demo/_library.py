"""The module that stores files as objects."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mono_sync import FSJetStreamPlugin, ObjectBucket, PluginModule, ServiceContainer
from mono_sync.demo._errors import DemoError
from mono_sync.demo._sources import SourceFile, Sources, by_size
from mono_sync.demo._text import printable
from mono_sync.demo._threads import Feed, share

Advance = Callable[[int], None]
"""Called with what has been done since the last call."""


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file that was stored.

    Attributes:
        name: name of the object.
        path: the file.
        size: bytes that were read and stored.
        sha256: their hash in hexadecimal, computed by the demo.
    """

    name: str
    path: Path
    size: int
    sha256: str


class Library:
    """Stores files as objects, and gives them back. Its service ``files`` is the module itself.

    Args:
        sources: the files.
        bucket: name of the object bucket.
        threads: how many store at a time.
    """

    name = "library"

    def __init__(self, sources: Sources, bucket: str, threads: int) -> None:
        self._sources = sources
        self._bucket_name = bucket
        self._threads = threads
        self._storage: FSJetStreamPlugin | None = None
        self._bucket: ObjectBucket | None = None
        self._lock = threading.Lock()
        self._stored: list[StoredFile] = []
        self._skipped: dict[str, str] = {}

    def set_plugin(self, alias: str, plugin: PluginModule) -> None:
        """Take the storage."""
        if alias == "storage" and isinstance(plugin, FSJetStreamPlugin):
            self._storage = plugin

    def register_services(self, container: ServiceContainer) -> None:
        """Offer the files to other modules."""
        container.register("files", self)

    def start(self) -> None:
        """Take the bucket."""
        if self._storage is None:
            raise DemoError("the library needs an FSJetStreamPlugin registered as 'storage'")
        self._bucket = self._storage.bucket(self._bucket_name)

    def stop(self) -> None:
        """Give the bucket back."""
        self._bucket = None

    # --- the service

    @property
    def files(self) -> list[StoredFile]:
        """What has been stored, sorted by name."""
        with self._lock:
            return sorted(self._stored, key=lambda file: file.name)

    @property
    def skipped(self) -> dict[str, str]:
        """Reason by name for files that could not be read when their turn came."""
        with self._lock:
            return dict(self._skipped)

    def store(self, advance: Advance) -> None:
        """Store every file, several at a time, and delete objects that an earlier run has left.

        Args:
            advance: called with the size of each file that is done.
        """

        def work(feed: Feed[SourceFile]) -> None:
            for file in feed:
                self._store_one(file)
                advance(file.size)

        share(by_size(self._sources.files), work, threads=self._threads, name="library")
        if not self._stored:
            raise DemoError(f"none of the files in {printable(self._sources.directory)} could be read")
        bucket, stored = self._open_bucket(), {file.name for file in self._stored}
        for info in bucket.list():
            if info.name not in stored:
                bucket.delete(info.name)

    def read(self, name: str) -> bytes | None:
        """Return the bytes of an object; None if it is missing."""
        return self._open_bucket().get(name)

    def _store_one(self, file: SourceFile) -> None:
        try:
            data = file.path.read_bytes()
        except OSError as error:
            with self._lock:
                self._skipped[file.name] = error.strerror or str(error)
            return
        self._open_bucket().put(file.name, data)
        stored = StoredFile(file.name, file.path, len(data), hashlib.sha256(data).hexdigest())
        with self._lock:
            self._stored.append(stored)

    def _open_bucket(self) -> ObjectBucket:
        if self._bucket is None:
            raise DemoError("the library has been stopped")
        return self._bucket
