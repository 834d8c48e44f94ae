"""The messages of one subject that a stream holds already, pulled some ahead of their reader."""

from __future__ import annotations

import json
import secrets
from typing import Final

from mono_sync._durations import Deadline
from mono_sync.adapter import Message
from mono_sync.connection._answers import tokens_of
from mono_sync.connection._connection import CoreConnection
from mono_sync.connection._inbox import Inbox
from mono_sync.connection._jetstream import NO_CONSUMER, JetStream, consumer_config
from mono_sync.errors import JetStreamAPIError, OperationTimeoutError

_PATIENCE: Final = 1.25
_FOR_EVER: Final = Deadline(None)


class DeliveryLostError(Exception):
    """The consumer is gone, or a message that it sent, or some of those that there were: begin anew behind the last."""


class Delivery:
    """What a stream holds of one subject from a place on, in order. One thread at a time.

    For what is complete: it waits for nothing new. Messages are pulled in halves of what the reader wants to have under
    way, so that the server is not left waiting while the reader takes the last of them; and nothing is pulled unless
    somebody reads. Whatever becomes of the consumer, the reader knows how far he got, and makes another one.

    Args:
        connection: where the stream is.
        jetstream: its API.
        stream: its name.
        subject: without wildcards.
        start: sequence from which on to begin; None: with the last message only.
        headers_only: leave out the payloads; their sizes are in the header ``Nats-Msg-Size``.

    Attributes:
        start: as given.
        taken: how many messages it has returned.
    """

    def __init__(
        self,
        connection: CoreConnection,
        jetstream: JetStream,
        stream: str,
        subject: str,
        *,
        start: int | None,
        headers_only: bool = False,
    ) -> None:
        self.start: int | None = start
        self._jetstream = jetstream
        self._stream = stream
        self._name = f"mono_sync_{secrets.token_hex(11)}"
        self._config = consumer_config(
            self._name, subject, policy="last" if start is None else "all", headers_only=headers_only, start=start
        )
        self._inbox: Inbox = connection.inbox(_FOR_EVER)
        self._inbox.open()
        self._inbox.receive_from(self._name)
        self._left = 0  # not asked for
        self._asked = 0
        self.taken: int = 0

    @property
    def under_way(self) -> int:
        """How many messages have been asked for and not been taken."""
        return self._asked - self.taken

    @property
    def arrived(self) -> int:
        """How many messages have been taken or could be without waiting."""
        return self.taken + self._inbox.arrived

    def begin(self, deadline: Deadline) -> int:
        """Make the consumer; return how many messages there are to come.

        Raises:
            ConnectionLostError: in a cluster, the server that was to deliver does not answer.
            JetStreamAPIError: the server refused, because the stream is gone above all.
            OperationTimeoutError: it did not answer in time.
        """
        consumer = self._jetstream.create_consumer(self._stream, self._config, deadline)
        self._left = int(consumer["num_pending"])
        return self._left

    def next(self, deadline: Deadline, *, ahead: int) -> tuple[Message, int]:
        """Return the next message, and its sequence in the stream; the caller knows that there is one.

        Args:
            deadline: of this call. When it passes, the next call goes on.
            ahead: how many more may be under way behind it.

        Raises:
            DeliveryLostError: it will not come.
            ConnectionLostError: the connection broke.
            OperationTimeoutError: it did not come in time.
        """
        if self._left and self.under_way <= ahead // 2:
            self._pull(min(1 + ahead - self.under_way, self._left), deadline)
        message = self._inbox.take() or self._wait(deadline)
        if message.status is not None:  # whatever the reason, less than was asked for will come
            raise DeliveryLostError
        self.taken += 1
        tokens = tokens_of(message)
        if int(tokens[6]) != self.taken:
            raise DeliveryLostError
        return message, int(tokens[5])

    def close(self) -> None:
        """Receive no more, and delete the consumer without waiting for the answer."""
        self._inbox.close()
        self._jetstream.forget_consumer(self._stream, self._name)

    def abandon(self) -> None:
        """Receive no more, and send nothing: the consumer ends by itself."""
        self._inbox.close()

    def _pull(self, count: int, deadline: Deadline) -> None:
        target = f"$JS.API.CONSUMER.MSG.NEXT.{self._stream}.{self._name}"
        query = {"batch": count, "no_wait": True}
        self._inbox.ask(target, json.dumps(query).encode(), deadline=deadline)
        self._left -= count
        self._asked += count

    def _wait(self, deadline: Deadline) -> Message:
        """Wait for a message; when it stays away for long, ask whether it can come at all."""
        message = self._inbox.poll(deadline.at_most(_PATIENCE).remaining)
        if message is None and not deadline.expired:
            self._check(deadline)
            message = self._inbox.take()
            if message is None:  # the answer would have come behind it
                raise DeliveryLostError
        if message is None:
            raise OperationTimeoutError(f"reading stream {self._stream}", deadline.timeout, sent=False)
        return message

    def _check(self, deadline: Deadline) -> None:
        try:
            self._jetstream.consumer_info(self._stream, self._name, deadline)
        except JetStreamAPIError as error:
            if error.err_code == NO_CONSUMER:
                raise DeliveryLostError from error
            raise
