"""A key-value bucket whose values are something else than bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Generic, TypeVar, overload

from mono_sync._durations import DEFAULT, Duration, Timeout
from mono_sync.recipes import RetryPolicy
from mono_sync.storage._codec import BucketCodec, Codec
from mono_sync.storage._values import Entry
from mono_sync.storage.kv._modify import Modifications

T = TypeVar("T")
D = TypeVar("D")


class TypedBucket(Generic[T]):
    """A bucket seen through a codec: the calls of `KVBucket`, with values of type T instead of bytes. Thread-safe.

    Guarantees, arguments and errors are those of `KVBucket`, and everywhere:

    * `CodecError`: the codec cannot encode a value, and nothing was sent; or it cannot decode what is stored.

    What has no values (locks, transactions, status, …) is with the ``bucket`` itself. Get one from
    ``bucket.typed(codec)``.

    Attributes:
        bucket: the bucket that holds the bytes.
    """

    def __init__(self, bucket: Modifications, codec: Codec[T]) -> None:
        self.bucket = bucket
        self._codec = BucketCodec(bucket.name, codec)

    @property
    def name(self) -> str:
        """Name of the bucket."""
        return self.bucket.name

    # --- reading

    @overload
    def get(self, key: str, default: None = None, *, timeout: Timeout = DEFAULT) -> T | None: ...
    @overload
    def get(self, key: str, default: D, *, timeout: Timeout = DEFAULT) -> T | D: ...

    def get(self, key: str, default: object = None, *, timeout: Timeout = DEFAULT) -> object:
        """Return the value of a key, or ``default``; see `KVBucket.get`."""
        data = self.bucket.get(key, timeout=timeout)
        return default if data is None else self._codec.decode(key, data)

    def get_entry(self, key: str, *, revision: int | None = None, timeout: Timeout = DEFAULT) -> Entry[T]:
        """Return a revision of a key; see `KVBucket.get_entry`."""
        entry = self.bucket.get_entry(key, revision=revision, timeout=timeout)
        return replace(entry, value=self._codec.decode(key, entry.value))  # type: ignore[arg-type,return-value]

    def history(self, key: str, *, timeout: Timeout = DEFAULT) -> list[Entry[T | None]]:
        """Return the revisions of a key; see `KVBucket.history`."""
        return [self._decoded(entry) for entry in self.bucket.history(key, timeout=timeout)]

    def get_many(self, keys: Iterable[str], *, timeout: Timeout = DEFAULT) -> dict[str, T]:
        """Return the values of those keys that exist; see `KVBucket.get_many`."""
        found = self.bucket.get_many(keys, timeout=timeout)
        return {key: self._codec.decode(key, data) for key, data in found.items()}

    def keys(self, pattern: str = ">", *, timeout: Timeout = DEFAULT) -> list[str]:
        """Return the live keys that match a pattern; see `KVBucket.keys`."""
        return self.bucket.keys(pattern, timeout=timeout)

    # --- writing

    def set(self, key: str, value: T, *, ttl: Duration | None = None, timeout: Timeout = DEFAULT) -> None:
        """Write a value; see `KVBucket.set`."""
        self.bucket.set(key, self._codec.encode(key, value), ttl=ttl, timeout=timeout)

    def put_with_revision(self, key: str, value: T, *, ttl: Duration | None = None, timeout: Timeout = DEFAULT) -> int:
        """Write a value and return its revision; see `KVBucket.put_with_revision`."""
        return self.bucket.put_with_revision(key, self._codec.encode(key, value), ttl=ttl, timeout=timeout)

    def create(self, key: str, value: T, *, ttl: Duration | None = None, timeout: Timeout = DEFAULT) -> int:
        """Write a value if the key is missing; see `KVBucket.create`."""
        return self.bucket.create(key, self._codec.encode(key, value), ttl=ttl, timeout=timeout)

    def update(
        self, key: str, value: T, revision: int, *, ttl: Duration | None = None, timeout: Timeout = DEFAULT
    ) -> int:
        """Write a value if the key is still at a revision; see `KVBucket.update`."""
        return self.bucket.update(key, self._codec.encode(key, value), revision, ttl=ttl, timeout=timeout)

    def set_many(
        self, values: Mapping[str, T], *, ttl: Duration | None = None, timeout: Timeout = DEFAULT
    ) -> dict[str, int]:
        """Write many values; see `KVBucket.set_many`."""
        encoded = {key: self._codec.encode(key, value) for key, value in values.items()}
        return self.bucket.set_many(encoded, ttl=ttl, timeout=timeout)

    def modify(
        self,
        key: str,
        fn: Callable[[T | None], T | None],
        *,
        ttl: Duration | None = None,
        retry: RetryPolicy | None = None,
        timeout: Timeout = DEFAULT,
    ) -> Entry[T | None]:
        """Replace a value by what ``fn`` makes of it; see `KVBucket.modify`."""

        def apply(data: bytes | None) -> bytes | None:
            value = fn(None if data is None else self._codec.decode(key, data))
            return None if value is None else self._codec.encode(key, value)

        return self._decoded(self.bucket.modify(key, apply, ttl=ttl, retry=retry or RetryPolicy(), timeout=timeout))

    def touch(self, key: str, ttl: Duration | None, *, timeout: Timeout = DEFAULT) -> int:
        """Let a key expire ``ttl`` from now, or never; see `KVBucket.touch`."""
        return self.bucket.touch(key, ttl, timeout=timeout)

    def delete(self, key: str, *, revision: int | None = None, timeout: Timeout = DEFAULT) -> None:
        """Delete a key; see `KVBucket.delete`."""
        self.bucket.delete(key, revision=revision, timeout=timeout)

    def purge(self, key: str, *, revision: int | None = None, timeout: Timeout = DEFAULT) -> None:
        """Delete a key with its history; see `KVBucket.purge`."""
        self.bucket.purge(key, revision=revision, timeout=timeout)

    def delete_many(self, keys: Iterable[str], *, timeout: Timeout = DEFAULT) -> None:
        """Delete many keys; see `KVBucket.delete_many`."""
        self.bucket.delete_many(keys, timeout=timeout)

    # --- as a dict

    def __getitem__(self, key: str) -> T:
        return self._codec.decode(key, self.bucket[key])

    def __setitem__(self, key: str, value: T) -> None:
        self.bucket[key] = self._codec.encode(key, value)

    def __delitem__(self, key: str) -> None:
        del self.bucket[key]

    def __contains__(self, key: str) -> bool:
        return key in self.bucket

    def __iter__(self) -> Iterator[str]:
        return iter(self.bucket)

    def __len__(self) -> int:
        return len(self.bucket)

    # --- values

    def _decoded(self, entry: Entry) -> Entry[T | None]:
        value = None if entry.removed else self._codec.decode(entry.key, entry.value)
        return replace(entry, value=value)  # type: ignore[arg-type,return-value]

    def __repr__(self) -> str:
        return f"<TypedBucket of {self.bucket!r}>"
