"""A wire between the test and itself, and commands for it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from typing import Any, Self

from mono_sync._durations import Deadline
from mono_sync.adapter._wire import Wire
from mono_sync.loop import LoopThread
from tests.fixtures.waiting import wait_until


class Request:
    """A command that can be refused."""

    def __init__(self, data: bytes, *, wanted: bool = True) -> None:
        self.data = data
        self.wanted = wanted
        self.fate = ""
        self.ended = threading.Event()

    def claim(self) -> bool:
        self.fate = "claimed"
        return self.wanted

    def refuse(self) -> bool:
        self.fate = "refused"
        self.ended.set()
        return True


class Pipe:
    """A wire whose other end the test reads when it wants to."""

    def __init__(self, *, direct: bool, hide_socket: bool = False) -> None:
        near, self.far = socket.socketpair()
        near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        near.setblocking(False)
        self.far.settimeout(20)
        self.loop = LoopThread("wire")
        self._near = near
        self.direct = direct
        self._hide_socket = hide_socket
        self.wire = self.loop.run(self._open, deadline=Deadline(20), operation="open")

    async def _open(self) -> Wire:
        loop = asyncio.get_running_loop()
        pipe = self

        class Protocol(asyncio.Protocol):
            def resume_writing(self) -> None:
                pipe.wire.resume()

        self.transport, _ = await loop.create_connection(Protocol, sock=self._near)
        self.transport.set_write_buffer_limits(high=0)
        if self._hide_socket:
            patched: Any = self.transport
            patched.get_extra_info = lambda _name: None
        return Wire(self.transport, loop, direct=self.direct)

    def read(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            data += self.far.recv(size - len(data))
        return bytes(data)

    def call(self, function: Any) -> Any:
        return self.loop.call(function, deadline=Deadline(20), operation="call")

    def add(self, data: bytes) -> None:
        self.call(lambda: self.wire.add(data))

    def fill(self) -> bytes:
        """Send until the socket takes no more; return what will arrive."""
        whole = b""
        while not self.wire.backlog:
            piece = b"f" * 3000
            self.add(piece)
            whole += piece
            self.call(int)  # what the wire has handed to the loop is there now
        return whole

    def close(self) -> None:
        self.call(self.wire.close)
        self.call(self.transport.abort)
        self.loop.stop()
        self.far.close()


class Reader:
    """Takes commands ``<...>`` from the other end, in order, until that is closed."""

    def __init__(self, pipe: Pipe) -> None:
        self.commands: list[str] = []
        self.seen: set[str] = set()
        self._pipe = pipe
        self._thread = threading.Thread(target=self._read)

    def _read(self) -> None:
        rest = ""
        with contextlib.suppress(OSError):  # closed
            while piece := self._pipe.far.recv(1 << 12):
                *whole, rest = (rest + piece.decode()).split(">")
                self.commands += [f"{command}>" for command in whole]
                self.seen.update(f"{command}>" for command in whole)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._pipe.far.shutdown(socket.SHUT_RD)
        self._thread.join(20)
        assert not self._thread.is_alive()


def send_surely(pipe: Pipe, reader: Reader, command: str) -> int:
    """Send until it has arrived; return how often it was refused."""
    refused = 0
    while True:
        request = Request(command.encode())
        pipe.wire.put(request)
        ended = request.ended
        wait_until(lambda: command in reader.seen or ended.is_set(), command)  # noqa: B023  # called at once
        if not request.ended.is_set():
            return refused
        assert command not in reader.seen, "refused, but sent"
        refused += 1
