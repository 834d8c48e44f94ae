"""Where the chunks of a bucket go."""

from __future__ import annotations

import logging
import re
from typing import Final

from mono_sync._durations import Deadline
from mono_sync.connection import CoreConnection, ExactlyOnce, JetStream
from mono_sync.errors import MonoError
from mono_sync.storage.objects._sink import Sink

_log = logging.getLogger("mono_sync.storage")

_NUID: Final = re.compile(r"[-_a-zA-Z0-9]+")
_CHUNK: Final = 128 * 1024
_LARGE_CHUNK: Final = 512 * 1024
_MESSAGE_HEADERS: Final = 256  # of a chunk, at most


class Sinks:
    """Where the chunks of a bucket go. Thread-safe.

    Args:
        connection: where the bucket is.
        jetstream: its API.
        writer: the stream.
        bucket: name of the bucket.
        stream: name of the stream.
        max_age: seconds after which the stream removes its messages; 0: never.
    """

    def __init__(
        self,
        connection: CoreConnection,
        jetstream: JetStream,
        writer: ExactlyOnce,
        *,
        bucket: str,
        stream: str,
        max_age: float,
    ) -> None:
        self._connection = connection
        self._jetstream = jetstream
        self._writer = writer
        self._bucket = bucket
        self._stream = stream
        self._max_age = max_age
        self.expects_new: bool = True
        """Whether the next description is likely to be the first of its name, to judge by the one before."""

    @property
    def keeps_order(self) -> bool:
        """Whether what is sent in one go is stored one right after the other, unless somebody else comes between."""
        return not self._connection.server_info.cluster

    def chunk_size(self, *, resumable: bool = False) -> int:
        """Return the bytes of one chunk: what the server takes, if that is less than usual.

        Those that are stored one after the other are larger, for each takes a round trip.
        """
        usual = _LARGE_CHUNK if resumable else _CHUNK
        return min(usual, self._connection.server_info.max_payload - _MESSAGE_HEADERS)

    def new(self, nuid: str, headers: dict[str, str], operation: str) -> Sink:
        """Return the way for the chunks of one version."""
        return Sink(
            self._connection,
            self._jetstream,
            self._writer,
            stream=self._stream,
            subject=self.subject(nuid),
            headers=headers,
            operation=operation,
            max_age=self._max_age,
        )

    def discard(self, nuid: str, deadline: Deadline, *, before: int = 0) -> None:
        """Remove the chunks of a version that nothing refers to; what cannot be removed in time is left behind.

        With ``before``, a sequence, only those that were stored earlier: an upload may go by the same name since.
        """
        if not _NUID.fullmatch(nuid):  # none, or no name of chunks, which other clients may have stored
            return
        try:
            self._jetstream.purge(self._stream, self.subject(nuid), deadline, before=before)
        except MonoError as error:
            _log.warning("bucket %s: chunks %s may be left behind: %s", self._bucket, nuid, error)

    def subject(self, nuid: str) -> str:
        """Return where the chunks of a version go."""
        return f"$O.{self._bucket}.C.{nuid}"
