"""Opening, closing and draining hold their total deadline, whoever is slow; and what they do when they cross."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from mono_sync import (
    ClosedError,
    Connection,
    ConnectionClosedError,
    ConnectionConfig,
    ConnectionLostError,
    ConnectionState,
    EmbeddedServer,
    EmbeddedServerConfig,
    OperationTimeoutError,
)
from mono_sync._durations import Deadline
from tests.connection.conftest import Connect, fill
from tests.fixtures.leaks import no_more_threads_than, our_threads
from tests.fixtures.processes import NEVER_READY, fake_binary
from tests.fixtures.servers import RawServer, RunNatsServer
from tests.fixtures.waiting import wait_until
from tests.support.network import Proxy, silent

BOUND = 1.0
"""Seconds, for calls that have a fraction of them."""


@pytest.fixture
def server(run_nats_server: RunNatsServer) -> RawServer:
    return run_nats_server()


@contextmanager
def within(seconds: float) -> Iterator[None]:
    begin = time.monotonic()
    yield
    assert time.monotonic() - begin < seconds


@contextmanager
def being_opened() -> Iterator[Connection]:
    """A connection that another thread is opening, in vain."""
    with silent() as deaf, ThreadPoolExecutor(1) as pool:
        connection = Connection(ConnectionConfig(servers=deaf.url, name="deaf", connect_timeout=30))
        opening = pool.submit(connection.open)
        wait_until(lambda: connection._opening is not None, "it is being opened")
        try:
            yield connection
        finally:
            connection.close()
        assert isinstance(opening.exception(5), ConnectionClosedError)


def draining(connection: Connection) -> bool:
    """Whether it refuses new messages: what `drain` had to send first has been sent."""
    with suppress(ConnectionClosedError):
        connection.publish("x", timeout=5)
        return False
    return connection.state is ConnectionState.CONNECTED


# --- somebody is slow


@pytest.mark.parametrize("end", [Connection.close, Connection.drain])
def test_a_slow_listener_holds_nobody_past_the_deadline(end: Callable[..., None], server: RawServer) -> None:
    connection, go = Connection(ConnectionConfig(servers=server.url)), threading.Event()

    def listen(state: ConnectionState) -> None:
        go.wait(30)

    connection.add_listener(listen)
    threads = our_threads()
    connection.open()
    with within(BOUND):
        end(connection, timeout=0.2)
    assert connection.state is ConnectionState.CLOSED
    go.set()
    wait_until(lambda: no_more_threads_than(threads), "the listener has ended")


def test_draining_is_bounded_with_unsent_bytes(server: RawServer, connect: Connect) -> None:
    with Proxy(server.url) as proxy:
        connection = connect(proxy.url)
        proxy.stall()
        fill(connection, "x")
        with within(BOUND), pytest.raises(OperationTimeoutError, match="draining"):
            connection.drain(timeout=0.1)
        assert connection.state is ConnectionState.CLOSED


@pytest.mark.parametrize(
    "call",
    [
        lambda connection: connection.open(timeout=0.1),
        lambda connection: connection.publish("x", timeout=0.1),
        lambda connection: connection.request("x", timeout=0.1),
        lambda connection: connection.flush(timeout=0.1),
        lambda connection: connection.inbox(Deadline(0.1)),
    ],
    ids=["open", "publish", "request", "flush", "inbox"],
)
def test_a_call_does_not_wait_past_its_deadline_while_another_thread_opens(call: Callable[[Connection], None]) -> None:
    with being_opened() as connection, within(BOUND), pytest.raises(OperationTimeoutError, match=r"after 0\.1 s"):
        call(connection)


def test_closing_does_not_wait_past_its_deadline_while_another_thread_starts_the_server(tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    script = f'[ "$1" = --version ] && {{ echo nats-server: v2.99.0; exit; }}\ntouch {begun}\nexec sleep 1000'
    config = EmbeddedServerConfig(binary=fake_binary(tmp_path, script), start_timeout=30, stop_timeout=1)
    connection = Connection(server=EmbeddedServer(config))
    with ThreadPoolExecutor(1) as pool:
        opening = pool.submit(connection.open)
        wait_until(begun.exists, "the server has been started")
        with within(3):
            connection.close(timeout=0.1)
            assert isinstance(opening.exception(5), ConnectionClosedError)


def test_closing_is_bounded_with_a_loop_that_is_stuck(server: RawServer) -> None:
    connection, stuck, go = Connection(ConnectionConfig(servers=server.url)), threading.Event(), threading.Event()
    threads = our_threads()
    connection.open()
    session = connection._session
    assert session is not None

    def block() -> None:
        stuck.set()
        go.wait(30)

    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(lambda: session.loop.call(block, deadline=Deadline(30), operation="block"))
        assert stuck.wait(5)
        with within(3):
            connection.close(timeout=0.1)
        go.set()
        assert isinstance(call.exception(5), ClosedError)
    wait_until(lambda: no_more_threads_than(threads), "the loop has ended")


# --- they cross


class ClosedWhileItStarts(EmbeddedServer):
    """Closes its connection at the end of the start, as a signal handler may."""

    connection: Connection

    def start(self) -> None:
        super().start()
        self.connection.close()


def test_a_connection_closed_while_its_server_starts_connects_no_more() -> None:
    server = ClosedWhileItStarts()
    server.connection = Connection(server=server)
    with pytest.raises(ConnectionClosedError, match="closed while it was being opened"):
        server.connection.open()
    assert not server.alive


class ClosedAtTheLastMoment(Connection):
    """Is closed by another thread, which does not wait, after it has connected and before anybody knows."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "_session" and value is not None:
            thread = threading.Thread(target=self.close, kwargs={"timeout": 0})
            thread.start()
            thread.join(10)
        super().__setattr__(name, value)


def test_a_connection_closed_at_the_last_moment_does_not_stay_open(server: RawServer) -> None:
    connection = ClosedAtTheLastMoment(ConnectionConfig(servers=server.url, name="last-moment"))
    with pytest.raises(ConnectionClosedError, match="closed while it was being opened"):
        connection.open()
    assert connection.state is ConnectionState.CLOSED
    assert not [thread for thread in our_threads() if thread.endswith("last-moment")]


def test_closing_ends_the_drain_of_another_thread_without_an_error(server: RawServer, connect: Connect) -> None:
    connection, responder = connect(server.url), connect(server.url)
    with responder.inbox(Deadline(10)) as inbox, ThreadPoolExecutor(2) as pool:
        responder.flush()
        request = pool.submit(connection.request, inbox.subject, timeout=30)
        inbox.next("test")  # and no answer
        drain = pool.submit(connection.drain, timeout=30)
        wait_until(lambda: draining(connection), "it drains")
        connection.close()
        assert drain.result(5) is None
        assert isinstance(request.exception(5), ConnectionClosedError)


def test_a_drain_learns_that_the_connection_broke(server: RawServer, connect: Connect) -> None:
    connection = connect(server.url)
    server.pause()
    with ThreadPoolExecutor(1) as pool:
        drain = pool.submit(connection.drain, timeout=30)
        wait_until(lambda: draining(connection), "it drains")
        server.kill()
        assert isinstance(drain.exception(10), ConnectionLostError)
    assert connection.state is ConnectionState.CLOSED


def test_closing_ends_the_start_of_the_embedded_server_in_another_thread(tmp_path: Path) -> None:
    binary, before = fake_binary(tmp_path, NEVER_READY), our_threads()
    connection = Connection(server=EmbeddedServer(EmbeddedServerConfig(binary=binary, start_timeout=30)))
    with ThreadPoolExecutor(1) as pool:
        opening = pool.submit(connection.open)
        wait_until(lambda: connection._server_starts, "the server starts")
        started = time.monotonic()
        connection.close(timeout=0.5)
        with pytest.raises(ConnectionClosedError, match="closed while it was being opened"):
            opening.result(20)
    assert time.monotonic() - started < 3
    wait_until(lambda: no_more_threads_than(before), "its threads have ended")
