"""Accounts whose sum no transfer changes: what transactions are for."""

from __future__ import annotations

import itertools
import random
import threading
from collections import Counter
from collections.abc import Callable

from mono_sync import KVBucket, OutcomeUnknownError, RevisionMismatchError
from tests.fixtures.waiting import wait_until
from tests.support.threads import Background

ACCOUNTS = [f"account.{number}" for number in range(8)]
EACH = 100


class Bank:
    """Threads that transfer between random accounts, and threads that check the sum, until told to stop."""

    def __init__(self, kv: KVBucket, *, transferring: int, checking: int) -> None:
        self._kv = kv
        self._stop = threading.Event()
        self._seeds = itertools.count()
        self._lock = threading.Lock()
        self.done: Counter[str] = Counter()
        for account in ACCOUNTS:
            kv.set(account, str(EACH).encode(), timeout=30)
        self._threads = [Background(self._repeat, self._transfer) for _ in range(transferring)]
        self._threads += [Background(self._repeat, self._check) for _ in range(checking)]

    def _repeat(self, act: Callable[[random.Random], str]) -> None:
        rng = random.Random(next(self._seeds))
        while not self._stop.is_set():
            try:
                what = act(rng)
            except RevisionMismatchError:
                what = "conflict"
            except OutcomeUnknownError:
                what = "unknown"
            with self._lock:
                self.done[what] += 1

    def _transfer(self, rng: random.Random) -> str:
        source, target = rng.sample(ACCOUNTS, 2)
        with self._kv.transaction(timeout=30) as tx:
            has = int(tx.get(source, b"0", timeout=30))
            amount = rng.randint(0, has)
            tx.set(source, str(has - amount).encode())
            tx.set(target, str(int(tx.get(target, b"0", timeout=30)) + amount).encode())
        return "transfer"

    def _check(self, rng: random.Random) -> str:
        """Read one account after the other: only the end tells whether they were all true at one moment."""
        with self._kv.transaction(timeout=30) as tx:
            balances = [int(tx.get(account, b"0", timeout=30)) for account in rng.sample(ACCOUNTS, len(ACCOUNTS))]
        _assert_right(balances)
        return "check"

    def wait(self, what: str, count: int) -> None:
        """Wait until so many more are done."""
        wanted = self.done[what] + count

        def enough() -> bool:
            return self.done[what] >= wanted or not all(thread.is_alive() for thread in self._threads)

        wait_until(enough, f"{count} times {what}", timeout=40)

    def end(self) -> None:
        """Stop, raise what any thread raised, and look at the accounts."""
        self._stop.set()
        for thread in self._threads:
            thread.result(40)
        _assert_right([int(self._kv.get(account, b"-1", timeout=30)) for account in ACCOUNTS])


def _assert_right(balances: list[int]) -> None:
    assert sum(balances) == EACH * len(ACCOUNTS), balances
    assert min(balances) >= 0
