"""nats-py's ObjectStore, and the floor of reading an object: a socket whose bytes nobody looks at."""

from __future__ import annotations

import asyncio
import json
import secrets
import socket
import time
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

import nats
from nats.js.object_store import ObjectStore

from benchmarks.peers.nats_py import NewLoop
from mono_sync import EmbeddedServer, ObjectInfo

_RECEIVED_AT_ONCE = 1 << 20
_BATCH = 64


class NatsPyStore:
    """An ObjectStore in a loop of the calling thread."""

    name = "nats-py async"

    def __init__(self, server: EmbeddedServer, bucket: str, new_loop: NewLoop) -> None:
        self._runner = asyncio.Runner(loop_factory=new_loop)
        self._client = self._runner.run(nats.connect(server.url, token=server.token))
        self._store: ObjectStore = self._runner.run(self._client.jetstream().object_store(bucket))

    def get(self, key: str, size: int) -> float:
        """Return the seconds that it takes to have an object in memory."""

        async def get() -> None:
            assert len((await self._store.get(key)).data or b"") == size

        return self._timed(get)

    def get_into(self, key: str, path: Path) -> float:
        """Return the seconds that it takes to have an object in a new file."""
        path.unlink(missing_ok=True)

        async def get() -> None:
            with path.open("wb") as target:
                await self._store.get(key, writeinto=target)

        return self._timed(get)

    def get_each(self, keys: Sequence[str], tasks: int) -> float:
        """Return the seconds that it takes to get all, so many at a time, divided by their number."""
        waiting = list(keys)

        async def work() -> None:
            while waiting:
                await self._store.get(waiting.pop())

        async def get() -> None:
            await asyncio.gather(*(work() for _ in range(tasks)))

        return self._timed(get) / len(keys)

    def _timed(self, call: Callable[[], Coroutine[Any, Any, None]]) -> float:
        start = time.perf_counter()
        self._runner.run(call())
        return time.perf_counter() - start

    def close(self) -> None:
        self._runner.run(self._client.close())
        self._runner.close()


class Drain:
    """Lets the server send all chunks of an object, and does no more with what comes than it is told.

    Not all at once: a server ends a connection on which more waits than 64 MiB.
    """

    name = "raw socket"

    def __init__(self, server: EmbeddedServer, info: ObjectInfo) -> None:
        self._stream, self._info = f"OBJ_{info.bucket}", info
        host, _, port = server.url.partition("://")[2].rpartition(":")
        self._socket = socket.create_connection((host, int(port)), timeout=60)
        self._room = memoryview(bytearray(_RECEIVED_AT_ONCE))
        options = {"auth_token": server.token, "verbose": False, "headers": True, "no_responders": True}
        self._socket.sendall(b"CONNECT %b\r\nSUB _DRAIN 1\r\nPING\r\n" % json.dumps(options).encode())
        self._read_until(b"PONG\r\n")

    def run(self, work: Callable[[memoryview], object] | None = None) -> float:
        """Return the seconds from the making of the consumer to the last chunk; ``work`` is done with what comes."""
        name = f"drain_{secrets.token_hex(4)}"
        config = {
            "name": name,
            "ack_policy": "none",
            "filter_subject": f"$O.{self._info.bucket}.C.{self._info.nuid}",
            "mem_storage": True,
            "inactive_threshold": 60_000_000_000,
        }
        start = time.perf_counter()
        self._ask(f"CREATE.{self._stream}.{name}", {"stream_name": self._stream, "config": config}, b'"num_pending"')
        pull = f"MSG.NEXT.{self._stream}.{name}", {"batch": _BATCH, "expires": 60_000_000_000}, b""
        left, unasked = self._info.size, -(-self._info.chunks // _BATCH)
        portion = -(-self._info.size // self._info.chunks) * _BATCH
        while left > 0:
            while unasked and left <= (unasked + 1) * portion:  # at most two are under way
                unasked -= 1
                self._ask(*pull)
            received = self._socket.recv_into(self._room)
            if not received:
                raise ConnectionError("the server has ended the connection")
            if work is not None:
                work(self._room[:received])
            left -= received
        elapsed = time.perf_counter() - start
        self._ask(f"DELETE.{self._stream}.{name}", {}, b'"success"')
        return elapsed

    def close(self) -> None:
        self._socket.close()

    def _ask(self, call: str, body: dict[str, Any], answer: bytes) -> None:
        data = json.dumps(body).encode()
        self._socket.sendall(b"PUB $JS.API.CONSUMER.%b _DRAIN %d\r\n%b\r\n" % (call.encode(), len(data), data))
        self._read_until(answer)

    def _read_until(self, text: bytes) -> None:
        seen = b""
        while text not in seen:
            seen = seen[-100:] + self._socket.recv(1 << 16)
