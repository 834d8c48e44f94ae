"""A bucket in memory, of its own for each test."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

import mono_sync
from mono_sync import KVBucket, KVBucketConfig
from mono_sync.server import EmbeddedServer

_numbers = itertools.count(1)


@pytest.fixture
def kv(nats_server: EmbeddedServer) -> Iterator[KVBucket]:
    with mono_sync.connect(nats_server.url, token=nats_server.token, name="tests") as connection:
        yield connection.kv(KVBucketConfig(f"recipes{next(_numbers)}", storage="memory"))
