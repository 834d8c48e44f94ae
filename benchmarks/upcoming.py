"""What is measured of a bucket as soon as it has it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Protocol, Self, runtime_checkable


@runtime_checkable
class Batches(Protocol):
    def get_many(self, keys: Iterable[str], /) -> Mapping[str, bytes]: ...

    def set_many(self, values: Mapping[str, bytes], /) -> Mapping[str, int]: ...


class Watcher(Protocol):
    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None, /
    ) -> object: ...

    def __iter__(self) -> Iterator[object]: ...

    def snapshot(self) -> Sequence[object]: ...

    def stop(self) -> None: ...


@runtime_checkable
class Watches(Protocol):
    def watch_all(self) -> Watcher: ...
