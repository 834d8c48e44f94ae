"""The plugins that give modules their buckets."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta
from typing import Any

import pytest

import mono_sync
from mono_sync import (
    ApplicationState,
    BucketConfigError,
    BucketNotFoundError,
    ClosedError,
    ConfigurationError,
    Connection,
    FSBucketConfig,
    FSJetStreamPlugin,
    KVBucket,
    KVBucketConfig,
    KVJetStreamPlugin,
    ModuleStartError,
    MonoApplication,
    MonoError,
    ObjectBucket,
    PluginModule,
    RegistrationError,
    ServiceContainer,
)
from mono_sync.adapter import ConnectionConfig
from mono_sync.server import EmbeddedServer
from mono_sync.storage.objects import _sweep
from tests.storage.helpers import RawStream
from tests.support.threads import Repeated

AnyPlugin = KVJetStreamPlugin | FSJetStreamPlugin

_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def connection(nats_server: EmbeddedServer) -> Iterator[Connection]:
    with mono_sync.connect(nats_server.url, token=nats_server.token) as connection:
        yield connection


@pytest.fixture
def names(connection: Connection) -> Iterator[tuple[str, str]]:
    """Two names of buckets that exist nowhere else; the buckets are deleted after the test."""
    names = (f"plugin{next(_numbers)}", f"plugin{next(_numbers)}")
    yield names
    for name in names:
        for prefix in ("KV_", "OBJ_"):
            with suppress(MonoError):
                RawStream(connection, prefix + name).delete()


@pytest.fixture
def container(connection: Connection) -> ServiceContainer:
    return ServiceContainer("alias", connection)


KINDS = pytest.mark.parametrize(
    ("plugin_type", "config_type", "bucket_type"),
    [(KVJetStreamPlugin, KVBucketConfig, KVBucket), (FSJetStreamPlugin, FSBucketConfig, ObjectBucket)],
)


# --- configuration


@KINDS
@pytest.mark.parametrize("buckets", [[], (), ""])
def test_at_least_one_bucket_is_needed(plugin_type: Any, config_type: Any, bucket_type: Any, buckets: Any) -> None:
    with pytest.raises(ConfigurationError, match=f"{plugin_type.__name__} needs at least one {config_type.__name__}"):
        plugin_type(buckets)


@KINDS
def test_each_name_may_occur_once(plugin_type: Any, config_type: Any, bucket_type: Any) -> None:
    buckets = [config_type(name) for name in ("a", "b", "a", "c", "b")]
    with pytest.raises(ConfigurationError, match="bucket a, b is configured more than once"):
        plugin_type(buckets)


@KINDS
def test_something_else_than_a_list_of_configurations_is_refused(
    plugin_type: Any, config_type: Any, bucket_type: Any
) -> None:
    kind = config_type.__name__
    other = FSBucketConfig if config_type is KVBucketConfig else KVBucketConfig
    for buckets, reason in (
        (config_type("a"), f"takes a list of {kind}"),
        (None, f"takes a list of {kind}"),
        ({config_type("a"): 1}, f"takes a list of {kind}"),
        (["a"], f"takes {kind}, not str"),
        ([config_type("a"), other("b")], f"takes {kind}, not {other.__name__}"),
        ([config_type], f"takes {kind}, not type"),
    ):
        with pytest.raises(ConfigurationError, match=reason):
            plugin_type(buckets)


def test_changing_the_list_later_changes_nothing() -> None:
    buckets = [KVBucketConfig("a")]
    plugin = KVJetStreamPlugin(buckets)
    buckets.append(KVBucketConfig("b"))
    assert not plugin.has_bucket("b")


# --- before, between and after start and stop


@KINDS
def test_buckets_are_there_between_start_and_stop(
    container: ServiceContainer, names: tuple[str, str], plugin_type: Any, config_type: Any, bucket_type: Any
) -> None:
    plugin = plugin_type([config_type(name, storage="memory") for name in names])
    plugin.set_container(container)
    for _ in range(2):  # a plugin can be started again
        assert dict(plugin.buckets) == {}
        with pytest.raises(ClosedError, match=f"is not running: bucket '{names[0]}'"):
            plugin.bucket(names[0])
        plugin.start()
        assert tuple(plugin.buckets) == names
        bucket = plugin.bucket(names[1])
        assert isinstance(bucket, bucket_type)
        assert bucket is plugin.buckets[names[1]]
        bucket.set("k", b"v")
        assert bucket.get("k") == b"v"
        plugin.stop()
        plugin.stop()
        assert bucket.get("k") == b"v"  # what was handed out works as long as the connection is open


@KINDS
def test_configured_names_are_known_all_the_time(
    container: ServiceContainer, names: tuple[str, str], plugin_type: Any, config_type: Any, bucket_type: Any
) -> None:
    plugin = plugin_type([config_type(name, storage="memory") for name in names])
    for step in (lambda: plugin.set_container(container), plugin.start, plugin.stop):
        assert plugin.has_bucket(names[0])
        assert not plugin.has_bucket("other")
        with pytest.raises(
            BucketNotFoundError, match=f"'other' not found; configured: {names[0]}, {names[1]}"
        ) as caught:
            plugin.bucket("other")
        assert (caught.value.bucket, caught.value.known) == ("other", names)
        step()


def test_mapping_of_buckets_cannot_be_changed(container: ServiceContainer, names: tuple[str, str]) -> None:
    plugin = KVJetStreamPlugin([KVBucketConfig(names[0], storage="memory")])
    plugin.set_container(container)
    plugin.start()
    with pytest.raises(TypeError):
        plugin.buckets["other"] = plugin.bucket(names[0])  # type: ignore[index]
    plugin.stop()


def test_bucket_that_cannot_be_made_is_named_and_none_is_handed_out(
    container: ServiceContainer, names: tuple[str, str]
) -> None:
    configs = [KVBucketConfig(names[0], storage="memory"), KVBucketConfig(names[1], storage="memory", replicas=3)]
    plugin = KVJetStreamPlugin(configs)
    plugin.set_container(container)
    with pytest.raises(BucketConfigError, match=names[1]):
        plugin.start()
    assert dict(plugin.buckets) == {}


def test_plugin_without_container_says_what_to_do() -> None:
    plugin = KVJetStreamPlugin([KVBucketConfig("a")])
    assert plugin.container is None
    with pytest.raises(ClosedError, match="'kv-jetstream' has no container: register it with an application"):
        plugin.start()


def test_container_is_the_one_that_was_set(container: ServiceContainer) -> None:
    plugin = FSJetStreamPlugin([FSBucketConfig("a")])
    plugin.set_container(container)
    assert plugin.container is container


def test_names_are_those_of_the_framework() -> None:
    assert (KVJetStreamPlugin.name, FSJetStreamPlugin.name) == ("kv-jetstream", "fs-jetstream")
    assert isinstance(KVJetStreamPlugin([KVBucketConfig("a")]), PluginModule)
    assert repr(FSJetStreamPlugin([FSBucketConfig("a"), FSBucketConfig("b")])) == "<FSJetStreamPlugin a, b>"


def test_a_bucket_asked_for_while_the_plugin_stops_is_there_or_refused(
    container: ServiceContainer, names: tuple[str, str]
) -> None:
    plugin = KVJetStreamPlugin([KVBucketConfig(names[0], storage="memory")])
    plugin.set_container(container)

    def ask() -> None:
        with suppress(ClosedError):
            assert isinstance(plugin.bucket(names[0]), KVBucket)

    with Repeated([ask] * 2):
        for _ in range(10):
            plugin.start()
            plugin.stop()


# --- in an application


class Keeper:
    """A module that uses every plugin it is given."""

    name = "keeper"

    def __init__(self) -> None:
        self.plugins: dict[str, AnyPlugin] = {}
        self.seen: dict[str, list[str]] = {}

    def set_plugin(self, alias: str, plugin: AnyPlugin) -> None:
        self.plugins[alias] = plugin

    def start(self) -> None:
        for alias, plugin in self.plugins.items():
            self.seen[alias] = list(plugin.buckets)
            for bucket in plugin.buckets.values():
                bucket.set("from", alias.encode())

    def stop(self) -> None:
        for alias, plugin in self.plugins.items():
            for bucket in plugin.buckets.values():
                assert bucket.get("from") == alias.encode()


@pytest.fixture
def app(nats_server: EmbeddedServer) -> Iterator[MonoApplication]:
    app = MonoApplication(servers=nats_server.url, connection=ConnectionConfig(token=nats_server.token))
    yield app
    app.stop()


def test_modules_use_the_buckets_of_several_instances_under_their_aliases(
    app: MonoApplication, names: tuple[str, str], connection: Connection
) -> None:
    first, second = names
    app.register_plugin(KVJetStreamPlugin([KVBucketConfig(first, storage="memory")]), "cache")
    app.register_plugin(KVJetStreamPlugin([KVBucketConfig(second, storage="memory")]), "sessions")
    app.register_plugin(FSJetStreamPlugin([FSBucketConfig(first, storage="memory")]), "storage")
    keeper = Keeper()
    app.register(keeper)
    with app:
        assert keeper.seen == {"cache": [first], "sessions": [second], "storage": [first]}
        plugin = app.plugin("sessions")
        assert isinstance(plugin, KVJetStreamPlugin)
        assert plugin.bucket(second).get("from") == b"sessions"
        with pytest.raises(BucketNotFoundError, match=f"configured: {second}"):
            plugin.bucket(first)
        assert plugin.container is not None
        assert plugin.container.module == "sessions"
    with pytest.raises(ClosedError):
        plugin.bucket(second)
    assert connection.kv(first).get("from") == b"cache"  # buckets outlive the application
    assert connection.objects(first).get("from") == b"storage"


def test_bucket_that_the_server_refuses_fails_the_start_with_its_name(
    app: MonoApplication, names: tuple[str, str]
) -> None:
    app.register_plugin(KVJetStreamPlugin([KVBucketConfig(names[0], storage="memory", replicas=3)]), "kv")
    with pytest.raises(ModuleStartError, match=names[0]) as caught:
        app.start()
    assert (caught.value.module, caught.value.phase) == ("kv", "start")
    assert isinstance(caught.value.__cause__, BucketConfigError)


def test_buckets_have_their_data_again_in_the_next_application(
    nats_server: EmbeddedServer, names: tuple[str, str]
) -> None:
    for count in range(2):
        plugin = KVJetStreamPlugin([KVBucketConfig(names[0], storage="memory")])
        app = MonoApplication(servers=nats_server.url, connection=ConnectionConfig(token=nats_server.token))
        app.register_plugin(plugin, "kv")
        with app:
            assert len(plugin.bucket(names[0]).keys()) == count
            plugin.bucket(names[0]).set(f"k{count}", b"v")


def test_a_plugin_that_is_in_use_cannot_be_started_in_another_application(
    nats_server: EmbeddedServer, names: tuple[str, str]
) -> None:
    plugin = KVJetStreamPlugin([KVBucketConfig(names[0], storage="memory")])
    options = ConnectionConfig(token=nats_server.token)
    first, second, third = (MonoApplication(servers=nats_server.url, connection=options) for _ in range(3))
    for app in (first, second, third):
        app.register_plugin(plugin, "kv")
    with first:
        with pytest.raises(RegistrationError, match="in use by another application") as caught:
            second.start()
        assert caught.value.module == "kv"
        assert second.state is ApplicationState.FAILED
        plugin.bucket(names[0]).set("still", b"there")
    with third:
        assert plugin.bucket(names[0]).get("still") == b"there"


# --- chunks that killed writers have left


def _leave_chunks(connection: Connection, name: str) -> RawStream:
    connection.objects(FSBucketConfig(name))
    raw = RawStream(connection, f"OBJ_{name}")
    raw.put(f"$O.{name}.C.left", b"chunk")
    return raw


def _start(plugin: FSJetStreamPlugin, container: ServiceContainer) -> None:
    plugin.set_container(container)
    plugin.start()
    plugin.stop()


def test_object_buckets_are_swept_at_the_start(
    connection: Connection, container: ServiceContainer, names: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_sweep, "_GRACE", timedelta(0))
    monkeypatch.setattr(_sweep, "_LEAST_GRACE", timedelta(0))
    raws = [_leave_chunks(connection, name) for name in names]
    configs = [FSBucketConfig(name) for name in names]
    _start(FSJetStreamPlugin(configs, sweep_within=None), container)
    assert [raw.state["messages"] for raw in raws] == [1, 1]
    _start(FSJetStreamPlugin(configs), container)
    assert [raw.state["messages"] for raw in raws] == [0, 0]


def test_young_chunks_are_let_alone_at_the_start(
    connection: Connection, container: ServiceContainer, names: tuple[str, str]
) -> None:
    raw = _leave_chunks(connection, names[0])
    _start(FSJetStreamPlugin([FSBucketConfig(names[0])]), container)
    assert raw.state["messages"] == 1


def test_all_buckets_together_are_swept_for_a_second_at_most(
    container: ServiceContainer, names: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    told = list[tuple[str, Any]]()
    monkeypatch.setattr(ObjectBucket, "sweep", lambda bucket, timeout: told.append((bucket.name, timeout)))
    _start(FSJetStreamPlugin([FSBucketConfig(name) for name in names]), container)
    (first, deadline), (second, other) = told
    assert (first, second) == names
    assert deadline is other
    assert deadline.timeout == 1


def test_a_sweep_that_has_no_time_does_not_fail_the_start(
    connection: Connection, container: ServiceContainer, names: tuple[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "mono_sync.plugins")
    _start(FSJetStreamPlugin([FSBucketConfig(names[0])], sweep_within=0), container)
    assert f"bucket {names[0]} is left to be swept another time" in caplog.text


@pytest.mark.parametrize("seconds", [-1, float("inf")])
def test_impossible_time_for_sweeping_is_refused(seconds: float) -> None:
    with pytest.raises(ValueError, match="sweep_within must be a finite number of seconds"):
        FSJetStreamPlugin([FSBucketConfig("b")], sweep_within=seconds)
