"""Where the chunks of an object begin."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from contextlib import closing
from typing import NamedTuple, Protocol

from mono_sync._durations import Deadline
from mono_sync.connection import Delivery, DeliveryLostError
from mono_sync.storage.objects._info import ObjectInfo

_HEADERS_UNDER_WAY = 1024


class Place(NamedTuple):
    """Where a chunk begins.

    Attributes:
        number: which one it is, from 0.
        offset: of its first byte in the object.
        sequence: its message is the first of its subject at or behind this; 0: that is to be found.
    """

    number: int
    offset: int
    sequence: int


START = Place(0, 0, 0)


class Open(Protocol):
    """Opens deliveries of the object's chunks."""

    def __call__(self, start: int | None, /, *, headers_only: bool = False) -> Delivery: ...


class Layout:
    """The places of all chunks.

    Args:
        last_sequence: sequence of the last chunk's message.
    """

    def __init__(self, last_sequence: int) -> None:
        self.last_sequence: int = last_sequence

    def place_at(self, offset: int) -> Place:
        """Return the place of the chunk that holds an offset, which is within the object."""
        raise NotImplementedError

    def fits(self, number: int, size: int) -> bool:
        """Return whether a chunk, not the last one, may be so large."""
        raise NotImplementedError


class Even(Layout):
    """Chunks of one size, but for the last."""

    def __init__(self, last_sequence: int, chunk_size: int) -> None:
        super().__init__(last_sequence)
        self._size = chunk_size

    def place_at(self, offset: int) -> Place:
        number = offset // self._size
        return Place(number, number * self._size, 0)

    def fits(self, number: int, size: int) -> bool:  # noqa: ARG002  # all are of one size
        return size == self._size


class Uneven(Layout):
    """Chunks of any sizes, as other clients make them when they read from a pipe."""

    def __init__(self, sequences: array[int], offsets: array[int]) -> None:
        super().__init__(sequences[-1])
        self._sequences = sequences
        self._offsets = offsets

    def place_at(self, offset: int) -> Place:
        number = bisect_right(self._offsets, offset) - 1
        return Place(number, self._offsets[number], self._sequences[number])

    def fits(self, number: int, size: int) -> bool:
        return size == self._offsets[number + 1] - self._offsets[number]


def measure(info: ObjectInfo, open_delivery: Open, deadline: Deadline) -> Layout:
    """Find out where the chunks begin.

    None is larger than the ``chunk_size`` that their writer told. So when there are as many as there should be, and the
    last is as small as it is if all others are of just that size, then they are. Else the sizes of all are asked for.

    Raises:
        DeliveryLostError: chunks are missing, or what told about them is lost.
    """
    with closing(open_delivery(1, headers_only=True)) as every, closing(open_delivery(None, headers_only=True)) as one:
        if every.begin(deadline) != info.chunks or not one.begin(deadline):
            raise DeliveryLostError
        last_sequence, length = _next(one, 0, deadline)
        if info.chunk_size and (info.chunks - 1) * info.chunk_size + length == info.size:
            return Even(last_sequence, info.chunk_size)
        sequences, offsets, offset = array("Q"), array("Q"), 0
        for _ in range(info.chunks):
            sequence, length = _next(every, _HEADERS_UNDER_WAY, deadline)
            sequences.append(sequence)
            offsets.append(offset)
            offset += length
        return Uneven(sequences, offsets)


def _next(delivery: Delivery, ahead: int, deadline: Deadline) -> tuple[int, int]:
    """Return sequence and size of the next message."""
    message, sequence = delivery.next(deadline, ahead=ahead)
    return sequence, int(message.headers["Nats-Msg-Size"])


def seek(number: int, chunks: int, last_sequence: int, open_delivery: Open, deadline: Deadline) -> Delivery:
    """Return a delivery that begins with a certain chunk.

    A delivery that has begun tells how many chunks it holds, and so the number of the first one; none has to be read
    for that. Mostly the first guess is right, that the upload was not interleaved with others. Else the range in which
    the chunk must be is halved.

    Raises:
        DeliveryLostError: chunks are missing.
    """
    low, high = number + 1, last_sequence - (chunks - 1 - number)
    guess = high
    while low <= high:
        delivery = open_delivery(guess)
        try:
            first = chunks - delivery.begin(deadline)
        except BaseException:
            delivery.abandon()
            raise
        if first == number:
            return delivery
        delivery.close()
        if first < number:  # each chunk in between takes a sequence at least
            low = guess + number - first
        else:
            high = guess + number - first
        guess = (low + high) // 2
    raise DeliveryLostError
