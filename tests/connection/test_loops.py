"""Which event loop the thread of a connection runs."""

from __future__ import annotations

import asyncio
import sys

import pytest
import uvloop as uvloop_package

from mono_sync import ConfigurationError, Connection, ConnectionConfig
from mono_sync._durations import Deadline
from tests.connection.conftest import Connect
from tests.fixtures.servers import RawServer, RunNatsServer


@pytest.fixture
def server(run_nats_server: RunNatsServer) -> RawServer:
    return run_nats_server()


@pytest.fixture
def _without_uvloop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvloop", None)


def loop_of(connection: Connection) -> asyncio.AbstractEventLoop:
    assert connection._session is not None
    return connection._session.loop.call(asyncio.get_running_loop, deadline=Deadline(5), operation="test")


@pytest.mark.parametrize(
    ("uvloop", "kind"),
    [(None, uvloop_package.Loop), (True, uvloop_package.Loop), (False, asyncio.SelectorEventLoop)],
)
def test_it_is_the_one_asked_for_and_uvloop_by_default(server: RawServer, connect: Connect, kind: type[object]) -> None:
    assert isinstance(loop_of(connect(server.url)), kind)


@pytest.mark.usefixtures("_without_uvloop")
@pytest.mark.parametrize("uvloop", [None, False])
def test_without_uvloop_it_is_that_of_asyncio(server: RawServer, connect: Connect) -> None:
    assert isinstance(loop_of(connect(server.url)), asyncio.SelectorEventLoop)


@pytest.mark.usefixtures("_without_uvloop")
def test_uvloop_cannot_be_demanded_where_it_is_missing() -> None:
    with pytest.raises(ConfigurationError, match=r'pip install "mono-sync\[speed\]"'):
        ConnectionConfig(uvloop=True)
