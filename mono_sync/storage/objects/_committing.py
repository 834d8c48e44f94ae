"""The last step of a new version: its description takes the place of the old one."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Final, NamedTuple

from mono_sync._durations import Deadline
from mono_sync.adapter import Message
from mono_sync.connection import (
    ExactlyOnce,
    Json,
    Question,
    StoredMessage,
    Write,
    is_conflict,
    is_out_of_turn,
    read_ack,
    read_direct,
)
from mono_sync.errors import (
    JetStreamAPIError,
    JetStreamUnavailableError,
    MessageError,
    NoRespondersError,
    ObjectExistsError,
    OperationTimeoutError,
    OutcomeUnknownError,
    PermissionDeniedError,
    RevisionMismatchError,
    StorageError,
)
from mono_sync.storage._bucket import check_revision
from mono_sync.storage.objects._clean_up import clean_up_deadline
from mono_sync.storage.objects._info import ObjectInfo
from mono_sync.storage.objects._meta import read_meta
from mono_sync.storage.objects._sink import ChunksLostError, Sink
from mono_sync.storage.objects._sinks import Sinks

_NONE_THERE: Final = 404
_ASKED, _DESCRIBED = "asked", "described"
_REFUSALS: Final = (NoRespondersError, JetStreamUnavailableError, JetStreamAPIError)

_log = logging.getLogger("mono_sync.storage")


class Condition(NamedTuple):
    """What must be there for a new version to take its place.

    Attributes:
        revision: the revision of what is there; 0: nothing; None: whatever it is.
    """

    revision: int | None = None

    @classmethod
    def of(cls, bucket: str, key: str, if_match: ObjectInfo | int | None) -> Condition:
        """Read what a caller gave for an object of a bucket.

        Raises:
            TypeError: it is none of those.
            ValueError: it is no revision, or describes another object.
        """
        if isinstance(if_match, ObjectInfo):
            if (if_match.bucket, if_match.name) != (bucket, key):
                described = f"object {if_match.name!r} of bucket {if_match.bucket!r}"
                raise ValueError(f"if_match describes {described}, not {key!r} of {bucket!r}")
            return cls(if_match.revision)
        if if_match is None:
            return cls()
        if not isinstance(if_match, int) or isinstance(if_match, bool):
            raise TypeError(f"if_match must be a revision or an ObjectInfo, not {type(if_match).__name__}")
        return cls(if_match and check_revision(if_match, "; 0 is for none at all"))

    def check(self, bucket: str, key: str, newest: StoredMessage | None, *, lives: bool) -> None:
        """Do nothing if what is there is what must be there.

        Raises:
            ObjectExistsError: there is an object and must be none.
            RevisionMismatchError: it is not at the revision.
        """
        actual = newest.sequence if newest is not None and lives else 0
        if self.revision is None or self.revision == actual:
            return
        if self.revision == 0:
            raise ObjectExistsError(bucket, key, actual)
        raise RevisionMismatchError(bucket, key, self.revision, actual, kind="object")


class Commit:
    """Stores the description of one version. One thread, once.

    Several writers at once replace each other one after the other, each on top of exactly the version that it replaces:
    so each version's chunks are removed by the one who replaced it.

    Args:
        writer: the stream.
        sinks: where chunks go.
        bucket: name of the bucket.
        key: name of the object.
        subject: that of its description.
        look: asks the leader for the newest description.
        question: what any replica answers, for a replica may be behind only if no condition depends on it.
        errors: returns what turns refusals into errors that name bucket and object.
        condition: what must be there.
        headers: of the description.
        operation: what to call it in errors.

    Attributes:
        in_doubt: whether it may be stored although `commit` has raised.
    """

    def __init__(
        self,
        writer: ExactlyOnce,
        sinks: Sinks,
        *,
        bucket: str,
        key: str,
        subject: str,
        look: Callable[[Deadline], StoredMessage | None],
        question: tuple[str, bytes] | None,
        errors: Callable[[Deadline, int], AbstractContextManager[None]],
        condition: Condition,
        headers: dict[str, str],
        operation: str,
    ) -> None:
        self.in_doubt: bool = False
        self.errors: Final = errors
        self._bucket = bucket
        self._key = key
        self._subject = subject
        self._writer = writer
        self._sinks = sinks
        self._look = look
        self._question = question
        self._guess: Write | None = None
        self._condition = condition
        self._headers = {"Nats-Rollup": "sub", **headers}
        self._operation = operation

    # --- what goes along with the last chunk, whose acknowledgement takes as long as all of it

    def guess(self, meta: Json, chunk: Write, deadline: Deadline) -> None:
        """Let a description follow the only chunk of its version right away, for most objects are new.

        It is stored only where there is nothing yet, and only if its chunk was stored just before it; otherwise
        `commit` comes after all.
        """
        if not self._condition.revision and self._sinks.expects_new and self._sinks.keep_order:
            self._guess = self._writer.prepare(
                self._subject,
                json.dumps(meta).encode(),
                self._headers,
                deadline,
                self._operation,
                expected=0,
                behind=chunk.message_id,
            )
            self.in_doubt = True

    @property
    def along(self) -> list[Question]:
        """What to send behind the last chunk: the description, or a question what it is going to replace."""
        if self._guess is not None:
            return [(self._subject, self._guess.data, self._guess.block, _DESCRIBED)]
        return [] if self._question is None else [(*self._question, b"", _ASKED)]

    def stored(self, answers: Mapping[str, Message]) -> int | None:
        """Return the revision of a description that was stored behind its chunk, as was answered.

        None: it was refused, and will never be stored; or it is `in_question`, for no answer came.

        Raises:
            JetStreamAPIError: it was refused, and `commit` would be as well.
        """
        if self._guess is None or (answer := answers.get(_DESCRIBED)) is None:
            return None
        return self._outcome(lambda: read_ack(answer, self._operation))

    @property
    def in_question(self) -> bool:
        """Whether a description that went along may be stored, or may still arrive and be: `settle` finds out."""
        return self._guess is not None

    def settle(self, sink: Sink, chunk: Write, deadline: Deadline) -> int | None:
        """Make sure that the chunk is stored, and return the revision of the description; None: that never will be.

        In this order: where the chunk is not stored, one that arrives late may bring along its description.

        Raises:
            JetStreamAPIError: the server refused one of them.
            OutcomeUnknownError: the description may be stored.
        """
        guess = self._guess
        assert guess is not None
        try:
            sink.end_last(chunk, deadline)
            if not sink.is_whole(deadline) and self._writer.find(guess, deadline) is None:
                raise ChunksLostError("its chunks are gone")
        except OutcomeUnknownError:
            raise
        except JetStreamAPIError as error:
            if error.code == _NONE_THERE:  # the bucket is gone
                raise
            if not sink.last_is_answered:
                raise self._unknown(error, deadline) from error
            self.in_doubt = False
            raise
        except (ChunksLostError, OperationTimeoutError) as error:
            raise self._unknown(error, deadline) from error
        return self._outcome(lambda: self._writer.carry_out(guess, deadline, in_doubt=True))

    def _unknown(self, error: Exception, deadline: Deadline) -> OutcomeUnknownError:
        timeout = deadline.timeout if deadline.expired else None
        return OutcomeUnknownError(self._operation, timeout, "" if timeout else str(error))

    def _outcome(self, ask: Callable[[], int]) -> int | None:
        try:
            revision = ask()
        except _REFUSALS as error:
            self.in_doubt, self._guess = False, None
            if isinstance(error, JetStreamAPIError) and not (is_conflict(error) or is_out_of_turn(error)):
                raise
            return None
        self._guess = None
        self._writer.saw(revision)
        return revision

    def learn(self, answers: Mapping[str, Message], reason: BaseException | None) -> None:
        """Learn what has become of it from the reason why an upload ends, or from an answer that came after that."""
        if self._guess is None:
            return
        answer = answers.get(_DESCRIBED)
        if isinstance(reason, PermissionDeniedError) and reason.subject == self._subject:
            self.in_doubt = False
        elif answer is not None:
            try:
                read_ack(answer, self._operation)
            except _REFUSALS:
                self.in_doubt = False

    # --- one after the other

    def look(self, answers: Mapping[str, Message], deadline: Deadline) -> StoredMessage | None:
        """Return what describes the version that there is now, as was answered to the question if that was sent.

        If that is an older one, because a replica lags behind, `commit` finds out.
        """
        answer = answers.get(_ASKED)
        told = answer is not None and answer.status in (None, _NONE_THERE)
        newest = read_direct(answer) if answer is not None and told else self._look(deadline)
        self._sinks.expects_new = newest is None
        return newest

    def check(self, newest: StoredMessage | None) -> Json | None:
        """Return the description that is going to be replaced: None for nothing, empty if it cannot be read.

        Raises:
            ObjectExistsError: there is an object and must be none.
            RevisionMismatchError: it is not at the revision that it must be at.
        """
        try:
            replaced = None if newest is None else read_meta(self._bucket, newest)
        except StorageError as error:
            _log.warning("%s; it is replaced, and its chunks, if there are any, are left behind", error)
            replaced = {}
        self._condition.check(self._bucket, self._key, newest, lives=replaced is not None)
        return replaced

    def commit(self, meta: Json, newest: StoredMessage | None, deadline: Deadline) -> int:
        """Store a description in place of the newest one, return its revision, and remove the chunks that it replaces.

        Raises:
            ConflictError: what is there is not what must be there.
        """
        payload = json.dumps(meta).encode()
        while True:
            replaced = self.check(newest)
            expected = 0 if newest is None else newest.sequence
            try:
                revision = self._store(payload, expected, deadline)
            except JetStreamAPIError as error:
                if not is_conflict(error):
                    raise
                newest = self._look(deadline)
            else:
                if replaced is not None and replaced.get("nuid") != meta["nuid"]:
                    self._sinks.discard(replaced.get("nuid", ""), clean_up_deadline(None, deadline))
                return revision

    def _store(self, payload: bytes, expected: int, deadline: Deadline) -> int:
        self.in_doubt = True
        write = self._writer.prepare(
            self._subject, payload, self._headers, deadline, self._operation, expected=expected
        )
        try:
            revision = self._writer.carry_out(write, deadline)
        except (JetStreamAPIError, MessageError, NoRespondersError):
            self.in_doubt = False
            raise
        except PermissionDeniedError:
            self.in_doubt = write.in_doubt
            raise
        except OperationTimeoutError as error:
            self.in_doubt = error.sent
            raise
        self._writer.saw(revision)
        return revision
