"""A plugin of the demo's own: an in-memory cache whose entries expire."""

from __future__ import annotations

import threading
import time
import weakref
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from mono_sync import ServiceContainer

V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class CacheStatistics:
    """How often the cache was asked, and how often it had an answer."""

    hits: int = 0
    misses: int = 0

    @property
    def hit_rate(self) -> float:
        """Hits per question, 0 to 1."""
        return self.hits / max(1, self.hits + self.misses)


class CachePort(Protocol[V]):
    """What a module sees of the cache."""

    def get(self, key: str) -> V | None:
        """Return a value, or None when it is missing or expired."""

    def set(self, key: str, value: V, *, ttl: float | None = None) -> None:
        """Keep a value for ``ttl`` seconds; None is the default of the cache."""

    def delete(self, key: str) -> None:
        """Forget a value; a missing one is no error."""

    @property
    def statistics(self) -> CacheStatistics:
        """Hits and misses so far."""


class _Store(Generic[V]):
    """The entries. Thread-safe."""

    def __init__(self, ttl: float) -> None:
        self._ttl = ttl
        self._lock = threading.Lock()
        self._entries: dict[str, tuple[V, float]] = {}
        self._hits = self._misses = 0

    def get(self, key: str) -> V | None:
        with self._lock:
            value, expires = self._entries.get(key, (None, 0.0))
            if time.monotonic() < expires:
                self._hits += 1
                return value
            self._misses += 1
            return None

    def set(self, key: str, value: V, *, ttl: float | None = None) -> None:
        expires = time.monotonic() + (self._ttl if ttl is None else ttl)
        with self._lock:
            self._entries[key] = value, expires

    def delete(self, key: str) -> None:
        with self._lock:
            self._entries.pop(key, None)

    @property
    def statistics(self) -> CacheStatistics:
        with self._lock:
            return CacheStatistics(self._hits, self._misses)

    def remove_expired(self) -> None:
        now = time.monotonic()
        with self._lock:
            self._entries = {key: entry for key, entry in self._entries.items() if now < entry[1]}

    def __len__(self) -> int:
        return len(self._entries)


def _clean_up(store: weakref.ref[_Store[V]], stopping: threading.Event, interval: float) -> None:
    while not stopping.wait(interval):
        alive = store()
        if alive is None:
            return
        alive.remove_expired()
        del alive  # else a cache that nobody uses any more would live until the next round


class CachePlugin(Generic[V]):
    """An in-memory cache for modules; a thread removes what has expired. Its port is thread-safe.

    Args:
        default_ttl: seconds that a value is kept unless `CachePort.set` says otherwise.
        clean_up_interval: seconds between two rounds of the thread.
    """

    name = "cache"

    def __init__(self, *, default_ttl: float = 3600.0, clean_up_interval: float = 60.0) -> None:
        self._interval = clean_up_interval
        self._store: _Store[V] = _Store(default_ttl)
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._container: ServiceContainer | None = None

    def set_container(self, container: ServiceContainer) -> None:
        """Take the container of the plugin's own services; the cache offers none."""
        self._container = container

    @property
    def container(self) -> ServiceContainer:
        """What `set_container` was given."""
        assert self._container is not None, "the application gives the container before the start"
        return self._container

    def start(self) -> None:
        """Start the thread that removes what has expired."""
        self._thread = threading.Thread(
            target=_clean_up,
            args=(weakref.ref(self._store), self._stopping, self._interval),
            name="mono_sync-demo-cache",
            daemon=True,
        )
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()

    @property
    def port(self) -> CachePort[V]:
        """The cache, for modules."""
        return self._store
