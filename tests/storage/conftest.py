"""Connections and buckets. Buckets are in memory, have names of their own and are deleted after the test.

``connection``, ``kv``, ``objects`` are on the newest server; the same with ``any_`` run the test on 2.9 too.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from typing import Any

import pytest

import mono_sync
from mono_sync import Connection, FSBucketConfig, KVBucket, KVBucketConfig, MonoError, ObjectBucket
from mono_sync.connection import _jetstream
from mono_sync.server import EmbeddedServer, EmbeddedServerConfig
from tests.storage.helpers import RawStream

_numbers = itertools.count(1)

NewKV = Callable[..., KVBucket]
NewObjects = Callable[..., ObjectBucket]
Raw = Callable[[KVBucket | ObjectBucket | str], RawStream]


@pytest.fixture(scope="session")
def connection(nats_server: EmbeddedServer) -> Iterator[Connection]:
    with mono_sync.connect(nats_server.url, token=nats_server.token, name="tests") as connection:
        yield connection


@pytest.fixture(scope="session")
def any_connection(any_server: EmbeddedServer) -> Iterator[Connection]:
    with mono_sync.connect(any_server.url, token=any_server.token, name="tests") as connection:
        yield connection


@pytest.fixture(scope="session")
def old_connection(old_server_binary: str) -> Iterator[Connection]:
    options = EmbeddedServerConfig(binary=old_server_binary)
    with mono_sync.connect(server=options, name="tests") as connection:
        yield connection


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is waited for on old servers, and when messages vanish, is not waited for as long."""
    monkeypatch.setattr(_jetstream, "_PULL_TIME", 0.2)
    monkeypatch.setattr(_jetstream, "_DIRECT_PATIENCE", 0.1)


@pytest.fixture
def name() -> str:
    """A name that no other bucket of the run has."""
    return f"b{next(_numbers)}"


def _deleted_later(stack: ExitStack, connection: Connection, prefix: str, name: str) -> None:
    def delete() -> None:
        with suppress(MonoError):  # the test may have deleted it, or its server
            RawStream(connection, f"{prefix}{name}").delete()

    stack.callback(delete)


def _new_kv(connection: Connection) -> Iterator[NewKV]:
    with ExitStack() as stack:

        def new(**options: Any) -> KVBucket:
            name = options.pop("name", f"b{next(_numbers)}")
            bucket = connection.kv(KVBucketConfig(name, **{"storage": "memory"} | options))
            _deleted_later(stack, connection, "KV_", name)
            return bucket

        yield new


def _new_objects(connection: Connection) -> Iterator[NewObjects]:
    with ExitStack() as stack:

        def new(**options: Any) -> ObjectBucket:
            name = options.pop("name", f"b{next(_numbers)}")
            bucket = connection.objects(FSBucketConfig(name, **{"storage": "memory"} | options))
            _deleted_later(stack, connection, "OBJ_", name)
            return bucket

        yield new


@pytest.fixture
def new_kv(connection: Connection) -> Iterator[NewKV]:
    yield from _new_kv(connection)


@pytest.fixture
def any_new_kv(any_connection: Connection) -> Iterator[NewKV]:
    yield from _new_kv(any_connection)


@pytest.fixture
def new_objects(connection: Connection) -> Iterator[NewObjects]:
    yield from _new_objects(connection)


@pytest.fixture
def any_new_objects(any_connection: Connection) -> Iterator[NewObjects]:
    yield from _new_objects(any_connection)


@pytest.fixture
def kv(new_kv: NewKV) -> KVBucket:
    return new_kv()


@pytest.fixture
def any_kv(any_new_kv: NewKV) -> KVBucket:
    return any_new_kv()


@pytest.fixture
def objects(new_objects: NewObjects) -> ObjectBucket:
    return new_objects()


@pytest.fixture
def any_objects(any_new_objects: NewObjects) -> ObjectBucket:
    return any_new_objects()
