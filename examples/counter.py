"""A counter that several threads raise at once: optimistic locking in a script, without an application.

`connect()` without arguments starts a nats-server of its own, which ends with the connection; with
``MONO_SYNC_SERVERS=nats://…`` in the environment, or ``connect("nats://…")``, the same script uses yours. A bucket may
be shared by all threads.

Run it: python examples/counter.py
"""

from __future__ import annotations

import threading

from mono_sync import (
    KeyExistsError,
    KeyNotFoundError,
    KVBucket,
    KVBucketConfig,
    RevisionMismatchError,
    connect,
)

THREADS = 4
INCREMENTS = 100


def increment(bucket: KVBucket, key: str) -> int:
    """Add 1 to the number under a key, and return how often somebody else was faster."""
    conflicts = 0
    while True:
        try:
            entry = bucket.get_entry(key)
        except KeyNotFoundError:
            entry = None
        try:
            if entry is None:
                bucket.create(key, b"1")  # refused if somebody has created it meanwhile
            else:
                bucket.update(key, str(int(entry.value) + 1).encode(), entry.revision)  # refused if it has changed
        except (KeyExistsError, RevisionMismatchError):
            conflicts += 1
        else:
            return conflicts


def main() -> None:
    """Let the threads count, and print what came of it."""
    with connect() as connection:
        bucket = connection.kv(KVBucketConfig("example-counter"))
        bucket.delete("visits")
        conflicts = [0] * THREADS

        def count(number: int) -> None:
            for _ in range(INCREMENTS):
                conflicts[number] += increment(bucket, "visits")

        threads = [threading.Thread(target=count, args=(number,), daemon=True) for number in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        print(f"{THREADS} threads, {THREADS * INCREMENTS} increments, {sum(conflicts)} conflicts")
        print(f"visits = {int(bucket.get_entry('visits').value)}")


if __name__ == "__main__":
    main()
