"""Publish and request: what arrives, and what is refused without harm to anybody else."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest

from mono_sync import (
    Connection,
    ConnectionClosedError,
    InvalidHeaderError,
    InvalidSubjectError,
    KVBucketConfig,
    MessageTooLargeError,
    NoRespondersError,
    OperationTimeoutError,
    PermissionDeniedError,
)
from mono_sync._durations import Deadline
from mono_sync.adapter import Listening, Message
from mono_sync.server import EmbeddedServer
from tests.connection.conftest import Connect
from tests.fixtures.servers import RunNatsServer
from tests.fixtures.waiting import wait_until
from tests.support.threads import Background


@pytest.fixture
def connection(any_server: EmbeddedServer, connect: Connect) -> Connection:
    return connect(any_server.url, token=any_server.token)


def test_a_message_arrives_with_subject_data_headers_and_reply(connection: Connection) -> None:
    with connection.inbox(Deadline(5)) as inbox:
        subject = inbox.subject
        connection.publish(subject, b"data", headers={"A": "1", "B-c": "zwei ä"}, reply="back.to.me")
        message = inbox.next("test")
    assert (message.subject, message.data, message.reply) == (subject, b"data", "back.to.me")
    assert message.headers == {"A": "1", "B-c": "zwei ä"}
    assert message.status is None


def test_messages_of_one_thread_arrive_in_order(connection: Connection) -> None:
    with connection.inbox(Deadline(10)) as inbox:
        for number in range(2000):
            connection.publish(inbox.subject, str(number).encode())
        assert [int(inbox.next("test").data) for _ in range(2000)] == list(range(2000))


@pytest.mark.parametrize("size", [0, 1, 4096, 1 << 20])
def test_payloads_of_every_size_arrive_whole(connection: Connection, size: int) -> None:
    payload = bytes(index % 251 for index in range(size))
    with connection.inbox(Deadline(5)) as inbox:
        connection.publish(inbox.subject, payload)
        assert inbox.next("test").data == payload


def test_a_request_returns_the_answer(connection: Connection) -> None:
    answer = connection.request("$JS.API.INFO", timeout=timedelta(seconds=2))
    assert b"memory" in answer.data


def test_an_answer_with_data_and_status_503_is_an_answer(connection: Connection) -> None:
    """Only an empty one says that nobody is subscribed."""
    session = connection._session
    assert session is not None
    with connection.inbox(Deadline(5)) as inbox, ThreadPoolExecutor(1) as pool:
        answer = pool.submit(connection.request, inbox.subject, timeout=5)
        reply, block = inbox.next("test").reply, b"NATS/1.0 503\r\n\r\n"
        command = f"HPUB {reply} {len(block)} {len(block) + 4}\r\n".encode() + block + b"data\r\n"
        session.loop.run(session.link.publish, command, deadline=Deadline(5), operation="answer")
        assert (answer.result(5).status, answer.result().data) == (503, b"data")


def test_requests_of_many_threads_get_their_own_answers(connection: Connection) -> None:
    bucket = connection.kv(KVBucketConfig("threads", storage="memory"))
    for number in range(64):
        bucket.set(f"k{number}", str(number).encode())

    def read(number: int) -> bool:
        key = number % 64
        return bucket.get(f"k{key}") == str(key).encode()

    with ThreadPoolExecutor(32) as pool:
        assert all(pool.map(read, range(2000)))


def test_nobody_there_is_told_at_once(connection: Connection) -> None:
    with pytest.raises(NoRespondersError) as caught:
        connection.request("nobody.here")
    assert caught.value.subject == "nobody.here"


def test_an_answer_that_never_comes_is_a_timeout(connection: Connection) -> None:
    with connection.inbox(Deadline(5)) as inbox, pytest.raises(OperationTimeoutError) as caught:
        connection.request(inbox.subject, timeout=0.2)
    assert (caught.value.operation, caught.value.timeout) == (f"request {inbox.subject}", 0.2)


def test_timeout_zero_sends_nothing(connection: Connection) -> None:
    with connection.inbox(Deadline(5)) as inbox:
        with pytest.raises(OperationTimeoutError):
            connection.publish(inbox.subject, b"never", timeout=0)
        connection.publish(inbox.subject, b"after")
        assert inbox.next("test").data == b"after"


@pytest.mark.parametrize("timeout", [-1, float("nan"), float("inf")])
def test_a_timeout_that_cannot_be_right_is_a_value_error(connection: Connection, timeout: float) -> None:
    with pytest.raises(ValueError, match="timeout"):
        connection.request("$JS.API.INFO", timeout=timeout)


def test_bad_subjects_headers_and_payloads_are_refused(connection: Connection) -> None:
    with pytest.raises(InvalidSubjectError):
        connection.publish("a b")
    with pytest.raises(InvalidSubjectError):
        connection.publish("a", reply="b\r\n")
    with pytest.raises(InvalidHeaderError):
        connection.publish("a", headers={"x": "1\r\n2"})
    with pytest.raises(TypeError):
        connection.publish("a", "text")  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        connection.request(b"a")  # type: ignore[arg-type]


@pytest.mark.parametrize("headers", [[("a", "b")], "x", [], ""])
def test_headers_that_are_no_mapping_are_named(connection: Connection, headers: Any) -> None:
    for call in (connection.publish, connection.request):
        with pytest.raises(TypeError, match="headers must be a mapping of str to str"):
            call("a", headers=headers)


def test_what_the_server_would_punish_is_refused_and_costs_nobody_the_connection(connection: Connection) -> None:
    client = connection.server_info.client_id
    limit = connection.server_info.max_payload
    with pytest.raises(InvalidSubjectError, match="one line"):
        connection.publish("x" * 5000)
    with pytest.raises(InvalidSubjectError, match="one line"):
        connection.request("x" * 4090, headers={"a": "b"})
    with pytest.raises(MessageTooLargeError) as caught:
        connection.publish("x", bytes(limit), headers={"a": "b"})
    assert caught.value.limit == limit
    connection.flush()
    assert connection.server_info.client_id == client


def test_the_longest_subject_and_the_largest_message_that_pass_are_taken(connection: Connection) -> None:
    client = connection.server_info.client_id
    limit = connection.server_info.max_payload
    connection.publish("x" * (4096 - len("PUB  0\r\n")))
    connection.publish("x" * (4096 - len("HPUB  18 18\r\n")), headers={"a": "b"})
    connection.publish("x", bytes(limit))
    connection.publish("x", bytes(limit - 18), headers={"a": "b"})
    connection.flush()
    assert connection.server_info.client_id == client


def test_a_forbidden_subject_is_told_at_once(run_nats_server: RunNatsServer, connect: Connect) -> None:
    user = "{ user: u, password: p, permissions: { publish: { deny: ['Secret.>'] } } }"
    server = run_nats_server(f"authorization {{ users: [{user}] }}")
    connection = connect(server.url, user="u", password="p")
    with pytest.raises(PermissionDeniedError) as caught:
        connection.request("Secret.Plan", timeout=5)
    assert caught.value.subject == "Secret.Plan"
    assert connection.is_connected
    connection.flush()


def test_a_forbidden_subject_is_no_other_that_differs_in_its_case(
    run_nats_server: RunNatsServer, connect: Connect
) -> None:
    user = "{ user: u, password: p, permissions: { publish: { deny: ['Secret.>'] } } }"
    server = run_nats_server(f"authorization {{ users: [{user}] }}")
    connection, other = (connect(server.url, user="u", password="p") for _ in range(2))
    arrived: queue.SimpleQueue[Message] = queue.SimpleQueue()
    other.start_listening(Listening("secret.plan", arrived.put, lambda error: None), Deadline(5))
    other.flush()
    with connection.inbox(Deadline(5)) as inbox:
        call = Background(lambda: connection.request("secret.plan", timeout=5))
        question = arrived.get(timeout=5)
        inbox.ask("secret.plan", b"")
        with pytest.raises(PermissionDeniedError):
            connection.request("Secret.plan", timeout=5)
        other.publish(question.reply, b"answer")
        assert call.result().data == b"answer"
        assert not inbox.arrived


def test_rtt_is_the_time_of_a_round_trip(connection: Connection) -> None:
    assert 0 < connection.rtt() < 5


def test_flush_returns_when_the_server_has_read_everything(any_server: EmbeddedServer, connect: Connect) -> None:
    one, two = (connect(any_server.url, token=any_server.token) for _ in range(2))
    with one.inbox(Deadline(5)) as inbox:
        one.flush()  # the subscription has arrived
        two.publish(inbox.subject, b"data")
        two.flush()
        assert inbox.next("test").data == b"data"


def test_a_closed_connection_refuses_and_says_so(connection: Connection) -> None:
    connection.close()
    for call in (connection.flush, lambda: connection.publish("a"), lambda: connection.request("a")):
        with pytest.raises(ConnectionClosedError, match="is closed"):
            call()


@pytest.mark.parametrize("call", [Connection.flush, Connection.rtt])
def test_a_closed_connection_reaches_nobody(call: Callable[[Connection], object], connection: Connection) -> None:
    connection.close()
    with pytest.raises(ConnectionClosedError, match="is closed"):
        call(connection)


def test_an_unopened_connection_says_what_to_do() -> None:
    connection = Connection()
    with pytest.raises(ConnectionClosedError, match=r"not open yet: call open\(\)"):
        connection.publish("a")


def test_drain_lets_the_request_under_way_have_its_answer(any_server: EmbeddedServer, connect: Connect) -> None:
    requester, responder = (connect(any_server.url, token=any_server.token) for _ in range(2))
    with responder.inbox(Deadline(10)) as inbox, ThreadPoolExecutor(2) as pool:
        responder.flush()
        answer = pool.submit(requester.request, inbox.subject, b"question", timeout=10)
        question = inbox.next("test")
        draining = threading.Event()

        def drain() -> None:
            draining.set()
            requester.drain()

        drained = pool.submit(drain)
        draining.wait(5)
        responder.publish(question.reply, b"answer")
        assert answer.result(10).data == b"answer"
        drained.result(10)
    with pytest.raises(ConnectionClosedError):
        requester.flush()


def test_drain_refuses_what_is_new(any_server: EmbeddedServer, connect: Connect) -> None:
    requester, responder = (connect(any_server.url, token=any_server.token) for _ in range(2))
    with responder.inbox(Deadline(20)) as inbox, ThreadPoolExecutor(2) as pool:
        responder.flush()
        answer = pool.submit(requester.request, inbox.subject, b"question", timeout=20)
        question = inbox.next("test")
        drained = pool.submit(requester.drain, timeout=20)

        def refused() -> bool:
            try:
                requester.publish("x")
            except ConnectionClosedError as error:
                return "draining" in str(error)
            return False

        wait_until(refused, "it refuses new messages")
        for call in (requester.flush, requester.rtt, lambda: requester.request("x")):
            with pytest.raises(ConnectionClosedError, match="draining"):
                call()
        with requester.inbox(Deadline(5)) as refused_too, pytest.raises(ConnectionClosedError, match="draining"):
            refused_too.ask("x", b"")
        responder.publish(question.reply, b"answer")
        assert answer.result(10).data == b"answer"
        drained.result(10)


def test_drain_gives_up_at_its_deadline_and_closes(any_server: EmbeddedServer, connect: Connect) -> None:
    requester, responder = (connect(any_server.url, token=any_server.token) for _ in range(2))
    with responder.inbox(Deadline(10)) as inbox, ThreadPoolExecutor(1) as pool:
        responder.flush()
        answer = pool.submit(requester.request, inbox.subject, timeout=30)
        inbox.next("test")
        with pytest.raises(OperationTimeoutError, match="draining"):
            requester.drain(timeout=0.2)
        with pytest.raises(ConnectionClosedError):
            answer.result(5)
