"""The servers that the fixtures give to other tests."""

from __future__ import annotations

import socket

import pytest

from mono_sync.server import EmbeddedServer
from mono_sync.server._probe import NotReadyError, probe
from tests.fixtures.servers import RunNatsServer, StartServer


def test_any_server_answers(any_server: EmbeddedServer) -> None:
    assert probe(any_server.port, any_server.token, 5) == any_server.version


def test_start_server_gives_servers_of_their_own(start_server: StartServer, nats_server: EmbeddedServer) -> None:
    ports = {start_server().port, start_server(max_payload=4096).port, nats_server.port}
    assert len(ports) == 3


def test_raw_server_has_the_given_configuration(run_nats_server: RunNatsServer) -> None:
    server = run_nats_server("max_payload: 2048")
    with pytest.raises(NotReadyError, match="JetStream is not enabled"):
        probe(server.port, "", 5)


def test_raw_server_comes_back_on_its_port(run_nats_server: RunNatsServer) -> None:
    server = run_nats_server("jetstream: {}")
    port, first = server.port, server.pid
    server.kill()
    server.start()
    assert server.port == port
    assert server.pid != first
    assert probe(port, "", 5)
    assert "store" in server.log_tail()  # and not in the folder that all servers of the machine share


def test_paused_raw_server_is_silent_until_resumed(run_nats_server: RunNatsServer) -> None:
    server = run_nats_server("")
    server.pause()
    with socket.create_connection(("127.0.0.1", server.port), timeout=0.2) as connection:
        with pytest.raises(TimeoutError):
            connection.recv(1)
        server.resume()
        connection.settimeout(5)
        assert connection.recv(5) == b"INFO "
