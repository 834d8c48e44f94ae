"""nats-py's KeyValue with direct reads: in its own loop, and driven from outside as users without asyncio do it."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeAlias, TypeVar

import nats
from nats.js.errors import NoKeysError
from nats.js.kv import KeyValue

from benchmarks.measure import Run
from benchmarks.peers.contender import KEY, VALUE, Blocking, Operation
from mono_sync import EmbeddedServer

T = TypeVar("T")

NewLoop: TypeAlias = Callable[[], asyncio.AbstractEventLoop]

_ATTEMPTS = 10


class Naive(Blocking):
    """A loop of asyncio's in a background thread, and ``run_coroutine_threadsafe`` for each call."""

    name = "naive"

    def __init__(self, server: EmbeddedServer, bucket: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._client = self._run(nats.connect(server.url, token=server.token))
        self._bucket: KeyValue = self._run(self._client.jetstream().key_value(bucket))

    def _run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def get(self) -> bytes:
        return self._run(self._bucket.get(KEY)).value or b""

    def set(self) -> None:
        self._run(self._bucket.put(KEY, VALUE))

    def close(self) -> None:
        self._run(self._client.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class InLoop:
    """A coroutine that awaits one call after the other, in a loop of the calling thread: no thread is crossed."""

    name = "nats-py async"

    def __init__(self, server: EmbeddedServer, bucket: str, new_loop: NewLoop) -> None:
        self._runner = asyncio.Runner(loop_factory=new_loop)
        self._client = self._runner.run(nats.connect(server.url, token=server.token))
        self._bucket: KeyValue = self._runner.run(self._client.jetstream().key_value(bucket))

    async def _get(self) -> bytes:
        return (await self._bucket.get(KEY)).value or b""

    async def _set(self) -> None:
        await self._bucket.put(KEY, VALUE)

    def repeat(self, operation: Operation, calls: int) -> Run:
        call: Callable[[], Coroutine[Any, Any, object]] = self._get if operation == "get" else self._set

        async def run() -> float:
            start = time.perf_counter()
            for _ in range(calls):
                await call()
            return (time.perf_counter() - start) / calls

        self._runner.run(self._set())
        assert self._runner.run(self._get()) == VALUE
        return lambda: self._runner.run(run())

    def list_keys(self, expected: int) -> float:
        """Return the seconds that ``keys()`` takes."""
        return self._runner.run(self._whole(self._keys, expected))

    def read_snapshot(self, expected: int) -> float:
        """Return the seconds from ``watchall()`` to the None by which it says that the initial state is complete."""
        return self._runner.run(self._whole(self._snapshot, expected))

    async def _keys(self) -> int:
        try:
            return len(await self._bucket.keys())
        except NoKeysError:
            return 0

    async def _snapshot(self) -> int:
        watcher, count = await self._bucket.watchall(), 0
        async for entry in watcher:
            if entry is None:
                break
            count += 1
        await watcher.stop()  # type: ignore[no-untyped-call]
        return count

    async def _whole(self, read: Callable[[], Coroutine[Any, Any, int]], expected: int) -> float:
        """Time what returned everything: nats-py 2.16 ends now and then before the first entry."""
        for _ in range(_ATTEMPTS):
            start = time.perf_counter()
            if await read() == expected:
                return time.perf_counter() - start
        raise AssertionError(f"in {_ATTEMPTS} attempts never {expected} entries")

    def close(self) -> None:
        self._runner.run(self._client.close())
        self._runner.close()
