"""An inbox ends with its ``with``, whatever interrupts it, and learns why nothing will come."""

from __future__ import annotations

import gc

import pytest

from mono_sync import Connection, MonoError, PermissionDeniedError
from mono_sync._durations import Deadline
from mono_sync.connection import Inbox, _inbox
from tests.connection.conftest import Connect
from tests.fixtures.servers import RunNatsServer

ECHO = "$JS.API.INFO"


@pytest.fixture
def connection(run_nats_server: RunNatsServer, connect: Connect) -> Connection:
    return connect(run_nats_server("jetstream: enabled").url)


def _subscriptions(connection: Connection) -> int:
    """Count them where they would be replayed from."""
    assert connection._session is not None
    client = connection._session.link._client
    assert client is not None
    return len(client._subs)


def _inboxes(connection: Connection) -> int:
    assert connection._session is not None
    return len(connection._session.link._inboxes)


def test_answers_come_in_order(connection: Connection) -> None:
    with connection.inbox(Deadline(5)) as inbox:
        for _ in range(3):
            inbox.ask(ECHO, b"")
        assert all(b"memory" in inbox.next("test").data for _ in range(3))
        assert inbox.poll(0.01) is None


def test_it_costs_no_subscription_and_nothing_is_left_after_it(connection: Connection) -> None:
    before = _subscriptions(connection)
    for _ in range(3):
        with connection.inbox(Deadline(5)) as inbox:
            inbox.receive_from("a consumer")
            inbox.receive_from("another")
            assert _inboxes(connection) == 2
            assert _subscriptions(connection) == before
        assert _inboxes(connection) == 0


def test_what_comes_for_an_inbox_that_has_ended_is_dropped(connection: Connection) -> None:
    with connection.inbox(Deadline(5)) as ended:
        pass
    with connection.inbox(Deadline(5)) as inbox:
        connection.publish(ended.subject, b"late")
        connection.publish(inbox.subject, b"in time")
        assert inbox.next("test").data == b"in time"


def test_each_of_many_inboxes_gets_its_own_answers(connection: Connection) -> None:
    inboxes = [connection.inbox(Deadline(5)) for _ in range(100)]
    for inbox in inboxes:
        inbox.open()
    for number, inbox in enumerate(inboxes):
        connection.publish(inbox.subject, b"%d" % number)
    assert [inbox.next("test").data for inbox in inboxes] == [b"%d" % number for number in range(100)]
    for inbox in inboxes:
        inbox.close()


def test_an_interrupt_while_it_begins_leaves_nothing(connection: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    begin = Inbox.open

    def interrupted(inbox: Inbox) -> None:
        begin(inbox)
        raise KeyboardInterrupt

    monkeypatch.setattr(Inbox, "open", interrupted)
    with pytest.raises(KeyboardInterrupt), connection.inbox(Deadline(5)):
        pass
    gc.collect()
    assert _inboxes(connection) == 0


def test_an_interrupt_while_it_is_made_leaves_nothing(connection: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(_inbox, "Listening", interrupted)
    with pytest.raises(KeyboardInterrupt):
        connection.inbox(Deadline(5))
    gc.collect()
    assert _inboxes(connection) == 0


def test_an_interrupt_while_it_ends_leaves_nothing(connection: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    inbox = connection.inbox(Deadline(5))
    with monkeypatch.context() as patch:
        patch.setattr(type(inbox), "__exit__", interrupted)
        with pytest.raises(KeyboardInterrupt), inbox:
            pass
    del inbox
    gc.collect()
    assert _inboxes(connection) == 0


def test_a_forbidden_subject_is_told_at_once(run_nats_server: RunNatsServer, connect: Connect) -> None:
    user = "{ user: u, password: p, permissions: { publish: { deny: ['Secret.>'] } } }"
    connection = connect(run_nats_server(f"authorization {{ users: [{user}] }}").url, user="u", password="p")
    with connection.inbox(Deadline(20)) as inbox:
        inbox.ask("Secret.Plan", b"")
        with pytest.raises(PermissionDeniedError) as caught:
            inbox.next("test")
    assert caught.value.subject == "Secret.Plan"
    assert isinstance(caught.value, MonoError)
    assert connection.is_connected


def test_a_wait_longer_than_any_clock_can_tell_is_for_ever(connection: Connection) -> None:
    with connection.inbox(Deadline(1e10)) as inbox:
        inbox.ask(ECHO, b"")
        assert inbox.next("test").data


def test_each_message_travels_once(run_nats_server: RunNatsServer, connect: Connect) -> None:
    """The subscription that takes the answers to requests does not take them as well."""
    connection = connect(run_nats_server("jetstream: enabled").url)
    with connection.inbox(Deadline(5)) as inbox:
        seen: list[str] = []
        assert connection._session is not None
        link = connection._session.link
        answer = link._answer
        client = link._client
        assert client is not None
        for sid, sink in client._sinks.items():
            if sink == answer:
                client._sinks[sid] = lambda message: seen.append(message.subject)
        inbox.ask(ECHO, b"")
        assert inbox.next("test").data
        connection.flush()
    assert seen == []
