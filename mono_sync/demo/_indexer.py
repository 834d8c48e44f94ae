"""The module that counts words in a key-value bucket, from several threads at once."""

from __future__ import annotations

import json
import random
import zlib
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

from mono_sync import (
    KeyExistsError,
    KeyNotFoundError,
    KVBucket,
    KVJetStreamPlugin,
    PluginModule,
    RevisionMismatchError,
    ServiceContainer,
)
from mono_sync.demo._cache import CachePlugin, CachePort
from mono_sync.demo._errors import DemoError
from mono_sync.demo._library import Advance, Library, StoredFile
from mono_sync.demo._threads import Feed, share
from mono_sync.demo._words import count_words

_BATCH = 20_000
"""Words that a thread collects before it merges them into the bucket."""

_MAX_ATTEMPTS = 1000


@dataclass(frozen=True, slots=True)
class Shard:
    """The counts under one key, as they were at one revision; revision 0 is a key that does not exist yet."""

    counts: Mapping[str, int] = field(default_factory=dict)
    revision: int = 0


@dataclass(slots=True)
class IndexStatistics:
    """What the index has cost.

    Attributes:
        words: words counted.
        writes: writes that succeeded.
        conflicts: writes that were refused because somebody else had been faster.
        most_attempts: attempts of the write that needed most.
    """

    words: int = 0
    writes: int = 0
    conflicts: int = 0
    most_attempts: int = 0

    @property
    def attempts_per_success(self) -> float:
        """1 means that nobody ever met."""
        return (self.writes + self.conflicts) / max(1, self.writes)

    def add(self, other: IndexStatistics) -> None:
        """Add what another thread has counted."""
        self.words += other.words
        self.writes += other.writes
        self.conflicts += other.conflicts
        self.most_attempts = max(self.most_attempts, other.most_attempts)


class Indexer:
    """Counts the words of the library's files. Its service ``index`` is the module itself.

    The words are spread over a number of keys, each of which holds a JSON object of counts. Every thread collects the
    words of several files and merges them key by key, with optimistic locking: it writes on top of the revision that it
    has seen last, and begins again with the newest one when another thread was faster.

    Args:
        bucket: name of the key-value bucket.
        threads: how many index at a time.
        shards: number of keys; the fewer, the more often threads meet.
    """

    name = "indexer"
    dependencies = ("library",)

    def __init__(self, bucket: str, threads: int, shards: int) -> None:
        self._bucket_name = bucket
        self._threads = threads
        self._shards = shards
        self._kv: KVJetStreamPlugin | None = None
        self._bucket: KVBucket | None = None
        self._cache: CachePort[Shard] | None = None
        self._library: Library | None = None

    def set_plugin(self, alias: str, plugin: PluginModule) -> None:
        """Take the key-value storage and the cache."""
        if alias == "kv" and isinstance(plugin, KVJetStreamPlugin):
            self._kv = plugin
        elif alias == "cache" and isinstance(plugin, CachePlugin):
            self._cache = plugin.port

    def set_dependency_container(self, name: str, container: ServiceContainer) -> None:
        """Take the library's service."""
        if name == "library":
            self._library = container.get("files")

    def register_services(self, container: ServiceContainer) -> None:
        """Offer the index to other modules."""
        container.register("index", self)

    def start(self) -> None:
        """Take the bucket."""
        if self._kv is None or self._cache is None:
            raise DemoError("the indexer needs a KVJetStreamPlugin as 'kv' and a CachePlugin as 'cache'")
        self._bucket = self._kv.bucket(self._bucket_name)

    def stop(self) -> None:
        """Give the bucket back."""
        self._bucket = None

    # --- the service

    def build(self, advance: Advance) -> IndexStatistics:
        """Count the words of every file in the library, from nothing.

        Args:
            advance: called with the size of each file that has been read.
        """
        library, bucket = self._library, self._open_bucket()
        assert library is not None, "a dependency has started before"
        for key in bucket.keys("words.*"):
            bucket.purge(key)

        def work(feed: Feed[StoredFile]) -> IndexStatistics:
            statistics, batch = IndexStatistics(), Counter[str]()
            for file in feed:
                batch.update(count_words(library.read(file.name) or b""))
                if batch.total() >= _BATCH:
                    self._merge(batch, feed, statistics)
                    batch = Counter()
                advance(file.size)
            self._merge(batch, feed, statistics)
            return statistics

        total = IndexStatistics()
        for statistics in share(library.files, work, threads=self._threads, name="indexer"):
            total.add(statistics)
        return total

    def totals(self) -> tuple[Counter[str], int]:
        """Return the counts as they stand in the bucket, and the number of keys that hold them."""
        bucket, totals = self._open_bucket(), Counter[str]()
        keys = bucket.keys("words.*")
        for key in keys:
            totals.update(_decode(bucket.get(key, b"{}")))
        return totals, len(keys)

    # --- optimistic locking

    def _merge(self, batch: Counter[str], feed: Feed[StoredFile], statistics: IndexStatistics) -> None:
        shards: dict[str, dict[str, int]] = defaultdict(dict)
        for word, count in batch.items():
            shards[f"words.{zlib.crc32(word.encode()) % self._shards:04d}"][word] = count
        for key, counts in shards.items():
            conflicts = self._merge_shard(key, counts, feed)
            statistics.conflicts += conflicts
            statistics.most_attempts = max(statistics.most_attempts, conflicts + 1)
        statistics.words += batch.total()
        statistics.writes += len(shards)

    def _merge_shard(self, key: str, counts: Mapping[str, int], feed: Feed[StoredFile]) -> int:
        """Add counts to those under a key; return how many attempts were in vain."""
        bucket, cache = self._open_bucket(), self._cache
        assert cache is not None, "start() has made sure"
        for conflicts in range(_MAX_ATTEMPTS):
            feed.pause(random.uniform(0, 0.001 * conflicts))
            shard = cache.get(key) or _load(bucket, key)
            merged = {**shard.counts, **{word: shard.counts.get(word, 0) + count for word, count in counts.items()}}
            value = json.dumps(merged, ensure_ascii=False, separators=(",", ":")).encode()
            try:
                revision = bucket.update(key, value, shard.revision) if shard.revision else bucket.create(key, value)
            except (KeyExistsError, RevisionMismatchError):
                cache.delete(key)
                continue
            cache.set(key, Shard(merged, revision))
            return conflicts
        raise DemoError(f"key {key} was changed by others {_MAX_ATTEMPTS} times in a row: use a --bucket of your own")

    def _open_bucket(self) -> KVBucket:
        if self._bucket is None:
            raise DemoError("the indexer has been stopped")
        return self._bucket


def _load(bucket: KVBucket, key: str) -> Shard:
    try:
        entry = bucket.get_entry(key)
    except KeyNotFoundError:
        return Shard()
    return Shard(_decode(entry.value), entry.revision)


def _decode(value: bytes) -> dict[str, int]:
    counts: dict[str, int] = json.loads(value)
    return counts
