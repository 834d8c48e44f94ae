"""keys() finds every key once, whatever happens meanwhile, and leaves nothing behind."""

from __future__ import annotations

import queue
import random
import time
from datetime import UTC, datetime, timedelta

import pytest

import mono_sync
from mono_sync import (
    BucketNotFoundError,
    InvalidKeyError,
    JetStreamAPIError,
    KVBucket,
    KVBucketConfig,
    OperationTimeoutError,
)
from mono_sync._durations import Deadline
from mono_sync.adapter import Listening, Message
from mono_sync.connection import JetStream, _answers, _jetstream
from tests.fixtures.servers import RunNatsServer
from tests.fixtures.waiting import wait_until
from tests.storage.conftest import NewKV
from tests.storage.helpers import raw_kv, write_at_once
from tests.support.peer import Answer, Peer
from tests.support.threads import Repeated

KEYS = ["a", "a.b", "a.b.c", "a.c", "b.b", "b/b", "ab"]


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        (">", KEYS),
        ("a", ["a"]),
        ("a.b", ["a.b"]),
        ("*", ["a", "ab", "b/b"]),
        ("a.*", ["a.b", "a.c"]),
        ("a.>", ["a.b", "a.b.c", "a.c"]),
        ("*.b", ["a.b", "b.b"]),
        ("*.*", ["a.b", "a.c", "b.b"]),
        ("*.*.>", ["a.b.c"]),
        ("c.>", []),
    ],
)
def test_keys_that_match_the_pattern_are_found(any_kv: KVBucket, pattern: str, found: list[str]) -> None:
    for key in KEYS:
        any_kv.set(key, b"")
    assert sorted(any_kv.keys(pattern)) == sorted(found)


@pytest.mark.parametrize(
    ("pattern", "rule"),
    [
        ("a*", "\\* alone"),
        ("a.b*", "\\* alone"),
        (">.a", "> must be the last token"),
        ("a..b", "single dots"),
        (".", "single dots"),
        ("a.", "single dots"),
        ("a b", "letters, digits"),
        ("a\n", "letters, digits"),
        ("a:b", "letters, digits"),
        ("", "it is empty"),
    ],
)
def test_bad_pattern_is_refused_with_the_rule(kv: KVBucket, pattern: str, rule: str) -> None:
    with pytest.raises(InvalidKeyError, match=f"(?s)invalid pattern .*{rule}"):
        kv.keys(pattern)


def test_pattern_that_is_no_str_is_refused(kv: KVBucket) -> None:
    with pytest.raises(TypeError, match="the pattern must be a str, not bytes"):
        kv.keys(b"*")  # type: ignore[arg-type]


def test_keys_come_in_the_order_of_their_last_writes(any_kv: KVBucket) -> None:
    for key in "dacb":
        any_kv.set(key, b"")
    any_kv.set("a", b"")
    assert any_kv.keys() == ["d", "c", "b", "a"]


def test_each_key_comes_once_also_with_history(any_new_kv: NewKV) -> None:
    kv = any_new_kv(history=10)
    for _ in range(5):
        for key in "abc":
            kv.set(key, b"")
    kv.delete("b")
    assert kv.keys() == ["a", "c"]


def test_keys_of_large_values_are_found_without_reading_them(any_kv: KVBucket) -> None:
    for number in range(10):
        any_kv.set(f"k{number}", bytes(500_000))
    assert len(any_kv.keys()) == 10


@pytest.mark.parametrize(("count", "calls"), [(0, 300), (1, 300), (500, 15)])
def test_a_bucket_at_rest_always_gives_all_its_keys(any_kv: KVBucket, count: int, calls: int) -> None:
    names = [f"k{number}" for number in range(count)]
    for key in names:
        any_kv.set(key, b"")
    for _ in range(calls):
        assert any_kv.keys() == names


@pytest.mark.parametrize(("history", "count", "calls"), [(1, 20, 50), (4, 20, 50), (4, 300, 10)])
def test_keys_that_are_there_all_the_time_are_never_left_out(
    any_new_kv: NewKV, history: int, count: int, calls: int
) -> None:
    kv = any_new_kv(history=history)
    names = [f"k{number}" for number in range(count)]
    for key in names:
        kv.set(key, b"")
    choice = random.Random(7).choice
    with Repeated([lambda: kv.set(choice(names), b"x")] * 8):
        for _ in range(calls):
            assert sorted(kv.keys()) == sorted(names)


def test_keys_that_come_and_go_do_not_hide_others(any_kv: KVBucket) -> None:
    names = [f"k{number}" for number in range(50)]
    for key in names:
        any_kv.set(key, b"")
    numbers = iter(range(10**9))

    def come_and_go() -> None:
        key = f"other{next(numbers)}"
        any_kv.set(key, b"")
        any_kv.purge(key)

    with Repeated([come_and_go] * 4):
        for _ in range(30):
            found = any_kv.keys("*")
            assert set(names) <= set(found)
            assert len(found) == len(set(found))


# --- the consumer behind it


def _no_consumers_left(kv: KVBucket, timeout: float = 3) -> None:
    wait_until(lambda: not raw_kv(kv).consumers(), "the consumers are deleted", timeout=timeout)


def test_no_consumer_is_left_on_the_server(any_kv: KVBucket) -> None:
    for number in range(20):
        any_kv.set(f"k{number}", b"")
        any_kv.keys()
    _no_consumers_left(any_kv)


def test_no_consumer_is_left_after_a_timeout(any_kv: KVBucket) -> None:
    for number in range(200):
        any_kv.set(f"k{number}", b"")
    timed_out = 0
    for number in range(100):
        try:
            any_kv.keys(timeout=number * 0.0002)
        except OperationTimeoutError:
            timed_out += 1
    assert timed_out
    _no_consumers_left(
        any_kv, timeout=20
    )  # the server works on several orders at once, and may delete before it creates


def test_no_consumer_is_left_when_the_reader_gives_up(any_kv: KVBucket) -> None:
    for number in range(10):
        any_kv.set(f"k{number}", b"")
    messages = JetStream(any_kv._connection).pull(
        f"KV_{any_kv.name}", ">", Deadline(5), policy="last_per_subject", batch=3
    )
    assert next(messages).subject == f"$KV.{any_kv.name}.k0"
    assert len(raw_kv(any_kv).consumers()) == 1
    messages.close()  # type: ignore[attr-defined]  # a generator
    _no_consumers_left(any_kv)


@pytest.mark.parametrize("batch", [1, 3, 5, 100])
@pytest.mark.parametrize("policy", ["all", "last_per_subject"])
def test_every_message_is_pulled_once_in_order_with_any_batch(any_new_kv: NewKV, batch: int, policy: str) -> None:
    kv = any_new_kv(history=3)
    for number in range(30):
        kv.set(f"k{number % 15}", str(number).encode())
    started = time.monotonic()
    pulled = list(JetStream(kv._connection).pull(f"KV_{kv.name}", "$KV.>", Deadline(5), policy=policy, batch=batch))
    assert [message.sequence for message in pulled] == list(range(1 if policy == "all" else 16, 31))
    assert pulled[-1].data == b"29"
    assert time.monotonic() - started < 0.9  # no pull had to run out


@pytest.mark.parametrize("gone", ["all", "last", "first"])
def test_messages_that_vanish_before_the_pull_cost_no_more_than_its_time(
    any_kv: KVBucket, monkeypatch: pytest.MonkeyPatch, impatient: None, gone: str
) -> None:
    names = [f"k{number}" for number in range(5)]
    for key in names:
        any_kv.set(key, b"")
    create = JetStream._create_consumer

    def create_and_purge(self: JetStream, *arguments: object, **options: object) -> object:
        consumer = create(self, *arguments, **options)  # type: ignore[arg-type]
        pattern = {"all": ">", "last": f"$KV.{any_kv.name}.k4", "first": f"$KV.{any_kv.name}.k0"}[gone]
        raw_kv(any_kv).purge(pattern)
        return consumer

    monkeypatch.setattr(JetStream, "_create_consumer", create_and_purge)
    started = time.monotonic()
    assert any_kv.keys() == {"all": [], "last": names[:4], "first": names[1:]}[gone]
    assert time.monotonic() - started < 1
    _no_consumers_left(any_kv)


def test_keys_that_are_overwritten_before_the_pull_cost_no_time(
    any_kv: KVBucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"k{number}" for number in range(5)]
    create = JetStream._create_consumer

    def create_and_overwrite(self: JetStream, *arguments: object, **options: object) -> object:
        consumer = create(self, *arguments, **options)  # type: ignore[arg-type]
        for key in names:
            any_kv.set(key, b"new")  # old servers now take ten messages for pending
        return consumer

    for key in names:
        any_kv.set(key, b"")
    monkeypatch.setattr(JetStream, "_create_consumer", create_and_overwrite)
    started = time.monotonic()
    assert any_kv.keys() == names
    assert time.monotonic() - started < 0.8


def test_more_keys_than_the_server_names_at_once_are_all_found(kv: KVBucket) -> None:
    count = 100_001  # subjects in one answer: 100,000
    write_at_once(kv, (f"k{number}" for number in range(count)))
    found = kv.keys(timeout=30)
    assert len(found) == count
    assert len(set(found)) == count


def test_two_pulls_in_a_row_without_a_message_are_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Old servers may count messages as pending for ever that are gone."""
    asked: list[str] = []

    def answer(subject: str, reply: str) -> Answer | None:
        call = ".".join(subject.split(".")[2:4])
        asked.append(call)
        return {
            "CONSUMER.CREATE": {"num_pending": 5},
            "CONSUMER.MSG": b"NATS/1.0 408 Request Timeout\r\n\r\n",
            "CONSUMER.INFO": {"num_pending": 5},
            "CONSUMER.DELETE": None,
        }[call]

    with Peer(answer) as peer, mono_sync.connect(peer.url) as connection:
        assert list(JetStream(connection).pull("S", ">", Deadline(5), policy="all")) == []
        assert asked.count("CONSUMER.MSG") == 2


@pytest.mark.parametrize(("config", "prefix"), [("domain: hub", "$JS.ACK.hub."), ("", "$JS.ACK._.")])
def test_messages_that_name_the_servers_domain_are_understood(
    run_nats_server: RunNatsServer, config: str, prefix: str
) -> None:
    """Their reply subjects have domain and account in front (ADR-15)."""
    server = run_nats_server(f"jetstream {{ {config} }}\nfeature_flags {{ js_ack_fc_v2: true }}")
    seen: queue.SimpleQueue[str] = queue.SimpleQueue()
    watching = Listening("_INBOX.>", lambda message: seen.put(message.reply), lambda error: None)
    with mono_sync.connect(server.url) as connection:
        kv = connection.kv(KVBucketConfig("b", storage="memory"))
        for key in "aab":
            kv.set(key, b"v")
        connection.start_listening(watching, Deadline(5))
        pulled = list(JetStream(connection).pull("KV_b", ">", Deadline(5), policy="last_per_subject"))
        assert [(message.subject, message.sequence) for message in pulled] == [("$KV.b.a", 2), ("$KV.b.b", 3)]
        assert [message.pending for message in pulled] == [1, 0]
        assert abs(pulled[0].time - kv.get_entry("a").created) < timedelta(milliseconds=1)
        connection.flush()
    replies = [seen.get() for _ in range(seen.qsize())]
    assert [len(reply.split(".")) for reply in replies if reply.startswith(prefix)] == [11, 11]


def test_all_forms_of_a_delivered_messages_place_are_read() -> None:
    place = "S.c.1.7.3.1700000000000000000.4"
    for reply in (f"$JS.ACK.{place}", f"$JS.ACK.hub.account.{place}", f"$JS.ACK.hub.account.{place}.random"):
        message = _answers.read_delivered(Message("s", b"", reply))
        assert (message.sequence, message.pending) == (7, 4)
        assert message.time == datetime.fromtimestamp(1_700_000_000, UTC)


@pytest.mark.parametrize("what", ["consumer", "stream"])
def test_consumer_that_vanishes_before_the_pull_is_an_error_and_no_hang(
    any_kv: KVBucket, monkeypatch: pytest.MonkeyPatch, impatient: None, what: str
) -> None:
    any_kv.set("k", b"")
    raw = raw_kv(any_kv)
    create = JetStream._create_consumer

    def create_and_delete(self: JetStream, *arguments: object, **options: object) -> object:
        consumer = create(self, *arguments, **options)  # type: ignore[arg-type]
        if what == "stream":
            raw.delete()
        else:
            raw.api(f"CONSUMER.DELETE.{{stream}}.{consumer['name']}")
        return consumer

    monkeypatch.setattr(JetStream, "_create_consumer", create_and_delete)
    started = time.monotonic()
    with pytest.raises(BucketNotFoundError if what == "stream" else JetStreamAPIError):
        any_kv.keys(timeout=None)
    assert time.monotonic() - started < 5


def test_pull_whose_time_runs_out_with_messages_pending_is_repeated(
    kv: KVBucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(5):
        kv.set(f"k{number}", b"")
    api, answers = JetStream.api, []

    def api_with_messages_pending_once(self: JetStream, subject: str, *arguments: object, **options: object) -> object:
        answer = api(self, subject, *arguments, **options)  # type: ignore[arg-type]
        if subject.startswith("CONSUMER.INFO"):
            answers.append(answer["num_pending"])
            if len(answers) == 1:  # a server that stalled: the messages are only coming now
                kv.set("late", b"")
                return answer | {"num_pending": 1}
        return answer

    monkeypatch.setattr(JetStream, "api", api_with_messages_pending_once)
    monkeypatch.setattr(_jetstream, "_PULL_TIME", 0.05)
    create = JetStream._create_consumer

    def create_and_purge(self: JetStream, *arguments: object, **options: object) -> object:
        consumer = create(self, *arguments, **options)  # type: ignore[arg-type]
        raw_kv(kv).purge(">")
        return consumer

    monkeypatch.setattr(JetStream, "_create_consumer", create_and_purge)
    pulled = list(JetStream(kv._connection).pull(f"KV_{kv.name}", ">", Deadline(5), policy="all"))
    assert [message.subject for message in pulled] == [f"$KV.{kv.name}.late"]


def test_what_others_publish_under_no_key_is_no_key(any_kv: KVBucket) -> None:
    """Nobody could read it, and watchers leave it out as well."""
    any_kv.set("a", b"v")
    for nonsense in ("a:b", "we*ird", "w\u00e9", "$a"):
        raw_kv(any_kv).put(f"$KV.{any_kv.name}.{nonsense}", b"v")
    assert any_kv.keys() == list(any_kv) == ["a"]
    assert len(any_kv) == any_kv.status().keys == 1
    with any_kv.watch_all() as watcher:
        assert [entry.key for entry in watcher.snapshot()] == ["a"]
