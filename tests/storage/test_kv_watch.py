"""What a watcher delivers, in which order, and how its calls behave while nothing goes wrong."""

from __future__ import annotations

import contextlib
import itertools
import threading
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

import mono_sync
from mono_sync import (
    ClosedError,
    Entry,
    InvalidKeyError,
    JetStreamUnavailableError,
    KVBucket,
    KVBucketConfig,
    KVStoragePort,
    Operation,
    OperationTimeoutError,
    Watcher,
)
from mono_sync._durations import Deadline
from tests.fixtures.leaks import our_threads
from tests.fixtures.servers import RunNatsServer
from tests.fixtures.waiting import wait_until
from tests.storage.conftest import NewKV
from tests.storage.helpers import api_calls, raw_kv, together, write_at_once
from tests.support.threads import Background


def shown(entries: list[Entry]) -> list[tuple[str, bytes, int]]:
    return [(entry.key, entry.value, entry.revision) for entry in entries]


def take(watcher: Watcher, count: int) -> list[Entry]:
    return [watcher.next() for _ in range(count)]


def assert_quiet(watcher: Watcher) -> None:
    with pytest.raises(OperationTimeoutError):
        watcher.next(timeout=0.05)


def fill(kv: KVBucket) -> None:
    """Write revisions 1 to 6: b is overwritten, c deleted."""
    for key, value in [("a.1", b"1"), ("b", b"2"), ("c", b"3"), ("a.2", b"4"), ("b", b"5")]:
        kv.set(key, value)
    kv.delete("c")


# --- what comes


def test_first_comes_the_newest_entry_of_each_key_and_then_every_change(any_new_kv: NewKV) -> None:
    kv = any_new_kv(history=5)
    fill(kv)
    with kv.watch_all() as watcher:
        assert shown(take(watcher, 4)) == [("a.1", b"1", 1), ("a.2", b"4", 4), ("b", b"5", 5), ("c", b"", 6)]
        for value in (b"7", b"8"):
            kv.set("b", value)
        kv.delete("a.1")
        assert shown(take(watcher, 3)) == [("b", b"7", 7), ("b", b"8", 8), ("a.1", b"", 9)]
        assert_quiet(watcher)


def test_entries_carry_what_get_entry_returns(any_kv: KVBucket) -> None:
    any_kv.set("k", b"v")
    with any_kv.watch("k") as watcher:
        assert watcher.next() == any_kv.get_entry("k")
        any_kv.create("other", b"v")
        any_kv.update("k", b"w", 1)
        assert watcher.next() == any_kv.get_entry("k")


def test_deletions_say_what_they_are(any_kv: KVBucket) -> None:
    with any_kv.watch_all() as watcher:
        any_kv.delete("d")
        entry = watcher.next()
        assert (entry.key, entry.operation, entry.value, entry.expired) == ("d", Operation.DELETE, b"", False)
        any_kv.purge("p")
        entry = watcher.next()
        assert (entry.key, entry.operation, entry.value, entry.expired) == ("p", Operation.PURGE, b"", False)


def test_an_expired_key_is_told_as_such(kv: KVBucket) -> None:
    with kv.watch_all() as watcher:
        kv.set("k", b"v", ttl=1)
        assert watcher.next().value == b"v"
        entry = watcher.next(timeout=5)
        assert (entry.key, entry.operation, entry.expired, entry.value) == ("k", Operation.PURGE, True, b"")


def test_times_are_those_of_the_server(any_kv: KVBucket) -> None:
    with any_kv.watch_all() as watcher:
        any_kv.set("k", b"v")
        assert abs(watcher.next().created - datetime.now(UTC)) < timedelta(seconds=5)


@pytest.mark.parametrize(
    ("pattern", "keys"),
    [("a.1", ["a.1"]), ("a.*", ["a.1", "a.2"]), ("*", ["b", "c"]), (">", ["a.1", "a.2", "b", "c"]), ("none", [])],
)
def test_only_keys_that_match_are_watched(any_kv: KVBucket, pattern: str, keys: list[str]) -> None:
    fill(any_kv)
    with any_kv.watch(pattern) as watcher:
        assert [watcher.next().key for _ in keys] == keys
        for key in ("a.1", "a.2", "b", "c", "none.of.them"):
            any_kv.set(key, b"new")
        news = [key for key in ("a.1", "a.2", "b", "c", "none.of.them") if key in keys or pattern == ">"]
        assert [watcher.next().key for _ in news] == news
        assert_quiet(watcher)


def test_an_illegal_pattern_is_refused(any_kv: KVBucket) -> None:
    with pytest.raises(InvalidKeyError, match="pattern"):
        any_kv.watch("a..b")


def test_subjects_that_are_no_keys_are_left_out(any_kv: KVBucket) -> None:
    raw = raw_kv(any_kv)
    for subject in ("$internal", "has:colon", "k"):
        raw.put(f"$KV.{any_kv.name}.{subject}", b"v")
    with any_kv.watch_all() as watcher:
        assert [entry.key for entry in watcher.snapshot()] == ["k"]
        raw.put(f"$KV.{any_kv.name}.$internal", b"v")
        any_kv.set("l", b"v")
        assert watcher.next().key == "l"


# --- options


def test_include_history_begins_with_every_revision(any_new_kv: NewKV) -> None:
    kv = any_new_kv(history=5)
    fill(kv)
    with kv.watch_all(include_history=True) as watcher:
        assert [entry.revision for entry in take(watcher, 6)] == [1, 2, 3, 4, 5, 6]
        assert_quiet(watcher)


def test_purge_of_a_key_hides_nothing_that_happened_to_others_before_it_was_read(any_kv: KVBucket) -> None:
    any_kv.set("a", b"1")
    with any_kv.watch_all() as watcher:
        take(watcher, 1)
        any_kv.set("b", b"2")
        any_kv.set("c", b"3")
        any_kv.purge("a")
        any_kv.set("d", b"5")
        any_kv.purge("d")
        assert [entry.key for entry in take(watcher, 4)] == ["b", "c", "a", "d"]


def test_removal_of_marks_hides_nothing_that_was_not_read_by_then(any_kv: KVBucket) -> None:
    any_kv.set("a", b"1")
    with any_kv.watch_all() as watcher:
        take(watcher, 1)
        any_kv.set("b", b"2")
        any_kv.delete("a")
        assert any_kv.purge_deletes(0) == 1
        any_kv.set("c", b"4")
        assert [entry.key for entry in take(watcher, 2)] == ["b", "c"]


def test_updates_only_begins_with_what_is_written_after_the_call(any_kv: KVBucket) -> None:
    fill(any_kv)
    with any_kv.watch_all(updates_only=True) as watcher:
        assert watcher.synced
        assert watcher.snapshot() == []
        assert watcher.position == 6
        any_kv.set("b", b"7")
        assert shown([watcher.next()]) == [("b", b"7", 7)]


def test_ignore_deletes_leaves_out_deletions_and_passes_them(any_kv: KVBucket) -> None:
    fill(any_kv)
    with any_kv.watch_all(ignore_deletes=True) as watcher:
        assert [entry.key for entry in take(watcher, 3)] == ["a.1", "a.2", "b"]
        any_kv.purge("b")
        any_kv.set("c", b"v")
        assert shown([watcher.next()]) == [("c", b"v", 8)]
        any_kv.delete("c")
        assert_quiet(watcher)
        assert watcher.position == 9


def test_snapshot_that_ignores_deletes_holds_no_key_that_was_deleted_meanwhile(
    any_kv: KVBucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_at_once(any_kv, (f"k{number}" for number in range(1500)))  # more than one pull
    with any_kv.watch_all(ignore_deletes=True) as watcher:
        next_few, deleted = watcher._follower.next_few, list[str]()

        def deleted_behind_the_first(deadline: Deadline, read: Any) -> Any:
            few = next_few(deadline, read)
            if not deleted:
                deleted.append("k0")
                any_kv.delete("k0")
            return few

        monkeypatch.setattr(watcher._follower, "next_few", deleted_behind_the_first)
        keys = {entry.key for entry in watcher.snapshot()}
        assert watcher.position == 1501
        assert keys == {f"k{number}" for number in range(1, 1500)}


def test_meta_only_leaves_the_values_away(any_kv: KVBucket) -> None:
    fill(any_kv)
    with any_kv.watch_all(meta_only=True) as watcher:
        assert shown(take(watcher, 4)) == [("a.1", b"", 1), ("a.2", b"", 4), ("b", b"", 5), ("c", b"", 6)]
        any_kv.set("b", b"long" * 100)
        entry = watcher.next()
        assert (entry.value, entry.operation) == (b"", Operation.PUT)


@pytest.mark.parametrize("position", [0, 1, 3, 6])
def test_resume_from_begins_after_that_revision(any_new_kv: NewKV, position: int) -> None:
    kv = any_new_kv(history=5)
    fill(kv)
    with kv.watch_all(resume_from=position) as watcher:
        assert watcher.position == position
        assert [entry.revision for entry in take(watcher, 6 - position)] == list(range(position + 1, 7))
        kv.set("k", b"v")
        assert watcher.next().revision == 7


def test_resume_from_beyond_the_end_begins_with_the_first_revision(any_kv: KVBucket) -> None:
    fill(any_kv)
    with any_kv.watch_all(resume_from=100) as watcher:
        assert [entry.revision for entry in take(watcher, 4)] == [1, 4, 5, 6]


@pytest.mark.parametrize(
    "options",
    [
        {"include_history": True, "updates_only": True},
        {"include_history": True, "resume_from": 1},
        {"updates_only": True, "resume_from": 0},
        {"resume_from": -1},
    ],
)
def test_options_that_contradict_each_other_are_refused(kv: KVBucket, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"exclude each other|a revision is"):
        kv.watch_all(**options)


def test_watch_and_watch_all_take_the_same_options(any_kv: KVBucket) -> None:
    fill(any_kv)
    options: dict[str, Any] = {"ignore_deletes": True, "meta_only": True, "resume_from": 4}
    with any_kv.watch(">", **options) as one, any_kv.watch_all(**options) as other:
        assert one.snapshot() == other.snapshot() != []


def test_a_bucket_is_still_a_storage_port(kv: KVBucket) -> None:
    assert isinstance(kv, KVStoragePort)


# --- the initial state


def test_snapshot_returns_the_live_keys_and_iteration_goes_on_after_it(any_new_kv: NewKV) -> None:
    kv = any_new_kv(history=3)
    fill(kv)
    with kv.watch_all() as watcher:
        assert not watcher.synced
        assert shown(watcher.snapshot()) == [("a.1", b"1", 1), ("a.2", b"4", 4), ("b", b"5", 5)]
        assert watcher.synced
        assert watcher.position == 6
        kv.set("b", b"7")
        assert watcher.snapshot() == []
        assert shown([watcher.next()]) == [("b", b"7", 7)]


def test_snapshot_returns_what_is_left_of_the_initial_state(any_kv: KVBucket) -> None:
    fill(any_kv)
    with any_kv.watch_all() as watcher:
        watcher.next()
        assert [entry.key for entry in watcher.snapshot()] == ["a.2", "b"]


def test_snapshot_with_history_or_from_a_position_has_every_entry(any_new_kv: NewKV) -> None:
    kv = any_new_kv(history=3)
    fill(kv)
    with kv.watch_all(include_history=True) as watcher:
        assert [entry.revision for entry in watcher.snapshot()] == [1, 2, 3, 4, 5, 6]
    with kv.watch_all(resume_from=4) as watcher:
        assert [entry.revision for entry in watcher.snapshot()] == [5, 6]


def test_snapshot_of_an_empty_bucket_is_empty_at_once(any_kv: KVBucket) -> None:
    with any_kv.watch_all() as watcher:
        assert watcher.synced
        assert watcher.snapshot(timeout=0) == []


@pytest.mark.parametrize("count", [1022, 1023, 1024, 1025, 2046, 2048, 5000])
@pytest.mark.parametrize("history", [1, 4])
def test_snapshot_of_any_size_is_complete(any_new_kv: NewKV, count: int, history: int) -> None:
    kv = any_new_kv(history=history)
    write_at_once(kv, (f"k{number}" for number in range(count)))
    with kv.watch_all() as watcher:
        assert [entry.revision for entry in watcher.snapshot()] == list(range(1, count + 1))
        kv.set("k0", b"v")
        assert watcher.next().revision == count + 1


@pytest.mark.parametrize("history", [1, 5])
@pytest.mark.parametrize("small", [0, 50])
def test_snapshot_of_large_values_is_complete(any_new_kv: NewKV, small: int, history: int) -> None:
    kv = any_new_kv(history=history)
    values = {f"k{number}": b"small" for number in range(small)}
    values |= {f"l{number}": b"x" * 700_000 for number in range(14)}
    revisions = kv.set_many(values)
    with kv.watch_all() as watcher:
        assert [entry.revision for entry in watcher.snapshot()] == list(revisions.values())
        assert_quiet(watcher)
    with kv.watch_all() as watcher:
        assert [entry.revision for entry in take(watcher, len(values))] == list(revisions.values())
        assert_quiet(watcher)
        assert watcher.synced


@pytest.mark.parametrize("history", [1, 4])
def test_initial_state_ends_at_once_where_the_last_revisions_do_not_match(any_new_kv: NewKV, history: int) -> None:
    kv = any_new_kv(history=history)
    fill(kv)
    with kv.watch("a.*") as watcher:
        assert [entry.key for entry in watcher.snapshot(timeout=0.5)] == ["a.1", "a.2"]


def test_snapshot_that_was_not_complete_in_time_begins_again(any_kv: KVBucket, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(any_kv)
    with any_kv.watch_all() as watcher:
        advance = watcher._follower._advance
        steps = iter(range(3))

        def late(deadline: Deadline) -> Any:
            if next(steps, None) is None:
                raise OperationTimeoutError("following", 0)
            return advance(deadline)

        with monkeypatch.context() as patch:
            patch.setattr(watcher._follower, "_advance", late)
            with pytest.raises(OperationTimeoutError):
                watcher.snapshot()
        assert watcher.position == 0
        assert [entry.revision for entry in watcher.snapshot()] == [1, 4, 5]


def test_synced_turns_true_behind_the_last_entry_of_the_initial_state(any_kv: KVBucket) -> None:
    fill(any_kv)
    with any_kv.watch_all() as watcher:
        take(watcher, 3)
        assert not watcher.synced
        take(watcher, 1)
        assert_quiet(watcher)
        assert watcher.synced


def test_wait_synced_waits_for_the_thread_that_reads(any_kv: KVBucket) -> None:
    fill(any_kv)
    with any_kv.watch_all() as watcher:
        with pytest.raises(OperationTimeoutError, match="it takes a thread that reads"):
            watcher.wait_synced(timeout=0.05)
        waiting = Background(watcher.wait_synced)
        seen: list[int] = []
        reading = Background(lambda: seen.extend(entry.revision for entry in watcher))
        waiting.result()
        assert seen == [1, 4, 5, 6]
        watcher.stop()
        reading.result()


# --- next


def test_polling_with_timeout_0_gets_everything(any_kv: KVBucket) -> None:
    fill(any_kv)
    with any_kv.watch_all() as watcher:
        entries: list[Entry] = []

        def poll() -> bool:
            try:
                entries.append(watcher.next(timeout=0))
            except OperationTimeoutError:
                return False
            return True

        for count in (4, 5, 6):
            wait_until(lambda count=count: poll() and len(entries) == count, "polled")  # type: ignore[misc]
            any_kv.set("k", b"v")
        assert [entry.revision for entry in entries] == [1, 4, 5, 6, 7, 8]


def test_next_names_bucket_and_pattern_when_time_is_up(any_kv: KVBucket) -> None:
    with any_kv.watch("a.*") as watcher, pytest.raises(OperationTimeoutError) as caught:
        watcher.next(timeout=timedelta(milliseconds=20))
    assert str(caught.value) == f"watching 'a.*' of bucket {any_kv.name!r} timed out after 0.02 s"


@pytest.mark.parametrize("timeout", [-1, float("nan")])
def test_a_senseless_timeout_is_refused(kv: KVBucket, timeout: float) -> None:
    with kv.watch_all() as watcher:
        for call in (watcher.next, watcher.snapshot, watcher.wait_synced):
            with pytest.raises(ValueError, match="timeout"):
                call(timeout=timeout)


def test_next_waits_for_another_thread_no_longer_than_its_timeout(any_kv: KVBucket) -> None:
    with any_kv.watch_all() as watcher:
        reading = Background(watcher.next)
        wait_until(lambda: not watcher._follower._reading.acquire(blocking=False), "it reads")
        with pytest.raises(OperationTimeoutError):
            watcher.next(timeout=0.05)
        any_kv.set("k", b"v")
        assert reading.result().key == "k"


def test_threads_share_the_entries(any_kv: KVBucket) -> None:
    write_at_once(any_kv, (f"k{number}" for number in range(3000)))
    with any_kv.watch_all() as watcher:

        def read(_: int) -> list[int]:
            found: list[int] = []
            with contextlib.suppress(OperationTimeoutError):
                while True:
                    found.append(watcher.next(timeout=0.5).revision)
            return found

        found = together(4, read)
    assert all(one == sorted(one) for one in found)
    assert sorted(itertools.chain.from_iterable(found)) == list(range(1, 3001))


# --- the end


def test_stop_ends_a_for_and_lets_next_raise(any_kv: KVBucket) -> None:
    watcher = any_kv.watch_all()
    reading = Background(lambda: [entry.key for entry in watcher])
    next_one = Background(watcher.next)
    waiting = Background(lambda: watcher.wait_synced(timeout=None))
    waiting.result()
    watcher.stop()
    watcher.stop()
    assert reading.result(1) == []
    assert type(next_one.error(1)) is ClosedError
    assert list(watcher) == []
    for call in (watcher.next, watcher.next, watcher.snapshot):
        if call == watcher.next or not watcher.synced:
            with pytest.raises(ClosedError):
                call()


def test_snapshot_raises_after_stop_though_nothing_is_left_of_it(any_kv: KVBucket) -> None:
    with any_kv.watch_all() as watcher:
        assert watcher.snapshot() == []
    with pytest.raises(ClosedError):
        watcher.snapshot()


def test_stop_wakes_who_waits_for_the_initial_state(any_kv: KVBucket) -> None:
    any_kv.set("k", b"v")
    watcher = any_kv.watch_all()
    waiting = Background(lambda: watcher.wait_synced(timeout=None))
    watcher.stop()
    assert type(waiting.error(1)) is ClosedError


def test_stop_by_the_reader_itself_ends_its_for(any_kv: KVBucket) -> None:
    fill(any_kv)
    watcher = any_kv.watch_all()
    seen = []
    for entry in watcher:
        seen.append(entry.revision)
        if entry.revision == 4:
            watcher.stop()
    assert seen == [1, 4]


def test_nothing_is_left_on_the_server_or_here_after_stop(any_kv: KVBucket) -> None:
    before = threading.active_count()
    fill(any_kv)
    raw = raw_kv(any_kv)
    link = any_kv._connection._session.link  # type: ignore[union-attr]
    inboxes = len(link._inboxes)
    with any_kv.watch_all() as unread, any_kv.watch_all() as read:
        assert len(read.snapshot()) == 3
        assert_quiet(read)
        assert len(raw.consumers()) == 2
        assert unread.position == 0
    wait_until(lambda: not raw.consumers(), "consumers are gone")
    assert len(link._inboxes) == inboxes
    assert threading.active_count() == before
    assert our_threads()


def test_one_that_is_not_stopped_warns_and_names_itself(any_kv: KVBucket) -> None:
    watcher = any_kv.watch("a.*")
    with pytest.warns(
        ResourceWarning, match=f"unclosed <Watcher of 'a.\\*' in bucket '{any_kv.name}', at 0>: call stop"
    ):
        del watcher


def test_repr_tells_how_far_it_is(any_kv: KVBucket) -> None:
    any_kv.set("k", b"v")
    with any_kv.watch_all() as watcher:
        watcher.next()
        assert repr(watcher) == f"<Watcher of '>' in bucket {any_kv.name!r}, at 1>"
    assert repr(watcher) == f"<Watcher of '>' in bucket {any_kv.name!r}, stopped>"


def test_one_that_is_not_read_asks_for_nothing(any_kv: KVBucket) -> None:
    with api_calls(any_kv) as calls, any_kv.watch_all():
        made = calls()
        for number in range(100):
            any_kv.set(f"k{number}", b"v")
        assert not [call for call in calls()[len(made) :] if "CONSUMER" in call]


def test_thousands_share_a_connection(any_kv: KVBucket) -> None:
    before = threading.active_count()
    any_kv.set("k", b"1")
    with contextlib.ExitStack() as stack:
        watchers = [stack.enter_context(any_kv.watch_all()) for _ in range(2000)]
        assert {watcher.next().revision for watcher in watchers} == {1}
        any_kv.set("k", b"2")
        assert {watcher.next().revision for watcher in watchers} == {2}
        assert any_kv.keys() == ["k"]
        assert threading.active_count() == before


def test_server_that_comes_back_without_jetstream_ends_the_iteration(run_nats_server: RunNatsServer) -> None:
    server = run_nats_server("jetstream: enabled")
    with mono_sync.connect(server.url) as connection, connection.kv(KVBucketConfig("b")).watch_all() as watcher:
        reading = Background(lambda: next(watcher))
        wait_until(lambda: watcher.synced, "it waits")
        server.kill()
        server.configure("")
        server.start()
        error = reading.error(5)
        assert isinstance(error, JetStreamUnavailableError)
        assert not error.temporary
