"""Small objects that are new: the description goes along with the only chunk, and is stored behind it or not at all."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import pytest

import mono_sync
from mono_sync import Connection, ConnectionClosedError, ObjectBucket, ObjectExistsError, OutcomeUnknownError
from mono_sync.connection import Question
from mono_sync.storage.objects._committing import Commit
from mono_sync.storage.objects._sink import Sink
from tests.fixtures.waiting import wait_until
from tests.storage.helpers import CutProxy, chunk_subjects, together
from tests.support.threads import Background

CHUNK, DESCRIPTION = b".C.", b".M."


@pytest.fixture
def proxy(any_connection: Connection) -> Iterator[CutProxy]:
    with CutProxy(any_connection.server_info.url) as proxy:
        yield proxy


@pytest.fixture
def cut(any_connection: Connection, proxy: CutProxy, any_objects: ObjectBucket) -> Iterator[ObjectBucket]:
    """The bucket through a connection that the proxy can break."""
    options: dict[str, Any] = {"reconnect_wait": 0.01, "reconnect_max_wait": 0.05}
    with mono_sync.connect(proxy.url, token=any_connection.config.token, **options) as through:
        yield through.objects(any_objects.name)


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
    assert sent == [["C", "M"], ["C", "M"], ["C", "DIRECT"], ["C", "DIRECT"], ["C", "DIRECT"]]


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
    info = cut.put("k", b"mine")
    assert proxy.cuts == 1
    assert (info == any_objects.stat("k")) is not after
    assert is_whole(any_objects, b"theirs" if after else b"mine")


def test_nothing_but_its_chunk_comes_right_before_it(
    any_objects: ObjectBucket, monkeypatch: pytest.MonkeyPatch, sent: list[list[str]]
) -> None:
    between: Question = (f"$O.{any_objects.name}.C.others", b"x", b"", "between")
    along = vars(Commit)["along"].fget
    monkeypatch.setattr(Commit, "along", property(lambda commit: [between, *along(commit)]))
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
    wait_until(lambda: proxy.cuts, "it waits for answers")
    cut._connection.close()
    assert isinstance(call.error(), ConnectionClosedError)
    assert is_whole(any_objects, b"mine")  # this time all


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

    def store(number: int) -> None:
        try:
            stored.append(any_objects.put("k", b"%d" % number, if_match=0))
        except ObjectExistsError:
            return

    for _ in range(20):
        any_objects.delete("k")
        stored.clear()
        together(8, store)
        assert stored == [any_objects.stat("k")]
        assert list(chunk_subjects(any_objects).values()) == [1]
