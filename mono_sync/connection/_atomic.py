"""Several messages that are stored all or none, on top of known revisions (NATS ADR-50)."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final

from mono_sync._durations import Deadline
from mono_sync.adapter import encode_known_headers
from mono_sync.connection._connection import CoreConnection
from mono_sync.connection._exactly_once import (
    EXPECTED_REVISION,
    MESSAGE_ID,
    ExactlyOnce,
    Write,
    actual_revision,
    is_conflict,
)
from mono_sync.connection._inbox import Inbox, Question
from mono_sync.connection._jetstream import JetStream, Json
from mono_sync.connection._last import last_of_many
from mono_sync.errors import (
    ConnectionLostError,
    JetStreamAPIError,
    JetStreamUnavailableError,
    MessageTooLargeError,
    MonoError,
    NoRespondersError,
    OperationTimeoutError,
    OutcomeUnknownError,
)

_EXPECTED_SUBJECT: Final = "Nats-Expected-Last-Subject-Sequence-Subject"
_KNOWN_ID: Final = 10201
_IN_PROCESS: Final = 10158
_INCOMPLETE: Final = 10176
_TOO_MANY: Final = 10210
_TEMPORARY: Final = frozenset({_IN_PROCESS, _INCOMPLETE, _TOO_MANY})
_PATIENCE: Final = 1.5
_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.005, 0.5
_BYTES_AT_ONCE: Final = 4 << 20


@dataclass(frozen=True, slots=True)
class Conditional:
    """A message that is stored only on top of a known revision.

    Attributes:
        subject: where it goes.
        data: its payload.
        headers: names and values that NATS can carry.
        expected: the last sequence of a subject; 0: it has no message.
        of: that subject; empty: its own.
    """

    subject: str
    data: bytes
    headers: Mapping[str, str]
    expected: int
    of: str = ""


class BatchRefusedError(Exception):
    """The server stored nothing of a batch.

    Attributes:
        index: the message that was the reason, as far as the server tells: it does not for all.
        reason: what it said.
        actual: where an expected sequence was the reason, the one found instead; else None.
    """

    def __init__(self, index: int, reason: MonoError, actual: int | None = None) -> None:
        self.index = index
        self.reason = reason
        self.actual = actual
        super().__init__(index, reason, actual)


@dataclass(slots=True)
class _Batch:
    messages: Sequence[Conditional]
    blocks: list[dict[str, str]]
    writes: list[Write]
    """Those that go to the subject whose revision they expect: once stored, they can be found."""
    operation: str
    in_doubt: bool = False
    """Whether an attempt may have stored it."""
    pause: float = _SHORTEST_PAUSE

    def outlast(self, error: OperationTimeoutError, deadline: Deadline) -> None:
        """Do nothing if there is time for another attempt: not the whole call has timed out, but a step of it."""
        if isinstance(error, OutcomeUnknownError):  # more attempts would not tell more
            raise error
        self.in_doubt = self.in_doubt or error.sent
        if deadline.expired:
            raise self._timed_out(deadline) from error

    def _timed_out(self, deadline: Deadline) -> OperationTimeoutError:
        if self.in_doubt:
            return OutcomeUnknownError(self.operation, deadline.timeout)
        return OperationTimeoutError(self.operation, deadline.timeout, sent=False)

    def wait(self, deadline: Deadline, error: MonoError | None = None) -> None:
        """Wait until the next attempt, each time longer."""
        remaining = deadline.remaining
        if remaining is not None and remaining <= self.pause:
            if self.in_doubt or error is None:
                raise self._timed_out(deadline) from error
            raise error
        time.sleep(self.pause)
        self.pause = min(2 * self.pause, _LONGEST_PAUSE)


class AtomicBatches(ExactlyOnce):
    """Stores batches of messages, each batch as a whole and once, also when an answer is lost. Thread-safe.

    A batch can be sent again without harm: what was stored lies on top of the sequences that it expects, so that it
    cannot be stored a second time. The server looks at ids before it looks at sequences, message by message, and so
    tells what it has stored before. What it forgets when it restarts, ids of messages that were overwritten, is made up
    for by looking at what became of each of the subjects; one that tells is enough, for it is all or nothing.
    """

    LARGEST: Final = 1000
    """Messages of one batch: the server's limit, unless it is configured otherwise."""

    def __init__(self, connection: CoreConnection, jetstream: JetStream, stream: str, info: Json) -> None:
        super().__init__(connection, jetstream, stream, info)
        config = info["config"]
        self.allowed: bool = bool(config.get("allow_atomic"))
        """Whether the stream took batches when it was opened."""
        self._direct_is_newest = bool(config.get("allow_direct")) and config["num_replicas"] == 1

    def store_all(self, messages: Sequence[Conditional], deadline: Deadline, operation: str) -> int:
        """Store messages and return the sequence of the first; the others follow without a gap.

        Args:
            messages: those that expect a sequence of their own subject, at least one, then those that only assert the
                sequence of another one. Each of those subjects occurs once.
            deadline: until when to try.
            operation: what to call it in errors.

        Raises:
            BatchRefusedError: the server refused it.
            OutcomeUnknownError: it may have been stored or not.
            OperationTimeoutError: it could not be stored until the deadline, and never will be.
            NoRespondersError: no stream takes the subjects.
            JetStreamUnavailableError: JetStream is not enabled, or has no leader until the deadline.
        """
        if len(messages) == 1:  # the server takes ten times as long for a batch
            return self._store_one(messages[0], deadline, operation)
        batch = self._prepare(messages, deadline, operation)
        while True:
            try:
                first = self._try(batch, deadline)
            except OperationTimeoutError as error:
                batch.outlast(error, deadline)
            except (NoRespondersError, JetStreamUnavailableError) as error:
                if not self._will_return(error, deadline):
                    raise
                batch.wait(deadline, error)
            else:
                if first is not None:
                    self.saw(first + len(messages) - 1)
                    return first
                batch.wait(deadline)

    def _store_one(self, message: Conditional, deadline: Deadline, operation: str) -> int:
        headers = dict(message.headers)
        try:
            return self.store(message.subject, message.data, headers, deadline, operation, expected=message.expected)
        except MessageTooLargeError as error:
            raise BatchRefusedError(0, error) from error
        except JetStreamAPIError as error:
            raise BatchRefusedError(0, error, actual_revision(error) if is_conflict(error) else None) from error

    def _prepare(self, messages: Sequence[Conditional], deadline: Deadline, operation: str) -> _Batch:
        name, most = self._connection.new_id(deadline), self._connection.server_info.max_payload
        server, started = self._connection.server_info.id, time.monotonic()
        blocks, writes = [], []
        for index, message in enumerate(messages):
            headers = {**message.headers, EXPECTED_REVISION: str(message.expected)}
            if message.of:
                headers[_EXPECTED_SUBJECT] = message.of
            else:
                headers[MESSAGE_ID] = message_id = f"{name}-{index}"
                write = Write(
                    message.subject,
                    message.data,
                    b"",
                    message_id,
                    message.expected,
                    message.expected,
                    server,
                    started,
                    started,
                    operation,
                )
                writes.append(write)
            blocks.append(headers)
            size = len(message.data) + len(encode_known_headers({**headers, **_batch_headers("x" * 32, 1000, 1000)}))
            if size > most:
                raise BatchRefusedError(index, MessageTooLargeError(size, most))
        return _Batch(messages, blocks, writes, operation)

    def _try(self, batch: _Batch, deadline: Deadline) -> int | None:
        """Make an attempt; return the sequence of the first message, or None where another attempt may succeed."""
        try:
            try:
                return self._send_all(batch, deadline) - len(batch.messages) + 1
            except BatchRefusedError as refused:
                return self._judge(batch, refused, deadline)
        except ConnectionLostError:
            batch.in_doubt = True
        except JetStreamAPIError as error:  # a question about an id whose message is being stored at this moment
            if error.err_code != _IN_PROCESS:
                raise
        return None

    def _send_all(self, batch: _Batch, deadline: Deadline) -> int:
        """Send all messages at once and return the sequence of the last.

        Each one asks for an answer: only so is it known which was refused. The first refusal counts, for all that
        follow it are refused as well.
        """
        in_cluster = bool(self._connection.server_info.cluster)  # there the leader may die, and no connection break
        batch_id, last, operation = self._connection.new_id(deadline), len(batch.messages) - 1, batch.operation
        with self._connection.inbox(deadline) as inbox:
            _ask(inbox, self._questions(batch, batch_id), deadline, operation)
            while True:
                answer = inbox.next_within(_PATIENCE, operation) if in_cluster else inbox.next(operation)
                if answer is None:
                    raise OperationTimeoutError(operation, deadline.timeout)
                if answer.status is None and not answer.data:  # one that is no commit has been taken
                    continue
                index = int(answer.subject.rpartition(".")[2])
                try:
                    sequence = self._jetstream.read_ack(answer, operation).sequence
                except JetStreamAPIError as error:
                    raise BatchRefusedError(index, error) from error
                if index == last:
                    return sequence

    @staticmethod
    def _questions(batch: _Batch, batch_id: str) -> Iterator[Question]:
        count = len(batch.messages)
        for index, (message, headers) in enumerate(zip(batch.messages, batch.blocks, strict=True)):
            block = encode_known_headers({**headers, **_batch_headers(batch_id, index + 1, count)})
            yield message.subject, message.data, block, str(index)

    # --- after a refusal

    def _judge(self, batch: _Batch, refused: BatchRefusedError, deadline: Deadline) -> int | None:
        """Tell a refusal that counts from those that an attempt of our own has caused, and from those that pass.

        Replicated streams also refuse a sequence that is right while another message to the subject, or another
        assertion of it, is on its way to the replicas.
        """
        reason = refused.reason
        if not isinstance(reason, JetStreamAPIError):
            raise refused
        if reason.err_code in _TEMPORARY:
            return None
        if reason.err_code == _KNOWN_ID:
            return self._find_batch(batch, deadline, stored=True)
        if batch.in_doubt and (first := self._find_batch(batch, deadline, stored=False)) is not None:
            return first
        if not is_conflict(reason):
            raise refused
        subjects = [message.of or message.subject for message in batch.messages]
        for index, actual in enumerate(self._last_sequences(subjects, deadline)):
            if actual != batch.messages[index].expected:
                raise BatchRefusedError(index, reason, actual) from reason
        return None

    def _last_sequences(self, subjects: Sequence[str], deadline: Deadline) -> list[int]:
        direct = self._direct_is_newest
        found = last_of_many(self._connection, self._jetstream, self._stream, subjects, deadline, direct=direct)
        return [0 if message is None else message.sequence for message in found]

    def _find_batch(self, batch: _Batch, deadline: Deadline, *, stored: bool) -> int | None:
        """Return where the first message of a batch was stored by an earlier attempt; None: it was not.

        Raises:
            OutcomeUnknownError: nothing tells.
        """
        for index, write in enumerate(batch.writes):
            known = self._ask_for_id(write, deadline)
            if known is not None:
                return known - index
        if not stored and self._remembers(batch.writes[0]):
            return None
        unknown: OutcomeUnknownError | None = None
        for index, write in enumerate(batch.writes):
            try:
                place = self._look_for(write, deadline)
            except OutcomeUnknownError as error:
                unknown = error
                continue
            if place is not None:
                return place - index
            if not stored:
                return None
        raise unknown or OutcomeUnknownError(batch.operation, None, "the server knows it and has lost it")

    def _remembers(self, write: Write) -> bool:
        """Return whether the server we are connected to knows every id that it has stored since the first attempt."""
        server = self._connection.server_info
        return time.monotonic() < write.since + self._window and not server.cluster and server.id == write.server

    def _look_for(self, write: Write, deadline: Deadline) -> int | None:
        newest = self._jetstream.last(self._stream, write.subject, direct=False, deadline=deadline)
        if newest is None or newest.sequence <= write.base:
            return None
        if newest.headers.get(MESSAGE_ID) == write.message_id:
            return newest.sequence
        if newest.headers.get(EXPECTED_REVISION) == str(write.base) and _EXPECTED_SUBJECT not in newest.headers:
            return None  # it came right on top, and so instead
        return self._find_in_history(write, newest, deadline)


def _ask(inbox: Inbox, questions: Iterator[Question], deadline: Deadline, operation: str) -> None:
    """Send in portions: so large batches need not be in memory a second time, and go into the socket's queue."""
    begun = False
    for first in questions:
        portion, size = [first], len(first[1])
        while size < _BYTES_AT_ONCE and (following := list(islice(questions, 1))):
            portion += following
            size += len(following[0][1])
        try:
            inbox.ask_all(portion, deadline=deadline)
        except OperationTimeoutError as error:
            raise OperationTimeoutError(operation, deadline.timeout, sent=begun) from error
        begun = True


def _batch_headers(batch_id: str, sequence: int, count: int) -> dict[str, str]:
    headers = {"Nats-Batch-Id": batch_id, "Nats-Batch-Sequence": str(sequence)}
    if sequence == count:
        headers["Nats-Batch-Commit"] = "1"
    return headers
