"""What a watcher of objects delivers, and that it skips nothing whatever breaks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, TypeAlias

import pytest

import mono_sync
from mono_sync import (
    BucketNotFoundError,
    ClosedError,
    Entry,
    FSBucketConfig,
    ObjectBucket,
    ObjectInfo,
    Operation,
    OperationTimeoutError,
    StorageError,
    Watcher,
)
from tests.fixtures.servers import RawServer, RunNatsServer
from tests.fixtures.waiting import wait_until
from tests.storage import descriptions
from tests.storage.helpers import CutProxy, raw_objects
from tests.support.threads import Background

Change: TypeAlias = Entry[ObjectInfo | None]
LARGE = bytes(300_000)


def shown(changes: list[Change]) -> list[tuple[str, Operation]]:
    return [(change.key, change.operation) for change in changes]


def take(watcher: Watcher[ObjectInfo | None], count: int) -> list[Change]:
    return [watcher.next() for _ in range(count)]


def assert_quiet(watcher: Watcher[ObjectInfo | None]) -> None:
    with pytest.raises(OperationTimeoutError):
        watcher.next(timeout=0.05)


PUT, DELETE = Operation.PUT, Operation.DELETE


# --- what comes


def test_first_come_the_objects_that_are_there_and_then_every_change(any_objects: ObjectBucket) -> None:
    for name in ("a", "b/ü", "c"):
        any_objects.put(name, LARGE)
    any_objects.delete("c")
    with any_objects.watch() as watcher:
        assert shown(take(watcher, 3)) == [("a", PUT), ("b/ü", PUT), ("c", DELETE)]
        any_objects.put("d", LARGE)
        any_objects.put("a", b"new")
        any_objects.delete("b/ü")
        assert shown(take(watcher, 3)) == [("d", PUT), ("a", PUT), ("b/ü", DELETE)]
        assert_quiet(watcher)


def test_entry_carries_what_stat_returns(any_objects: ObjectBucket) -> None:
    info = any_objects.put("k", LARGE, description="d", headers={"A": ["1", "2"]}, metadata={"m": "1"})
    with any_objects.watch() as watcher:
        change = watcher.next()
        assert change.value == info
        assert (change.bucket, change.revision, change.expired) == (any_objects.name, info.revision, False)
        assert timedelta(seconds=-5) < datetime.now(UTC) - change.created < timedelta(seconds=5)
        any_objects.delete("k")
        gone = watcher.next()
        assert (gone.value, gone.removed, gone.key) == (None, True, "k")
        assert gone.revision > info.revision


def test_descriptions_and_links_and_copies_are_changes(any_objects: ObjectBucket) -> None:
    any_objects.put("k", LARGE)
    with any_objects.watch(updates_only=True) as watcher:
        written = [
            any_objects.update_meta("k", description="d"),
            any_objects.link("l", "k"),
            any_objects.link_bucket("b", "other"),
            any_objects.copy("k", "c"),
        ]
        assert [change.value for change in take(watcher, 4)] == written


def test_renamed_object_comes_with_its_new_name_and_then_as_deleted_with_its_old_one(any_objects: ObjectBucket) -> None:
    any_objects.put("a", LARGE)
    with any_objects.watch() as watcher:
        take(watcher, 1)
        info = any_objects.update_meta("a", name="b")
        changes = take(watcher, 2)
        assert shown(changes) == [("b", PUT), ("a", DELETE)]
        assert changes[0].value == info


def test_object_comes_when_it_is_complete_and_chunks_do_not_come(any_objects: ObjectBucket) -> None:
    raw = raw_objects(any_objects)
    with any_objects.watch() as watcher:
        raw.put(f"$O.{any_objects.name}.C.half", b"a chunk")
        assert_quiet(watcher)
        any_objects.put("k", LARGE)
        assert watcher.next().key == "k"


def test_only_names_with_the_prefix_are_watched(any_objects: ObjectBucket) -> None:
    for name in ("a/1", "b/1", "a/2", "a"):
        any_objects.put(name, b"v")
    with any_objects.watch("a/") as watcher:
        assert shown(watcher.snapshot()) == [("a/1", PUT), ("a/2", PUT)]
        any_objects.put("b/2", b"v")
        any_objects.delete("a/1")
        assert shown(take(watcher, 1)) == [("a/1", DELETE)]


def test_ignore_deletes_leaves_out_deletions_and_passes_them(any_objects: ObjectBucket) -> None:
    any_objects.put("a", b"v")
    any_objects.put("b", b"v")
    any_objects.delete("a")
    with any_objects.watch(ignore_deletes=True) as watcher:
        assert shown(take(watcher, 1)) == [("b", PUT)]
        any_objects.delete("b")
        revision = any_objects.put("c", b"").revision
        assert shown(take(watcher, 1)) == [("c", PUT)]
        assert watcher.position == revision


def test_updates_only_begins_with_what_is_written_after_the_call(any_objects: ObjectBucket) -> None:
    any_objects.put("a", b"v")
    with any_objects.watch(updates_only=True) as watcher:
        any_objects.put("b", b"v")
        assert shown(take(watcher, 1)) == [("b", PUT)]


def test_resume_from_goes_on_behind_a_position(any_objects: ObjectBucket) -> None:
    for name in ("a", "b"):
        any_objects.put(name, b"v")
    with any_objects.watch() as watcher:
        take(watcher, 1)
        position = watcher.position
    any_objects.put("c", LARGE)
    any_objects.delete("c")
    with any_objects.watch(resume_from=position) as watcher:
        assert shown(watcher.snapshot()) == [("b", PUT), ("c", DELETE)]


def test_snapshot_is_the_list_of_the_objects_and_iteration_goes_on_after_it(any_objects: ObjectBucket) -> None:
    for number in range(300):
        any_objects.put(f"o{number:03}", b"")
    any_objects.delete("o007")
    with any_objects.watch() as watcher:
        assert [change.value for change in watcher.snapshot()] == any_objects.list()
        assert watcher.synced
        any_objects.put("k", b"v")
        assert watcher.next().key == "k"


def test_snapshot_of_an_empty_bucket_is_empty_at_once(any_objects: ObjectBucket) -> None:
    with any_objects.watch() as watcher:
        assert watcher.snapshot() == []


@pytest.mark.parametrize(
    ("options", "kind", "reason"),
    [
        ({"updates_only": True, "resume_from": 1}, ValueError, "exclude each other"),
        ({"resume_from": -1}, ValueError, "a revision is 1 or more"),
        ({"resume_from": "1"}, TypeError, "a revision must be an int"),
        ({"prefix": b"a"}, TypeError, "a prefix must be a str"),
    ],
)
def test_wrong_options_are_refused(
    objects: ObjectBucket, options: dict[str, Any], kind: type[Exception], reason: str
) -> None:
    with pytest.raises(kind, match=reason):
        objects.watch(**options)


def test_repr_names_prefix_and_bucket(objects: ObjectBucket) -> None:
    with objects.watch("a/") as watcher:
        assert repr(watcher) == f"<Watcher of 'a/' in bucket '{objects.name}', at 0>"


def test_watcher_that_was_stopped_names_itself_and_its_bucket(objects: ObjectBucket) -> None:
    objects.put("a/x", b"v")
    watcher = objects.watch("a/")
    watcher.stop()
    for call in (watcher.next, watcher.snapshot, watcher.wait_synced):
        with pytest.raises(ClosedError, match=rf"^the watcher of 'a/' in bucket '{objects.name}' was stopped$"):
            call()
    assert list(watcher) == []


# --- what other clients may have stored


def test_what_describes_no_object_is_raised_in_its_turn_and_passed(any_objects: ObjectBucket) -> None:
    any_objects.put("a", b"v")
    descriptions.store(any_objects, "k", b"no json")
    any_objects.put("b", b"v")
    with any_objects.watch() as watcher:
        assert watcher.next().key == "a"
        with pytest.raises(StorageError, match="'k' does not describe an object"):
            watcher.next()
        assert watcher.next().key == "b"
    with any_objects.watch() as watcher:
        with pytest.raises(StorageError, match="does not describe an object"):
            watcher.snapshot()
        assert shown(watcher.snapshot()) == [("a", PUT), ("b", PUT)]


def test_mark_that_the_server_left_tells_that_an_object_expired(any_objects: ObjectBucket) -> None:
    descriptions.store(any_objects, "k", b"", {"Nats-Marker-Reason": "MaxAge"})
    with any_objects.watch() as watcher:
        change = watcher.next()
        assert (change.key, change.operation, change.expired, change.value) == ("k", Operation.PURGE, True, None)


def test_subject_that_stands_for_no_name_is_left_out(any_objects: ObjectBucket) -> None:
    raw = raw_objects(any_objects)
    for token in ("a", "_w==", "a.b"):  # no base64, no UTF-8, two tokens
        raw.put(f"$O.{any_objects.name}.M.{token}", json.dumps({"name": "k", "nuid": "n"}).encode())
    any_objects.put("k", b"v")
    with any_objects.watch() as watcher:
        assert shown(watcher.snapshot()) == [("k", PUT)]


# --- what breaks


@pytest.fixture
def server(run_nats_server: RunNatsServer, any_binary: str) -> RawServer:
    return run_nats_server("jetstream: enabled", binary=any_binary)


@pytest.fixture
def stored(server: RawServer) -> Iterator[ObjectBucket]:
    with mono_sync.connect(server.url) as connection:
        yield connection.objects(FSBucketConfig("b"))


@pytest.mark.parametrize("step", [b"$JS.API.CONSUMER.CREATE", b"$JS.API.CONSUMER.MSG.NEXT"])
@pytest.mark.parametrize("after", [False, True])
def test_connection_that_breaks_costs_no_change(
    stored: ObjectBucket, server: RawServer, step: bytes, after: bool
) -> None:
    names = [f"o{number:03}" for number in range(100)]
    for name in names:
        stored.put(name, b"")
    with CutProxy(server.url) as proxy, mono_sync.connect(proxy.url) as connection:
        proxy.cut_at(step, after=after)
        with connection.objects("b").watch() as watcher:
            assert [change.key for change in watcher.snapshot(timeout=10)] == names
            proxy.cut()
            for name in names[:3]:
                stored.delete(name)
            assert shown(take(watcher, 3)) == [(name, DELETE) for name in names[:3]]
        assert proxy.cuts == 1


def test_server_that_restarts_costs_no_change(stored: ObjectBucket, server: RawServer) -> None:
    with stored.watch() as watcher:
        stored.put("a", b"v")
        take(watcher, 1)
        stored.put("b", b"v")
        server.kill()
        server.start()
        stored.put("c", b"v", timeout=20)
        assert [watcher.next(timeout=20).key for _ in range(2)] == ["b", "c"]


def test_bucket_that_is_deleted_ends_the_iteration(any_objects: ObjectBucket) -> None:
    with any_objects.watch() as watcher:
        waiting = Background(lambda: next(watcher))
        wait_until(lambda: watcher.synced and raw_objects(any_objects).waiting_pulls(), "it waits for a change")
        raw_objects(any_objects).delete()
        with pytest.raises(BucketNotFoundError, match=any_objects.name):
            waiting.result(10)
