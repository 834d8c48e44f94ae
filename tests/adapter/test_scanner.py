"""Messages are cut out of the stream as nats-py's own parser does it, however the stream is split."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nats.protocol.parser import Parser

from mono_sync.adapter import _scanner
from mono_sync.adapter._message import Message
from mono_sync.adapter._scanner import Scanner

Piece = tuple[str, ...]


class Recorder:
    """What came out, in order, as tuples."""

    def __init__(self) -> None:
        self.messages: list[tuple[bytes, str, str, bytes, bytes]] = []
        self.others = bytearray()

    def scanner(self) -> Scanner:
        return Scanner({sid: self._sink(sid) for sid in (b"1", b"2", b"17")}, self.others.extend)

    def _sink(self, sid: bytes) -> Any:
        def take(message: Message) -> None:
            raw = message.header_block
            self.messages.append((sid, message.subject, message.reply, raw, message.data))

        return take


class Client:
    """What nats-py's parser calls; it writes down the same tuples."""

    def __init__(self) -> None:
        self.messages: list[tuple[bytes, str, str, bytes, bytes]] = []
        self.others: list[str] = []

    async def _process_msg(self, sid: int, subject: bytes, reply: bytes, data: bytes, header: bytes | None) -> None:
        self.messages.append((b"%d" % sid, subject.decode(), reply.decode(), header or b"", data))

    async def _process_ping(self) -> None:
        self.others.append("ping")

    async def _process_pong(self) -> None:
        self.others.append("pong")

    async def _process_err(self, reason: str) -> None:
        self.others.append(reason)

    async def _process_info(self, info: dict[str, Any]) -> None:
        self.others.append(f"info {info}")


tokens = st.text("abcdefgh.$_-", min_size=1, max_size=20).map(lambda text: f"s{text}")
payloads = st.one_of(st.binary(max_size=40), st.just(b"\r\nMSG a 1 3\r\n"), st.just(b"PING\r\n"))


@st.composite
def messages(draw: st.DrawFn) -> bytes:
    subject, sid, data = draw(tokens), draw(st.sampled_from([1, 2, 17])), draw(payloads)
    reply = draw(st.one_of(st.just(""), tokens.map(lambda text: f"{text} ")))
    if draw(st.booleans()):
        return f"MSG {subject} {sid} {reply}{len(data)}\r\n".encode() + data + b"\r\n"
    block = b"NATS/1.0\r\n" + draw(st.sampled_from([b"", b"a: b\r\n"])) + b"\r\n"
    return f"HMSG {subject} {sid} {reply}{len(block)} {len(block + data)}\r\n".encode() + block + data + b"\r\n"


lines = st.sampled_from([b"PING\r\n", b"PONG\r\n", b"+OK\r\n", b'INFO {"a":1}\r\n', b"-ERR 'no'\r\n"])
streams = st.lists(st.one_of(messages(), messages(), lines), max_size=12).map(b"".join)


def split(stream: bytes, cuts: Sequence[int]) -> list[bytes]:
    places = sorted({cut % (len(stream) + 1) for cut in cuts})
    return [stream[start:end] for start, end in zip([0, *places], [*places, len(stream)], strict=True)]


def parsed(stream: bytes) -> Client:
    client = Client()
    asyncio.run(Parser(client).parse(stream))
    return client


@settings(deadline=None)
@given(streams, st.lists(st.integers(0, 10_000), max_size=30), st.sampled_from([1, 20, _scanner._LARGE]))
def test_messages_are_those_that_the_parser_of_nats_py_finds(stream: bytes, cuts: list[int], large: int) -> None:
    recorder = Recorder()
    scanner = recorder.scanner()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_scanner, "_LARGE", large)
        for piece in split(stream, cuts):
            scanner.feed(piece)
    theirs = parsed(stream)
    assert recorder.messages == theirs.messages
    assert parsed(bytes(recorder.others)).others == theirs.others


@pytest.mark.parametrize("size", [1, 1 << 16, 3_000_000])
def test_a_large_message_in_small_pieces_costs_linear_time(size: int) -> None:
    recorder = Recorder()
    scanner = recorder.scanner()
    data = b"x" * size
    stream = b"MSG a 1 %d\r\n%b\r\nPING\r\n" % (size, data)
    for start in range(0, len(stream), 1 << 12):
        scanner.feed(stream[start : start + (1 << 12)])
    assert recorder.messages == [(b"1", "a", "", b"", data)]
    assert recorder.others == b"PING\r\n"


def test_messages_of_unknown_subscriptions_are_dropped() -> None:
    recorder = Recorder()
    recorder.scanner().feed(b"MSG a 99 1\r\nx\r\nMSG a 1 1\r\ny\r\n")
    assert [message[4] for message in recorder.messages] == [b"y"]
    assert not recorder.others


@pytest.mark.parametrize(
    "nonsense",
    [
        b"MSG a\r\n",
        b"MSG a 1 x\r\n",
        b"MSG a 1 -5\r\n",
        b"HMSG a 1 9 5\r\n12345\r\n",
        b"HMSG a 1 x 5\r\n",
        b"MSG a 1 r r 5\r\n12345\r\n",
        b"\r\n",
        b"MSG a 1 " + b"9" * (1 << 20),
    ],
    ids=range(8),
)
def test_what_makes_no_sense_is_handed_on_with_all_that_follows(nonsense: bytes) -> None:
    recorder = Recorder()
    scanner = recorder.scanner()
    scanner.feed(b"MSG a 1 1\r\nx\r\n" + nonsense)
    scanner.feed(b"MSG a 1 1\r\ny\r\n")
    assert [message[4] for message in recorder.messages] == [b"x"]
    assert recorder.others == nonsense + b"MSG a 1 1\r\ny\r\n"
