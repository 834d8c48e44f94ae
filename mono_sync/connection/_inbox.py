"""Messages of one subscription, taken by a blocking caller one after the other."""

from __future__ import annotations

import queue
from types import TracebackType
from typing import Protocol, Self

from mono_sync._durations import Deadline
from mono_sync.adapter import Listening, Message
from mono_sync.errors import NatsConnectionError, OperationTimeoutError


class Listener(Protocol):
    """What an inbox needs of its connection."""

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
        self._listening = Listening(f"{subject}.*", self._arrived.put, self._arrived.put)
        self._subject = subject

    def subject(self, token: object) -> str:
        """Return a reply subject that ends in ``token``."""
        return f"{self._subject}.{token}"

    def next(self, operation: str) -> Message:
        """Return the next message.

        Raises:
            OperationTimeoutError: none came before the deadline of the inbox.
            ConnectionLostError: the connection broke; what was to come is lost.
            ConnectionClosedError: the connection was closed.
        """
        message = self._take(self._deadline.remaining)
        if message is None:
            raise OperationTimeoutError(operation, self._deadline.timeout)
        return message

    def next_within(self, seconds: float, operation: str) -> Message | None:
        """Return the next message, or None when none came within ``seconds``. Raises what `next` raises."""
        remaining = self._deadline.remaining
        if remaining is not None and remaining <= seconds:
            return self.next(operation)
        return self._take(seconds)

    def _take(self, seconds: float | None) -> Message | None:
        try:
            arrived = self._arrived.get(timeout=seconds)
        except queue.Empty:
            return None
        if isinstance(arrived, NatsConnectionError):
            raise arrived
        return arrived

    def __enter__(self) -> Self:
        self._connection.start_listening(self._listening, self._deadline)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._connection.stop_listening(self._listening)
