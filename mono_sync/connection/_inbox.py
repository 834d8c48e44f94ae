"""Messages of one subscription, taken by a blocking caller one after the other."""

from __future__ import annotations

import queue
import threading
from types import TracebackType
from typing import Protocol, Self

from mono_sync._durations import Deadline
from mono_sync.adapter import Listening, Message, Payload
from mono_sync.errors import NatsConnectionError, OperationTimeoutError

_LONGEST_WAIT = threading.TIMEOUT_MAX / 2  # what a queue can wait for; as good as for ever


class Listener(Protocol):
    """What an inbox needs of its connection."""

    def publish(self, subject: str, data: Payload, *, reply: str, timeout: Deadline) -> None:
        """Send a message."""

    def start_listening(self, listening: Listening, deadline: Deadline) -> None:
        """Begin a subscription."""

    def stop_listening(self, listening: Listening) -> None:
        """End it."""


class Inbox:
    """A private subject and what arrives on it; a context manager. One thread at a time.

    Messages are kept without limit: whoever asks for them bounds how many can come.
    """

    def __init__(self, connection: Listener, subject: str, deadline: Deadline) -> None:
        self._connection = connection
        self._deadline = deadline
        self._arrived: queue.SimpleQueue[Message | NatsConnectionError] = queue.SimpleQueue()
        self.subject: str = f"{subject}.m"  # one token more than the subjects on which requests wait for their answers
        """Where answers are to be sent."""
        self._listening = Listening(self.subject, self._arrived.put, self._arrived.put)
        self._open = False

    def ask(self, subject: str, data: Payload) -> None:
        """Send a message whose answers come here."""
        self._listening.asked[subject.lower()] = subject
        self._connection.publish(subject, data, reply=self.subject, timeout=self._deadline)

    def next(self, operation: str) -> Message:
        """Return the next message.

        Raises:
            OperationTimeoutError: none came before the deadline of the inbox.
            ConnectionLostError: the connection broke; what was to come is lost.
            ConnectionClosedError: the connection was closed.
            PermissionDeniedError: the server refused what was asked.
        """
        message = self.poll(self._deadline.remaining)
        if message is None:
            raise OperationTimeoutError(operation, self._deadline.timeout)
        return message

    def next_within(self, seconds: float, operation: str) -> Message | None:
        """Return the next message, or None when none came within ``seconds``. Raises what `next` raises."""
        remaining = self._deadline.remaining
        if remaining is not None and remaining <= seconds:
            return self.next(operation)
        return self.poll(seconds)

    def poll(self, seconds: float | None) -> Message | None:
        """Return the next message, or None when none came within ``seconds``, also after the deadline of the inbox."""
        try:
            arrived = self._arrived.get(timeout=seconds if seconds is None else min(seconds, _LONGEST_WAIT))
        except queue.Empty:
            return None
        if isinstance(arrived, NatsConnectionError):
            raise arrived
        return arrived

    def __enter__(self) -> Self:
        self._open = True
        try:
            self._connection.start_listening(self._listening, self._deadline)
        except BaseException:  # an interrupt may come when it has begun
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._end()

    def _end(self) -> None:
        self._connection.stop_listening(self._listening)
        self._open = False

    def __del__(self) -> None:
        if self._open:  # an interrupt kept `__exit__` from doing its work
            self._end()
