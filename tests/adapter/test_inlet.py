"""Whoever reads the socket, and whatever interrupts him: every message arrives once, in order, and nobody is stuck."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from mono_sync._durations import Deadline
from mono_sync.adapter._inlet import Inlet
from mono_sync.adapter._message import Message
from mono_sync.adapter._scanner import Scanner
from mono_sync.loop import LoopThread, new_event_loop
from tests.fixtures.waiting import wait_until
from tests.support.signals import Stop
from tests.support.steps import interrupted
from tests.support.threads import Background

LONG = 20.0


def msg(subject: str, data: bytes = b"") -> bytes:
    return b"MSG %b 1 %d\r\n%b\r\n" % (subject.encode(), len(data), data)


class Holder:
    """Who waits at the socket, or has given up."""

    def __init__(self, *, waits: bool = True) -> None:
        self.waits = waits


class Line:
    """A socket with an inlet, and what reached the loop through it."""

    def __init__(self, *, uvloop: bool) -> None:
        self._near, self.far = socket.socketpair()
        self._near.setblocking(False)
        self.loop = LoopThread("inlet", loop_factory=partial(new_event_loop, uvloop=uvloop))
        self.sent: list[bytes] = []
        self.delivered: list[str] = []
        self.payloads: list[bytes] = []
        self.others = bytearray()
        self.lost = threading.Event()
        self.inlet = self.loop.run(self._open, deadline=Deadline(LONG), operation="open")

    async def _open(self) -> Inlet:
        loop, line = asyncio.get_running_loop(), self

        class Protocol(asyncio.Protocol):
            def data_received(self, data: bytes) -> None:
                line.others.extend(data)

            def connection_lost(self, exc: Exception | None) -> None:
                line.lost.set()

        self.transport, _ = await loop.create_connection(Protocol, sock=self._near)
        self.scanner = Scanner({b"1": self._deliver}, self.others.extend)
        inlet = Inlet.open(self.transport, loop, self.scanner)
        assert inlet is not None
        return inlet

    def _deliver(self, message: Message) -> None:
        self.payloads.append(message.data)
        self.delivered.append(message.subject)

    def send(self, *messages: bytes) -> None:
        self.sent.extend(messages)
        self.far.sendall(b"".join(messages))

    def fetch(self, subject: str, *arriving: bytes, patience: float = LONG) -> Message | None:
        """Send, as if it were the answer, and wait at the socket."""
        holder = Holder()
        try:
            self.inlet.hold(holder)
            if arriving:
                self.send(*arriving)
            return self.inlet.fetch(subject, patience)
        finally:
            self.inlet.let_go(holder)

    def reaches(self, *subjects: str) -> None:
        wait_until(lambda: len(self.delivered) >= len(subjects), f"{subjects} at the loop")
        assert self.delivered == list(subjects)

    def reaches_at_last(self, subject: str) -> None:
        self.send(msg(subject))
        wait_until(lambda: self.delivered[-1:] == [subject], "all")

    def call(self, function: Callable[[], Any]) -> Any:
        return self.loop.call(function, deadline=Deadline(LONG), operation="call")

    def close(self) -> None:
        self.call(self.inlet.close)
        self.call(self.transport.abort)
        self.loop.stop()
        self.far.close()


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def line(request: pytest.FixtureRequest) -> Iterator[Line]:
    line = Line(uvloop=request.param)
    yield line
    line.close()


def test_the_loop_reads_while_nobody_waits_at_the_socket(line: Line) -> None:
    line.send(msg("a"), b"PING\r\n", msg("b"))
    line.reaches("a", "b")
    assert line.others == b"PING\r\n"


def test_more_is_read_at_a_time_while_a_large_payload_comes(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    feed = line.scanner.feed

    def noted(data: bytes) -> None:
        read.append(len(data))
        feed(data)

    monkeypatch.setattr(line.scanner, "feed", noted)
    payload = bytes(range(250)) * 2000
    large = msg("large", payload)
    line.send(large[:1000])
    wait_until(lambda: line.scanner.is_in_large_payload, "the beginning at the loop")
    read.clear()
    sent = 1000 + line.call(partial(line.far.send, large[1000:], socket.MSG_DONTWAIT))  # while the loop does not read
    line.send(large[sent:])
    line.reaches("large")
    assert line.payloads == [payload]
    assert max(read) >= sent - 1000 > 1 << 16
    read.clear()
    assert line.call(partial(line.far.send, msg("small") * 10_000, socket.MSG_DONTWAIT)) > 1 << 16
    wait_until(lambda: line.delivered[-1] == "small", "the small ones at the loop")
    assert max(read) <= 1 << 16


def test_the_end_of_the_connection_within_a_large_payload_reaches_the_transport(line: Line) -> None:
    line.send(msg("a"), msg("large", bytes(1_000_000))[:300_000])
    wait_until(lambda: any(map(len, line.scanner.unfinished)), "the beginning at the loop")
    line.far.close()
    assert line.lost.wait(LONG)
    assert line.delivered == ["a"]


def test_large_payloads_keep_their_order_whoever_reads(line: Line) -> None:
    payloads = {f"large.{number}": bytes([number]) * 150_000 for number in range(60)}
    sending = Background(line.send, *[msg(subject, data) for subject, data in payloads.items()])
    for number in range(100):
        line.fetch(f"none.{number}", patience=0.002)
    sending.result()
    line.reaches(*payloads)
    assert line.payloads == [*payloads.values()]


def test_who_waits_at_the_socket_takes_his_message_there(line: Line) -> None:
    taken: list[str] = []
    for number in range(100):
        message = line.fetch(f"mine.{number}", msg(f"mine.{number}", b"data"))
        if message is not None:
            assert message.data == b"data"
            taken.append(message.subject)
    assert len(taken) > 80  # who does not get to it for a long time, on a busy machine, leaves it to the loop
    assert not set(taken).intersection(line.delivered)


def test_what_comes_behind_his_message_reaches_the_loop(line: Line) -> None:
    assert line.fetch("mine", msg("mine"), msg("a"), b"PING\r\n")
    line.reaches("mine", "a")  # where nobody waits for the first any more
    assert line.others == b"PING\r\n"


def test_what_comes_before_his_message_leaves_that_to_the_loop_too(line: Line) -> None:
    assert line.fetch("mine", msg("a"), msg("mine")) is None
    line.reaches("a", "mine")


def test_a_message_that_comes_in_pieces_is_left_to_the_loop(line: Line) -> None:
    whole = msg("mine", bytes(100))
    assert line.fetch("mine", whole[:50]) is None
    assert line.fetch("mine", whole[50:]) is None
    line.reaches("mine")
    assert line.fetch("mine", whole)


@pytest.mark.parametrize("size", [100, 100_000])
def test_what_looks_like_his_message_within_another_one_is_not_his(line: Line, size: int) -> None:
    head, within, rest = b"MSG a 1 %d\r\n%b" % (size + len(msg("mine")), bytes(size)), msg("mine"), b"\r\n"
    line.send(head)
    wait_until(lambda: any(map(len, line.scanner.unfinished)), "the beginning at the loop")
    assert line.fetch("mine", within) is None
    line.send(rest)
    line.reaches("a")


@pytest.mark.parametrize("sent", [b"MSG", b"MSG \r\n", b"MSG mine 1 -7\r\n\r\n", b"HMSG mine 1 x 2\r\n", b"-ERR\r\n"])
def test_what_is_no_message_is_left_to_the_loop(line: Line, sent: bytes) -> None:
    assert line.fetch("mine", sent + b"\r\n") is None
    wait_until(lambda: sent in line.others, "the loop to have it")


def test_who_has_waited_in_vain_leaves_reading_to_the_loop(line: Line) -> None:
    assert line.fetch("mine", patience=0.01) is None
    line.send(msg("mine"))
    line.reaches("mine")


@pytest.mark.parametrize("waits", [True, False], ids=["is kept from it", "has been stopped"])
def test_who_holds_on_for_too_long_keeps_nobody_waiting(line: Line, *, waits: bool) -> None:
    holders = [Holder(waits=waits) for _ in range(3)]
    for number, holder in enumerate(holders, 1):
        line.inlet.hold(holder)
        line.send(msg("a"))
        line.reaches(*["a"] * number)
    for holder in holders:
        line.inlet.let_go(holder)
    assert line.fetch("mine", msg("mine"))


def test_who_comes_late_to_what_he_has_begun_keeps_nobody_waiting(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    switch = line.inlet._switch

    def slow_switch(events: int) -> None:
        monkeypatch.setattr(line.inlet, "_switch", switch)
        line.fetch("nothing", patience=0.35)  # a signal handler runs, for longer than anybody may hold the bell
        switch(events)
        wait_for_the_loop(line, "a")  # and here the next one

    monkeypatch.setattr(line.inlet, "_switch", slow_switch)
    line.fetch("mine", patience=0.01)
    assert line.delivered == ["a"]


def test_who_was_stopped_while_he_held_on_is_forgotten(line: Line) -> None:
    line.inlet.hold(Holder(waits=False))
    wait_until(lambda: not line.inlet._guarded and not line.inlet._holders, "nothing is scheduled")
    assert line.inlet._suspect is None


def test_the_loop_sleeps_on_when_nobody_uses_it_any_more(line: Line) -> None:
    line.fetch("mine", msg("mine"))
    wait_until(lambda: not line.inlet._guarded, "nothing is scheduled")


@pytest.mark.parametrize("held", [False, True], ids=["free", "held"])
def test_the_end_of_the_connection_reaches_the_transport(line: Line, *, held: bool) -> None:
    if held:
        line.inlet.hold(Holder())
    line.send(msg("a"))
    line.far.close()
    assert line.lost.wait(LONG)
    assert line.delivered == ["a"]


def test_the_end_of_the_connection_reaches_the_transport_also_while_somebody_waits(line: Line) -> None:
    waiting = Background(partial(line.fetch, "mine", patience=0.5))
    wait_until(lambda: line.inlet._holders, "he waits")
    line.far.shutdown(socket.SHUT_RDWR)
    assert waiting.result() is None
    assert line.lost.wait(LONG)


def test_nothing_is_read_any_more_when_it_is_closed(line: Line) -> None:
    line.call(line.inlet.close)
    line.send(msg("a"))
    assert line.fetch("mine", msg("mine")) is None
    line.call(line.inlet.close)
    assert line.delivered == []


def test_a_stream_that_makes_no_sense_is_left_to_the_transport(line: Line) -> None:
    line.send(b"MSG nonsense\r\n")
    wait_until(lambda: b"nonsense" in line.others, "the first line")
    line.send(msg("a"))
    wait_until(lambda: msg("a") in line.others, "the rest")
    assert line.fetch("mine", msg("mine")) is None
    assert line.delivered == []


def test_threads_that_wait_at_the_same_time_lose_nothing(line: Line) -> None:
    fetched: list[str] = []

    def work(name: str) -> None:
        for number in range(300):
            message = line.fetch(f"{name}.{number}", msg(f"{name}.{number}"), patience=0.005)
            if message is not None:
                fetched.append(message.subject)

    for thread in [Background(work, name) for name in "abc"]:
        thread.result()
    line.reaches_at_last("last")
    assert {*fetched, *line.delivered} == {"last", *(f"{name}.{number}" for name in "abc" for number in range(300))}
    for name in "abc":
        numbers = [int(subject[2:]) for subject in line.delivered if subject[0] == name]
        assert numbers == sorted(set(numbers))


def stop(_line: Line, _name: str) -> None:
    raise Stop


def take_one_too(line: Line, name: str) -> None:
    line.fetch(name, msg(name), patience=0.005)


def wait_for_the_loop(line: Line, name: str) -> None:
    line.send(msg(name))
    wait_until(lambda: name in line.delivered, name)


def wait_for_others_and_stop(line: Line, name: str) -> None:
    Background(take_one_too, line, name).result()
    raise Stop


@pytest.mark.parametrize("during", [stop, take_one_too, wait_for_the_loop, wait_for_others_and_stop])
def test_a_signal_handler_may_do_anything_at_any_step(line: Line, during: Callable[[Line, str], None]) -> None:
    for step in itertools.count(1):
        with contextlib.suppress(Stop), interrupted(step, partial(during, line, f"inner.{step}")) as happened:
            line.fetch("mine", msg("mine"), msg(f"other.{step}"), patience=0.005)
        line.send(msg(f"after.{step}"))
        if not happened():
            break
    assert step > 30  # all steps; how many there are depends on the interpreter
    line.reaches_at_last("last")
    followed = ("other", "after")
    delivered = [msg(subject) for subject in line.delivered if subject.startswith(followed)]
    assert delivered == [message for message in line.sent if message[4:].decode().startswith(followed)]
