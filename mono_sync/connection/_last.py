"""The newest messages of many subjects, asked for together."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

from mono_sync._durations import Deadline
from mono_sync.adapter import Message
from mono_sync.connection._connection import CoreConnection
from mono_sync.connection._inbox import Question
from mono_sync.connection._jetstream import JetStream, StoredMessage, read_direct, read_stored
from mono_sync.errors import ConnectionLostError

_PATIENCE: Final = 1.0
_MOST_UNDER_WAY: Final = 256
_BYTES_UNDER_WAY: Final = 32 << 20
"""Half of what the server lets wait for a client before it takes it for a slow one, and cuts it off."""


def last_of_many(
    connection: CoreConnection,
    jetstream: JetStream,
    stream: str,
    subjects: Sequence[str],
    deadline: Deadline,
    *,
    direct: bool,
) -> list[StoredMessage | None]:
    """Return the newest message of each of the subjects, in their order; each is true for a moment of its own.

    Not one request for all: what that answers is cut off at a number of bytes, and it may be another replica than the
    leader that answers it.
    """
    window = max(1, min(_MOST_UNDER_WAY, _BYTES_UNDER_WAY // connection.server_info.max_payload))
    found: list[StoredMessage | None] = []
    for start in range(0, len(subjects), window):
        found += _window(connection, jetstream, stream, subjects[start : start + window], deadline, direct=direct)
    return found


def _window(
    connection: CoreConnection,
    jetstream: JetStream,
    stream: str,
    subjects: Sequence[str],
    deadline: Deadline,
    *,
    direct: bool,
) -> list[StoredMessage | None]:
    if len(subjects) == 1:
        return [jetstream.last(stream, subjects[0], direct=direct, deadline=deadline)]
    questions = [_question(stream, subject, str(number), direct=direct) for number, subject in enumerate(subjects)]
    answers: dict[str, Message] = {}
    with suppress(ConnectionLostError), connection.inbox(deadline) as inbox:
        inbox.ask_all(questions)
        while len(answers) < len(questions):
            answer = inbox.next_within(_PATIENCE, "reading many keys")
            if answer is None:
                break
            answers[answer.subject.rpartition(".")[2]] = answer
    found: list[StoredMessage | None] = []
    for number, subject in enumerate(subjects):
        answer = answers.get(str(number))
        if answer is not None and direct and answer.status in (None, 404):
            found.append(read_direct(answer))
        elif answer is not None and not direct and (stored := read_stored(answer)) is not None:
            found.append(stored)
        else:  # none, or one that tells of no message: the single call knows why, and what to do
            found.append(jetstream.last(stream, subject, direct=direct, deadline=deadline))
    return found


def _question(stream: str, subject: str, tag: str, *, direct: bool) -> Question:
    target = f"$JS.API.DIRECT.GET.{stream}" if direct else f"$JS.API.STREAM.MSG.GET.{stream}"
    return target, json.dumps({"last_by_subj": subject}).encode(), b"", tag
