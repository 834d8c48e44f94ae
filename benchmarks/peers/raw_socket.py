"""The floor: one blocking socket and the bytes of the protocol, in the calling thread."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterable, Iterator
from itertools import islice

from benchmarks.peers.contender import KEY, VALUE, Blocking

_INBOX = b"_INBOX.raw"


class RawSocket(Blocking):
    """No client at all: it knows two commands and their answers. One thread at a time."""

    name = "raw socket"

    def __init__(self, url: str, token: str, bucket: str) -> None:
        host, _, port = url.partition("://")[2].rpartition(":")
        self._bucket = bucket.encode()
        self._socket = socket.create_connection((host, int(port)))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._incoming = self._socket.makefile("rb")
        self._incoming.readline()  # what the server tells of itself
        options = {"auth_token": token, "verbose": False, "headers": True, "no_responders": True}
        self._socket.sendall(b"CONNECT %b\r\nSUB %b 1\r\n" % (json.dumps(options).encode(), _INBOX))

    def get(self) -> bytes:
        self._socket.sendall(self._question(KEY))
        return self._answer()

    def set(self) -> None:
        self._socket.sendall(self._put(KEY, VALUE))
        self._acknowledged()

    def fill(self, keys: Iterable[str], value: bytes, *, ahead: int) -> None:
        """Write a value under many keys, ``ahead`` of them before their answers are read."""
        self._each((self._put(key, value) for key in keys), self._acknowledged, ahead)

    def fetch(self, keys: Iterable[str], *, ahead: int) -> None:
        """Read many keys in the same way."""
        self._each((self._question(key) for key in keys), self._answer, ahead)

    def _each(self, commands: Iterator[bytes], take_answer: Callable[[], object], ahead: int) -> None:
        while some := list(islice(commands, ahead)):
            self._socket.sendall(b"".join(some))
            for _ in some:
                take_answer()

    def close(self) -> None:
        self._incoming.close()
        self._socket.close()

    def _question(self, key: str) -> bytes:
        subject = b"$JS.API.DIRECT.GET.KV_%b.$KV.%b.%b" % (self._bucket, self._bucket, key.encode())
        return b"PUB %b %b 0\r\n\r\n" % (subject, _INBOX)

    def _put(self, key: str, value: bytes) -> bytes:
        return b"PUB $KV.%b.%b %b %d\r\n%b\r\n" % (self._bucket, key.encode(), _INBOX, len(value), value)

    def _acknowledged(self) -> None:
        answer = self._answer()
        if b'"error"' in answer or not answer:
            raise ConnectionError(f"not stored: {answer!r}")

    def _answer(self) -> bytes:
        """Return the payload of the next message."""
        while True:
            line = self._incoming.readline()
            if line.startswith(b"MSG "):
                head, size = 0, int(line.rsplit(b" ", 1)[1])
            elif line.startswith(b"HMSG "):
                head, size = map(int, line.split()[-2:])
            elif line == b"PING\r\n":
                self._socket.sendall(b"PONG\r\n")
                continue
            else:
                raise ConnectionError(line)
            return self._incoming.read(size + 2)[head:-2]
