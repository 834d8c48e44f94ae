"""Object buckets with three replicas: leaders that die in the middle of a transfer, and servers that lag behind."""

from __future__ import annotations

import functools
import io
import itertools
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest

from mono_sync import (
    Connection,
    FSBucketConfig,
    ObjectBucket,
    ObjectChangedError,
    ObjectInfo,
    ObjectReader,
    OperationTimeoutError,
    OutcomeUnknownError,
    UploadLostError,
)
from mono_sync._durations import Deadline
from mono_sync.connection import JetStream, Json, StoredMessage
from mono_sync.storage.objects import _sink, _sweep, _upload
from mono_sync.storage.objects._committing import Commit
from tests.fixtures.cluster import Cluster
from tests.fixtures.waiting import wait_until
from tests.storage.helpers import Interrupting, api_calls, chunk_subjects
from tests.support.threads import Background, Repeated

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]  # an election takes its time on a busy machine

CHUNK = 128 * 1024
CONTENT = random.Random(1).randbytes(40 * CHUNK + 5)


def _open(cluster: Cluster, **options: object) -> ObjectBucket:
    return cluster.connect().objects(FSBucketConfig("b", replicas=3, **options), timeout=30)  # type: ignore[arg-type]


def _leader(cluster: Cluster, objects: ObjectBucket) -> str:
    connection = objects._connection
    assert isinstance(connection, Connection)
    return cluster.leader(connection, objects._stream)


@pytest.fixture(params=["of the connection", "of another server"])
def victim(request: pytest.FixtureRequest, cluster: Cluster) -> tuple[ObjectBucket, str]:
    """A bucket and the name of its leader: the server of the connection, or one whose death breaks none."""
    leader = _leader(cluster, _open(cluster))
    others = [name for name in cluster.servers if name != leader]
    while True:
        connection = cluster.connect(*(others if request.param == "of another server" else cluster.servers))
        if (connection.server_info.name == leader) == (request.param == "of the connection"):
            return connection.objects("b"), leader


def _let_all_be_old(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let sweeps leave nothing alone, and uploads take every pause for a long one."""
    monkeypatch.setattr(_sweep, "_LEAST_GRACE", timedelta(0))
    monkeypatch.setattr(_sink, "STALE", -1.0)


def _chunks(*infos: ObjectInfo) -> dict[str, int]:
    return {f"$O.b.C.{info.nuid}": info.chunks for info in infos}


# --- leaders that die


class Moment:
    """When the leader dies: all calls are in the middle of what they do, and go on when it is dead."""

    def __init__(self, cluster: Cluster, leader: str, parties: int) -> None:
        self._barrier = threading.Barrier(parties, cluster.servers[leader].kill)

    def __call__(self) -> None:
        self._barrier.wait(60)


def test_uploads_outlast_the_death_of_the_leader(cluster: Cluster, victim: tuple[ObjectBucket, str]) -> None:
    objects, leader = victim
    for name in ("file", "stream", "end"):
        objects.put(name, b"old")
    moment = Moment(cluster, leader, 4)

    def put(name: str, **options: Any) -> None:
        objects.put_reader(name, Interrupting(CONTENT, 20 * CHUNK, moment), timeout=60, **options)

    def write(name: str, at: int) -> None:
        with objects.open(name, "wb", timeout=60) as writer:
            writer.write(CONTENT[:at])
            if at == len(CONTENT):
                writer.flush()
            moment()
            writer.write(CONTENT[at:])

    calls = [
        Background(put, "file"),
        Background(functools.partial(put, "resumable", resume="t")),
        Background(write, "stream", 2_000_000),
        Background(write, "end", len(CONTENT)),
    ]
    for call in calls:
        call.result(90)
    infos = objects.list(timeout=30)
    assert [info.name for info in infos] == ["end", "file", "resumable", "stream"]
    for info in infos:
        assert objects.get(info.name, timeout=30) == CONTENT
    assert chunk_subjects(objects) == _chunks(*infos)


def test_readers_outlast_the_death_of_the_leader(cluster: Cluster, victim: tuple[ObjectBucket, str]) -> None:
    objects, leader = victim
    objects.put("k", CONTENT)
    objects.put("replaced", CONTENT)
    moment = Moment(cluster, leader, 4)

    def read_on() -> None:
        with objects.get_reader("k", timeout=60) as reader:
            assert reader.read(20 * CHUNK) == CONTENT[: 20 * CHUNK]
            moment()
            assert b"".join(iter(lambda: reader.read(100_000), b"")) == CONTENT[20 * CHUNK :]

    def jump() -> None:
        with objects.get_reader("k", timeout=60) as reader:
            assert reader.read(10) == CONTENT[:10]
            moment()
            for position in (30 * CHUNK, 5, len(CONTENT) - 10):
                reader.seek(position)
                assert reader.read(300_000) == CONTENT[position : position + 300_000]

    def get() -> None:
        moment()
        assert objects.get("k", timeout=60) == CONTENT

    def read_what_is_replaced() -> None:
        with objects.get_reader("replaced", timeout=60) as reader:
            assert reader.read(CHUNK) == CONTENT[:CHUNK]
            moment()
            objects.put("replaced", b"new", timeout=60)
            with pytest.raises(ObjectChangedError):
                reader.read()
        assert objects.get("replaced", timeout=60) == b"new"

    for call in [Background(read_on), Background(jump), Background(get), Background(read_what_is_replaced)]:
        call.result(90)


@pytest.mark.parametrize("victim", ["of another server"], indirect=True)
def test_changes_are_made_when_the_leader_has_just_died(cluster: Cluster, victim: tuple[ObjectBucket, str]) -> None:
    objects, leader = victim
    first = {name: objects.put(name, CONTENT, description=name) for name in ("a", "b", "c", "d", "e")}
    cluster.servers[leader].kill()
    copied, renamed, described, linked, _ = (
        call.result(90)
        for call in [
            Background(lambda: objects.copy("a", "copy", timeout=60)),
            Background(lambda: objects.update_meta("b", name="renamed", timeout=60)),
            Background(lambda: objects.update_meta("c", description="new", timeout=60)),
            Background(lambda: objects.link("link", "d", timeout=60)),
            Background(lambda: objects.delete("e", timeout=60)),
        ]
    )
    assert objects.list(timeout=30) == [first["a"], described, copied, first["d"], linked, renamed]
    assert (copied.description, renamed.description, described.description) == ("a", "b", "new")
    for name in ("a", "copy", "renamed", "c", "d", "link"):
        assert objects.get(name, timeout=30) == CONTENT
    assert chunk_subjects(objects) == _chunks(first["a"], described, copied, first["d"], renamed)


@pytest.mark.parametrize("end", ["kill", "stop"])
def test_nothing_is_built_on_chunks_that_the_server_of_a_bucket_in_memory_has_lost(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    leader = _leader(cluster, cluster.connect().objects(FSBucketConfig("b", storage="memory"), timeout=30))
    objects = cluster.connect(*(name for name in cluster.servers if name != leader)).objects("b")
    look = Commit.look

    def look_and_restart(*arguments: Any) -> StoredMessage | None:
        newest = look(*arguments)
        monkeypatch.setattr(Commit, "look", look)
        getattr(cluster.servers[leader], end)()
        cluster.servers[leader].start()
        return newest

    monkeypatch.setattr(Commit, "look", look_and_restart)
    with pytest.raises(UploadLostError, match="its chunks are gone"):
        objects.put("k", CONTENT, timeout=60)
    assert objects.list(timeout=30) == []


def test_upload_that_loses_the_majority_fails_and_the_old_object_stays(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    objects = _open(cluster)
    cluster.wait_in_step(objects)
    old = objects.put("k", CONTENT[: 3 * CHUNK])
    leader = _leader(cluster, objects)
    victims = [leader, next(name for name in cluster.servers if name != leader)]

    def kill() -> None:
        for name in victims:
            cluster.servers[name].kill()

    with pytest.raises(OperationTimeoutError, match="storing object 'k' of bucket 'b' timed out") as caught:
        objects.put_reader("k", Interrupting(CONTENT, 20 * CHUNK, kill), timeout=3)
    assert not isinstance(caught.value, OutcomeUnknownError)
    for name in victims:
        cluster.servers[name].start()
    cluster.wait_in_step(objects)
    assert objects.get("k", timeout=30) == CONTENT[: 3 * CHUNK]
    assert objects.list(timeout=30) == [old]
    _let_all_be_old(monkeypatch)
    objects.sweep(older_than=0, timeout=60)
    assert chunk_subjects(objects) == _chunks(old)


# --- servers that lag behind


def _late(objects: ObjectBucket) -> str:
    """Return the server that is behind."""
    info = JetStream(objects._connection).stream_info(objects._stream, Deadline(30))
    return str(max(info["cluster"]["replicas"], key=lambda replica: replica.get("lag", 0))["name"])


@pytest.fixture
def lagging(cluster: Cluster) -> Iterator[ObjectBucket]:
    """A bucket of which one server knows the first version of ``k`` only, and has 50 MB to fetch until the second."""
    objects = _open(cluster)
    objects.put("k", CONTENT[:CHUNK])
    objects.put("gone", b"v")
    cluster.wait_in_step(objects)
    late = cluster.bystander(objects)
    objects = cluster.connect(*cluster.servers.keys() - {late}).objects("b")
    cluster.servers[late].pause()
    for _ in range(50):
        objects.put("filler", os.urandom(1_000_000), timeout=30)
    objects.delete("gone")
    objects.put("new", b"v")
    objects.put("k", CONTENT[: 3 * CHUNK])

    def run_a_little() -> None:
        cluster.servers[late].resume()
        time.sleep(0.01)
        cluster.servers[late].pause()
        time.sleep(0.04)

    with Repeated([run_a_little]):
        yield objects


def test_the_leader_answers_unless_stale_reads_are_asked_for(cluster: Cluster) -> None:
    objects = _open(cluster)
    objects.put("k", b"v")
    stale = cluster.connect().objects("b", stale_reads=True)
    with api_calls(objects) as calls:
        assert objects.stat("k").size == 1
        assert calls() == ["STREAM.MSG.GET.OBJ_b"]
        assert stale.get("k") in (None, b"v")
        assert calls()[1].startswith("DIRECT.GET.OBJ_b.$O.b.M.")


def test_list_has_what_was_written_before_whichever_server_answers(lagging: ObjectBucket) -> None:
    newest = [lagging.stat(name) for name in ("filler", "k", "new")]
    calls = [Background(lambda: lagging.list(timeout=30)) for _ in range(16)]
    assert [one.result(30) for one in calls] == [newest] * 16


def test_status_counts_what_was_written_before_whichever_server_answers(lagging: ObjectBucket) -> None:
    def look() -> tuple[int | None, int | None]:
        status = lagging.status(timeout=30)
        return status.objects, status.tombstones

    calls = [Background(look) for _ in range(16)]
    assert [one.result(30) for one in calls] == [(3, 1)] * 16


def test_object_is_read_whole_whichever_server_delivers_it(lagging: ObjectBucket) -> None:
    def read() -> bytes:
        with lagging.get_reader("k", timeout=30) as reader:
            reader.seek(CHUNK)
            return reader.read()

    calls = [Background(read) for _ in range(16)]
    assert [one.result(30) for one in calls] == [CONTENT[CHUNK : 3 * CHUNK]] * 16
    assert lagging.get("k", timeout=30) == CONTENT[: 3 * CHUNK]


def test_no_sweep_that_asks_a_server_which_lags_behind_takes_a_chunk_of_an_object(
    lagging: ObjectBucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It knows of an older version only, as one that was away for hours."""
    create, late, asked = JetStream.create_consumer, _late(lagging), list[str]()

    def create_there(self: JetStream, stream: str, config: Json, deadline: Deadline) -> Json:
        while (consumer := create(self, stream, config, deadline))["cluster"]["leader"] != late:
            self.api(f"CONSUMER.DELETE.{stream}.{consumer['name']}", None, deadline)
        asked.append(consumer["name"])
        return consumer

    monkeypatch.setattr(JetStream, "create_consumer", create_there)
    _let_all_be_old(monkeypatch)
    before = chunk_subjects(lagging)
    assert lagging.sweep(older_than=0, timeout=60) == 0
    assert len(asked) >= 2
    assert chunk_subjects(lagging) == before
    assert lagging.get("k", timeout=30) == CONTENT[: 3 * CHUNK]


# --- all at once


def _version(number: int, size: int) -> bytes:
    """Content that tells its number in every part, so that a mixture of two versions cannot pass."""
    return (f"{number:08}".encode() * (size // 8 + 1))[:size]


def test_objects_stay_whole_while_the_leader_dies_and_comes_back_and_sweeps_go_on(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module, name, seconds in ((_sink, "STALE", 1.0), (_upload, "COMMIT_TIME", 3.0)):  # shorter, in the same order
        monkeypatch.setattr(module, name, seconds)
    monkeypatch.setattr(_sweep, "_LEAST_GRACE", timedelta(0))
    objects = _open(cluster)
    numbers, done = itertools.count(1), Counter[str]()
    names = [f"k{number}" for number in range(4)]
    for name in names:
        objects.put(name, _version(0, 3 * CHUNK))

    def write() -> None:
        number = next(numbers)
        content = _version(number, random.Random(number).choice([1000, 3 * CHUNK + 5, 12 * CHUNK]))
        try:
            objects.put_reader(names[number % 4], io.BytesIO(content), timeout=60)
            done["written"] += 1
        except (UploadLostError, OperationTimeoutError):  # a sweep has given it up; too late for the last step
            done["failed"] += 1

    def read() -> None:
        content = objects.get(random.choice(names), timeout=60)
        assert content is not None
        assert content == _version(int(content[:8]), len(content))
        done["read"] += 1

    def sweep() -> None:
        objects.sweep(older_than=6, timeout=60)
        done["swept"] += 1

    def go_on() -> None:
        goal = {what: done[what] + 5 for what in ("written", "read", "swept")}
        wait_until(lambda: all(done[what] >= goal[what] for what in goal), "they go on", timeout=60)

    with Repeated([write, write, read, sweep]):
        go_on()
        server = _leader(cluster, objects)
        cluster.servers[server].kill()
        go_on()
        cluster.servers[server].start()
        cluster.wait_in_step(objects)
        go_on()
    infos = objects.list(timeout=30)
    assert [info.name for info in infos] == names
    objects.sweep(older_than=0, timeout=60)
    assert chunk_subjects(objects) == _chunks(*infos)
    for info in infos:
        with objects.open(info.name, timeout=30) as reader:
            assert isinstance(reader, ObjectReader)
            assert len(reader.read()) == info.size
