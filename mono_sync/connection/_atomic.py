"""Several messages that are stored all or none, on top of known revisions (NATS ADR-50)."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple, NoReturn

from mono_sync._durations import Deadline
from mono_sync.adapter import encode_known_headers
from mono_sync.connection._answers import Json, read_ack
from mono_sync.connection._connection import CoreConnection
from mono_sync.connection._exactly_once import EXPECTED_REVISION, ExactlyOnce, Write, actual_revision, is_conflict
from mono_sync.connection._inbox import Inbox, Question
from mono_sync.connection._jetstream import JetStream
from mono_sync.connection._reading import StreamReader
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
_PASSES: Final = frozenset({10158, 10176, 10210})  # id under way, batch incomplete, too many batches under way
_PATIENCE: Final = 1.5
_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.005, 0.5
_BYTES_AT_ONCE: Final = 4 << 20


class Conditional(NamedTuple):
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

    @property
    def asserted(self) -> str:
        """The subject whose last sequence it expects."""
        return self.of or self.subject


class BatchRefusedError(Exception):
    """The server stored nothing of a batch.

    Attributes:
        index: the message that was the reason, as far as the server tells: it does not for all.
        reason: what it said.
        actual: where an expected sequence was the reason, the one found instead, if that is known.
    """

    def __init__(self, index: int, reason: MonoError, actual: int | None = None) -> None:
        self.index = index
        self.reason = reason
        self.actual = actual
        super().__init__(index, reason, actual)


@dataclass(slots=True, eq=False, repr=False)
class _Batch:
    """One batch, from its first attempt to its end."""

    messages: Sequence[Conditional]
    operation: str
    blocks: list[bytes] = field(default_factory=list)
    writes: list[Write] = field(default_factory=list)
    """Those that go to the subject whose sequence they expect: once stored, they can be found."""
    in_doubt: bool = False
    """Whether an attempt may have been stored."""
    pause: float = _SHORTEST_PAUSE

    def give_up(self, error: MonoError, timeout: float | None) -> NoReturn:
        """Raise what there is to tell: a reason is as good as known only if no attempt was made before."""
        if self.in_doubt:
            raise OutcomeUnknownError(self.operation, timeout, str(error) if timeout is None else "") from error
        raise error

    def outlast(self, error: OperationTimeoutError, deadline: Deadline) -> None:
        """Do nothing if there is time for another attempt: not the whole call has timed out, but a step of it."""
        if isinstance(error, OutcomeUnknownError):  # more attempts would not tell more
            raise error
        self.in_doubt = self.in_doubt or error.sent
        if deadline.expired:
            self.give_up(error, deadline.timeout)

    def wait(self, deadline: Deadline, error: MonoError | None = None) -> None:
        """Wait until the next attempt, each time longer."""
        remaining = deadline.remaining
        if remaining is not None and remaining <= self.pause:
            timed_out = OperationTimeoutError(self.operation, deadline.timeout, sent=False)
            self.give_up(error or timed_out, deadline.timeout)
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
        self._reader = StreamReader(connection, jetstream, stream)
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
            except ConnectionLostError:
                batch.in_doubt = True
            except OperationTimeoutError as error:
                batch.outlast(error, deadline)
            except (NoRespondersError, JetStreamUnavailableError) as error:
                if not self._will_return(error, deadline):
                    batch.give_up(error, None)
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
            raise BatchRefusedError(0, error, actual_revision(error)) from error

    def _prepare(self, messages: Sequence[Conditional], deadline: Deadline, operation: str) -> _Batch:
        batch, most = _Batch(messages, operation), self._connection.server_info.max_payload
        longest = len(_in_batch(b"", self._connection.new_id(deadline), len(messages), len(messages)))
        for index, message in enumerate(messages):
            headers = dict(message.headers)
            if message.of:
                headers |= {EXPECTED_REVISION: str(message.expected), _EXPECTED_SUBJECT: message.of}
                batch.blocks.append(encode_known_headers(headers))
            else:
                write = self.prepare(
                    message.subject, message.data, headers, deadline, operation, expected=message.expected
                )
                batch.writes.append(write)
                batch.blocks.append(write.block)
            size = len(message.data) + len(batch.blocks[-1]) + longest
            if size > most:
                raise BatchRefusedError(index, MessageTooLargeError(size, most))
        return batch

    def _try(self, batch: _Batch, deadline: Deadline) -> int | None:
        """Make an attempt; return the sequence of the first message, or None where another attempt may succeed."""
        try:
            return self._send_all(batch, deadline) - len(batch.messages) + 1
        except BatchRefusedError as refused:
            return self._judge(batch, refused, deadline)

    def _send_all(self, batch: _Batch, deadline: Deadline) -> int:
        """Send all messages at once and return the sequence of the last.

        Each one asks for an answer: only so is it known which was refused. The first refusal counts, for all that
        follow it are refused as well.
        """
        in_cluster = bool(self._connection.server_info.cluster)  # there the leader may die, and no connection break
        batch_id, last, operation = self._connection.new_id(deadline), len(batch.messages) - 1, batch.operation
        with self._connection.inbox(deadline) as inbox:
            _ask(inbox, _questions(batch, batch_id), deadline, operation)
            while True:
                answer = inbox.next_within(_PATIENCE, operation) if in_cluster else inbox.next(operation)
                if answer is None:
                    raise OperationTimeoutError(operation, deadline.timeout)
                if answer.status is None and not answer.data:  # one that is no commit has been taken
                    continue
                index = int(answer.subject.rpartition(".")[2])
                try:
                    sequence = read_ack(answer, operation)
                except JetStreamAPIError as error:
                    raise BatchRefusedError(index, error) from error
                if index == last:
                    return sequence

    # --- after a refusal

    def _judge(self, batch: _Batch, refused: BatchRefusedError, deadline: Deadline) -> int | None:
        """Tell a refusal that counts from those that an attempt of our own has caused, and from those that pass.

        Replicated streams also refuse a sequence that is right while another message to the subject, or another
        assertion of it, is on its way to the replicas.
        """
        reason = refused.reason
        assert isinstance(reason, JetStreamAPIError)
        if reason.err_code in _PASSES:
            return None
        if reason.err_code == _KNOWN_ID:
            return self._find(batch, deadline, stored=True)
        if batch.in_doubt and (first := self._find(batch, deadline, stored=False)) is not None:
            return first
        if not is_conflict(reason):
            if batch.in_doubt:
                batch.give_up(reason, None)
            raise refused
        found = self._reader.stored_newest_of(
            [message.asserted for message in batch.messages], deadline, direct=self._direct_is_newest
        )
        for index, message in enumerate(batch.messages):
            actual = found[message.asserted].sequence if message.asserted in found else 0
            if actual != message.expected:
                raise BatchRefusedError(index, reason, actual) from reason
        return None

    def _find(self, batch: _Batch, deadline: Deadline, *, stored: bool) -> int | None:
        """Return where the first message of a batch was stored by an earlier attempt; None: it was not.

        Raises:
            OutcomeUnknownError: nothing tells.
        """
        for index, write in enumerate(batch.writes):
            known = self._ask_for_id(write, deadline)
            if known is not None:
                return known - index
        if not stored and self._remembered(batch.writes[0], self._connection.server_info) > 0:
            return None
        unknown: OutcomeUnknownError | None = None
        for index, write in enumerate(batch.writes):
            try:
                place = self._find_in_stream(write, deadline)
            except OutcomeUnknownError as error:
                unknown = error
                continue
            if place is not None:
                return place - index
            if not stored:
                return None
        raise unknown or OutcomeUnknownError(batch.operation, None, "the server knows its id and has lost it")


def _ask(inbox: Inbox, questions: Iterator[Question], deadline: Deadline, operation: str) -> None:
    """Send in portions, so that a large batch need not be in memory a second time."""
    begun = False
    for first in questions:
        portion, size = [first], len(first[1])
        while size < _BYTES_AT_ONCE and (following := next(questions, None)) is not None:
            portion.append(following)
            size += len(following[1])
        try:
            inbox.ask_all(portion, deadline=deadline)
        except OperationTimeoutError as error:
            raise OperationTimeoutError(operation, deadline.timeout, sent=begun) from error
        begun = True


def _questions(batch: _Batch, batch_id: str) -> Iterator[Question]:
    count = len(batch.messages)
    for index, (message, block) in enumerate(zip(batch.messages, batch.blocks, strict=True)):
        yield message.subject, message.data, _in_batch(block, batch_id, index + 1, count), str(index)


def _in_batch(block: bytes, batch_id: str, number: int, count: int) -> bytes:
    """Add to a header block which message of which batch it is."""
    commit = "Nats-Batch-Commit: 1\r\n" if number == count else ""
    return block[:-2] + f"Nats-Batch-Id: {batch_id}\r\nNats-Batch-Sequence: {number}\r\n{commit}\r\n".encode()
