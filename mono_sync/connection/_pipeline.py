"""Many messages under way at a time: questions that may be asked again, and writes that happen once each."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Final, TypeVar

from mono_sync._durations import Deadline
from mono_sync.adapter import Message
from mono_sync.connection._answers import read_ack
from mono_sync.connection._connection import CoreConnection
from mono_sync.connection._exactly_once import ExactlyOnce, Unsent, Write
from mono_sync.connection._inbox import Inbox, Question
from mono_sync.errors import (
    ConnectionClosedError,
    ConnectionLostError,
    JetStreamAPIError,
    JetStreamUnavailableError,
    MessageError,
    MonoError,
    NoRespondersError,
    OperationTimeoutError,
    OutcomeUnknownError,
    PermissionDeniedError,
)

T = TypeVar("T")

_MOST_UNDER_WAY: Final = 500  # the server queues 10,000 for a stream, whoever they are from, and refuses more
_MOST_BYTES_UNDER_WAY: Final = 4 << 20
_MOST_AT_ONCE: Final = 64  # the server works on the first ones while the next are prepared
_PATIENCE: Final = 1.5  # a server that dies in a cluster takes its answers along, and no connection breaks


def ask_each(
    connection: CoreConnection,
    waiting: deque[T],
    question: Callable[[T], tuple[str, bytes]],
    deadline: Deadline,
    operation: str,
    *,
    window: Callable[[int], int],
    patience: float = _PATIENCE,
    take: Callable[[Message], bool] | None = None,
) -> Iterator[tuple[T, Message | None]]:
    """Ask about each of many items, many questions being under way at a time, and yield each with its answer.

    What is unanswered when the connection breaks is asked again: so what a question changes may be changed twice.

    Args:
        connection: where to ask.
        waiting: the items; it is emptied, and the caller may add to it meanwhile.
        question: returns subject and payload of the question about an item.
        deadline: total.
        operation: what to call it in errors.
        window: returns how many questions may be under way, given the size of the largest answer yet.
        patience: seconds without any answer after which the questions under way are given up: each yields None.
        take: takes each answer, and returns whether it is the last one to its question, which alone is yielded; None:
            every question has one.
    """
    numbers = itertools.count()
    under_way: dict[str, T] = {}
    largest, most = 0, window(0)
    with connection.inbox(deadline) as inbox:
        while waiting or under_way:
            if waiting and 2 * len(under_way) <= most:
                inbox.ask_all(_next_questions(waiting, under_way, most, question, numbers))
            silent = True
            try:
                for message in inbox.arriving(patience, operation):
                    silent = False
                    if len(message.data) > largest:
                        largest = len(message.data)
                        most = window(largest)
                    tag = message.subject.rpartition(".")[2]
                    if tag in under_way and (take is None or take(message)):
                        yield under_way.pop(tag), message
                        if waiting and 2 * len(under_way) <= most:
                            break
            except ConnectionLostError:
                waiting.extendleft(reversed(under_way.values()))
                under_way.clear()
            else:
                if silent:
                    unanswered = list(under_way.values())
                    under_way.clear()
                    yield from ((item, None) for item in unanswered)


def _next_questions(
    waiting: deque[T],
    under_way: dict[str, T],
    most: int,
    question: Callable[[T], tuple[str, bytes]],
    numbers: Iterator[int],
) -> Iterator[Question]:
    """Yield the next questions, until as many as may be are under way."""
    while waiting and len(under_way) < most:
        item, tag = waiting.popleft(), str(next(numbers))
        under_way[tag] = item
        yield (*question(item), b"", tag)


class Batch:
    """Messages that are stored in a stream, each once, many of them under way at a time. One thread, one `run`.

    They are sent in order. Where the connection breaks, or answers stay away, those under way are settled one by one
    before the next are sent.

    Attributes:
        stored: the sequences of the messages stored, by subject.
        failed: why each of the others was not stored, by subject. For the kind `OutcomeUnknownError` it may have been;
            for all other kinds it has not been, nor will it be.

    Args:
        connection: where to send.
        writer: the stream.
        messages: each of another subject.
        headers: of every message; names and values that NATS can carry.
        deadline: until when to try.
    """

    def __init__(
        self,
        connection: CoreConnection,
        writer: ExactlyOnce,
        messages: Iterable[Unsent],
        headers: dict[str, str],
        deadline: Deadline,
    ) -> None:
        self.stored: dict[str, int] = {}
        self.failed: dict[str, MonoError] = {}
        self._connection = connection
        self._writer = writer
        self._waiting = deque(messages)
        self._headers = headers
        self._deadline = deadline
        self._numbers = itertools.count()
        self._under_way: dict[str, Write] = {}
        self._bytes_under_way = 0

    def run(self) -> None:
        """Send and await the answers; return when it is known of every message what became of it, or at the deadline.

        Raises:
            OperationTimeoutError: the connection was being opened by another thread until the deadline.
            ConnectionClosedError: the connection was closed before anything was sent.
        """
        with self._connection.inbox(self._deadline) as inbox:
            self._run(inbox)
        self._writer.saw(max(self.stored.values(), default=0))

    def _run(self, inbox: Inbox) -> None:
        while self._waiting or self._under_way:
            silent = True
            try:
                if not self._deadline.expired:
                    self._send(inbox)
                for message in inbox.arriving(_PATIENCE, "storing messages"):
                    silent = False
                    self._note(message)
                    if self._has_room():
                        break
            except ConnectionLostError:
                silent = True
            except PermissionDeniedError as error:
                self._note_refusal(error)
                continue
            except (OperationTimeoutError, ConnectionClosedError) as error:
                self._give_up(error)
                return
            if silent:
                self._settle(list(self._under_way))

    def _has_room(self) -> bool:
        """Return whether enough is left of the window to be worth a system call."""
        return (
            2 * len(self._under_way) <= _MOST_UNDER_WAY and 2 * self._bytes_under_way <= _MOST_BYTES_UNDER_WAY
        ) and bool(self._waiting)

    def _send(self, inbox: Inbox) -> None:
        if not self._has_room():
            return
        while (
            self._waiting and len(self._under_way) < _MOST_UNDER_WAY and self._bytes_under_way < _MOST_BYTES_UNDER_WAY
        ):
            group = self._next_group()
            try:
                inbox.ask_all([(write.subject, write.data, write.block, tag) for tag, write in group])
            except MessageError:  # one of them is too large for the server that we have come to meanwhile
                for _, write in group:
                    self._waiting.popleft()
                    self._carry_out(write, in_doubt=False)
            else:
                for tag, write in group:
                    self._waiting.popleft()
                    self._under_way[tag] = write
                    self._bytes_under_way += len(write.data)

    def _next_group(self) -> list[tuple[str, Write]]:
        messages, size = list[Unsent](), self._bytes_under_way
        room = _MOST_UNDER_WAY - len(self._under_way)
        for message in itertools.islice(self._waiting, min(room, _MOST_AT_ONCE)):
            messages.append(message)
            size += len(message[1])
            if size >= _MOST_BYTES_UNDER_WAY:
                break
        writes = self._writer.prepare_all(messages, self._headers, self._deadline)
        return [(str(next(self._numbers)), write) for write in writes]

    def _note(self, message: Message) -> None:
        tag = message.subject.rpartition(".")[2]
        write = self._under_way.pop(tag, None)
        if write is None:
            return  # settled before
        self._bytes_under_way -= len(write.data)
        try:
            self.stored[write.subject] = read_ack(message, write.operation)
        except (NoRespondersError, JetStreamUnavailableError):  # refused unseen, for the moment
            self._carry_out(write, in_doubt=False)
        except JetStreamAPIError as error:
            self.failed[write.subject] = error

    def _note_refusal(self, error: PermissionDeniedError) -> None:
        for tag in [tag for tag, write in self._under_way.items() if write.subject == error.subject]:
            write = self._under_way.pop(tag)
            self._bytes_under_way -= len(write.data)
            self.failed[write.subject] = error

    def _settle(self, tags: list[str]) -> None:
        for tag in tags:
            write = self._under_way.pop(tag)
            self._bytes_under_way -= len(write.data)
            self._carry_out(write, in_doubt=True)

    def _carry_out(self, write: Write, *, in_doubt: bool) -> None:
        try:
            self.stored[write.subject] = self._writer.carry_out(write, self._deadline, in_doubt=in_doubt)
        except MonoError as error:
            self.failed[write.subject] = error

    def _give_up(self, error: OperationTimeoutError | ConnectionClosedError) -> None:
        """Say of all that is left what may have become of it."""
        closed, timeout = isinstance(error, ConnectionClosedError), self._deadline.timeout
        for write in self._under_way.values():
            unknown = OutcomeUnknownError(write.operation, None if closed else timeout, str(error) if closed else "")
            unknown.__cause__ = error
            self.failed[write.subject] = unknown
        for subject, _, operation in self._waiting:
            self.failed[subject] = (
                ConnectionClosedError(str(error)) if closed else OperationTimeoutError(operation, timeout, sent=False)
            )
