"""Reading much of one stream: the newest messages of many subjects, and of all that match."""

from __future__ import annotations

import json
from base64 import b64decode
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from time import sleep
from typing import Final, NamedTuple, TypeVar

from mono_sync._durations import Deadline
from mono_sync.adapter import Message
from mono_sync.connection._answers import Json, StoredMessage, parse_time, place_of, read_direct, read_raw
from mono_sync.connection._connection import CoreConnection
from mono_sync.connection._jetstream import NO_MESSAGE, JetStream, direct_question
from mono_sync.connection._pipeline import ask_each
from mono_sync.errors import ConnectionLostError, OperationTimeoutError

_MULTI: Final = "2.11.0"  # servers from here on answer for many subjects at a time
_MULTI_IN_ONE_MOMENT: Final = "2.15.0"  # older ones may overlook a subject that is written at this moment
_MOST_SUBJECTS: Final = 250  # of one request; the server takes up to 1,024
_MOST_BYTES: Final = 512 << 10  # after which the server ends an answer; one message more may be under way
_CUT_OFF: Final = 64 << 20  # the server ends a connection that has left so much unread
_BYTES_UNDER_WAY: Final = 8 << 20  # threads share a connection
_LARGEST_WINDOW: Final = 128
_PATIENCE: Final = 1.0
_PULL: Final = 4096
_PAUSE: Final = 0.1
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class Listed(NamedTuple):
    """The newest message of a subject, without its payload.

    Attributes:
        sequence: its place in the stream.
        subject: the subject.
        header_block: its headers as they came.
        nanoseconds: when it was stored, since 1970.
    """

    sequence: int
    subject: str
    header_block: bytes
    nanoseconds: int


M = TypeVar("M", StoredMessage, Listed)


class StreamReader:
    """Reads much of one stream at a time. Thread-safe.

    What is lost with a connection is asked for again. No more is under way at once than a server lets pile up.
    """

    def __init__(self, connection: CoreConnection, jetstream: JetStream, stream: str) -> None:
        self._connection = connection
        self._jetstream = jetstream
        self._stream = stream
        self._operation = f"reading stream {stream}"

    # --- of many subjects

    def newest_of(self, subjects: Iterable[str], deadline: Deadline, *, direct: bool) -> dict[str, Message]:
        """Return the newest message of each subject that has any.

        Args:
            subjects: without wildcards, each once.
            deadline: total.
            direct: whether any replica may answer.
        """
        found, rest = self._newest_of(subjects, deadline, direct=direct)
        for subject, answer in rest:
            block = b64decode(answer.get("hdrs", ""))
            found[subject] = Message(subject, b64decode(answer.get("data", "")), "", block)
        return found

    def stored_newest_of(
        self, subjects: Iterable[str], deadline: Deadline, *, direct: bool
    ) -> dict[str, StoredMessage]:
        """Do what `newest_of` does, and tell also where and when the messages were stored."""
        answered, rest = self._newest_of(subjects, deadline, direct=direct)
        found = {subject: stored for subject, message in answered.items() if (stored := read_direct(message))}
        found.update((subject, read_raw(answer)) for subject, answer in rest)
        return found

    def _newest_of(
        self, subjects: Iterable[str], deadline: Deadline, *, direct: bool
    ) -> tuple[dict[str, Message], Iterator[tuple[str, Json]]]:
        """Return answers to direct requests, and what the leader says of the other subjects."""
        found: dict[str, Message] = {}
        left = list(subjects)
        if direct and self._jetstream.takes_direct(self._stream):
            if len(left) > 1 and self._connection.server_info.supports(_MULTI):
                left = self._ask_for_several(left, found, deadline)
            left = self._ask_any_replica(left, found, deadline)
        return found, self._ask_leader(left, deadline)

    def _ask_for_several(self, subjects: Sequence[str], found: dict[str, Message], deadline: Deadline) -> list[str]:
        """Put what the server finds into ``found``; return the subjects about which it says nothing that holds."""
        info = self._connection.server_info
        waiting = deque(_parts(subjects, info.max_payload // 2))
        target, left = f"$JS.API.DIRECT.GET.{self._stream}", list[str]()

        def question(part: Sequence[str]) -> tuple[str, bytes]:
            return target, json.dumps({"multi_last": part, "max_bytes": _MOST_BYTES}).encode()

        def take(message: Message) -> bool:
            if message.status is not None:
                return True
            found[_stored_subject(message)] = message
            return False

        answers = ask_each(
            self._connection,
            waiting,
            question,
            deadline,
            self._operation,
            window=lambda _: max(1, _BYTES_UNDER_WAY // (_MOST_BYTES + info.max_payload)),
            patience=_PATIENCE,
            take=take,
        )
        for part, end in answers:
            missing = [subject for subject in part if subject not in found]
            if end is not None and _stopped_early(end) and 0 < len(missing) < len(part):
                waiting.append(missing)
            elif end is None or not _is_whole(end) or not info.supports(_MULTI_IN_ONE_MOMENT):
                left += missing
        return left

    def _ask_any_replica(self, subjects: Sequence[str], found: dict[str, Message], deadline: Deadline) -> list[str]:
        """Ask about one after the other; as above."""
        waiting, left = deque(subjects), list[str]()
        remaining = deadline.remaining
        answers = ask_each(
            self._connection,
            waiting,
            lambda subject: direct_question(self._stream, subject),
            deadline,
            self._operation,
            window=_window(self._connection.server_info.max_payload),
            patience=_PATIENCE if remaining is None else min(_PATIENCE, remaining / 2),
        )
        for subject, message in answers:
            if message is not None and message.status is None:
                found[subject] = message
            elif message is None or message.status != 404:  # nobody takes such requests any more
                left += [subject, *waiting]
                waiting.clear()
        if left:
            self._jetstream.learn_direct(self._stream, deadline)
        return left

    def _ask_leader(self, subjects: Iterable[str], deadline: Deadline) -> Iterator[tuple[str, Json]]:
        """Yield what the leader has of each subject, as it says it."""
        target = f"$JS.API.STREAM.MSG.GET.{self._stream}"
        answers = ask_each(
            self._connection,
            deque(subjects),
            lambda subject: (target, json.dumps({"last_by_subj": subject}).encode()),
            deadline,
            self._operation,
            window=_window(self._connection.server_info.max_payload * 3 // 2),  # base64
        )
        for subject, message in answers:
            answer = {} if message is None or message.status is not None else json.loads(message.data)
            if "message" not in answer and answer.get("error", {}).get("err_code") != NO_MESSAGE:
                query = {"last_by_subj": subject}  # no leader at the moment, or a real error: the call knows which
                answer = {"message": self._jetstream.get_raw(self._stream, query, deadline)}
            if answer.get("message"):
                yield subject, answer["message"]

    # --- of all subjects that match

    def newest_of_each(self, pattern: str, deadline: Deadline, *, from_leader: bool) -> list[StoredMessage]:
        """Return the newest message of every subject that matches, in the order of the stream.

        A subject that has messages during the whole call is there, however much is written meanwhile. A consumer alone
        does not give that: under concurrent writes servers miscount what is pending, and so end too early.

        Args:
            pattern: subject, perhaps with wildcards.
            deadline: total.
            from_leader: let nothing be missing that the leader knows when the call begins.
        """
        pull = partial(self._jetstream.pull_all, self._stream, pattern, deadline, policy="last_per_subject")
        newest = self._newest(pattern, deadline, pull, read_raw, from_leader=from_leader)
        return sorted(newest, key=lambda message: message.sequence)

    def all_in_order(self, pattern: str, deadline: Deadline) -> list[StoredMessage]:
        """Return all that a stream has of the subjects that match, nothing missing that the leader knows now."""
        while True:
            last = self._last_sequence(pattern, deadline)
            messages = self._jetstream.pull_all(self._stream, pattern, deadline, policy="all")
            if _reaches(messages, last):
                return messages
            self._wait_for_replica(deadline)

    def _last_sequence(self, pattern: str, deadline: Deadline) -> int:
        """Return the sequence of the newest message that the leader has of the subjects that match; 0: it has none."""
        last = self._jetstream.get_raw(self._stream, {"last_by_subj": pattern}, deadline)
        return 0 if last is None else int(last["seq"])

    def _wait_for_replica(self, deadline: Deadline) -> None:
        """Wait a moment, until a replica that lags behind has caught up, or another one is asked."""
        remaining = deadline.remaining
        if remaining is not None and remaining <= _PAUSE:
            raise OperationTimeoutError(self._operation, deadline.timeout, sent=False)
        sleep(_PAUSE)

    def list_newest(self, pattern: str, deadline: Deadline, *, from_leader: bool) -> list[Listed]:
        """Return the newest message of every subject that matches, without payloads, in the order of the stream.

        A subject that has messages during the whole call is there, however much is written meanwhile.

        Args:
            pattern: subject, perhaps with wildcards.
            deadline: total.
            from_leader: let nothing be missing that the leader knows when the call begins.
        """
        pull = partial(self._deliver, pattern, deadline)
        return sorted(self._newest(pattern, deadline, pull, _listed, from_leader=from_leader))

    def _newest(
        self,
        pattern: str,
        deadline: Deadline,
        pull: Callable[[], Iterable[M]],
        read: Callable[[Json], M],
        *,
        from_leader: bool,
    ) -> Iterable[M]:
        """Return the newest message of every subject, which a consumer delivers or else the leader answers."""
        subjects = self._jetstream.subjects(self._stream, pattern, deadline)
        if not subjects:
            return []
        last = self._last_sequence(pattern, deadline) if from_leader else 0
        newest: dict[str, M] = {}
        delivered = False
        while not delivered:
            with suppress(ConnectionLostError):  # it takes the consumer along: another one begins anew
                newest.update((message.subject, message) for message in pull())
                delivered = True
        if not _reaches(newest.values(), last):
            newest.clear()
        # Under concurrent writes servers miscount what is pending, and so a consumer ends too early.
        for subject, answer in self._ask_leader(subjects - newest.keys(), deadline):
            newest[subject] = read(answer)
        return newest.values()

    def _deliver(self, pattern: str, deadline: Deadline) -> Iterator[Listed]:
        """Yield what a consumer delivers; the last of each subject is the newest."""
        pulled = self._jetstream.pull_raw(
            self._stream, pattern, deadline, policy="last_per_subject", headers_only=True, batch=_PULL
        )
        for message in pulled:
            place = place_of(message)
            yield Listed(place.sequence, message.subject, message.header_block, place.nanoseconds)

    def purge_up_to(self, places: Iterable[tuple[str, int]], deadline: Deadline) -> int:
        """Remove the messages of each subject up to a sequence; return of how many subjects any were removed.

        It does no harm to do it again, nor to what is written meanwhile. What is asked again after the connection broke
        may have been removed by then, and is not counted.
        """
        target, removed = f"$JS.API.STREAM.PURGE.{self._stream}", 0
        answers = ask_each(
            self._connection,
            deque(places),
            lambda place: (target, json.dumps({"filter": place[0], "seq": place[1] + 1}).encode()),
            deadline,
            f"purging stream {self._stream}",
            window=lambda _: _LARGEST_WINDOW,
        )
        for (subject, sequence), message in answers:
            answer = {} if message is None or message.status is not None else json.loads(message.data)
            if "purged" not in answer or "error" in answer:
                query = {"filter": subject, "seq": sequence + 1}
                answer = self._jetstream.api(f"STREAM.PURGE.{self._stream}", query, deadline)
            removed += answer["purged"] > 0
        return removed


def _listed(message: Json) -> Listed:
    """Read a message as the leader answers it."""
    nanoseconds = (parse_time(message["time"]) - _EPOCH) // timedelta(microseconds=1) * 1000
    return Listed(int(message["seq"]), message["subject"], b64decode(message.get("hdrs", "")), nanoseconds)


def _reaches(messages: Iterable[StoredMessage | Listed], sequence: int) -> bool:
    """Return whether what a consumer delivered reaches to a sequence; else it lives on a replica that lags behind."""
    return max((message.sequence for message in messages), default=0) >= sequence


def _window(limit: int) -> Callable[[int], int]:
    """Return how many answers may be under way, given the largest yet; none is larger than ``limit``.

    Small ones let the window grow, or each would cost its share of a long way. Even if all that follow are as large as
    can be, the server does not cut us off.
    """
    first = max(1, _BYTES_UNDER_WAY // limit)
    most = max(first, min(_LARGEST_WINDOW, _CUT_OFF // limit))
    return lambda largest: max(1, min(most, _BYTES_UNDER_WAY // largest)) if 0 < largest < limit else first


def _parts(subjects: Sequence[str], most_bytes: int) -> list[Sequence[str]]:
    """Split subjects into parts whose JSON is at most that large, unless one subject alone is larger."""
    longest = max(map(len, subjects)) + 4
    most = max(1, min(_MOST_SUBJECTS, most_bytes // longest))
    return [subjects[start : start + most] for start in range(0, len(subjects), most)]


def _stored_subject(message: Message) -> str:
    """Return the subject under which a message that was got directly is stored; the server's headers come last."""
    _, found, rest = message.header_block.rpartition(b"\nNats-Subject:")
    if not found:
        raise ValueError("the server has not told the subject of a message")
    return rest.partition(b"\r")[0].strip().decode("utf-8", "replace")


def _stopped_early(message: Message) -> bool:
    """Return whether the server ended an answer because it got too large."""
    return message.status == 204 and message.headers.get("Nats-Num-Pending") != "0"


def _is_whole(message: Message) -> bool:
    """Return whether nothing is stored of what was asked for and did not come."""
    return (message.status == 204 and not _stopped_early(message)) or (
        message.status == 404 and message.description == "No Results"
    )
