"""The sending side of a socket, open to every thread."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import Callable
from threading import get_ident

from mono_sync.adapter._outlet import Batch, Command, Outlet

_MOST_AT_ONCE = 64


class _Must:
    """A command that waits inside the process for as long as the connection lives."""

    __slots__ = ("data",)

    def __init__(self, data: bytes) -> None:
        self.data: bytes = data

    def claim(self) -> bool:
        return True

    def refuse(self) -> bool:
        return False


class _Now(_Must):
    """A command that is sent at once or not at all."""

    __slots__ = ()

    def refuse(self) -> bool:
        return True


class Wire:
    """Sends the commands of all threads over one socket.

    The thread that puts a command in line sends it itself, together with all others that stand there: no switch to the
    loop thread, and one system call for many callers. Whoever finds another thread sending leaves his command to it.

    What the socket does not take is left to the loop, and bars the way for everybody until the loop's transport has
    sent it; meanwhile commands that can be refused are. With TLS, or where the socket cannot be had, the way is barred
    for ever, and every command goes through the loop.

    A signal handler that interrupts the main thread may raise, use the connection itself, or wait for threads that do.
    So that thread never holds the gate, for which nobody waits but on which all rely: it sends its own commands, alone.
    So does a thread that is interrupted while it sends, by a ``__del__`` say. See also `Outlet`.

    Args:
        transport: the loop's transport of the socket.
        loop: its loop.
        direct: whether threads may write to the socket.

    `put` and `send` are for every thread; all else belongs to the loop thread. A child process must not use it.
    """

    def __init__(self, transport: asyncio.WriteTransport, loop: asyncio.AbstractEventLoop, *, direct: bool) -> None:
        self._transport = transport
        self._loop = loop
        self._outlet = Outlet(transport, direct=direct)
        self._left = self._outlet.left
        self._line: deque[Command] = deque()
        self._gate = threading.Lock()  # whoever holds it sends what stands in line
        self._main = threading.main_thread().ident  # it sends its own commands only
        self._senders: set[int] = set()  # threads that are sending what stands in line, from their first step on
        self._closed = False
        self.resume()

    @property
    def is_direct(self) -> bool:
        """Whether callers write to the socket themselves at the moment."""
        return not self._left

    @property
    def backlog(self) -> int:
        """About how many bytes wait inside the process; 0 if and only if none do."""
        return sum(batch.unsettled for batch in self._left) + self._transport.get_write_buffer_size()

    def put(self, command: Command) -> None:
        """Send a command, or have it sent or refused by whoever is sending now.

        What a thread puts here and what it then sends may leave in either order.
        """
        me = get_ident()
        if self._left:
            if not (me in self._senders and command.refuse()):  # nobody can take it from the line meanwhile
                self._line.append(command)
                self._soon(self._relay)
        elif me == self._main or me in self._senders:
            if command.claim():
                self._write(Batch((command,)))
        else:
            self._senders.add(me)
            try:
                self._line.append(command)
                self._send_line()
            finally:
                self._senders.discard(me)
            if self._left and self._line:
                self._soon(self._relay)

    def send(self, data: bytes) -> bool:
        """Send a command behind everything that was sent before; return whether the socket took it.

        Of one that it took in part the loop sends the rest.
        """
        if self._left:
            return False
        batch = Batch((_Now(data),))
        self._write(batch)
        return batch.begun > 0

    def add(self, data: bytes) -> None:
        """Send a command behind everything that was added before, as soon as the socket takes it."""
        self._write(Batch((_Must(data),)))

    def resume(self) -> None:
        """Let threads write again if nothing is left to send."""
        self._settle()
        if self._left and self._outlet.usable and not self.backlog:
            self._left.remove(self._left[0])  # and nothing that another thread has left since
        self._send_line()  # for those who found the gate shut, or came while threads could not write

    def close(self) -> None:
        """Send nothing any more, and refuse what stands in line."""
        self._closed = True
        self._outlet.close()
        self._relay()

    # --- sending from any thread

    def _send_line(self) -> None:
        while self._line and not self._left and self._gate.acquire(blocking=False):
            try:
                while not self._left and (batch := self._next_batch()):
                    self._write(Batch(batch))
            finally:
                self._gate.release()

    def _next_batch(self) -> list[Command]:
        batch: list[Command] = []
        while self._line and len(batch) < _MOST_AT_ONCE and (command := self._next()) is not None:
            if command.claim():
                batch.append(command)
        return batch

    def _next(self) -> Command | None:
        try:
            return self._line.popleft()
        except IndexError:
            return None

    def _write(self, batch: Batch) -> None:
        if not self._outlet.write(batch):
            self._soon(self._transport.abort)  # then the reading side tells everybody
        if self._left:
            self._soon(self._relay)

    def _soon(self, callback: Callable[[], object]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: it has ended every call by then
            self._loop.call_soon_threadsafe(callback)

    # --- sending on the loop

    def _settle(self) -> None:
        """Give the transport what must still leave of the batches that are left. The last one stays, as the bar."""
        while self._left:
            for piece in self._left[0].settle():
                self._hand_over(piece)
            if len(self._left) == 1:
                return
            del self._left[0]

    def _relay(self) -> None:
        """Send or refuse what stands in line while threads cannot write."""
        self._settle()
        while self._left and (command := self._next()) is not None:
            if self._closed or self._transport.is_closing() or self.backlog:
                if not command.refuse():
                    self._hand_over(command.data)
            elif command.claim():
                self._hand_over(command.data)
        self.resume()

    def _hand_over(self, data: bytes) -> None:
        if not (self._closed or self._transport.is_closing()):
            self._transport.write(data)
