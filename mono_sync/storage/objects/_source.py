"""The chunks of one version of an object, from any place in it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from time import sleep
from typing import Final, NoReturn, Protocol, TypeAlias, TypeVar

from mono_sync._durations import Deadline
from mono_sync.connection import CoreConnection, Delivery, DeliveryLostError, JetStream
from mono_sync.errors import (
    ConnectionLostError,
    DigestMismatchError,
    MonoError,
    OperationTimeoutError,
)
from mono_sync.storage.objects._info import ObjectInfo
from mono_sync.storage.objects._layout import START, Layout, Place, measure, seek
from mono_sync.storage.objects._meta import digest_of

T = TypeVar("T")

Explain: TypeAlias = Callable[[MonoError, Deadline, str, str], NoReturn]


class Check(Protocol):
    """Raises if a version is not what it was any more; ``later``: messages behind its description go by its name."""

    def __call__(self, deadline: Deadline, /, *, later: bool = False) -> None: ...


_WINDOW: Final = 4 << 20  # bytes under way: what is asked on the same connection meanwhile comes behind them
_MOST_UNDER_WAY: Final = 256
_CAUTION: Final = 9  # chunks after a jump, until more is asked for than is wanted: 1 MiB of the usual size
_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.01, 0.5


class Source:
    """The chunks of one version of an object. One thread at a time.

    The server is asked for chunks ahead of the reader: for as many as he is known to want, and for the more beyond that
    the longer he has been reading on, up to 4 MiB. A lost connection, or a server that starts anew, costs no more than
    the chunks that were under way. After an interrupt or a timeout the next call goes on.

    Args:
        connection: where the bucket is.
        jetstream: its API.
        stream: the stream of the bucket.
        info: the version.
        direct: whether any replica may answer.
        explain: raises an error of the connection as one of the bucket; is told the deadline, and what is done to what.
        check: is called when chunks are missing; raises if the version is no longer what it was.

    Attributes:
        info: the version.
    """

    def __init__(
        self,
        connection: CoreConnection,
        jetstream: JetStream,
        stream: str,
        info: ObjectInfo,
        *,
        direct: bool,
        explain: Explain,
        check: Check,
    ) -> None:
        self.info: ObjectInfo = info
        self._connection = connection
        self._jetstream = jetstream
        self._stream = stream
        self._subject = f"$O.{info.bucket}.C.{info.nuid}"
        self._direct = direct
        self._explain = explain
        self._check = check

        self._usual_size = info.chunk_size or max(1, -(-info.size // max(1, info.chunks)))
        self._next = START
        self._delivery: tuple[Delivery, int] | None = None  # and the number of its first chunk
        self._certain = 0  # of its messages, how many are the chunks that they seem to be
        self._layout: Layout | None = None
        self._run = 0  # in how many calls the next chunk was asked for: who does that often will go on
        self._verified = (hashlib.sha256(), 0)  # of how many bytes
        self._damage: str | None = None

    def chunk_at(self, offset: int, need: int, deadline: Deadline) -> tuple[int, bytes]:
        """Return the chunk that holds an offset, and where it begins.

        Args:
            offset: less than the size.
            need: how many bytes from there on are wanted now.
            deadline: total.

        Raises:
            ObjectChangedError: the version is gone.
            DigestMismatchError: this was the last chunk, all were taken in order, and they are not what was stored. Or
                chunks are missing, or not of the size that they should have.
            OperationTimeoutError: it did not come in time.
        """
        try:
            if offset != self._next.offset:
                self._run = -_CAUTION
                if not 0 < offset - self._next.offset < self._reach:
                    self._jump(offset, deadline)
            while True:
                start = self._next.offset
                data, sequence = self._persistent(self._take, offset - start + need, deadline)
                end = self._accept(data, sequence)
                if offset < end:
                    self._run += offset + need <= end
                    return start, data
        except MonoError as error:
            self._explain(error, deadline, "reading object", self.info.name)

    def close(self) -> None:
        """Leave nothing on the server."""
        if self._delivery is not None:
            self._delivery[0].close()
            self._delivery = None

    def abandon(self) -> None:
        """Send nothing: what it has on the server ends by itself a little later."""
        if self._delivery is not None:
            self._delivery[0].abandon()
            self._delivery = None

    # --- where to go on

    @property
    def _reach(self) -> int:
        """How many bytes from the next chunk on are on their way, or about to be, as far as can be told."""
        return max(1, 0 if self._delivery is None else self._delivery[0].under_way) * self._usual_size

    def _jump(self, offset: int, deadline: Deadline) -> None:
        first = self.info.chunks == 1 or offset < self.info.chunk_size
        place = START if first else self._persistent(self._place_at, offset, deadline)
        self.close()
        self._next = place

    def _place_at(self, offset: int, deadline: Deadline) -> Place:
        if self._layout is None:
            self._layout = measure(self.info, self._open, deadline)
        return self._layout.place_at(offset)

    def _open(self, start: int | None, /, *, headers_only: bool = False) -> Delivery:
        return Delivery(
            self._connection, self._jetstream, self._stream, self._subject, start=start, headers_only=headers_only
        )

    # --- chunks

    def _take(self, need: int, deadline: Deadline) -> tuple[bytes, int]:
        """Return the next chunk, and the sequence of its message."""
        if self._damage is not None or self._next.number >= self.info.chunks:
            self._fail(f"{self.info.size - self._next.offset} bytes are missing")
        if self.info.chunks == 1:
            only = self._jetstream.last(self._stream, self._subject, direct=self._direct, deadline=deadline)
            self._direct = False  # when it is missing: it came from a replica that lags behind
            if only is None:
                raise DeliveryLostError
            self._check_age(only.sequence, deadline)
            return only.data, only.sequence
        if self._delivery is None:
            delivery = self._begin(deadline)
            self._certain, self._next = 0, self._next._replace(sequence=delivery.start or 0)
            self._delivery = delivery, self._next.number
        delivery, first = self._delivery
        message, sequence = delivery.next(deadline, ahead=self._ahead(need))
        if first + delivery.taken - 1 != self._next.number:  # an interrupt kept the one before from being used
            raise DeliveryLostError
        self._check_age(sequence, deadline)
        if sequence != self._next.sequence and delivery.taken > self._certain:
            # Other messages are in between, or chunks were. If all are there now, it is the next, as are those behind.
            certain = delivery.arrived
            self._check(deadline)
            self._certain = certain
        return message.data, sequence

    def _check_age(self, sequence: int, deadline: Deadline) -> None:
        """Take no chunk that was stored behind the description, as none of this version was.

        A later version may have the same name of chunks, as when a resumable upload is repeated.
        """
        if sequence > self.info.revision:
            self._check(deadline, later=True)

    def _check_all(self, deadline: Deadline) -> None:
        """Do nothing if all chunks are there, and no later version's."""
        self._check(deadline)
        later = self._jetstream.next_of(self._stream, self._subject, self.info.revision + 1, deadline)
        if later is not None:
            self._check_age(later.sequence, deadline)

    def _begin(self, deadline: Deadline) -> Delivery:
        """Return a delivery that begins with the next chunk."""
        number, _, sequence = self._next
        if number and not sequence:
            assert self._layout is not None
            return seek(number, self.info.chunks, self._layout.last_sequence, self._open, deadline)
        guess = self.info.revision - self.info.chunks  # where the first is, mostly
        for start in [sequence] if sequence else [guess, 1] if guess > 1 else [1]:
            delivery = self._open(start)
            try:
                if delivery.begin(deadline) == self.info.chunks - number:
                    return delivery
            except BaseException:
                delivery.abandon()
                raise
            delivery.close()
        raise DeliveryLostError

    def _ahead(self, need: int) -> int:
        """Return how many chunks may be under way beside the next one, ``need`` bytes being wanted from there on."""
        most = _WINDOW // (self.info.chunk_size or self._connection.server_info.max_payload)
        wanted = max(-(-need // self._usual_size) - 1, self._run)
        return max(0, min(wanted, most - 1, _MOST_UNDER_WAY))

    def _accept(self, data: bytes, sequence: int) -> int:
        """Check a chunk, go on to the next, and return where that begins. An interrupt leaves all done or undone."""
        info, (number, start, _) = self.info, self._next
        end = start + len(data)
        if number + 1 < info.chunks:
            fits = end <= info.size and (self._layout is None or self._layout.fits(number, len(data)))
        else:
            fits = end == info.size
        if not fits:
            self._fail(f"chunk {number + 1} of {info.chunks} has {len(data)} bytes")
        verified, length = self._verified
        if length == start:
            verified, length = verified.copy(), end
            verified.update(data)
            self._verified = verified, length
        if number + 1 == info.chunks and length == end and info.digest and digest_of(verified) != info.digest:
            self._fail("the digest is wrong")
        self._next = Place(number + 1, end, sequence + 1)
        return end

    def _fail(self, damage: str) -> NoReturn:
        """Raise what is wrong, from now on in every call."""
        self._damage = self._damage or damage
        self.close()
        raise DigestMismatchError(self.info.bucket, self.info.name, self._damage)

    def _persistent(self, step: Callable[[int, Deadline], T], argument: int, deadline: Deadline) -> T:
        """Take a step, again and again where the way to the chunks was lost."""
        pause = _SHORTEST_PAUSE
        while True:
            try:
                return step(argument, deadline)
            except OperationTimeoutError:
                raise
            except (DeliveryLostError, ConnectionLostError) as error:
                self.close()
                if isinstance(error, DeliveryLostError):
                    self._check_all(deadline)
            except BaseException:
                self.abandon()
                raise
            remaining = deadline.remaining
            sleep(pause if remaining is None else min(pause, remaining))
            pause = min(2 * pause, _LONGEST_PAUSE)
