"""Writes under deadlines, stalls, closed connections and forks: what is told is true, and ids never meet."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from mono_sync import (
    Connection,
    ConnectionClosedError,
    KVBucket,
    KVBucketConfig,
    OperationTimeoutError,
    OutcomeUnknownError,
)
from mono_sync._durations import Deadline
from mono_sync.connection import ExactlyOnce
from tests.connection.conftest import Connect
from tests.fixtures.servers import RawServer, RunNatsServer
from tests.fixtures.waiting import wait_until
from tests.storage.helpers import CutProxy, raw_kv
from tests.support.threads import Background

WRITES: dict[str, Callable[..., int | None]] = {
    "set": lambda kv, **options: kv.set("k", b"mine", **options),
    "put": lambda kv, **options: kv.put_with_revision("k", b"mine", **options),
    "create": lambda kv, **options: kv.create("new", b"mine", **options),
    "update": lambda kv, **options: kv.update("k", b"mine", 1, **options),
    "delete": lambda kv, **options: kv.delete("k", **options),
    "purge": lambda kv, **options: kv.purge("k", revision=1, **options),
}
EVERY = pytest.mark.parametrize("write", WRITES)


@pytest.fixture
def server(any_binary: str, run_nats_server: RunNatsServer) -> RawServer:
    return run_nats_server("jetstream: enabled", binary=any_binary)


@pytest.fixture
def proxy(server: RawServer) -> Iterator[CutProxy]:
    with CutProxy(server.url) as proxy:
        yield proxy


@pytest.fixture
def other(server: RawServer, connect: Connect) -> KVBucket:
    """The bucket as somebody else sees it, with a key at revision 1."""
    kv = connect(server.url, timeout=20).kv(KVBucketConfig("b", history=20))
    kv.create("k", b"old")
    return kv


@pytest.fixture
def mine(other: KVBucket, proxy: CutProxy, connect: Connect) -> KVBucket:
    return connect(proxy.url, timeout=20).kv("b")


@pytest.fixture
def unreachable(proxy: CutProxy, mine: KVBucket, monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """The first write is lost together with the connection, and from then on nobody gets through any more."""
    happened, settle = threading.Event(), ExactlyOnce._settle

    def cut_off_first(*arguments: Any) -> int:
        if not happened.is_set():
            proxy.babble(b"-ERR 'not now'\r\n")
            proxy.cut()  # it may have connected again
            happened.set()
        return settle(*arguments)

    monkeypatch.setattr(ExactlyOnce, "_settle", cut_off_first)
    proxy.cut_at(b"HPUB $KV.b.", after=False)
    return happened


def last_sequence(kv: KVBucket) -> int:
    return int(raw_kv(kv).state["last_seq"])


def under_way(kv: KVBucket) -> bool:
    """Whether a request of its connection has left and is unanswered."""
    session = kv._connection._session
    assert session is not None
    return any(request.sent for request in session.link._requests.copy().values())


def ids_of(kv: KVBucket) -> list[str]:
    raw = raw_kv(kv)
    count = last_sequence(kv)
    messages = [kv._jetstream.at(raw.stream, number, Deadline(20)) for number in range(1, count + 1)]
    return [message.headers["Nats-Msg-Id"] for message in messages if message is not None]


# --- deadlines


@EVERY
def test_deadline_that_passes_before_anything_is_sent_means_that_nothing_ever_will_be(
    server: RawServer, other: KVBucket, write: str
) -> None:
    server.kill()
    wait_until(lambda: not other._connection.is_connected, "the loss is known")
    with pytest.raises(OperationTimeoutError) as caught:
        WRITES[write](other, timeout=0.2)
    assert not isinstance(caught.value, OutcomeUnknownError)
    assert not caught.value.sent
    server.start()
    assert other.put_with_revision("after", b"", timeout=20) == 2


@EVERY
def test_timeout_of_zero_writes_nothing(other: KVBucket, write: str) -> None:
    with pytest.raises(OperationTimeoutError) as caught:
        WRITES[write](other, timeout=0)
    assert not isinstance(caught.value, OutcomeUnknownError)
    assert not caught.value.sent
    assert other.put_with_revision("after", b"") == 2


@EVERY
def test_deadline_that_passes_while_the_server_is_stalled_is_unknown_and_nothing_follows(
    server: RawServer, other: KVBucket, mine: KVBucket, write: str
) -> None:
    server.pause()
    try:
        with pytest.raises(OutcomeUnknownError, match=r"no answer within 0\.2 s") as caught:
            WRITES[write](mine, timeout=0.2)
    finally:
        server.resume()
    assert caught.value.timeout == 0.2
    assert caught.value.sent
    assert mine.put_with_revision("after", b"") == 3  # the one attempt took effect: its socket was open all the time
    assert other.put_with_revision("after", b"") == 4


@EVERY
def test_deadline_that_passes_while_reconnecting_after_a_lost_answer_is_unknown_and_nothing_follows(
    unreachable: threading.Event, proxy: CutProxy, other: KVBucket, mine: KVBucket, write: str
) -> None:
    with pytest.raises(OutcomeUnknownError, match=r"no answer within 0\.5 s"):
        WRITES[write](mine, timeout=0.5)
    assert unreachable.is_set()
    proxy.babble(b"")
    assert mine.get("k") == b"old"
    assert mine.put_with_revision("after", b"") == 2


def test_writes_that_meet_no_connection_wait_for_one(server: RawServer, other: KVBucket) -> None:
    server.kill()
    wait_until(lambda: not other._connection.is_connected, "the loss is known")
    with ThreadPoolExecutor(8) as pool:
        written = [pool.submit(other.create, f"k{number}", b"v") for number in range(8)]
        server.start()
        assert sorted(future.result(20) for future in written) == list(range(2, 10))


# --- stalls


@EVERY
def test_write_on_a_server_that_stalls_for_a_while_happens_once(
    server: RawServer, other: KVBucket, mine: KVBucket, write: str
) -> None:
    server.pause()
    try:
        written = Background(WRITES[write], mine)
        wait_until(lambda: under_way(mine), "it has been sent")
    finally:
        server.resume()
    assert written.result() in (None, 2)
    assert last_sequence(other) == 2


def test_answer_that_is_never_read_because_the_connection_breaks_on_a_stalled_server(
    server: RawServer, proxy: CutProxy, other: KVBucket, mine: KVBucket
) -> None:
    """The server finds the first attempt in its socket when the second one is under way already."""
    server.pause()
    try:
        written = Background(mine.put_with_revision, "k", b"mine")
        wait_until(lambda: under_way(mine), "it has been sent")
        proxy.cut()
        wait_until(lambda: not mine._connection.is_connected, "the loss is known")
    finally:
        server.resume()
    revision = written.result()
    assert [entry.revision for entry in other.history("k")] in ([1, revision], [revision])
    assert last_sequence(other) == revision == 2


# --- closing


@EVERY
def test_closing_in_the_middle_of_a_write_is_told_and_nothing_follows(
    server: RawServer, other: KVBucket, mine: KVBucket, write: str
) -> None:
    server.pause()
    try:
        written = Background(WRITES[write], mine)
        wait_until(lambda: under_way(mine), "it has been sent")
        mine._connection.close()
        assert isinstance(written.error(), ConnectionClosedError)
    finally:
        server.resume()
    assert last_sequence(other) <= 2


def test_closing_ends_a_write_that_looks_for_its_answer(
    unreachable: threading.Event, proxy: CutProxy, other: KVBucket, mine: KVBucket
) -> None:
    written = Background(mine.set, "k", b"mine")
    assert unreachable.wait(20)
    mine._connection.close()
    assert isinstance(written.error(), ConnectionClosedError)
    assert last_sequence(other) == 1


# --- ids


def test_ids_of_all_connections_and_threads_differ(server: RawServer, other: KVBucket, connect: Connect) -> None:
    connections: list[Connection] = [connect(server.url) for _ in range(4)]

    def some(connection: Connection) -> list[str]:
        return [connection.new_id(Deadline(5)) for _ in range(2000)]

    with ThreadPoolExecutor(8) as pool:
        ids = [each for some_ids in pool.map(some, connections * 2) for each in some_ids]
    assert len(ids) == len(set(ids)) == 16_000


def test_ids_of_a_forked_child_are_others(server: RawServer, other: KVBucket) -> None:
    before = {other._connection.new_id(Deadline(5)) for _ in range(10)}
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            ids = [other._connection.new_id(Deadline(20)) for _ in range(100)]
            for _ in range(5):
                other.put_with_revision("k", b"child")
            os.write(writing, " ".join(ids).encode())
            other._connection.close()
            code = 0
        finally:
            os._exit(code)
    try:
        for _ in range(5):
            other.put_with_revision("k", b"parent")
        assert os.waitpid(pid, 0)[1] == 0
        os.close(writing)
        with os.fdopen(reading, "rb") as pipe:
            theirs = set(pipe.read().decode().split())
    finally:
        after = {other._connection.new_id(Deadline(5)) for _ in range(100)}
    assert len(theirs) == 100
    assert not theirs & (before | after)
    assert len(set(ids_of(other))) == last_sequence(other) == 11  # none of ten writes was taken for another one


# --- the window


@pytest.mark.parametrize("history", [1, 5])
@pytest.mark.parametrize("after", [True, False])
@pytest.mark.parametrize("overwritten", [True, False])
def test_write_that_is_looked_for_after_the_server_has_forgotten_its_id_is_not_applied_twice(
    server: RawServer,
    proxy: CutProxy,
    connect: Connect,
    monkeypatch: pytest.MonkeyPatch,
    *,
    history: int,
    after: bool,
    overwritten: bool,
) -> None:
    other = connect(server.url, timeout=20).kv(KVBucketConfig("b", history=history))
    raw_kv(other).update(duplicate_window=100_000_000)
    other.create("k", b"old")
    mine = connect(proxy.url, timeout=20).kv("b")
    proxy.cut_at(b"HPUB $KV.b.k ", after=after)
    settle = ExactlyOnce._settle

    def late(*arguments: Any) -> int:
        monkeypatch.undo()
        if after:
            wait_until(lambda: other.get("k") == b"mine", "it is stored")
        if overwritten:
            other.set("k", b"theirs")
        end = time.monotonic() + 0.5
        wait_until(lambda: time.monotonic() > end, "five times the window has passed")
        return settle(*arguments)

    monkeypatch.setattr(ExactlyOnce, "_settle", late)
    if overwritten and history == 1:
        with pytest.raises(OutcomeUnknownError):
            mine.put_with_revision("k", b"mine")
        assert other.get("k") == b"theirs"
        return
    revision = mine.put_with_revision("k", b"mine")
    assert revision == (3 if overwritten and not after else 2)
    assert last_sequence(other) == (3 if overwritten else 2)
