"""Chunks that belong to no object, because their upload was killed, are found and removed."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Final

from mono_sync._durations import Deadline, Duration, to_seconds
from mono_sync.connection import ExactlyOnce, JetStream, Json, StoredMessage, StreamReader, is_conflict, parse_time
from mono_sync.errors import JetStreamAPIError

_log = logging.getLogger("mono_sync.storage")

_GRACE: Final = timedelta(hours=1)
_LEAST_GRACE: Final = timedelta(minutes=10)
"""Several times what an upload takes until it looks whether its chunks are there, and for its last step."""

GIVEN_UP: Final = "Mono-Sync-Given-Up"
"""Header of the mark, an empty message, on chunks that are about to be removed."""
_NO_ROOM: Final = frozenset({10023, 10047, 10077})


def check_grace(older_than: Duration | None) -> timedelta:
    """Return for how long the newest chunk of an upload is let alone.

    Raises:
        TypeError: it is neither a number nor a ``timedelta``.
        ValueError: that is too short.
    """
    if older_than is None:
        return _GRACE
    grace = timedelta(seconds=to_seconds(older_than, "older_than"))
    if grace < _LEAST_GRACE:
        raise ValueError(f"older_than must be at least {_LEAST_GRACE}, for uploads may be under way")
    return grace


class Sweep:
    """Removes the chunks to which no description refers, and to which none will, once.

    It must never take a chunk of an object, whatever happens at the same moment. So:

    1. Chunks come into question if no description refers to them, and the newest of them is old.
    2. Each of those gets a mark, on top of exactly the newest chunk that was seen. An upload that goes on after that
       fails: it stores its last chunk only on top of the one before, and after standing still it looks first whether
       its chunks are there and nothing else. See `Sink`.
    3. Only then the descriptions are read once more. What one of them refers to by now loses its mark again; the rest
       is removed.

    What a replica says that lags behind the leader does not count: it may not know the descriptions of many hours.

    A description comes soon after the last chunk, or never. An old last chunk without one will not get one any more.

    Args:
        jetstream: the API.
        writer: the stream.
        reader: reads much of it.
        bucket: name of the bucket.
        stream: name of the stream.
        grace: for how long the newest chunk of an upload is let alone.
        deadline: until when to work.
    """

    def __init__(
        self,
        jetstream: JetStream,
        writer: ExactlyOnce,
        reader: StreamReader,
        *,
        bucket: str,
        stream: str,
        grace: timedelta,
        deadline: Deadline,
    ) -> None:
        self._jetstream = jetstream
        self._writer = writer
        self._reader = reader
        self._bucket = bucket
        self._stream = stream
        self._grace = grace
        self._deadline = deadline
        self._prefix = f"$O.{bucket}.C."
        self._descriptions = f"$O.{bucket}.M.>"

    def run(self) -> int:
        """Do it; return how many chunks were removed."""
        now, counts = self._chunks()
        if not counts:
            return 0
        described = described_in(self._all_descriptions())
        self._clear_marks(name for name, count in counts.items() if count > described.get(name, count))
        marked, removed = dict[str, int](), 0
        for name in counts.keys() - described.keys():
            newest = self._newest(name)
            if newest is None or now - newest.time < self._grace:
                continue
            mark = self._mark(newest)
            if mark is None:
                self._remove(name, newest.sequence)
                removed += counts[name]
            elif mark:
                marked[name] = mark
        if not marked:
            return removed
        described = described_in(self._all_descriptions())
        self._clear_marks(name for name in marked if name in described)
        for name in marked.keys() - described.keys():
            self._remove(name, marked[name])
            removed += counts[name]
        return removed

    # --- what there is

    def _chunks(self) -> tuple[datetime, dict[str, int]]:
        """Return the time by the server's clock, and how many chunks each version has."""
        counts, now = dict[str, int](), datetime.now(UTC)
        while True:
            query = {"subjects_filter": f"{self._prefix}>", "offset": len(counts)}
            answer = self._jetstream.api(f"STREAM.INFO.{self._stream}", query, self._deadline)
            if not counts and "ts" in answer:  # old servers do not tell
                now = parse_time(answer["ts"])
            page: Mapping[str, int] = answer["state"].get("subjects") or {}
            counts.update((subject.removeprefix(self._prefix), count) for subject, count in page.items())
            if not page or len(counts) >= answer.get("total", 0):
                return now, counts

    def _newest(self, name: str) -> StoredMessage | None:
        return self._jetstream.last(self._stream, self._prefix + name, direct=False, deadline=self._deadline)

    def _all_descriptions(self) -> list[StoredMessage]:
        """Return the newest of each object, read in two ways.

        Of an object that is renamed meanwhile both names could be missed by the first. But in the order of the stream
        the new description is behind the one that it replaces, and so still to come when that is gone. There may be
        older ones as well, which a server that was killed had removed and brings back.
        """
        newest = self._reader.newest_of_each(self._descriptions, self._deadline, from_leader=True)
        in_order = self._reader.all_in_order(self._descriptions, self._deadline)
        return newest + list({message.subject: message for message in in_order}.values())

    # --- marks

    def _mark(self, newest: StoredMessage) -> int | None:
        """Put a mark on top of the newest chunk; return its sequence, 0 if the upload goes on, None for no room.

        A full bucket has no room for marks. Its uploads cannot go on either, and if they could they would find their
        chunks missing.
        """
        operation = f"sweeping bucket {self._bucket!r}"
        try:
            return self._writer.store(
                newest.subject, b"", {GIVEN_UP: "1"}, self._deadline, operation, expected=newest.sequence
            )
        except JetStreamAPIError as error:
            if is_conflict(error):
                return 0
            if error.err_code in _NO_ROOM:
                return None
            raise

    def _clear_marks(self, names: Iterable[str]) -> None:
        """Remove the marks from objects; a sweep that is killed leaves some."""
        for name in names:
            try:
                self._jetstream.remove_newest(
                    self._stream, self._prefix + name, lambda newest: GIVEN_UP in newest.headers, self._deadline
                )
            except JetStreamAPIError as error:
                _log.warning("bucket %s: a mark stays on chunks %s: %s", self._bucket, name, error)

    def _remove(self, name: str, newest: int) -> None:
        """Remove the messages of a name up to a sequence."""
        self._jetstream.purge(self._stream, self._prefix + name, self._deadline, before=newest + 1)
        _log.info("bucket %s: chunks %s belonged to no object and are removed", self._bucket, name)


def described_in(messages: Iterable[StoredMessage]) -> dict[str, int]:
    """Return the names of the chunks that descriptions refer to, and how many there should be."""
    return {name: count for message in messages for name, count in _reference(message)}


def _reference(message: StoredMessage) -> Iterator[tuple[str, int]]:
    """Read what can be read, also where the rest of a description cannot."""
    try:
        meta: Json = json.loads(message.data)
        if not meta.get("deleted"):
            count = meta.get("chunks")
            yield str(meta.get("nuid")), count if isinstance(count, int) else 0
    except (ValueError, AttributeError):
        return
