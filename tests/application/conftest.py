from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from mono_sync.adapter import ConnectionConfig
from mono_sync.application import MonoApplication
from mono_sync.server import EmbeddedServer
from tests.application.support import Gate, Journal

MakeApp = Callable[..., MonoApplication]


def on_server(server: EmbeddedServer, **options: Any) -> MonoApplication:
    """Return an application that uses the server of the session: it starts within milliseconds."""
    return MonoApplication(servers=server.url, connection=ConnectionConfig(token=server.token), **options)


@pytest.fixture(autouse=True)
def _ctrl_c_interrupts() -> Iterator[None]:
    """Have SIGINT raise KeyboardInterrupt, also where the tests run in the background, in which case it is ignored."""
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, previous)


@pytest.fixture
def make_app(nats_server: EmbeddedServer) -> Iterator[MakeApp]:
    """Make applications on the server of the session; those that still run are stopped after the test."""
    with contextlib.ExitStack() as stack:

        def make(**options: Any) -> MonoApplication:
            app = on_server(nats_server, **options)
            stack.callback(app.stop)
            return app

        yield make


@pytest.fixture
def app(make_app: MakeApp) -> MonoApplication:
    return make_app()


@pytest.fixture
def journal() -> Journal:
    return Journal()


@pytest.fixture
def gate() -> Iterator[Gate]:
    """A step can hang in it; it is let go after the test, so that its thread ends."""
    gate = Gate()
    yield gate
    gate.release()
