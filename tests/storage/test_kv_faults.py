"""Limits, buckets that vanish, servers without JetStream, direct get switched off."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any

import pytest

import mono_sync
from mono_sync import (
    BucketFullError,
    BucketNotFoundError,
    Connection,
    ConnectionClosedError,
    JetStreamUnavailableError,
    KeyNotFoundError,
    KVBucket,
    KVBucketConfig,
    ObjectBucket,
    Operation,
    OperationTimeoutError,
    OutcomeUnknownError,
    PermissionDeniedError,
    ValueTooLargeError,
)
from mono_sync._durations import Deadline
from mono_sync.connection import ExactlyOnce, JetStream, Json, Write
from tests.fixtures.servers import RunNatsServer, StartServer
from tests.fixtures.waiting import wait_until
from tests.storage.conftest import NewKV
from tests.storage.helpers import CutProxy, raw_kv, restricting
from tests.support.peer import Answer, Peer

# --- limits


def _longest_value(kv: KVBucket, write: Callable[[bytes], object]) -> int:
    """Return the size that the server's limit allows, found without trusting what we know of headers."""
    low, high = 0, kv._connection.server_info.max_payload + 1
    while high - low > 1:
        middle = (low + high) // 2
        try:
            write(bytes(middle))
            low = middle
        except ValueTooLargeError:
            high = middle
    return low - 1  # the number in the next id may be longer


ID_SIZE = 64
"""Less than this is taken by the header that carries the id of a write."""


def test_value_as_large_as_the_server_takes_is_written_and_one_byte_more_is_refused(any_kv: KVBucket) -> None:
    limit = any_kv._connection.server_info.max_payload
    longest = _longest_value(any_kv, lambda value: any_kv.set("k", value))
    assert limit - ID_SIZE < longest < limit
    any_kv.set("k", b"x" * longest)
    assert any_kv.get("k") == b"x" * longest
    with pytest.raises(ValueTooLargeError, match=f"the server takes messages of up to {limit} bytes") as caught:
        any_kv.set("k", b"y" * (limit + 1))
    assert (caught.value.bucket, caught.value.key, caught.value.size) == (any_kv.name, "k", limit + 1)
    assert any_kv.get("k") == b"x" * longest


def test_headers_count_for_the_limit_and_the_connection_survives(any_kv: KVBucket) -> None:
    limit = any_kv._connection.server_info.max_payload

    def create(value: bytes) -> None:
        any_kv.create("k", value)
        any_kv.purge("k")

    longest = _longest_value(any_kv, create)
    assert limit - 100 - ID_SIZE < longest < limit - ID_SIZE / 2
    any_kv.create("k", b"x" * longest)
    assert any_kv.get("k") == b"x" * longest


def test_value_larger_than_the_bucket_takes_is_refused(any_new_kv: NewKV) -> None:
    kv = any_new_kv(max_value_size=100)
    kv.set("k", b"x" * (100 - ID_SIZE))
    with pytest.raises(ValueTooLargeError) as caught:
        kv.set("k", b"y" * 100)
    assert (caught.value.bucket, caught.value.key, caught.value.size) == (kv.name, "k", 100)
    assert kv.get("k") == b"x" * (100 - ID_SIZE)


def test_full_bucket_refuses_writes_until_there_is_room(any_new_kv: NewKV) -> None:
    kv = any_new_kv(max_bytes=10_000)
    for number in range(9):
        kv.set(f"k{number}", bytes(1000))
    with pytest.raises(BucketFullError, match=f"bucket '{kv.name}' is full") as caught:
        kv.set("k9", bytes(1000))
    assert caught.value.bucket == kv.name
    assert isinstance(caught.value, OSError)
    assert len(kv.keys()) == 9
    kv.purge("k0")
    kv.set("other", bytes(500))


@pytest.mark.parametrize(
    ("err_code", "reason"), [(10047, "insufficient storage resources available"), (10077, "maximum bytes exceeded")]
)
def test_storage_of_the_server_that_is_full_is_a_full_bucket_too(err_code: int, reason: str) -> None:
    """From a peer: of the codes for it, servers at hand answer a write with another one than 10047."""

    def answer(subject: str, reply: str) -> Answer:
        if subject == "$JS.API.STREAM.INFO.KV_b":
            return {"config": {"name": "KV_b", "allow_direct": True, "num_replicas": 1}, "state": {"last_seq": 0}}
        return {"error": {"code": 500, "err_code": err_code, "description": reason}}

    with Peer(answer) as peer, mono_sync.connect(peer.url) as connection:
        kv = connection.kv("b")
        for call in (lambda: kv.set("k", b"v"), lambda: kv.create("k", b"v"), lambda: kv.update("k", b"v", 1)):
            with pytest.raises(BucketFullError, match=reason) as caught:
                call()
            assert caught.value.bucket == "b"


@pytest.mark.parametrize("storage", ["memory", "file"])
def test_server_whose_resources_are_used_up_is_a_full_bucket(run_nats_server: RunNatsServer, storage: Any) -> None:
    server = run_nats_server("jetstream { max_mem: 1MB, max_file: 1MB }")
    with mono_sync.connect(server.url) as connection:
        kv = connection.kv(KVBucketConfig("b", storage=storage))

        def fill() -> None:
            for number in range(40):
                kv.set(f"k{number}", bytes(100_000))

        with pytest.raises(BucketFullError, match="insufficient resources") as caught:
            fill()
        assert caught.value.bucket == "b"
        assert kv.get("k0") == bytes(100_000)


# --- the bucket is gone


def _calls(kv: KVBucket) -> dict[str, Callable[[], object]]:
    return {
        "get": lambda: kv.get("k"),
        "get_entry": lambda: kv.get_entry("k"),
        "set": lambda: kv.set("k", b"v"),
        "put_with_revision": lambda: kv.put_with_revision("k", b"v"),
        "create": lambda: kv.create("k", b"v"),
        "update": lambda: kv.update("k", b"v", 1),
        "delete": lambda: kv.delete("k"),
        "purge": lambda: kv.purge("k"),
        "conditional purge": lambda: kv.purge("k", revision=1),
        "keys": kv.keys,
        "status": kv.status,
    }


@pytest.mark.parametrize("direct", [True, False])
def test_every_call_says_that_the_bucket_was_deleted(
    any_kv: KVBucket, any_connection: Connection, impatient: None, direct: bool
) -> None:
    raw = raw_kv(any_kv)
    raw.update(allow_direct=direct)
    kv = any_connection.kv(any_kv.name)
    kv.set("k", b"v")
    raw.delete()
    for name, call in _calls(kv).items():
        with pytest.raises(BucketNotFoundError, match=kv.name) as caught:
            call()
        assert caught.value.bucket == kv.name, name


def test_finding_out_why_nobody_answers_keeps_to_the_deadline(
    run_nats_server: RunNatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = run_nats_server("jetstream: enabled")
    with mono_sync.connect(server.url) as connection:
        kv = connection.kv(KVBucketConfig("b", storage="memory"))
        raw_kv(kv).delete()
        ask = JetStream.stream_info

        def stalled(jetstream: JetStream, stream: str, deadline: Deadline) -> Json:
            server.pause()
            return ask(jetstream, stream, deadline)

        monkeypatch.setattr(JetStream, "stream_info", stalled)
        started = time.monotonic()
        with pytest.raises(OperationTimeoutError):
            kv.set("k", b"v", timeout=0.3)
        assert time.monotonic() - started < 0.8
        server.resume()


def test_bucket_that_was_made_anew_works_with_the_old_object(any_kv: KVBucket, any_connection: Connection) -> None:
    any_kv.set("k", b"v")
    raw_kv(any_kv).delete()
    any_connection.kv(KVBucketConfig(any_kv.name, storage="memory"))
    assert any_kv.get("k") is None
    assert any_kv.create("k", b"w") == 1


def test_server_without_jetstream_is_named_as_the_reason(run_nats_server: RunNatsServer) -> None:
    with mono_sync.connect(run_nats_server().url) as connection:
        for call in (
            lambda: connection.kv("b"),
            lambda: connection.kv(KVBucketConfig("b")),
            lambda: connection.objects("b"),
        ):
            with pytest.raises(JetStreamUnavailableError, match="JetStream is not enabled"):
                call()


def test_calls_on_a_server_that_has_lost_its_jetstream_do_not_say_that_the_bucket_is_gone(
    run_nats_server: RunNatsServer,
) -> None:
    with_jetstream, without = run_nats_server("jetstream: enabled"), run_nats_server()
    with mono_sync.connect(with_jetstream.url) as connection, mono_sync.connect(without.url) as other:
        kv = connection.kv(KVBucketConfig("b"))
        kv._connection = other  # as after a reconnect to another server
        kv._jetstream._connection = other
        kv._writer._connection = other
        for call in _calls(kv).values():
            with pytest.raises(JetStreamUnavailableError):
                call()


def test_closed_connection_is_named_as_the_reason(start_server: StartServer) -> None:
    server = start_server()
    connection = mono_sync.connect(server.url, token=server.token)
    kv = connection.kv(KVBucketConfig("b"))
    connection.close()
    for call in _calls(kv).values():
        with pytest.raises(ConnectionClosedError):
            call()


def test_timeout_zero_and_negative(any_kv: KVBucket) -> None:
    for call in (any_kv.keys, any_kv.status, lambda **options: any_kv.get("k", **options)):
        with pytest.raises(OperationTimeoutError):
            call(timeout=0)
        with pytest.raises(ValueError, match="not negative"):
            call(timeout=-1)
    any_kv.set("k", b"v", timeout=None)
    assert any_kv.get("k", timeout=None) == b"v"


# --- direct get


@pytest.mark.parametrize("timeout", [0.4, 0.9])
def test_direct_get_switched_off_underneath_is_found_out_within_a_short_timeout(
    any_new_kv: NewKV, timeout: float
) -> None:
    kv = any_new_kv()
    kv.set("k", b"v")
    raw_kv(kv).update(allow_direct=False)
    assert kv.get("k", timeout=timeout) == b"v"


@pytest.mark.parametrize("how", ["before", "after"])
def test_answers_are_the_same_with_direct_get_switched_off(
    any_new_kv: NewKV, any_connection: Connection, impatient: None, how: str
) -> None:
    kv = any_new_kv(history=3)
    if how == "before":
        raw_kv(kv).update(allow_direct=False)
        kv = any_connection.kv(kv.name)
    kv.set("k", b"\0\xff v")
    kv.set("empty", b"")
    for key in ("deleted", "purged"):
        kv.set(key, b"v")
    kv.delete("deleted")
    kv.purge("purged")
    before = kv.get_entry("k")
    if how == "after":
        raw_kv(kv).update(allow_direct=False)
    assert kv.get_entry("k") == before
    started = time.monotonic()
    for _ in range(20):
        assert (kv.get("k"), kv.get("empty", b"d")) == (b"\0\xff v", b"")
    assert time.monotonic() - started < 1.5  # old servers do not answer: that is found out only once
    for key in ("missing", "deleted", "purged"):
        assert kv.get(key, b"d") == b"d"
        with pytest.raises(KeyNotFoundError):
            kv.get_entry(key)
        kv.create(key, b"again")
        assert kv.get(key) == b"again"
    assert sorted(kv.keys()) == ["deleted", "empty", "k", "missing", "purged"]


# --- what other clients may have written


@pytest.mark.parametrize(
    ("headers", "live"),
    [
        ({"KV-Operation": "DEL"}, False),
        ({"KV-Operation": "PURGE", "Nats-Rollup": "sub"}, False),
        ({"KV-Operation": "PUT"}, True),
        ({"KV-Operation": "unknown"}, True),
        ({"Some-Header": "x"}, True),
        ({"Nats-Marker-Reason": "MaxAge"}, False),
        ({"Nats-Marker-Reason": "Remove"}, False),
        ({"Nats-Marker-Reason": "unknown"}, False),
    ],
)
def test_headers_of_other_clients_are_understood(any_kv: KVBucket, headers: dict[str, str], live: bool) -> None:
    any_kv.set("k", b"old")
    raw_kv(any_kv).put(f"$KV.{any_kv.name}.k", b"new", headers)
    assert any_kv.get("k") == (b"new" if live else None)
    assert any_kv.keys() == (["k"] if live else [])


def test_marks_that_the_server_left_tell_what_happened_to_the_key(any_kv: KVBucket) -> None:
    """No public call returns a deletion: this is what a history or a watcher will show."""
    expected = {
        "MaxAge": (Operation.PURGE, True),
        "Purge": (Operation.PURGE, False),
        "Remove": (Operation.DELETE, False),
        "unknown": (Operation.PURGE, False),
    }
    for reason in expected:
        raw_kv(any_kv).put(f"$KV.{any_kv.name}.{reason}", b"", {"Nats-Marker-Reason": reason})
    entries = {reason: any_kv._newest(reason, Deadline(5)) for reason in expected}
    assert {reason: entry and (entry.operation, entry.expired) for reason, entry in entries.items()} == expected


# --- broken connections


@pytest.fixture
def cut(connection: Connection, kv: KVBucket) -> Any:
    token = connection.config.token
    with (
        CutProxy(connection.server_info.url) as proxy,
        mono_sync.connect(proxy.url, token=token, reconnect_wait=0.02, reconnect_max_wait=0.1) as cut,
    ):
        yield proxy, cut.kv(kv.name)


@pytest.mark.parametrize("after", [True, False])
@pytest.mark.parametrize("pattern", [b"STREAM.INFO", b"CONSUMER.CREATE", b"MSG.NEXT"])
def test_listing_goes_on_when_it_loses_its_connection(cut: Any, kv: KVBucket, pattern: bytes, after: bool) -> None:
    proxy, bucket = cut
    for key in "abc":
        kv.set(key, b"")
    proxy.cut_at(pattern, after=after)
    assert bucket.keys() == ["a", "b", "c"]
    assert proxy.cuts == 1


@pytest.mark.parametrize("after", [True, False])
@pytest.mark.parametrize(
    ("pattern", "call"),
    [
        (b"DIRECT.GET", lambda kv: kv.get("k")),
        (b"DIRECT.GET", lambda kv: kv.get_entry("k").value),
        (b"MSG.GET", lambda kv: kv.get_entry("k", revision=2).value),
        (b"CONSUMER.CREATE", lambda kv: kv.history("k")[-1].value),
        (b"MSG.NEXT", lambda kv: kv.history("k")[-1].value),
    ],
)
def test_reading_goes_on_when_it_loses_its_connection(
    cut: Any, kv: KVBucket, pattern: bytes, call: Any, after: bool
) -> None:
    proxy, bucket = cut
    for value in (b"1", b"2"):
        kv.set("k", value)
    proxy.cut_at(pattern, after=after)
    assert call(bucket) == b"2"
    assert proxy.cuts == 1


def test_what_our_user_may_not_do_is_told_at_once(run_nats_server: RunNatsServer) -> None:
    denied = "['$O.*.C.>', '$JS.API.CONSUMER.MSG.NEXT.>', '$KV.b.secret']"
    users = f"{{ user: u, password: p, permissions: {{ publish: {{ deny: {denied} }} }} }}, {{ user: a, password: p }}"
    server = run_nats_server(f"jetstream: enabled\nauthorization {{ users: [{users}] }}")
    with (
        mono_sync.connect(server.url, user="a", password="p") as allowed,
        mono_sync.connect(server.url, user="u", password="p", timeout=20) as connection,
    ):
        allowed.kv(KVBucketConfig("b", storage="memory")).set("k", b"v")
        allowed.objects(mono_sync.FSBucketConfig("b", storage="memory"))
        kv, objects = connection.kv("b"), connection.objects("b")
        for call in (lambda: kv.set("secret", b"v"), kv.keys, lambda: objects.put("o", bytes(300_000))):
            with pytest.raises(PermissionDeniedError):
                call()
        assert kv.get("k") == b"v"


def test_a_deadline_that_passed_names_call_key_and_bucket(kv: KVBucket, objects: ObjectBucket) -> None:
    for call, operation in (
        (lambda: kv.get("k", timeout=0), f"reading key 'k' of bucket {kv.name!r}"),
        (lambda: kv.set("k", b"", timeout=0), f"writing key 'k' of bucket {kv.name!r}"),
        (lambda: kv.keys("a.*", timeout=0), f"listing keys 'a.*' of bucket {kv.name!r}"),
        (lambda: kv.status(timeout=0), f"status of bucket {kv.name!r}"),
        (lambda: objects.get("o", timeout=0), f"looking for object 'o' of bucket {objects.name!r}"),
        (lambda: objects.put("o", b"v", timeout=0), f"storing object 'o' of bucket {objects.name!r}"),
        (lambda: objects.delete("o", timeout=0), f"deleting object 'o' of bucket {objects.name!r}"),
        (lambda: objects.list(timeout=0), f"listing objects of bucket {objects.name!r}"),
    ):
        with pytest.raises(OperationTimeoutError, match=f"^{re.escape(operation)} timed out after 0 s$") as caught:
            call()
        assert (caught.value.operation, caught.value.timeout) == (operation, 0)


def test_permission_that_goes_away_after_a_lost_answer_leaves_the_outcome_open(
    run_nats_server: RunNatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = run_nats_server(restricting("nothing"))
    settle, first = ExactlyOnce._settle, iter([True])
    options: dict[str, Any] = {"reconnect_wait": 0.01, "reconnect_max_wait": 0.05, "password": "p"}
    with (
        mono_sync.connect(server.url, user="a", **options) as admin,
        CutProxy(server.url) as proxy,
        mono_sync.connect(proxy.url, user="u", **options) as limited,
    ):
        kv = admin.kv(KVBucketConfig("b", storage="file"))

        def restrict(writer: ExactlyOnce, write: Write, deadline: Deadline) -> int:
            if next(first, False):
                wait_until(lambda: "k" in kv, "it is stored")
                server.kill()
                server.configure(restricting("$KV.b.>"))
                server.start()
            return settle(writer, write, deadline)

        monkeypatch.setattr(ExactlyOnce, "_settle", restrict)
        proxy.cut_at(b"$KV.b.k", after=True)
        with pytest.raises(OutcomeUnknownError, match="no permission"):
            limited.kv("b").set("k", b"mine")
        assert kv.get("k") == b"mine"
        with pytest.raises(PermissionDeniedError):
            limited.kv("b").set("k", b"later")


def test_write_that_was_overwritten_in_a_bucket_made_anew_is_not_taken_for_one_that_never_was(
    run_nats_server: RunNatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = run_nats_server("jetstream: enabled")
    settle, first = ExactlyOnce._settle, iter([True])
    options: dict[str, Any] = {"reconnect_wait": 0.01, "reconnect_max_wait": 0.05}
    with (
        mono_sync.connect(server.url, **options) as another,
        CutProxy(server.url) as proxy,
        mono_sync.connect(proxy.url, **options) as connection,
    ):
        kv = another.kv(KVBucketConfig("b", storage="file"))
        ours = connection.kv("b")
        ours.set_many({str(number): b"x" for number in range(50)})
        raw_kv(kv).delete()
        kv = another.kv(KVBucketConfig("b", storage="file"))
        ours.set("other", b"x")

        def overwrite_twice(writer: ExactlyOnce, write: Write, deadline: Deadline) -> int:
            if next(first, False):
                wait_until(lambda: "k" in kv, "it is stored")
                kv.set("k", b"theirs 1")
                kv.set("k", b"theirs 2")
                server.stop()
                server.start()
            return settle(writer, write, deadline)

        monkeypatch.setattr(ExactlyOnce, "_settle", overwrite_twice)
        proxy.cut_at(b"$KV.b.k", after=True)
        with pytest.raises(OutcomeUnknownError):
            ours.set("k", b"mine", timeout=20)
        assert kv.get("k", timeout=10) == b"theirs 2"
