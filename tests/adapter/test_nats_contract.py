"""What we override and touch of nats-py beyond its documented calls; a newer nats-py that differs must fail here."""

from __future__ import annotations

import ast
import asyncio
import inspect

import pytest
from nats.aio.client import Client, RawCredentials, Server, Srv
from nats.aio.subscription import Subscription
from nats.aio.transport import TcpTransport
from nats.protocol import parser

from mono_sync.adapter import ConnectionConfig
from mono_sync.adapter import client as adapter

OVERRIDDEN = [name for name in vars(adapter.NatsClient) if name.startswith("_") and hasattr(Client, name)]


class Owner:
    def broken(self) -> None: ...
    def reconnected(self) -> None: ...
    def closed(self) -> None: ...
    def denied(self, subject: str, reason: str) -> None: ...


def _parameters(function: object) -> list[str]:
    assert callable(function)
    return list(inspect.signature(function).parameters)


def test_the_overrides_are_those_we_know_of() -> None:
    assert sorted(name for name in OVERRIDDEN if not name.startswith("__")) == [
        "_attempt_reconnect",
        "_build_message",
        "_connect_to_server",
        "_flush_pending",
        "_process_err",
        "_process_headers",
        "_process_info",
        "_process_op_err",
        "_process_pong",
        "_read_loop",
        "_select_next_server",
        "_send_command",
    ]


@pytest.mark.parametrize("name", [name for name in OVERRIDDEN if not name.startswith("__")])
def test_overridden_methods_have_the_signature_that_we_override(name: str) -> None:
    theirs, ours = getattr(Client, name), getattr(adapter.NatsClient, name)
    assert _parameters(theirs) == _parameters(ours)
    assert inspect.iscoroutinefunction(theirs) == inspect.iscoroutinefunction(ours)


@pytest.mark.parametrize("name", ["connect", "connect_tls", "drain", "write", "at_eof", "wait_closed", "close"])
def test_the_transport_has_the_methods_we_build_on(name: str) -> None:
    assert callable(getattr(TcpTransport, name))


def test_the_transport_keeps_its_streams_where_we_look() -> None:
    transport = TcpTransport()  # type: ignore[no-untyped-call]
    assert {"_io_writer", "_bare_io_writer", "_io_reader"} <= set(vars(transport))


def _touched(*names: str) -> set[str]:
    """Return the attributes that the adapter's client uses of what has one of these names in its source."""
    nodes = ast.walk(ast.parse(inspect.getsource(adapter)))
    return {node.attr for node in nodes if isinstance(node, ast.Attribute) and ast.unparse(node.value) in names}


OWN = {
    *(vars(adapter.NatsClient).keys() - vars(Client).keys()),
    *(vars(adapter.NatsClient(ConnectionConfig(), Owner())).keys() - vars(Client()).keys()),
    *vars(adapter._SinkFuture),
}
TOUCHED = {
    Client: _touched("self", "client", "super()", "Client") - OWN,
    parser.Parser: _touched("self._ps"),
    Srv: _touched("s", "self._current_server", "server") - {"geturl"},  # that of an address, which is no Srv
    Subscription: _touched("subscription"),
}


def _samples() -> dict[type[object], object]:
    client = Client()
    client.set_server_pool(["nats://127.0.0.1:4222"])
    subscription = Subscription(client, id=1, subject="x")
    return {Client: client, parser.Parser: client._ps, Srv: client._server_pool[0], Subscription: subscription}


def _missing(samples: dict[type[object], object]) -> set[str]:
    return {name for kind, names in TOUCHED.items() for name in names if not hasattr(samples[kind], name)}


def test_all_that_we_touch_is_there() -> None:
    assert len(TOUCHED[Client]) > 20
    assert all(TOUCHED.values())
    assert _missing(_samples()) == set()
    assert parser.Parser(Client()).state == parser.AWAITING_CONTROL_LINE


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, names in TOUCHED.items() for name in sorted(names)])
def test_we_would_notice_if_it_vanished(kind: type[object], name: str) -> None:
    class Newer:
        def __getattr__(self, other: str) -> object:
            if other == name:
                raise AttributeError(other)
            return getattr(samples[kind], other)

    samples = _samples()
    assert _missing({**samples, kind: Newer()}) == {name}


def test_servers_are_known_by_their_location() -> None:
    client = adapter.NatsClient(ConnectionConfig(), Owner())
    client.set_server_pool(["nats://127.0.0.1:4222", "nats://[::1]:4223"])
    first, second = client._server_pool
    assert isinstance(first, Srv)
    assert (first.uri.netloc, second.uri.netloc) == ("127.0.0.1:4222", "[::1]:4223")
    assert (first.reconnects, first.last_attempt) == (0, None)
    assert Server(first.uri).reconnects == 0
    assert client.discovered_servers == []
    second.discovered = True
    assert [uri.geturl() for uri in client.discovered_servers] == ["nats://[::1]:4223"]


@pytest.mark.parametrize(
    ("name", "parameters"), [("_send_ping", ["self", "future"]), ("_process_op_err", ["self", "e"])]
)
def test_what_we_call_takes_what_we_give(name: str, parameters: list[str]) -> None:
    method = getattr(Client, name)
    assert inspect.iscoroutinefunction(method)
    assert _parameters(method) == parameters


def test_the_options_we_pass_exist() -> None:
    async def options() -> set[str]:
        owner, config = Owner(), ConnectionConfig()
        client = adapter.NatsClient(config, owner)
        return set(adapter._options(config, owner, client, config.addresses[0], 1.0))

    assert asyncio.run(options()) <= set(_parameters(Client.connect))


def test_credentials_can_be_replaced_in_place() -> None:
    credentials = RawCredentials("old")
    credentials.data = "new"
    assert str(credentials) == "new"


def test_a_subscription_with_a_future_hands_messages_to_it() -> None:
    source = inspect.getsource(Client._process_msg)
    assert "sub._future.cancelled()" in source
    assert "sub._future.set_result(msg)" in source
    assert "future" in _parameters(Subscription.__init__)


def test_closing_waits_for_the_socket_only_where_bytes_are_said_to_be_left() -> None:
    source = inspect.getsource(Client._close)
    assert "if self._pending_data_size > 0:" in source
