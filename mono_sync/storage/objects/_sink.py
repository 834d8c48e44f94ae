"""The chunks of one version on their way into the stream: many at a time, in order, each once."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from typing import Final, NoReturn

from mono_sync._durations import Deadline
from mono_sync.adapter import Message, encode_known_headers
from mono_sync.connection import (
    CoreConnection,
    ExactlyOnce,
    Inbox,
    JetStream,
    Question,
    StoredMessage,
    Write,
    is_conflict,
    is_under_way,
    read_ack,
)
from mono_sync.errors import (
    ConnectionLostError,
    JetStreamAPIError,
    JetStreamUnavailableError,
    MonoError,
    NoRespondersError,
    OperationTimeoutError,
    OutcomeUnknownError,
    PermissionDeniedError,
)
from mono_sync.storage.objects import _clean_up

_log = logging.getLogger("mono_sync.storage")

MOST_UNDER_WAY: Final = 64
MOST_BYTES_UNDER_WAY: Final = 1 << 20
STALE: Final = 120.0
"""Seconds of rest after which an upload looks whether its chunks are there. Far less than `sweep` lets them alone.

Where the bucket removes what is older than that in any case, it looks sooner.
"""

OVERTAKEN: Final = "the object was stored, deleted or described anew since, and that may have removed its chunks"
"""Why an upload that lacks only its last step is given up: another process may have taken that, and what it stored
have been replaced."""

_ID: Final = "Nats-Msg-Id"
_PATIENCE: Final = 1.5  # a server that dies in a cluster takes its answers along, and no connection breaks
_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.02, 0.5
_LOOKS: Final = 20
_LAST: Final = "last"
_FOR_EVER: Final = Deadline(None)


class ChunksLostError(Exception):
    """What the stream holds is not what was sent; nothing may be built on it."""


def number_of_chunk(message: StoredMessage) -> int | None:
    """Return which chunk of its version a message is, from 0; None where its writer has not told."""
    number = message.headers.get(_ID, "").partition(".")[2]
    return int(number) if number.isdecimal() else None


class Sink:
    """Stores the chunks of one version on one subject. One thread at a time.

    They are sent ahead of their acknowledgements, a bounded number of them, on one connection. After the connection has
    broken, or a server has refused a chunk for the moment, the stream is asked what it holds, and the rest is sent
    again in order. Each has an id, so that none is stored twice where one sent before still arrives.

    The last chunk is stored only on top of the one before: whoever gives up an upload that seems to have been left
    behind puts a mark on the subject first. See `Sweep`.

    Args:
        connection: where to send.
        jetstream: its API.
        writer: the stream, for what is stored on a condition.
        stream: its name.
        subject: where the chunks go.
        headers: of every chunk; names and values that NATS can carry.
        operation: what to call it in errors.
        max_age: seconds after which the stream removes its messages; 0: never.

    Attributes:
        count: chunks sent, or found there.
        stored: bytes that the server has acknowledged.
        touched: whether anything has been sent.
        cautious: whether to store each chunk on top of the one before, for another upload may go by the same name.
        answers: what was answered to the last chunk and to what was sent along with it, by tags.
        server: identity of the server that has stored the last chunk, or told that it is there; empty: none yet.
    """

    def __init__(
        self,
        connection: CoreConnection,
        jetstream: JetStream,
        writer: ExactlyOnce,
        *,
        stream: str,
        subject: str,
        headers: dict[str, str],
        operation: str,
        max_age: float,
    ) -> None:
        self.count: int = 0
        self.stored: int = 0
        self.touched: bool = False
        self.cautious: bool = False
        self.answers: dict[str, Message] = {}
        self.server: str = ""
        self._connection = connection
        self._jetstream = jetstream
        self._writer = writer
        self._stream = stream
        self._subject = subject
        self._id: str | None = None  # of this attempt, with which those of its chunks begin
        self._headers = headers
        self._operation = operation
        self._stale = min(STALE, max_age or STALE)
        self._inbox: Inbox | None = None
        self._settled = 0  # answers to chunks that came after all had been sent
        self._awaited: set[str] = set()  # tags of answers, beside those of chunks
        self._losses = 0
        self._attempt = 0
        self._under_way: dict[int, tuple[bytes, bytes]] = {}  # data and header block of those without an answer
        self._bytes_under_way = 0
        self._sent = 0  # of all, on the present connection
        self._newest = 0  # sequence of the newest that was acknowledged
        self._pause = _SHORTEST_PAUSE
        self._started: float | None = None
        self._latest = 0.0

    @property
    def age(self) -> float:
        """Seconds since the first chunk was sent."""
        return 0.0 if self._started is None else time.monotonic() - self._started

    @property
    def rest(self) -> float:
        """Seconds since the newest chunk was stored, where that was an earlier attempt."""
        return time.monotonic() - self._latest

    def go_on(self, chunks: int, newest: int, size: int, *, age: float, idle: float) -> None:
        """Take what an earlier attempt has stored for the beginning."""
        self.count = self._sent = chunks
        self.stored, self._newest = size, newest
        now = time.monotonic()
        self.touched, self._started, self._latest = True, now - age, now - idle

    def note_server(self) -> None:
        """Note who is going to store the last chunk, or to tell that it is there; another one may have lost it."""
        self.server = self._connection.server_info.id

    # --- all chunks but the last

    def send(self, data: bytes, deadline: Deadline, headers: Mapping[str, str]) -> None:
        """Send a chunk; wait for acknowledgements while too many are missing."""
        now = time.monotonic()
        if self.cautious or (self.touched and now - self._latest > self._stale):
            self._send_alone(data, deadline, headers)
            return
        while self._is_full:
            self._wait(deadline)
        if self._id is None:
            self._id = self._connection.new_id(deadline)
        block = encode_known_headers({_ID: f"{self._id}.{self.count}", **self._headers, **headers})
        self._under_way[self.count] = data, block
        self._bytes_under_way += len(data)
        self.count += 1
        self._latest = now
        self._push(deadline)
        self._take_arrived(deadline)

    def drain(self, deadline: Deadline) -> None:
        """Wait until all chunks are acknowledged."""
        while self._under_way:
            self._wait(deadline)

    def _send_alone(self, data: bytes, deadline: Deadline, headers: Mapping[str, str]) -> None:
        """Send a chunk on top of the one before: nobody may have given up this upload in the long time since then."""
        self.drain(deadline)
        if not self.touched:
            self.touched, self._started = True, time.monotonic()
        self._newest = self._conditionally(self._prepare(data, deadline, headers), deadline, in_doubt=False)
        self.count += 1
        self._sent = self.count
        self.stored += len(data)
        self._latest = time.monotonic()

    @property
    def _is_full(self) -> bool:
        return len(self._under_way) >= MOST_UNDER_WAY or self._bytes_under_way >= MOST_BYTES_UNDER_WAY

    def _open(self) -> Inbox:
        if self._inbox is None:
            self._inbox = self._connection.inbox(_FOR_EVER)
            self._inbox.open()
        if not self.touched:
            self.touched, self._started = True, time.monotonic()
        return self._inbox

    def _push(self, deadline: Deadline) -> None:
        """Hand over what has not been handed over on the present connection."""
        inbox = self._open()
        while self._sent < self.count:
            data, block = self._under_way[self._sent]
            question = (self._subject, data, block, f"{self._attempt}-{self._sent}")
            try:
                inbox.ask_all([question], deadline=deadline, losses=self._losses)
            except ConnectionLostError:
                self._compare(deadline)
            else:
                self._sent += 1

    def _take_arrived(self, deadline: Deadline) -> None:
        assert self._inbox is not None
        try:
            while (message := self._inbox.take()) is not None:
                self._note(message, deadline)
        except ConnectionLostError:
            self._begin_anew(deadline)

    def _wait(self, deadline: Deadline) -> None:
        """Wait for an answer."""
        assert self._inbox is not None
        try:
            message = self._inbox.poll(deadline.at_most(_PATIENCE).remaining)
        except ConnectionLostError:
            self._begin_anew(deadline)
            return
        if message is not None:
            self._note(message, deadline)
        elif deadline.expired:
            raise OperationTimeoutError(self._operation, deadline.timeout)
        elif self._connection.server_info.cluster:
            self._begin_anew(deadline)
        else:
            self._count(deadline)  # a stream that was deleted may have taken along what was under way

    def _note(self, message: Message, deadline: Deadline) -> None:
        attempt, _, number = message.subject.rpartition(".")[2].partition("-")
        index = int(number)
        if index not in self._under_way:
            return  # known before
        try:
            sequence = read_ack(message, self._operation)
        except (NoRespondersError, JetStreamUnavailableError, JetStreamAPIError) as error:
            if isinstance(error, JetStreamAPIError) and not is_under_way(error):
                self._under_way.pop(index)
                raise
            if int(attempt) == self._attempt:  # else it has been sent again since
                self._pause_for(error, deadline)
                self._begin_anew(deadline)
            return
        if index != next(iter(self._under_way)) or sequence <= self._newest:
            raise ChunksLostError(f"chunk {index} was stored out of turn")
        self._acknowledge(index, sequence)
        self._pause = _SHORTEST_PAUSE

    def _acknowledge(self, index: int, sequence: int) -> None:
        data, _ = self._under_way.pop(index)
        self._bytes_under_way -= len(data)
        self.stored += len(data)
        self._newest = sequence

    # --- after answers were lost

    def _pause_for(self, error: MonoError, deadline: Deadline) -> None:
        """Wait until a stream that does not answer, as while a cluster elects a leader, may do so again."""
        temporary = isinstance(error, JetStreamUnavailableError) and error.temporary
        remaining = deadline.remaining
        if not (temporary or self._connection.server_info.cluster) or (
            remaining is not None and remaining <= self._pause
        ):
            raise error
        time.sleep(self._pause)
        self._pause = min(2 * self._pause, _LONGEST_PAUSE)

    def _begin_anew(self, deadline: Deadline) -> None:
        self._compare(deadline)
        self._push(deadline)

    def _compare(self, deadline: Deadline) -> None:
        """Find out which chunks the stream holds; the others are to be sent again.

        Raises:
            ChunksLostError: it holds others than the first of those that were sent.
        """
        self._losses = self._open().losses
        self._attempt += 1
        count, sequence = self._look(deadline)
        for index in [index for index in self._under_way if index < count]:
            self._acknowledge(index, sequence)
        self._newest, self._sent = sequence, count

    def _look(self, deadline: Deadline) -> tuple[int, int]:
        """Return how many chunks the stream holds, and the sequence of the newest."""
        count, known = 0, None
        for _ in range(_LOOKS):
            newest = self._jetstream.last(self._stream, self._subject, direct=False, deadline=deadline)
            count = self._count(deadline)
            known = self._number_of(newest)
            if known == count:
                return count, 0 if newest is None else newest.sequence
            if known is None or known > count:
                break
            # else one that was sent before has arrived between the two looks
        stored, kind = self.count - len(self._under_way), "chunk" if count == 1 else "chunks"
        raise ChunksLostError(f"the stream holds {count} {kind}, and not the {stored} that were stored")

    def _count(self, deadline: Deadline) -> int:
        return self._jetstream.count(self._stream, self._subject, deadline)[0]

    def _number_of(self, newest: StoredMessage | None) -> int | None:
        """Return how many chunks there are if all up to the newest one are there; None: that one is not ours."""
        acknowledged = self.count - len(self._under_way)
        if newest is None:
            return 0 if acknowledged == 0 else None
        if newest.sequence == self._newest:
            return acknowledged
        name, _, index = newest.headers.get(_ID, "").partition(".")
        return int(index) + 1 if name == self._id and int(index) in self._under_way else None

    # --- the last chunk

    def prepare_last(self, data: bytes, deadline: Deadline, headers: Mapping[str, str]) -> Write:
        """Return the last chunk, ready for `send_last`; all others are acknowledged then."""
        self.drain(deadline)
        if self.count:  # they may have been removed since, as by a `reset`
            self._compare(deadline)
        return self._prepare(data, deadline, headers)

    def send_last(self, write: Write, along: Sequence[Question], deadline: Deadline) -> None:
        """Send the last chunk, and right behind it something else; wait for the answers, and not for too long."""
        self.note_server()
        self._awaited = {_LAST, *(tag for *_, tag in along)}
        self._open().ask_all([(self._subject, write.data, write.block, _LAST), *along], deadline=deadline)
        self.count += 1
        patience = deadline.at_most(_PATIENCE)
        try:
            while self._awaited and self._hear(patience):
                pass
        except ConnectionLostError:
            _log.debug("%s: the connection broke at the last chunk", self._operation)
        self._awaited.clear()

    def end_last(self, write: Write, deadline: Deadline) -> None:
        """Wait until the last chunk is stored.

        Raises:
            ChunksLostError: others of its chunks are gone.
        """
        answer = self.answers.get(_LAST)
        if answer is None:
            self._conditionally(write, deadline, in_doubt=True)
        else:
            self._note_last(answer, write, deadline)
        self.stored += len(write.data)

    @property
    def last_is_answered(self) -> bool:
        """Whether the first attempt to store the last chunk was answered."""
        return _LAST in self.answers

    def is_whole(self, deadline: Deadline) -> bool:
        """Return whether all chunks that were sent are there: a `reset` may have removed them."""
        return self._count(deadline) == self.count

    def check(self, deadline: Deadline) -> None:
        """Do nothing if it `is_whole`.

        Raises:
            ChunksLostError: it is not.
        """
        if not self.is_whole(deadline):
            raise ChunksLostError("its chunks are gone")

    def _hear(self, patience: Deadline) -> bool:
        """Take one answer, to what was sent last or to a chunk before that; return whether one came."""
        message = None if self._inbox is None else self._inbox.poll(patience.remaining)
        if message is None:
            return False
        tag = message.subject.rpartition(".")[2]
        if tag in self._awaited:
            self.answers[tag] = message
            self._awaited.discard(tag)
        else:
            self._settled += 1
        return True

    def _note_last(self, message: Message, write: Write, deadline: Deadline) -> None:
        try:
            self._writer.saw(read_ack(message, self._operation))
        except (NoRespondersError, JetStreamUnavailableError):  # refused unseen, for the moment
            self._conditionally(write, deadline, in_doubt=False)
        except JetStreamAPIError as error:
            if not is_under_way(error):
                self._check(error)
            self._conditionally(write, deadline, in_doubt=False)

    def _prepare(self, data: bytes, deadline: Deadline, headers: Mapping[str, str]) -> Write:
        expected = self._newest if self.count or self.cautious else None
        together = {**self._headers, **headers}
        return self._writer.prepare(self._subject, data, together, deadline, self._operation, expected=expected)

    def _conditionally(self, write: Write, deadline: Deadline, *, in_doubt: bool) -> int:
        try:
            return self._writer.carry_out(write, deadline, in_doubt=in_doubt)
        except OutcomeUnknownError as error:  # of a chunk: nothing has been stored that anybody sees
            if deadline.expired:
                raise OperationTimeoutError(self._operation, deadline.timeout) from error
            raise ChunksLostError(f"it is not known what became of a chunk: {error}") from error
        except JetStreamAPIError as error:
            self._check(error)

    def _check(self, error: JetStreamAPIError) -> NoReturn:
        if is_conflict(error):
            raise ChunksLostError("another message has come between its chunks, or they are gone") from error
        raise error

    # --- the end

    def settle(self, deadline: Deadline) -> int:
        """Wait a moment for what is under way, for a removal sent behind a chunk may reach the stream before it.

        Returns:
            How many answers are still missing.
        """
        moment = deadline.at_most(_clean_up.LEAST / 2)
        while self._missing:
            try:
                if not self._hear(moment):
                    break
            except PermissionDeniedError:
                continue  # perhaps it was not even about this
            except MonoError as error:
                _log.debug("%s: %d chunks are under way after an error: %s", self._operation, self._missing, error)
                break
        return self._missing

    @property
    def _missing(self) -> int:
        return max(0, len(self._under_way) - self._settled) + len(self._awaited)

    def close(self) -> None:
        """Receive no more answers; idempotent."""
        if self._inbox is not None:
            self._inbox.close()
