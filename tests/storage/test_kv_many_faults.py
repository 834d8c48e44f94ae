"""Many keys at a time, and a connection or a server that breaks in the middle: each write happens once."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

import mono_sync
from mono_sync import (
    Connection,
    ConnectionClosedError,
    KVBucket,
    KVBucketConfig,
    MonoError,
    OperationTimeoutError,
    OutcomeUnknownError,
    PartialWriteError,
    PermissionDeniedError,
)
from mono_sync._durations import Deadline
from mono_sync.adapter import Message
from mono_sync.connection import ExactlyOnce, JetStream, _exactly_once, _pipeline, read_ack
from tests.fixtures.servers import RunNatsServer
from tests.fixtures.waiting import wait_until
from tests.storage.conftest import NewKV
from tests.storage.helpers import CutProxy, raw_kv
from tests.support.threads import Background

FAST: dict[str, Any] = {"reconnect_wait": 0.02, "reconnect_max_wait": 0.1}
VALUES = {f"k{number:04}": b"v%d" % number for number in range(3000)}
AFTER = pytest.mark.parametrize("after", [True, False], ids=["arrived", "lost"])


@dataclass
class Scene:
    """A bucket seen twice: past the proxy, and through it by a connection that it can break."""

    proxy: CutProxy
    other: KVBucket
    mine: KVBucket

    def stored(self) -> dict[str, int]:
        """Return the true revision of each key."""
        found = self.other._reader.list_newest(f"$KV.{self.other.name}.>", Deadline(20), from_leader=False)
        return {listed.subject.rpartition(".")[2]: listed.sequence for listed in found}

    def messages_of_each(self) -> set[int]:
        return set(raw_kv(self.other).subjects(">").values())


@pytest.fixture
def scene(any_connection: Connection, any_new_kv: NewKV) -> Iterator[Scene]:
    other = any_new_kv(history=5)
    with (
        CutProxy(any_connection.server_info.url) as proxy,
        mono_sync.connect(proxy.url, token=any_connection.config.token, timeout=20, **FAST) as connection,
    ):
        yield Scene(proxy, other, connection.kv(other.name))


@AFTER
@pytest.mark.parametrize("at", [0, 1700, 2999])
def test_keys_under_way_when_the_connection_breaks_are_written_once(scene: Scene, at: int, after: bool) -> None:
    scene.proxy.cut_at(f".k{at:04} ".encode(), after=after)
    revisions = scene.mine.set_many(VALUES)
    assert scene.proxy.cuts == 1
    assert list(revisions) == list(VALUES)
    assert revisions == scene.stored()
    assert scene.messages_of_each() == {1}
    assert scene.other.get_many(VALUES) == VALUES


@AFTER
def test_keys_under_way_when_the_connection_breaks_are_deleted_once(scene: Scene, after: bool) -> None:
    scene.other.set_many(VALUES)
    scene.proxy.cut_at(b".k1700 ", after=after)
    scene.mine.delete_many(VALUES)
    assert scene.proxy.cuts == 1
    assert scene.other.keys() == []
    assert scene.messages_of_each() == {2}


@AFTER
@pytest.mark.parametrize("occurrence", [1, 4])
def test_what_was_to_be_read_when_the_connection_breaks_is_asked_for_again(
    scene: Scene, occurrence: int, after: bool
) -> None:
    scene.other.set_many(VALUES)
    scene.proxy.cut_at(b"PUB $JS.API.DIRECT.GET", occurrence=occurrence, after=after)
    assert scene.mine.get_many([*VALUES, "never"]) == VALUES
    assert scene.proxy.cuts == 1


@AFTER
@pytest.mark.parametrize("call", [b"STREAM.INFO", b"CONSUMER.CREATE", b"MSG.NEXT"])
def test_a_listing_that_loses_its_connection_begins_anew(scene: Scene, call: bytes, after: bool) -> None:
    scene.other.set_many(VALUES)
    scene.proxy.cut_at(call, after=after)
    assert scene.mine.keys() == list(VALUES)
    assert scene.proxy.cuts == 1
    scene.proxy.cut_at(call, after=after)
    assert scene.mine.status().keys == len(VALUES)
    assert scene.proxy.cuts == 2


@AFTER
def test_marks_are_removed_though_the_connection_breaks(scene: Scene, after: bool) -> None:
    scene.other.delete_many(VALUES)
    scene.proxy.cut_at(b"STREAM.PURGE", occurrence=500, after=after)
    scene.mine.purge_deletes(0)
    assert scene.proxy.cuts == 1
    assert raw_kv(scene.other).state["messages"] == 0


@AFTER
def test_a_reset_is_repeated_when_the_connection_breaks(scene: Scene, after: bool) -> None:
    scene.other.set_many(VALUES)
    scene.proxy.cut_at(b"STREAM.PURGE", after=after)
    scene.mine.reset()
    assert scene.proxy.cuts == 1
    assert raw_kv(scene.other).state["messages"] == 0


# --- answers that stay away, as in a cluster whose leader has died


def test_writes_whose_answers_stay_away_are_settled_one_by_one(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_pipeline, "_PATIENCE", 0.2)
    scene.proxy.mute_at(b".k1000 ", occurrence=1)
    carry_out, settled = ExactlyOnce.carry_out, list[str]()

    def hear_again(self: ExactlyOnce, write: Any, *arguments: Any, **options: Any) -> int:
        scene.proxy._answering.set()
        settled.append(write.subject.rpartition(".")[2])
        return carry_out(self, write, *arguments, **options)

    monkeypatch.setattr(ExactlyOnce, "carry_out", hear_again)
    revisions = scene.mine.set_many(VALUES)
    assert "k1000" in settled
    assert revisions == scene.stored()
    assert scene.messages_of_each() == {1}


NO_RESPONDERS = Message("", b"", "", b"NATS/1.0 503\r\n\r\n")
TOO_MANY = Message("", b'{"error": {"code": 429, "err_code": 10167, "description": "too many requests"}}')


@pytest.mark.parametrize("refusal", [NO_RESPONDERS, TOO_MANY], ids=["nobody", "busy"])
def test_writes_that_nobody_takes_at_the_moment_are_sent_again(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, refusal: Message
) -> None:
    refused = list[str]()

    def refuse_some(message: Message, context: str) -> Any:
        if len(refused) < 3:
            refused.append(context)
            return read_ack(refusal, context)
        return read_ack(message, context)

    monkeypatch.setattr(_pipeline, "read_ack", refuse_some)
    monkeypatch.setattr(_exactly_once, "read_ack", refuse_some)
    revisions = scene.mine.set_many(VALUES)
    assert len(refused) == 3
    assert revisions == scene.stored()
    assert scene.messages_of_each() == {1}


@pytest.mark.parametrize("lags", [False, True])
def test_a_listing_is_as_the_leader_has_it(any_new_kv: NewKV, monkeypatch: pytest.MonkeyPatch, lags: bool) -> None:
    """A consumer may live on a replica that does not have the newest writes yet: here it delivers what was before."""
    kv = any_new_kv()
    kv.set_many({"a": b"1", "b": b"2", "b.c": b"3"})
    pull_raw = JetStream.pull_raw
    before = list(pull_raw(kv._jetstream, kv._stream, ">", Deadline(5), policy="all", headers_only=True, batch=9))
    kv.delete("a")
    if lags:
        monkeypatch.setattr(JetStream, "pull_raw", lambda *arguments, **options: iter(before))
    monkeypatch.setattr(kv, "_replicated", True)
    assert kv.keys() == ["b", "b.c"]
    assert (kv.status().keys, kv.status().tombstones) == (2, 1)


# --- the deadline, and who gives up


def test_a_deadline_in_the_middle_tells_what_is_known_of_every_key(scene: Scene) -> None:
    scene.proxy.mute_at(b".k1000 ", occurrence=1)
    started = time.monotonic()
    with pytest.raises(PartialWriteError) as caught:
        scene.mine.set_many(VALUES, timeout=1)
    assert 0.9 < time.monotonic() - started < 2
    error = caught.value
    unknown = [key for key, why in error.errors.items() if isinstance(why, OutcomeUnknownError)]
    unsent = [key for key, why in error.errors.items() if not isinstance(why, OutcomeUnknownError)]
    assert [*error.written, *unknown, *unsent] == list(VALUES)
    assert "k1000" in unknown
    assert len(unknown) <= 500
    assert unsent
    assert {type(error.errors[key]) for key in unsent} == {OperationTimeoutError}
    stored = scene.stored()
    assert error.written == {key: stored[key] for key in error.written}
    assert not stored.keys() & set(unsent)


def test_nothing_is_sent_after_the_deadline(scene: Scene) -> None:
    scene.proxy.mute_at(b".k1000 ", occurrence=1)
    with pytest.raises(PartialWriteError):
        scene.mine.set_many(VALUES, timeout=0.5)
    before = raw_kv(scene.other).state["last_seq"]
    scene.proxy._answering.set()
    scene.mine._connection.flush()
    assert raw_kv(scene.other).state["last_seq"] == before


def test_reading_ends_at_the_deadline(scene: Scene) -> None:
    scene.other.set_many(VALUES)
    scene.proxy.mute_at(b"DIRECT.GET", occurrence=1)
    for call in (scene.mine.get_many, lambda keys, timeout: scene.mine.keys(timeout=timeout)):
        started = time.monotonic()
        with pytest.raises(OperationTimeoutError):
            call(VALUES, timeout=0.5)
        assert 0.4 < time.monotonic() - started < 1.5


def test_closing_the_connection_tells_what_is_known_of_every_key(scene: Scene) -> None:
    scene.proxy.mute_at(b".k1000 ", occurrence=1)
    call = Background(scene.mine.set_many, VALUES)
    wait_until(lambda: scene.proxy.cuts, "it waits for answers")
    scene.mine._connection.close()
    error = call.error()
    assert isinstance(error, PartialWriteError)
    assert {type(why) for why in error.errors.values()} == {OutcomeUnknownError, ConnectionClosedError}
    assert error.written.keys() | error.errors.keys() == VALUES.keys()


@pytest.mark.skipif(threading.current_thread() is not threading.main_thread(), reason="signals need the main thread")
@pytest.mark.parametrize("call", ["set_many", "get_many"])
def test_an_interrupt_ends_the_call_and_the_bucket_stays_usable(scene: Scene, call: str) -> None:
    scene.other.set_many(VALUES)
    main = threading.main_thread().ident
    assert main is not None
    scene.proxy.mute_at(b".k1000 " if call == "set_many" else b"DIRECT.GET", occurrence=1)

    def interrupt() -> None:
        wait_until(lambda: scene.proxy.cuts, "it waits for answers")
        signal.pthread_kill(main, signal.SIGUSR1)

    previous = signal.signal(signal.SIGUSR1, signal.default_int_handler)
    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            getattr(scene.mine, call)(VALUES)
    finally:
        thread.join(20)
        signal.signal(signal.SIGUSR1, previous)
    scene.proxy._answering.set()
    scene.mine.set_many(VALUES)
    assert scene.mine.get_many(VALUES) == VALUES


# --- the server


def test_what_our_user_may_not_write_fails_and_the_rest_is_written(run_nats_server: RunNatsServer) -> None:
    users = "{ user: u, password: p, permissions: { publish: { deny: ['$KV.b.Secret'] } } }, { user: a, password: p }"
    server = run_nats_server(f"jetstream: enabled\nauthorization {{ users: [{users}] }}")
    with (
        mono_sync.connect(server.url, user="a", password="p") as allowed,
        mono_sync.connect(server.url, user="u", password="p", timeout=20) as connection,
    ):
        allowed.kv(KVBucketConfig("b", storage="memory"))
        with pytest.raises(PartialWriteError) as caught:
            connection.kv("b").set_many({"a": b"1", "secret": b"2", "Secret": b"3", "z": b"4"})
        assert caught.value.written.keys() == {"a", "secret", "z"}
        assert {key: type(why) for key, why in caught.value.errors.items()} == {"Secret": PermissionDeniedError}


@pytest.mark.parametrize("history", [1, 5])
@pytest.mark.parametrize("call", ["set_many", "delete_many"])
def test_a_server_that_is_killed_in_the_middle_and_comes_back_has_every_write_once(
    run_nats_server: RunNatsServer, any_binary: str, call: str, history: int
) -> None:
    server = run_nats_server("jetstream: enabled", binary=any_binary)
    values = {f"k{number:05}": bytes(200) for number in range(15_000)}
    with (
        mono_sync.connect(server.url, timeout=50, **FAST) as connection,
        mono_sync.connect(server.url, timeout=50, **FAST) as watching,
    ):
        kv = connection.kv(KVBucketConfig("b", storage="file", history=history))
        other = watching.kv("b")
        writes: dict[str, Callable[[], Any]] = {
            "set_many": lambda: kv.set_many(values),
            "delete_many": lambda: kv.delete_many(values),
        }
        written = Background(writes[call])
        wait_until(lambda: raw_kv(other).state["last_seq"] > 2000, "it is in the middle")
        server.kill()
        server.start()
        revisions = written.result(50)
        found = other._reader.list_newest("$KV.b.>", Deadline(20), from_leader=False)
        assert len(found) == len(values)
        assert raw_kv(other).state["messages"] == len(values)
        assert raw_kv(other).state["last_seq"] == len(values)
        if call == "set_many":
            assert revisions == {listed.subject.removeprefix("$KV.b."): listed.sequence for listed in found}


def test_a_server_that_is_killed_and_stays_away_leaves_nobody_waiting(run_nats_server: RunNatsServer) -> None:
    server = run_nats_server("jetstream: enabled")
    with mono_sync.connect(server.url, **FAST) as connection:
        kv = connection.kv(KVBucketConfig("b", storage="file"))
        server.kill()
        started = time.monotonic()
        for call in (kv.set_many, kv.get_many, kv.delete_many, lambda _, timeout: kv.keys(timeout=timeout)):
            with pytest.raises(MonoError) as caught:
                call(VALUES, timeout=0.3)
            assert isinstance(caught.value, OperationTimeoutError | PartialWriteError)
        assert time.monotonic() - started < 5
