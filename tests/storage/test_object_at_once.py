"""Small objects that are new: the description goes along with the only chunk, and is stored behind it or not at all."""

from __future__ import annotations

import contextlib
import io
import threading
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

import mono_sync
from mono_sync import (
    BucketFullError,
    BucketNotFoundError,
    Connection,
    ConnectionClosedError,
    FSBucketConfig,
    JetStreamAPIError,
    ObjectBucket,
    ObjectExistsError,
    OutcomeUnknownError,
    PermissionDeniedError,
    RevisionMismatchError,
)
from mono_sync._durations import Deadline
from mono_sync.connection import Question
from mono_sync.storage.objects import _clean_up
from mono_sync.storage.objects._sink import Sink
from tests.fixtures.servers import RunNatsServer
from tests.fixtures.waiting import wait_until
from tests.storage.conftest import NewObjects
from tests.storage.helpers import (
    CutProxy,
    HalvingProxy,
    LateProxy,
    chunk_subjects,
    raw_objects,
    restricting,
    through,
    together,
)
from tests.support.peer import Answer, Peer
from tests.support.threads import Background

CHUNK, DESCRIPTION = b".C.", b".M."


@pytest.fixture
def proxy(any_connection: Connection) -> Iterator[CutProxy]:
    with CutProxy(any_connection.server_info.url) as proxy:
        yield proxy


@pytest.fixture
def cut(any_connection: Connection, proxy: CutProxy, any_objects: ObjectBucket) -> Iterator[ObjectBucket]:
    with through(proxy, any_connection, any_objects) as bucket:
        yield bucket


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Where each last chunk went, and what went along."""
    seen: list[list[str]] = []
    send = Sink.send_last

    def send_last(sink: Sink, write: Any, along: list[Question], deadline: Any) -> None:
        seen.append([subject.split(".")[2] for subject, *_ in [(write.subject,), *along]])
        send(sink, write, along, deadline)

    monkeypatch.setattr(Sink, "send_last", send_last)
    return seen


def is_whole(objects: ObjectBucket, content: bytes) -> bool:
    return objects.get("k") == content and list(chunk_subjects(objects).values()) == [1]


def test_whoever_replaced_something_looks_first_the_next_time(any_objects: ObjectBucket, sent: list[list[str]]) -> None:
    for key in ("a", "b", "a", "c", "d"):
        any_objects.put(key, b"x")
    assert [along[1:2] for along in sent] == [["M"], ["M"], ["M"], ["DIRECT"], ["M"]]
    assert sorted(chunk_subjects(any_objects).values()) == [1, 1, 1, 1]


def test_every_way_to_store_does_it_where_nobody_may_say_no_in_between(
    any_objects: ObjectBucket, sent: list[list[str]]
) -> None:
    with any_objects.open("stream", "wb") as writer:
        writer.write(b"x")
    any_objects.put_reader("file", io.BytesIO(b"x"))
    any_objects.put_reader("watched", io.BytesIO(b"x"), progress=lambda done, total: None)
    any_objects.put_reader("resumable", io.BytesIO(b"x"), resume="r")
    any_objects.put("large", bytes(200_000))
    any_objects.put("empty", b"")
    assert sent == [["C", "M"], ["C", "M"], ["C", "DIRECT"], ["C"], ["C", "DIRECT"]]  # the fourth has looked before


@pytest.mark.parametrize(("cluster", "along"), [("", ["M"]), ("c", [])])
def test_cluster_which_may_store_it_before_the_chunk_gets_it_later(
    sent: list[list[str]], cluster: str, along: list[str]
) -> None:
    def answer(subject: str, reply: str) -> Answer:
        if subject == "$JS.API.STREAM.INFO.OBJ_b":
            return {"config": {"name": "OBJ_b", "num_replicas": 3}, "state": {"last_seq": 0}}
        if subject == "$JS.API.STREAM.MSG.GET.OBJ_b":
            return {"error": {"code": 404, "err_code": 10037, "description": "no message found"}}
        return {"stream": "OBJ_b", "seq": 2 if ".M." in subject else 1}

    with Peer(answer, cluster=cluster) as peer, mono_sync.connect(peer.url) as connection:
        assert connection.objects("b").put("k", b"v").revision == 2
    assert sent == [["C", *along]]


@pytest.mark.parametrize("after", [True, False])
def test_it_is_stored_once_though_the_connection_breaks(
    cut: ObjectBucket, proxy: CutProxy, any_objects: ObjectBucket, after: bool
) -> None:
    proxy.cut_at(DESCRIPTION, after=after)
    info = cut.put("k", b"mine")
    assert proxy.cuts == 1
    assert info == any_objects.stat("k")
    assert is_whole(any_objects, b"mine")


@pytest.mark.parametrize("after", [True, False])
def test_it_finds_out_what_happened_though_somebody_else_writes_at_that_moment(
    cut: ObjectBucket, proxy: CutProxy, any_objects: ObjectBucket, monkeypatch: pytest.MonkeyPatch, after: bool
) -> None:
    proxy.cut_at(DESCRIPTION, after=after)
    settle, first = cut._writer._settle, iter([True])

    def somebody_else_writes_first(*arguments: object) -> int:
        if next(first, False):
            wait_until(lambda: not after or any_objects.get("k") == b"mine", "ours is stored")
            any_objects.put("k", b"theirs")
        return settle(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(cut._writer, "_settle", somebody_else_writes_first)
    if after and not any_objects._connection.server_info.supports("2.12.0"):  # it cannot be asked for an id
        with pytest.raises(OutcomeUnknownError):
            cut.put("k", b"mine")
    else:
        info = cut.put("k", b"mine")
        assert (info == any_objects.stat("k")) is not after
    assert proxy.cuts == 1
    assert is_whole(any_objects, b"theirs" if after else b"mine")


@pytest.mark.parametrize("if_match", [None, 0])
def test_its_chunk_goes_again_where_somebody_else_has_stored_the_object_meanwhile(
    cut: ObjectBucket, proxy: CutProxy, any_objects: ObjectBucket, monkeypatch: pytest.MonkeyPatch, if_match: int | None
) -> None:
    proxy.cut_at(DESCRIPTION, after=False)
    end_last = Sink.end_last

    def somebody_else_writes_first(*arguments: Any) -> None:
        monkeypatch.undo()
        any_objects.put("k", b"theirs")
        end_last(*arguments)

    monkeypatch.setattr(Sink, "end_last", somebody_else_writes_first)
    with contextlib.nullcontext() if if_match is None else pytest.raises(ObjectExistsError):
        cut.put("k", b"mine", if_match=if_match)
    assert is_whole(any_objects, b"mine" if if_match is None else b"theirs")


def test_it_is_stored_alone_where_something_else_has_come_behind_its_chunk_meanwhile(
    cut: ObjectBucket, proxy: CutProxy, any_objects: ObjectBucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy.cut_at(DESCRIPTION, after=False)
    end_last = Sink.end_last

    def somebody_else_writes_then(*arguments: Any) -> None:
        monkeypatch.undo()
        end_last(*arguments)
        any_objects.put("other", b"theirs")

    monkeypatch.setattr(Sink, "end_last", somebody_else_writes_then)
    assert cut.put("k", b"mine") == any_objects.stat("k")
    assert any_objects.get("k") == b"mine"
    assert list(chunk_subjects(any_objects).values()) == [1, 1]


def test_chunk_goes_again_where_an_interrupt_comes_before_the_refusal(
    any_objects: ObjectBucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_clean_up, "LEAST", 20.0)
    any_objects.put("k", b"old")
    hear, first = Sink._hear, iter([True])

    def interrupt_first(*arguments: Any) -> bool:
        if next(first, False):
            raise KeyboardInterrupt
        return hear(*arguments)

    monkeypatch.setattr(Sink, "_hear", interrupt_first)
    with pytest.raises(KeyboardInterrupt):
        any_objects.put("k", b"new")
    assert is_whole(any_objects, b"old")


def test_nothing_but_its_chunk_comes_right_before_it(
    any_objects: ObjectBucket, monkeypatch: pytest.MonkeyPatch, sent: list[list[str]]
) -> None:
    between: Question = (f"$O.{any_objects.name}.C.others", b"x", b"", "between")
    send = Sink.send_last

    def send_between(sink: Sink, write: Any, along: list[Question], deadline: Deadline) -> None:
        send(sink, write, [between, *along], deadline)

    monkeypatch.setattr(Sink, "send_last", send_between)
    info = any_objects.put("k", b"mine")
    assert sent == [["C", "C", "M"]]
    assert info == any_objects.stat("k")
    assert any_objects.get("k") == b"mine"
    assert any_objects.status().messages == 3


def test_it_takes_the_place_of_nothing(any_objects: ObjectBucket, sent: list[list[str]]) -> None:
    any_objects.put("k", b"old")
    with pytest.raises(ObjectExistsError):
        any_objects.put("k", b"new", if_match=0)
    assert [along[1:] for along in sent] == [["M"], ["M"]]
    assert is_whole(any_objects, b"old")


def test_it_takes_the_place_of_no_other_version_than_that_of_the_condition(
    any_objects: ObjectBucket, sent: list[list[str]]
) -> None:
    old = any_objects.put("k", b"old")
    any_objects.reset()
    with pytest.raises(RevisionMismatchError):
        any_objects.put("k", b"new", if_match=old)
    assert [along[1:] for along in sent] == [["M"], ["DIRECT"]]
    assert any_objects.status().messages == 0


def test_bucket_without_room_for_the_chunk_gets_no_description_either(
    any_new_objects: NewObjects, sent: list[list[str]]
) -> None:
    objects = any_new_objects(max_bytes=100_000)
    with pytest.raises(BucketFullError):
        objects.put("k", bytes(100_000))
    assert sent == [["C", "M"]]
    assert not objects.exists("k")
    assert objects.status().messages == 0


def test_it_is_not_known_what_happened_when_no_answer_comes_in_time(
    cut: ObjectBucket, proxy: CutProxy, any_objects: ObjectBucket
) -> None:
    proxy.mute_at(DESCRIPTION, occurrence=1)
    with pytest.raises(OutcomeUnknownError, match="storing object 'k' of bucket"):
        cut.put("k", b"mine", timeout=0.5)
    assert is_whole(any_objects, b"mine")  # this time it did


def test_closing_the_connection_leaves_all_of_it_or_nothing(
    cut: ObjectBucket, proxy: CutProxy, any_objects: ObjectBucket
) -> None:
    proxy.mute_at(DESCRIPTION, occurrence=1)
    call = Background(lambda: cut.put("k", b"mine"))
    wait_until(lambda: any_objects.exists("k"), "it is stored, and waits for answers")
    cut._connection.close()
    assert isinstance(call.error(), ConnectionClosedError)
    assert is_whole(any_objects, b"mine")  # this time all


# --- what arrives late, in part, or not at all


@pytest.mark.parametrize("if_match", [None, 0])
def test_what_arrives_late_changes_nothing(
    any_connection: Connection, any_objects: ObjectBucket, monkeypatch: pytest.MonkeyPatch, if_match: int | None
) -> None:
    proxy = LateProxy(any_connection.server_info.url)
    is_whole_yet = Sink.is_whole

    def deliver_first(sink: Sink, deadline: Deadline) -> bool:
        proxy.deliver()
        return is_whole_yet(sink, deadline)

    monkeypatch.setattr(Sink, "is_whole", deliver_first)
    with proxy, through(proxy, any_connection, any_objects) as late:
        proxy.cut_at(DESCRIPTION, after=False)
        info = late.put("k", b"mine", if_match=if_match)
    assert info == any_objects.stat("k")
    assert is_whole(any_objects, b"mine")
    assert any_objects.status().messages == 2


@pytest.mark.parametrize("what", [KeyboardInterrupt, OutcomeUnknownError])
def test_what_arrives_after_a_put_has_failed_is_whole(
    any_connection: Connection, any_objects: ObjectBucket, monkeypatch: pytest.MonkeyPatch, what: type[BaseException]
) -> None:
    proxy = LateProxy(any_connection.server_info.url)

    def fail(sink: Sink, deadline: Deadline) -> bool:
        if what is KeyboardInterrupt:
            raise KeyboardInterrupt
        wait_until(lambda: deadline.expired, "the deadline passes")
        return True

    monkeypatch.setattr(Sink, "is_whole", fail)
    with proxy, through(proxy, any_connection, any_objects) as late:
        proxy.cut_at(DESCRIPTION, after=False)
        with pytest.raises(what):
            late.put("k", b"mine", timeout=10 if what is KeyboardInterrupt else 1)
        assert not any_objects.exists("k")
        proxy.deliver()
        wait_until(lambda: any_objects.exists("k"), "it has arrived")
    assert is_whole(any_objects, b"mine")


def test_description_does_not_follow_a_chunk_that_a_reset_has_removed(
    connection: Connection, objects: ObjectBucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = HalvingProxy(connection.server_info.url)
    end_last = Sink.end_last

    def reset_first(*arguments: Any) -> None:
        end_last(*arguments)
        objects.reset()

    monkeypatch.setattr(Sink, "end_last", reset_first)
    with proxy, through(proxy, connection, objects) as halved:
        proxy.cut_at(DESCRIPTION, after=False)
        with pytest.raises(OutcomeUnknownError, match="its chunks are gone"):
            halved.put("k", b"mine")
    assert not objects.exists("k")


def test_description_follows_its_chunk_though_the_connection_breaks_between_them(
    any_connection: Connection, any_objects: ObjectBucket
) -> None:
    proxy = HalvingProxy(any_connection.server_info.url)
    with proxy, through(proxy, any_connection, any_objects) as halved:
        proxy.cut_at(DESCRIPTION, after=False)
        info = halved.put("k", b"mine", if_match=0)
    assert info == any_objects.stat("k")
    assert is_whole(any_objects, b"mine")


def test_object_that_was_stored_before_its_bucket_was_sealed_is_stored(
    cut: ObjectBucket, proxy: CutProxy, any_objects: ObjectBucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    settle, first = cut._writer._settle, iter([True])

    def seal_first(*arguments: object) -> int:
        if next(first, False):
            wait_until(lambda: any_objects.exists("k"), "it is stored")
            any_objects.seal()
        return settle(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(cut._writer, "_settle", seal_first)
    proxy.cut_at(DESCRIPTION, after=True)
    if any_objects._connection.server_info.supports("2.12.0"):
        assert cut.put("k", b"mine") == any_objects.stat("k")
    else:  # that server does not say it, and nothing can be sent again
        with pytest.raises(OutcomeUnknownError):
            cut.put("k", b"mine")
    assert any_objects.get("k") == b"mine"


@pytest.mark.parametrize("denied", ["C", "M"])
@pytest.mark.parametrize("is_new", [True, False])
def test_put_that_is_not_allowed_stores_nothing_that_is_seen(
    run_nats_server: RunNatsServer, denied: str, is_new: bool
) -> None:
    server = run_nats_server(restricting(f"$O.b.{denied}.>"))
    with (
        mono_sync.connect(server.url, user="a", password="p") as admin,
        mono_sync.connect(server.url, user="u", password="p") as limited,
    ):
        objects = admin.objects(FSBucketConfig("b"))
        bucket = limited.objects("b")
        bucket._sinks.expects_new = is_new
        for content in (b"x", bytes(200_000)):
            with pytest.raises(PermissionDeniedError, match=rf"\$O\.b\.{denied}\."):
                bucket.put("k", content)
        assert denied == "M" or chunk_subjects(objects) == {}
        assert not objects.exists("k")


def test_put_does_not_take_the_refusal_of_another_name_for_its_own(run_nats_server: RunNatsServer) -> None:
    """Names differ in the case of a letter once they are encoded, as YWFh and YWFH."""
    server = run_nats_server(restricting("$O.b.M.YWFH"))
    with (
        mono_sync.connect(server.url, user="a", password="p") as admin,
        mono_sync.connect(server.url, user="u", password="p") as limited,
    ):
        admin.objects(FSBucketConfig("b", storage="memory"))
        bucket, enough = limited.objects("b"), threading.Event()

        def be_refused() -> None:
            while not enough.is_set():
                with pytest.raises(PermissionDeniedError):
                    bucket.put("aaG", b"x")

        other = Background(be_refused)
        for number in range(100):
            bucket.put("aaa", b"%d" % number)
            assert bucket.get("aaa") == b"%d" % number
            bucket.delete("aaa")
        enough.set()
        other.result()


@pytest.mark.parametrize("denied", ["$O.b.M.>", "$O.b.C.>", "$JS.API.STREAM.INFO.OBJ_b"])
def test_permission_that_goes_away_while_it_is_found_out_leaves_the_outcome_open(
    run_nats_server: RunNatsServer, monkeypatch: pytest.MonkeyPatch, denied: str
) -> None:
    server = run_nats_server(restricting("nothing"))
    end_last = Sink.end_last

    def restrict(*arguments: Any) -> None:
        wait_until(lambda: objects.exists("k"), "it is stored")
        server.kill()
        server.configure(restricting(denied))
        server.start()
        end_last(*arguments)

    monkeypatch.setattr(Sink, "end_last", restrict)
    options: dict[str, Any] = {"reconnect_wait": 0.01, "reconnect_max_wait": 0.05, "password": "p"}
    with (
        mono_sync.connect(server.url, user="a", **options) as admin,
        CutProxy(server.url) as proxy,
        mono_sync.connect(proxy.url, user="u", **options) as limited,
    ):
        objects = admin.objects(FSBucketConfig("b"))
        proxy.cut_at(DESCRIPTION, after=True)
        with pytest.raises(OutcomeUnknownError, match="no permission"):
            limited.objects("b").put("k", b"mine")
        assert is_whole(objects, b"mine")


@pytest.mark.parametrize("lost", [["last", "described"], ["described"]])
def test_server_that_refuses_to_tell_leaves_the_outcome_open(
    any_objects: ObjectBucket, monkeypatch: pytest.MonkeyPatch, lost: list[str]
) -> None:
    send = Sink.send_last

    def send_and_lose(sink: Sink, *arguments: Any) -> None:
        send(sink, *arguments)
        for tag in lost:
            del sink.answers[tag]

    def refuse(*_: object) -> bool:
        raise JetStreamAPIError(500, 10001, "not now")

    monkeypatch.setattr(Sink, "send_last", send_and_lose)
    monkeypatch.setattr(Sink, "is_whole", refuse)
    with pytest.raises(OutcomeUnknownError, match="not now"):
        any_objects.put("k", b"mine")
    assert is_whole(any_objects, b"mine")


def test_bucket_that_is_deleted_while_it_is_found_out_is_named(
    cut: ObjectBucket, proxy: CutProxy, any_objects: ObjectBucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy.cut_at(DESCRIPTION, after=True)
    end_last = Sink.end_last

    def delete_first(*arguments: Any) -> None:
        raw_objects(any_objects).delete()
        end_last(*arguments)

    monkeypatch.setattr(Sink, "end_last", delete_first)
    with pytest.raises(BucketNotFoundError, match=any_objects.name):
        cut.put("k", b"mine")


# --- many at once


def test_many_threads_and_connections_store_new_objects_at_once(
    any_connection: Connection, any_objects: ObjectBucket
) -> None:
    with mono_sync.connect(any_connection.server_info.url, token=any_connection.config.token) as another:
        buckets = [any_objects, another.objects(any_objects.name)]

        def store(number: int) -> None:
            for turn in range(20):
                buckets[number % 2].put(f"k{number}-{turn}", f"{number}-{turn}".encode(), if_match=0)

        together(16, store)
    assert {info.name: any_objects.get(info.name) for info in any_objects.list()} == {
        f"k{number}-{turn}": f"{number}-{turn}".encode() for number in range(16) for turn in range(20)
    }
    assert set(chunk_subjects(any_objects).values()) == {1}


def test_of_many_who_store_the_same_new_object_one_succeeds(any_objects: ObjectBucket) -> None:
    stored = []

    def store(key: str, number: int) -> None:
        with contextlib.suppress(ObjectExistsError):
            stored.append(any_objects.put(key, b"%d" % number, if_match=0))

    for turn in range(20):
        stored.clear()
        any_objects._sinks.expects_new = True  # though whoever came too late before has seen something
        together(8, partial(store, f"k{turn}"))
        assert stored == [any_objects.stat(f"k{turn}")]
    assert list(chunk_subjects(any_objects).values()) == [1] * 20
