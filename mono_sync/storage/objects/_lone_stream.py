"""What both kinds of streams have in common: they are for one thread at a time, of one process."""

from __future__ import annotations

import functools
import io
import os
import threading
from collections.abc import Callable
from threading import get_ident
from typing import Any, ClassVar, Concatenate, Final, NoReturn, ParamSpec, SupportsIndex, TypeVar

from mono_sync.errors import ForkedError, StorageError

P = ParamSpec("P")
S = TypeVar("S", bound="LoneStream")
T = TypeVar("T")
X = TypeVar("X", bound="LoneText")

REFUSALS: Final = (TypeError, ValueError, ForkedError, StorageError)
"""What a call raises that has taken nothing: for its argument, or because the stream cannot be used at the moment."""

_process = os.getpid()  # to ask for it anew costs more than all else that is done for a line of text


def _note_process() -> None:
    global _process  # noqa: PLW0603  # what a process knows of itself
    _process = os.getpid()


@functools.cache
def _watch_forks() -> None:
    """Keep it right from now on; once, in this process or one that it comes from."""
    _note_process()
    os.register_at_fork(after_in_child=_note_process)


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


def in_turn(
    spares: type[BaseException] | tuple[type[BaseException], ...] = BaseException, *, admits: tuple[str, ...] = ()
) -> Callable[[Callable[Concatenate[X, P], T]], Callable[Concatenate[X, P], T]]:
    """Let a method of a text stream run in one thread at a time, from its beginning to its end.

    The binary stream is free between two of its calls that one of the text stream makes. As for `alone`, the lock is
    one to wait for.

    Args:
        spares: errors that leave the stream as it was; after others something of it is lost. That is noted outside of
            the lock, for an interrupt that comes as the lock is let go takes away what was read, and without a call,
            before which the next one might come. One before the first step is as one before the call.
        admits: names of the methods in which the thread may come again from within, for this one or C calls them, or
            it has nothing half done meanwhile. Others are refused, out of a ``__del__`` or a signal handler: C keeps
            half of its state elsewhere in a call, and a `write` in a `write` makes older CPythons store what nobody
            has written (gh-119506).
    """

    def decorate(method: Callable[Concatenate[X, P], T]) -> Callable[Concatenate[X, P], T]:
        name = method.__name__

        @functools.wraps(method)
        def call(self: X, /, *args: P.args, **kwargs: P.kwargs) -> T:
            spared = spares
            try:
                me, owner = get_ident(), self._owner
                admitted = self._admitted
                if self._pid == _process and (owner is None or (owner == me and name in admitted)):
                    with self._turn:
                        self._owner, self._admitted = me, admits
                        try:
                            return method(self, *args, **kwargs)
                        finally:
                            self._owner, self._admitted = owner, admitted
                spared = REFUSALS
                self._refuse()
            except spared:
                raise
            except BaseException as error:
                half = self._half
                if half._failure is None and self.buffer is not None:  # noqa: SLF001  # the other half of this stream
                    half._failure = self._loss or error  # noqa: SLF001
                raise

        return call

    return decorate


class LoneStream(io.BufferedIOBase):
    """A binary stream for one thread at a time, of the process that opened it."""

    def __init__(self) -> None:
        super().__init__()
        self._turn = threading.Lock()
        self._pid = os.getpid()
        self._failure: BaseException | None = None  # after which something of it, or of its text, is lost

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
        return StorageError(f"{self!r} is in use: one thread at a time, one call at a time")


class LoneText(io.TextIOWrapper):
    """A text stream around a `LoneStream`, for one thread at a time as well."""

    mode: str
    _loss: ClassVar[BaseException | None] = None  # noted in place of an error, whose traceback would keep the stream

    def __init__(
        self, binary: LoneStream, mode: str, *, encoding: str | None, errors: str | None, newline: str | None
    ) -> None:
        _watch_forks()
        self._turn = threading.RLock()
        self._owner: int | None = None  # the thread that has the turn
        self._admitted: tuple[str, ...] = ()  # where it may come again
        self._pid = os.getpid()
        self._half = binary
        named: Any = binary  # both kinds of them are
        super().__init__(named, encoding="utf-8" if encoding is None else encoding, errors=errors, newline=newline)
        self.mode = mode

    def __reduce_ex__(self, protocol: SupportsIndex, /) -> NoReturn:
        raise TypeError(f"cannot pickle {self!r}: it is a stream")

    @property
    def _binary(self) -> LoneStream:
        binary = self.buffer
        if not isinstance(binary, LoneStream):
            raise ValueError("underlying buffer has been detached")  # noqa: TRY004  # as `io.TextIOWrapper` says
        return binary

    def _refuse(self) -> NoReturn:
        binary = self._binary
        binary._check_usable()  # noqa: SLF001  # the other half of this stream
        raise binary._in_use()  # noqa: SLF001
