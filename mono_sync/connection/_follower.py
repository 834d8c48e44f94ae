"""What a stream has and gets, message after message, for as long as somebody reads."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import suppress
from time import monotonic
from typing import Final, Literal, TypeAlias, TypeVar

from mono_sync._durations import Deadline
from mono_sync.adapter import Message
from mono_sync.connection._answers import Json
from mono_sync.connection._connection import CoreConnection
from mono_sync.connection._jetstream import JetStream, follower_config
from mono_sync.connection._pulling import ConsumerLostError, PullConsumer
from mono_sync.connection._state import ConnectionState
from mono_sync.errors import (
    ClosedError,
    ConnectionClosedError,
    ConnectionLostError,
    ForkedError,
    MonoError,
    OperationTimeoutError,
)

M = TypeVar("M")
T = TypeVar("T")

Start: TypeAlias = Literal["last_per_subject", "all", "new"]
"""Where to begin: with the newest message of each subject, with every message, or with those still to come."""

Followed: TypeAlias = tuple[Message, int, int]
"""A message, its sequence, and when it was stored, in nanoseconds since 1970."""

Mark: TypeAlias = tuple[int, bool, bool]
"""How far a follower has got: sequence, whether the newest of each subject are still to come, whether it caught up."""

_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.02, 0.5
_LONGEST_SLEEP: Final = 0.5
_LOOK_TIME: Final = 1.0
_PASSES_OVER_NOTHING: Final = "2.9.12"
_FEW: Final = 1024
_NOW: Final = Deadline(0)


class Follower:
    """The messages of a stream's subjects, from a start on and for ever: in order, each once, none left out.

    Nothing runs on its behalf. Whoever calls `next` asks the server, through a pull consumer, for the next few
    messages, and makes the consumer anew behind the last message when connection, server or consumer were lost. So an
    idle one costs nothing, and what is in memory is bounded by one pull.

    Args:
        connection: where the stream is.
        stream: its name.
        subject: what to follow; may have wildcards.
        start: where to begin.
        after: begin after this sequence instead.
        headers_only: leave the payloads away.

    Any number of threads may call it: each message goes to one of them.
    """

    def __init__(
        self,
        connection: CoreConnection,
        stream: str,
        subject: str,
        *,
        start: Start,
        after: int | None = None,
        headers_only: bool = False,
    ) -> None:
        self._connection = connection
        self._stream = stream
        self._subject = subject
        self._headers_only = headers_only
        self._lists = start == "last_per_subject" and after is None
        self._begins_with_new = start == "new" and after is None
        self._pid = os.getpid()
        self._reading = threading.RLock()  # so that it can be known who has it
        self._stopped = False

        self._position = 0 if after is None else after
        self._is_listing = self._lists
        self._caught_up = False
        self._not_caught_up = threading.Lock()  # held until it has
        self._not_caught_up.acquire()
        self._rewound: Mark | None = None

        self._consumer: PullConsumer | None = None
        self._is_checked = False  # the consumer is one of the stream that was followed so far
        self._incarnation: str | None = None  # of the stream: when it was created
        self._names_before: list[str] = []
        self._failures = 0
        self._not_before = 0.0
        self._careful = False  # the sizes of the messages vary much

    # --- any thread

    @property
    def position(self) -> int:
        """Everything up to this sequence has been delivered."""
        return self.mark()[0]

    @property
    def synced(self) -> bool:
        """Whether all has been delivered that the stream held at one moment, since it is followed."""
        return self.mark()[2]

    @property
    def stopped(self) -> bool:
        """Whether `stop` was called."""
        return self._stopped

    @property
    def ended(self) -> bool:
        """Whether there is nothing left that `stop` would end."""
        closed = self._connection.state is ConnectionState.CLOSED
        return self._stopped or closed or self._pid != os.getpid()

    def check(self) -> None:
        """Raise what has ended it: `ClosedError`, `ConnectionClosedError` or `ForkedError`."""
        self._check_process()
        self._check_stopped()
        if self._connection.state is ConnectionState.CLOSED:
            raise ConnectionClosedError("the connection is closed")

    def mark(self) -> Mark:
        """Return how far it has got."""
        return self._rewound or (self._position, self._is_listing, self._caught_up)

    def rewind(self, mark: Mark) -> None:
        """Deliver again, from the next call on, what came after a mark."""
        self._rewound = mark if self._rewound is None else min(mark, self._rewound)

    def wait_synced(self, deadline: Deadline) -> None:
        """Wait until another thread has read so far.

        Raises:
            OperationTimeoutError: it had not until the deadline.
            ClosedError: it was stopped.
            ConnectionClosedError: the connection was closed.
            ForkedError: it belongs to the parent process.
        """
        self._check_process()
        while not self.synced:
            self.check()
            remaining = deadline.remaining
            if remaining == 0:
                raise OperationTimeoutError(f"following stream {self._stream}", deadline.timeout, sent=False)
            sleep = _LONGEST_SLEEP if remaining is None else min(remaining, _LONGEST_SLEEP)
            if self._not_caught_up.acquire(timeout=sleep):
                self._wake_waiting()

    def stop(self) -> None:
        """End every `next`, and delete the consumer without waiting for it; idempotent."""
        if self._pid != os.getpid() or self._stopped:
            return
        self._stopped = True
        self._wake_waiting()
        consumer = self._consumer
        if consumer is not None:
            consumer.close()
            consumer.wake()
            consumer.delete()

    # --- one thread after the other

    def open(self, deadline: Deadline) -> None:
        """Fix the start: whatever is stored from now on will be delivered.

        Raises:
            JetStreamAPIError: the server refused, because there is no such stream above all.
            OperationTimeoutError: no answer until the deadline.
        """
        while not self._is_checked:
            self._advance(deadline)

    def next(self, deadline: Deadline, read: Callable[[Followed | None], T]) -> T:
        """Return what a function makes of the next message; of None, once, when all has been delivered that there was.

        An interrupt loses nothing, in the function neither: what it kept from being returned is delivered again. What
        the function answers with an error of ours has been delivered.

        Raises:
            OperationTimeoutError: none came until the deadline.
            ClosedError: it was stopped.
            ConnectionClosedError: the connection was closed.
            JetStreamAPIError: the stream is gone.
            JetStreamUnavailableError: JetStream is not enabled.
            ForkedError: it belongs to the parent process.
        """
        return self._read(self._take, read, deadline)

    def next_few(self, deadline: Deadline, read: Callable[[list[Followed]], T]) -> T:
        """Return what a function makes of the next message and those that have arrived behind it; else as `next`."""
        return self._read(self._take_few, read, deadline)

    def _read(self, take: Callable[[Deadline], M], read: Callable[[M], T], deadline: Deadline) -> T:
        self._check_process()
        mark, lock = self.mark(), self._reading
        try:
            remaining = deadline.remaining
            if not lock.acquire(timeout=-1 if remaining is None else remaining):
                raise OperationTimeoutError(f"following stream {self._stream}", deadline.timeout, sent=False)
            mark = self.mark()
            found = read(take(deadline))
            lock.release()
        except BaseException as error:
            with suppress(RuntimeError):  # not held: the wait for it was in vain, or it has just been released
                lock.release()
            if not isinstance(error, MonoError):
                self.rewind(mark)
            raise
        return found

    def _take(self, deadline: Deadline) -> Followed | None:
        while True:
            had_caught_up = self._caught_up
            found = self._advance(deadline)
            if found is not None:
                return found
            if self._caught_up and not had_caught_up:
                return None

    def _take_few(self, deadline: Deadline) -> list[Followed]:
        found = self._take(deadline)
        if found is None:
            return []
        few, had_caught_up = [found], self._caught_up
        with suppress(MonoError):  # no more have arrived, though they have been asked for; all else the next call meets
            while len(few) < _FEW and self._caught_up is had_caught_up:
                found = self._advance(_NOW)
                if found is not None:
                    few.append(found)
        return few

    def _advance(self, deadline: Deadline) -> Followed | None:
        """Take one step; return the message if it led to one."""
        if self._rewound is not None:
            self._go_back(self._rewound)
        consumer = self._consumer or self._new_consumer()
        self._check_stopped()  # after the consumer is there: `stop` finds one of the two
        try:
            message = consumer.step(deadline)
            if message is not None:
                was_listing = consumer.is_listing
                sequence, nanoseconds = consumer.read(message)
                if sequence > self._position:
                    if not was_listing:
                        self._check_passed_over(sequence)
                    self._position = sequence
                    return message, sequence, nanoseconds
        except (ConnectionLostError, ConsumerLostError):
            self._begin_again()
        except OperationTimeoutError:
            raise
        except MonoError:
            self._check_stopped()
            self._begin_again()
            raise
        else:
            self._take_note(consumer)
        return None

    def _check_passed_over(self, sequence: int) -> None:
        """Do nothing if there is no message between the last one and this.

        When messages of one subject are purged, or replaced by a newer one, old servers pass over what the consumer has
        not delivered yet of other subjects.

        Raises:
            ConsumerLostError: there is one, or nobody tells: go on behind the last one.
        """
        if sequence == self._position + 1 or self._connection.server_info.supports(_PASSES_OVER_NOTHING):
            return
        jetstream, deadline = JetStream(self._connection), Deadline(_LOOK_TIME)
        try:
            first = jetstream.next_of(self._stream, self._subject, self._position + 1, deadline)
        except OperationTimeoutError as error:
            raise ConsumerLostError from error
        if first is not None and first.sequence < sequence:
            raise ConsumerLostError

    def _take_note(self, consumer: PullConsumer) -> None:
        """See what the consumer has learnt."""
        if not self._is_checked and (info := consumer.stream_info) is not None:
            if self._begins_with_new:
                self._position, self._begins_with_new = info["state"]["last_seq"], False
                self._incarnation = info["created"]
            if consumer.is_there:
                self._check(info)
        if self._is_checked:
            self._is_listing = self._is_listing and consumer.is_listing
            if consumer.caught_up and not self._caught_up:
                self._caught_up, self._is_listing = True, False
                self._wake_waiting()

    def _check(self, info: Json) -> None:
        """Find out whether the stream, asked about after the consumer was made, is the one that was followed so far."""
        created, last = info["created"], info["state"]["last_seq"]
        if created != (self._incarnation or created) or last < self._position:  # another one, or it has lost data
            self._position, self._is_listing = 0, self._lists
            self._fall_behind()
            self._begin_again()
        else:
            self._is_checked = True
        self._incarnation = created

    # --- beginning again

    def _new_consumer(self) -> PullConsumer:
        if self._is_listing:
            policy, after = "last_per_subject", None
        elif self._begins_with_new:
            policy, after = "new", None
        else:
            policy, after = "all", self._position
        self._consumer = consumer = PullConsumer(
            self._connection,
            self._stream,
            follower_config(self._subject, policy, after=after, headers_only=self._headers_only),
            caught_up=self._caught_up,
            instead_of=self._names_before,
            not_before=self._not_before,
            careful=self._careful,
        )
        return consumer

    def _begin_again(self) -> None:
        """Give the consumer up; the next step makes another one, behind the last message."""
        consumer, self._consumer, self._is_checked = self._consumer, None, False
        if consumer is None:
            return
        consumer.close()
        self._names_before = consumer.names
        self._careful = self._careful or consumer.overran
        self._is_listing = self._is_listing and consumer.is_listing
        self._failures = 0 if consumer.has_worked else self._failures + 1
        pause = min(_SHORTEST_PAUSE * 2 ** min(self._failures, 10), _LONGEST_PAUSE) if self._failures > 1 else 0.0
        self._not_before = monotonic() + pause

    def _go_back(self, mark: Mark) -> None:
        self._begin_again()
        self._failures, self._not_before = 0, 0.0  # an interrupt is no failure
        if mark <= (self._position, True, True):  # else another thread has begun at an earlier one, or the stream has
            self._position, self._is_listing, caught_up = mark
            if not caught_up:
                self._fall_behind()
        self._rewound = None

    def _fall_behind(self) -> None:
        self._caught_up = False
        self._not_caught_up.acquire(blocking=False)

    def _wake_waiting(self) -> None:
        with suppress(RuntimeError):  # nobody holds it any more
            self._not_caught_up.release()

    # --- what ends it

    def _check_stopped(self) -> None:
        if self._stopped:
            raise ClosedError(f"following stream {self._stream} was stopped")

    def _check_process(self) -> None:
        if self._pid != os.getpid():
            raise ForkedError(f"following stream {self._stream} belongs to the parent process: begin anew in this one")
