"""A pull consumer of one client, from its making until it is lost."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from enum import Enum
from time import monotonic
from typing import Final

from mono_sync._durations import Deadline
from mono_sync.adapter import Message
from mono_sync.connection._answers import Json, read_answer, tokens_of
from mono_sync.connection._candidates import Candidates
from mono_sync.connection._connection import CoreConnection
from mono_sync.connection._inbox import Inbox, Question
from mono_sync.connection._jetstream import NO_MESSAGE, begin_behind
from mono_sync.errors import (
    ConnectionClosedError,
    JetStreamAPIError,
    JetStreamUnavailableError,
    MonoError,
    OperationTimeoutError,
)

_BATCH: Final = 1024
_MOST_BYTES: Final = 4 << 20
_ROOM: Final = 1 << 16  # what a message counts for beside its payload and headers
_LIVE_TIME: Final = 60.0
_HEARTBEAT, _HEARTBEAT_IN_CLUSTER = 5.0, 0.75
_PATIENCE: Final = 2  # heartbeats
_SHORTEST_PATIENCE, _LONGEST_PATIENCE = 0.4, 0.8  # with what a cluster is asked beside messages
_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.02, 0.5
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
_NO_STREAM: Final = 10059
_NO_PLACE: Final = 10023  # insufficient resources, as long as the servers that could have the consumer are away


class ConsumerLostError(Exception):
    """The consumer is gone, or something that it sent: make another one."""


class _Stage(Enum):
    """What is asked: about the stream, for the consumer, about the stream again, for messages; has the leader more?"""

    LOOK = "l"
    CREATE = "c"
    CHECK = "s"
    PULL = "p"
    COMPARE = "m"


class PullConsumer:
    """A consumer of a stream, and the questions and answers on the way to its messages.

    One question is under way at a time, and the reader asks it and takes the answer: `step` by `step`. A pull brings
    at most 4 MiB, or one message that is larger.

    A cluster puts it on any server that has the stream, and may take one that has just died: nobody answers then. So
    another one is asked for, under another name, and the first that answers is taken. The server may lag behind the
    leader of the stream: the end of what there is is where the leader says.

    Args:
        connection: where the stream is.
        stream: its name.
        config: policy, start and filter; with the policy ``new`` the start is fixed as soon as `stream_info` is there.
        caught_up: whether to wait for messages from the first pull on; else the end of what there is is looked for.
        instead_of: names of earlier ones, which are deleted.
        not_before: when to begin, on the monotonic clock.
        careful: whether to ask for so few messages at a time that they are no more than 4 MiB however large they are.

    Attributes:
        stream_info: what the server says of the stream, once it has been asked; `is_there` tells when.
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
        instead_of: Sequence[str],
        not_before: float,
        careful: bool = False,
    ) -> None:
        self.stream_info: Json | None = None
        self.caught_up: bool = caught_up
        self.overran: bool = False
        self._connection = connection
        self._stream = stream
        self._config = config
        self._candidates = Candidates(stream, instead_of)
        self._not_before = not_before
        self._careful = careful
        self._inbox: Inbox = connection.inbox(_FOR_EVER)
        self._inbox.open()

        self._stage = _Stage.LOOK if config["deliver_policy"] == "new" else _Stage.CREATE
        self._home: str | None = None  # the server that has it
        self._delivered = 0
        self._answers = 0  # to pulls
        self._lists = self._skips = config["deliver_policy"] == "last_per_subject"  # as we see it; as the server does
        self._largest = 0  # message yet, with all that the server counts
        self._pending = 0  # when it was made
        self._floor = 0  # last sequence of the stream soon after
        self._last = config.get("opt_start_seq", 1) - 1  # sequence that was delivered
        self._may_lag = False

        self._asked: str | None = None  # tag of the question under way
        self._numbers = 0
        self._in_vain = 0
        self._asked_at = 0.0
        self._heard: float | None = None  # None: since it was last asked for
        self._doubted_at: float | None = None  # when to ask whether it has got the pull under way
        self._batch = _BATCH
        self._received = 0  # of the batch
        self._empty_pulls = 0  # in a row
        self._quiet_at = -1
        self._oversized = False

    @property
    def name(self) -> str:
        """Its name on the server; empty until it is there."""
        return self._candidates.name

    @property
    def names(self) -> list[str]:
        """All under which the server may have it, or an earlier one."""
        return self._candidates.names

    @property
    def is_there(self) -> bool:
        """Whether it has been made, and the stream looked at afterwards."""
        return self._stage in (_Stage.PULL, _Stage.COMPARE)

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
        for name in self.names:
            if self._connection.is_connected:
                with suppress(MonoError):
                    self._connection.publish(f"$JS.API.CONSUMER.DELETE.{self._stream}.{name}", timeout=_FORGET_TIME)

    def step(self, deadline: Deadline) -> Message | None:
        """Ask, or take what has arrived; return it if it is a message of the stream.

        Raises:
            ConsumerLostError: it is gone.
            ConnectionLostError: the connection broke.
            OperationTimeoutError: nothing came until the deadline.
            JetStreamAPIError: the server refused, because the stream is gone above all.
            JetStreamUnavailableError: JetStream is not enabled.
        """
        if self._asked is None and self._not_before <= monotonic() and not self._ask(deadline):
            return None
        message = self._inbox.take() or self._wait(deadline)
        if message is None:
            return None
        self._heard = None
        if message.reply:
            self._doubted_at = None
            return message
        tag = message.subject.rpartition(".")[2]
        if tag == self._asked or tag in self._candidates:  # late answers to other questions mean nothing
            self._doubted_at = None
            self._react(tag, message)
        elif tag == _ALIVE:  # it was, but what was asked along may be lost: that stays in doubt
            self._hear_of_life(message)
        return None

    def read(self, message: Message) -> tuple[int, int]:
        """Return sequence and time of a message; they are in its reply subject (`$JS.ACK.…`, NATS ADR-15).

        Raises:
            ConsumerLostError: one before it was lost on its way.
        """
        tokens = tokens_of(message)
        self._delivered += 1
        if int(tokens[6]) != self._delivered:
            raise ConsumerLostError
        self._received += 1
        size = len(message.subject) + len(message.reply) + len(message.header_block) + len(message.data)
        self._largest = max(self._largest, size)
        if self._received == self._batch:
            self._asked = None
        self._last = int(tokens[5])
        return self._last, int(tokens[7])

    def _wait(self, deadline: Deadline) -> Message | None:
        """Wait for a message; None: it is time to ask, or to ask again."""
        now = monotonic()
        until, then = self._not_before, None
        if self._asked is not None:
            self._heard = self._heard or now
            until, then = self._heard + self._patience, self._miss_answer
            if self._doubted_at is not None and self._doubted_at < until:
                until, then = self._doubted_at, self._ask_whether_alive
        patience, remaining = until - now, deadline.remaining
        message = None
        if patience > 0 and remaining != 0:
            message = self._inbox.poll(patience if remaining is None else min(patience, remaining))
        if message is None:
            if remaining is not None and remaining <= patience:
                raise self._timeout(deadline)
            if then is not None:
                then()
        return message

    def _miss_answer(self) -> None:
        if self._stage is _Stage.PULL:
            raise ConsumerLostError
        self._ask_again(pause=0)

    def _ask_again(self, *, pause: float) -> None:
        self._asked, self._not_before = None, monotonic() + pause
        self._in_vain += 1

    def _ask_whether_alive(self) -> None:
        self._doubted_at = None
        with suppress(OperationTimeoutError):  # it cannot be sent now: then the heartbeats tell, a little later
            self._inbox.ask_all([self._question_of_life], deadline=Deadline(_SEND_TIME))

    @property
    def _patience(self) -> float:
        """How long to wait for a sign of life."""
        if self._stage is _Stage.PULL or not self._connection.server_info.cluster:
            return self._heartbeat * _PATIENCE
        return _growing(_SHORTEST_PATIENCE, _LONGEST_PATIENCE, self._in_vain)

    # --- what is asked

    def _ask(self, deadline: Deadline) -> bool:
        """Ask about the stream or for the consumer, or for messages; return whether it could be sent.

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
        self._doubted_at = self._asked_at + _DOUBT if self._stage is _Stage.PULL and self.caught_up else None
        return True

    def _questions(self, tag: str) -> list[Question]:
        if self._stage is _Stage.PULL:
            target = f"$JS.API.CONSUMER.MSG.NEXT.{self._stream}.{self.name}"
            pull = (target, json.dumps(self._pull()).encode(), b"", tag)
            if self._connection.server_info.supports(_TELLS_WHO_IS_GONE):
                return [pull]
            return [pull, self._question_of_life]
        if self._stage is _Stage.CREATE:
            tags = [tag, f"{tag}b"] if self._in_vain else [tag]  # the next server may be a dead one, too
            return self._candidates.create(self._config, tags)
        if self._stage is _Stage.COMPARE:
            query = {"seq": self._last + 1, "next_by_subj": self._config["filter_subject"]}
            return [(f"$JS.API.STREAM.MSG.GET.{self._stream}", json.dumps(query).encode(), b"", tag)]
        look: Question = (f"$JS.API.STREAM.INFO.{self._stream}", b"", b"", tag)
        return [look, *(self._candidates.delete_others() if self._stage is _Stage.CHECK else [])]

    @property
    def _question_of_life(self) -> Question:
        return f"$JS.API.CONSUMER.INFO.{self._stream}.{self.name}", b"", b"", _ALIVE

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

    def _react(self, tag: str, message: Message) -> None:
        if self._stage is _Stage.PULL:
            if message.status == 100:
                self._hear_heartbeat(message)
            else:
                self._end_pull(message)
            return
        name = self._candidates.pop(tag)
        try:
            answer = self._read_answer(message)
        except (JetStreamUnavailableError, JetStreamAPIError) as error:
            if tag == self._asked:
                self._meet(error)
            return
        self._asked, self._in_vain = None, 0
        if name is not None:
            self._take(name, answer)
        elif self._stage is _Stage.COMPARE:
            self._compare(answer["message"]["seq"])
        else:
            self._see(answer)

    def _meet(self, error: JetStreamUnavailableError | JetStreamAPIError) -> None:
        """Ask again where a refusal does not hold for ever.

        In a cluster it may come from a server that has just started and does not know its streams yet: whoever leads
        the cluster does.
        """
        if isinstance(error, JetStreamUnavailableError):
            passes = error.temporary
        elif self._stage is _Stage.COMPARE and error.err_code == NO_MESSAGE:
            self._asked = None
            self._compare(None)
            return
        else:
            passes = self._stage is _Stage.CREATE and error.err_code in (_NO_STREAM, _NO_PLACE)
            passes = passes and bool(self._connection.server_info.cluster)
            self._stage = _Stage.LOOK if passes else self._stage
        if not passes:
            raise error
        self._ask_again(pause=_growing(_SHORTEST_PAUSE, _LONGEST_PAUSE, self._in_vain))

    def _take(self, name: str, answer: Json) -> None:
        self._candidates.take(name)
        self._inbox.receive_from(name)
        self._pending, self._home = answer["num_pending"], _leader(answer)
        self._stage = _Stage.CHECK

    def _see(self, stream_info: Json) -> None:
        self.stream_info = stream_info
        last = stream_info["state"]["last_seq"]
        if self._stage is _Stage.LOOK:
            if self._config["deliver_policy"] == "new":
                self._config |= begin_behind(last)
                self._last = last
            self._stage = _Stage.CREATE
            return
        self._lists = self._lists and stream_info["config"].get("max_msgs_per_subject") != 1
        self._floor = last
        self._may_lag = bool(self._connection.server_info.cluster) and _leader(stream_info) != self._home
        self._stage = _Stage.PULL
        if self._pending == 0:
            self._reach_end()

    def _hear_of_life(self, message: Message) -> None:
        try:
            self._read_answer(message)
        except JetStreamUnavailableError as error:
            if not error.temporary:  # else a cluster elects a leader, and it may be there
                raise ConsumerLostError from error
        except JetStreamAPIError as error:
            raise ConsumerLostError from error

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
                self._reach_end()
            self._empty_pulls = 0 if self._received else self._empty_pulls + 1
        elif end.status == 409 and end.description.startswith("Message Size"):
            if self._skips:
                self.overran = True
                raise ConsumerLostError
            self._oversized = self._received == 0
        elif end.status != 409 or not end.description.startswith("Batch Completed"):
            raise ConsumerLostError

    def _reach_end(self) -> None:
        """Compare what the server that delivers has with what the leader has."""
        if self._may_lag and self._last < self._floor:
            self._stage = _Stage.COMPARE
        else:
            self._complete()

    def _compare(self, following: int | None) -> None:
        self._stage = _Stage.PULL
        if following is None or following > self._floor:
            self._complete()
        else:
            self._empty_pulls = 1  # to be looked into

    def _complete(self) -> None:
        self.caught_up, self._lists, self._skips = True, False, False

    def _timeout(self, deadline: Deadline) -> OperationTimeoutError:
        return OperationTimeoutError(f"following stream {self._stream}", deadline.timeout, sent=False)


def _leader(info: Json) -> str | None:
    """Return the server that leads a stream or consumer; single servers name themselves only for some."""
    leader: str | None = info.get("cluster", {}).get("leader")
    return leader


def _growing(first: float, most: float, times: int) -> float:
    return float(min(first * 2 ** min(times, 10), most))


def _times(expires: float, heartbeat: float) -> Json:
    return {"expires": int(expires * 1e9), "idle_heartbeat": int(heartbeat * 1e9)}
