"""The socket as nats-py sees it, with a fast lane in each direction beside it.

nats-py writes and reads through an object like this one. During the handshake it is a plain stream. After that, bytes
leave through a `Wire` and messages arrive through a `Scanner`; nats-py goes on to get every other line.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Callable, Iterable, Mapping
from urllib.parse import ParseResult

from mono_sync.adapter._inlet import Inlet
from mono_sync.adapter._scanner import Scanner, Sink
from mono_sync.adapter._wire import Wire

_CLOSE_PATIENCE = 1.0


class _Stream(asyncio.StreamReaderProtocol):
    """Fills nats-py's reader, through the scanner once there is one."""

    def __init__(self, limit: int, loop: asyncio.AbstractEventLoop) -> None:
        self.reader = asyncio.StreamReader(limit=limit, loop=loop)
        super().__init__(self.reader, loop=loop)
        self.unread = 0
        """Bytes that the reader was given and has not handed out."""
        self.closed = asyncio.Event()
        self.scanner: Scanner | None = None
        self.wire: Wire | None = None

    def pass_on(self, data: bytes) -> None:
        self.unread += len(data)
        super().data_received(data)

    def data_received(self, data: bytes) -> None:
        if self.scanner is None:
            self.pass_on(data)
        else:
            self.scanner.feed(data)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.closed.set()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self.wire is not None:
            self.wire.resume()


class _BufferedStream(_Stream, asyncio.BufferedProtocol):
    """The same with a buffer of its own.

    asyncio makes one of 256 KiB for each read otherwise, which takes longer than the reading; uvloop does not.
    """

    def __init__(self, limit: int, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(limit, loop)
        self._buffer = memoryview(bytearray(limit))

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002  # asyncio's signature
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        self.data_received(bytes(self._buffer[:nbytes]))


class Transport:
    """TCP or TLS connection of one attempt to connect; what nats-py calls has nats-py's names and arguments.

    Args:
        pending_size: bytes that may wait inside the process before `congested` says so.
        parser_idle: tells whether nats-py's parser is between two messages.
    """

    def __init__(self, pending_size: int, parser_idle: Callable[[], bool]) -> None:
        self._pending_size = pending_size
        self._parser_idle = parser_idle
        self._stream: _Stream | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._plain: asyncio.StreamWriter | None = None  # under the TLS; closes the socket when it is collected
        self._secure = False
        self._scanner: Scanner | None = None
        self.wire: Wire | None = None
        """How threads send; None during the handshake."""
        self.inlet: Inlet | None = None
        """How threads receive; None where only the loop can, and during the handshake."""

    # --- connecting

    async def connect(self, uri: ParseResult, buffer_size: int, connect_timeout: float) -> None:
        """Open the TCP connection."""
        assert uri.hostname is not None
        assert uri.port is not None
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(connect_timeout):
            transport, stream = await loop.create_connection(lambda: _stream(buffer_size), uri.hostname, uri.port)
        self._plain = self._use(transport, stream)

    async def connect_tls(
        self, uri: str | ParseResult, ssl_context: ssl.SSLContext, buffer_size: int, connect_timeout: float
    ) -> None:
        """Change to TLS."""
        assert self._plain is not None
        loop = asyncio.get_running_loop()
        stream = _stream(buffer_size)
        name = uri if isinstance(uri, str) else uri.hostname
        async with asyncio.timeout(connect_timeout):
            transport = await loop.start_tls(self._plain.transport, stream, ssl_context, server_hostname=name)
        assert transport is not None
        self._secure = True
        self._use(transport, stream)

    def _use(self, transport: asyncio.Transport, stream: _Stream) -> asyncio.StreamWriter:
        # We are to be told as soon as nothing is left to send. With a limit of 0, TLS would call nothing too much.
        transport.set_write_buffer_limits(high=int(self._secure), low=0)
        self._stream = stream
        self._writer = asyncio.StreamWriter(transport, stream, stream.reader, asyncio.get_running_loop())
        return self._writer

    def open_lanes(self, sinks: Mapping[bytes, Sink]) -> None:
        """Let threads write to the socket, and messages go straight to their sinks: the handshake is over.

        Receiving changes over in `read`, at the next moment when nothing is half read.
        """
        assert self._stream is not None
        assert self._writer is not None
        self._scanner = Scanner(sinks, self._stream.pass_on)
        wire = Wire(self._writer.transport, asyncio.get_running_loop(), direct=not self._secure)
        self.wire = self._stream.wire = wire

    def _open_receiving_lane(self, scanner: Scanner) -> None:
        assert self._stream is not None
        assert self._writer is not None
        self._stream.scanner = scanner
        if not self._secure:
            self.inlet = Inlet.open(self._writer.transport, asyncio.get_running_loop(), scanner)

    # --- bytes

    @property
    def scans(self) -> bool:
        """Whether messages go straight to their sinks."""
        return self._stream is not None and self._stream.scanner is not None

    @property
    def congested(self) -> bool:
        """Whether a further message would have to wait inside the process."""
        if self._writer is None:
            return False
        waiting = self.wire.backlog if self.wire is not None else self._writer.transport.get_write_buffer_size()
        return waiting > self._pending_size

    def write(self, data: bytes) -> None:
        """Send bytes, if need be later."""
        assert self._writer is not None
        if self.wire is None:
            self._writer.write(data)
        else:
            self.wire.add(data)

    def writelines(self, pieces: Iterable[bytes]) -> None:
        """Send bytes, if need be later."""
        self.write(b"".join(pieces))

    async def drain(self) -> None:
        """Wait until the socket has taken everything."""
        assert self._writer is not None
        if self.wire is not None:
            self.wire.resume()  # a thread that found the socket full may have been stopped before it could say so
        await asyncio.sleep(0)
        await self._writer.drain()

    async def read(self, buffer_size: int) -> bytes:
        """Return the next bytes; nats-py has dealt with all earlier ones when it calls this."""
        assert self._stream is not None
        if self._scanner is not None and not self.scans and not self._stream.unread and self._parser_idle():
            self._open_receiving_lane(self._scanner)
        data = await self._stream.reader.read(buffer_size)
        self._stream.unread -= len(data)
        return data

    async def readline(self) -> bytes:
        """Return the next line."""
        assert self._stream is not None
        line = await self._stream.reader.readline()
        self._stream.unread -= len(line)
        return line

    # --- the end

    def at_eof(self) -> bool:
        """Return whether nothing more will come."""
        return self._stream is None or self._stream.reader.at_eof()

    def close(self) -> None:
        """Close after sending what is left."""
        if self._writer is not None:
            self._writer.close()
        self._close_lanes()

    async def wait_closed(self) -> None:
        """Wait a moment for the end of `close`.

        Not by the stream writer's own way, which all who wait share: where one of them is cancelled, all are.
        """
        if self._stream is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_CLOSE_PATIENCE):
                    await self._stream.closed.wait()

    def abort(self) -> None:
        """Close without waiting for unsent bytes."""
        for writer in (self._writer, self._plain):
            if writer is not None:
                writer.transport.abort()
        self._close_lanes()

    def _close_lanes(self) -> None:
        if self.wire is not None:
            self.wire.close()
        if self.inlet is not None:
            self.inlet.close()
            self.inlet = None

    def __bool__(self) -> bool:
        return self._writer is not None


def _stream(limit: int) -> _Stream:
    loop = asyncio.get_running_loop()
    kind = _BufferedStream if isinstance(loop, asyncio.SelectorEventLoop) else _Stream
    return kind(limit, loop)
