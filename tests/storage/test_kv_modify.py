"""Values changed by functions of them: nothing is lost, everybody gets through."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta

import pytest

import mono_sync
from mono_sync import (
    BucketConfigError,
    ConflictRetriesExhaustedError,
    Connection,
    InvalidKeyError,
    KVBucket,
    KVBucketConfig,
    Operation,
    OperationTimeoutError,
    RetryPolicy,
    RevisionMismatchError,
    UnsupportedByServerError,
)
from mono_sync.server import EmbeddedServer
from tests.fixtures.processes import Program
from tests.fixtures.servers import RunNatsServer
from tests.fixtures.waiting import wait_until
from tests.storage.helpers import api_calls, raw_kv, together

THREADS, PROCESSES, TIMES = 64, 4, 10
PATIENT = RetryPolicy(attempts=10_000, timeout=None)
# Before a write, or in it.
OUT_OF_TIME = r"( timed out after 0\.1 s|: it is not known whether it happened: no answer within 0\.1 s)"


def _add_one(value: bytes | None) -> bytes:
    return b"%d" % (int(value or b"0") + 1)


# --- one key


def test_value_is_replaced_by_what_the_function_makes_of_it(any_kv: KVBucket) -> None:
    any_kv.set("k", b"41")
    entry = any_kv.modify("k", _add_one)
    assert any_kv.get("k") == b"42"
    assert (entry.bucket, entry.key, entry.value, entry.operation) == (any_kv.name, "k", b"42", Operation.PUT)
    assert entry.revision == any_kv.get_entry("k").revision
    assert abs(entry.created - datetime.now(UTC)) < timedelta(seconds=10)


@pytest.mark.parametrize("before", ["nothing", "deleted", "purged"])
def test_function_gets_none_for_a_key_that_is_not_there(any_kv: KVBucket, before: str) -> None:
    if before != "nothing":
        any_kv.set("k", b"old")
        (any_kv.delete if before == "deleted" else any_kv.purge)("k")
    seen = list[bytes | None]()

    def note(value: bytes | None) -> bytes:
        seen.append(value)
        return b"new"

    assert any_kv.modify("k", note).revision == any_kv.get_entry("k").revision
    assert seen == [None]


@pytest.mark.parametrize("there", [True, False])
def test_none_deletes_the_key(any_kv: KVBucket, *, there: bool) -> None:
    if there:
        any_kv.set("k", b"v")
    entry = any_kv.modify("k", lambda _: None)
    assert (entry.value, entry.operation) == (b"", Operation.DELETE)
    assert any_kv.get("k") is None
    assert any_kv.history("k")[-1].revision == entry.revision


def test_function_is_called_again_when_somebody_came_in_between(any_kv: KVBucket) -> None:
    any_kv.set("k", b"0")
    calls = list[bytes | None]()

    def change(value: bytes | None) -> bytes:
        calls.append(value)
        if len(calls) < 3:
            any_kv.set("k", b"%d" % len(calls))
        return b"mine"

    any_kv.modify("k", change)
    assert calls == [b"0", b"1", b"2"]
    assert any_kv.get("k") == b"mine"


def test_key_that_somebody_deletes_or_creates_in_between_is_read_again(any_kv: KVBucket) -> None:
    calls = list[bytes | None]()

    def change(value: bytes | None) -> bytes:
        calls.append(value)
        if len(calls) == 1:
            any_kv.create("k", b"theirs")
        if len(calls) == 2:
            any_kv.delete("k")
        return b"mine"

    any_kv.modify("k", change)
    assert calls == [None, b"theirs", None]
    assert any_kv.get("k") == b"mine"


def test_exception_in_the_function_passes_through_and_nothing_is_written(kv: KVBucket) -> None:
    kv.set("k", b"v")
    with pytest.raises(ZeroDivisionError):
        kv.modify("k", lambda _: b"%d" % (1 // 0))
    with pytest.raises(TypeError, match=re.escape("call .encode() first")):
        kv.modify("k", lambda _: "text")  # type: ignore[arg-type,return-value]
    assert kv.get("k") == b"v"


def test_policy_bounds_the_attempts(kv: KVBucket) -> None:
    def interfere(value: bytes | None) -> bytes:
        kv.set("k", b"theirs")
        return b"mine"

    with pytest.raises(ConflictRetriesExhaustedError) as caught:
        kv.modify("k", interfere, retry=RetryPolicy(attempts=3, initial_wait=0))
    assert (caught.value.attempts, caught.value.bucket, caught.value.key) == (3, kv.name, "k")
    assert isinstance(caught.value.__cause__, RevisionMismatchError)


def test_deadline_bounds_all_attempts_together(kv: KVBucket) -> None:
    def interfere(value: bytes | None) -> bytes:
        kv.set("k", b"theirs")
        return b"mine"

    with pytest.raises(OperationTimeoutError, match=f"key 'k' of bucket '{kv.name}'{OUT_OF_TIME}"):
        kv.modify("k", interfere, timeout=0.1, retry=PATIENT)
    with pytest.raises(OperationTimeoutError, match=f"of bucket '{kv.name}'{OUT_OF_TIME}"):
        kv.modify_many(["k"], lambda values: {"k": interfere(values["k"])}, timeout=0.1, retry=PATIENT)


def test_ttl_of_what_is_written_expires(kv: KVBucket) -> None:
    kv.modify("k", lambda _: b"v", ttl=1)
    kv.modify_many(["l", "m"], lambda _: {"l": b"v", "m": b"v"}, ttl=1)
    assert sorted(kv.keys()) == ["k", "l", "m"]
    wait_until(lambda: not kv.keys(), "they have expired")
    assert kv.modify("k", _add_one).value == b"1"


def test_bad_arguments_are_refused_before_the_function_is_called(kv: KVBucket) -> None:
    def never(_: object) -> bytes:
        pytest.fail("called")

    cases: list[tuple[type[Exception], Callable[[], object]]] = [
        (InvalidKeyError, lambda: kv.modify("a:b", never)),
        (ValueError, lambda: kv.modify("k", never, ttl=0.1)),
        (ValueError, lambda: kv.modify("k", never, timeout=-1)),
        (InvalidKeyError, lambda: kv.modify_many(["a:b"], never)),  # type: ignore[arg-type]
        (TypeError, lambda: kv.modify_many("key", never)),  # type: ignore[arg-type]
        (ValueError, lambda: kv.modify_many(["k"], never, timeout=-1)),  # type: ignore[arg-type]
        (ValueError, lambda: kv.modify_many([f"k{number}" for number in range(1001)], never)),  # type: ignore[arg-type]
    ]
    with api_calls(kv) as calls:
        for error, call in cases:
            with pytest.raises(error):
                call()
        assert calls() == []


# --- many keys


def test_many_values_are_replaced_at_once(kv: KVBucket) -> None:
    kv.set("a", b"1")
    kv.set("gone", b"1")
    seen = list[dict[str, bytes | None]]()

    def change(values: dict[str, bytes | None]) -> dict[str, bytes | None]:
        seen.append(values)
        return {"a": b"2", "b": b"3", "gone": None}

    revisions = kv.modify_many(["a", "gone", "b", "left", "a"], change)
    assert seen == [{"a": b"1", "gone": b"1", "b": None, "left": None}]
    assert (kv.get("a"), kv.get("b"), kv.get("gone"), kv.get("left")) == (b"2", b"3", None, None)
    assert revisions == {key: kv.history(key)[-1].revision for key in ("a", "b", "gone")}


def test_keys_that_are_left_out_must_not_change_either(kv: KVBucket) -> None:
    kv.set("limit", b"10")
    calls = list[bytes | None]()

    def change(values: dict[str, bytes | None]) -> dict[str, bytes]:
        calls.append(values["limit"])
        if len(calls) == 1:
            kv.set("limit", b"20")
        return {"a": values["limit"] or b"", "b": b""}

    kv.modify_many(["a", "b", "limit"], change)
    assert calls == [b"10", b"20"]
    assert kv.get("a") == b"20"


def test_function_may_leave_everything_as_it_is(kv: KVBucket) -> None:
    kv.set("a", b"1")
    before = raw_kv(kv).state["last_seq"]
    assert kv.modify_many(["a", "b"], lambda _: {}) == {}
    assert raw_kv(kv).state["last_seq"] == before


def test_function_must_not_return_keys_that_were_not_asked_for(kv: KVBucket) -> None:
    with pytest.raises(ValueError, match=re.escape("the function returned keys that were not asked for: ['b', 'c']")):
        kv.modify_many(["a"], lambda _: {"a": b"1", "c": b"1", "b": b"1"})
    assert kv.keys() == []


def test_function_must_return_a_mapping(kv: KVBucket) -> None:
    with pytest.raises(TypeError, match="must return a mapping of keys to values, not NoneType"):
        kv.modify_many(["a"], lambda _: None)  # type: ignore[arg-type,return-value]


@pytest.mark.old_server
def test_old_server_changes_one_key_and_not_many(old_connection: Connection) -> None:
    kv = old_connection.kv(KVBucketConfig("modified", storage="memory"))
    assert kv.modify("k", _add_one).value == b"1"
    with pytest.raises(UnsupportedByServerError, match="a transaction"):
        kv.modify_many(["k"], lambda _: {"k": b"v"})


def test_bucket_of_another_client_changes_one_key_and_not_many(kv: KVBucket, connection: Connection) -> None:
    raw_kv(kv).update(allow_atomic=False)
    others = connection.kv(kv.name)
    assert others.modify("k", _add_one).value == b"1"
    with pytest.raises(BucketConfigError, match="it allows no transactions"):
        others.modify_many(["k"], lambda _: {"k": b"v"})


# --- many at once


CHILD = """
import sys
from mono_sync import connect
server, token, name, times = sys.argv[1:]
with connect(server, token=token) as connection:
    kv = connection.kv(name)
    print("ready", flush=True)
    sys.stdin.readline()
    for _ in range(int(times)):
        kv.modify("counter", lambda value: b"%d" % (int(value or b"0") + 1), timeout=40)
"""


def test_64_threads_and_4_processes_count_together_and_lose_nothing(kv: KVBucket, nats_server: EmbeddedServer) -> None:
    def count(_: int) -> None:
        for _ in range(TIMES):
            kv.modify("counter", _add_one, timeout=40)

    with ExitStack() as stack:
        arguments = (nats_server.url, nats_server.token, kv.name, str(TIMES))
        programs = [stack.enter_context(Program(CHILD, *arguments)) for _ in range(PROCESSES)]
        assert [program.line() for program in programs] == ["ready"] * PROCESSES
        for program in programs:
            program.send("go")
        together(THREADS, count)
        assert [program.finish()[0] for program in programs] == [0] * PROCESSES
    assert kv.get("counter") == b"%d" % ((THREADS + PROCESSES) * TIMES)


def test_16_threads_change_many_keys_together_and_lose_nothing(kv: KVBucket) -> None:
    keys = ["a", "b", "c"]

    def count(_: int) -> None:
        for _ in range(5):
            kv.modify_many(keys, lambda values: {key: _add_one(value) for key, value in values.items()}, timeout=40)

    together(16, count)
    assert [kv.get(key) for key in keys] == [b"80"] * 3


def test_changes_survive_the_restart_of_the_server(run_nats_server: RunNatsServer) -> None:
    server = run_nats_server("jetstream {}")
    with mono_sync.connect(server.url, reconnect_wait=0.02, reconnect_max_wait=0.1) as connection:
        kv = connection.kv(KVBucketConfig("counters", history=64))

        def count(number: int) -> None:
            for turn in range(10):
                kv.modify("counter", _add_one, timeout=40, retry=PATIENT)
                if number == 0 and turn in (3, 6):
                    server.kill()
                    server.start()

        together(8, count)
        assert kv.get("counter") == b"80"
