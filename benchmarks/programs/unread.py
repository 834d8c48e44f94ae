"""Watch a bucket and read one entry; a line on standard input then says how many were to be read in all."""

from __future__ import annotations

import asyncio
import itertools
import sys

import nats

import mono_sync


def ours(url: str, token: str, name: str) -> None:
    with mono_sync.connect(url, token=token) as connection, connection.kv(name).watch_all() as watcher:
        print("ready", flush=True)
        watcher.next(timeout=None)  # while it waits, the server may send more than it will read
        rest = int(sys.stdin.readline()) - 1
        print(1 + sum(1 for _ in itertools.islice(watcher, rest)))


async def nats_py(url: str, token: str, name: str) -> None:
    async def ignore(_error: Exception) -> None:
        """That it drops entries is said once for each of them."""

    client = await nats.connect(url, token=token, error_cb=ignore)
    bucket = await client.jetstream().key_value(name)
    await bucket.watchall()  # the server sends all that is written, read or not
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    await client.close()


if __name__ == "__main__":
    kind, *where = sys.argv[1:]
    if kind == "mono_sync":
        ours(*where)
    else:
        asyncio.run(nats_py(*where))
