"""The chunks of an object bucket: written ahead of their acknowledgements, and removed."""

from __future__ import annotations

import logging
import re

from mono_sync._durations import Deadline
from mono_sync.connection import CoreConnection, Inbox, JetStream, read_ack
from mono_sync.errors import ConnectionLostError, MonoError

_log = logging.getLogger("mono_sync.storage")

_NUID = re.compile(r"[-_a-zA-Z0-9]+")
_CHUNK = 128 * 1024
_IN_FLIGHT = 16
_CLEAN_UP_TIMEOUT = 5.0
_LEAST_CLEAN_UP_TIMEOUT = 0.25


def clean_up_deadline(reason: BaseException | None, deadline: Deadline) -> Deadline:
    """Return how long to clean up for: what is left of a call's deadline, or a moment when nothing is.

    After an interrupt it is a moment as well: whoever presses Ctrl-C does not want to wait.
    """
    interrupted = reason is not None and not isinstance(reason, Exception)
    left = 0.0 if interrupted else deadline.at_most(_CLEAN_UP_TIMEOUT).remaining or 0.0
    return Deadline(max(left, _LEAST_CLEAN_UP_TIMEOUT))


class Chunks:
    """The chunks of all objects of a bucket. Thread-safe, stateless."""

    def __init__(self, connection: CoreConnection, jetstream: JetStream, bucket: str, stream: str) -> None:
        self._connection = connection
        self._jetstream = jetstream
        self._bucket = bucket
        self._stream = stream

    @property
    def size(self) -> int:
        """Bytes of one chunk: what the server takes, if that is less than usual."""
        return min(_CHUNK, self._connection.server_info.max_payload)

    def write(self, nuid: str, view: memoryview, size: int, deadline: Deadline) -> None:
        """Publish all chunks, a bounded number ahead of their acknowledgements; on failure remove them again."""
        if not view:
            return
        subject, operation = self._subject(nuid), f"storing chunks of {len(view)} bytes"
        in_flight = 0
        with self._connection.inbox(deadline) as inbox:
            try:
                for start in range(0, len(view), size):
                    if in_flight == _IN_FLIGHT:
                        in_flight -= 1
                        read_ack(inbox.next(operation), operation)
                    in_flight += 1
                    inbox.ask(subject, bytes(view[start : start + size]))
                while in_flight:
                    in_flight -= 1
                    read_ack(inbox.next(operation), operation)
            except BaseException as error:
                clean_up = clean_up_deadline(error, deadline)
                self._settle(inbox, in_flight, clean_up)
                self.discard(nuid, clean_up)
                raise

    def _settle(self, inbox: Inbox, in_flight: int, deadline: Deadline) -> None:
        """Wait for what is under way, for a removal sent behind a chunk may reach the stream before it."""
        settled = deadline.at_most(_LEAST_CLEAN_UP_TIMEOUT / 2)
        try:
            while in_flight and inbox.poll(settled.remaining) is not None:
                in_flight -= 1
        except MonoError as error:
            _log.debug("bucket %s: %d chunks are under way after an error: %s", self._bucket, in_flight, error)

    def discard(self, nuid: str, deadline: Deadline) -> None:
        """Remove the chunks of a version that nothing refers to; what cannot be removed in time is left behind."""
        if not _NUID.fullmatch(nuid):  # none, or no name of chunks, which other clients may have stored
            return
        while True:
            try:
                self._jetstream.purge(self._stream, self._subject(nuid), deadline)
                return
            except ConnectionLostError:
                continue  # purging twice does no harm
            except MonoError as error:
                _log.warning("bucket %s: chunks %s may be left behind: %s", self._bucket, nuid, error)
                return

    def _subject(self, nuid: str) -> str:
        return f"$O.{self._bucket}.C.{nuid}"
