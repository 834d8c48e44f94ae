"""JetStream's API, as blocking calls on a connection.

JSON over request/reply, spoken directly: nats-py's own layer drops options that we need (compression, placement), and
its key-value and object stores give wrong answers in cases that our users meet.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, suppress
from time import monotonic, sleep

from mono_sync._durations import Deadline
from mono_sync.adapter import Message, OtherServerError
from mono_sync.connection._answers import (
    Json,
    StoredMessage,
    place_of,
    read_answer,
    read_delivered,
    read_direct,
    read_raw,
)
from mono_sync.connection._connection import CoreConnection
from mono_sync.errors import (
    ConnectionLostError,
    JetStreamAPIError,
    JetStreamUnavailableError,
    MonoError,
    NoRespondersError,
    OperationTimeoutError,
)

_PATIENCE = 1.5
_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.02, 0.5
NO_MESSAGE = 10037
NO_CONSUMER = 10014
_NOT_THERE = frozenset({10043, 10057})  # what is to be removed
_LONG_SUBJECT = 2000
_CONSUMER_LIFETIME_NS = 10_000_000_000  # without a pull; an order to delete may overtake the one to create
_PULL_TIME = 1.0
_PULL_PATIENCE = 0.25
_CLEAN_UP_TIMEOUT = 0.5
_DIRECT_PATIENCE = 1.0
_ANSWERS_DIRECT = "2.10.0"  # also to refuse


class JetStream:
    """The part of JetStream's API that the buckets are built on. Thread-safe."""

    def __init__(self, connection: CoreConnection) -> None:
        self._connection = connection
        self._without_direct: set[str] = set()

    # --- requests

    def api(
        self,
        subject: str,
        body: Json | None,
        deadline: Deadline,
        *,
        context: str = "",
        repeat: bool = True,
        server: str = "",
    ) -> Json:
        """Make one API request.

        Args:
            subject: what follows ``$JS.API.``.
            body: arguments.
            deadline: total.
            context: what to call it in errors.
            repeat: whether to ask again after the connection broke, and while a cluster elects a leader: right for
                whatever changes nothing when it is done twice.
            server: identity of the only server to ask; empty: any.

        Raises:
            OtherServerError: the connection leads to another server by now.
            OperationTimeoutError: no answer came in time; without ``repeat`` it may be `ConnectionLostError` as well.
            JetStreamUnavailableError: JetStream is not enabled, or has no leader.
            JetStreamAPIError: any other refusal.
        """
        payload, pause = json.dumps(body).encode() if body else b"", _SHORTEST_PAUSE
        while True:
            try:
                return self._api(subject, payload, self._patience(deadline) if repeat else deadline, context, server)
            except OtherServerError:
                raise
            except (ConnectionLostError, OperationTimeoutError) as error:
                if not repeat:
                    raise
                if deadline.expired:
                    raise OperationTimeoutError(context or f"request $JS.API.{subject}", deadline.timeout) from error
            except JetStreamUnavailableError as error:
                remaining = deadline.remaining
                if not (repeat and error.temporary) or (remaining is not None and remaining <= pause):
                    raise
                sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)

    def _patience(self, deadline: Deadline) -> Deadline:
        """Return how long to wait for an answer: in a cluster its author may have died, and no connection break."""
        return deadline.at_most(_PATIENCE) if self._connection.server_info.cluster else deadline

    def _api(self, subject: str, payload: bytes, deadline: Deadline, context: str, server: str) -> Json:
        try:
            message = self._connection.exchange(f"$JS.API.{subject}", payload, b"", deadline, server=server)
        except NoRespondersError as error:
            raise JetStreamUnavailableError(
                "JetStream is not enabled on the server, or has no leader",
                temporary=bool(self._connection.server_info.cluster),
            ) from error
        return read_answer(message.data, context or subject)

    # --- streams

    def stream_info(self, stream: str, deadline: Deadline) -> Json:
        """Return configuration and state of a stream."""
        return self.api(f"STREAM.INFO.{stream}", None, deadline)

    def create_stream(self, config: Json, deadline: Deadline) -> Json:
        """Create a stream; one of the same configuration may exist."""
        return self.api(f"STREAM.CREATE.{config['name']}", config, deadline)

    def update_stream(self, config: Json, deadline: Deadline) -> Json:
        """Change the configuration of a stream."""
        return self.api(f"STREAM.UPDATE.{config['name']}", config, deadline)

    def purge_before(self, stream: str, sequence: int, deadline: Deadline) -> None:
        """Remove all messages before a sequence; doing it twice does no more."""
        self.api(f"STREAM.PURGE.{stream}", {"seq": sequence}, deadline)

    def purge(self, stream: str, subject: str, deadline: Deadline, *, before: int = 0) -> None:
        """Remove the messages of a subject, or those before a sequence; doing it twice does no more."""
        self.api(f"STREAM.PURGE.{stream}", {"filter": subject, **({"seq": before} if before else {})}, deadline)

    def remove_newest(
        self, stream: str, subject: str, wanted: Callable[[StoredMessage], bool], deadline: Deadline
    ) -> None:
        """Remove the newest message of a subject if that is a wanted one.

        The order names a sequence. A server that has started anew may have given it to another message, so only the
        server that told it gets the order. In a cluster that is not known.
        """
        refused = 0
        while True:
            server = self._connection.server_info
            newest = self.last(stream, subject, direct=False, deadline=deadline)
            if newest is None or not wanted(newest):
                return
            query = {"seq": newest.sequence, "no_erase": True}
            try:
                self.api(f"STREAM.MSG.DELETE.{stream}", query, deadline, server="" if server.cluster else server.id)
                return
            except OtherServerError:
                continue
            except JetStreamAPIError as error:
                if error.err_code not in _NOT_THERE or refused == newest.sequence:  # else it has just been removed
                    raise
                refused = newest.sequence

    # --- reading

    def last(self, stream: str, subject: str, *, direct: bool, deadline: Deadline) -> StoredMessage | None:
        """Return the newest message of a subject."""
        if direct:
            message = self.last_direct(stream, subject, deadline)
            if message is not None:
                return read_direct(message)
        return self._get(stream, {"last_by_subj": subject}, deadline)

    def last_direct(self, stream: str, subject: str, deadline: Deadline) -> Message | None:
        """Return the server's message about the newest message of a subject; None: it takes no such request.

        Any replica may answer, and it may not have the newest yet. `read_direct` decodes it.
        """
        if not self.takes_direct(stream):
            return None
        target, query = direct_question(stream, subject)
        while True:
            try:
                return self._connection.exchange(target, query, b"", self._direct_deadline(deadline))
            except ConnectionLostError:
                continue
            except (NoRespondersError, OperationTimeoutError):  # old servers do not answer where new ones refuse
                if deadline.expired:
                    raise
                self.learn_direct(stream, deadline)
                return None

    def takes_direct(self, stream: str) -> bool:
        """Return whether direct requests for a stream make sense, as far as is known."""
        return stream not in self._without_direct

    def learn_direct(self, stream: str, deadline: Deadline) -> None:
        """Find out whether direct requests, which were not answered, have been switched off."""
        if not self.stream_info(stream, deadline)["config"].get("allow_direct"):
            self._without_direct.add(stream)

    def _direct_deadline(self, deadline: Deadline) -> Deadline:
        """Leave time for the other way where a server that does not answer direct requests is an old one."""
        remaining = deadline.remaining
        if remaining is None or self._connection.server_info.supports(_ANSWERS_DIRECT):
            return deadline.at_most(_DIRECT_PATIENCE)
        return deadline.at_most(min(_DIRECT_PATIENCE, remaining / 2))

    def at(self, stream: str, sequence: int, deadline: Deadline) -> StoredMessage | None:
        """Return the message with a sequence."""
        return self._get(stream, {"seq": sequence}, deadline)

    def next_of(self, stream: str, subject: str, sequence: int, deadline: Deadline) -> StoredMessage | None:
        """Return the first message of a subject at or after a sequence."""
        return self._get(stream, {"seq": sequence, "next_by_subj": subject}, deadline)

    def _get(self, stream: str, query: Json, deadline: Deadline) -> StoredMessage | None:
        found = self.get_raw(stream, query, deadline)
        return None if found is None else read_raw(found)

    def get_raw(self, stream: str, query: Json, deadline: Deadline) -> Json | None:
        """Ask the leader for one message; return what it says of it."""
        try:
            found: Json = self.api(f"STREAM.MSG.GET.{stream}", query, deadline)["message"]
        except JetStreamAPIError as error:
            if error.err_code == NO_MESSAGE:
                return None
            raise
        return found

    def count(self, stream: str, subject: str, deadline: Deadline) -> tuple[int, Json]:
        """Return how many messages a subject has, and all that the server says of the stream.

        It is asked for by a pattern, with ``*`` for the second token of the subject, a bucket's name: after a restart
        nats-server 2.9 counts those of a subject without wildcards only in its tenth file and later ones, if it has
        some there.
        """
        first, _, *others = subject.split(".")
        answer = self.api(f"STREAM.INFO.{stream}", {"subjects_filter": ".".join([first, "*", *others])}, deadline)
        return int((answer["state"].get("subjects") or {}).get(subject, 0)), answer

    def subjects(self, stream: str, subject: str, deadline: Deadline) -> set[str]:
        """Return the subjects that match and have messages."""
        subjects: set[str] = set()
        while True:
            query = {"subjects_filter": subject, "offset": len(subjects)}
            answer = self.api(f"STREAM.INFO.{stream}", query, deadline)
            page = answer["state"].get("subjects") or {}
            subjects.update(page)
            if not page or len(subjects) >= answer.get("total", 0):
                return subjects

    def pull_all(
        self, stream: str, subject: str, deadline: Deadline, *, policy: str, headers_only: bool = False
    ) -> list[StoredMessage]:
        """Return all that `pull` yields; when the connection breaks, begin anew."""
        while True:
            try:
                return list(self.pull(stream, subject, deadline, policy=policy, headers_only=headers_only))
            except ConnectionLostError:
                continue

    def pull(
        self,
        stream: str,
        subject: str,
        deadline: Deadline,
        *,
        policy: str,
        headers_only: bool = False,
        batch: int = 256,
    ) -> Iterator[StoredMessage]:
        """Yield what a consumer of the stream has to deliver.

        At most ``batch`` messages are under way at once, so memory stays bounded however slowly they are taken. The
        consumer is deleted at the end, also after an error; if its creation was not answered in time, the server may
        keep it some seconds longer.
        """
        raw = self.pull_raw(stream, subject, deadline, policy=policy, headers_only=headers_only, batch=batch)
        with closing(raw):
            for message in raw:
                yield read_delivered(message)

    def pull_raw(
        self,
        stream: str,
        subject: str,
        deadline: Deadline,
        *,
        policy: str,
        headers_only: bool,
        batch: int,
    ) -> Generator[Message]:
        """Do what `pull` does, with the messages as they come; `place_of` reads their places."""
        name = f"mono_sync_{secrets.token_hex(11)}"  # ours, so that it can be deleted though the answer is not awaited
        try:
            consumer = self._create_consumer(stream, name, subject, deadline, policy=policy, headers_only=headers_only)
            if consumer["num_pending"]:
                yield from self._pull(stream, name, batch, deadline)
        finally:
            self.forget_consumer(stream, name)

    def _create_consumer(
        self, stream: str, name: str, subject: str, deadline: Deadline, *, policy: str, headers_only: bool
    ) -> Json:
        config = consumer_config(name, subject, policy=policy, headers_only=headers_only)
        return self.create_consumer(stream, config, deadline)

    def _pull(self, stream: str, consumer: str, batch: int, deadline: Deadline) -> Iterator[Message]:
        """Pull batch after batch.

        The server ends a pull as soon as it has nothing more (404, older ones 408), or after the pull's own time (408)
        when it stalled or what was pending has vanished. Those two differ in its count of pending messages. The count
        of old servers may stay too high, so two pulls in a row without a message are the end as well.
        """
        operation = f"reading stream {stream}"
        target = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}"
        query = json.dumps({"batch": batch, "no_wait": True, "expires": int(_PULL_TIME * 1e9)}).encode()
        was_empty = False
        with self._connection.inbox(deadline) as inbox:
            inbox.receive_from(consumer)
            while True:
                inbox.ask(target, query)
                started, received = monotonic(), 0
                newest: Message | None = None
                end: Message | None = None
                while received < batch and end is None:
                    message = inbox.next_within(_PULL_TIME + _PULL_PATIENCE, operation)
                    if message is None:  # nobody answers
                        self.consumer_info(stream, consumer, deadline)
                    elif message.status is None:
                        received, newest = received + 1, message
                        yield message
                    else:
                        end = message
                if end is None:
                    if newest is not None and place_of(newest).pending == 0:
                        return
                elif end.status not in (404, 408):
                    self.consumer_info(stream, consumer, deadline)
                    raise self._refusal(end, operation)
                elif (
                    end.status == 404
                    or (received and monotonic() - started < _PULL_TIME)
                    or (was_empty and not received)
                    or self.consumer_info(stream, consumer, deadline)["num_pending"] == 0
                ):
                    return
                was_empty = not received

    # --- consumers

    def create_consumer(self, stream: str, config: Json, deadline: Deadline) -> Json:
        """Make a consumer; return its state."""
        call = f"CREATE.{stream}.{config['name']}"
        return self._consumer_api(call, {"stream_name": stream, "config": config}, deadline)

    def forget_consumer(self, stream: str, consumer: str) -> None:
        """Delete a consumer without waiting for the answer, for the time of the call may be over."""
        if self._connection.is_connected:  # else it ends by itself a little later
            with suppress(MonoError):
                self._connection.publish(f"$JS.API.CONSUMER.DELETE.{stream}.{consumer}", timeout=_CLEAN_UP_TIMEOUT)

    def consumer_info(self, stream: str, consumer: str, deadline: Deadline) -> Json:
        """Return the state of a consumer; raises if it or its stream is gone."""
        return self._consumer_api(f"INFO.{stream}.{consumer}", None, deadline)

    def _consumer_api(self, call: str, body: Json | None, deadline: Deadline) -> Json:
        """Ask about a consumer; `ConnectionLostError` if a server of a cluster has taken it along: begin a new one."""
        try:
            return self.api(f"CONSUMER.{call}", body, self._patience(deadline))
        except (OperationTimeoutError, JetStreamUnavailableError, JetStreamAPIError) as error:
            gone = not isinstance(error, JetStreamAPIError) or error.err_code == NO_CONSUMER
            if deadline.expired or not gone or not self._connection.server_info.cluster:
                raise
            raise ConnectionLostError("the server that was to deliver messages does not answer") from error

    def _refusal(self, end: Message, operation: str) -> MonoError:
        if end.status == 503 and self._connection.server_info.cluster:  # the consumer is moving, or not there yet
            return ConnectionLostError(f"{operation}: nobody delivers messages")
        return JetStreamAPIError(end.status or 0, 0, end.description, context=operation)


def consumer_config(
    name: str,
    subject: str,
    *,
    policy: str,
    headers_only: bool = False,
    start: int | None = None,
) -> Json:
    """Return the configuration of a consumer that is pulled from by one client, and that nobody will miss.

    With ``start`` it begins at that sequence, whatever the policy.
    """
    place = {"deliver_policy": policy} if start is None else begin_behind(start - 1)
    return place | {
        "name": name,
        "ack_policy": "none",
        "filter_subject": subject,
        "headers_only": headers_only,
        "inactive_threshold": _CONSUMER_LIFETIME_NS,
        "mem_storage": True,
        "num_replicas": 1,
    }


def follower_config(subject: str, policy: str, *, after: int | None, headers_only: bool) -> Json:
    """Return the configuration of a consumer that begins after a sequence, or as the policy says."""
    start = None if after is None else after + 1
    return consumer_config("", subject, policy=policy, headers_only=headers_only, start=start)


def begin_behind(sequence: int) -> Json:
    """Return the fields of a consumer's configuration that let it begin after a sequence."""
    return {"deliver_policy": "by_start_sequence", "opt_start_seq": sequence + 1}


def direct_question(stream: str, subject: str) -> tuple[str, bytes]:
    """Return subject and payload of the request for the newest message of a subject, which any replica answers."""
    if len(subject) > _LONG_SUBJECT:  # whatever could be written can be read: long subjects travel in the body
        return f"$JS.API.DIRECT.GET.{stream}", json.dumps({"last_by_subj": subject}).encode()
    return f"$JS.API.DIRECT.GET.{stream}.{subject}", b""
