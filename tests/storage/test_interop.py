"""nats-py reads what we write and the reverse."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import nats
import pytest
from nats.js import JetStreamContext, api
from nats.js.errors import KeyDeletedError, KeyNotFoundError, KeyWrongLastSequenceError, ObjectNotFoundError

from mono_sync import Connection, KeyExistsError, KVBucket, KVBucketConfig, ObjectBucket, RevisionMismatchError
from tests.fixtures.waiting import wait_until
from tests.storage.helpers import RawStream

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
    with any_objects._new_writer(
        "stream", exclusive=True, if_match=None, description="d", headers={"A": "1"}, ttl=None, timeout=10
    ) as stream:
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
