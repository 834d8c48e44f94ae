"""Which server is tried when, and that one which says nonsense or nothing does not end the search."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Iterator

import pytest
from nats.aio.client import Client, Server

import mono_sync
from mono_sync import Connection, ConnectionConfig, OperationTimeoutError
from mono_sync._durations import Deadline
from mono_sync.adapter._transport import Transport
from mono_sync.adapter.client import NatsClient
from tests.connection.conftest import Connect, flush_after_restart
from tests.fixtures.servers import RawServer, RunNatsServer
from tests.fixtures.waiting import wait_until
from tests.support.network import Proxy
from tests.support.peer import Peer


@pytest.fixture
def server(run_nats_server: RunNatsServer) -> RawServer:
    return run_nats_server()


@pytest.fixture
def proxies(server: RawServer) -> Iterator[tuple[Proxy, Proxy]]:
    """Two ways to one server."""
    with Proxy(server.url) as one, Proxy(server.url) as two:
        yield one, two


def _cut(proxies: tuple[Proxy, Proxy]) -> None:
    for proxy in proxies:
        proxy.cut()


def _at(connection: Connection, url: str, client: int, timeout: float) -> None:
    """Wait until it is connected anew, and to this server."""

    def is_there() -> bool:
        info = connection.server_info
        return connection.is_connected and (info.url, info.client_id != client) == (url, True)

    wait_until(is_there, f"connected to {url}", timeout=timeout)
    connection.flush()


# --- which server


def test_the_first_server_is_chosen_at_random(proxies: tuple[Proxy, Proxy], connect: Connect) -> None:
    urls = [proxy.url for proxy in proxies]
    assert {connect(urls).server_info.url for _ in range(30)} == set(urls)


def test_discovered_servers_are_among_those_that_are_tried(server: RawServer, connect: Connect) -> None:
    """A server of a cluster tells of the others when a client connects, perhaps never again."""
    with Peer(connect_urls=[f"127.0.0.1:{server.port}"]) as peer, connect(peer.url) as connection:
        peer.shut()
        wait_until(lambda: connection.is_connected and connection.server_info.url == server.url, "failed over")
        flush_after_restart(connection)


@pytest.mark.parametrize("greeting", [b"INFO\r\n", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"INFO {}\r\n-ERR 'no'\r\n"])
def test_a_server_that_says_nonsense_is_left_for_the_next(
    proxies: tuple[Proxy, Proxy], connect: Connect, greeting: bytes
) -> None:
    first, second = proxies
    connection = connect([first.url, second.url])
    client = connection.server_info.client_id
    first.babble(greeting)
    _cut(proxies)
    _at(connection, second.url, client, timeout=5)


def test_a_silent_server_costs_a_reconnect_two_seconds(proxies: tuple[Proxy, Proxy], connect: Connect) -> None:
    first, second = proxies
    connection = connect([first.url, second.url], connect_timeout=40)
    client = connection.server_info.client_id
    first.stall()
    _cut(proxies)
    _at(connection, second.url, client, timeout=10)


# --- when


class _Nobody:
    def broken(self) -> None: ...
    def reconnected(self) -> None: ...
    def closed(self) -> None: ...
    def denied(self, subject: str, reason: str) -> None: ...


def _pauses(config: ConnectionConfig, failures: int, count: int = 300) -> list[float]:
    server = Server(Client._parse_server_uri("nats://127.0.0.1:1"), reconnects=failures)
    client = NatsClient(config, _Nobody())
    return [client._next_server([server], {})[1] for _ in range(count)]


@pytest.mark.parametrize(
    ("failures", "longest"), [(1, 0.1), (2, 0.2), (3, 0.4), (4, 0.8), (5, 1.0), (6, 1.0), (50, 1.0), (10**6, 1.0)]
)
def test_pauses_double_up_to_the_longest_and_are_shortened_at_random_by_up_to_a_half(
    failures: int, longest: float
) -> None:
    pauses = _pauses(ConnectionConfig(reconnect_wait=0.1, reconnect_max_wait=1.0), failures)
    assert longest / 2 <= min(pauses) < 0.6 * longest
    assert 0.9 * longest < max(pauses) <= longest


def test_the_first_attempt_is_made_at_once_at_the_server_that_failed_least() -> None:
    assert set(_pauses(ConnectionConfig(), 0)) == {0.0}
    uris = [Client._parse_server_uri(f"nats://127.0.0.1:{port}") for port in (1, 2, 3)]
    pool = [Server(uri, reconnects=failures) for uri, failures in zip(uris, (3, 1, 2), strict=True)]
    client = NatsClient(ConnectionConfig(), _Nobody())
    assert client._next_server(pool, {})[0] is pool[1]


# --- connections that seem well


@pytest.mark.parametrize("nonsense", [b"INFO {\r\n", b"INFO {]}\r\n", b"what?\r\n"])
def test_a_line_that_nobody_can_read_leaves_no_deaf_client(
    server: RawServer, connect: Connect, nonsense: bytes
) -> None:
    with Proxy(server.url) as proxy, connect(proxy.url) as connection:
        client = connection.server_info.client_id
        proxy.say(nonsense)
        _at(connection, proxy.url, client, timeout=5)


class _LatePongs(Peer):
    """Leaves five PINGs unanswered after the first, which opens the connection, and stays five behind for ever."""

    WITHHELD = 5

    def pinged(self) -> None:
        if self.pings == 1 or self.pings > 1 + self.WITHHELD:
            super().pinged()


def test_answers_to_pings_that_were_given_up_keep_the_connection(connect: Connect) -> None:
    with _LatePongs() as peer, connect(peer.url, ping_interval=0.25) as connection:
        while peer.pings < 1 + peer.WITHHELD:
            with pytest.raises(OperationTimeoutError):
                connection.flush(timeout=0.02)
        wait_until(lambda: peer.pings > 1 + 2 * peer.WITHHELD or peer.connections > 1, "pings")
        assert peer.connections == 1
        assert connection.is_connected


def test_a_refused_subscription_is_logged_and_costs_nobody_the_connection(
    run_nats_server: RunNatsServer, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    user = "{ user: u, password: p, permissions: { subscribe: { deny: ['_INBOX.*.*.*'] } } }"
    server = run_nats_server(f"authorization {{ users: [{user}] }}")
    connection = connect(server.url, user="u", password="p")
    client = connection.server_info.client_id
    with caplog.at_level(logging.ERROR, "mono_sync.connection"), connection.inbox(Deadline(5)):
        connection.flush()
    assert "NATS refused a subscription: " in caplog.text
    assert connection.is_connected
    assert connection.server_info.client_id == client


def test_a_connection_that_has_just_broken_can_be_closed() -> None:
    """What the attempt to reconnect awaits, and is cancelled in, is not what closing awaits."""
    for _ in range(100):
        with Peer() as peer:
            connection = mono_sync.connect(peer.url)
            peer.cut()
            connection.close()


def test_closing_ends_reconnecting_also_where_an_attempt_swallows_that(
    server: RawServer, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `asyncio.wait_for` does on Python 3.11 when the server refuses at the same moment."""
    connection, trying = connect(server.url), threading.Event()

    async def refused_when_cancelled(*_: object) -> None:
        trying.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise ConnectionRefusedError from None

    monkeypatch.setattr(Transport, "connect", refused_when_cancelled)
    server.kill()
    assert trying.wait(10)
    started = time.monotonic()
    connection.close(timeout=20)
    assert time.monotonic() - started < 5
