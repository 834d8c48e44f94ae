"""Writing objects."""

from __future__ import annotations

import json
import logging

from mono_sync._durations import DEFAULT, Deadline, Timeout
from mono_sync.adapter import Payload, check_payload
from mono_sync.connection import Json, StoredMessage, is_conflict
from mono_sync.errors import (
    JetStreamAPIError,
    MessageError,
    NoRespondersError,
    OperationTimeoutError,
    StorageError,
)
from mono_sync.storage._values import ObjectInfo
from mono_sync.storage.objects._chunks import clean_up_deadline
from mono_sync.storage.objects._meta import Headers, Metadata, deletion, encode_meta, new_meta, read_meta, to_info
from mono_sync.storage.objects._reading import Reading

_log = logging.getLogger("mono_sync.storage")


class Writing(Reading):
    """The part of an object bucket that writes."""

    def set(self, key: str, data: Payload, *, timeout: Timeout = DEFAULT) -> None:
        """Store an object, replacing what was there. Errors as for `put`."""
        self.put(key, data, timeout=timeout)

    def put(
        self,
        key: str,
        data: Payload,
        *,
        description: str = "",
        headers: Headers | None = None,
        metadata: Metadata | None = None,
        timeout: Timeout = DEFAULT,
    ) -> ObjectInfo:
        """Store an object, replacing what was there, and return what the bucket knows of it.

        The new version becomes visible as a whole at the end, and the old one is removed after that. When anything goes
        wrong before, the old one stays, and what was written of the new one is removed again. That may take a quarter
        of a second beyond the deadline, or after an interrupt; where the server does not answer by then, and where an
        interrupt comes in the last step, chunks that nothing refers to may be left behind.

        Args:
            key: its name.
            data: its bytes.
            description: for people.
            headers: by name, one value or several; ``Content-Type`` tells others what it is.
            metadata: custom values by name.
            timeout: total deadline.

        Raises:
            BucketFullError: the bucket's limit is reached; old and new version need room together.
            InvalidHeaderError: a header that no message could carry; nothing was sent.
            ValueTooLargeError: name, description, headers and metadata are more than the server takes in one message.
        """
        deadline = self._deadline(timeout)
        self._meta_subject(key)
        view = memoryview(check_payload(data))
        size = self._chunks.size
        meta = new_meta(self._name, key, view, chunk=size, description=description, headers=headers, metadata=metadata)
        encode_meta(self._name, meta, self._connection.server_info.max_payload)
        with self._errors(deadline, "storing object", key, len(view)):
            self._chunks.write(meta["nuid"], view, size, deadline)
            revision = self._commit(meta, deadline)
        return to_info(self._name, meta, revision)

    def delete(self, key: str, *, timeout: Timeout = DEFAULT) -> None:
        """Delete an object; deleting a missing one is no error."""
        deadline = self._deadline(timeout)
        with self._errors(deadline, "deleting object", key):
            newest = self._last_meta(key, deadline, direct=False)
            if self._replaceable(newest) is not None:
                self._commit(deletion(self._name, key), deadline)

    def _commit(self, meta: Json, deadline: Deadline) -> int:
        """Publish a description on top of exactly the version that it replaces, and remove that one's chunks.

        Several writers at once replace each other one after the other, so each version's chunks are removed by the one
        who replaced it. The new chunks are removed when it is certain that nothing refers to them.
        """
        key, subject, payload = meta["name"], self._meta_subject(meta["name"]), json.dumps(meta).encode()
        operation = self._describe("storing object", key)
        maybe_stored = False
        try:
            while True:
                newest = self._last_meta(key, deadline, direct=False)
                replaced = self._replaceable(newest)
                maybe_stored = True
                try:
                    revision = self._writer.store(
                        subject, payload, {"Nats-Rollup": "sub"}, deadline, operation, expected=_revision(newest)
                    )
                except (JetStreamAPIError, MessageError, NoRespondersError) as error:
                    maybe_stored = False
                    if not isinstance(error, JetStreamAPIError) or not is_conflict(error):
                        raise
                except OperationTimeoutError as error:
                    maybe_stored = error.sent
                    raise
                else:
                    return self._committed(revision, replaced, deadline)
        except BaseException as error:
            if not maybe_stored:
                self._chunks.discard(meta["nuid"], clean_up_deadline(error, deadline))
            raise

    def _replaceable(self, message: StoredMessage | None) -> Json | None:
        """Return the description of what is going to be replaced: None for nothing, empty if it cannot be read."""
        try:
            return None if message is None else read_meta(self._name, message)
        except StorageError as error:
            _log.warning("%s; it is replaced, and its chunks, if there are any, are left behind", error)
            return {}

    def _committed(self, revision: int, replaced: Json | None, deadline: Deadline) -> int:
        if replaced is not None:
            self._chunks.discard(replaced.get("nuid", ""), clean_up_deadline(None, deadline))
        return revision


def _revision(message: StoredMessage | None) -> int:
    return 0 if message is None else message.sequence
