"""Network faults without touching the server."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable
from typing import Self

LOOPBACK = "127.0.0.1"


def unused_port() -> int:
    """Return a port on which nothing listens at the moment."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


class Listener:
    """A TCP server that treats every connection with one function, each on a thread of its own."""

    def __init__(self, handle: Callable[[socket.socket], None]) -> None:
        self._handle = handle
        self._socket = socket.create_server((LOOPBACK, 0))
        self._connections: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self._ended = False
        self.url = f"nats://{LOOPBACK}:{self._socket.getsockname()[1]}"

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(self, *exception: object) -> None:
        self.shut()
        for thread in list(self._threads):
            thread.join(5)
            assert not thread.is_alive()

    def shut(self) -> None:
        """End, as far as clients can tell."""
        with self._lock:
            self._ended = True
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self.cut()

    def cut(self) -> None:
        """Reset every connection, as a dying network does."""
        with self._lock:
            connections, self._connections = self._connections, []
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()

    def own(self, connection: socket.socket) -> socket.socket:
        """Close a connection together with the listener; at once if that has ended."""
        with self._lock:
            if self._ended:
                connection.close()
            self._connections.append(connection)
        return connection

    def _start(self, run: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=run, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            self._start(self._serve, self.own(connection))

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            self._handle(connection)
        with contextlib.suppress(OSError):  # also when it could not be handled: nobody waits for an answer then
            connection.shutdown(socket.SHUT_RDWR)


def silent() -> Listener:
    """A server that accepts and never says a word."""
    return Listener(_read_until_closed)


def saying(text: bytes) -> Listener:
    """A server that speaks something else than NATS."""

    def handle(connection: socket.socket) -> None:
        connection.sendall(text)
        _read_until_closed(connection)

    return Listener(handle)


class Proxy(Listener):
    """Forwards to a server, until told otherwise."""

    def __init__(self, url: str) -> None:
        super().__init__(self._forward)
        host, _, port = url.partition("://")[2].rpartition(":")
        self._target = (host, int(port))
        self._open = threading.Event()
        self._open.set()
        self._greeting = b""
        self._client: socket.socket | None = None

    def stall(self) -> None:
        """Take no more bytes in either direction; connections stay up."""
        self._open.clear()

    def resume(self) -> None:
        """Go on with whatever waited."""
        self._open.set()

    def __exit__(self, *exception: object) -> None:
        self._open.set()
        super().__exit__(*exception)

    def say(self, text: bytes) -> None:
        """Send something to the client that connected last, as if the server had."""
        assert self._client is not None, "nobody has connected"
        self._client.sendall(text)

    def babble(self, greeting: bytes) -> None:
        """Say this to whoever connects from now on, and nothing else."""
        self._greeting = greeting

    def _forward(self, connection: socket.socket) -> None:
        if self._greeting:
            connection.sendall(self._greeting)
            _read_until_closed(connection)
            return
        self._client = connection
        upstream = self.own(socket.create_connection(self._target))
        self._start(self._pump, upstream, connection)
        self._pump(connection, upstream)

    def _pump(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while self._open.wait() and (data := source.recv(1 << 16)):
                self._open.wait()
                target.sendall(data)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


def _read_until_closed(connection: socket.socket) -> None:
    while connection.recv(1 << 16):
        pass
