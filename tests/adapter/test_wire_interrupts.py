"""Whatever interrupts a thread while it sends: nothing is sent in halves, or twice, or never, and nobody is stuck."""

from __future__ import annotations

import _thread
import contextlib
import functools
import itertools
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import pytest

from tests.fixtures.waiting import wait_until
from tests.support.pipe import Pipe, Reader, Request
from tests.support.signals import Stop
from tests.support.steps import interrupted
from tests.support.threads import Background


@pytest.fixture(params=[True, False], ids=["direct", "relayed"])
def pipe(request: pytest.FixtureRequest) -> Iterator[Pipe]:
    pipe = Pipe(direct=request.param)
    yield pipe
    pipe.close()


class Sender:
    """Sends commands of about one size, and keeps account of them."""

    def __init__(self, pipe: Pipe, reader: Reader, size: int) -> None:
        self.sent: dict[str, Request] = {}
        self._pipe = pipe
        self._reader = reader
        self._size = size

    def command(self, name: str) -> str:
        return f"<{name}:{'x' * self._size}>"

    def put(self, name: str) -> None:
        command = self.command(name)
        request = self.sent[command] = Request(command.encode())
        self._pipe.wire.put(request)

    def has_ended(self, command: str) -> bool:
        return command in self._reader.seen or self.sent[command].fate == "refused"

    def request(self, name: str) -> None:
        """Wait until the command has arrived or was refused, as a request waits for its answer."""
        self.put(name)
        wait_until(lambda: self.has_ended(self.command(name)), name)


Interruption: TypeAlias = Callable[[Sender, str], object]


def interrupt_each_step(pipe: Pipe, size: int, during: Interruption) -> None:
    """Send, and let something happen before the first step, then before the second and so on; check what arrives."""
    stopped: set[str] = set()
    with Reader(pipe) as reader:
        sender = Sender(pipe, reader, size)
        for step in itertools.count(1):
            if pipe.direct:
                wait_until(lambda: pipe.wire.is_direct, "all sent")
            action = functools.partial(during, sender, f"inner {step}")
            with contextlib.suppress(Stop), interrupted(step, action) as happened:
                stopped.add(sender.command(f"outer {step}"))
                sender.put(f"outer {step}")
                stopped.remove(sender.command(f"outer {step}"))
            sender.put(f"after {step}")
            if not happened():
                break
        Background(sender.request, "the last").result()
        wait_until(lambda: all(map(sender.has_ended, sender.sent.keys() - stopped)), "all")
    assert step > 30  # all steps; how many there are depends on the interpreter
    times = Counter(reader.commands)
    assert times.keys() <= sender.sent.keys(), "something arrived in halves"
    assert set(times.values()) == {1}
    assert not any(sender.sent[command].fate == "refused" for command in times)
    assert not pipe.wire._gate.locked()


def stop(_sender: Sender, _name: str) -> None:
    raise Stop


def use_it(sender: Sender, name: str) -> None:
    sender.request(name)


def use_it_and_stop(sender: Sender, name: str) -> None:
    sender.request(name)
    raise Stop


def wait_for_others(sender: Sender, name: str) -> None:
    Background(sender.request, name).result()


def wait_for_others_and_stop(sender: Sender, name: str) -> None:
    Background(sender.request, name).result()
    raise Stop


SIZES = pytest.mark.parametrize("size", [10, 30_000], ids=["whole", "in part"])


@SIZES
@pytest.mark.parametrize("during", [stop, use_it, use_it_and_stop, wait_for_others, wait_for_others_and_stop])
def test_a_signal_handler_may_do_anything_at_any_step(pipe: Pipe, size: int, during: Interruption) -> None:
    assert threading.current_thread() is threading.main_thread()
    interrupt_each_step(pipe, size, during)


@SIZES
def test_a_thread_may_send_while_it_sends(pipe: Pipe, size: int) -> None:
    Background(interrupt_each_step, pipe, size, use_it).result(50)


@SIZES
def test_no_signal_handler_runs_before_it_is_known_what_was_written(size: int) -> None:
    pipe = Pipe(direct=True)
    trip = functools.partial(_thread.interrupt_main, signal.SIGUSR1)  # as if the signal came at this moment
    outlet: Any = pipe.wire._outlet
    outlet._take_pen, outlet._give_pen = (*outlet._take_pen, trip), (trip, *outlet._give_pen)
    handled: list[str] = []

    def handler(*_: object) -> None:
        outlet._take_pen, outlet._give_pen = outlet._take_pen[:1], outlet._give_pen[-1:]
        handled.append(f"inner {len(handled)}")
        Background(sender.request, handled[-1]).result()

    previous = signal.signal(signal.SIGUSR1, handler)
    try:
        with Reader(pipe) as reader:
            sender = Sender(pipe, reader, size)
            sender.request("outer")
            sender.request("after")
            assert handled == ["inner 0"]
    finally:
        signal.signal(signal.SIGUSR1, previous)
        pipe.close()


def test_a_broken_socket_is_given_up(pipe: Pipe) -> None:
    pipe.far.close()
    for _ in range(3):
        pipe.wire.put(Request(b"lost"))
        Background(pipe.wire.put, Request(b"lost")).result()
    wait_until(pipe.transport.is_closing, "given up")
