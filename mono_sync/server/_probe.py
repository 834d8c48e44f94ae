"""Ask a nats-server whether JetStream answers, with nothing but a socket."""

from __future__ import annotations

import json
import socket
import time
from typing import Final

_INBOX: Final = b"_INBOX.mono_sync.probe"
_LINE_LIMIT: Final = 64 * 1024


class NotReadyError(Exception):
    """The server answered, but not as one that is ready."""


def probe(port: int, token: str, timeout: float) -> str:
    """Return the version of the server on this port, once JetStream has answered a request.

    Raises:
        OSError: it cannot be reached, or did not answer within ``timeout`` seconds.
        NotReadyError: it refused us, or JetStream is not there.
    """
    end = time.monotonic() + timeout
    with socket.create_connection(("127.0.0.1", port), timeout=timeout) as connection:
        lines = _Lines(connection, end)
        info = json.loads(lines.expect(b"INFO "))
        options = {"auth_token": token, "verbose": False, "pedantic": False, "headers": True, "no_responders": True}
        options |= {"lang": "python", "version": "0", "name": "mono_sync-probe", "protocol": 1}
        connection.sendall(
            b"CONNECT %b\r\nSUB %b 1\r\nPUB $JS.API.INFO %b 0\r\n\r\n" % (json.dumps(options).encode(), _INBOX, _INBOX)
        )
        lines.expect(b"MSG ")
        answer = json.loads(lines.next())
        if "error" in answer:
            raise NotReadyError(f"JetStream answered {answer['error'].get('description')!r}")
        return str(info["version"])


class _Lines:
    def __init__(self, connection: socket.socket, end: float) -> None:
        self._connection = connection
        self._end = end
        self._buffer = b""

    def next(self) -> bytes:
        while b"\r\n" not in self._buffer:
            self._connection.settimeout(max(0.001, self._end - time.monotonic()))
            data = self._connection.recv(4096)
            if not data or len(self._buffer) > _LINE_LIMIT:
                raise NotReadyError("it ended the connection")
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\r\n")
        return line

    def expect(self, start: bytes) -> bytes:
        """Return the rest of the next line, which must begin so."""
        line = self.next()
        if line.startswith(start):
            return line.removeprefix(start)
        if line.startswith(b"HMSG "):
            raise NotReadyError("JetStream is not enabled")
        raise NotReadyError(f"it said {line[:80].decode('utf-8', 'replace')!r}")
