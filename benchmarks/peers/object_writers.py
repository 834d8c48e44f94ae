"""Who else stores objects: nats-py's ObjectStore in its own loop, and a raw socket that only sends the chunks."""

from __future__ import annotations

import asyncio
import itertools
import secrets
import time
from pathlib import Path

import nats
from nats.js.object_store import ObjectStore

from benchmarks.peers.nats_py import NewLoop
from benchmarks.peers.raw_socket import RawSocket
from mono_sync import EmbeddedServer


class StoreInLoop:
    """Coroutines that await nats-py's ObjectStore, in a loop of the calling thread."""

    name = "nats-py async"

    def __init__(self, server: EmbeddedServer, bucket: str, new_loop: NewLoop) -> None:
        self._runner = asyncio.Runner(loop_factory=new_loop)
        self._client = self._runner.run(nats.connect(server.url, token=server.token))
        self._store: ObjectStore = self._runner.run(self._client.jetstream().object_store(bucket))

    def put_file(self, path: Path) -> float:
        """Return the seconds that ``put(file)`` takes."""

        async def put() -> float:
            start = time.perf_counter()
            with path.open("rb") as file:
                await self._store.put("large", file)
            return time.perf_counter() - start

        return self._runner.run(put())

    def put_many(self, count: int, value: bytes, *, tasks: int) -> float:
        """Return the seconds per object, so many being stored by so many coroutines at a time."""
        numbers = iter(range(count))

        async def work() -> None:
            for number in numbers:
                await self._store.put(f"theirs.{number}", value)

        async def put() -> float:
            start = time.perf_counter()
            await asyncio.gather(*(work() for _ in range(tasks)))
            return (time.perf_counter() - start) / count

        return self._runner.run(put())

    def close(self) -> None:
        self._runner.run(self._client.close())
        self._runner.close()


class RawWriter(RawSocket):
    """The floor: chunks of zeros, so many ahead of their acknowledgements; no file is read and nothing hashed."""

    def put_chunks(self, bucket: str, count: int, size: int, *, ahead: int) -> float:
        """Return the seconds that it takes until all are stored."""
        subject, payload = f"$O.{bucket}.C.{secrets.token_hex(11)}".encode(), bytes(size)
        command = b"PUB %b _INBOX.raw %d\r\n%b\r\n" % (subject, size, payload)
        start = time.perf_counter()
        for number in itertools.count():
            if number >= ahead:
                self._acknowledged()
            if number < count:
                self._socket.sendall(command)
            elif number >= count + ahead - 1:
                return time.perf_counter() - start
        raise AssertionError
