"""A pull consumer of one client, from its making until it is lost."""

from __future__ import annotations

import json
import secrets
from contextlib import suppress
from enum import Enum
from time import monotonic
from typing import Final

from mono_sync._durations import Deadline
from mono_sync.adapter import Message
from mono_sync.connection._answers import Json, read_answer
from mono_sync.connection._connection import CoreConnection
from mono_sync.connection._inbox import Inbox, Question
from mono_sync.connection._jetstream import consumer_config
from mono_sync.errors import ConnectionClosedError, JetStreamUnavailableError, MonoError, OperationTimeoutError

_BATCH: Final = 1024
_MOST_BYTES: Final = 4 << 20
_ROOM: Final = 1 << 16  # what a message counts for beside its payload and headers
_LIFETIME: Final = 30_000_000_000  # without a pull
_LIVE_TIME: Final = 60.0
_HEARTBEAT, _HEARTBEAT_IN_CLUSTER = 5.0, 1.0
_PATIENCE: Final = 2.5  # heartbeats
_DOUBT: Final = 0.4  # after which a pull is doubted: a consumer that is deleted may take it along without an answer
_LOOK_TIME: Final = 1.0
_LOOK_HEARTBEAT: Final = 0.02
_SEND_TIME: Final = 0.05
_LONGEST_TRY: Final = 0.25
_ALIVE: Final = "i"
_TELLS_WHO_IS_GONE: Final = "2.10.0"  # older servers do not answer a pull from a consumer that is gone
_FORGET_TIME: Final = 0.5
_ENDS_AT_ONCE: Final = "2.12.2"  # a pull that waits for nothing; older servers let it wait if they have miscounted
_FOR_EVER: Final = Deadline(None)


class ConsumerLostError(Exception):
    """The consumer is gone, or something that it sent: make another one."""


class _Stage(Enum):
    CREATE = "c"
    CHECK = "s"
    PULL = "p"


class PullConsumer:
    """A consumer of a stream, and the questions and answers on the way to its messages.

    One question is under way at a time, and the reader asks it and takes the answer: `step` by `step`. A pull brings
    at most 4 MiB, or one message that is larger.

    Args:
        connection: where the stream is.
        stream: its name.
        config: policy, start and filter.
        caught_up: whether to wait for messages from the first pull on; else the end of what there is is looked for.
        instead_of: name of an earlier one, which is deleted.
        not_before: when to begin, on the monotonic clock.
        careful: whether to ask for so few messages at a time that they are no more than 4 MiB however large they are.

    Attributes:
        stream_info: what the server says of the stream after the consumer was made; None until then.
        start: sequence of the stream behind which it began.
        caught_up: whether all has been delivered that the stream held at one moment.
        overran: whether it was lost because the next messages were larger than those before.
    """

    def __init__(
        self,
        connection: CoreConnection,
        stream: str,
        config: Json,
        *,
        caught_up: bool,
        instead_of: str | None,
        not_before: float,
        careful: bool = False,
    ) -> None:
        self.name: str = f"mono_sync_{secrets.token_hex(11)}"  # a new one: late messages of others are not its own
        self.stream_info: Json | None = None
        self.start: int = 0
        self.caught_up: bool = caught_up
        self.overran: bool = False
        self._connection = connection
        self._stream = stream
        self._config = config
        self._instead_of = instead_of
        self._not_before = not_before
        self._careful = careful
        self._inbox: Inbox = connection.inbox(_FOR_EVER)
        self._inbox.open()
        self._inbox.receive_from(self.name)

        self._stage = _Stage.CREATE
        self._delivered = 0
        self._answers = 0  # to pulls
        self._lists = self._skips = config["deliver_policy"] == "last_per_subject"  # as we see it; as the server does
        self._largest = 0  # message yet, with all that the server counts
        self._pending = 0  # when it was made
        self._floor = 0  # last sequence of the stream soon after

        self._asked: str | None = None  # tag of the question under way
        self._numbers = 0
        self._asked_at = 0.0
        self._heard: float | None = None  # None: since it was last asked for
        self._doubted_at: float | None = None  # when to ask whether it has got the pull under way
        self._batch = _BATCH
        self._received = 0  # of the batch
        self._empty_pulls = 0  # in a row
        self._quiet_at = -1
        self._oversized = False

    @property
    def is_listing(self) -> bool:
        """Whether some of the newest messages of each subject are still to come."""
        return self._lists and self._delivered < self._pending

    @property
    def has_worked(self) -> bool:
        """Whether it has delivered anything, or said that there is nothing."""
        return self._delivered + self._answers > 0

    def wake(self) -> None:
        """Let whoever is in `step` raise `ConnectionClosedError`. Any thread."""
        self._inbox.wake(ConnectionClosedError("stopped"))

    def close(self) -> None:
        """Receive no more."""
        self._inbox.close()

    def delete(self) -> None:
        """Delete it on the server, without waiting for the answer; it ends by itself a little later otherwise."""
        if self._connection.is_connected:
            with suppress(MonoError):
                subject = f"$JS.API.CONSUMER.DELETE.{self._stream}.{self.name}"
                self._connection.publish(subject, timeout=_FORGET_TIME)

    def step(self, deadline: Deadline) -> Message | None:
        """Ask, or take what has arrived; return it if it is a message of the stream.

        Raises:
            ConsumerLostError: it is gone.
            ConnectionLostError: the connection broke.
            OperationTimeoutError: nothing came until the deadline.
            JetStreamAPIError: the server refused, because the stream is gone above all.
            JetStreamUnavailableError: JetStream is not enabled.
        """
        if self._asked is None and (self._pauses(deadline) or not self._ask(deadline)):
            return None
        message = self._inbox.poll(0)
        if message is None:
            message = self._wait(deadline)
        if message is None:
            return None
        self._heard = self._doubted_at = None
        if message.reply:
            return message
        tag = message.subject.rpartition(".")[2]
        if tag == self._asked:  # late answers to other questions mean nothing
            self._react(message)
        elif tag == _ALIVE and b'"error"' in message.data:
            raise ConsumerLostError
        return None

    def read(self, message: Message) -> tuple[int, int]:
        """Return sequence and time of a message; they are in its reply subject (`$JS.ACK.…`, NATS ADR-15).

        Raises:
            ConsumerLostError: one before it was lost on its way.
        """
        tokens = message.reply.split(".")
        if len(tokens) > 9:  # with domain and account in front
            del tokens[2:4]
        self._delivered += 1
        if int(tokens[6]) != self._delivered:
            raise ConsumerLostError
        self._received += 1
        size = len(message.subject) + len(message.reply) + len(message.header_block) + len(message.data)
        self._largest = max(self._largest, size)
        if self._received == self._batch:
            self._asked = None
        return int(tokens[5]), int(tokens[7])

    def _wait(self, deadline: Deadline) -> Message | None:
        now = monotonic()
        if self._heard is None:
            self._heard = now
        silence = self._heard + self._heartbeat * _PATIENCE - now
        doubt = silence if self._doubted_at is None else min(silence, max(0.0, self._doubted_at - now))
        remaining = deadline.remaining
        message = None
        if silence > 0 and remaining != 0:
            message = self._inbox.poll(doubt if remaining is None else min(doubt, remaining))
        if message is not None:
            return message
        if doubt < silence and (remaining is None or doubt <= remaining):
            self._ask_whether_alive()
            return None
        if remaining is None or silence < remaining:
            raise ConsumerLostError
        raise self._timeout(deadline)

    def _ask_whether_alive(self) -> None:
        self._doubted_at = None
        with suppress(OperationTimeoutError):  # it cannot be sent now: then the heartbeats tell, a little later
            self._inbox.ask_all([self._question_of_life], deadline=Deadline(_SEND_TIME))

    @property
    def _question_of_life(self) -> Question:
        return f"$JS.API.CONSUMER.INFO.{self._stream}.{self.name}", b"", b"", _ALIVE

    def _pauses(self, deadline: Deadline) -> bool:
        """Wait until it is time to begin; return whether that is still to come."""
        pause = self._not_before - monotonic()
        if pause <= 0:
            return False
        remaining = deadline.remaining
        if remaining == 0:
            raise self._timeout(deadline)
        self._inbox.poll(pause if remaining is None else min(pause, remaining))
        return True

    # --- what is asked

    def _ask(self, deadline: Deadline) -> bool:
        """Ask for the consumer, then about the stream, then for messages; return whether it could be sent.

        Without a connection it tries for a moment only: the reader may have been stopped.
        """
        remaining = deadline.remaining
        if remaining is not None and remaining < _SEND_TIME:
            if not self._connection.is_connected:
                raise self._timeout(deadline)
            deadline = Deadline(_SEND_TIME)  # a mere poll has to get on as well
        self._numbers += 1
        tag = f"{self._stage.value}{self._numbers}"
        try:
            self._inbox.ask_all(self._questions(tag), deadline=deadline.at_most(_LONGEST_TRY))
        except OperationTimeoutError as error:
            if deadline.expired:
                raise self._timeout(deadline) from error
            return False
        self._asked, self._asked_at, self._heard, self._received = tag, monotonic(), None, 0
        self._doubted_at = self._asked_at + _DOUBT if self.caught_up else None
        return True

    def _questions(self, tag: str) -> list[Question]:
        if self._stage is _Stage.PULL:
            target = f"$JS.API.CONSUMER.MSG.NEXT.{self._stream}.{self.name}"
            pull = (target, json.dumps(self._pull()).encode(), b"", tag)
            if self._connection.server_info.supports(_TELLS_WHO_IS_GONE):
                return [pull]
            return [pull, self._question_of_life]
        if self._stage is _Stage.CHECK:
            return [(f"$JS.API.STREAM.INFO.{self._stream}", b"", b"", tag)]
        config = self._config | {"name": self.name, "inactive_threshold": _LIFETIME}
        body = json.dumps({"stream_name": self._stream, "config": config}).encode()
        questions = [(f"$JS.API.CONSUMER.CREATE.{self._stream}.{self.name}", body, b"", tag)]
        if self._instead_of is not None:
            questions.append((f"$JS.API.CONSUMER.DELETE.{self._stream}.{self._instead_of}", b"", b"", "d"))
        return questions

    def _pull(self) -> Json:
        """Return what to ask for: the next messages, now or, where all has been delivered, as they come.

        A server that has miscounted what is pending, as concurrent writes make it do, answers a pull that waits for
        nothing without a look, or, before 2.12.2, not at all. So one may wait for a moment, with heartbeats, which tell
        how far the server has looked.
        """
        info = self._connection.server_info
        limit = max(_MOST_BYTES, info.max_payload + _ROOM)
        oversized, self._oversized = self._oversized, False
        self._batch = 1 if oversized else self._batch_within(limit)
        query: Json = {"batch": self._batch}
        if not (oversized or (self._skips and self._careful)):
            query["max_bytes"] = limit
        if self.caught_up:
            return query | _times(_LIVE_TIME, self._heartbeat)
        query["no_wait"] = True
        if self._empty_pulls.bit_count() == 1 or not info.supports(_ENDS_AT_ONCE):
            query |= _times(_LOOK_TIME, _LOOK_HEARTBEAT)
        return query

    def _batch_within(self, limit: int) -> int:
        """Return how many messages to ask for.

        While a server goes through its list of the newest of each subject, it forgets the message at which a pull
        exceeds its bytes. So that must not happen, as far as the sizes yet can tell.
        """
        batch = _BATCH
        if self._skips:
            largest = self._connection.server_info.max_payload + _ROOM
            batch = max(1, limit // largest)
            if self._largest and not self._careful:
                batch = max(batch, min(_BATCH, limit // (2 * self._largest)))
        # A batch that is just as long as what there is would not show the end.
        return batch - 1 if 1 < batch == self._pending - self._delivered else batch

    @property
    def _heartbeat(self) -> float:
        return _HEARTBEAT_IN_CLUSTER if self._connection.server_info.cluster else _HEARTBEAT

    # --- what is answered

    def _react(self, message: Message) -> None:
        if self._stage is _Stage.PULL:
            if message.status == 100:
                self._hear_heartbeat(message)
            else:
                self._end_pull(message)
            return
        try:
            answer = self._read_answer(message)
        except JetStreamUnavailableError as error:
            if not error.temporary:
                raise
            raise ConsumerLostError from error
        self._asked = None
        if self._stage is _Stage.CREATE:
            self._pending = answer["num_pending"]
            self.start = answer["delivered"]["stream_seq"]
            self._stage = _Stage.CHECK
        else:
            self.stream_info = answer
            self._lists = self._lists and answer["config"].get("max_msgs_per_subject") != 1
            self._floor = answer["state"]["last_seq"]
            self._stage = _Stage.PULL
            if self._pending == 0:
                self._complete()

    def _read_answer(self, message: Message) -> Json:
        if message.status == 503:
            temporary = bool(self._connection.server_info.cluster)
            raise JetStreamUnavailableError(
                "JetStream is not enabled on the server, or has no leader", temporary=temporary
            )
        return read_answer(message.data, f"following stream {self._stream}")

    def _hear_heartbeat(self, message: Message) -> None:
        headers = message.headers
        self._answers += 1
        if int(headers["Nats-Last-Consumer"]) != self._delivered:
            raise ConsumerLostError
        if not self.caught_up and int(headers["Nats-Last-Stream"]) >= self._floor:
            if self._quiet_at == self._delivered:  # the second one in a row: between them it has looked for more
                self._complete()
                self._asked = None
            self._quiet_at = self._delivered

    def _end_pull(self, end: Message) -> None:
        """Learn why a pull has ended.

        With 404 the server says that there is nothing more; before 2.12.2 with 408, which may also mean that the pull's
        time is over. It does so as well when it meets a message that has vanished since it made its list of the newest
        of each subject. Its count of what is pending tells neither: under concurrent writes it may be wrong.
        """
        self._asked = None
        if end.status in (404, 408):
            self._answers += 1
            at_the_end = end.status == 404 or monotonic() - self._asked_at < _LOOK_TIME
            if self._received and at_the_end and not self.is_listing:
                self._complete()
            self._empty_pulls = 0 if self._received else self._empty_pulls + 1
        elif end.status == 409 and end.description.startswith("Message Size"):
            if self._skips:
                self.overran = True
                raise ConsumerLostError
            self._oversized = self._received == 0
        elif end.status != 409 or not end.description.startswith("Batch Completed"):
            raise ConsumerLostError

    def _complete(self) -> None:
        self.caught_up, self._lists, self._skips = True, False, False

    def _timeout(self, deadline: Deadline) -> OperationTimeoutError:
        return OperationTimeoutError(f"following stream {self._stream}", deadline.timeout, sent=False)


def follower_config(subject: str, policy: str, *, after: int | None, headers_only: bool) -> Json:
    """Return the configuration of a consumer that begins after a sequence, or as the policy says."""
    start = None if after is None else after + 1
    return consumer_config("", subject, policy=policy, headers_only=headers_only, start=start)


def _times(expires: float, heartbeat: float) -> Json:
    return {"expires": int(expires * 1e9), "idle_heartbeat": int(heartbeat * 1e9)}
