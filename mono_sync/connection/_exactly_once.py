"""Writes that happen once, however often they have to be sent."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, NoReturn, TypeAlias

from mono_sync._durations import Deadline
from mono_sync.adapter import OtherServerError, ServerInfo, add_known_header, encode_known_headers
from mono_sync.connection._answers import Json, StoredMessage, read_ack
from mono_sync.connection._connection import CoreConnection
from mono_sync.connection._jetstream import JetStream
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

MESSAGE_ID: Final = "Nats-Msg-Id"
EXPECTED_REVISION: Final = "Nats-Expected-Last-Subject-Sequence"
"""Header of a write that is to be refused unless its subject is at this revision; 0: unless there is none."""

_EXPECTED_LAST_ID: Final = "Nats-Expected-Last-Msg-Id"
_OTHER_SUBJECT: Final = "Nats-Expected-Last-Subject-Sequence-Subject"
_REMOVES_OTHERS: Final = ("Nats-Rollup", "Nats-Marker-Reason")
_WRONG_LAST_SEQUENCE: Final = frozenset({10071, 10164})
_WRONG_LAST_ID: Final = 10070
_UNDER_WAY: Final = frozenset({10158, 10164})  # of clusters: the message, or another one of its subject
_ACTUAL: Final = re.compile(r"wrong last sequence: (\d+)")

_CHECKS_REVISION_FIRST: Final = "2.12.0"  # older servers look for the id first: their conflicts are real ones
_PROBE: Final = {"Nats-Rollup": "probe"}  # no value that a server stores, and it looks at ids before it says so
_NO_ID: Final = frozenset({10054, 10111})  # too large, of a bucket for tiny messages; rollup failed
_PATIENCE: Final = 1.5
_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.02, 0.5
_WINDOW_MARGIN: Final = 5.0  # what the last attempt within the window may take to get there


def is_conflict(error: JetStreamAPIError) -> bool:
    """Return whether the server refused because of the expected revision."""
    return error.err_code in _WRONG_LAST_SEQUENCE


def is_out_of_turn(error: JetStreamAPIError) -> bool:
    """Return whether the server refused because another message than the expected one came before it."""
    return error.err_code == _WRONG_LAST_ID


def is_under_way(error: JetStreamAPIError) -> bool:
    """Return whether a cluster refused because the message, or another one of its subject, is on its way already."""
    return error.err_code in _UNDER_WAY


def actual_revision(error: JetStreamAPIError) -> int | None:
    """Return the revision that the server named instead of the expected one."""
    match = _ACTUAL.search(error.description)
    return int(match[1]) if match else None


Unsent: TypeAlias = tuple[str, bytes, str]
"""Subject and payload of a message, and what to call its writing in errors."""


@dataclass(slots=True, eq=False, repr=False)
class Write:
    """One write, from its first attempt to its end."""

    subject: str
    data: bytes
    block: bytes
    message_id: str
    expected: int | None
    base: int
    """What the stream had got to when it was sent first: if it was stored, it is a later one."""
    server: str
    since: float
    """All that was stored since then, while this server runs, it knows by its id."""
    started: float
    operation: str
    in_doubt: bool = False
    """Whether an attempt may have been stored."""
    refused: bool = False
    """Whether the stream has been away: its server may have started anew."""
    check: Callable[[Deadline], object] | None = None
    """Raises if it must not be sent any more. Is called before it goes to a server that may have started since."""

    def give_up(self, error: MonoError, timeout: float | None) -> NoReturn:
        """Raise what there is to tell: a reason is as good as known only if no attempt was made before."""
        if self.in_doubt:
            raise OutcomeUnknownError(self.operation, timeout, str(error) if timeout is None else "") from error
        raise error


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
        self._window: float = config.get("duplicate_window", 0) / 1e9 - _WINDOW_MARGIN
        self._max_age = config.get("max_age", 0) / 1e9
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
        (write,) = self.prepare_all(((subject, data, operation),), headers, deadline, expected=expected)
        return self.carry_out(write, deadline)

    # --- the steps of `store`, for whoever sends many messages before the first is answered

    def prepare(
        self,
        subject: str,
        data: bytes,
        headers: dict[str, str],
        deadline: Deadline,
        operation: str,
        *,
        expected: int | None = None,
        right_after: str | None = None,
    ) -> Write:
        """Give a message its id; it is to be sent for the first time soon.

        With ``right_after`` it is stored only if the newest message of the stream has this id; else `is_out_of_turn`.
        """
        if right_after is not None:
            headers = {**headers, _EXPECTED_LAST_ID: right_after}
        (write,) = self.prepare_all(((subject, data, operation),), headers, deadline, expected=expected)
        return write

    def prepare_all(
        self,
        messages: Sequence[Unsent],
        headers: dict[str, str],
        deadline: Deadline,
        *,
        expected: int | None = None,
    ) -> list[Write]:
        """Do so with messages of the same headers, which are sent together."""
        now, server = time.monotonic(), self._connection.server_info.id
        base = max(self._seen, expected or 0)
        if expected is not None:
            headers = {**headers, EXPECTED_REVISION: str(expected)}
        block = encode_known_headers(headers)
        new_id = self._connection.source_of_ids(deadline)
        return [
            Write(
                subject,
                data,
                add_known_header(block, MESSAGE_ID, message_id := new_id()),
                message_id,
                expected,
                base,
                server,
                now,
                now,
                operation,
            )
            for subject, data, operation in messages
        ]

    def saw(self, sequence: int) -> None:
        """Note that the stream has got that far: not the furthest of all, for it may have been made anew."""
        self._seen = sequence

    def carry_out(self, write: Write, deadline: Deadline, *, in_doubt: bool = False) -> int:
        """Send, and send again, until it is known what became of it; ``in_doubt`` when it may have been stored."""
        write.in_doubt, pause = in_doubt, _SHORTEST_PAUSE
        while True:
            try:
                return self._attempt(write, deadline)
            except ConnectionLostError as error:
                write.in_doubt = write.in_doubt or not isinstance(error, OtherServerError)
            except OutcomeUnknownError:
                raise
            except OperationTimeoutError as error:
                write.in_doubt = write.in_doubt or error.sent
                if deadline.expired:
                    write.give_up(error, deadline.timeout)
            except PermissionDeniedError as error:
                write.give_up(error, None)
            except (NoRespondersError, JetStreamUnavailableError) as error:
                write.refused = True
                if not self._will_return(error, deadline):
                    write.give_up(error, None)
                if (remaining := deadline.remaining) is not None and remaining <= pause:
                    write.give_up(error, deadline.timeout)
                time.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)

    def _attempt(self, write: Write, deadline: Deadline) -> int:
        if write.in_doubt:
            sequence = self._settle(write, deadline)
        else:
            sequence = self._send(write, deadline, only_to=self._checked(write, deadline))
        self.saw(sequence)
        return sequence

    def _checked(self, write: Write, deadline: Deadline) -> str:
        """Return the only server to which it may be sent; empty: any.

        In a cluster it is not known who has the stream; but one that starts anew is away for a while.
        """
        if write.check is None:
            return ""
        server, now = self._connection.server_info, time.monotonic()
        if write.refused if server.cluster else server.id != write.server:
            try:
                write.check(deadline)
            except (ConnectionLostError, OperationTimeoutError) as error:  # of the question, not of the write
                raise OperationTimeoutError(write.operation, deadline.timeout, sent=False) from error
            write.server, write.since, write.refused = server.id, now, False
        return "" if server.cluster else server.id

    def _send(self, write: Write, deadline: Deadline, *, only_to: str = "") -> int:
        """Make one attempt."""
        return self._publish(write, write.data, write.block, deadline, only_to)

    def _publish(self, write: Write, data: bytes, block: bytes, deadline: Deadline, server: str = "") -> int:
        """Publish and read the answer. In a cluster the leader may die with it, and no connection break."""
        if self._connection.server_info.cluster:
            deadline = deadline.at_most(_PATIENCE)
        message = self._connection.exchange(write.subject, data, block, deadline, server=server)
        try:
            return read_ack(message, write.operation)
        except JetStreamAPIError as error:
            if is_under_way(error):
                raise JetStreamUnavailableError(error.description, temporary=True) from error
            raise

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

    def find(self, write: Write, deadline: Deadline) -> int | None:
        """Return the sequence of a message that was sent before; None: it has not been stored. It is not sent again.

        Raises:
            OutcomeUnknownError: nothing tells any more.
            JetStreamAPIError: the server refuses to tell.
            OperationTimeoutError: it did not tell in time.
            NoRespondersError: nobody is there to tell.
            JetStreamUnavailableError: the same, for the moment.
        """
        while True:
            try:
                return self._find_once(write, deadline)
            except ConnectionLostError:
                continue  # the next question waits for a connection

    def _find_once(self, write: Write, deadline: Deadline) -> int | None:
        known = self._ask_for_id(write, deadline)
        return self._find_in_stream(write, deadline) if known is None else known

    def _settle(self, write: Write, deadline: Deadline) -> int:
        """Find out whether an earlier attempt was stored, and make another one if not; return the sequence.

        A server is known by its identity, which changes with each start. The attempt goes to the very server that was
        asked, or that has known every id from the first attempt on: one that started later may have forgotten it. In a
        cluster it is not known which server leads the stream, and since when.
        """
        server, now = self._connection.server_info, time.monotonic()
        remembered = self._remembered(write, server)
        if remembered <= 0:
            known = self._find_once(write, deadline)
            if known is not None:
                return known
            if write.check is not None:
                write.check(deadline)
            write.server, write.since = server.id, now
            attempt = deadline
        else:
            attempt = deadline.at_most(remembered)
        try:
            return self._send(write, attempt, only_to="" if server.cluster else write.server)
        except JetStreamAPIError as error:
            known = self._ask_for_id(write, deadline)  # a conflict may be one with itself
            if known is not None:
                return known
            if is_conflict(error) or is_out_of_turn(error):
                raise
            reason = f"an answer was lost, and the next attempt refused: {error.description}"
            raise OutcomeUnknownError(write.operation, None, reason) from error

    def _remembered(self, write: Write, server: ServerInfo) -> float:
        """Return for how many seconds more the server knows every id that was stored since the first attempt."""
        if server.cluster or server.id != write.server:
            return 0.0
        return write.since + self._window - time.monotonic()

    def _find_in_stream(self, write: Write, deadline: Deadline) -> int | None:
        """Return the sequence of an earlier attempt whose id the server does not know; None: none was stored.

        Raises:
            OutcomeUnknownError: the stream does not tell.
        """
        newest = self._jetstream.last(self._stream, write.subject, direct=False, deadline=deadline)
        if newest is None:
            if 0 < self._max_age <= time.monotonic() - write.started:
                raise OutcomeUnknownError(write.operation, None, "it may have expired meanwhile")
            return None
        if newest.headers.get(MESSAGE_ID) == write.message_id:
            return newest.sequence
        if newest.sequence <= write.base:  # nothing came after the first attempt
            return None
        below = newest.headers.get(EXPECTED_REVISION)
        if below is not None and int(below) <= write.base and _OTHER_SUBJECT not in newest.headers:
            return None  # it came right on top of what was there before, and so instead
        return self._find_in_history(write, newest, deadline)

    def _ask_for_id(self, write: Write, deadline: Deadline) -> int | None:
        """Return the sequence under which the server knows the id; nothing is stored.

        Where it refuses the question, as a sealed bucket does, the stream is looked into.

        Raises:
            JetStreamAPIError: it refused, and the stream has no such message.
            OutcomeUnknownError: it refused, and the stream does not tell.
        """
        if not self._connection.server_info.supports(_CHECKS_REVISION_FIRST):
            return None
        block = encode_known_headers({MESSAGE_ID: write.message_id, **_PROBE})
        try:
            return self._publish(write, b"", block, deadline)
        except JetStreamAPIError as error:
            if error.err_code in _NO_ID:
                return None
            known = self._find_in_stream(write, deadline)
            if known is None:
                raise
            return known

    def _find_in_history(self, write: Write, newest: StoredMessage, deadline: Deadline) -> int | None:
        """Return where the message is among those that came after the first attempt; None: it never was stored.

        Raises:
            OutcomeUnknownError: it may have been among those that are gone.
        """
        position, count, removed = write.base + 1, 0, False
        while position <= newest.sequence:
            found = self._jetstream.next_of(self._stream, write.subject, position, deadline)
            if found is None:
                break
            if found.headers.get(MESSAGE_ID) == write.message_id:
                return found.sequence
            count += 1
            removed = removed or any(header in found.headers for header in _REMOVES_OTHERS)
            position = found.sequence + 1
        history = self._jetstream.stream_info(self._stream, deadline)["config"].get("max_msgs_per_subject", -1)
        if removed or 0 < history <= count:
            reason = "the key has been overwritten and the server has restarted, so nothing tells any more"
            raise OutcomeUnknownError(write.operation, None, reason)
        return None
