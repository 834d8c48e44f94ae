"""Configurations are checked when made, and arrive at the server as they are."""

from __future__ import annotations

import pickle
import threading
from dataclasses import FrozenInstanceError
from datetime import timedelta
from typing import Any

import pytest

import mono_sync
from mono_sync import (
    BucketConfigError,
    BucketNotFoundError,
    ConfigurationError,
    Connection,
    FSBucketConfig,
    JetStreamAPIError,
    KVBucket,
    KVBucketConfig,
    ObjectBucket,
    UnsupportedByServerError,
)
from mono_sync._durations import Deadline
from mono_sync.adapter import Listening, Message
from mono_sync.storage import _config
from tests.fixtures.servers import RunNatsServer
from tests.fixtures.waiting import wait_until
from tests.storage.conftest import NewKV, NewObjects
from tests.storage.helpers import RawStream, raw_kv, raw_objects, together

SECOND = 10**9
BOTH = pytest.mark.parametrize("kind", [KVBucketConfig, FSBucketConfig])


@BOTH
@pytest.mark.parametrize("name", ["", "a b", "a.b", "a*", "a>", "a\n", "ä", "a/b", "x" * 252])
def test_illegal_name_is_refused_with_the_rule(kind: type[KVBucketConfig], name: str) -> None:
    with pytest.raises(ConfigurationError, match=r"invalid bucket name .*(letters, digits, - and _|251 characters)"):
        kind(name)


@BOTH
def test_name_that_is_no_str_is_refused(kind: type[KVBucketConfig]) -> None:
    with pytest.raises(ConfigurationError, match="must be a str, not bytes"):
        kind(b"name")  # type: ignore[arg-type]


@BOTH
@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("description", 5),
        ("description", "ä" * 2100),
        ("ttl", 0.5),
        ("ttl", -1),
        ("ttl", 0),
        ("ttl", "1h"),
        ("ttl", float("nan")),
        ("ttl", float("inf")),
        ("ttl", 1e10),
        ("ttl", 10**400),
        ("max_bytes", 0),
        ("max_bytes", -1),
        ("max_bytes", 1.5),
        ("max_bytes", 2**63),
        ("storage", "disk"),
        ("storage", None),
        ("replicas", 0),
        ("replicas", 6),
        ("replicas", None),
        ("replicas", True),
        ("compression", "s2"),
        ("compression", None),
    ],
)
def test_impossible_option_is_refused_and_named(kind: type[KVBucketConfig], option: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match=rf"bucket 'b': {option} must be"):
        kind("b", **{option: value})


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("history", 0),
        ("history", 65),
        ("history", None),
        ("history", "3"),
        ("max_value_size", 0),
        ("max_value_size", -1),
        ("max_value_size", 2**31),
    ],
)
def test_impossible_key_value_option_is_refused_and_named(option: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match=rf"bucket 'b': {option} must be"):
        KVBucketConfig("b", **{option: value})


@BOTH
def test_options_are_keywords(kind: Any) -> None:
    with pytest.raises(TypeError):
        kind("b", "description")


@BOTH
def test_config_is_immutable_equal_by_value_and_picklable(kind: type[KVBucketConfig]) -> None:
    config = kind("b", ttl=5)
    with pytest.raises(FrozenInstanceError):
        config.ttl = 6  # type: ignore[misc]
    assert config == kind("b", ttl=timedelta(seconds=5)) != kind("b", ttl=6)
    assert pickle.loads(pickle.dumps(config)) == config


@pytest.mark.parametrize(("ttl", "seconds"), [(1, 1), (1.2, 2), (timedelta(minutes=1), 60), (None, None)])
def test_ttl_is_rounded_up_to_whole_seconds(ttl: Any, seconds: int | None) -> None:
    assert KVBucketConfig("b", ttl=ttl).ttl == seconds


# --- what the server gets


def test_key_value_options_arrive_at_the_server(new_kv: NewKV) -> None:
    kv = new_kv(
        description="näme", ttl=30, max_bytes=10**6, storage="file", compression=True, history=5, max_value_size=1000
    )
    config = raw_kv(kv).config
    expected = {
        "subjects": [f"$KV.{kv.name}.>"],
        "description": "näme",
        "max_age": 30 * SECOND,
        "duplicate_window": 30 * SECOND,
        "max_bytes": 10**6,
        "storage": "file",
        "compression": "s2",
        "max_msgs_per_subject": 5,
        "max_msg_size": 1000,
        "num_replicas": 1,
        "discard": "new",
        "deny_delete": True,
        "allow_rollup_hdrs": True,
        "allow_direct": True,
        "allow_msg_ttl": True,
    }
    assert {field: config.get(field) for field in expected} == expected


def test_object_options_arrive_at_the_server(new_objects: NewObjects) -> None:
    objects = new_objects(description="d", ttl=3600, max_bytes=10**6, storage="file", compression=True)
    config = raw_objects(objects).config
    expected = {
        "subjects": [f"$O.{objects.name}.C.>", f"$O.{objects.name}.M.>"],
        "description": "d",
        "max_age": 3600 * SECOND,
        "duplicate_window": 30 * SECOND,
        "max_bytes": 10**6,
        "storage": "file",
        "compression": "s2",
        "discard": "new",
        "allow_rollup_hdrs": True,
        "allow_direct": True,
    }
    assert {field: config.get(field) for field in expected} == expected


def test_defaults_are_unlimited(any_kv: KVBucket, any_objects: ObjectBucket) -> None:
    for config in (raw_kv(any_kv).config, raw_objects(any_objects).config):
        assert (config["max_age"], config["max_bytes"], config["max_msg_size"]) == (0, -1, -1)
        assert config["duplicate_window"] == 30 * SECOND
        assert config.get("compression", "none") == "none"


def test_status_tells_what_was_configured(new_kv: NewKV, new_objects: NewObjects) -> None:
    status = new_kv(ttl=30, max_bytes=10**6, history=5, max_value_size=1000, description="d").status()
    assert (status.ttl, status.max_bytes, status.history) == (timedelta(seconds=30), 10**6, 5)
    assert (status.max_value_size, status.description, status.storage) == (1000, "d", "memory")
    status = new_objects(compression=True, storage="file").status()
    assert (status.ttl, status.max_bytes, status.max_value_size) == (None, None, None)
    assert (status.storage, status.compression, status.replicas) == ("file", True, 1)


def test_status_counts_messages_and_bytes(any_kv: KVBucket) -> None:
    before = any_kv.status()
    any_kv.set("k", b"x" * 1000)
    after = any_kv.status()
    assert (before.messages, before.bytes, after.messages) == (0, 0, 1)
    assert 1000 < after.bytes < 1200


# --- create or update


class Updates:
    """Counts the changes that the server makes to a stream."""

    def __init__(self, connection: Connection, stream: str) -> None:
        self._connection = connection
        self._marker = f"AFTER_{stream}"
        self._count = 0
        self._done = threading.Event()
        self._updated = f"$JS.EVENT.ADVISORY.STREAM.UPDATED.{stream}"
        self._listening = Listening("$JS.EVENT.ADVISORY.STREAM.>", self._take, lambda _error: None)
        connection.start_listening(self._listening, Deadline(5))

    def _take(self, message: Message) -> None:
        self._count += message.subject == self._updated
        if message.subject.endswith(f".CREATED.{self._marker}"):
            self._done.set()

    def seen(self) -> int:
        """Return how many there were: the server tells of all of them before it tells of what comes later."""
        marker = RawStream(self._connection, self._marker)
        marker.create(storage="memory")
        assert self._done.wait(10)
        marker.delete()
        self._connection.stop_listening(self._listening)
        return self._count


@pytest.mark.parametrize("options", [{}, {"ttl": 5, "history": 3, "max_bytes": 10**6, "description": "d"}])
def test_opening_again_with_the_same_configuration_changes_nothing(
    any_new_kv: NewKV, any_connection: Connection, options: dict[str, Any]
) -> None:
    kv = any_new_kv(**options)
    kv.set("k", b"v")
    updates = Updates(any_connection, f"KV_{kv.name}")
    again = any_connection.kv(KVBucketConfig(kv.name, storage="memory", **options))
    assert again.get("k") == b"v"
    assert updates.seen() == 0


def test_opening_an_object_bucket_again_changes_nothing(any_objects: ObjectBucket, any_connection: Connection) -> None:
    any_objects.set("k", b"v")
    updates = Updates(any_connection, f"OBJ_{any_objects.name}")
    assert any_connection.objects(FSBucketConfig(any_objects.name, storage="memory")).get("k") == b"v"
    assert updates.seen() == 0


def test_update_is_seen_by_the_counter_of_updates(any_kv: KVBucket, any_connection: Connection) -> None:
    updates = Updates(any_connection, f"KV_{any_kv.name}")
    any_connection.kv(KVBucketConfig(any_kv.name, storage="memory", description="new"))
    assert updates.seen() == 1


@pytest.mark.parametrize(
    ("option", "old", "new"),
    [
        ("description", "old", "new"),
        ("description", "old", ""),
        ("ttl", 10, 600),
        ("ttl", 10, None),
        ("ttl", None, 10),
        ("max_bytes", 10**6, 2 * 10**6),
        ("max_bytes", 10**6, None),
        ("history", 1, 5),
        ("history", 5, 1),
        ("max_value_size", None, 500),
    ],
)
def test_changed_option_is_updated_and_the_data_stays(
    any_new_kv: NewKV, any_connection: Connection, option: str, old: Any, new: Any
) -> None:
    kv = any_new_kv(**{option: old})
    kv.set("k", b"v")
    again = any_connection.kv(KVBucketConfig(kv.name, storage="memory", **{option: new}))
    assert again.get("k") == b"v"
    value = getattr(again.status(), option)
    assert (value.total_seconds() if isinstance(value, timedelta) else value) == new


def test_refused_change_of_storage_names_bucket_and_field(any_kv: KVBucket, any_connection: Connection) -> None:
    with pytest.raises(BucketConfigError, match=f"'{any_kv.name}': the server refuses to change storage: ") as caught:
        any_connection.kv(KVBucketConfig(any_kv.name, storage="file"))
    assert (caught.value.bucket, caught.value.fields) == (any_kv.name, ("storage",))
    assert caught.value.__cause__ is not None


def test_refused_change_of_replicas_names_bucket_and_field(kv: KVBucket, connection: Connection) -> None:
    with pytest.raises(BucketConfigError, match="refuses to change replicas") as caught:
        connection.kv(KVBucketConfig(kv.name, storage="memory", replicas=3))
    assert caught.value.fields == ("replicas",)


def test_refused_creation_names_the_bucket_and_the_reason(any_connection: Connection, name: str) -> None:
    with pytest.raises(BucketConfigError, match=f"'{name}': the server refuses to create it: .*replicas") as caught:
        any_connection.objects(FSBucketConfig(name, storage="memory", replicas=3))
    assert (caught.value.bucket, caught.value.fields) == (name, ())


@pytest.mark.parametrize("for_good", [False, True])
def test_server_that_could_not_make_the_store_is_asked_again(
    run_nats_server: RunNatsServer, monkeypatch: pytest.MonkeyPatch, *, for_good: bool
) -> None:
    """It fails when it removes the account's directory at that moment, for the last stream in it was deleted."""
    server = run_nats_server("jetstream: enabled")
    in_the_way = server.store / "jetstream" / "$G"
    pauses = list[float]()

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        wait_until(lambda: not in_the_way.exists(), "the server has removed it")
        if for_good:
            in_the_way.touch()

    monkeypatch.setattr(_config, "sleep", pause)
    in_the_way.touch()
    with mono_sync.connect(server.url) as connection:
        if for_good:
            with pytest.raises(BucketConfigError, match="bucket 'b': the server refuses to create it"):
                connection.kv(KVBucketConfig("b"))
            assert len(pauses) == 2
        else:
            connection.kv(KVBucketConfig("b")).set("k", b"v")
            assert len(pauses) == 1


def test_bucket_of_another_client_keeps_settings_that_are_not_ours(connection: Connection, name: str) -> None:
    raw = RawStream(connection, f"KV_{name}")
    raw.create(
        subjects=[f"$KV.{name}.>"],
        storage="memory",
        max_msgs_per_subject=1,
        allow_rollup_hdrs=True,
        discard="new",
        max_consumers=7,
        max_msgs=99,
        metadata={"team": "a"},
        republish={"src": ">", "dest": "copy.>"},
    )
    kv = connection.kv(KVBucketConfig(name, storage="memory"))
    config = raw.config
    assert (config["max_consumers"], config["max_msgs"], config["metadata"]["team"]) == (7, 99, "a")
    assert config["republish"]["dest"] == "copy.>"
    assert (config["allow_direct"], config["deny_delete"]) == (True, True)
    kv.set("k", b"v", ttl=5)
    raw.delete()


def test_bucket_may_have_more_consumers_than_the_server_grants_to_streams_that_do_not_ask(
    connection: Connection, kv: KVBucket
) -> None:
    assert raw_kv(kv).config["max_consumers"] > 100_000
    raw_kv(kv).update(max_consumers=-1)  # as by another client, or an older server
    connection.kv(KVBucketConfig(kv.name, storage="memory"))
    assert raw_kv(kv).config["max_consumers"] > 100_000


def test_bucket_may_have_as_many_consumers_as_its_account(run_nats_server: RunNatsServer) -> None:
    server = run_nats_server(
        "jetstream: enabled\naccounts { A { users: [{user: a, password: a}], jetstream { max_consumers: 3 } } }"
    )
    with mono_sync.connect(server.url, user="a", password="a") as connection:
        kv = connection.kv(KVBucketConfig("b"))
        assert connection.kv(KVBucketConfig("b", history=2)).status().history == 2
        watchers = [kv.watch_all() for _ in range(3)]
        with pytest.raises(JetStreamAPIError, match="maximum consumers"):
            kv.watch_all()
        for watcher in watchers:
            watcher.stop()


def test_stream_of_another_purpose_is_refused(connection: Connection, name: str) -> None:
    raw = RawStream(connection, f"KV_{name}")
    raw.create(subjects=[f"other.{name}"], storage="memory", retention="workqueue")
    with pytest.raises(BucketConfigError, match=name):
        connection.kv(KVBucketConfig(name, storage="memory"))
    raw.delete()


def test_many_threads_create_the_same_bucket_at_once(any_connection: Connection, name: str) -> None:
    def create(number: int) -> None:
        any_connection.kv(KVBucketConfig(name, storage="memory")).set(f"k{number}", b"v")

    together(16, create)
    kv = any_connection.kv(name)
    assert len(kv.keys()) == 16
    raw_kv(kv).delete()


def test_many_threads_create_a_bucket_with_different_configurations(any_connection: Connection, name: str) -> None:
    together(8, lambda number: any_connection.kv(KVBucketConfig(name, storage="memory", history=number + 1)))
    kv = any_connection.kv(name)
    assert 1 <= kv.status().history <= 8
    raw_kv(kv).delete()


# --- opening by name


def test_missing_bucket_is_not_found_and_not_created(any_connection: Connection, name: str) -> None:
    for open_bucket in (any_connection.kv, any_connection.objects):
        for _ in range(2):
            with pytest.raises(BucketNotFoundError, match=name) as caught:
                open_bucket(name)
            assert caught.value.bucket == name


def test_bucket_of_the_other_kind_is_not_found(any_kv: KVBucket, any_connection: Connection) -> None:
    with pytest.raises(BucketNotFoundError):
        any_connection.objects(any_kv.name)


@pytest.mark.parametrize("bucket", ["a b", "", "a.b"])
def test_opening_by_an_illegal_name_is_refused(connection: Connection, bucket: str) -> None:
    with pytest.raises(ConfigurationError, match="invalid bucket name"):
        connection.kv(bucket)


def test_opening_with_the_other_kind_of_configuration_is_refused(connection: Connection) -> None:
    with pytest.raises(ConfigurationError, match="its name or a KVBucketConfig, not FSBucketConfig"):
        connection.kv(FSBucketConfig("b"))  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="its name or a FSBucketConfig, not int"):
        connection.objects(5)  # type: ignore[arg-type]


# --- old servers


@pytest.mark.old_server
@BOTH
def test_compression_on_an_old_server_is_refused_with_both_versions(
    old_connection: Connection, kind: type[KVBucketConfig], name: str
) -> None:
    open_bucket: Any = old_connection.kv if kind is KVBucketConfig else old_connection.objects
    version = old_connection.server_info.version
    with pytest.raises(UnsupportedByServerError, match=rf"compression .* 2\.10\.0 .*{version}") as caught:
        open_bucket(kind(name, compression=True))
    assert (caught.value.required, caught.value.actual) == ("2.10.0", version)
    with pytest.raises(BucketNotFoundError):
        open_bucket(name)


@pytest.mark.old_server
def test_ttl_per_key_on_an_old_server_is_refused_with_both_versions(old_connection: Connection, name: str) -> None:
    kv = old_connection.kv(KVBucketConfig(name, storage="memory"))
    version = old_connection.server_info.version
    for write in (
        lambda: kv.set("k", b"v", ttl=5),
        lambda: kv.put_with_revision("k", b"v", ttl=5),
        lambda: kv.create("k", b"v", ttl=5),
        lambda: kv.update("k", b"v", 1, ttl=5),
    ):
        with pytest.raises(UnsupportedByServerError, match=rf"a TTL per key needs .* 2\.11\.0 .*{version}") as caught:
            write()
        assert (caught.value.required, caught.value.actual) == ("2.11.0", version)
    assert kv.get("k") is None
    raw_kv(kv).delete()
