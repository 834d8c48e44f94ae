"""What a sweep removes, and that it never takes a chunk of an object, whatever happens at the same moment."""

from __future__ import annotations

import contextlib
import io
import itertools
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest

import mono_sync
from mono_sync import (
    BucketFullError,
    Connection,
    FSBucketConfig,
    ObjectBucket,
    ObjectChangedError,
    ObjectExistsError,
    ObjectNotFoundError,
    OperationTimeoutError,
    UploadLostError,
)
from mono_sync._durations import Deadline
from mono_sync.connection import Inbox, StoredMessage
from mono_sync.storage.objects import _sink, _sweep, _upload
from mono_sync.storage.objects._at_once import AtOnce
from mono_sync.storage.objects._committing import Commit
from mono_sync.storage.objects._sweep import GIVEN_UP, Sweep
from tests.fixtures.processes import Program
from tests.fixtures.servers import RunNatsServer
from tests.fixtures.waiting import wait_until
from tests.storage.conftest import NewObjects
from tests.storage.helpers import LIVE, CutProxy, chunk_subjects, raw_objects, restart_at_a_removal, through
from tests.support.threads import Background, Repeated

CHUNK = 128 * 1024
SIZE = 2 * CHUNK + 5


def content(number: int, size: int = SIZE) -> bytes:
    return bytes([number]) * size


@pytest.fixture
def no_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything is old, and uploads take every pause for a long one."""
    monkeypatch.setattr(_sweep, "_LEAST_GRACE", timedelta(0))
    monkeypatch.setattr(_sink, "STALE", -1.0)


def leave_chunks(objects: ObjectBucket, nuid: str = "left", count: int = 3) -> str:
    """Leave what a killed writer does."""
    subject = f"$O.{objects.name}.C.{nuid}"
    for _ in range(count):
        raw_objects(objects).put(subject, b"chunk")
    return subject


# --- what is removed


def test_chunks_of_no_object_are_removed_and_counted(any_objects: ObjectBucket, no_grace: None) -> None:
    for number in range(3):
        any_objects.put(f"k{number}", content(number))
    any_objects.put("empty", b"")
    any_objects.put("deleted", b"x")
    any_objects.delete("deleted")
    before = chunk_subjects(any_objects)
    leave_chunks(any_objects, "a", 3)
    leave_chunks(any_objects, "b", 1)
    assert any_objects.sweep(older_than=0) == 4
    assert chunk_subjects(any_objects) == before
    for number in range(3):
        assert any_objects.get(f"k{number}") == content(number)
    assert any_objects.sweep(older_than=0) == 0


@pytest.mark.parametrize("after", [True, False])
def test_sweep_whose_connection_breaks_as_it_removes_chunks_goes_on(
    connection: Connection, objects: ObjectBucket, no_grace: None, *, after: bool
) -> None:
    leave_chunks(objects)
    with CutProxy(connection.server_info.url) as proxy, through(proxy, connection, objects) as far:
        proxy.cut_at(b"STREAM.PURGE", after=after)
        assert far.sweep(older_than=0) == 3
        assert proxy.cuts == 1
    assert chunk_subjects(objects) == {}


def test_sweep_of_an_empty_bucket_removes_nothing(any_objects: ObjectBucket) -> None:
    assert any_objects.sweep() == 0


def test_young_chunks_are_let_alone(any_objects: ObjectBucket) -> None:
    left = leave_chunks(any_objects)
    assert any_objects.sweep() == 0
    assert any_objects.sweep(older_than=600) == 0
    assert chunk_subjects(any_objects) == {left: 3}


@pytest.mark.parametrize("seconds", [0, 599, -1])
def test_time_too_short_for_uploads_is_refused(objects: ObjectBucket, seconds: float) -> None:
    with pytest.raises(ValueError, match="older_than must be"):
        objects.sweep(older_than=seconds)


def test_chunks_of_expired_objects_are_removed(objects: ObjectBucket, no_grace: None) -> None:
    info = objects.put("k", content(1), ttl=60)
    raw_objects(objects).delete_message(info.revision)  # as expiry does
    assert objects.sweep(older_than=0) == 3
    assert chunk_subjects(objects) == {}


@pytest.mark.parametrize("description", [b"no json", b"[1]", b'{"nuid": 5}', b""])
def test_what_describes_nothing_keeps_no_chunks(objects: ObjectBucket, no_grace: None, description: bytes) -> None:
    raw_objects(objects).put(f"$O.{objects.name}.M.x", description)
    leave_chunks(objects)
    assert objects.sweep(older_than=0) == 3


def test_description_that_was_replaced_and_came_back_keeps_no_chunks(any_objects: ObjectBucket, no_grace: None) -> None:
    raw, subject = raw_objects(any_objects), f"$O.{any_objects.name}.M.x"
    leave_chunks(any_objects, "replaced", 3)
    leave_chunks(any_objects, "newest", 2)
    raw.put(subject, b'{"nuid": "replaced", "chunks": 3}')  # as of a server that was killed before it had removed it
    raw.put(subject, b'{"nuid": "newest", "chunks": 2}')
    assert any_objects.sweep(older_than=0) == 3
    assert chunk_subjects(any_objects) == {f"$O.{any_objects.name}.C.newest": 2}


def test_description_that_is_half_wrong_keeps_its_chunks(objects: ObjectBucket, no_grace: None) -> None:
    raw_objects(objects).put(f"$O.{objects.name}.M.x", b'{"nuid": "left", "mtime": 5}')
    left = leave_chunks(objects)
    assert objects.sweep(older_than=0) == 0
    assert chunk_subjects(objects) == {left: 3}


def test_full_bucket_is_swept(new_objects: NewObjects, no_grace: None) -> None:
    objects = new_objects(max_bytes=1_000_000)
    objects.put("k", b"v")
    raw, left = raw_objects(objects), f"$O.{objects.name}.C.left"
    for size in (100_000, 10_000, 1_000, 100, 0):
        with contextlib.suppress(AssertionError):  # it is refused
            for _ in range(20):
                raw.put(left, bytes(size))
    with pytest.raises(BucketFullError):
        objects.put("k", b"w" * 100)
    assert objects.sweep(older_than=0) > 9
    objects.put("k", b"w" * 100)
    assert len(chunk_subjects(objects)) == 1


def test_marks_that_a_killed_sweep_has_left_are_removed(any_objects: ObjectBucket, no_grace: None) -> None:
    info = any_objects.put("k", content(1))
    raw = raw_objects(any_objects)
    raw.put(f"$O.{any_objects.name}.C.{info.nuid}", b"", {GIVEN_UP: "1"})
    left = leave_chunks(any_objects)
    raw.put(left, b"", {GIVEN_UP: "1"})
    assert any_objects.sweep(older_than=0) >= 3
    assert list(chunk_subjects(any_objects).values()) == [3]
    assert any_objects.get("k") == content(1)


def test_no_chunk_of_an_object_is_taken_for_a_mark_that_got_its_place_when_the_server_started_anew(
    run_nats_server: RunNatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = run_nats_server("jetstream: enabled")
    with mono_sync.connect(server.url, reconnect_wait=0.02, reconnect_max_wait=0.1) as connection:
        objects = connection.objects(FSBucketConfig("b", storage="memory"))
        info = objects.put("k", b"x")
        raw_objects(objects).put(f"$O.b.C.{info.nuid}", b"", {GIVEN_UP: "1"})
        restart_at_a_removal(server, monkeypatch)
        assert objects.sweep(timeout=20) == 0
        assert objects.get("live") == LIVE


def test_object_that_the_first_look_has_missed_keeps_its_chunks_and_loses_the_mark(
    any_objects: ObjectBucket, no_grace: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    any_objects.put("k", content(1))
    look, marked = Sweep._all_descriptions, list[int]()

    def look_badly_first(self: Sweep) -> list[StoredMessage]:
        marked.append(sum(chunk_subjects(any_objects).values()))
        return look(self) if len(marked) > 1 else []

    monkeypatch.setattr(Sweep, "_all_descriptions", look_badly_first)
    assert any_objects.sweep(older_than=0) == 0
    assert marked == [3, 4]
    assert list(chunk_subjects(any_objects).values()) == [3]
    assert any_objects.get("k") == content(1)


# --- uploads under way


def test_upload_that_goes_on_right_before_it_would_be_marked_is_let_alone(
    any_objects: ObjectBucket, no_grace: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    look, looks = Sweep._newest, list[int]()
    with any_objects.open("k", "wb") as writer:
        writer.write(content(1))
        writer.flush()

        def look_and_go_on(self: Sweep, name: str) -> StoredMessage | None:
            found = look(self, name)
            looks.append(sum(chunk_subjects(any_objects).values()))
            writer.write(content(2))
            writer.flush()
            return found

        monkeypatch.setattr(Sweep, "_newest", look_and_go_on)
        assert any_objects.sweep(older_than=0) == 0
    assert looks == [1]
    assert any_objects.get("k") == content(1) + content(2)


def test_upload_that_was_given_up_fails_and_says_so(objects: ObjectBucket, no_grace: None) -> None:
    objects.put("k", b"old")
    writer = objects.open("k", "wb", timeout=5)
    writer.write(content(1))
    writer.flush()
    assert objects.sweep(older_than=0) == 1
    with pytest.raises(UploadLostError, match="object 'k' was not stored in bucket"):
        writer.close()
    assert objects.get("k") == b"old"
    assert len(chunk_subjects(objects)) == 1


class Steps:
    """Lets a thread make a number of steps, each a message that it sends, and then waits."""

    def __init__(self) -> None:
        self.made = 0
        self.allowed = 0
        self._change = threading.Condition()

    def step(self) -> None:
        with self._change:
            assert self._change.wait_for(lambda: self.made < self.allowed, 20)
            self.made += 1
            self._change.notify_all()

    def allow(self, count: int) -> None:
        with self._change:
            self.allowed = count
            self._change.notify_all()

    def wait_at(self, count: int, thread: threading.Thread) -> None:
        """Wait until it is about to make the step after so many, or has ended."""
        with self._change:
            while self.made < count and thread.is_alive():
                self._change.wait(0.001)


@contextmanager
def stepping(connection: Connection) -> Iterator[Steps]:
    """Take the messages that are sent through a connection for steps."""
    steps, exchange, inbox = Steps(), connection.exchange, connection.inbox

    def slow_exchange(*arguments: Any, **options: Any) -> Any:
        steps.step()
        return exchange(*arguments, **options)

    def slow_inbox(*arguments: Any, **options: Any) -> Inbox:
        made = inbox(*arguments, **options)
        ask_all = made.ask_all

        def slow_ask(*arguments: Any, **options: Any) -> None:
            steps.step()
            ask_all(*arguments, **options)

        made.ask_all = slow_ask  # type: ignore[method-assign]
        return made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(connection, "exchange", slow_exchange)
        patch.setattr(connection, "inbox", slow_inbox)
        yield steps


@pytest.fixture
def connections(connection: Connection) -> Iterator[tuple[Connection, Connection]]:
    url, token = connection.server_info.url, connection.config.token
    with mono_sync.connect(url, token=token) as first, mono_sync.connect(url, token=token) as second:
        yield first, second


def _count_steps(connection: Connection, call: Callable[[], object]) -> int:
    with stepping(connection) as steps:
        steps.allow(1000)
        call()
        return steps.made


class Race:
    """An upload and a sweep of one bucket, each through a connection of its own, step by step."""

    def __init__(self, connections: tuple[Connection, Connection], bucket: str, size: int) -> None:
        self._connections = connections
        self._uploads, self._sweeps = (connection.objects(bucket) for connection in connections)
        self._size = size

    def upload_steps(self) -> int:
        self._uploads.put("k", content(1, self._size))  # from here on it expects that there is something to replace
        return _count_steps(self._connections[0], lambda: self._uploads.put("k", content(1, self._size)))

    def sweep_steps(self, grace: float) -> int:
        return _count_steps(self._connections[1], lambda: self._sweeps.sweep(older_than=grace))

    def run(self, number: int, before: int, between: int, *, grace: float) -> BaseException | None:
        """Make some steps of the upload, some of the sweep, and then the rest of both, the upload first."""
        first, second = self._connections
        with stepping(first) as uploading, stepping(second) as sweeping:
            uploading.allow(before)
            writer = Background(lambda: self._uploads.put("k", content(number, self._size), timeout=10))
            uploading.wait_at(before, writer)
            sweeping.allow(between)
            sweeper = Background(lambda: self._sweeps.sweep(older_than=grace, timeout=10))
            sweeping.wait_at(between, sweeper)
            uploading.allow(1000)
            error = writer.error()
            sweeping.allow(1000)
            sweeper.result()
            return error


@pytest.mark.timeout(120)
@pytest.mark.parametrize("size", [5, SIZE])
def test_no_sweep_at_any_step_of_an_upload_takes_a_chunk_of_an_object(
    connections: tuple[Connection, Connection],
    objects: ObjectBucket,
    no_grace: None,
    impatient: None,
    size: int,
) -> None:
    """Each upload stands still at one of its steps for longer than the sweep lets it alone.

    But not between its last chunk and its description, for which it has a time of its own.
    """
    objects.put("k", content(0, size))
    race = Race(connections, objects.name, size)
    last_chunk = race.upload_steps() - 3  # before it, the description, and the removal of the old chunks
    leave_chunks(objects)
    swept = race.sweep_steps(0) + 3
    fates = {True: 0, False: 0}
    for before in range(last_chunk + 1):
        for between in range(swept + 1):
            number = 2 + (before + between) % 200
            error = race.run(number, before, between, grace=0)
            assert error is None or isinstance(error, UploadLostError)
            fates[error is None] += 1
            found = objects.get("k")
            assert found is not None
            assert found == content(number if error is None else found[0], size)
            objects.sweep(older_than=0)
            assert objects.get("k") == found
            assert list(chunk_subjects(objects).values()) == [-(-size // CHUNK)]
    assert fates[True]
    assert fates[False] or size <= CHUNK


def test_no_sweep_takes_the_last_chunk_of_an_upload_that_is_about_to_end(
    connections: tuple[Connection, Connection], objects: ObjectBucket, impatient: None
) -> None:
    objects.put("k", content(0))
    race = Race(connections, objects.name, SIZE)
    needed, swept = race.upload_steps(), race.sweep_steps(600)
    for before in range(needed):
        for between in range(swept + 1):
            assert race.run(before + between, before, between, grace=600) is None
            assert objects.get("k") == content(before + between)


def test_the_last_step_takes_far_less_time_than_a_sweep_lets_chunks_alone() -> None:
    assert 4 * max(_upload.COMMIT_TIME, _sink.STALE) <= _sweep._LEAST_GRACE.total_seconds()


@pytest.mark.parametrize("options", [{}, {"resume": "t"}])
@pytest.mark.parametrize("size", [5, SIZE])
@pytest.mark.parametrize("is_new", [True, False])
def test_the_last_step_has_no_more_time_than_that_however_much_the_upload_has(
    objects: ObjectBucket, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], size: int, is_new: bool
) -> None:
    commit, conclude, left = Commit.commit, AtOnce.conclude, list[float | None]()

    def note(step: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        left.extend(argument.remaining for argument in arguments if isinstance(argument, Deadline))
        return step(*arguments, **options)

    monkeypatch.setattr(Commit, "commit", lambda *arguments, **options: note(commit, *arguments, **options))
    monkeypatch.setattr(AtOnce, "conclude", lambda *arguments: note(conclude, *arguments))
    objects._sinks.expects_new = is_new
    objects.put_reader("k", io.BytesIO(content(1, size)), timeout=None, **options)
    assert len(left) == 1
    assert left[0] is not None
    assert left[0] <= _upload.COMMIT_TIME
    assert objects.get("k") == content(1, size)


STALE, COMMIT_TIME, GRACE = 0.25, 0.5, 2.0
"""Shorter than usual, in the same order: uploads look soon enough whether they were given up, and end sooner."""

PROGRAM = """
import itertools, random, sys, mono_sync
from mono_sync.storage.objects import _sink, _upload
url, token, bucket, _sink.STALE, _upload.COMMIT_TIME = *sys.argv[1:4], *map(float, sys.argv[4:])
with mono_sync.connect(url, token=token) as connection:
    objects = connection.objects(bucket)
    print("ready", flush=True)
    for number in itertools.count():
        with objects.open(f"k{number % 3}", "wb", timeout=30) as stream:
            for _ in range(random.randrange(9)):
                stream.write(bytes([number % 250]) * 100_000)
"""


def test_chunks_of_a_writer_that_was_killed_are_removed_and_objects_stay(
    objects: ObjectBucket, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_sweep, "_LEAST_GRACE", timedelta(0))
    kept = objects.put("kept", content(1))
    replaced = objects.put("k", content(2))
    program = f"""
import time, mono_sync
with mono_sync.connect({connection.server_info.url!r}, token={connection.config.token!r}) as connection:
    stream = connection.objects({objects.name!r}).open("k", "wb")
    stream.write(bytes({5 * CHUNK}))
    stream.flush()
    print("now", flush=True)
    time.sleep(60)
"""
    with Program(program) as writer:
        assert writer.line() == "now"
        writer.kill()
    assert sum(chunk_subjects(objects).values()) == 3 + 3 + 4
    assert objects.sweep() == 0  # it may only be slow
    assert objects.sweep(older_than=0) == 4
    assert chunk_subjects(objects) == {f"$O.{objects.name}.C.{info.nuid}": 3 for info in (kept, replaced)}
    assert (objects.get("kept"), objects.get("k")) == (content(1), content(2))


_NEVER = threading.Event()


class SlowFile(io.BytesIO):
    """A file that stands still now and then, also for longer than a sweep lets its chunks alone."""

    def read(self, size: int | None = -1, /) -> bytes:
        if random.random() < 0.05:
            _NEVER.wait(random.choice([STALE, GRACE, 1.5 * GRACE]))
        return super().read(size)


def _stand_still_at_the_end(done: int, total: int | None) -> None:
    """Wait between the last chunk and the description, for which there is less time."""
    if done == total and random.random() < 0.3:
        _NEVER.wait(0.7 * COMMIT_TIME)


class Storm:
    """Everything that can be done to a few objects."""

    def __init__(self, objects: ObjectBucket) -> None:
        self.done = Counter[str]()
        self._objects = objects
        self._names = [f"k{number}" for number in range(6)]

    def write(self) -> None:
        content = random.randbytes(random.choice([0, 5, CHUNK, 12 * CHUNK]))
        try:
            self._objects.put_reader(
                random.choice(self._names), SlowFile(content), progress=_stand_still_at_the_end, timeout=30
            )
        except UploadLostError:
            self.done["given up"] += 1
        except OperationTimeoutError:
            self.done["too late for its last step"] += 1
        else:
            self.done["written"] += 1

    def change(self) -> None:
        name, other = random.sample(self._names, 2)
        objects = self._objects
        changes: list[Callable[[], object]] = [
            lambda: objects.update_meta(name, name=other),
            lambda: objects.update_meta(name, description="d"),
            lambda: objects.copy(name, other),
            lambda: objects.delete(name),
        ]
        with contextlib.suppress(ObjectNotFoundError, ObjectExistsError, UploadLostError, OperationTimeoutError):
            random.choice(changes)()

    def read(self) -> None:
        with contextlib.suppress(ObjectChangedError):
            self._objects.get(random.choice(self._names), timeout=30)  # verifies the digest

    def sweep(self) -> None:
        self.done["swept"] += self._objects.sweep(older_than=GRACE, timeout=30) > 0

    def wait_for(self, what: str, count: int) -> None:
        goal = self.done[what] + count
        wait_until(lambda: self.done[what] >= goal, f"{what} {count} times", timeout=30)


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_no_sweep_takes_a_chunk_of_an_object_while_threads_and_processes_write_stand_still_and_are_killed(
    objects: ObjectBucket, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_sweep, "_LEAST_GRACE", timedelta(0))
    monkeypatch.setattr(_sink, "STALE", STALE)
    monkeypatch.setattr(_upload, "COMMIT_TIME", COMMIT_TIME)
    storm, token = Storm(objects), connection.config.token or ""
    arguments = connection.server_info.url, token, objects.name, str(STALE), str(COMMIT_TIME)
    with Repeated([*[storm.write] * 4, storm.change, storm.read, *[storm.sweep] * 2]):
        with Program(PROGRAM, *arguments) as writer:
            assert writer.line() == "ready"
            storm.wait_for("written", 20)
            writer.kill()
        storm.wait_for("swept", 1)
    for found in objects.list():
        assert len(objects.get(found.name) or b"") == found.size
    objects.sweep(older_than=0)
    infos = objects.list()
    assert chunk_subjects(objects) == {f"$O.{objects.name}.C.{one.nuid}": one.chunks for one in infos if one.chunks}


def test_objects_that_are_renamed_all_the_time_are_never_swept_nor_marked(
    any_objects: ObjectBucket, no_grace: None, impatient: None
) -> None:
    any_objects.put("a0", content(1))
    names = itertools.cycle(["a1", "a0"])
    present = ["a0"]

    def rename() -> None:
        present[0] = any_objects.update_meta(present[0], name=next(names), timeout=30).name

    with Repeated([rename]):
        for _ in range(4):
            assert any_objects.sweep(older_than=0, timeout=30) == 0
            assert list(chunk_subjects(any_objects).values()) == [3]
    (info,) = any_objects.list()
    assert any_objects.get(info.name) == content(1)
