"""Commands of many threads leave whole, once and in order, or are refused; whatever the socket takes at a time."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from mono_sync.adapter._outlet import Batch
from tests.fixtures.waiting import wait_until
from tests.support.pipe import Pipe, Reader, Request, send_surely
from tests.support.threads import Background


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


@pytest.mark.parametrize("lacks", ["a socket", "a number"])
def test_without_a_socket_of_its_own_the_loop_sends(monkeypatch: pytest.MonkeyPatch, lacks: str) -> None:
    def no_more(_number: int) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    if lacks == "a number":
        monkeypatch.setattr(os, "dup", no_more)
    pipe = Pipe(direct=True, hide_socket=lacks == "a socket")
    try:
        assert not pipe.wire.is_direct
        assert not pipe.wire.send(b"now or never")
        pipe.wire.put(Request(b"<main>"))
        Background(pipe.wire.put, Request(b"<other>")).result()
        pipe.add(b"<loop>")
        assert sorted(pipe.read(19).split(b">")) == [b"", b"<loop", b"<main", b"<other"]
    finally:
        pipe.close()


@pytest.mark.parametrize("in_main_thread", [True, False], ids=["main thread", "other thread"])
def test_the_calling_thread_itself_writes(direct_pipe: Pipe, *, in_main_thread: bool) -> None:
    busy, go = threading.Event(), threading.Event()
    direct_pipe.loop.post(busy.set)
    direct_pipe.loop.post(go.wait, 20)
    assert busy.wait(20)
    request = Request(b"PING\r\n")
    try:
        if in_main_thread:
            direct_pipe.wire.put(request)
        else:
            Background(direct_pipe.wire.put, request).result()
        assert direct_pipe.read(6) == b"PING\r\n"  # though the loop is busy
    finally:
        go.set()


def test_a_command_that_nobody_wants_any_more_is_not_sent(pipe: Pipe) -> None:
    pipe.wire.put(Request(b"unwanted", wanted=False))
    pipe.wire.put(Request(b"wanted"))
    assert pipe.read(6) == b"wanted"


def test_what_the_socket_does_not_take_is_refused_or_waits(pipe: Pipe) -> None:
    before = pipe.fill()
    request = Request(b"refused")
    pipe.wire.put(request)
    pipe.add(b"waits")
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
    pipe.add(b"end")
    assert pipe.read(len(data) + 3) == data + b"end"


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
    file = direct_pipe.wire._outlet._file
    assert file is not None
    direct_pipe.call(direct_pipe.wire.close)
    assert file.closed


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
    first, request = Request(b"<sent by the loop>"), Request(b"<left to the loop>")
    wire = direct_pipe.wire

    def put_in_another_thread() -> None:
        with ThreadPoolExecutor(1) as pool:
            pool.submit(wire.put, request).result(20)

    if not direct:
        direct_pipe.call(lambda: wire._left.append(Batch()))
    wire._line.append(first)
    wire._gate = Gate(put_in_another_thread)  # type: ignore[assignment]
    direct_pipe.call(wire.resume)
    assert direct_pipe.read(len(first.data + request.data)) == first.data + request.data


def test_who_is_sending_for_others_never_waits_for_himself(direct_pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a `__del__` for example, while the socket takes no more: he keeps all others from sending."""
    wire, inner = direct_pipe.wire, Request(b"inner")
    soon = wire._soon

    def put_inside(callback: Callable[[], object]) -> None:
        monkeypatch.undo()
        wire.put(inner)
        soon(callback)

    monkeypatch.setattr(wire, "_soon", put_inside)
    Background(wire.put, Request(bytes(1_000_000))).result()
    assert inner.fate == "refused"


def test_what_is_sent_now_is_sent_at_once_or_not_at_all(direct_pipe: Pipe) -> None:
    assert direct_pipe.wire.send(b"first")
    assert Background(direct_pipe.wire.send, b"second").result()
    assert direct_pipe.read(11) == b"firstsecond"
    before = direct_pipe.fill()
    assert not direct_pipe.wire.send(b"too late")
    assert direct_pipe.read(len(before)) == before
    wait_until(lambda: direct_pipe.wire.is_direct, "all sent")
    large = bytes(range(256)) * 1000
    assert direct_pipe.wire.send(large)
    assert not direct_pipe.wire.send(b"too late")
    assert direct_pipe.read(len(large)) == large
    wait_until(lambda: direct_pipe.wire.is_direct, "all sent")
    assert direct_pipe.wire.send(b"last")
    assert direct_pipe.read(4) == b"last"
