"""What code that only needs key-value storage may ask for: a structural type, which any test double can fulfil."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Protocol, overload, runtime_checkable

from typing_extensions import TypeVar

from mono_sync._durations import DEFAULT, Duration, Timeout
from mono_sync.storage._values import BucketStatus, Entry
from mono_sync.storage._watcher import Watcher

T = TypeVar("T")
V = TypeVar("V", default=bytes)


@runtime_checkable
class KVStoragePort(Protocol[V]):
    """Key-value storage of values of type V, bytes if none is named; `KVBucket` has the contract of each call.

    A `KVBucket` is one of bytes, a `TypedBucket` one of its values.
    """

    @property
    def name(self) -> str:
        """Name of the bucket."""

    @overload
    def get(self, key: str, default: None = None, *, timeout: Timeout = DEFAULT) -> V | None: ...
    @overload
    def get(self, key: str, default: T, *, timeout: Timeout = DEFAULT) -> V | T: ...

    def get_entry(self, key: str, *, timeout: Timeout = DEFAULT) -> Entry[V]:
        """Return the newest revision of a key."""

    def set(self, key: str, value: V, *, ttl: Duration | None = None, timeout: Timeout = DEFAULT) -> None:
        """Write a value."""

    def put_with_revision(self, key: str, value: V, *, ttl: Duration | None = None, timeout: Timeout = DEFAULT) -> int:
        """Write a value and return its revision."""

    def create(self, key: str, value: V, *, ttl: Duration | None = None, timeout: Timeout = DEFAULT) -> int:
        """Write a value if the key is missing."""

    def update(
        self, key: str, value: V, revision: int, *, ttl: Duration | None = None, timeout: Timeout = DEFAULT
    ) -> int:
        """Write a value if the key is still at a revision."""

    def delete(self, key: str, *, revision: int | None = None, timeout: Timeout = DEFAULT) -> None:
        """Delete a key."""

    def purge(self, key: str, *, revision: int | None = None, timeout: Timeout = DEFAULT) -> None:
        """Delete a key with its history."""

    def get_many(self, keys: Iterable[str], *, timeout: Timeout = DEFAULT) -> dict[str, V]:
        """Return the values of those keys that are there."""

    def set_many(
        self, mapping: Mapping[str, V], *, ttl: Duration | None = None, timeout: Timeout = DEFAULT
    ) -> dict[str, int]:
        """Write many values and return their revisions."""

    def delete_many(self, keys: Iterable[str], *, timeout: Timeout = DEFAULT) -> None:
        """Delete many keys."""

    def keys(self, pattern: str = ">", *, timeout: Timeout = DEFAULT) -> list[str]:
        """Return the live keys that match a pattern."""

    def watch(
        self,
        pattern: str,
        *,
        include_history: bool = False,
        updates_only: bool = False,
        ignore_deletes: bool = False,
        meta_only: bool = False,
        resume_from: int | None = None,
        timeout: Timeout = DEFAULT,
    ) -> Watcher[V | None]:
        """Return a watcher of the keys that match a pattern."""

    def watch_all(
        self,
        *,
        include_history: bool = False,
        updates_only: bool = False,
        ignore_deletes: bool = False,
        meta_only: bool = False,
        resume_from: int | None = None,
        timeout: Timeout = DEFAULT,
    ) -> Watcher[V | None]:
        """Return a watcher of all keys."""

    def status(self, *, timeout: Timeout = DEFAULT) -> BucketStatus:
        """Return size and limits, and count the keys."""

    def purge_deletes(self, older_than: Duration = ..., *, timeout: Timeout = DEFAULT) -> int:
        """Remove the marks of deletions that are older."""

    def reset(self, *, timeout: Timeout = DEFAULT) -> None:
        """Remove every key."""

    def __getitem__(self, key: str) -> V: ...
    def __setitem__(self, key: str, value: V) -> None: ...
    def __delitem__(self, key: str) -> None: ...
    def __contains__(self, key: str) -> bool: ...
    def __iter__(self) -> Iterator[str]: ...
    def __len__(self) -> int: ...
