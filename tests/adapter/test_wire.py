"""Commands of many threads leave whole, once and in order, or are refused; whatever the socket takes at a time."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import linecache
import re
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import FrameType
from typing import Any, Self

import pytest

import mono_sync.adapter._wire as wire_module
from mono_sync._durations import Deadline
from mono_sync.adapter._wire import Must, Wire
from mono_sync.loop import LoopThread
from tests.fixtures.waiting import wait_until


class Request:
    """A command that can be refused."""

    def __init__(self, data: bytes, *, wanted: bool = True) -> None:
        self.data = data
        self.wanted = wanted
        self.fate = ""
        self.ended = threading.Event()

    def claim(self) -> bool:
        self.fate = "claimed"
        return self.wanted

    def refuse(self) -> bool:
        self.fate = "refused"
        self.ended.set()
        return True


class Pipe:
    """A wire whose other end the test reads when it wants to."""

    def __init__(self, *, direct: bool) -> None:
        near, self.far = socket.socketpair()
        near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        near.setblocking(False)
        self.far.settimeout(20)
        self.loop = LoopThread("wire")
        self._near = near
        self._direct = direct
        self.wire = self.loop.run(self._open, deadline=Deadline(20), operation="open")

    async def _open(self) -> Wire:
        loop = asyncio.get_running_loop()
        pipe = self

        class Protocol(asyncio.Protocol):
            def resume_writing(self) -> None:
                pipe.wire.resume()

        self.transport, _ = await loop.create_connection(Protocol, sock=self._near)
        self.transport.set_write_buffer_limits(high=0)
        return Wire(self.transport, loop, direct=self._direct)

    def read(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            data += self.far.recv(size - len(data))
        return bytes(data)

    def call(self, function: Any) -> Any:
        return self.loop.call(function, deadline=Deadline(20), operation="call")

    def fill(self) -> bytes:
        """Send until the socket takes no more; return what will arrive."""
        whole = b""
        while not self.wire.backlog:
            piece = Must(b"f" * 3000)
            self.wire.put(piece)
            whole += piece.data
            self.call(int)  # what the wire has handed to the loop is there now
        return whole

    def close(self) -> None:
        self.call(self.wire.close)
        self.call(self.transport.abort)
        self.loop.stop()
        self.far.close()


@pytest.fixture(params=[True, False], ids=["direct", "relayed"])
def pipe(request: pytest.FixtureRequest) -> Iterator[Pipe]:
    pipe = Pipe(direct=request.param)
    yield pipe
    pipe.close()


@pytest.fixture
def direct_pipe() -> Iterator[Pipe]:
    pipe = Pipe(direct=True)
    yield pipe
    pipe.close()


def test_a_command_leaves(pipe: Pipe) -> None:
    request = Request(b"PING\r\n")
    pipe.wire.put(request)
    assert pipe.read(6) == b"PING\r\n"
    assert request.fate == "claimed"


def test_the_calling_thread_itself_writes(direct_pipe: Pipe) -> None:
    busy, go = threading.Event(), threading.Event()
    direct_pipe.loop.post(busy.set)
    direct_pipe.loop.post(go.wait, 20)
    assert busy.wait(20)
    try:
        direct_pipe.wire.put(Request(b"PING\r\n"))
        assert direct_pipe.read(6) == b"PING\r\n"  # though the loop is busy
    finally:
        go.set()


def test_a_command_that_nobody_wants_any_more_is_not_sent(pipe: Pipe) -> None:
    pipe.wire.put(Request(b"unwanted", wanted=False))
    pipe.wire.put(Request(b"wanted"))
    assert pipe.read(6) == b"wanted"


def test_what_the_socket_does_not_take_is_refused_or_waits(pipe: Pipe) -> None:
    before = pipe.fill()
    request, must = Request(b"refused"), Must(b"waits")
    pipe.wire.put(request)
    pipe.wire.put(must)
    assert request.ended.wait(20)
    assert request.fate == "refused"
    assert pipe.read(len(before) + 5) == before + b"waits"
    wait_until(lambda: not pipe.wire.backlog, "all sent")
    later = Request(b"later")
    pipe.wire.put(later)
    assert pipe.read(5) == b"later"
    assert later.fate == "claimed"


def test_a_large_command_leaves_whole(pipe: Pipe) -> None:
    data = bytes(range(256)) * 10_000
    pipe.wire.put(Request(data))
    pipe.wire.put(Must(b"end"))
    assert pipe.read(len(data) + 3) == data + b"end"


class Reader:
    """Takes commands ``<...>`` from the other end, in order, until that is closed."""

    def __init__(self, pipe: Pipe) -> None:
        self.commands: list[str] = []
        self.seen: set[str] = set()
        self._pipe = pipe
        self._thread = threading.Thread(target=self._read)

    def _read(self) -> None:
        rest = ""
        with contextlib.suppress(OSError):  # closed
            while piece := self._pipe.far.recv(1 << 12):
                *whole, rest = (rest + piece.decode()).split(">")
                self.commands += [f"{command}>" for command in whole]
                self.seen.update(f"{command}>" for command in whole)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._pipe.far.shutdown(socket.SHUT_RD)
        self._thread.join(20)
        assert not self._thread.is_alive()


def send_surely(pipe: Pipe, reader: Reader, command: str) -> int:
    """Send until it has arrived; return how often it was refused."""
    refused = 0
    while True:
        request = Request(command.encode())
        pipe.wire.put(request)
        ended = request.ended
        wait_until(lambda: command in reader.seen or ended.is_set(), command)  # noqa: B023  # called at once
        if not request.ended.is_set():
            return refused
        assert command not in reader.seen, "refused, but sent"
        refused += 1


def test_commands_of_many_threads_leave_whole_and_once_and_in_order(pipe: Pipe) -> None:
    threads, each = 16, 40

    def command(number: int, count: int) -> str:
        return f"<{number}:{count}:{'x' * (37 * number % 900)}>"

    with Reader(pipe) as reader, ThreadPoolExecutor(threads) as pool:

        def send(number: int) -> None:
            for count in range(each):
                send_surely(pipe, reader, command(number, count))

        for done in [pool.submit(send, number) for number in range(threads)]:
            done.result(30)
    assert len(reader.commands) == threads * each
    for number in range(threads):
        mine = [one for one in reader.commands if one.startswith(f"<{number}:")]
        assert mine == [command(number, count) for count in range(each)]


def test_after_the_end_everything_is_refused(pipe: Pipe) -> None:
    pipe.call(pipe.wire.close)
    request = Request(b"late")
    pipe.wire.put(request)
    assert request.ended.wait(20)
    assert request.fate == "refused"
    assert not pipe.wire.is_direct
    pipe.call(pipe.wire.resume)
    assert not pipe.wire.is_direct


def test_the_end_leaves_no_file_descriptor(direct_pipe: Pipe) -> None:
    wire_socket = direct_pipe.wire._socket
    assert wire_socket is not None
    direct_pipe.call(direct_pipe.wire.close)
    assert wire_socket.fileno() == -1


class Gate:
    """The wire's gate, which lets something happen just before it is opened again."""

    def __init__(self, before_release: Callable[[], object]) -> None:
        self._lock = threading.Lock()
        self._before_release: Callable[[], object] | None = before_release

    def acquire(self, *, blocking: bool = True) -> bool:
        return self._lock.acquire(blocking)

    def release(self) -> None:
        hook, self._before_release = self._before_release, None
        if hook is not None:
            hook()
        self._lock.release()

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


@pytest.mark.parametrize("direct", [True, False], ids=["is direct", "becomes direct"])
def test_whoever_finds_the_gate_shut_by_the_loop_is_not_forgotten(direct_pipe: Pipe, *, direct: bool) -> None:
    request = Request(b"<left to the loop>")
    wire = direct_pipe.wire

    def put_in_another_thread() -> None:
        with ThreadPoolExecutor(1) as pool:
            pool.submit(wire.put, request).result(20)

    wire._direct = direct
    wire._gate = Gate(put_in_another_thread)  # type: ignore[assignment]
    direct_pipe.call(wire.resume)
    assert direct_pipe.read(len(request.data)) == request.data


class InterruptError(Exception):
    """What the signal handler raises."""


class InterruptedSender:
    """Sends a command, and is interrupted at the start of a certain line of the wire's code.

    As soon as it holds the gate another thread's command is put in line, which that thread so leaves to it.
    """

    def __init__(self, wire: Wire, line: int) -> None:
        self.left_to_it: Request | None = None
        self.was_interrupted = False
        self._wire = wire
        self._line = line
        self._lines = 0

    def send(self, command: Request) -> None:
        previous = sys.gettrace()
        sys.settrace(self._trace)
        try:
            self._wire.put(command)
        except InterruptError:
            self.was_interrupted = True
        finally:
            sys.settrace(previous)

    def _trace(self, frame: FrameType, event: str, _: Any) -> Any:
        if frame.f_code.co_filename != wire_module.__file__:
            return None
        source = linecache.getline(frame.f_code.co_filename, frame.f_lineno)
        if event == "line" and not source.strip().startswith("with "):  # CPython looks for signals after calls only
            if self._wire._gate.locked() and self.left_to_it is None:
                self.left_to_it = Request(b"<others>")
                self._wire._line.append(self.left_to_it)
            self._lines += 1
            if self._lines == self._line:
                raise InterruptError
        return self._trace


@pytest.mark.parametrize("full", [False, True])
def test_an_interrupt_at_any_line_costs_nobody_elses_command(*, full: bool) -> None:
    for line in itertools.count(1):
        pipe = Pipe(direct=True)
        before = pipe.fill() if full else b""
        if full:
            pipe.read(len(before) - 3000)
            wait_until(lambda: pipe.wire.is_direct, "direct again")  # noqa: B023
        sender = InterruptedSender(pipe.wire, line)
        sender.send(Request(b"<mine>"))
        others = sender.left_to_it
        if full:
            pipe.read(3000)
        with Reader(pipe) as reader:
            if others is not None:
                wait_until(lambda: "<others>" in reader.seen or others.ended.is_set(), f"line {line}")  # noqa: B023
            with ThreadPoolExecutor(1) as pool:
                pool.submit(send_surely, pipe, reader, "<after>").result(20)
            pipe.close()
        assert sorted(set(reader.commands)) == sorted(reader.commands)
        assert set(reader.commands) <= {"<others>", "<mine>", "<after>"}
        assert others is None or ("<others>" in reader.commands) != others.ended.is_set()
        if not sender.was_interrupted:
            break
    assert line > 10


@pytest.mark.skipif(threading.current_thread() is not threading.main_thread(), reason="signals need the main thread")
def test_a_signal_handler_that_raises_leaves_the_wire_usable_and_commands_whole() -> None:
    """A storm of interrupts in the main thread, while other threads leave their commands to whoever sends."""
    pipe = Pipe(direct=True)
    enough = threading.Event()
    sent = [0] * 3

    def send(number: int, reader: Reader) -> None:
        while not enough.is_set():
            send_surely(pipe, reader, f"<{number}:{sent[number]}>")
            sent[number] += 1

    def interrupt() -> None:
        while not enough.wait(0.0003):
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)

    def handler(_: int, frame: FrameType | None) -> None:
        if frame is not None and frame.f_code.co_filename == wire_module.__file__:
            raise InterruptError

    previous = signal.signal(signal.SIGUSR1, handler)
    count = interrupts = 0
    with Reader(pipe) as reader, ThreadPoolExecutor(4) as pool:
        workers = [pool.submit(send, number, reader) for number in range(3)]
        workers.append(pool.submit(interrupt))
        while interrupts < 200:
            count += 1
            try:
                pipe.wire.put(Request(b"<9:%d>" % count))
            except InterruptError:
                interrupts += 1
        enough.set()
        for worker in workers:
            worker.result(20)
        signal.signal(signal.SIGUSR1, previous)
        send_surely(pipe, reader, "<end>")
        pipe.close()
    assert min(sent) > 10
    assert all(re.fullmatch(r"<([0129]:\d+|end)>", command) for command in reader.commands)
