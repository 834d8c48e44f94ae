"""A stream of an object against `io.BytesIO`, any sequence of calls."""

from __future__ import annotations

import io
import itertools
import random
from collections.abc import Callable
from typing import ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from mono_sync import Connection, FSBucketConfig, ObjectBucket, ObjectReader
from tests.storage.foreign import ForeignUpload, split
from tests.storage.helpers import raw_objects

CHUNK = 100
LARGEST = 12 * CHUNK
SIZES = st.one_of(st.none(), st.integers(-1, 3 * CHUNK), st.sampled_from([CHUNK, CHUNK + 1, LARGEST]))
EVEN = [CHUNK]
UNEVEN = [CHUNK, 1, 60, 99, 0, CHUNK, 30]

_numbers = itertools.count(1)


def _content(size: int) -> bytes:
    """Lines of all lengths, longer than a chunk too."""
    chance = random.Random(size)
    return bytes(chance.choice(b"\n\nabcdefghi" if position // 300 % 2 else b"abcdefgh") for position in range(size))


class Model(RuleBasedStateMachine):
    """Two objects whose uploads were interleaved; one is read."""

    open_bucket: ClassVar[Callable[[], ObjectBucket]]

    @initialize(
        size=st.integers(0, LARGEST),
        sizes=st.sampled_from([EVEN, UNEVEN]),
        chunk_size=st.sampled_from([CHUNK, None]),
        order=st.randoms(use_true_random=False),
    )
    def store(self, size: int, sizes: list[int], chunk_size: int | None, order: random.Random) -> None:
        bucket = type(self).open_bucket()
        content = _content(size)
        mine = ForeignUpload(bucket, "mine", chunk_size=chunk_size)
        other = ForeignUpload(bucket, "other", chunk_size=chunk_size)
        for piece in split(content, sizes):
            for _ in range(order.choice([0, 0, 1, 3])):
                other.chunk(b"x")
            mine.chunk(piece)
        other.chunk(b"x")
        other.describe()
        mine.describe()
        self.bucket = bucket
        self.stream: ObjectReader = bucket.open("mine")
        self.model = io.BytesIO(content)
        self.size = size

    @rule(size=SIZES)
    def read(self, size: int | None) -> None:
        assert self.stream.read(size) == self.model.read(size)

    @rule(size=SIZES)
    def read1(self, size: int | None) -> None:
        self._check_some(self.stream.read1(size), size)

    @rule(size=st.integers(0, 3 * CHUNK))
    def readinto(self, size: int) -> None:
        mine, expected = bytearray(size), bytearray(size)
        assert self.stream.readinto(mine) == self.model.readinto(expected)
        assert mine == expected

    @rule(size=st.integers(0, 3 * CHUNK))
    def readinto1(self, size: int) -> None:
        buffer = bytearray(size)
        self._check_some(bytes(buffer[: self.stream.readinto1(buffer)]), size)

    @rule()
    def peek(self) -> None:
        position = self.model.tell()
        rest = self.model.read()
        self.model.seek(position)
        found = self.stream.peek()
        assert rest.startswith(found)
        assert bool(found) == bool(rest)

    @rule(size=SIZES)
    def readline(self, size: int | None) -> None:
        assert self.stream.readline(size) == self.model.readline(size)

    @rule()
    def next(self) -> None:
        assert next(self.stream, None) == next(self.model, None)

    @rule()
    def readlines(self) -> None:
        assert self.stream.readlines() == self.model.readlines()

    @rule(offset=st.integers(-2 * LARGEST, 2 * LARGEST), whence=st.sampled_from([0, 1, 2]))
    def seek(self, offset: int, whence: int) -> None:
        target = offset + {0: 0, 1: self.model.tell(), 2: self.size}[whence]
        if target >= 0:
            assert self.stream.seek(offset, whence) == self.model.seek(target)
        else:
            with pytest.raises(ValueError, match="negative"):
                self.stream.seek(offset, whence)

    @invariant()
    def is_at_the_same_place(self) -> None:
        if hasattr(self, "stream"):
            assert self.stream.tell() == self.model.tell()

    def _check_some(self, found: bytes, size: int | None) -> None:
        """Some of the bytes that follow, at least one where there is one."""
        expected = self.model.read(len(found))
        assert found == expected
        assert size is None or size < 0 or len(found) <= size
        assert found or size == 0 or self.model.tell() >= self.size

    def teardown(self) -> None:
        if hasattr(self, "stream"):
            self.stream.close()
            raw_objects(self.bucket).delete()


@pytest.mark.timeout(120)
def test_stream_behaves_as_one_in_memory(any_connection: Connection) -> None:
    class Check(Model):
        @staticmethod
        def open_bucket() -> ObjectBucket:
            return any_connection.objects(FSBucketConfig(f"model{next(_numbers)}", storage="memory"))

    run_state_machine_as_test(
        Check,
        settings=settings(
            max_examples=25, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
