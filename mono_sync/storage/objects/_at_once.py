"""A new object of one chunk in one round trip: its description goes along with the chunk."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from mono_sync._durations import Deadline
from mono_sync.connection import ExactlyOnce, Json, Question, Write, is_conflict, is_out_of_turn, read_ack
from mono_sync.errors import (
    ConnectionLostError,
    JetStreamAPIError,
    JetStreamUnavailableError,
    NoRespondersError,
    OperationTimeoutError,
    OutcomeUnknownError,
    PermissionDeniedError,
)
from mono_sync.storage.objects._sink import ChunksLostError, Sink

_DESCRIBED: Final = "described"
_GONE: Final = 404
_REFUSALS: Final = (NoRespondersError, JetStreamUnavailableError, JetStreamAPIError)
_LEFT_OPEN: Final = (
    ChunksLostError,
    OperationTimeoutError,
    ConnectionLostError,
    NoRespondersError,
    JetStreamUnavailableError,
    PermissionDeniedError,
)


class AtOnce:
    """A description that is sent right behind the only chunk of its version. One thread, once.

    The server stores it only where there is nothing yet, and only if that chunk was stored right before it: so nobody
    ever sees an object whose chunk was refused. Where it is refused itself, it has to be stored in another way.

    Args:
        meta: what it says.
        writer: the stream.
        write: what stores it on these conditions.
        operation: what to call it in errors.

    Attributes:
        meta: what it says.
        in_doubt: whether it may be stored, or may still arrive and be: then its chunk must stay.
        question: what to send behind the chunk.
    """

    def __init__(self, meta: Json, writer: ExactlyOnce, write: Write, operation: str) -> None:
        self.meta: Json = meta
        self.in_doubt: bool = True
        self.question: Question = (write.subject, write.data, write.block, _DESCRIBED)
        self._writer = writer
        self._write = write
        self._operation = operation

    def conclude(self, sink: Sink, chunk: Write, deadline: Deadline) -> int | None:
        """Wait until the chunk is stored, and return the revision of the description; None: it was and will be refused.

        Raises:
            JetStreamAPIError: the server refused one of them for a reason that would hold for another way as well.
            OutcomeUnknownError: the description may be stored.
        """
        answer = sink.answers.get(_DESCRIBED)
        if answer is None:
            return self._find_out(sink, chunk, deadline)
        revision = self._outcome(lambda: read_ack(answer, self._operation))
        if revision is None:
            sink.end_last(chunk, deadline)
        else:
            self._writer.saw(revision)
            sink.stored += len(chunk.data)
        return revision

    def learn(self, sink: Sink) -> None:
        """Learn what has become of it from an answer that came after an upload had ended."""
        answer = sink.answers.get(_DESCRIBED)
        if answer is not None:
            try:
                read_ack(answer, self._operation)
            except _REFUSALS:
                self.in_doubt = False

    def _find_out(self, sink: Sink, chunk: Write, deadline: Deadline) -> int | None:
        """Do so where no answer came.

        First the chunk: as long as that is not stored, one that arrives late may bring along its description.
        """
        try:
            sink.end_last(chunk, deadline)
            if not sink.is_whole(deadline) and self._writer.find(self._write, deadline) is None:
                raise ChunksLostError("its chunks are gone")
        except OutcomeUnknownError:
            raise
        except _LEFT_OPEN as error:
            raise self._unknown(error, deadline) from error
        except JetStreamAPIError as error:
            if error.code == _GONE:  # the bucket is
                raise
            if sink.stored or not sink.last_is_answered:
                raise self._unknown(error, deadline) from error
            self.in_doubt = False
            raise
        return self._outcome(lambda: self._writer.carry_out(self._write, deadline, in_doubt=True))

    def _outcome(self, ask: Callable[[], int]) -> int | None:
        try:
            return ask()
        except _REFUSALS as error:
            self.in_doubt = False
            if isinstance(error, JetStreamAPIError) and not (is_conflict(error) or is_out_of_turn(error)):
                raise
            return None

    def _unknown(self, error: Exception, deadline: Deadline) -> OutcomeUnknownError:
        timeout = deadline.timeout if deadline.expired else None
        return OutcomeUnknownError(self._operation, timeout, "" if timeout else str(error))
