"""nats-py reads what we write and the reverse."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import random
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import nats
import pytest
from nats.js import JetStreamContext, api
from nats.js.errors import (
    BadRequestError,
    KeyDeletedError,
    KeyNotFoundError,
    KeyWrongLastSequenceError,
    LinkIsABucketError,
    ObjectNotFoundError,
)

from mono_sync import (
    BucketSealedError,
    Connection,
    KeyExistsError,
    KVBucket,
    KVBucketConfig,
    ObjectBucket,
    Operation,
    RevisionMismatchError,
)
from mono_sync.connection import Json
from tests.fixtures.waiting import wait_until
from tests.storage.helpers import RawStream, chunk_subjects

T = TypeVar("T")
RunOther = Callable[[Callable[[JetStreamContext], Awaitable[Any]]], Any]


@pytest.fixture
def other(any_connection: Connection) -> RunOther:
    """Run a coroutine function with a JetStream context of nats-py on the same server."""

    async def main(function: Callable[[JetStreamContext], Awaitable[T]]) -> T:
        client = await nats.connect(any_connection.server_info.url, token=any_connection.config.token)
        try:
            return await function(client.jetstream())
        finally:
            await client.close()

    return lambda function: asyncio.run(main(function))


def test_nats_py_reads_our_keys(any_kv: KVBucket, other: RunOther) -> None:
    any_kv.set("a.b", b"\0value\xff")
    revision = any_kv.put_with_revision("k", b"v")
    any_kv.set("deleted", b"v")
    any_kv.delete("deleted")
    any_kv.set("purged", b"v")
    any_kv.purge("purged")

    async def read(js: JetStreamContext) -> None:
        kv = await js.key_value(any_kv.name)
        assert (await kv.get("a.b")).value == b"\0value\xff"
        assert (await kv.get("k")).revision == revision
        for key in ("deleted", "purged"):
            with pytest.raises((KeyDeletedError, KeyNotFoundError)):
                await kv.get(key)
        await kv.create("deleted", b"again")
        await kv.update("k", b"w", last=revision)
        with pytest.raises(KeyWrongLastSequenceError):
            await kv.update("k", b"x", last=revision)
        assert (await kv.status()).bucket == any_kv.name

    other(read)
    assert any_kv.get("deleted") == b"again"
    assert any_kv.get("k") == b"w"


@pytest.mark.parametrize("direct", [None, True])
def test_we_read_the_keys_of_nats_py(
    any_connection: Connection, other: RunOther, name: str, direct: bool | None
) -> None:
    async def write(js: JetStreamContext) -> int:
        kv = await js.create_key_value(bucket=name, history=3, storage=api.StorageType.MEMORY, direct=direct)
        await kv.put("k", b"old")
        revision = await kv.put("k", b"new")
        for key in ("deleted", "purged"):
            await kv.put(key, b"v")
        await kv.delete("deleted")
        await kv.purge("purged")
        await kv.put("empty", b"")
        return revision

    revision = other(write)
    kv = any_connection.kv(name)
    assert (kv.get("k"), kv.get_entry("k").revision) == (b"new", revision)
    assert (kv.get("deleted"), kv.get("purged"), kv.get("empty")) == (None, None, b"")
    assert kv.keys() == ["k", "empty"]
    kv.create("deleted", b"again")
    with pytest.raises(KeyExistsError):
        kv.create("k", b"v")
    with pytest.raises(RevisionMismatchError):
        kv.update("k", b"v", revision - 1)
    assert kv.update("k", b"v", revision) > revision
    RawStream(any_connection, f"KV_{name}").delete()


def test_bucket_of_nats_py_is_opened_with_our_configuration(
    any_connection: Connection, other: RunOther, name: str
) -> None:
    async def create(js: JetStreamContext) -> None:
        kv = await js.create_key_value(bucket=name, storage=api.StorageType.MEMORY, max_value_size=500)
        await kv.put("k", b"v")

    other(create)
    kv = any_connection.kv(KVBucketConfig(name, storage="memory", max_value_size=500))
    assert kv.get("k") == b"v"
    raw = RawStream(any_connection, f"KV_{name}")
    assert raw.config["allow_direct"]
    raw.delete()


@pytest.mark.parametrize("size", [0, 1, 128 * 1024, 300_000])
def test_nats_py_reads_our_objects(any_objects: ObjectBucket, other: RunOther, size: int) -> None:
    content = bytes(index % 251 for index in range(size))
    any_objects.put("a/ü file", content, description="d", headers={"A": ["1", "2"]})
    any_objects.set("deleted", b"v")
    any_objects.delete("deleted")

    async def read(js: JetStreamContext) -> None:
        store = await js.object_store(any_objects.name)
        found = await store.get("a/ü file")
        assert (found.data or b"") == content
        assert (found.info.description, found.info.headers) == ("d", {"A": ["1", "2"]})
        assert [info.name for info in await store.list(ignore_deletes=True)] == ["a/ü file"]
        await store.put("a/ü file", b"theirs")

    other(read)
    assert any_objects.get("a/ü file") == b"theirs"


@pytest.mark.parametrize("size", [0, 1, 300_000])
def test_we_read_the_objects_of_nats_py(any_connection: Connection, other: RunOther, name: str, size: int) -> None:
    content = bytes(index % 251 for index in range(size))

    async def write(js: JetStreamContext) -> None:
        config = api.ObjectStoreConfig(storage=api.StorageType.MEMORY)
        store = await js.create_object_store(bucket=name, config=config)
        meta = api.ObjectMeta(description="d", headers={"A": ["1"]})
        await store.put("a/ü file", content, meta=meta)
        await store.put("deleted", b"v")
        await store.delete("deleted")

    other(write)
    objects = any_connection.objects(name)
    assert objects.get("a/ü file") == content
    info = objects.stat("a/ü file")
    assert (info.size, info.description, dict(info.headers)) == (size, "d", {"A": ("1",)})
    assert objects.get("deleted") is None
    assert objects.list() == [info]
    objects.set("deleted", b"again")
    objects.delete("a/ü file")
    assert [found.name for found in objects.list()] == ["deleted"]
    RawStream(any_connection, f"OBJ_{name}").delete()


@pytest.mark.parametrize("size", [0, 1, 128 * 1024, 900_001])
def test_nats_py_reads_what_we_stored_from_files_and_streams(
    any_objects: ObjectBucket, other: RunOther, size: int
) -> None:
    content = bytes(index % 251 for index in range(size))
    any_objects.put_reader("file", io.BytesIO(content), resume="token")
    with any_objects.open("stream", "xb", description="d", headers={"A": "1"}, timeout=10) as stream:
        stream.write(content)

    async def read(js: JetStreamContext) -> None:
        store = await js.object_store(any_objects.name)
        for name in ("file", "stream"):
            assert ((await store.get(name)).data or b"") == content
        await store.put("file", b"theirs")

    other(read)
    assert any_objects.get("file") == b"theirs"
    any_objects.put_reader("file", io.BytesIO(b"ours"))
    assert any_objects.get("file") == b"ours"


def test_nats_py_reads_an_object_with_a_time_to_live_and_finds_none_when_that_is_over(
    connection: Connection, objects: ObjectBucket
) -> None:
    async def main() -> None:
        client = await nats.connect(connection.server_info.url, token=connection.config.token)
        try:
            store = await client.jetstream().object_store(objects.name)
            assert (await store.get("k")).data == b"v" * 300_000
            await asyncio.to_thread(wait_until, lambda: not objects.exists("k"), "it expires", timeout=5)
            with pytest.raises(ObjectNotFoundError):
                await store.get("k")
        finally:
            await client.close()

    objects.put("k", b"v" * 300_000, ttl=1)
    asyncio.run(main())


def test_nats_py_reads_what_we_say_of_objects_and_we_what_it_makes_of_that(
    any_objects: ObjectBucket, other: RunOther
) -> None:
    any_objects.put("k", b"v", description="d", headers={"A": ["1", "2"]}, metadata={"m": "1"})
    any_objects.update_meta("k", description="e", headers={"Content-Type": "text/plain"}, metadata={"m": "2"})

    async def describe(js: JetStreamContext) -> None:
        store = await js.object_store(any_objects.name)
        info = await store.get_info("k")
        assert (info.description, info.headers) == ("e", {"Content-Type": ["text/plain"]})
        await store.update_meta("k", api.ObjectMeta(name="k", description="theirs", headers={"B": ["3"]}))
        assert (await store.get("k")).data == b"v"

    other(describe)
    info = any_objects.stat("k")
    assert (info.description, dict(info.headers)) == ("theirs", {"B": ("3",)})
    assert any_objects.get("k") == b"v"


def test_nats_py_finds_what_we_renamed_under_its_new_name_only(any_objects: ObjectBucket, other: RunOther) -> None:
    any_objects.put("a/ü", bytes(300_000), metadata={"m": "1"})
    any_objects.update_meta("a/ü", name="b/ö")

    async def read(js: JetStreamContext) -> None:
        store = await js.object_store(any_objects.name)
        assert (await store.get("b/ö")).data == bytes(300_000)
        with pytest.raises(ObjectNotFoundError):
            await store.get_info("a/ü")
        assert [info.name for info in await store.list(ignore_deletes=True)] == ["b/ö"]
        await store.delete("b/ö")

    other(read)
    assert any_objects.list() == []
    assert chunk_subjects(any_objects) == {}


def test_nats_py_follows_our_links(any_objects: ObjectBucket, other: RunOther) -> None:
    any_objects.put("a", b"v")
    any_objects.link("l", "a")
    any_objects.link_bucket("b", "elsewhere")

    async def read(js: JetStreamContext) -> None:
        store = await js.object_store(any_objects.name)
        assert (await store.get("l")).data == b"v"
        info = await store.get_info("l")
        assert info.is_link()
        assert info.options == api.ObjectMetaOptions(link=api.ObjectLink(any_objects.name, "a"))
        with pytest.raises(LinkIsABucketError):
            await store.get("b")
        await store.delete("l")

    other(read)
    assert [info.name for info in any_objects.list()] == ["a", "b"]


def test_we_know_the_links_of_other_clients(any_objects: ObjectBucket, other: RunOther) -> None:
    async def write(js: JetStreamContext) -> None:  # nats-py cannot make links, so as the Go client stores them
        for name, link in (("l", {"bucket": "b", "name": "a/ü"}), ("m", {"bucket": "b"})):
            meta: Json = {"name": name, "options": {"link": link}, "bucket": any_objects.name, "nuid": f"n{name}"}
            meta |= {"size": 0, "mtime": "0001-01-01T00:00:00Z", "chunks": 0}
            token = base64.urlsafe_b64encode(name.encode()).decode()
            await js.publish(
                f"$O.{any_objects.name}.M.{token}", json.dumps(meta).encode(), headers={"Nats-Rollup": "sub"}
            )

    other(write)
    assert [(info.name, info.link) for info in any_objects.list()] == [("l", "b/a/ü"), ("m", "b")]
    info = any_objects.update_meta("l", name="n", metadata={"x": "y"})
    assert (info.link, info.metadata) == ("b/a/ü", {"x": "y"})
    any_objects.delete("n")
    assert any_objects.status().objects == 1


def test_deletions_of_either_client_are_known_to_the_other(any_objects: ObjectBucket, other: RunOther) -> None:
    for name in ("ours", "theirs", "stays"):
        any_objects.put(name, b"v")
    any_objects.delete("ours")

    async def delete(js: JetStreamContext) -> None:
        store = await js.object_store(any_objects.name)
        await store.delete("theirs")
        assert {info.name: bool(info.deleted) for info in await store.list()} == {
            "ours": True,
            "theirs": True,
            "stays": False,
        }

    with any_objects.watch(updates_only=True) as watcher:
        other(delete)
        change = watcher.next()
        assert (change.key, change.operation, change.value) == ("theirs", Operation.DELETE, None)
    assert [info.name for info in any_objects.list()] == ["stays"]
    assert (any_objects.status().objects, any_objects.status().tombstones) == (1, 2)
    any_objects.update_meta("stays", name="theirs")
    assert any_objects.get("theirs") == b"v"


def test_watchers_of_either_client_see_the_objects_of_the_other(any_objects: ObjectBucket, other: RunOther) -> None:
    async def watch(js: JetStreamContext) -> None:
        store = await js.object_store(any_objects.name)
        updates: Any = await store.watch()
        assert await updates.updates() is None
        info = await store.put("theirs", b"v")
        assert (await updates.updates()).nuid == info.nuid
        await asyncio.to_thread(any_objects.put, "ours", b"v", metadata={"m": "1"})
        assert (await updates.updates()).name == "ours"
        await asyncio.to_thread(any_objects.update_meta, "ours", name="new")
        assert {
            (update.name, bool(update.deleted)) for update in [await updates.updates(), await updates.updates()]
        } == {
            ("new", False),
            ("ours", True),
        }
        await updates.stop()

    with any_objects.watch() as watcher:
        other(watch)
        changes = [(change.key, change.operation) for change in [watcher.next() for _ in range(3)]]
        assert changes == [("theirs", Operation.PUT), ("new", Operation.PUT), ("ours", Operation.DELETE)]


@pytest.mark.parametrize("ours", [True, False])
def test_seal_of_either_client_binds_both(any_objects: ObjectBucket, other: RunOther, ours: bool) -> None:
    any_objects.put("k", b"v")

    async def seal(js: JetStreamContext) -> None:
        store: Any = await js.object_store(any_objects.name)
        if not ours:
            await store.seal()
        assert (await store.status()).sealed
        assert (await store.get("k")).data == b"v"
        with pytest.raises(BadRequestError):
            await store.update_meta("k", api.ObjectMeta(name="k", description="d"))

    if ours:
        any_objects.seal()
    other(seal)
    with pytest.raises(BucketSealedError):
        any_objects.put("k", b"w")
    assert any_objects.get("k") == b"v"


def test_we_read_anywhere_in_objects_of_nats_py_whose_chunks_have_odd_sizes(
    any_connection: Connection, other: RunOther, name: str
) -> None:
    content = random.Random(1).randbytes(20_500)

    class ShortReads(io.RawIOBase):
        """As of a pipe: nats-py makes a chunk of each read."""

        def __init__(self) -> None:
            self._rest, self._chance = io.BytesIO(content), random.Random(2)

        def readable(self) -> bool:
            return True

        def readinto(self, buffer: Any) -> int:
            return self._rest.readinto(memoryview(buffer)[: self._chance.randint(1, 1500)])

    async def write(js: JetStreamContext) -> None:
        config = api.ObjectStoreConfig(storage=api.StorageType.MEMORY)
        store = await js.create_object_store(bucket=name, config=config)
        for key, size, data in (("even", 777, content), ("uneven", 1500, ShortReads())):
            meta = api.ObjectMeta(options=api.ObjectMetaOptions(max_chunk_size=size))
            await store.put(key, data, meta=meta)  # type: ignore[arg-type]  # it wants no more than `readinto`

    other(write)
    objects = any_connection.objects(name)
    assert objects.stat("even").chunks == 27
    assert objects.stat("uneven").chunks > 15
    for key in ("even", "uneven"):
        with objects.open(key) as reader:
            for position in (20_000, 5000, 12_345, 0, 20_499):
                reader.seek(position)
                assert reader.read(3000) == content[position : position + 3000]
            reader.seek(0)
            assert reader.read() == content
    RawStream(any_connection, f"OBJ_{name}").delete()
