"""The receiving side of a socket: read by the loop, or by the calling thread that alone waits for an answer."""

from __future__ import annotations

import asyncio
import contextlib
import select
import threading
from array import array
from collections import deque
from collections.abc import Callable
from fcntl import ioctl
from io import FileIO
from itertools import chain, compress
from operator import call, getitem, not_
from termios import FIONREAD
from typing import Final, Protocol, Self, TypeVar

from mono_sync.adapter._message import Message
from mono_sync.adapter._outlet import duplicate
from mono_sync.adapter._scanner import Scanner, first_message

T = TypeVar("T")

_MOST: Final = 1 << 16  # bytes of one read; many more take longer to allocate than to read
_MOST_OF_LARGE: Final = 1 << 19  # while large payloads come: each read then brings some that need no joining
_OFF: Final = 0
_ON: Final[int] = getattr(select, "EPOLLIN", 1)  # there is none but on Linux
_LONGEST_HOLD: Final = 0.1  # seconds, or up to twice as much


class Holder(Protocol):
    """Who waits at the socket."""

    @property
    def waits(self) -> bool:
        """Whether he may still come to it."""


class Inlet:
    """Reads a socket in place of the loop's transport, so that whoever waits for an answer can take it there himself.

    That spares the switch to the loop thread and back, which takes longer than all else that is done for a request. It
    is for the one case that is common and simple: a single caller waits, and what comes next is his answer. All else is
    for the loop, which deals with the bytes in the order of their arrival.

    The loop watches the socket through an epoll object, the bell, which every thread can switch off and on. It is off
    while somebody holds it, to wait at the socket; he reads whatever comes. A signal handler or a ``__del__`` may keep
    him from that, and wait for what nobody reads then: the bell of whoever holds it for too long is switched on.

    As in `Outlet`, what must not be interrupted is one call of a function in C: bytes that were read are in line for
    the loop before a handler runs. Nothing is made meanwhile that could set off a garbage collection, and with that a
    ``__del__`` that waits for somebody who waits for his turn to read.

    Args:
        transport: the transport of the socket, which reads no more from now on; again if this cannot.
        loop: its loop.
        scanner: takes the bytes, on the loop.
        file: a file of our own for the socket.

    `hold`, `fetch` and `let_go` are for every thread, all else belongs to the loop thread.
    """

    def __init__(
        self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop, scanner: Scanner, file: FileIO
    ) -> None:
        self._transport = transport
        self._loop = loop
        self._scanner = scanner
        self._file = file
        self._number = file.fileno()
        self._arrived: deque[bytes] = deque()  # the loop removes what it has dealt with
        self._unfinished = (self._arrived, *scanner.unfinished)
        self._turn = threading.RLock()  # whoever holds it reads
        self._take_turn, self._give_turn = (self._turn.acquire,), (self._turn.release,)
        self._bell, self._watch = select.epoll(), select.epoll()
        self._holders: list[Holder] = []
        self._suspect: Holder | None = None
        self._guarded = False
        self._size = array("i", (0,))
        for epoll in (self._bell, self._watch):
            epoll.register(self._number, _ON)
        transport.pause_reading()
        loop.add_reader(self._bell.fileno(), self._on_bell)

    @classmethod
    def open(cls, transport: asyncio.BaseTransport, loop: asyncio.AbstractEventLoop, scanner: Scanner) -> Self | None:
        """Begin to read; None where only the transport can."""
        file = duplicate(transport, "rb") if hasattr(select, "epoll") and not transport.is_closing() else None
        return None if file is None else cls(transport, loop, scanner, file)  # type: ignore[arg-type]  # it reads

    # --- from any thread

    def hold(self, holder: Holder) -> None:
        """Keep the loop from reading what comes next; `let_go` follows in any case."""
        self._holders.append(holder)
        if not self._guarded:
            self._soon(self._guard)  # before the bell is off: the making of what this makes may set off a `__del__`
        self._switch(_OFF)

    def fetch(self, subject: str, patience: float) -> Message | None:
        """Wait for a message on a subject for some seconds; None: something else came first, or nothing."""
        try:
            if not self._watch.poll(patience, 1):
                return None
            chunk, comes_next = self._read()
            message, size = first_message(chunk) if comes_next else (None, 0)
            if message is not None and message.subject == subject:
                if size == len(chunk):
                    _remove(chunk, self._arrived)  # else the loop comes across it again, and finds nobody waiting
                return message
        except (OSError, ValueError):  # broken, or closed: the loop finds out by itself
            return None
        finally:
            if self._arrived:
                self._soon(self._deliver)
        return None

    def let_go(self, holder: Holder) -> None:
        """Let the loop read what comes next."""
        self._switch(_ON)
        _remove(holder, self._holders)

    def _switch(self, events: int) -> None:
        try:
            self._bell.modify(self._number, events)
        except (OSError, ValueError):  # closed
            return

    def _read(self) -> tuple[bytes, bool]:
        """Read once, when it is our turn, and tell whether all that came before has been dealt with.

        The system is asked first whether there are bytes: reading in vain makes an exception, if only for a moment.
        """
        done: list[object] = []
        got: list[bytes] = []
        resting: list[bool] = []
        ended: list[None] = []
        steps = chain(
            map(call, self._take_turn),
            map(resting.append, map(not_, self._unfinished)),
            map(ioctl, (self._number,), (FIONREAD,), (self._size,)),
            map(got.append, map(self._file.read, compress((_MOST,), map(getitem, (self._size,), (0,))))),
            map(self._arrived.append, got),
            map(ended.append, map(call, self._give_turn)),
        )
        try:
            done.extend(steps)
        except BaseException:
            if done and not ended:
                self._turn.release()
            raise
        return (got[0], all(resting)) if got else (b"", False)

    def _soon(self, callback: Callable[[], object]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: it has ended every call by then
            self._loop.call_soon_threadsafe(callback)

    # --- on the loop

    def _on_bell(self) -> None:
        with self._turn:
            try:
                data = self._file.read(_MOST_OF_LARGE if self._scanner.is_in_large_payload else _MOST)
            except OSError:
                data = b""
            if data:
                self._arrived.append(data)
        self._deliver()
        if data == b"" or self._scanner.lost:
            self.close()
            self._deliver()
            if not self._transport.is_closing():
                self._transport.resume_reading()

    def _deliver(self) -> None:
        while (chunk := self._first()) is not None:
            self._scanner.feed(chunk)
            _remove(chunk, self._arrived)

    def _first(self) -> bytes | None:
        try:
            return self._arrived[0]
        except IndexError:
            return None

    def _guard(self) -> None:
        """Switch the bell on from time to time, as long as somebody has it."""
        if not self._guarded:
            self._guarded = True
            self._look_after()

    def _look_after(self) -> None:
        self._guarded = False  # first: whoever comes from here on asks for the next guard
        suspect, self._suspect = self._suspect, None
        if self._holders and not self._file.closed:
            self._guarded = True
            self._suspect = holder = self._holders[0]
            if holder is suspect:
                self._switch(_ON)
                if not holder.waits:  # else he stays under guard: it may be now only that he switches it off
                    _remove(holder, self._holders)
            self._loop.call_later(_LONGEST_HOLD, self._look_after)

    def close(self) -> None:
        """Read no more; idempotent."""
        if not self._file.closed:
            self._loop.remove_reader(self._bell.fileno())
            list(chain(map(call, self._take_turn), map(call, (self._file.close,)), map(call, self._give_turn)))
            self._bell.close()
            self._watch.close()


def _remove(one: T, some: deque[T] | list[T]) -> None:
    """Remove what another thread may remove as well."""
    try:
        some.remove(one)
    except ValueError:
        return
