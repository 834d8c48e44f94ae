"""How much is transferred for what is read of an object."""

from __future__ import annotations

import io
import random
import socket
from collections.abc import Iterator
from contextlib import suppress

import pytest

import mono_sync
from mono_sync import Connection, ObjectBucket
from mono_sync.connection import Delivery, JetStream
from tests.fixtures.waiting import wait_until
from tests.storage.foreign import upload
from tests.support.network import Proxy

CHUNK = 128 * 1024


class Meter(Proxy):
    """Counts the bytes that the server sends."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.received = 0

    def _pump(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            from_server = source.getpeername() == self._target
            while data := source.recv(1 << 16):
                self.received += from_server and len(data)
                target.sendall(data)


@pytest.fixture
def meter(any_connection: Connection) -> Iterator[Meter]:
    with Meter(any_connection.server_info.url) as meter:
        yield meter


@pytest.fixture
def metered(any_connection: Connection, meter: Meter, any_objects: ObjectBucket) -> Iterator[ObjectBucket]:
    """The bucket with an object of 24 MiB."""
    any_objects.put("k", bytes(24 << 20), timeout=30)
    with mono_sync.connect(meter.url, token=any_connection.config.token) as connection:
        yield connection.objects(any_objects.name)


@pytest.mark.parametrize("portion", [1 << 20, 64 << 10, 5000])
def test_part_of_an_object_costs_no_more_than_two_chunks_beside_it(
    metered: ObjectBucket, meter: Meter, portion: int
) -> None:
    for offset in (1, 7 << 20, 999_999, (24 << 20) - (1 << 20)):
        before, left = meter.received, 1 << 20
        with metered.open("k") as reader:
            reader.seek(offset)
            while left:
                left -= len(reader.read(min(portion, left)))
        assert meter.received - before <= (1 << 20) + 2 * CHUNK


def test_slow_reader_has_at_most_4_mebibytes_under_way(metered: ObjectBucket, meter: Meter) -> None:
    before, read = meter.received, 0
    with metered.open("k") as reader:
        for _ in range(60):
            read += len(reader.read(2 * CHUNK))
            assert meter.received - before <= read + (4 << 20) + CHUNK
        wait_until(lambda: meter.received - before > read + CHUNK, "some are fetched ahead")


def test_chunks_are_asked_for_before_the_last_ones_are_read(
    objects: ObjectBucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    objects.put("k", bytes(150 * CHUNK))
    take, under_way = Delivery.next, list[int]()

    def noted(self: Delivery, *arguments: object, **options: object) -> object:
        message = take(self, *arguments, **options)  # type: ignore[arg-type]
        under_way.append(self.under_way)
        return message

    monkeypatch.setattr(Delivery, "next", noted)
    with objects.open("k") as reader:
        assert len(reader.read()) == 150 * CHUNK
    assert max(under_way) < 32
    assert min(under_way[:-32]) >= 15


def test_short_seek_forward_asks_for_nothing_new(any_objects: ObjectBucket, monkeypatch: pytest.MonkeyPatch) -> None:
    content = random.Random(1).randbytes(60_500)
    upload(any_objects, "k", content, [1000], chunk_size=1000)
    with any_objects.open("k") as reader:
        for _ in range(20):
            reader.read(1000)
        asked = list[str]()
        monkeypatch.setattr(JetStream, "api", lambda _self, subject, *_a, **_o: asked.append(subject))
        for _ in range(4):
            reader.seek(2500, io.SEEK_CUR)
            position = reader.tell()
            assert reader.read(10) == content[position : position + 10]
        assert not asked
        monkeypatch.undo()
