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
    read_direct,
)
from mono_sync.errors import (
    JetStreamAPIError,
    JetStreamUnavailableError,
    MessageError,
    NoRespondersError,
    ObjectExistsError,
    OperationTimeoutError,
    PermissionDeniedError,
    RevisionMismatchError,
    StorageError,
)
from mono_sync.storage._bucket import check_revision
from mono_sync.storage.objects._at_once import AtOnce
from mono_sync.storage.objects._clean_up import clean_up_deadline
from mono_sync.storage.objects._info import ObjectInfo
from mono_sync.storage.objects._meta import read_meta
from mono_sync.storage.objects._sink import OVERTAKEN, ChunksLostError, Sink
from mono_sync.storage.objects._sinks import Sinks

_NONE_THERE: Final = 404
_NOT_STORED: Final = (
    ChunksLostError,
    JetStreamAPIError,
    JetStreamUnavailableError,
    MessageError,
    NoRespondersError,
    PermissionDeniedError,
)
_ASKED: Final = "asked"

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
        in_doubt: whether its description may be stored, or may still arrive: then its chunks must stay.
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
        self._condition = condition
        self._headers = {"Nats-Rollup": "sub", **headers}
        self._operation = operation

    # --- what is sent right behind the last chunk, to save a round trip

    def at_once(self, meta: Json, chunk: Write, deadline: Deadline) -> AtOnce | None:
        """Return how to send a description along with its only chunk; None: it is better to look first.

        Most small objects are new. A cluster may store what comes in one go in another order.
        """
        if self._condition.revision or not (self._sinks.expects_new and self._sinks.keeps_order):
            return None
        write = self._writer.prepare(
            self._subject,
            json.dumps(meta).encode(),
            self._headers,
            deadline,
            self._operation,
            expected=0,
            right_after=chunk.message_id,
        )
        return AtOnce(meta, self._writer, write, self._operation)

    @property
    def questions(self) -> list[Question]:
        """What asks about the version that is going to be replaced; none where that has to be looked for."""
        return [] if self._question is None else [(*self._question, b"", _ASKED)]

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

    def commit(
        self,
        meta: Json,
        newest: StoredMessage | None,
        deadline: Deadline,
        sink: Sink | None = None,
        *,
        firm: bool = False,
    ) -> int:
        """Store a description in place of the newest one, return its revision, and remove the chunks that it replaces.

        With ``firm`` only in place of that one: somebody else may have described the same chunks since, and another one
        have replaced and removed them.

        Raises:
            ChunksLostError: what went into ``sink`` is gone, with a server that kept it in memory for example.
            ConflictError: what is there is not what must be there.
        """
        payload = json.dumps(meta).encode()
        replaced = self.check(newest)
        while True:
            expected = 0 if newest is None else newest.sequence
            try:
                revision = self._store(payload, expected, deadline, sink)
            except JetStreamAPIError as error:
                if not is_conflict(error):
                    raise
                newest = self._look(deadline)
                replaced = self.check(newest)
                if firm and (replaced or {}).get("nuid") != meta["nuid"]:
                    raise ChunksLostError(OVERTAKEN) from error
            else:
                if replaced is not None and replaced.get("nuid") != meta["nuid"]:
                    clean_up = clean_up_deadline(None, deadline)
                    self._sinks.discard(replaced.get("nuid", ""), clean_up, before=expected)
                return revision

    def _store(self, payload: bytes, expected: int, deadline: Deadline, sink: Sink | None) -> int:
        self.in_doubt = True
        write = self._writer.prepare(
            self._subject, payload, self._headers, deadline, self._operation, expected=expected
        )
        if sink is not None and sink.server:
            write.server, write.check = sink.server, sink.check
        try:
            return self._writer.carry_out(write, deadline)
        except _NOT_STORED:
            self.in_doubt = False
            raise
        except OperationTimeoutError as error:
            self.in_doubt = error.sent
            raise
