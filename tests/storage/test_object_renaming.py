"""Descriptions under many hands at once, and under connections that break at the worst moment."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

import pytest

import mono_sync
from mono_sync import (
    BucketSealedError,
    Connection,
    ObjectBucket,
    ObjectExistsError,
    ObjectNotFoundError,
    OperationTimeoutError,
    OutcomeUnknownError,
    RevisionMismatchError,
)
from tests.storage.helpers import CutProxy, chunk_subjects, raw_objects, together
from tests.support.threads import Background

OLD, NEW = bytes(300_000), b"new" * 100_000


@pytest.fixture(params=[True, False], ids=["at once", "in steps"])
def bucket(request: pytest.FixtureRequest, connection: Connection, objects: ObjectBucket) -> ObjectBucket:
    """A bucket whose objects get new names in one step, or in two, as on old servers."""
    raw_objects(objects).update(allow_atomic=request.param)
    return connection.objects(objects.name)


def _before(
    objects: ObjectBucket, monkeypatch: pytest.MonkeyPatch, step: str, change: Callable[[], object], *, call: int = 1
) -> None:
    """Make a change right before a step is taken for the n-th time."""
    original, calls = getattr(objects, step), [0]

    def changed_first(*arguments: object) -> object:
        calls[0] += 1
        if calls[0] == call:
            change()
        return original(*arguments)

    monkeypatch.setattr(objects, step, changed_first)


def _names(objects: ObjectBucket) -> list[str]:
    return [info.name for info in objects.list()]


# --- somebody else is faster


def test_description_is_changed_on_top_of_what_somebody_else_wrote_at_that_moment(
    any_objects: ObjectBucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    any_objects.put("k", OLD, description="old")
    _before(any_objects, monkeypatch, "_describe_anew", lambda: any_objects.put("k", NEW, description="theirs"))
    info = any_objects.update_meta("k", metadata={"m": "1"})
    assert (info.description, info.metadata, info.size) == ("theirs", {"m": "1"}, len(NEW))
    assert any_objects.stat("k") == info
    assert any_objects.get("k") == NEW


def test_expected_revision_is_compared_when_it_is_written(
    any_objects: ObjectBucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = any_objects.put("k", OLD)
    _before(any_objects, monkeypatch, "_describe_anew", lambda: any_objects.put("k", NEW))
    with pytest.raises(RevisionMismatchError):
        any_objects.update_meta("k", description="d", if_match=info.revision)
    assert any_objects.stat("k").description == ""


def test_object_that_is_deleted_at_that_moment_stays_deleted(
    any_objects: ObjectBucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    any_objects.put("k", OLD)
    _before(any_objects, monkeypatch, "_describe_anew", lambda: any_objects.delete("k"))
    with pytest.raises(ObjectNotFoundError):
        any_objects.update_meta("k", description="d")
    assert any_objects.list() == []


def test_what_is_written_at_that_moment_is_what_gets_the_new_name(
    bucket: ObjectBucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.put("a", OLD)
    _before(bucket, monkeypatch, "_describe_anew", lambda: bucket.put("a", NEW))
    bucket.update_meta("a", name="b")
    assert _names(bucket) == ["b"]
    assert bucket.get("b") == NEW
    assert len(chunk_subjects(bucket)) == 1


def test_name_that_is_taken_at_that_moment_is_not_taken_over(
    bucket: ObjectBucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.put("a", OLD)
    _before(bucket, monkeypatch, "_conditional", lambda: bucket.put("b", NEW))
    with pytest.raises(ObjectExistsError):
        bucket.update_meta("a", name="b")
    assert (bucket.get("a"), bucket.get("b")) == (OLD, NEW)


def test_link_does_not_replace_an_object_that_is_put_at_that_moment(
    any_objects: ObjectBucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    any_objects.put("a", OLD)
    _before(any_objects, monkeypatch, "_store", lambda: any_objects.put("l", NEW))
    with pytest.raises(ObjectExistsError):
        any_objects.link("l", "a")
    assert any_objects.get("l") == NEW


# --- in two steps


@pytest.fixture
def stepwise(connection: Connection, objects: ObjectBucket) -> ObjectBucket:
    raw_objects(objects).update(allow_atomic=False)
    return connection.objects(objects.name)


def test_new_name_is_taken_back_where_the_old_one_was_written_between_the_steps(
    stepwise: ObjectBucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    stepwise.put("a", OLD)
    _before(stepwise, monkeypatch, "_store", lambda: stepwise.put("a", NEW), call=2)
    stepwise.update_meta("a", name="b")
    assert _names(stepwise) == ["b"]
    assert stepwise.get("b") == NEW
    assert len(chunk_subjects(stepwise)) == 1


def test_new_name_is_taken_back_where_the_old_one_was_deleted_between_the_steps(
    stepwise: ObjectBucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    stepwise.put("a", OLD)
    _before(stepwise, monkeypatch, "_store", lambda: stepwise.delete("a"), call=2)
    with pytest.raises(ObjectNotFoundError):
        stepwise.update_meta("a", name="b")
    assert stepwise.list() == []
    assert chunk_subjects(stepwise) == {}


def test_new_name_that_was_written_between_the_steps_keeps_what_was_written(
    stepwise: ObjectBucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    stepwise.put("a", OLD)
    _before(stepwise, monkeypatch, "_store", lambda: stepwise.put("b", NEW), call=2)
    stepwise.update_meta("a", name="b")
    assert _names(stepwise) == ["b"]
    assert stepwise.get("b") == NEW


def test_new_name_is_taken_back_where_time_is_up_between_the_steps(
    stepwise: ObjectBucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = stepwise.put("a", OLD)

    def time_is_up() -> None:
        raise OperationTimeoutError("describing an object", 1, sent=False)

    _before(stepwise, monkeypatch, "_store", time_is_up, call=2)
    with pytest.raises(OperationTimeoutError, match="describing object 'a'"):
        stepwise.update_meta("a", name="b")
    assert stepwise.list() == [info]
    assert stepwise.get("a") == OLD


def test_name_that_cannot_be_taken_back_is_told_of(
    stepwise: ObjectBucket, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    stepwise.put("a", OLD)
    _before(stepwise, monkeypatch, "_store", stepwise.seal, call=2)
    with caplog.at_level(logging.WARNING, "mono_sync.storage"), pytest.raises(BucketSealedError):
        stepwise.update_meta("a", name="b")
    assert "an object may be left under the name 'b' too" in caplog.text
    assert (stepwise.get("a"), stepwise.get("b")) == (OLD, OLD)


# --- many at once


def test_object_is_always_there_under_one_of_its_names(any_objects: ObjectBucket) -> None:
    for number in range(30):
        any_objects.put(f"a{number}", OLD)

    def look() -> None:
        while any_objects.exists("a29"):
            for number in range(30):
                content = any_objects.get(f"a{number}", timeout=30) or any_objects.get(f"b{number}", timeout=30)
                assert content == OLD

    looking = [Background(look) for _ in range(3)]
    for number in range(30):
        any_objects.update_meta(f"a{number}", name=f"b{number}", timeout=30)
    for thread in looking:
        thread.result()
    assert len(chunk_subjects(any_objects)) == 30


def test_new_name_begins_and_old_one_ends_in_one_step(objects: ObjectBucket) -> None:
    objects.put("a", OLD)
    with objects.watch(updates_only=True) as watcher:
        info = objects.update_meta("a", name="b")
        entries = [watcher.next() for _ in range(2)]
        assert [(entry.key, entry.revision) for entry in entries] == [("b", info.revision), ("a", info.revision + 1)]
        assert entries[0].created <= entries[1].created


def test_of_many_new_names_at_once_exactly_one_is_given(any_objects: ObjectBucket) -> None:
    any_objects.put("a", OLD)

    def rename(number: int) -> str | None:
        try:
            return any_objects.update_meta("a", name=f"b{number}", timeout=30).name
        except ObjectNotFoundError:
            return None

    given = [name for name in together(8, rename) if name is not None]
    assert given == _names(any_objects)
    assert any_objects.get(given[0]) == OLD


def test_of_many_objects_that_get_one_name_at_once_exactly_one_has_it(any_objects: ObjectBucket) -> None:
    for number in range(8):
        any_objects.put(f"a{number}", b"%d" % number)

    def rename(number: int) -> bool:
        try:
            any_objects.update_meta(f"a{number}", name="b", timeout=30)
        except ObjectExistsError:
            return False
        return True

    won = together(8, rename)
    assert sum(won) == 1
    assert any_objects.get("b") == b"%d" % won.index(True)
    assert _names(any_objects) == [f"a{number}" for number in range(8) if not won[number]] + ["b"]


def test_no_change_at_an_expected_revision_is_lost(any_objects: ObjectBucket) -> None:
    any_objects.put("k", OLD, metadata={"count": "0"})

    def count(_: int) -> None:
        for _ in range(5):
            while True:
                seen = any_objects.stat("k")
                one_more = {"count": str(int(seen.metadata["count"]) + 1)}
                try:
                    any_objects.update_meta("k", metadata=one_more, if_match=seen.revision, timeout=30)
                except RevisionMismatchError:
                    continue
                break

    together(8, count)
    assert any_objects.stat("k").metadata == {"count": "40"}
    assert any_objects.get("k") == OLD


# --- broken connections


@pytest.fixture
def proxy(connection: Connection) -> Iterator[CutProxy]:
    with CutProxy(connection.server_info.url) as proxy:
        yield proxy


@pytest.fixture
def cut(connection: Connection, proxy: CutProxy, bucket: ObjectBucket) -> Iterator[ObjectBucket]:
    """The bucket through a connection that the proxy can break."""
    token = connection.config.token
    with mono_sync.connect(proxy.url, token=token, reconnect_wait=0.02, reconnect_max_wait=0.1) as cut:
        yield cut.objects(bucket.name)


@pytest.mark.parametrize("after", [True, False])
@pytest.mark.parametrize("occurrence", [1, 2])
def test_update_that_loses_its_connection_happens_once(
    cut: ObjectBucket, proxy: CutProxy, bucket: ObjectBucket, occurrence: int, after: bool
) -> None:
    old = bucket.put("k", OLD)
    proxy.cut_at(b".M.", occurrence=occurrence, after=after)  # the question what is there, and the description
    info = cut.update_meta("k", description="d")
    assert proxy.cuts == 1
    assert bucket.stat("k") == info
    assert info.revision == old.revision + 1


@pytest.mark.parametrize("after", [True, False])
@pytest.mark.parametrize("occurrence", [1, 2, 3, 4])
def test_renaming_that_loses_its_connection_happens_once(
    cut: ObjectBucket, proxy: CutProxy, bucket: ObjectBucket, occurrence: int, after: bool
) -> None:
    old = bucket.put("a", OLD)
    proxy.cut_at(b".M.", occurrence=occurrence, after=after)
    info = cut.update_meta("a", name="b")
    assert proxy.cuts == 1
    assert bucket.list() == [info]
    assert bucket.get("b") == OLD
    assert info.revision == old.revision + 1
    assert raw_objects(bucket).state["last_seq"] == old.revision + 2


@pytest.mark.parametrize("occurrence", [3, 4])
def test_renaming_whose_answer_does_not_come_leaves_the_object_under_one_of_its_names(
    cut: ObjectBucket, proxy: CutProxy, bucket: ObjectBucket, occurrence: int
) -> None:
    bucket.put("a", OLD)
    proxy.mute_at(b".M.", occurrence=occurrence)  # the new description, and the end of the old one
    with pytest.raises(OutcomeUnknownError):
        cut.update_meta("a", name="b", timeout=1)
    assert proxy.cuts == 1
    assert "b" in _names(bucket)
    assert bucket.get("b") == OLD


@pytest.mark.parametrize("after", [True, False])
def test_link_that_loses_its_connection_is_made_once(
    cut: ObjectBucket, proxy: CutProxy, bucket: ObjectBucket, after: bool
) -> None:
    target = bucket.put("a", OLD)
    proxy.cut_at(b".M.", occurrence=2, after=after)
    info = cut.link("l", target)
    assert proxy.cuts == 1
    assert bucket.stat("l") == info
    assert info.revision == target.revision + 1


def test_copy_that_runs_out_of_time_leaves_no_chunks_or_says_so(
    any_objects: ObjectBucket, caplog: pytest.LogCaptureFixture
) -> None:
    any_objects.put("a", bytes(20_000_000))
    with pytest.raises(OperationTimeoutError):
        any_objects.copy("a", "b", timeout=0.02)
    assert _names(any_objects) == ["a"]
    left = caplog.text.count("may be left behind")  # a busy server may take longer than the moment that there is
    assert len(chunk_subjects(any_objects)) <= 1 + left


# --- names


@pytest.mark.parametrize(
    "name", ["a/b/c.txt", "with space", "ünïcödé ☃", "*", ">", "$O.x", "new\nline", " ", "..", "\0", "n" * 2600]
)
def test_any_text_is_a_name_for_every_call(any_objects: ObjectBucket, name: str) -> None:
    any_objects.put("a", OLD)
    with any_objects.watch(name, updates_only=True) as watcher:
        any_objects.update_meta("a", name=name)
        assert watcher.next().key == name
        any_objects.copy(name, "b")
        any_objects.link("l", name)
        assert any_objects.stat("l").link == f"{any_objects.name}/{name}"
        assert _names(any_objects) == sorted([name, "b", "l"])
        any_objects.update_meta(name, name="a")
        assert watcher.next().removed
        any_objects.link(name, "a")
        assert watcher.next().key == name
    assert any_objects.status().objects == 4
