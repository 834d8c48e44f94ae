"""The cache plugin of the demo."""

from __future__ import annotations

import gc
import threading

from mono_sync.demo._cache import CachePlugin
from tests.fixtures.waiting import wait_until


def cache_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "mono_sync-demo-cache"]


def test_value_is_returned_until_it_expires() -> None:
    cache: CachePlugin[str] = CachePlugin()
    cache.port.set("key", "value", ttl=0.05)
    assert cache.port.get("key") == "value"
    wait_until(lambda: cache.port.get("key") is None, "expired")


def test_default_time_to_live_holds_where_none_is_given() -> None:
    cache: CachePlugin[str] = CachePlugin(default_ttl=0.05)
    cache.port.set("short", "value")
    cache.port.set("long", "value", ttl=60)
    wait_until(lambda: cache.port.get("short") is None, "expired")
    assert cache.port.get("long") == "value"


def test_deleted_value_is_gone() -> None:
    cache: CachePlugin[str] = CachePlugin()
    cache.port.set("key", "value")
    cache.port.delete("key")
    cache.port.delete("key")
    assert cache.port.get("key") is None


def test_statistics_count_hits_and_misses() -> None:
    cache: CachePlugin[str] = CachePlugin()
    assert cache.port.statistics.hit_rate == 0
    cache.port.set("key", "value")
    for key in ("key", "key", "key", "other"):
        cache.port.get(key)
    assert (cache.port.statistics.hits, cache.port.statistics.misses) == (3, 1)
    assert cache.port.statistics.hit_rate == 0.75


def test_thread_removes_what_has_expired_and_nothing_else() -> None:
    cache: CachePlugin[str] = CachePlugin(clean_up_interval=0.01)
    cache.port.set("short", "value", ttl=0.02)
    cache.port.set("long", "value")
    cache.start()
    try:
        wait_until(lambda: len(cache._store) == 1, "cleaned up")
        assert cache.port.get("long") == "value"
    finally:
        cache.stop()


def test_constructor_starts_no_thread() -> None:
    CachePlugin[str]()
    assert not cache_threads()


def test_stop_ends_the_thread() -> None:
    cache: CachePlugin[str] = CachePlugin()
    cache.start()
    assert cache_threads()
    cache.stop()
    assert not cache_threads()


def test_stop_without_start_is_no_error() -> None:
    CachePlugin[str]().stop()


def test_thread_of_a_forgotten_cache_ends() -> None:
    cache: CachePlugin[str] = CachePlugin(clean_up_interval=0.01)
    cache.start()
    del cache
    gc.collect()
    wait_until(lambda: not cache_threads(), "the thread ended")
