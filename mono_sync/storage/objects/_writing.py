"""Writing objects."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, Final, NamedTuple

from typing_extensions import Buffer

from mono_sync._durations import DEFAULT, Deadline, Duration, Timeout, to_ttl
from mono_sync.connection import CoreConnection, Json, StoredMessage, direct_question
from mono_sync.errors import ObjectExistsError
from mono_sync.storage._config import MAX_SECONDS
from mono_sync.storage.objects._committing import Commit, Condition
from mono_sync.storage.objects._info import ObjectInfo
from mono_sync.storage.objects._lifetime import TTL
from mono_sync.storage.objects._meta import (
    Headers,
    Metadata,
    deletion,
    encode_meta,
    new_meta,
    read_meta,
    to_info,
)
from mono_sync.storage.objects._progress import Progress, Reporter
from mono_sync.storage.objects._reading import Reading
from mono_sync.storage.objects._resuming import Found, PutBack, Resumption, check_seekable, name_of_chunks
from mono_sync.storage.objects._sink import ChunksLostError
from mono_sync.storage.objects._sinks import Sinks
from mono_sync.storage.objects._source_file import Chunks, Readable, check_readable, size_of
from mono_sync.storage.objects._sweep import Sweep, check_grace, described_in
from mono_sync.storage.objects._upload import COMMIT_TIME, Ending, Upload
from mono_sync.storage.objects._views import view_of
from mono_sync.storage.objects._writer import ObjectWriter

_LONGEST_TTL: Final = MAX_SECONDS - 2**32  # the server adds it to the seconds since 1970, and would overflow unnoticed
_LONGEST_UPLOAD: Final = 24 * 3600.0
"""Seconds that an upload may take whose object has a time to live. Its chunks live for that much longer than that."""
_UNHURRIED_UPLOAD: Final = 600.0
"""The same where there is no deadline, unless the object lives for longer than that: then for as long as it lives."""


class Described(NamedTuple):
    """What a writer says of an object."""

    description: str
    headers: Headers | None
    metadata: Metadata | None


class Writing(Reading):
    """The part of an object bucket that writes."""

    def __init__(self, connection: CoreConnection, name: str, info: Json, *, stale_reads: bool) -> None:
        super().__init__(connection, name, info, stale_reads=stale_reads)
        self._sinks = Sinks(
            connection,
            self._jetstream,
            self._writer,
            bucket=name,
            stream=self._stream,
            max_age=info["config"].get("max_age", 0) / 1e9,
        )

    def set(self, key: str, data: Buffer, *, ttl: Duration | None = None, timeout: Timeout = DEFAULT) -> None:
        """Store an object, replacing what was there. Arguments and errors as for `put`."""
        self.put(key, data, ttl=ttl, timeout=timeout)

    def put(
        self,
        key: str,
        data: Buffer,
        *,
        description: str = "",
        headers: Headers | None = None,
        metadata: Metadata | None = None,
        ttl: Duration | None = None,
        if_match: ObjectInfo | int | None = None,
        timeout: Timeout = DEFAULT,
    ) -> ObjectInfo:
        """Store an object, replacing what was there, and return what the bucket knows of it.

        The new version becomes visible as a whole at the end, and the old one is removed after that. When anything goes
        wrong before, the old one stays, and what was written of the new one is removed again. That may take a quarter
        of a second beyond the deadline, or after an interrupt; where the server does not answer by then, and where an
        interrupt comes in the last step or in this, chunks that nothing refers to may be left behind, which `sweep`
        removes. After an interrupt in the last step the new version may be there.

        Args:
            key: its name.
            data: its bytes, as anything bytes-like: ``bytes``, a ``memoryview``, an ``mmap``, an ``array``.
            description: for people.
            headers: by name, one value or several; ``Content-Type`` tells others what it is.
            metadata: custom values by name.
            ttl: the object expires as a whole after this time, in seconds or as ``timedelta``, rounded up to whole
                seconds, at least 1; needs nats-server 2.11. The room that it took is free at most ``timeout`` and two
                minutes later, for its chunks must not go before it does; without a timeout see `put_reader`.
            if_match: replace only this version, given as its revision or its `ObjectInfo`; 0: store it only if there is
                none. Decided at the end, in one step.
            timeout: total deadline.

        Raises:
            BucketFullError: the bucket's limit is reached; old and new version need room together.
            BucketSealedError: the bucket is sealed.
            OutcomeUnknownError: an answer to the last step was lost, and nobody could tell what became of it: it may be
                stored. A small object may have no other step.
            ConnectionClosedError: the connection is closed; where that was in the last step, it may be stored as well.
            TypeError: the data are not bytes-like, or an option is of a wrong type.
            ObjectExistsError: there is an object, and ``if_match`` is 0.
            RevisionMismatchError: it is not at the revision ``if_match``.
            InvalidHeaderError: a header that no message could carry; nothing was sent.
            ValueTooLargeError: name, description, headers and metadata are more than the server takes in one message.
            UploadLostError: its chunks are gone: somebody has reset the bucket. `OutcomeUnknownError` if the last step
                was on its way by then.
            ValueError: a ttl of less than a second, or longer than the server can count; description or metadata with
                lone surrogates.
            UnsupportedByServerError: a ttl, and a server that knows none.
            BucketConfigError: a ttl, and a bucket that another client made without a TTL per message.
        """
        deadline = self._deadline(timeout)
        condition = Condition.of(self._name, key, if_match)
        described = Described(description, headers, metadata)
        upload, size = self._begin(key, condition, described, ttl=ttl, longest=deadline.remaining)
        with view_of(data) as view, Ending(upload.abort, deadline):
            for start in range(0, len(view), size):
                upload.add(bytes(view[start : start + size]), deadline)
            return upload.finish(deadline)

    def put_reader(
        self,
        key: str,
        fileobj: Readable,
        *,
        description: str = "",
        headers: Headers | None = None,
        metadata: Metadata | None = None,
        ttl: Duration | None = None,
        if_match: ObjectInfo | int | None = None,
        progress: Progress | None = None,
        resume: str | None = None,
        timeout: Timeout = DEFAULT,
    ) -> ObjectInfo:
        """Store what a binary file has from its present position on, as `put` does, and return what the bucket knows.

        Memory stays bounded, however large it is. The file is read in the calling thread, and may block there: between
        two reads the deadline is looked at.

        Args:
            key: its name.
            fileobj: has ``read(size)``, which may return less than it was asked for, and returns nothing at the end. A
                call without ``resume`` that fails leaves it where it was then: seek back before you call again, else
                only what is left of it is stored.
            description: for people.
            headers: as for `put`.
            metadata: as for `put`.
            ttl: as for `put`. The upload may take as long as its ``timeout``, at most a day; where that is None, ten
                minutes, or as long as the object lives if that is longer; with ``resume`` a day from the first attempt
                on. The room may stay taken for that much and two minutes after the object has expired.
            if_match: as for `put`.
            progress: a function, called with the bytes stored so far and those in all (None where that is not known),
                once with 0 and 0 for an empty file; or an object with ``total`` and ``update(n)``, such as a bar of
                tqdm. It is called in this thread; when it raises, nothing is stored.
            resume: a text that stands for this upload, ``uuid.uuid4().hex`` for example; keep it until the call has
                succeeded. What was stored before the call failed, or its process was killed, then stays, and a call
                with the same text, object and file goes on from there. It reads what is there from the file once more,
                to compare and to get the digest: a call that fails puts the file back to where it began, unless its
                ``seek`` fails as well, which a note on the error says. A text is for one content; once that is stored,
                the call returns it, without regard to ``if_match`` and to what is said of it. Of two uploads with one
                text at a time one fails. The file must be able to seek. The chunks are larger, and each is stored on
                top of the one before, so where the server is far away it takes longer.
            timeout: total deadline; for large files give one, or None.

        Raises:
            TypeError: the file is a text file, or has no ``read``.
            ValueError: ``resume``, and a file that cannot seek.
            UploadLostError: with ``ttl``: it took longer than it may. With ``resume``: what was stored before is not
                the beginning of the file, is damaged, was to live for another ``ttl``, or a sweep has given it up;
                begin anew with another text. So it is where the object was stored, deleted or described anew since all
                of it was there but for the last step. Or ``progress`` stood still before that; the same call may still
                go on.
            BlockingIOError: the file does not block, and has no data now.
            Exception: whatever the file or ``progress`` raises. Otherwise as `put`.
        """
        deadline = self._deadline(timeout)
        check_readable(fileobj)
        reporter = Reporter(progress, size_of(fileobj))
        condition = Condition.of(self._name, key, if_match)
        if resume is not None:
            check_seekable(fileobj, resume)
        described = Described(description, headers, metadata)
        upload, size = self._begin(key, condition, described, ttl=ttl, longest=deadline.remaining, token=resume)
        with PutBack(None if resume is None else fileobj), Ending(upload.abort, deadline):
            if resume is not None:
                stored = self._resume(upload, key, resume, fileobj, deadline)
                if stored is not None:
                    reporter.report_all(stored.size)
                    return stored
                reporter.report(upload.stored)
            chunks = Chunks(fileobj, size, deadline, self._describe("storing object", key))
            while chunk := chunks.next():
                upload.add(chunk, deadline)
                reporter.report(upload.stored)
            if not upload.size:
                reporter.report_all(0)
            return upload.finish(deadline, reporter)

    def delete(self, key: str, *, timeout: Timeout = DEFAULT) -> None:
        """Delete an object; deleting a missing one is no error."""
        deadline = self._deadline(timeout)
        commit = self._committing(key, Condition(), {}, "deleting object")
        with self._errors(deadline, "deleting object", key):
            newest = self._last_meta(key, deadline, direct=False)
            if commit.check(newest) is not None:
                commit.commit(deletion(self._name, key), newest, deadline)

    def sweep(self, *, older_than: Duration | None = None, timeout: Timeout = DEFAULT) -> int:
        """Remove the chunks of uploads that never came to an end, and return how many chunks that were.

        Programs that are killed while they write leave such chunks, which take room and that nobody can read. Chunks of
        objects are never touched, whatever is written at the same moment. An upload that stood still for longer than
        ``older_than`` is given up, and fails with `UploadLostError` if it goes on; one of another client does not
        notice, so leave it the time that it may need between two chunks.

        Args:
            older_than: what was stored later is let alone, in seconds or as ``timedelta``, at least ten minutes;
                omitted: an hour.
            timeout: total deadline. What is left when it passes is left for the next time.

        Raises:
            ValueError: ``older_than`` is less than ten minutes.
        """
        grace = check_grace(older_than)
        deadline = self._deadline(timeout)
        sweep = Sweep(
            self._jetstream,
            self._writer,
            self._reader,
            bucket=self._name,
            stream=self._stream,
            grace=grace,
            deadline=deadline,
        )
        with self._errors(deadline, "sweeping"):
            return sweep.run()

    def _new_writer(
        self,
        key: str,
        *,
        exclusive: bool,
        if_match: ObjectInfo | int | None = None,
        description: str = "",
        headers: Headers | None = None,
        metadata: Metadata | None = None,
        ttl: Duration | None = None,
        timeout: Timeout = DEFAULT,
    ) -> ObjectWriter:
        """Return the stream for a new version of an object; ``exclusive``: there must be none."""
        if exclusive and if_match is not None:
            raise ValueError("a mode with 'x' takes no if_match: there must be no object")
        default = self._connection.config.call_timeout
        deadline = Deadline.of(timeout, default)
        condition = Condition(0) if exclusive else Condition.of(self._name, key, if_match)
        described = Described(description, headers, metadata)
        upload, size = self._begin(key, condition, described, ttl=ttl, longest=None)
        if exclusive and (there := self._find(key, deadline, direct=False)) is not None:
            raise ObjectExistsError(self._name, key, there.revision)
        each = default if timeout is DEFAULT else timeout
        return ObjectWriter(upload, self._name, key, size, exclusive=exclusive, timeout=each)

    # --- the steps of an upload

    def _begin(
        self,
        key: str,
        condition: Condition,
        described: Described,
        *,
        ttl: Duration | None,
        longest: float | None,
        token: str | None = None,
    ) -> tuple[Upload, int]:
        """Return an upload, of which nothing has been sent, and the size of its chunks.

        With a ``ttl`` it may take ``longest`` seconds; None: it has no deadline.
        """
        self._meta_subject(key)
        size, seconds = self._sinks.chunk_size(resumable=token is not None), self._ttl(ttl)
        meta = new_meta(
            self._name,
            key,
            chunk=size,
            description=described.description,
            headers=described.headers,
            metadata=described.metadata,
        )
        if token is not None:
            meta["nuid"] = name_of_chunks(self._name, key, token)
        encode_meta(self._name, meta, self._connection.server_info.max_payload)
        lives, chunks_live, may_take = dict[str, str](), dict[str, str](), None
        if seconds is not None:
            may_take = _LONGEST_UPLOAD
            if token is None:  # else it is the same for all attempts, and so is how long their chunks live
                may_take = min(may_take, max(seconds, _UNHURRIED_UPLOAD) if longest is None else longest)
            later = min(seconds + int(may_take + COMMIT_TIME) + 1, _LONGEST_TTL)
            lives, chunks_live = {TTL: str(seconds)}, {TTL: str(later)}
        doing = "storing object"
        commit, operation = self._committing(key, condition, lives, doing), self._describe(doing, key)
        upload = Upload(
            self._sinks,
            meta,
            chunks_live,
            commit,
            longest=may_take,
            operation=operation,
            resumable=token is not None,
        )
        return upload, size

    def _resume(self, upload: Upload, key: str, token: str, fileobj: Any, deadline: Deadline) -> ObjectInfo | None:
        """Let an upload go on from what there is; return the object if that has been stored already."""
        name = name_of_chunks(self._name, key, token)
        resumption = Resumption(
            self._jetstream,
            stream=self._stream,
            subject=self._sinks.subject(name),
            chunk_size=self._sinks.chunk_size(resumable=True),
            fileobj=fileobj,
            deadline=deadline,
        )
        stored: ObjectInfo | None = None

        def find() -> Found | None:
            nonlocal stored
            while True:
                newest = self._last_meta(key, deadline, direct=False)
                meta = None if newest is None else read_meta(self._name, newest)
                if newest is not None and meta is not None and meta["nuid"] == name:
                    if resumption.is_whole(meta):
                        stored = to_info(self._name, meta, newest.sequence)
                        return None
                    found, wrong = None, "it is stored, but damaged: chunks are missing"
                else:
                    found = resumption.find(newest)
                    if found is None:
                        return None
                    wrong = self._where_else(name, deadline)
                    if not wrong and (not found.complete or (found.ended and found.idle <= COMMIT_TIME)):
                        return found
                if self._last_meta(key, deadline, direct=False) != newest:
                    continue  # while all that was looked at; perhaps it is stored now
                if found is None or wrong:
                    raise ChunksLostError(wrong)
                resumption.take_back(found)

        upload.resume(find, deadline)
        return stored

    def _where_else(self, name: str, deadline: Deadline) -> str:
        """Return that there is an object whose chunks have a name; empty if there is none."""
        described = described_in(self._newest_descriptions(deadline, "storing object", from_leader=True))
        return "this resume stands for an object that is stored under another name" if name in described else ""

    def _committing(self, key: str, condition: Condition, headers: dict[str, str], doing: str) -> Commit:
        subject = self._meta_subject(key)

        def look(deadline: Deadline) -> StoredMessage | None:
            return self._jetstream.last(self._stream, subject, direct=False, deadline=deadline)

        def errors(deadline: Deadline, size: int) -> AbstractContextManager[None]:
            return self._errors(deadline, doing, key, size)

        return Commit(
            self._writer,
            self._sinks,
            bucket=self._name,
            key=key,
            subject=subject,
            look=look,
            question=direct_question(self._stream, subject) if self._answers_at_once(condition) else None,
            errors=errors,
            condition=condition,
            headers=headers,
            operation=self._describe(doing, key),
        )

    def _answers_at_once(self, condition: Condition) -> bool:
        """Return whether it makes sense to ask any replica what is there."""
        may_be_behind = self._replicated and condition.revision is not None
        return self._direct and not may_be_behind and self._jetstream.takes_direct(self._stream)

    def _ttl(self, ttl: Duration | None) -> int | None:
        seconds = to_ttl(ttl)
        if seconds is None:
            return None
        if seconds > _LONGEST_TTL:
            raise ValueError(f"ttl must be at most {_LONGEST_TTL} seconds, the server's largest: {ttl!r}")
        self._connection.server_info.require("a TTL per object", "2.11.0")
        return seconds
