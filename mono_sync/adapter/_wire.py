"""The sending side of a socket, open to every thread."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import threading
from collections import deque
from collections.abc import Callable
from typing import Protocol

_MOST_AT_ONCE = 64


class Command(Protocol):
    """Bytes that are to leave as a whole, and what becomes of them."""

    @property
    def data(self) -> bytes:
        """One complete command of the protocol, or several."""

    def claim(self) -> bool:
        """Note that it is being sent from here on; return whether it is still wanted."""

    def refuse(self) -> bool:
        """Learn that nothing of it was sent, because the socket takes no more or is gone.

        Returns:
            False for a command that has to be sent as soon as the socket takes bytes again.
        """


class Must:
    """A command that waits inside the process for as long as the connection lives."""

    __slots__ = ("data",)

    def __init__(self, data: bytes) -> None:
        self.data: bytes = data

    def claim(self) -> bool:
        return True

    def refuse(self) -> bool:
        return False


class Wire:
    """Sends the commands of all threads over one socket, in the order in which they line up.

    The thread that puts a command in line sends it itself, together with all others that stand there: no switch to the
    loop thread, and one system call for many callers. Whoever finds another thread sending leaves his command to it.
    Only the main thread leaves the sending to the loop: signal handlers run there, between any two steps, and may raise
    or use the connection themselves.
    What the socket does not take goes to the loop's transport; until that has sent it, commands that can be refused
    are. With TLS, or where the socket cannot be had, every command is handed to the loop.

    Args:
        transport: the loop's transport of the socket.
        loop: its loop.
        direct: whether threads may write to the socket.

    `put` is for every thread; all else belongs to the loop thread. A child process must not use it.
    """

    def __init__(self, transport: asyncio.WriteTransport, loop: asyncio.AbstractEventLoop, *, direct: bool) -> None:
        self._transport = transport
        self._loop = loop
        self._line: deque[Command] = deque()
        self._gate = threading.Lock()  # whoever holds it sends; never held by the main thread, nor while waiting
        self._main = threading.main_thread()
        self._socket = _duplicate(transport) if direct else None
        self._direct = False  # written under the gate
        self._rests: deque[list[bytes]] = deque()
        self._handed_over = 0  # pieces on their way to the transport; written under the gate
        self._closed = False
        self.resume()

    @property
    def is_direct(self) -> bool:
        """Whether callers write to the socket themselves at the moment."""
        return self._direct

    @property
    def backlog(self) -> int:
        """About how many bytes wait inside the process; 0 if and only if none do."""
        return self._handed_over + self._transport.get_write_buffer_size()

    def put(self, command: Command) -> None:
        """Send a command, or have it sent or refused by whoever is sending now."""
        self._line.append(command)
        in_main_thread = threading.current_thread() is self._main
        if not in_main_thread:
            self._send()
        if self._line and (in_main_thread or not self._direct):
            self._soon(self._relay)

    def resume(self) -> None:
        """Let threads write again if the transport has nothing left to send."""
        with self._gate:
            if self._socket is not None and not self._closed and not self.backlog:
                self._direct = True
        self._send()  # for those who found the gate shut, or came while threads could not write

    def close(self) -> None:
        """Send nothing any more, and refuse what stands in line."""
        with self._gate:
            self._closed = True
            self._direct = False
            if self._socket is not None:
                self._socket.close()
        self._relay()

    # --- sending from any thread

    def _send(self) -> None:
        while self._direct and self._line and self._gate.acquire(blocking=False):
            try:
                self._send_line()
            finally:
                self._gate.release()

    def _send_line(self) -> None:
        while self._direct and self._line:
            line = [self._line.popleft() for _ in range(min(len(self._line), _MOST_AT_ONCE))]
            batch = [command for command in line if command.claim()]
            data = batch[0].data if len(batch) == 1 else b"".join([command.data for command in batch])
            assert self._socket is not None
            try:
                sent = self._socket.send(data)
            except (BlockingIOError, InterruptedError):
                sent = 0
            except OSError:  # the reading side finds the connection broken as well, and tells everybody
                sent = len(data)
            if sent < len(data):
                self._settle(batch, sent)

    def _settle(self, batch: list[Command], sent: int) -> None:
        """Refuse what was not sent, and give the loop what was sent in part."""
        rest: list[bytes] = []
        for command in batch:
            begun = min(sent, len(command.data))
            sent -= begun
            if begun < len(command.data) and (begun or not command.refuse()):
                rest.append(command.data[begun:])
        self._rests.append(rest)
        self._handed_over += 1
        self._direct = False
        self._soon(self._take_over)

    def _soon(self, callback: Callable[[], object]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: it has ended every call by then
            self._loop.call_soon_threadsafe(callback)

    # --- sending on the loop

    def _take_over(self) -> None:
        for piece in self._rests.popleft():
            self._write(piece)
        with self._gate:
            self._handed_over -= 1
        self._relay()

    def _relay(self) -> None:
        """Send or refuse what stands in line, for the main thread and while threads cannot write."""
        if self._direct:
            self._send()
            return
        while self._line and not self._handed_over:  # else those pieces go first, and `_take_over` comes back here
            try:
                command = self._line.popleft()
            except IndexError:  # a thread that sends was faster
                break
            if self._closed or self._transport.is_closing() or self.backlog:
                if not command.refuse():
                    self._write(command.data)
            elif command.claim():
                self._write(command.data)
        self.resume()

    def _write(self, data: bytes) -> None:
        if not (self._closed or self._transport.is_closing()):
            self._transport.write(data)


def _duplicate(transport: asyncio.WriteTransport) -> socket.socket | None:
    """Return a socket of our own for the transport's connection: its number stays ours when the transport closes."""
    with contextlib.suppress(OSError, AttributeError, TypeError):
        copy = socket.socket(fileno=os.dup(transport.get_extra_info("socket").fileno()))
        copy.setblocking(False)
        return copy
    return None
