"""Messages for one blocking caller, taken one after the other."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Final, Self, TypeAlias

from mono_sync._durations import Deadline
from mono_sync.adapter import Listening, Message, encode_publish
from mono_sync.connection._session import Session
from mono_sync.errors import ConnectionLostError, NatsConnectionError, OperationTimeoutError

_LONGEST_WAIT: Final = threading.TIMEOUT_MAX / 2  # what a queue can wait for; as good as for ever

Question: TypeAlias = tuple[str, bytes, bytes, str]
"""Subject, payload, header block, and the last token of the subject on which the answers come."""


class _Arrivals(queue.SimpleQueue[Message | NatsConnectionError]):
    """What has arrived; the link has it, and not the inbox, which can be collected therefore."""

    losses: int = 0

    def lose(self, error: NatsConnectionError) -> None:
        self.losses += isinstance(error, ConnectionLostError)
        self.put(error)


class Inbox:
    """A private subject and what arrives on it; a context manager. One thread at a time.

    It costs neither a round trip nor anything on the server. Messages are kept without limit: whoever asks for them
    bounds how many can come.
    """

    def __init__(self, session: Session, deadline: Deadline) -> None:
        self._session = session
        self._deadline = deadline
        self._arrived: _Arrivals = _Arrivals()
        self._listening = Listening(session.link.new_reply(), self._arrived.put, self._arrived.lose)
        self._consumer: str | None = None
        self.subject: str = f"{self._listening.subject}.m"
        """Where answers are to be sent."""

    def ask(self, subject: str, data: bytes, *, deadline: Deadline | None = None) -> None:
        """Send a message whose answers come here.

        Raises:
            OperationTimeoutError: it could not be sent until the deadline, and never will be.
        """
        self.ask_all([(subject, data, b"", "m")], deadline=deadline)

    def ask_all(
        self, questions: Iterable[Question], *, deadline: Deadline | None = None, losses: int | None = None
    ) -> None:
        """Send messages with one system call; each names the last token of its answers' subject.

        With ``losses``, how often the caller knows the connection to have broken, they are sent on that connection or
        not at all: so messages keep their order, whatever is sent again.

        Raises:
            OperationTimeoutError: none could be sent until the deadline, and none ever will be.
            ConnectionLostError: the connection has broken more often; nothing was sent.
        """
        asked, link = self._listening.asked, self._session.link
        reply, most = self._listening.subject, link.info.max_payload
        commands = []
        for subject, data, header_block, tag in questions:
            asked.add(subject)
            commands.append(encode_publish(subject, data, f"{reply}.{tag}", header_block, most))
        refused = None if losses is None else lambda: self.losses != losses
        self._session.publish(b"".join(commands), deadline or self._deadline, f"publish to {subject}", refused)

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
        if self._arrived.empty():
            remaining = self._deadline.remaining
            if remaining is not None and remaining <= seconds:
                return self.next(operation)
        return self.poll(seconds)

    def arriving(self, seconds: float, operation: str) -> Iterator[Message]:
        """Yield the next message, if one comes within ``seconds``, and all that are there. Errors as for `next`."""
        message = self.next_within(seconds, operation)
        while message is not None:
            yield message
            message = self.take()

    def take(self) -> Message | None:
        """Return the next message if it is there already. Raises what `next` raises."""
        return None if self._arrived.empty() else _message(self._arrived.get())

    def poll(self, seconds: float | None) -> Message | None:
        """Return the next message, or None when none came within ``seconds``, also after the deadline of the inbox."""
        try:
            arrived = self._arrived.get(timeout=seconds if seconds is None else min(seconds, _LONGEST_WAIT))
        except queue.Empty:
            return None
        return _message(arrived)

    @property
    def losses(self) -> int:
        """How often the connection has broken since this was made; known before any message leaves on the next one."""
        return self._arrived.losses

    @property
    def arrived(self) -> int:
        """How many messages have arrived and not been taken."""
        return self._arrived.qsize()

    def wake(self, error: NatsConnectionError) -> None:
        """Let whoever waits for a message raise ``error``, after what has arrived. Any thread."""
        self._arrived.put(error)

    def open(self) -> None:
        """Begin to receive."""
        self._session.link.open_inbox(self._listening.subject, self._listening)

    def receive_from(self, consumer: str) -> None:
        """Receive what a consumer delivers when it is asked from here; nothing any more from the one before."""
        previous, self._consumer = self._consumer, consumer
        self._session.link.open_inbox(consumer, self._listening)
        if previous is not None:
            self._session.link.close_inbox(previous)

    def close(self) -> None:
        """Receive no more; idempotent."""
        link = self._session.link
        link.close_inbox(self._listening.subject)
        if self._consumer is not None:
            link.close_inbox(self._consumer)

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "subject"):  # else an interrupt has ended `__init__`
            self.close()  # an interrupt may have kept `__exit__` from doing its work


def _message(arrived: Message | NatsConnectionError) -> Message:
    if isinstance(arrived, NatsConnectionError):
        raise arrived
    return arrived
