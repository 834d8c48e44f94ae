"""The receiving side of a connection: messages cut out of the stream of bytes as it arrives."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

from mono_sync.adapter._message import Message

Sink: TypeAlias = Callable[[Message], None]
"""Takes each message of a subscription, on the loop thread: it must neither block nor raise."""

_CRLF = b"\r\n"
_LONGEST_LINE = 1 << 20


class Scanner:
    """Hands messages to the sinks of their subscriptions, and everything else on as it came, line by line.

    What it cannot make sense of it hands on as well, with all that follows: whoever takes that knows what to do.
    A message costs one search and one split here, and no task is woken for it.

    Args:
        sinks: where the messages of a subscription go, by its number on the wire; looked up for each message.
        others: takes the other lines.
    """

    def __init__(self, sinks: Mapping[bytes, Sink], others: Callable[[bytes], None]) -> None:
        self._sinks = sinks
        self._others = others
        self._pieces: list[bytes] = []  # of a line or message that is not complete
        self._size = 0
        self._wanted = 0  # size from which on looking at them is worth it
        self._lost = False

    def feed(self, data: bytes) -> None:
        """Take the next bytes."""
        if self._pieces:
            self._pieces.append(data)
            self._size += len(data)
            if self._size < self._wanted:
                return
            data = b"".join(self._pieces)
            self._pieces.clear()
        if self._lost:
            self._others(data)
            return
        try:
            position = self._scan(data)
        except (ValueError, IndexError):  # not a message after all
            self._lost = True
            self._others(data[self._position :])
            return
        if position < len(data):
            self._pieces.append(data[position:])
            self._size = len(data) - position

    def _scan(self, data: bytes) -> int:
        """Hand on all that is complete; return where the rest begins."""
        size, position = len(data), 0
        self._position = 0
        while position < size:
            end = data.find(_CRLF, position)
            if end < 0:
                if size - position > _LONGEST_LINE:
                    raise ValueError("no end of a line")
                self._wanted = 0
                return position
            if data.startswith(b"MSG ", position):
                fields = data[position + 4 : end].split()
                body = head = end + 2
            elif data.startswith(b"HMSG ", position):
                fields = data[position + 5 : end].split()
                head = end + 2
                body = head + int(fields.pop(-2))
            else:
                self._others(data[position : end + 2])
                position = self._position = end + 2
                continue
            subject, sid, *reply, length = fields
            after = head + int(length)
            if after < body or len(reply) > 1:
                raise ValueError("a negative size, or too many words")
            if after + 2 > size:
                self._wanted = after + 2 - position
                return position
            if (sink := self._sinks.get(sid)) is not None:
                answer = reply[0].decode("utf-8", "replace") if reply else ""
                sink(Message(subject.decode("utf-8", "replace"), data[body:after], answer, data[head:body]))
            position = self._position = after + 2
        return position
