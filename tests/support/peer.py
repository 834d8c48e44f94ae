"""A server that is none: for what no real one can be made to say."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from typing import Any

from tests.support.network import Listener

Answer = dict[str, Any] | bytes
"""A JSON object, or the header block of a status message."""


class Peer(Listener):
    """Speaks as much of the NATS protocol as one client needs.

    Args:
        answer: returns what to say to a request, given its subject and its reply subject; None: nothing now.
        info: what it tells of itself, beside what every client needs to know.
    """

    def __init__(
        self, answer: Callable[[str, str], Answer | None] = lambda _subject, _reply: None, **info: Any
    ) -> None:
        super().__init__(self._speak)
        self._info = {"version": "2.10.0", "max_payload": 1 << 20, "headers": True, **info}
        self._answer = answer
        self._client: socket.socket | None = None
        self._subscriptions: dict[str, str] = {}
        self.connections = 0
        self.pings = 0

    def pinged(self) -> None:
        """Answer a PING."""
        self.say(b"PONG\r\n")

    def say(self, data: bytes) -> None:
        """Send bytes of the protocol."""
        assert self._client is not None
        self._client.sendall(data)

    def reply(self, subject: str, answer: Answer) -> None:
        """Send a message to the subscription that takes the subject."""
        number = next(number for pattern, number in self._subscriptions.items() if _matches(subject, pattern))
        head, body = (answer, b"") if isinstance(answer, bytes) else (b"NATS/1.0\r\n\r\n", json.dumps(answer).encode())
        size = len(head) + len(body)
        self.say(f"HMSG {subject} {number} {len(head)} {size}\r\n".encode() + head + body + b"\r\n")

    def _speak(self, connection: socket.socket) -> None:
        self.connections += 1
        self._client, self._subscriptions = connection, {}
        self.say(f"INFO {json.dumps(self._info)}\r\n".encode())
        with connection.makefile("rb") as lines:
            for line in lines:
                verb, *arguments = line.decode().split()
                if verb == "PING":
                    self.pings += 1
                    self.pinged()
                elif verb == "SUB":
                    self._subscriptions[arguments[0]] = arguments[-1]
                elif verb in ("PUB", "HPUB"):
                    lines.read(int(arguments[-1]) + 2)
                    subject, reply = arguments[0], arguments[1]  # no reply: the size, which nobody answers
                    answer = self._answer(subject, reply)
                    if answer is not None:
                        self.reply(reply, answer)


def _matches(subject: str, pattern: str) -> bool:
    tokens, wanted = subject.split("."), pattern.split(".")
    return len(tokens) == len(wanted) and all(want in ("*", token) for token, want in zip(tokens, wanted, strict=True))
