"""What is written to a bucket, against dicts of bytes and `io.BytesIO`, any sequence of calls."""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from mono_sync import (
    Connection,
    FSBucketConfig,
    ObjectBucket,
    ObjectExistsError,
    ObjectInfo,
    ObjectNotFoundError,
    ObjectWriter,
    RevisionMismatchError,
    StorageError,
)
from mono_sync.storage.objects import _sinks
from tests.storage.helpers import chunk_subjects, raw_objects

CHUNK = 100
NAMES = st.sampled_from(["a", "b", "a/c", "ü d"])
MODES = st.sampled_from(["wb", "bw", "xb", "bx"])
SIZES = st.one_of(st.integers(0, 4 * CHUNK), st.sampled_from([0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK]))
PIECES = st.lists(st.integers(1, 2 * CHUNK), max_size=6)

_numbers = itertools.count(1)


class OopsError(Exception):
    pass


class CircleError(Exception):
    pass


@dataclass
class Stored:
    """An object, or a link where it has a target."""

    content: bytes
    info: ObjectInfo
    target: str | None = None


@dataclass
class Writing:
    """A stream that is open, and what it should hold."""

    name: str
    stream: ObjectWriter
    expected: int | None
    """The revision that has to be there at the end; 0: none; None: any."""
    content: io.BytesIO = field(default_factory=io.BytesIO)
    flushed: int = 0
    """Chunks that the server must have."""

    @property
    def nuid(self) -> str:
        nuid: str = self.stream._upload._meta["nuid"]
        return nuid


class Source:
    """A file that returns pieces of certain sizes, also more than was asked for, and fails at its end if it is to."""

    def __init__(self, content: bytes, sizes: list[int], *, fails: bool = False) -> None:
        self._content = io.BytesIO(content)
        self._sizes = sizes
        self._fails = fails

    def read(self, size: int, /) -> bytes:
        piece = self._content.read(self._sizes.pop(0) if self._sizes else size)
        if not piece and self._fails:
            raise OopsError
        return piece


class Model(RuleBasedStateMachine):
    """A few names that are written to in every way, and streams that are open at the same time."""

    open_bucket: ClassVar[Callable[[], ObjectBucket]]
    streams = Bundle[Writing]("streams")

    def __init__(self) -> None:
        super().__init__()
        self.bucket = type(self).open_bucket()
        self.stored: dict[str, Stored] = {}
        self.open = list[Writing]()
        self.written = 0

    def _content(self, size: int) -> bytes:
        """Return bytes that no other write of the run has."""
        self.written += 1
        return (b"%d," % self.written * size)[:size]

    def _followed(self, name: str) -> Stored | None:
        """Return the object that a name stands for: what a link leads to may have become a link itself since.

        Raises:
            CircleError: it stands for none, for links lead in a circle.
        """
        found = self.stored.get(name)
        for _ in self.stored:
            if found is None or found.target is None:
                return found
            found = self.stored.get(found.target)
        if found is None or found.target is None:
            return found
        raise CircleError

    # --- streams

    @initialize(target=streams, name=NAMES, mode=MODES, size=SIZES)
    def begin(self, name: str, mode: Literal["wb", "xb"], size: int) -> Writing:
        """Have one from the beginning: most runs would not come to it."""
        writing = self._open(name, mode, matching=False)
        self.write(writing, size)
        return writing

    @rule(target=streams, name=NAMES, mode=MODES, matching=st.booleans())
    def open_stream(self, name: str, mode: Literal["wb", "xb"], matching: bool) -> Writing:
        return self._open(name, mode, matching=matching)

    def _open(self, name: str, mode: Literal["wb", "xb"], *, matching: bool) -> Writing:
        there = self.stored.get(name)
        if "x" in mode and there is not None:
            with pytest.raises(ObjectExistsError) as caught:
                self.bucket.open(name, mode)
            assert caught.value.actual == there.info.revision
            mode = "wb"
        expected = 0 if "x" in mode else there.info.revision if matching and there is not None else None
        writing = Writing(name, self.bucket.open(name, mode, if_match=expected or None), expected)
        assert writing.stream.mode == mode.replace("bw", "wb").replace("bx", "xb")
        self.open.append(writing)
        return writing

    @rule(writing=streams, size=SIZES)
    def write(self, writing: Writing, size: int) -> None:
        piece = self._content(size)
        if writing.stream.closed:
            with pytest.raises(ValueError, match="closed"):
                writing.stream.write(piece)
        else:
            assert writing.stream.write(piece) == writing.content.write(piece)

    @rule(writing=streams)
    def flush(self, writing: Writing) -> None:
        if not writing.stream.closed:
            writing.stream.flush()
            writing.flushed = max(0, writing.content.tell() // CHUNK - 1)  # the last one waits for more to come

    @rule(writing=consumes(streams))
    def close(self, writing: Writing) -> None:
        self._end(writing, writing.stream.close)

    @rule(writing=consumes(streams))
    def leave(self, writing: Writing) -> None:
        def leave() -> None:
            with writing.stream:
                pass

        if not writing.stream.closed:
            self._end(writing, leave)

    @rule(writing=streams)
    def close_and_keep(self, writing: Writing) -> None:
        self._end(writing, writing.stream.close)

    def _end(self, writing: Writing, end: Callable[[], object]) -> None:
        if writing.stream.closed:
            end()
            return
        there = self.stored.get(writing.name)
        actual = 0 if there is None else there.info.revision
        self.open.remove(writing)
        if writing.expected not in (None, actual):
            with pytest.raises(RevisionMismatchError if writing.expected else ObjectExistsError) as caught:
                end()
            assert (caught.value.expected, caught.value.actual) == (writing.expected, actual)
            assert writing.stream.info is None
        else:
            end()
            assert writing.stream.info is not None
            self._replace(writing.name, writing.content.getvalue(), writing.stream.info)
        assert writing.stream.closed

    @rule(writing=streams)
    def abort(self, writing: Writing) -> None:
        if not writing.stream.closed:
            self.open.remove(writing)
        writing.stream.abort()
        assert writing.stream.closed

    @rule(writing=streams, size=SIZES)
    def fail(self, writing: Writing, size: int) -> None:
        def write_and_fail() -> None:
            with writing.stream:
                writing.stream.write(self._content(size))
                raise OopsError

        if not writing.stream.closed:
            self.open.remove(writing)
            with pytest.raises(OopsError):
                write_and_fail()
            assert (writing.stream.closed, writing.stream.info) == (True, None)

    # --- whole objects

    def _replace(self, name: str, content: bytes, info: ObjectInfo) -> None:
        assert (info.name, info.size, info.chunks, info.link) == (name, len(content), -(-len(content) // CHUNK), None)
        self.stored[name] = Stored(content, info)

    @rule(name=NAMES, size=SIZES)
    def put(self, name: str, size: int) -> None:
        content = self._content(size)
        self._replace(name, content, self.bucket.put(name, content))

    @rule(name=NAMES, size=SIZES, back=st.integers(0, 2))
    def put_on_a_condition(self, name: str, size: int, back: int) -> None:
        there, content = self.stored.get(name), self._content(size)
        actual = 0 if there is None else there.info.revision
        expected = max(0, actual - back)
        if expected == actual:
            self._replace(name, content, self.bucket.put(name, content, if_match=expected))
        else:
            with pytest.raises(RevisionMismatchError if expected else ObjectExistsError) as caught:
                self.bucket.put(name, content, if_match=expected)
            assert caught.value.actual == actual

    @rule(name=NAMES, size=SIZES, sizes=PIECES)
    def put_reader(self, name: str, size: int, sizes: list[int]) -> None:
        content, told = self._content(size), list[int]()
        source = Source(content, sizes)
        info = self.bucket.put_reader(name, source, progress=lambda done, _total: told.append(done))
        self._replace(name, content, info)
        assert told == sorted(set(told))
        assert told[-1] == size

    @rule(name=NAMES, size=SIZES, sizes=PIECES)
    def put_reader_that_fails(self, name: str, size: int, sizes: list[int]) -> None:
        with pytest.raises(OopsError):
            self.bucket.put_reader(name, Source(self._content(size), sizes, fails=True))

    @rule(name=NAMES)
    def delete(self, name: str) -> None:
        self.bucket.delete(name)
        self.stored.pop(name, None)

    @rule(name=NAMES, new=NAMES)
    def rename(self, name: str, new: str) -> None:
        there = self.stored.get(name)
        if there is None:
            with pytest.raises(ObjectNotFoundError):
                self.bucket.update_meta(name, name=new)
        elif new != name and new in self.stored:
            with pytest.raises(ObjectExistsError):
                self.bucket.update_meta(name, name=new)
        else:
            there.info = self.bucket.update_meta(name, name=new)
            self.stored[new] = self.stored.pop(name)

    @rule(name=NAMES, text=st.text(max_size=5))
    def describe(self, name: str, text: str) -> None:
        if name in self.stored:
            there = self.stored[name]
            there.info = self.bucket.update_meta(name, metadata={"text": text})
            assert there.info.metadata == {"text": text}

    @rule(src=NAMES, dst=NAMES)
    def copy(self, src: str, dst: str) -> None:
        try:
            there = self._followed(src)
        except CircleError:
            with pytest.raises(StorageError, match="a link to a link, and so on without an end"):
                self.bucket.copy(src, dst)
            return
        if there is None:
            with pytest.raises(ObjectNotFoundError):
                self.bucket.copy(src, dst)
        else:
            self._replace(dst, there.content, self.bucket.copy(src, dst))

    @rule(name=NAMES, to=NAMES)
    def link(self, name: str, to: str) -> None:
        there, to_there = self.stored.get(name), self.stored.get(to)
        refused = (
            ObjectNotFoundError
            if to_there is None
            else ValueError
            if to_there.target is not None
            else ObjectExistsError
            if there is not None and there.target is None
            else None
        )
        if refused is not None:
            with pytest.raises(refused):
                self.bucket.link(name, to)
        else:
            self.stored[name] = Stored(b"", self.bucket.link(name, to), target=to)

    # --- what can be seen of it

    @invariant()
    def objects_are_those_that_were_written(self) -> None:
        infos = {name: there.info for name, there in self.stored.items()}
        assert self.bucket.list() == [infos[name] for name in sorted(infos)]
        for name in ("a", "b", "a/c", "ü d"):
            try:
                content = None if (found := self._followed(name)) is None else found.content
                assert self.bucket.get(name) == content
            except CircleError:
                with pytest.raises(StorageError, match="a link to a link, and so on without an end"):
                    self.bucket.get(name)
            if name in infos:
                assert self.bucket.stat(name) == infos[name]
            else:
                assert not self.bucket.exists(name)

    @invariant()
    def streams_know_their_places(self) -> None:
        for writing in self.open:
            assert (writing.stream.tell(), writing.stream.closed) == (writing.content.tell(), False)

    @invariant()
    def chunks_are_those_of_objects_and_of_streams_that_are_open(self) -> None:
        found = chunk_subjects(self.bucket)
        for writing in self.open:
            count = found.pop(f"$O.{self.bucket.name}.C.{writing.nuid}", 0)
            assert writing.flushed <= count <= max(0, writing.content.tell() // CHUNK - 1)
        infos = [there.info for there in self.stored.values()]
        assert found == {f"$O.{self.bucket.name}.C.{info.nuid}": info.chunks for info in infos if info.chunks}

    def teardown(self) -> None:
        for writing in self.open:
            writing.stream.abort()
        raw_objects(self.bucket).delete()


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_whatever_is_written_is_what_is_there(any_connection: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_sinks, "_CHUNK", CHUNK)

    class Check(Model):
        @staticmethod
        def open_bucket() -> ObjectBucket:
            return any_connection.objects(FSBucketConfig(f"writes{next(_numbers)}", storage="memory"))

    run_state_machine_as_test(
        Check,
        settings=settings(
            max_examples=25, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
