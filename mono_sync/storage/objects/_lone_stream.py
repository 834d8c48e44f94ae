"""What both kinds of streams have in common: they are for one thread at a time, of one process."""

from __future__ import annotations

import functools
import io
import os
import threading
from collections.abc import Callable
from typing import Concatenate, NoReturn, ParamSpec, TypeVar

from mono_sync.errors import ForkedError, StorageError

P = ParamSpec("P")
S = TypeVar("S", bound="LoneStream")
T = TypeVar("T")


def alone(method: Callable[Concatenate[S, P], T]) -> Callable[Concatenate[S, P], T]:
    """Let a method run in one thread at a time, on a stream that is open.

    A lock that is taken at once or not at all stays locked where a signal handler raises right then; one that ``with``
    takes does not. So a thread that comes in the same instant as another may wait for it.
    """

    @functools.wraps(method)
    def call(self: S, /, *args: P.args, **kwargs: P.kwargs) -> T:
        self._check_usable()
        with self._turn:
            return method(self, *args, **kwargs)

    return call


class LoneStream(io.BufferedIOBase):
    """A binary stream for one thread at a time, of the process that opened it."""

    def __init__(self) -> None:
        super().__init__()
        self._turn = threading.Lock()
        self._pid = os.getpid()

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"cannot pickle {self!r}: it is a stream")

    def _check_usable(self) -> None:
        if self._pid != os.getpid():
            raise ForkedError(f"{self!r} belongs to the parent process: open it anew in this one")
        if self.closed:
            raise ValueError(f"I/O operation on {self!r}")
        if self._turn.locked():
            raise self._in_use()

    def _in_use(self) -> StorageError:
        return StorageError(f"{self!r} is in use: one thread at a time")
