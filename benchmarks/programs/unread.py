"""Watch a bucket and read nothing, until a line on standard input says how many entries to read after all."""

from __future__ import annotations

import asyncio
import itertools
import sys

import nats

import mono_sync


def order() -> int:
    print("ready", flush=True)
    return int(sys.stdin.readline())


def ours(url: str, token: str, name: str) -> None:
    with mono_sync.connect(url, token=token) as connection, connection.kv(name).watch_all() as watcher:
        count = order()
        print(sum(1 for _ in itertools.islice(watcher, count)))


async def nats_py(url: str, token: str, name: str) -> None:
    async def ignore(_error: Exception) -> None:
        """That it drops entries is said once for each of them."""

    client = await nats.connect(url, token=token, error_cb=ignore)
    bucket = await client.jetstream().key_value(name)
    await bucket.watchall()
    await asyncio.to_thread(order)
    await client.close()


if __name__ == "__main__":
    kind, *where = sys.argv[1:]
    if kind == "mono_sync":
        ours(*where)
    else:
        asyncio.run(nats_py(*where))
