"""Servers that stall, die and come back; what nats-py does wrong then is not our users' problem."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from mono_sync import (
    Connection,
    ConnectionClosedError,
    ConnectionLostError,
    ConnectionState,
    KVBucketConfig,
    NatsConnectionError,
    OperationTimeoutError,
)
from mono_sync._durations import Deadline
from tests.connection.conftest import Connect, fill, flush_after_restart
from tests.fixtures.servers import RawServer, RunNatsServer
from tests.fixtures.waiting import wait_until
from tests.support.network import Proxy

JETSTREAM = "jetstream: enabled"


@pytest.fixture
def server(run_nats_server: RunNatsServer) -> RawServer:
    return run_nats_server(JETSTREAM)


def _submit(pool: ThreadPoolExecutor, connection: Connection, timeout: float = 20) -> Future[object]:
    """Make a request that the paused server has not answered."""
    return pool.submit(connection.request, "$JS.API.INFO", timeout=timeout)


def _reconnected(connection: Connection, client: int) -> None:
    wait_until(lambda: connection.is_connected and connection.server_info.client_id != client, "reconnected")


def _state(connection: Connection, state: ConnectionState) -> None:
    wait_until(lambda: connection.state is state, f"{state}")


def test_a_late_pong_leaves_no_deaf_client(server: RawServer, connect: Connect) -> None:
    connection = connect(server.url)
    client = connection.server_info.client_id
    server.pause()
    for call in (connection.rtt, connection.flush):
        with pytest.raises(OperationTimeoutError):
            call(timeout=0.1)
    server.resume()
    connection.flush()
    assert connection.request("$JS.API.INFO").data
    assert connection.server_info.client_id == client


def test_a_request_in_flight_learns_that_the_connection_broke(server: RawServer, connect: Connect) -> None:
    connection = connect(server.url)
    server.pause()
    with ThreadPoolExecutor(3) as pool:
        waiting: list[Future[object]] = [_submit(pool, connection), _submit(pool, connection)]
        waiting.append(pool.submit(connection.flush, timeout=20))
        with pytest.raises(OperationTimeoutError):
            connection.flush(timeout=0.2)  # the others have been sent by now
        start = time.monotonic()
        server.kill()
        for call in waiting:
            with pytest.raises(ConnectionLostError, match="broke before the answer came"):
                call.result(5)
    assert time.monotonic() - start < 2


def test_an_inbox_learns_that_the_connection_broke(server: RawServer, connect: Connect) -> None:
    connection = connect(server.url)
    with connection.inbox(Deadline(20)) as inbox:
        server.kill()
        with pytest.raises(ConnectionLostError):
            inbox.next("test")


def test_a_call_that_timed_out_while_disconnected_is_never_sent(server: RawServer, connect: Connect) -> None:
    connection = connect(server.url)
    bucket = connection.kv(KVBucketConfig("ghosts"))
    server.kill()
    _state(connection, ConnectionState.RECONNECTING)
    with pytest.raises(OperationTimeoutError):
        bucket.set("ghost", b"1", timeout=0.1)
    with pytest.raises(OperationTimeoutError):
        bucket.create("ghost", b"1", timeout=0.1)
    with pytest.raises(OperationTimeoutError):
        connection.publish("$KV.ghosts.ghost", b"1", timeout=0.1)
    server.start()
    assert bucket.get("ghost", timeout=10) is None
    assert bucket.keys() == []


def test_calls_made_while_disconnected_wait_within_their_deadlines(server: RawServer, connect: Connect) -> None:
    connection = connect(server.url)
    bucket = connection.kv(KVBucketConfig("waiting"))
    server.kill()
    _state(connection, ConnectionState.RECONNECTING)
    with ThreadPoolExecutor(4) as pool:
        writes = [pool.submit(bucket.set, f"k{number}", b"1", timeout=20) for number in range(4)]
        server.start()
        for write in writes:
            write.result(20)
    assert sorted(bucket.keys()) == ["k0", "k1", "k2", "k3"]


def test_a_stalled_server_holds_no_call_past_its_deadline(server: RawServer, connect: Connect) -> None:
    connection = connect(server.url)
    bucket = connection.kv(KVBucketConfig("stalled"))
    server.pause()
    took = []

    def write(number: int) -> None:
        start = time.monotonic()
        with pytest.raises(OperationTimeoutError):
            bucket.set(f"k{number}", bytes(1_000_000), timeout=0.5)
        took.append(time.monotonic() - start)

    with ThreadPoolExecutor(20) as pool:
        list(pool.map(write, range(20)))
    server.resume()
    assert max(took) < 1.5
    assert bucket.get("other", timeout=10) is None


def test_what_a_stalled_socket_did_not_take_is_not_sent_later(server: RawServer, connect: Connect) -> None:
    """The socket takes some megabytes; of the rest at most the one message that was half taken may follow."""
    connection = connect(server.url)
    with Proxy(server.url) as proxy:
        stalled = connect(proxy.url)
        with connection.inbox(Deadline(20)) as inbox:
            connection.flush()
            proxy.stall()
            subject = inbox.subject
            sent = fill(stalled, subject)
            for _ in range(5):
                with pytest.raises(OperationTimeoutError):
                    stalled.publish(subject, b"too late", timeout=0.05)
            proxy.resume()
            stalled.publish(subject, b"end", timeout=10)
            arrived: list[bytes] = []
            while not arrived or arrived[-1] != b"end":
                arrived.append(inbox.next("test").data)
    assert sent < 100
    assert b"too late" not in arrived
    assert len(arrived) <= sent + 1


def test_a_lost_connection_is_back_by_itself(server: RawServer, connect: Connect) -> None:
    with Proxy(server.url) as proxy:
        connection = connect(proxy.url)
        for _ in range(5):
            client = connection.server_info.client_id
            proxy.cut()
            _reconnected(connection, client)
            connection.flush()


def test_a_silent_network_is_noticed_by_pings(server: RawServer, connect: Connect) -> None:
    with Proxy(server.url) as proxy:
        connection = connect(proxy.url, ping_interval=0.1)
        proxy.stall()
        _state(connection, ConnectionState.RECONNECTING)
        proxy.resume()
        _state(connection, ConnectionState.CONNECTED)
        connection.flush()


def test_unsent_bytes_do_not_delay_the_failover(run_nats_server: RunNatsServer, connect: Connect) -> None:
    stalled, healthy = run_nats_server(), run_nats_server()
    with Proxy(stalled.url) as proxy:
        connection = connect(proxy.url, ping_interval=0.2, reconnect_wait=0.01, reconnect_max_wait=0.05)
        connection._session.link._client.set_server_pool([healthy.url])  # type: ignore[union-attr]  # the first is fixed
        proxy.stall()
        fill(connection, "x")
        wait_until(lambda: connection.server_info.url == healthy.url, "failed over", timeout=5)
        connection.flush(timeout=5)


def test_closing_is_bounded_with_unsent_bytes(server: RawServer, connect: Connect) -> None:
    with Proxy(server.url) as proxy:
        connection = connect(proxy.url)
        proxy.stall()
        fill(connection, "x")
        start = time.monotonic()
        connection.close(timeout=0.5)
        assert time.monotonic() - start < 1.5


def test_closing_while_reconnecting_wakes_those_who_wait(server: RawServer, connect: Connect) -> None:
    connection = connect(server.url)
    server.kill()
    _state(connection, ConnectionState.RECONNECTING)
    with ThreadPoolExecutor(2) as pool:
        waiting: list[Future[object]] = [_submit(pool, connection)]
        waiting.append(pool.submit(connection.publish, "x", timeout=20))
        start = time.monotonic()
        connection.close()
        assert time.monotonic() - start < 2
        for call in waiting:
            with pytest.raises(ConnectionClosedError):
                call.result(5)


def test_closing_wakes_requests_in_flight(server: RawServer, connect: Connect) -> None:
    connection = connect(server.url)
    server.pause()
    with ThreadPoolExecutor(1) as pool:
        waiting = _submit(pool, connection)
        with pytest.raises(OperationTimeoutError):
            connection.flush(timeout=0.2)
        connection.close(timeout=1)
        with pytest.raises(ConnectionClosedError):
            waiting.result(5)
    server.resume()


def test_whoever_sends_what_the_server_punishes_costs_a_reconnect_at_most(server: RawServer, connect: Connect) -> None:
    connection = connect(server.url)
    client = connection.server_info.client_id
    session = connection._session
    assert session is not None
    session.loop.run(  # past our checks, as a server with tighter limits than the default would see it
        session.link.publish, b"PUB " + b"x" * 5000 + b" 0\r\n\r\n", deadline=Deadline(5), operation="test"
    )
    _reconnected(connection, client)
    connection.flush()


def test_revoked_credentials_are_tried_until_they_hold_again(run_nats_server: RunNatsServer, connect: Connect) -> None:
    server = run_nats_server("authorization { token: old }")
    connection = connect(server.url, token="old")
    config = Path(server._config)
    server.kill()
    config.write_text("authorization { token: new }")
    server.start()
    with pytest.raises(OperationTimeoutError):
        connection.flush(timeout=0.5)
    assert connection.state is ConnectionState.RECONNECTING
    server.kill()
    config.write_text("authorization { token: old }")
    server.start()
    flush_after_restart(connection)


def test_limited_attempts_close_the_connection_in_the_end(server: RawServer, connect: Connect) -> None:
    connection = connect(server.url, max_reconnect_attempts=2)
    server.kill()
    _state(connection, ConnectionState.CLOSED)
    with pytest.raises(ConnectionClosedError, match="attempts to reconnect failed"):
        connection.flush()


def test_many_threads_through_restarts_get_answers_or_documented_errors(server: RawServer, connect: Connect) -> None:
    connection = connect(server.url)
    bucket = connection.kv(KVBucketConfig("restarts"))
    stop = threading.Event()
    answered = [0] * 8

    def work(number: int) -> None:
        while not stop.is_set():
            try:
                bucket.set(f"k{number}", b"x", timeout=5)
                answered[number] += 1
            except (NatsConnectionError, OperationTimeoutError):
                continue

    with ThreadPoolExecutor(8) as pool:
        workers = [pool.submit(work, number) for number in range(8)]
        try:
            for _ in range(3):
                before = sum(answered)
                server.kill()
                server.start()
                wait_until(lambda before=before: sum(answered) > before + 50, "progress", timeout=20)  # type: ignore[misc]
        finally:
            stop.set()
        for worker in workers:
            worker.result(20)


def test_an_installed_fast_mail_parser_breaks_nothing(server: RawServer, tmp_path: Path) -> None:
    """nats-py picks it up merely because it is there, and gets lists where it wants strings."""
    (tmp_path / "fast_mail_parser.py").write_text(
        textwrap.dedent("""
            class Mail:
                def __init__(self, headers):
                    self.headers = headers

            def parse_email(raw):
                pairs = (line.split(b":", 1) for line in raw.split(b"\\r\\n") if b":" in line)
                return Mail({name.decode(): [value.decode().strip()] for name, value in pairs})
        """)
    )
    program = textwrap.dedent(f"""
        import nats.aio.client
        assert nats.aio.client.parse_email is not None
        import mono_sync
        with mono_sync.connect({server.url!r}) as connection:
            bucket = connection.kv(mono_sync.KVBucketConfig("mail"))
            bucket.set("k", b"v")
            assert bucket.get_entry("k").value == b"v"
            bucket.delete("k")
            assert bucket.get("k") is None
            assert bucket.keys() == []
    """)
    path = {"PYTHONPATH": f"{tmp_path}:{Path(__file__).parents[2]}"}
    done = subprocess.run(
        [sys.executable, "-c", program], check=False, env=path, capture_output=True, text=True, timeout=30
    )
    assert (done.returncode, done.stderr) == (0, "")
