"""A new version of an object, from its first byte until it can be seen."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from types import TracebackType
from typing import Final, NoReturn

from mono_sync._durations import Deadline
from mono_sync.connection import Json, Question, StoredMessage, Write
from mono_sync.errors import BucketSealedError, StorageError, UploadLostError
from mono_sync.storage.objects._at_once import AtOnce
from mono_sync.storage.objects._clean_up import clean_up_deadline
from mono_sync.storage.objects._committing import Commit
from mono_sync.storage.objects._info import ObjectInfo
from mono_sync.storage.objects._lifetime import TTL
from mono_sync.storage.objects._meta import digest_of, new_time, to_info
from mono_sync.storage.objects._progress import Reporter
from mono_sync.storage.objects._resuming import Found, prefix_header
from mono_sync.storage.objects._sink import ChunksLostError, Sink
from mono_sync.storage.objects._sinks import Sinks

COMMIT_TIME: Final = 120.0
"""Seconds that may lie between the last chunk and the description. Far less than `sweep` lets chunks alone."""

_NOBODY: Final = Reporter(None, None)


class Upload:
    """A new version of an object on its way. One thread at a time.

    Its chunks are stored under a name of their own, where nobody sees them; only the description, which comes last,
    makes them an object. After an exception in any of its methods it has ended, and what was stored is removed again.

    Args:
        sinks: where chunks go.
        meta: the description, complete but for what the content decides.
        headers: of every chunk.
        commit: what stores the description.
        longest: seconds that it may take until the last step, for its chunks will expire; None: they stay.
        operation: what to call it in errors.
        resumable: whether what was stored stays when it fails, so that another attempt can go on from there.

    Attributes:
        size: bytes so far.
    """

    def __init__(
        self,
        sinks: Sinks,
        meta: Json,
        headers: dict[str, str],
        commit: Commit,
        *,
        longest: float | None,
        operation: str,
        resumable: bool = False,
    ) -> None:
        self.size: int = 0
        self._sinks = sinks
        self._meta = meta
        self._commit = commit
        self._longest = longest
        self._ttl = headers.get(TTL)
        self._sink: Sink = sinks.new(meta["nuid"], headers, operation)
        self._sink.cautious = resumable  # another upload may go by the same name
        self._hash = hashlib.sha256()
        self._held: tuple[bytes, dict[str, str]] | None = None  # the last so far: the last of all is sent otherwise
        self._at_once: AtOnce | None = None
        self._replaces: tuple[StoredMessage | None] | None = None  # all that it may take the place of; None: anything
        self._resumable = resumable
        self._ended = False

    @property
    def stored(self) -> int:
        """Bytes that the server has acknowledged."""
        return self._sink.stored

    def add(self, chunk: bytes, deadline: Deadline) -> None:
        """Take a chunk; all but the last must be of one size."""
        with self._guarded(deadline):
            if self._held is not None:
                data, headers = self._held
                self._sink.send(data, deadline, headers)
            self._hash.update(chunk)
            self.size += len(chunk)
            self._held = chunk, prefix_header(self.size, self._hash) if self._resumable else {}

    def resume(self, find: Callable[[], Found | None], deadline: Deadline) -> None:
        """Go on from what an earlier attempt has stored, if it has."""
        with self._guarded(deadline):
            self._sink.note_server()
            found = find()
            if found is not None:
                if found.ttl != self._ttl:
                    raise ChunksLostError("what was stored before was to live for another time")
                self.size, self._hash = found.size, found.content
                self._replaces = (found.before,)
                self._sink.go_on(found.chunks, found.newest, found.size, age=found.age, idle=found.idle)

    def flush(self, deadline: Deadline) -> None:
        """Wait until all chunks but the last are acknowledged."""
        with self._guarded(deadline):
            self._sink.drain(deadline)

    def finish(self, deadline: Deadline, reporter: Reporter = _NOBODY) -> ObjectInfo:
        """Make it the version that everybody sees, and return what the bucket knows of it."""
        with self._guarded(deadline):
            done = None
            if self._held is not None:
                data, headers = self._held
                if self._resumable:  # whoever has the last chunk stored from here on has not replaced anything yet
                    self._replaces = (self._commit.look({}, deadline),)
                    headers = prefix_header(self.size, self._hash, last=True)
                last = self._send_last(data, headers, deadline, reporter)
                deadline = deadline.at_most(COMMIT_TIME)
                done = self._end_last(last, deadline)
            elif self._sink.count:  # an earlier attempt has stored all of them
                deadline = self._limited(deadline)
            meta, revision = done or self._store_description(deadline, reporter)
            self._ended = True
        return to_info(meta["bucket"], meta, revision)

    def _send_last(self, data: bytes, headers: dict[str, str], deadline: Deadline, reporter: Reporter) -> Write:
        """Send the last chunk, and the description along with it where that may save a round trip."""
        sink, commit = self._sink, self._commit
        last = sink.prepare_last(data, deadline, headers)
        if not (sink.count or self._resumable or reporter.is_heard):  # who hears of it may still say no
            self._at_once = commit.at_once(self._described(1), last, deadline)
        sink.send_last(last, self._along, deadline)
        return last

    @property
    def _along(self) -> list[Question]:
        """What goes along with the last chunk: its description, or a question unless it has been answered before."""
        if self._at_once is not None:
            return [self._at_once.question]
        return self._commit.questions if self._replaces is None else []

    def _end_last(self, last: Write, deadline: Deadline) -> tuple[Json, int] | None:
        """Wait until it is stored; return a description that was stored along with it, and its revision."""
        at_once, revision = self._at_once, None
        if at_once is None:
            self._sink.end_last(last, deadline)
        else:
            revision = at_once.conclude(self._sink, last, deadline)
        self._sink.close()
        return None if at_once is None or revision is None else (at_once.meta, revision)

    def _store_description(self, deadline: Deadline, reporter: Reporter) -> tuple[Json, int]:
        firm = self._replaces is not None
        (newest,) = self._replaces or (self._commit.look(self._sink.answers, deadline),)
        reporter.report(self.size)
        self._check_lifetime()
        meta = self._described(self._sink.count)
        return meta, self._commit.commit(meta, newest, deadline, self._sink, firm=firm)

    def _described(self, chunks: int) -> Json:
        content = {"size": self.size, "chunks": chunks, "digest": digest_of(self._hash), "mtime": new_time()}
        return self._meta | content

    def abort(self, reason: BaseException | None, deadline: Deadline) -> None:
        """Remove what was stored; idempotent, and nothing once it has been finished."""
        if self._ended:
            return
        self._ended = True
        clean_up, sink = clean_up_deadline(reason, deadline), self._sink
        none_was_taken = not sink.touched or (isinstance(reason, BucketSealedError) and not sink.stored)
        missing = sink.settle(clean_up)
        if self._at_once is not None:
            self._at_once.learn(sink)
        in_doubt = self._commit.in_doubt or (self._at_once is not None and self._at_once.in_doubt)
        keeps = self._resumable or in_doubt or none_was_taken
        if not keeps:
            self._sinks.discard(self._meta["nuid"], clean_up)
            if missing and sink.settle(clean_up) < missing:  # some have arrived behind the removal
                self._sinks.discard(self._meta["nuid"], clean_up_deadline(reason, clean_up))
        sink.close()

    def _limited(self, deadline: Deadline) -> Deadline:
        """Return until when the last step must be made on a last chunk of an earlier attempt, which may be swept."""
        left = COMMIT_TIME - self._sink.rest
        if left <= 0:
            stood_still = f"it stood still for longer than {COMMIT_TIME:g} s before its last step"
            raise ChunksLostError(f"{stood_still}; the same call may still go on with it")
        return deadline.at_most(left)

    def _check_lifetime(self) -> None:
        if self._longest is not None and self._sink.age > self._longest:
            reason = f"it took longer than {self._longest:.0f} s, and its chunks would expire before it"
            raise UploadLostError(self._meta["bucket"], self._meta["name"], reason)

    def _guarded(self, deadline: Deadline) -> Ending:
        if self._ended:
            raise StorageError(f"the upload of object {self._meta['name']!r} has ended")
        return Ending(self._fail, deadline)

    def _fail(self, error: BaseException, deadline: Deadline) -> NoReturn:
        """Raise an error in the words of the bucket, and remove what was stored."""
        try:
            with self._commit.errors(deadline, self.size):
                if isinstance(error, ChunksLostError):
                    raise UploadLostError(self._meta["bucket"], self._meta["name"], str(error)) from error
                raise error
        except BaseException as explained:
            self.abort(explained, deadline)
            raise


class Ending:
    """Ends an upload where a ``with`` does not end well, wherever in it that is.

    Each step of an upload does so, and whoever takes several: an interrupt may come between two of them. It is a class
    because a small object would notice what it takes to enter a generator.

    Args:
        end: what to do with the error, until when.
        deadline: of the call.
    """

    __slots__ = ("_deadline", "_end")

    def __init__(self, end: Callable[[BaseException, Deadline], object], deadline: Deadline) -> None:
        self._end = end
        self._deadline = deadline

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None:
            self._end(error, self._deadline)
