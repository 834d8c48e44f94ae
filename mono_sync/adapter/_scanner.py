"""The receiving side of a connection: messages cut out of the stream of bytes as it arrives."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sized
from typing import TypeAlias

from mono_sync.adapter._message import Message

Sink: TypeAlias = Callable[[Message], None]
"""Takes each message of a subscription, on the loop thread: it must neither block nor raise."""

_CRLF = b"\r\n"
_MESSAGE = b"MSG"
_MESSAGE_WITH_HEADERS = b"HMSG"
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
        self._large: list[_LargeMessage] = []  # at most one, whose payload is not complete
        self._ignored = 0  # bytes that come next
        self.lost: bool = False
        """Whether it makes no sense of the bytes any more."""
        self.unfinished: tuple[Sized, ...] = (self._pieces, self._large)
        """All are empty when the next bytes are the beginning of a line."""

    @property
    def is_in_large_payload(self) -> bool:
        """Whether many of the next bytes are the payload of one message."""
        return bool(self._large)

    def feed(self, data: bytes) -> None:
        """Take the next bytes."""
        start = 0
        if self._large:
            large = self._large[0]
            start = large.take(data, 0)
            if large.missing:
                return
            self._large.clear()
            self._ignored = len(_CRLF)
            self._hand_out(large.words, large.header_block, b"".join(large.pieces))
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
        if self.lost:
            self._others(data)
            return
        try:
            position = self._scan(data, start)
        except (ValueError, IndexError):  # not a message after all
            self.lost = True
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
            measured = _measure(data, position, end)
            if measured is None:
                self._others(data[position : end + 2])
                position = self._position = end + 2
                continue
            words, body, after = measured
            if after + 2 > size:
                if body <= size and _LARGE <= after - size <= _LARGEST:
                    large = _LargeMessage(words, data[end + 2 : body], after - body)
                    self._large.append(large)
                    return large.take(data, body)
                self._wanted = after + 2 - position
                return position
            self._hand_out(words, data[end + 2 : body], data[body:after])
            position = self._position = after + 2
        return position

    def _hand_out(self, words: list[bytes], header_block: bytes, payload: bytes) -> None:
        if (sink := self._sinks.get(words[2])) is not None:
            sink(_message(words, header_block, payload))


def first_message(data: bytes) -> tuple[Message | None, int]:
    """Return the message with which bytes begin, and its length; None: it is no message, or not complete."""
    end = data.find(_CRLF)
    try:
        measured = _measure(data, 0, end) if end > 0 else None
    except (ValueError, IndexError):  # not a message after all
        return None, 0
    if measured is None or measured[2] + 2 > len(data):
        return None, 0
    words, body, after = measured
    return _message(words, data[end + 2 : body], data[body:after]), after + 2


def _measure(data: bytes, position: int, end: int) -> tuple[list[bytes], int, int] | None:
    """Return the words of a message's line but for the size of headers, and where its payload begins and ends.

    None: it is another line.

    Raises:
        ValueError: it makes no sense.
        IndexError: it makes no sense.
    """
    words = data[position:end].split()
    body = head = end + 2
    if words[0] == _MESSAGE_WITH_HEADERS:
        body += int(words.pop(-2))
    elif words[0] != _MESSAGE:
        return None
    after = head + int(words[-1])
    if after < body or not 4 <= len(words) <= 5:
        raise ValueError("a negative size, or not as many words")
    return words, body, after


def _message(words: list[bytes], header_block: bytes, payload: bytes) -> Message:
    """Put a message together; its line's words are kind, subject, subscription, perhaps reply subject, and size."""
    reply = words[3].decode("utf-8", "replace") if len(words) > 4 else ""
    return Message(words[1].decode("utf-8", "replace"), payload, reply, header_block)


class _LargeMessage:
    """A message whose payload is not complete.

    Attributes:
        words: those of its line.
        header_block: the headers.
        pieces: what has come of the payload.
        missing: how many bytes have not.
    """

    __slots__ = ("header_block", "missing", "pieces", "words")

    def __init__(self, words: list[bytes], header_block: bytes, size: int) -> None:
        self.words: list[bytes] = words
        self.header_block: bytes = header_block
        self.pieces: list[memoryview] = []
        self.missing: int = size

    def take(self, data: bytes, start: int) -> int:
        """Take what belongs to the payload from there on; return where the rest begins."""
        piece = memoryview(data)[start : start + self.missing]
        self.pieces.append(piece)
        self.missing -= len(piece)
        return start + len(piece)
