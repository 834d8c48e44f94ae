"""States, listeners, and the life of a connection object."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import queue
import signal
import subprocess
import sys
import threading
import time
import warnings
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest

import mono_sync
from mono_sync import (
    Connection,
    ConnectionClosedError,
    ConnectionConfig,
    ConnectionState,
    EmbeddedServer,
    EmbeddedServerConfig,
    UnsupportedByServerError,
)
from mono_sync.connection._state import StateBoard
from mono_sync.errors import ConfigurationError
from tests.connection.conftest import Connect, on_each_loop
from tests.fixtures.leaks import no_more_threads_than, our_threads
from tests.fixtures.processes import without_slowness
from tests.fixtures.servers import RawServer, RunNatsServer
from tests.fixtures.waiting import wait_until
from tests.support.network import silent


@pytest.fixture
def server(run_nats_server: RunNatsServer) -> RawServer:
    return run_nats_server()


def _threads_of(name: str) -> list[str]:
    return [thread for thread in our_threads() if thread.endswith(name)]


def test_listeners_hear_every_change_in_order_and_may_block(server: RawServer) -> None:
    heard: queue.SimpleQueue[tuple[ConnectionState, str]] = queue.SimpleQueue()
    connection = Connection(ConnectionConfig(servers=server.url, reconnect_wait=0.02, reconnect_max_wait=0.1))

    def listen(state: ConnectionState) -> None:
        if state is ConnectionState.CONNECTED:
            connection.flush()
        heard.put((state, threading.current_thread().name))

    connection.add_listener(listen)
    with connection:
        states = [heard.get(timeout=5)]
        server.kill()
        server.start()
        states += [heard.get(timeout=5) for _ in range(2)]
    states.append(heard.get(timeout=5))
    assert [state.name for state, _ in states] == ["CONNECTED", "RECONNECTING", "CONNECTED", "CLOSED"]
    assert {name for _, name in states} == {"mono_sync-listeners"}


def test_a_failing_listener_is_logged_and_harms_nobody(server: RawServer, caplog: pytest.LogCaptureFixture) -> None:
    heard = threading.Event()
    connection = Connection(ConnectionConfig(servers=server.url))

    def fail(state: ConnectionState) -> None:
        raise RuntimeError("my own fault")

    connection.add_listener(fail)
    connection.add_listener(lambda state: heard.set())
    with caplog.at_level(logging.ERROR, "mono_sync.connection"), connection:
        assert heard.wait(5)
    assert "my own fault" in caplog.text


def test_a_removed_listener_hears_nothing(server: RawServer) -> None:
    heard: list[ConnectionState] = []
    connection = Connection(ConnectionConfig(servers=server.url))
    connection.add_listener(heard.append)
    connection.remove_listener(heard.append)
    with connection:
        pass
    assert heard == []


def test_a_listener_may_close_the_connection(server: RawServer) -> None:
    connection = Connection(ConnectionConfig(servers=server.url))
    heard: queue.SimpleQueue[ConnectionState] = queue.SimpleQueue()

    def listen(state: ConnectionState) -> None:
        if state is ConnectionState.CONNECTED:
            connection.close()
        heard.put(state)

    connection.add_listener(listen)
    with contextlib.suppress(ConnectionClosedError):  # the listener may be faster than the end of `open`
        connection.open()
    assert [heard.get(timeout=5) for _ in range(2)] == [ConnectionState.CONNECTED, ConnectionState.CLOSED]


def test_nothing_follows_closed() -> None:
    heard: queue.SimpleQueue[ConnectionState] = queue.SimpleQueue()
    board = StateBoard()
    board.add(heard.put)
    for state in (ConnectionState.CLOSED, ConnectionState.CONNECTED, ConnectionState.RECONNECTING):
        board.set(state)
        assert board.state is ConnectionState.CLOSED
    board.join(5)
    assert heard.get_nowait() is ConnectionState.CLOSED
    assert heard.empty()


def test_close_is_idempotent_and_final(server: RawServer) -> None:
    connection = mono_sync.connect(server.url, name="closed-twice")
    assert _threads_of("closed-twice")
    connection.close()
    connection.close()
    assert connection.state is ConnectionState.CLOSED
    with pytest.raises(ConnectionClosedError, match="make a new one"):
        connection.open()
    assert not _threads_of("closed-twice")


def test_closing_ends_the_open_of_another_thread() -> None:
    with silent() as deaf, ThreadPoolExecutor(1) as pool:
        connection = Connection(ConnectionConfig(servers=deaf.url, name="impatient", connect_timeout=30))
        opening = pool.submit(connection.open)
        wait_until(lambda: _threads_of("impatient"), "it is being opened")
        start = time.monotonic()
        connection.close()
        assert time.monotonic() - start < 5
        with pytest.raises(ConnectionClosedError, match="closed while it was being opened"):
            opening.result(5)
    assert not _threads_of("impatient")


def test_open_twice_is_one_connection(server: RawServer, connect: Connect) -> None:
    connection = connect(server.url)
    client = connection.server_info.client_id
    connection.open()
    assert connection.server_info.client_id == client


def test_threads_that_close_at_the_same_moment_all_return(server: RawServer) -> None:
    for _ in range(20):
        connection = mono_sync.connect(server.url)
        barrier = threading.Barrier(4)

        def close(connection: Connection = connection, barrier: threading.Barrier = barrier) -> None:
            barrier.wait()
            connection.close()

        threads = [threading.Thread(target=close) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
        assert not any(thread.is_alive() for thread in threads)
        assert connection.state is ConnectionState.CLOSED


def test_nothing_starts_before_open() -> None:
    before = our_threads()
    Connection(ConnectionConfig(servers="nats://127.0.0.1:1"))
    Connection(server=EmbeddedServer())
    assert no_more_threads_than(before)


def test_a_failed_open_leaves_nothing_behind() -> None:
    before = our_threads()
    for _ in range(5):
        with pytest.raises(mono_sync.ConnectFailedError):
            mono_sync.connect("nats://127.0.0.1:1")
    assert no_more_threads_than(before)


def test_an_unclosed_connection_says_so_and_its_thread_ends(server: RawServer) -> None:
    connection: Connection | None = mono_sync.connect(server.url, name="forgotten")
    gone = weakref.ref(connection)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        connection = None
        gc.collect()
        said = [str(warning.message) for warning in caught]
        caught.clear()  # a warning keeps what it is about
        assert gone() is None
        wait_until(lambda: not _threads_of("forgotten"), "the loop thread has ended")
    assert any("unclosed <Connection 'forgotten'" in text for text in said)


def test_a_forgotten_connection_takes_its_listeners_and_their_thread_along(server: RawServer) -> None:
    connection: Connection | None = Connection(ConnectionConfig(servers=server.url, name="forgotten"))
    assert connection is not None
    gone, heard = weakref.ref(connection), threading.Event()

    def listen(state: ConnectionState, connection: Connection = connection) -> None:
        connection.flush()
        heard.set()

    connection.add_listener(listen)
    connection.open()
    assert heard.wait(5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        connection = None
        del listen

        def collected() -> bool:
            gc.collect()
            return gone() is None

        wait_until(collected, "collected")
        wait_until(lambda: not _threads_of("listeners") and not _threads_of("forgotten"), "its threads have ended")


def test_it_works_inside_a_running_event_loop(server: RawServer) -> None:
    """As in a notebook."""

    async def cell() -> float:
        with mono_sync.connect(server.url) as connection:
            return connection.rtt()

    assert asyncio.run(cell()) > 0


def test_ctrl_c_ends_a_call_at_once_and_the_connection_stays_usable(server: RawServer) -> None:
    program = f"""
import mono_sync, os, signal, threading, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a child inherits it ignored from who ignores it
with mono_sync.connect({server.url!r}) as connection:
    with connection.inbox(mono_sync.Deadline(30)) as inbox:
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
        start = time.monotonic()
        try:
            connection.request(inbox.subject, timeout=20)
        except KeyboardInterrupt:
            assert time.monotonic() - start < 3
            connection.flush()
            print("interrupted, still usable")
"""
    command = [sys.executable, "-X", "dev", "-c", program]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=30)
    assert (done.stdout, without_slowness(done.stderr)) == ("interrupted, still usable\n", "")


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@on_each_loop
def test_a_forked_child_opens_a_connection_of_its_own(server: RawServer, connect: Connect) -> None:
    connection = connect(server.url)
    mine = connection.server_info.client_id
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            connection.flush()
            os.write(write, str(connection.server_info.client_id).encode())
            connection.close()
        finally:
            os._exit(0)
    os.close(write)
    os.waitpid(child, 0)
    theirs = os.read(read, 100)
    os.close(read)
    assert theirs
    assert int(theirs) != mine
    connection.flush()
    assert connection.server_info.client_id == mine


# --- the embedded server of a connection


def test_without_servers_it_runs_a_server_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MONO_SYNC_SERVERS", raising=False)
    with mono_sync.connect() as connection:
        assert connection.server is not None
        pid = connection.server.pid
        assert connection.server_info.jetstream
    with pytest.raises(ProcessLookupError):
        os.kill(pid or 0, 0)


def test_the_environment_may_name_servers(monkeypatch: pytest.MonkeyPatch, server: RawServer) -> None:
    monkeypatch.setenv("MONO_SYNC_SERVERS", f"{server.url},nats://127.0.0.1:1")
    with mono_sync.connect() as connection:
        assert connection.server is None
        assert connection.server_info.url == server.url


def test_servers_and_an_embedded_server_exclude_each_other() -> None:
    with pytest.raises(ConfigurationError, match="not both"):
        mono_sync.connect("nats://localhost", server=EmbeddedServerConfig())


def test_an_embedded_server_too_old_for_an_option_is_named(old_server_binary: str) -> None:
    config = EmbeddedServerConfig(binary=old_server_binary, sync_interval=1.0)
    with pytest.raises(UnsupportedByServerError, match="sync_interval"):
        Connection(server=EmbeddedServer(config)).open()


def test_a_killed_embedded_server_comes_back_under_an_open_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MONO_SYNC_SERVERS", raising=False)
    with mono_sync.connect(reconnect_wait=0.02) as connection:
        bucket = connection.kv(mono_sync.KVBucketConfig("survivor"))
        bucket.set("key", b"value")
        assert connection.server is not None
        os.kill(connection.server.pid or 0, signal.SIGKILL)
        wait_until(lambda: connection.state is not ConnectionState.CONNECTED, "noticed")
        assert bucket.get("key", timeout=20) == b"value"
