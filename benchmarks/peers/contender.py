"""What a benchmark asks of ours and of every peer alike: one key, read and written again and again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Protocol, TypeAlias

import mono_sync
from benchmarks.measure import Run, repeated

Operation: TypeAlias = Literal["get", "set"]

KEY = "key"
VALUE = b"v" * 128


class Contender(Protocol):
    """A client, and the names under which it reads and writes.

    Attributes:
        name: what the table calls it.
    """

    name: str

    def repeat(self, operation: Operation, calls: int) -> Run:
        """Return a run of so many calls, one after the other, in one thread."""


class Blocking:
    """A client whose calls return when they are done."""

    name: str

    def get(self) -> bytes:
        """Return the value of the key."""
        raise NotImplementedError

    def set(self) -> None:
        """Write the value; returns when it is acknowledged."""
        raise NotImplementedError

    def call(self, operation: Operation) -> Callable[[], object]:
        """Return the operation as a function, after it has shown that it works."""
        self.set()
        assert self.get() == VALUE
        return self.get if operation == "get" else self.set

    def repeat(self, operation: Operation, calls: int) -> Run:
        return repeated(self.call(operation), calls)


class Ours(Blocking):
    """mono_sync."""

    name = "mono_sync"

    def __init__(self, bucket: mono_sync.KVBucket) -> None:
        self._bucket = bucket

    def get(self) -> bytes:
        return self._bucket.get(KEY, b"")

    def set(self) -> None:
        self._bucket.set(KEY, VALUE)
