from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

import mono_sync
from mono_sync import Connection, ConnectionLostError, OperationTimeoutError
from tests.fixtures.waiting import wait_until

Connect = Callable[..., Connection]


on_each_loop = pytest.mark.parametrize("uvloop", [False, True], ids=["asyncio", "uvloop"])
"""Lets tests that use `connect` run on both event loops."""


@pytest.fixture
def uvloop() -> bool | None:
    return None


@pytest.fixture
def connect(uvloop: bool | None) -> Iterator[Connect]:
    """Like `mono_sync.connect`, closed after the test; reconnects quickly unless told otherwise."""
    with ExitStack() as stack:

        def connect(servers: str | list[str], **options: Any) -> Connection:
            options = {"reconnect_wait": 0.02, "reconnect_max_wait": 0.1, "uvloop": uvloop, **options}
            return stack.enter_context(mono_sync.connect(servers, **options))

        yield connect


def fill(connection: Connection, subject: str) -> int:
    """Publish until the socket takes no more; return how many messages it took."""
    for sent in range(1000):
        try:
            connection.publish(subject, bytes(500_000), timeout=0.2)
        except OperationTimeoutError:
            return sent
    raise AssertionError("the socket takes everything")


def flush_after_restart(connection: Connection) -> None:
    """Flush on the new connection: the old one may not be known to be broken yet, and then the call learns of it."""

    def flushed() -> bool:
        try:
            connection.flush(timeout=10)
        except ConnectionLostError:
            return False
        return True

    wait_until(flushed, "flushed")
