"""The key-value bucket: of bytes, and of other values."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Generic, TypeVar, overload

from mono_sync._durations import DEFAULT, Duration, Timeout
from mono_sync.recipes import Lock, RetryPolicy
from mono_sync.storage._codec import BucketCodec, Codec, without_value
from mono_sync.storage._values import BucketStatus, Entry
from mono_sync.storage._watcher import Watcher
from mono_sync.storage.kv._many import HALF_AN_HOUR
from mono_sync.storage.kv._modify import DEFAULT_POLICY
from mono_sync.storage.kv._transaction import Transaction
from mono_sync.storage.kv._watching import Watches, WatchOptions

T = TypeVar("T")
D = TypeVar("D")


class KVBucket(Watches):
    """A key-value bucket (NATS ADR-8). Thread-safe; other NATS clients read what it writes and the reverse.

    Keys are letters, digits and ``- / _ = .``; values are bytes. Every call takes ``timeout``, a total deadline in
    seconds; omitted, it is the connection's.

    Every write happens once: it carries an id (`Nats-Msg-Id`), and when its answer is lost, because the connection
    breaks or the server restarts, it is looked for and sent again until the deadline. Reads are repeated as well. While
    there is no connection, calls wait within their deadlines. A client reads its own writes, from the bucket's leader
    where it is replicated, unless the bucket was opened with ``stale_reads``.

    Calls may raise, besides what they list:

    * `OperationTimeoutError`: the deadline passed. A write has not happened and never will, unless the error is the
      kind `OutcomeUnknownError`.
    * `OutcomeUnknownError`: the answer to a write was lost, and whether it happened could not be found out.
    * `ConnectionClosedError`: the connection is closed; a write under way may have happened.
    * `BucketNotFoundError`: the bucket was deleted meanwhile.
    * `InvalidKeyError`, `TypeError`: bad key or value; nothing was sent.
    * `JetStreamUnavailableError`: the server has no JetStream, or no leader for the bucket until the deadline.

    Get one from a plugin, or from ``connection.kv(name)``.
    """

    def typed(self, codec: Codec[T]) -> TypedBucket[T]:
        """Return this bucket seen through a codec, such as `JSONCodec`: values of its type instead of bytes."""
        return TypedBucket(self, codec)


class TypedBucket(Generic[T]):
    """A bucket seen through a codec: the calls of `KVBucket`, with values of type T instead of bytes. Thread-safe.

    Guarantees, arguments and errors are those of `KVBucket`, and everywhere:

    * `CodecError`: the codec cannot encode a value, and nothing was sent; or it cannot decode what is stored, and the
      ``bucket`` still has the bytes.

    An entry has None for its value where there is none: in deletions, and with ``meta_only``. Get one from
    ``bucket.typed(codec)``.

    Attributes:
        bucket: the bucket that holds the bytes.
    """

    def __init__(self, bucket: KVBucket, codec: Codec[T]) -> None:
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
        return self._codec.decode_entry(self.bucket.get_entry(key, revision=revision, timeout=timeout))

    def history(self, key: str, *, timeout: Timeout = DEFAULT) -> list[Entry[T | None]]:
        """Return the revisions of a key; see `KVBucket.history`."""
        return list(map(self._codec.decode_revision, self.bucket.history(key, timeout=timeout)))

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
        self, mapping: Mapping[str, T], *, ttl: Duration | None = None, timeout: Timeout = DEFAULT
    ) -> dict[str, int]:
        """Write many values; see `KVBucket.set_many`."""
        encoded = {key: self._codec.encode(key, value) for key, value in mapping.items()}
        return self.bucket.set_many(encoded, ttl=ttl, timeout=timeout)

    def modify(
        self,
        key: str,
        fn: Callable[[T | None], T | None],
        *,
        ttl: Duration | None = None,
        retry: RetryPolicy = DEFAULT_POLICY,
        timeout: Timeout = DEFAULT,
    ) -> Entry[T | None]:
        """Replace a value by what ``fn`` makes of it; see `KVBucket.modify`."""

        def apply(data: bytes | None) -> bytes | None:
            return self._encode(key, fn(self._decode(key, data)))

        return self._codec.decode_revision(self.bucket.modify(key, apply, ttl=ttl, retry=retry, timeout=timeout))

    def modify_many(
        self,
        keys: Iterable[str],
        fn: Callable[[dict[str, T | None]], Mapping[str, T | None]],
        *,
        ttl: Duration | None = None,
        retry: RetryPolicy = DEFAULT_POLICY,
        timeout: Timeout = DEFAULT,
    ) -> dict[str, int]:
        """Replace the values of several keys by what ``fn`` makes of all of them; see `KVBucket.modify_many`."""

        def apply(found: dict[str, bytes | None]) -> dict[str, bytes | None]:
            values = fn({key: self._decode(key, data) for key, data in found.items()})
            return {key: self._encode(key, value) for key, value in values.items()}

        return self.bucket.modify_many(keys, apply, ttl=ttl, retry=retry, timeout=timeout)

    def transaction(self, *, timeout: Timeout = DEFAULT) -> Transaction[T, T]:
        """Return a context manager whose reads and writes of several keys happen as one; see `KVBucket.transaction`."""
        codec = self._codec
        return self.bucket._transaction(codec.decode_entry, codec.encode, timeout)  # noqa: SLF001  # of this module

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

    # --- watching

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
    ) -> Watcher[T | None]:
        """Return a watcher of the keys that match a pattern; see `KVBucket.watch`, and `Watcher` for `CodecError`."""
        view = without_value if meta_only else self._codec.decode_revision
        options = WatchOptions(include_history, updates_only, ignore_deletes, meta_only, resume_from)
        return self.bucket._watch(pattern, view, options, timeout)  # noqa: SLF001  # of this module

    def watch_all(
        self,
        *,
        include_history: bool = False,
        updates_only: bool = False,
        ignore_deletes: bool = False,
        meta_only: bool = False,
        resume_from: int | None = None,
        timeout: Timeout = DEFAULT,
    ) -> Watcher[T | None]:
        """Return a watcher of all keys; see `watch`."""
        return self.watch(
            ">",
            include_history=include_history,
            updates_only=updates_only,
            ignore_deletes=ignore_deletes,
            meta_only=meta_only,
            resume_from=resume_from,
            timeout=timeout,
        )

    # --- without values

    def lock(self, name: str, *, ttl: Duration = 10, timeout: Timeout = DEFAULT) -> Lock:
        """Return a lock on a name; see `KVBucket.lock`."""
        return self.bucket.lock(name, ttl=ttl, timeout=timeout)

    def status(self, *, timeout: Timeout = DEFAULT) -> BucketStatus:
        """Return size and limits of the bucket; see `KVBucket.status`."""
        return self.bucket.status(timeout=timeout)

    def purge_deletes(self, older_than: Duration = HALF_AN_HOUR, *, timeout: Timeout = DEFAULT) -> int:
        """Remove the marks of deletions; see `KVBucket.purge_deletes`."""
        return self.bucket.purge_deletes(older_than, timeout=timeout)

    def reset(self, *, timeout: Timeout = DEFAULT) -> None:
        """Remove every key with its history; see `KVBucket.reset`."""
        self.bucket.reset(timeout=timeout)

    # --- as a dict

    def __getitem__(self, key: str) -> T:
        return self.get_entry(key).value

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

    def __bool__(self) -> bool:
        """Every bucket is true, also an empty one: the question costs nothing."""
        return True

    # --- values

    def _decode(self, key: str, data: bytes | None) -> T | None:
        return None if data is None else self._codec.decode(key, data)

    def _encode(self, key: str, value: T | None) -> bytes | None:
        return None if value is None else self._codec.encode(key, value)

    def __repr__(self) -> str:
        return f"<TypedBucket of {self.bucket!r}>"
