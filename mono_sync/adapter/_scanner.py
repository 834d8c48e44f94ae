"""The receiving side of a connection: messages cut out of the stream of bytes as it arrives."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

from mono_sync.adapter._message import Message

Sink: TypeAlias = Callable[[Message], None]
"""Takes each message of a subscription, on the loop thread: it must neither block nor raise."""

_CRLF = b"\r\n"
_LONGEST_LINE = 1 << 20
_LARGE = 1 << 14  # bytes that are missing; of less it is as quick to look at the whole message again
_LARGEST = 1 << 26  # no server takes more


class Scanner:
    """Hands messages to the sinks of their subscriptions, and everything else on as it came, line by line.

    What it cannot make sense of it hands on as well, with all that follows: whoever takes that knows what to do.
    A message costs one search and one split here, and no task is woken for it. The bytes of a large payload are put
    together once.

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
        self._large: _LargeMessage | None = None  # whose payload is not complete
        self._ignored = 0  # bytes that come next

    def feed(self, data: bytes) -> None:
        """Take the next bytes."""
        start = 0
        if self._large is not None:
            start = self._large.take(data, 0)
            if self._large.missing:
                return
            large, self._large, self._ignored = self._large, None, len(_CRLF)
            self._hand_out(large.fields, large.header_block, b"".join(large.pieces))
        if self._ignored:
            ignored = min(self._ignored, len(data) - start)
            start, self._ignored = start + ignored, self._ignored - ignored
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
            position = self._scan(data, start)
        except (ValueError, IndexError):  # not a message after all
            self._lost = True
            self._others(data[self._position :])
            return
        if position < len(data):
            self._pieces.append(data[position:])
            self._size = len(data) - position

    def _scan(self, data: bytes, start: int) -> int:
        """Hand on all that is complete; return where the rest begins."""
        size = len(data)
        position = self._position = start
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
            after = head + int(fields.pop())
            if after < body or not 1 < len(fields) <= 3:
                raise ValueError("a negative size, or not as many words")
            if after + 2 > size:
                if body <= size and _LARGE <= after - size <= _LARGEST:
                    self._large = _LargeMessage(fields, data[head:body], after - body)
                    return self._large.take(data, body)
                self._wanted = after + 2 - position
                return position
            self._hand_out(fields, data[head:body], data[body:after])
            position = self._position = after + 2
        return position

    def _hand_out(self, fields: list[bytes], header_block: bytes, payload: bytes) -> None:
        subject, sid, *reply = fields
        if (sink := self._sinks.get(sid)) is not None:
            answer = reply[0].decode("utf-8", "replace") if reply else ""
            sink(Message(subject.decode("utf-8", "replace"), payload, answer, header_block))


class _LargeMessage:
    """A message whose payload is not complete.

    Attributes:
        fields: subject, subscription, perhaps the subject for an answer.
        header_block: the headers.
        pieces: what has come of the payload.
        missing: how many bytes have not.
    """

    __slots__ = ("fields", "header_block", "missing", "pieces")

    def __init__(self, fields: list[bytes], header_block: bytes, size: int) -> None:
        self.fields: list[bytes] = fields
        self.header_block: bytes = header_block
        self.pieces: list[memoryview] = []
        self.missing: int = size

    def take(self, data: bytes, start: int) -> int:
        """Take what belongs to the payload from there on; return where the rest begins."""
        piece = memoryview(data)[start : start + self.missing]
        self.pieces.append(piece)
        self.missing -= len(piece)
        return start + len(piece)
