"""More than a thousand watchers on one connection."""

from __future__ import annotations

import threading

import mono_sync
from mono_sync import KVBucket, KVBucketConfig, Watcher
from tests.fixtures.servers import RunNatsServer
from tests.fixtures.waiting import wait_until
from tests.storage.helpers import raw_kv, together

COUNT = 1100
KEYS = [f"k{number}" for number in range(COUNT)]


def _write(kv: KVBucket, value: bytes) -> None:
    kv.set_many(dict.fromkeys(KEYS, value), timeout=30)


def _read_each(watchers: list[Watcher], value: bytes) -> None:
    def read(number: int) -> None:
        for watcher, key in list(zip(watchers, KEYS, strict=True))[number::16]:
            entry = watcher.next(timeout=30)
            assert (entry.key, entry.value) == (key, value)

    together(16, read)


def test_each_is_told_of_its_key_across_a_restart_and_none_costs_a_thread(run_nats_server: RunNatsServer) -> None:
    server = run_nats_server("jetstream: enabled")
    with mono_sync.connect(server.url, reconnect_wait=0.05) as connection:
        kv = connection.kv(KVBucketConfig("b"))
        threads = threading.active_count()
        watchers = [kv.watch(key, timeout=30) for key in KEYS]
        for value in (b"first", b"second"):
            _write(kv, value)
            _read_each(watchers, value)
        server.kill()
        server.start()
        _write(kv, b"third")
        _read_each(watchers, b"third")
        assert threading.active_count() == threads
        for watcher in watchers:
            watcher.stop()
        wait_until(lambda: not raw_kv(kv).consumers(), "no consumer is left")
        assert not connection._session.link._inboxes  # type: ignore[union-attr]
