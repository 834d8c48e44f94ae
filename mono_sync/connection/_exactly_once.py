"""Writes that happen once, however often they have to be sent."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from typing import Final

from mono_sync._durations import Deadline
from mono_sync.adapter import encode_known_headers
from mono_sync.connection._connection import CoreConnection
from mono_sync.connection._jetstream import JetStream, Json, PubAck, StoredMessage
from mono_sync.errors import (
    ConnectionLostError,
    JetStreamAPIError,
    JetStreamUnavailableError,
    NoRespondersError,
    OperationTimeoutError,
    OutcomeUnknownError,
)

MESSAGE_ID: Final = "Nats-Msg-Id"
EXPECTED_REVISION: Final = "Nats-Expected-Last-Subject-Sequence"
"""Header of a write that is to be refused unless its subject is at this revision; 0: unless there is none."""

_WRONG_LAST_SEQUENCE: Final = frozenset({10071, 10164})
_IN_PROCESS: Final = 10158
_ACTUAL: Final = re.compile(r"wrong last sequence: (\d+)")

_CHECKS_REVISION_FIRST: Final = "2.12.0"  # older servers look for the id first: their conflicts are real ones
_PROBE: Final = {"Nats-Rollup": "probe"}  # no value that a server stores, and it looks at ids before it says so
_ROLLUP_FAILED: Final = 10111
_PATIENCE: Final = 1.5
_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.02, 0.5
_WINDOW_MARGIN: Final = 0.8


def is_conflict(error: JetStreamAPIError) -> bool:
    """Return whether the server refused because of the expected revision."""
    return error.err_code in _WRONG_LAST_SEQUENCE


def actual_revision(error: JetStreamAPIError) -> int | None:
    """Return the revision that the server named instead of the expected one."""
    match = _ACTUAL.search(error.description)
    return int(match[1]) if match else None


@dataclass(slots=True)
class Write:
    """One write, from its first attempt to its end."""

    subject: str
    data: bytes
    block: bytes
    message_id: str
    expected: int | None
    base: int
    """A revision that the subject had, or may have had, when it was sent first: if it was stored, it is a later one."""
    server: str
    started: float
    operation: str


class ExactlyOnce:
    """Stores messages in one stream, each once, also when the answer to an attempt is lost. Thread-safe.

    Each message carries an id (`Nats-Msg-Id`) by which the server knows it again for the time of the stream's
    ``duplicate_window``, so it can be sent again. That alone is not enough: servers from 2.12 on check the expected
    revision before they look for the id, so a write can seem to conflict with itself; and a server that restarts
    forgets the ids of messages that had been overwritten by then. What is true is then found by a question about the id
    that stores nothing, and by what the stream still holds. Where neither can tell, `OutcomeUnknownError` says so.

    Args:
        jetstream: the API.
        stream: name of the stream.
        info: the server's description of the stream.
    """

    def __init__(self, connection: CoreConnection, jetstream: JetStream, stream: str, info: Json) -> None:
        self._connection = connection
        self._jetstream = jetstream
        self._stream = stream
        config = info["config"]
        self._window = config.get("duplicate_window", 0) / 1e9 * _WINDOW_MARGIN
        self._history = config.get("max_msgs_per_subject", -1)
        self._seen: int = info["state"]["last_seq"]

    def store(
        self,
        subject: str,
        data: bytes,
        headers: dict[str, str],
        deadline: Deadline,
        operation: str,
        *,
        expected: int | None = None,
    ) -> int:
        """Store a message and return its sequence.

        Args:
            subject: where it goes.
            data: its payload.
            headers: names and values that NATS can carry.
            deadline: until when to try.
            operation: what to call it in errors.
            expected: store it only on top of this sequence of its subject; 0: only if there is none.

        Raises:
            JetStreamAPIError: the server refused it; `is_conflict` tells whether for the sake of ``expected``.
            OutcomeUnknownError: it may have been stored or not.
            OperationTimeoutError: it could not be sent until the deadline, and never will be.
            NoRespondersError: no stream takes the subject.
            JetStreamUnavailableError: JetStream is not enabled, or has no leader until the deadline.
        """
        message_id = self._connection.new_id(deadline)
        marked = {MESSAGE_ID: message_id, **headers}
        if expected is not None:
            marked[EXPECTED_REVISION] = str(expected)
        write = Write(
            subject,
            data,
            encode_known_headers(marked),
            message_id,
            expected,
            self._seen if expected is None else expected,
            self._connection.server_info.id,
            time.monotonic(),
            operation,
        )
        sequence = self._carry_out(write, deadline)
        self._seen = max(self._seen, sequence)  # threads may race here: the smaller one is true as well
        return sequence

    def _carry_out(self, write: Write, deadline: Deadline) -> int:
        """Send, and send again, until it is known what became of it."""
        in_doubt, pause = False, _SHORTEST_PAUSE
        while True:
            try:
                return self._settle(write, deadline) if in_doubt else self._send(write, deadline).sequence
            except ConnectionLostError:
                in_doubt = True
            except OperationTimeoutError as error:
                in_doubt = in_doubt or error.sent
                if deadline.expired:
                    if in_doubt:
                        raise OutcomeUnknownError(write.operation, deadline.timeout) from error
                    raise
            except (NoRespondersError, JetStreamUnavailableError) as error:
                if not self._will_return(error, deadline):
                    raise
                remaining = deadline.remaining
                if remaining is not None and remaining <= pause:
                    if in_doubt:
                        raise OutcomeUnknownError(write.operation, deadline.timeout) from error
                    raise
                time.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)

    def _send(self, write: Write, deadline: Deadline) -> PubAck:
        """Make one attempt. In a cluster the leader may die with the answer, and no connection break."""
        if self._connection.server_info.cluster:
            deadline = deadline.at_most(_PATIENCE)
        message = self._connection.exchange(write.subject, write.data, write.block, deadline)
        return self._jetstream.read_ack(message, write.operation)

    def _will_return(self, error: NoRespondersError | JetStreamUnavailableError, deadline: Deadline) -> bool:
        """Return whether a stream that does not answer is there; a cluster that elects a leader does not, for a while.

        Raises:
            JetStreamAPIError: the stream is gone.
        """
        if isinstance(error, JetStreamUnavailableError):
            return error.temporary
        try:
            self._jetstream.stream_info(self._stream, deadline.at_most(_PATIENCE))
        except JetStreamUnavailableError as unavailable:
            return unavailable.temporary
        except (ConnectionLostError, OperationTimeoutError):
            return not deadline.expired
        return True

    # --- after an attempt whose answer was lost

    def _settle(self, write: Write, deadline: Deadline) -> int:
        """Find out whether an earlier attempt was stored, and make another one if not; return the sequence."""
        if self._remembers(write):
            return self._send_again(write, deadline)
        known = self._ask_for_id(write, deadline)
        if known is not None:
            return known
        newest = self._last(write, deadline)
        if newest is not None and newest.headers.get(MESSAGE_ID) == write.message_id:
            return newest.sequence
        if newest is None or newest.sequence <= write.base:  # nothing came after the first attempt
            return self._send_again(write, deadline)
        if newest.headers.get(EXPECTED_REVISION) != str(write.base):  # else it came right on top, and so instead
            found = self._find_in_history(write, newest, deadline)
            if found is not None:
                return found
        return self._send_again(write, deadline)

    def _remembers(self, write: Write) -> bool:
        """Return whether the server knows every id that it has stored since the first attempt.

        The server that we are connected to is known by its identity, which changes with each start; which one leads a
        stream in a cluster, and since when, is not.
        """
        server = self._connection.server_info
        within = time.monotonic() - write.started < self._window
        return within and not server.cluster and server.id == write.server

    def _send_again(self, write: Write, deadline: Deadline) -> int:
        """Send it once more; a conflict may be one with itself, where the server checks the revision first."""
        try:
            return self._send(write, deadline).sequence
        except JetStreamAPIError as error:
            if error.err_code == _IN_PROCESS:  # the first attempt is being stored at this moment
                raise NoRespondersError(write.subject) from error
            if not is_conflict(error):
                raise
            known = self._ask_for_id(write, deadline)
            if known is None:
                raise
            return known

    def _ask_for_id(self, write: Write, deadline: Deadline) -> int | None:
        """Return the sequence under which the server knows the id; nothing is stored."""
        if not self._connection.server_info.supports(_CHECKS_REVISION_FIRST):
            return None
        block = encode_known_headers({MESSAGE_ID: write.message_id, **_PROBE})
        try:
            answer = self._connection.exchange(write.subject, b"", block, deadline)
            return self._jetstream.read_ack(answer, write.operation).sequence
        except JetStreamAPIError as error:
            if error.err_code == _ROLLUP_FAILED:
                return None
            raise

    def _last(self, write: Write, deadline: Deadline) -> StoredMessage | None:
        return self._jetstream.last(self._stream, write.subject, direct=False, deadline=deadline)

    def _find_in_history(self, write: Write, newest: StoredMessage, deadline: Deadline) -> int | None:
        """Return where the message is among those that came after the first attempt; None: it never was stored.

        Raises:
            OutcomeUnknownError: as many came as the stream keeps, so it may have been among those that are gone.
        """
        position, count = write.base + 1, 0
        while position <= newest.sequence:
            found = self._jetstream.next_of(self._stream, write.subject, position, deadline)
            if found is None:
                break
            if found.headers.get(MESSAGE_ID) == write.message_id:
                return found.sequence
            count += 1
            position = found.sequence + 1
        if 0 < self._history <= count:
            reason = "the key has been overwritten and the server has restarted, so nothing tells any more"
            raise OutcomeUnknownError(write.operation, None, reason)
        return None
