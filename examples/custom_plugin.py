"""A plugin of one's own: an in-memory cache whose entries expire, and a module that uses it.

A plugin is infrastructure: it starts before the modules, stops after them, and knows nothing of what they are for.
Nobody has to inherit: a plugin has ``name``, ``start()``, ``stop()``, ``set_container()`` and ``container``; a module
that wants plugins has ``set_plugin(alias, plugin)``. What modules may do with a plugin is its port, here `CachePort`; a
test can give a module anything else that has the same methods.

Run it: python examples/custom_plugin.py
"""

from __future__ import annotations

import threading
import time
from typing import Protocol

from mono_sync import MonoApplication, PluginModule, ServiceContainer


class CachePort(Protocol):
    """What modules see of the cache. Thread-safe."""

    def get(self, key: str) -> bytes | None:
        """Return a value, or None when it is missing or expired."""

    def set(self, key: str, value: bytes, *, ttl: float | None = None) -> None:
        """Keep a value for ``ttl`` seconds; None is the default of the cache."""

    def delete(self, key: str) -> None:
        """Forget a value; a missing one is no error."""


class _Entries:
    """The port's implementation."""

    def __init__(self, default_ttl: float) -> None:
        self._default_ttl = default_ttl
        self._lock = threading.Lock()
        self._entries: dict[str, tuple[bytes, float]] = {}

    def get(self, key: str) -> bytes | None:
        with self._lock:
            value, expires = self._entries.get(key, (None, 0.0))
        return value if time.monotonic() < expires else None

    def set(self, key: str, value: bytes, *, ttl: float | None = None) -> None:
        expires = time.monotonic() + (self._default_ttl if ttl is None else ttl)
        with self._lock:
            self._entries[key] = value, expires

    def delete(self, key: str) -> None:
        with self._lock:
            self._entries.pop(key, None)

    def clear(self) -> None:
        with self._lock:
            self._entries.clear()

    def remove_expired(self) -> None:
        now = time.monotonic()
        with self._lock:
            self._entries = {key: entry for key, entry in self._entries.items() if now < entry[1]}

    def __len__(self) -> int:
        return len(self._entries)


class CachePlugin:
    """An in-memory cache for modules; a thread removes what has expired.

    Args:
        default_ttl: seconds that a value is kept unless `CachePort.set` says otherwise.
        clean_up_interval: seconds between two rounds of the thread.
    """

    name = "cache"

    def __init__(self, *, default_ttl: float = 3600.0, clean_up_interval: float = 60.0) -> None:
        self._interval = clean_up_interval
        self._entries = _Entries(default_ttl)
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None  # not before start(): a constructor has no side effects
        self._container: ServiceContainer | None = None

    def set_container(self, container: ServiceContainer) -> None:
        """Take the container, through which a plugin can offer services and reach the connection; not needed here."""
        self._container = container

    @property
    def container(self) -> ServiceContainer | None:
        """What `set_container` was given."""
        return self._container

    def start(self) -> None:
        """Start the thread that removes what has expired."""
        self._thread = threading.Thread(target=self._clean_up, name="cache-clean-up", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread, and forget everything. May be called without a start: when the start of another fails."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()
        self._entries.clear()

    @property
    def port(self) -> CachePort:
        """The cache, for modules."""
        return self._entries

    def __len__(self) -> int:
        """Return the number of entries, expired ones that have not been removed yet included."""
        return len(self._entries)

    def _clean_up(self) -> None:
        while not self._stopping.wait(self._interval):
            self._entries.remove_expired()


class Catalogue:
    """Answers questions that are slow to answer, from the cache where it can. Offers itself as service ``prices``."""

    name = "catalogue"

    def __init__(self) -> None:
        self._cache: CachePort | None = None
        self.calculated = 0

    def set_plugin(self, alias: str, plugin: PluginModule) -> None:
        """Keep the port of the cache; called for every plugin of the application, before start()."""
        if alias == "cache" and isinstance(plugin, CachePlugin):
            self._cache = plugin.port

    def register_services(self, container: ServiceContainer) -> None:
        """Offer the prices to other modules and to the main program."""
        container.register("prices", self)

    def start(self) -> None:
        """Refuse to start without a cache."""
        if self._cache is None:
            raise RuntimeError("the catalogue needs a CachePlugin registered as 'cache'")

    def stop(self) -> None:
        """Have nothing to give back."""

    def price(self, article: str) -> int:
        """Return a price in cents; it may be a second old."""
        assert self._cache is not None, "start() has made sure"
        known = self._cache.get(article)
        if known is None:
            known = str(self._calculate(article)).encode()
            self._cache.set(article, known, ttl=1.0)
        return int(known)

    def _calculate(self, article: str) -> int:
        self.calculated += 1
        return 100 * len(article)


def main() -> None:
    """Ask for prices again and again, and let them expire."""
    cache = CachePlugin(clean_up_interval=0.2)
    app = MonoApplication(name="custom-plugin")
    app.register_plugin(cache, "cache")
    app.register(Catalogue())
    with app:
        catalogue: Catalogue = app.services("catalogue").get("prices")
        prices = [catalogue.price(article) for article in ("apple", "pear", "apple", "apple", "pear")]
        print(f"{len(prices)} questions, {catalogue.calculated} calculated: {prices}")
        while len(cache) > 0:
            time.sleep(0.05)
        print("all prices have expired, and the clean-up thread has removed them")
        price = catalogue.price("apple")
        print(f"1 question more, {catalogue.calculated} calculated: {price}")


if __name__ == "__main__":
    main()
