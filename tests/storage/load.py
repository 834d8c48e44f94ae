"""Many threads that write all the time, and what must be true of all they have been told."""

from __future__ import annotations

import threading
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self

from mono_sync import KVBucket, OutcomeUnknownError, RevisionMismatchError
from mono_sync._durations import Deadline
from mono_sync.connection import JetStream
from tests.fixtures.waiting import wait_until
from tests.storage.helpers import raw_kv

_COUNTERS = 2
_WRITES_PER_ROUND = 7


class Load:
    """Threads that write keys of their own, and some that increment shared counters, until the end of the ``with``.

    The bucket is empty before, and nobody else writes to it. When its server restarts, it ``forgets_after`` so many
    increments by others what became of one: nobody can tell then.
    """

    def __init__(self, kv: KVBucket, *, timeout: float, forgets_after: int, own: int = 12, shared: int = 4) -> None:
        self._kv = kv
        self._timeout = timeout
        self._stop = threading.Event()
        self._own, self._shared = own, shared
        self._done = [0] * (own + shared)
        self._told: list[dict[int, tuple[str, bytes]]] = [{} for _ in range(own + shared)]
        self._increments: Counter[str] = Counter()
        self._unknown: Counter[str] = Counter()
        self._forgets_after = forgets_after
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(own + shared)
        self._results: list[Future[None]] = []
        for number in range(_COUNTERS):
            kv.create(f"counter{number}", b"0", timeout=timeout)

    def __enter__(self) -> Self:
        works = [self._write_own] * self._own + [self._count] * self._shared
        self._results = [self._pool.submit(work, number) for number, work in enumerate(works)]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop.set()
        self._pool.shutdown()

    def wait_progress(self) -> None:
        """Wait until each thread has completed five more rounds."""
        before = list(self._done)

        def moved() -> bool:
            failed = [result for result in self._results if result.done()]
            for result in failed:
                result.result()
            return all(now >= then + 5 for now, then in zip(self._done, before, strict=True))

        wait_until(moved, "all threads go on", timeout=2 * self._timeout)

    def _write_own(self, number: int) -> None:
        """Write a key in every way; its revision is known all the time, so any conflict is one with itself."""
        kv, timeout, key, told = self._kv, self._timeout, f"own{number}", self._told[number]
        while not self._stop.is_set():
            turn = str(self._done[number]).encode()
            revision = kv.create(key, b"created" + turn, timeout=timeout)
            told[revision] = (key, b"created" + turn)
            revision = kv.update(key, b"updated" + turn, revision, timeout=timeout)
            told[revision] = (key, b"updated" + turn)
            kv.set(key, b"set" + turn, timeout=timeout)
            revision = kv.put_with_revision(key, b"put" + turn, timeout=timeout)
            told[revision] = (key, b"put" + turn)
            kv.delete(key, revision=revision, timeout=timeout)
            kv.set(key, b"again" + turn, timeout=timeout)
            kv.delete(key, timeout=timeout)
            self._done[number] += 1

    def _count(self, number: int) -> None:
        kv, timeout, key, told = self._kv, self._timeout, f"counter{number % _COUNTERS}", self._told[number]
        while not self._stop.is_set():
            entry = kv.get_entry(key, timeout=timeout)
            value = str(int(entry.value) + 1).encode()
            try:
                revision = kv.update(key, value, entry.revision, timeout=timeout)
            except RevisionMismatchError:
                self._done[number] += 1
                continue
            except OutcomeUnknownError as error:
                if error.timeout is not None:
                    raise
                now = int(kv.get(key, b"", timeout=timeout))
                assert now >= int(entry.value) + self._forgets_after, "the bucket still tells what became of it"
                with self._lock:
                    self._unknown[key] += 1
                self._done[number] += 1
                continue
            told[revision] = (key, value)
            with self._lock:
                self._increments[key] += 1
            self._done[number] += 1

    def check(self) -> None:
        """Raise what the threads raised, and compare what they were told with what the bucket holds."""
        for result in self._results:
            result.result()
        for number in range(_COUNTERS):
            key = f"counter{number}"
            count = int(self._kv.get(key, b"", timeout=self._timeout))
            assert self._increments[key] <= count <= self._increments[key] + self._unknown[key]
        everything = [item for told in self._told for item in told.items()]
        told = dict(everything)
        assert len(told) == len(everything), "two writes were told the same revision"
        raw = raw_kv(self._kv)
        writes = _COUNTERS + _WRITES_PER_ROUND * sum(self._done[: self._own]) + self._increments.total()
        assert writes <= raw.state["last_seq"] <= writes + self._unknown.total(), "each write takes one sequence"
        messages = JetStream(raw.connection).pull_all(raw.stream, ">", Deadline(60), policy="all")
        ids = [message.headers["Nats-Msg-Id"] for message in messages]
        assert len(ids) == len(set(ids)), "a write was applied twice"
        for message in messages:
            if message.sequence in told:
                assert told[message.sequence] == (message.subject.rpartition(".")[2], message.data)
