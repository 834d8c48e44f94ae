"""Reading and writing many keys at a time, and the bucket as a dict."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Final, NoReturn

from mono_sync._durations import DEFAULT, Deadline, Duration, Timeout, to_seconds
from mono_sync.adapter import Payload, check_payload
from mono_sync.connection import Batch, CoreConnection, Json, Listed, StreamReader, is_conflict
from mono_sync.errors import (
    JetStreamAPIError,
    KeyNotFoundError,
    MessageTooLargeError,
    MonoError,
    NoRespondersError,
    OutcomeUnknownError,
    PartialWriteError,
)
from mono_sync.storage._bucket import check_subject_length, server_time
from mono_sync.storage._marks import is_value, operation_in
from mono_sync.storage._names import check_every_key, check_pattern, is_key
from mono_sync.storage._values import BucketStatus, Operation
from mono_sync.storage.kv._single import SingleKeys

HALF_AN_HOUR: Final = 30 * 60.0


class ManyKeys(SingleKeys):
    """The calls of a key-value bucket that concern many keys."""

    def __init__(self, connection: CoreConnection, name: str, info: Json, *, stale_reads: bool) -> None:
        super().__init__(connection, name, info, stale_reads=stale_reads)
        self._reader = StreamReader(connection, self._jetstream, self._stream)

    # --- reading

    def get_many(self, keys: Iterable[str], *, timeout: Timeout = DEFAULT) -> dict[str, bytes]:
        """Return the values of those keys that are there, in the order of ``keys``.

        Each value is one that its key had during the call; it is no snapshot of all at one moment.

        Args:
            keys: any number; one that is named twice is read once.
            timeout: total deadline.
        """
        subjects = self._subjects(list(check_keys(keys)))
        deadline = self._deadline(timeout)
        with self._errors(deadline, "reading keys"):
            found = self._reader.newest_of(subjects.values(), deadline, direct=self._direct)
        return {
            key: message.data
            for key, subject in subjects.items()
            if (message := found.get(subject)) is not None and is_value(message.header_block)
        }

    def _subjects(self, keys: Collection[str]) -> dict[str, str]:
        """Check the keys, and return the subject of each."""
        check_every_key(keys)
        longest = max(keys, key=len, default="")
        check_subject_length(self._prefix + longest, longest)
        return {key: self._prefix + key for key in keys}

    def keys(self, pattern: str = ">", *, timeout: Timeout = DEFAULT) -> list[str]:
        """Return the live keys that match a pattern, each once, in the order of their last writes.

        Keys that exist during the whole call are never left out, however much is written meanwhile.

        Args:
            pattern: tokens between dots; ``*`` stands for one token, ``>`` at the end for all that follow.
            timeout: total deadline.
        """
        check_pattern(pattern)
        start = len(self._prefix)
        return [
            found.subject[start:]
            for found in self._list(pattern, self._deadline(timeout), "listing keys")
            if is_value(found.header_block)
        ]

    def _list(self, pattern: str, deadline: Deadline, doing: str) -> list[Listed]:
        """Return the newest revision of every key; not what transactions keep under other names for a moment."""
        with self._errors(deadline, doing, "" if pattern == ">" else pattern):
            found = self._reader.list_newest(self._prefix + pattern, deadline, from_leader=self._replicated)
        start = len(self._prefix)
        return [listed for listed in found if is_key(listed.subject[start:])]

    def status(self, *, timeout: Timeout = DEFAULT) -> BucketStatus:
        """Return size and limits of the bucket, and the numbers of its live and its removed keys.

        Counting takes as long as `keys`.
        """
        deadline = self._deadline(timeout)
        status = super().status(timeout=deadline)
        counts = Counter(operation_in(found.header_block) for found in self._list(">", deadline, "status"))
        return replace(status, keys=counts.pop(Operation.PUT, 0), tombstones=counts.total())

    # --- writing

    def set_many(
        self, mapping: Mapping[str, Payload], *, ttl: Duration | None = None, timeout: Timeout = DEFAULT
    ) -> dict[str, int]:
        """Write many values, whatever was there before, and return the revision of each.

        Every write happens once, as by `set`, but they are no transaction: others may see some before the rest.

        Args:
            mapping: keys and values, which are written in this order.
            ttl: as for `set`, for all of them.
            timeout: total deadline of the whole call.

        Raises:
            PartialWriteError: some were written, or may have been, and others were not; it says which. When none was,
                nor may have been, the first one's error is raised itself: see `set`.
            ValueTooLargeError: a value is larger than the server takes; nothing was sent.
        """
        if not isinstance(mapping, Mapping):
            raise TypeError(f"set_many takes a mapping of keys to values, not {type(mapping).__name__}")
        headers = self._ttl_headers(ttl)
        values = {key: check_payload(value) for key, value in mapping.items()}
        return self._write_many(values, headers, self._deadline(timeout), "writing key")

    def delete_many(self, keys: Iterable[str], *, timeout: Timeout = DEFAULT) -> None:
        """Delete many keys; deleting a missing one is no error. Each as by `delete`, and errors as for `set_many`."""
        values = dict.fromkeys(check_keys(keys), b"")
        self._write_many(values, {"KV-Operation": "DEL"}, self._deadline(timeout), "deleting key")

    def _write_many(
        self, values: Mapping[str, bytes], headers: dict[str, str], deadline: Deadline, doing: str
    ) -> dict[str, int]:
        subjects = self._subjects(values)
        messages = [(subjects[key], data, self._describe(doing, key)) for key, data in values.items()]
        with self._errors(deadline, f"{doing}s"):
            limit = self._connection.server_info.max_payload
            overhead = len(self._writer.prepare("", b"", headers, deadline, "").block)
        for key, data in values.items():
            if overhead + len(data) > limit:
                self._explain(MessageTooLargeError(overhead + len(data), limit), deadline, doing, key, len(data))
        with self._errors(deadline, f"{doing}s"):
            batch = Batch(self._connection, self._writer, messages, headers, deadline)
            batch.run()
        written = {key: batch.stored[subject] for key, subject in subjects.items() if subject in batch.stored}
        if batch.failed:
            failed = {key: batch.failed[subject] for key, subject in subjects.items() if subject in batch.failed}
            self._report(written, failed, values, deadline, doing)
        return written

    def _report(
        self,
        written: dict[str, int],
        failed: Mapping[str, MonoError],
        values: Mapping[str, bytes],
        deadline: Deadline,
        doing: str,
    ) -> NoReturn:
        errors: dict[str, MonoError] = {}
        unanswered: MonoError | None = None  # to ask the server once why nobody took it is enough
        for key, error in failed.items():
            if isinstance(error, NoRespondersError) and unanswered is not None:
                errors[key] = unanswered
                continue
            try:
                self._explain(error, deadline, doing, key, len(values[key]))
            except MonoError as explained:
                errors[key] = explained
                if isinstance(error, NoRespondersError):
                    unanswered = explained
        first = next(iter(errors.values()))
        if not written and not any(isinstance(error, OutcomeUnknownError) for error in errors.values()):
            raise first
        raise PartialWriteError(self._name, written, errors) from first

    # --- clearing up

    def purge_deletes(self, older_than: Duration = HALF_AN_HOUR, *, timeout: Timeout = DEFAULT) -> int:
        """Remove the marks that deleted, purged and expired keys have left, and return how many.

        What is written to such a key at the same time stays. A watcher that was away for longer than ``older_than`` is
        not told of these deletions any more. Where the connection breaks meanwhile, the number may be too small.

        Args:
            older_than: leave the marks of this last time alone, in seconds or as ``timedelta``.
            timeout: total deadline.
        """
        age, deadline = to_seconds(older_than, "older_than"), self._deadline(timeout)
        with self._errors(deadline, "purging deletions"):
            now = server_time(self._jetstream.stream_info(self._stream, deadline)).timestamp()
            places = [
                (found.subject, found.sequence)
                for found in self._list(">", deadline, "purging deletions")
                if now - found.nanoseconds / 1e9 >= age and not is_value(found.header_block)
            ]
            return self._reader.purge_up_to(places, deadline)

    def reset(self, *, timeout: Timeout = DEFAULT) -> None:
        """Remove every key with its history, at once; what is written after the call began may stay.

        Nothing is left of them, so watchers are not told. Revisions go on counting.
        """
        self._remove_all(self._deadline(timeout))

    # --- as a dict

    def __getitem__(self, key: str) -> bytes:
        """Return the value of a key; raises `KeyNotFoundError`, a ``KeyError``, when it is not there."""
        return self.get_entry(key).value

    def __setitem__(self, key: str, value: Payload) -> None:
        """Write a value, as `set` does."""
        self.set(key, value)

    def __delitem__(self, key: str) -> None:
        """Delete a key; raises `KeyNotFoundError`, a ``KeyError``, when it is not there.

        Of several callers that delete the same value exactly one succeeds.
        """
        deadline = self._deadline(DEFAULT)
        while True:
            newest = self._newest(key, deadline, direct=False)  # other replicas than the leader may be behind
            if newest is None or newest.operation is not Operation.PUT:
                raise KeyNotFoundError(self._name, key)
            try:
                self._write(key, b"", {"KV-Operation": "DEL"}, deadline, expected=newest.revision)
            except JetStreamAPIError as error:
                if not is_conflict(error):
                    raise
            else:
                return

    def __contains__(self, key: str) -> bool:
        """Return whether a key is there; an illegal one raises `InvalidKeyError`."""
        entry = self._newest(key, self._deadline(DEFAULT))
        return entry is not None and entry.operation is Operation.PUT

    def __iter__(self) -> Iterator[str]:
        """Go through the keys that are there now, as `keys` lists them."""
        return iter(self.keys())

    def __len__(self) -> int:
        """Count the live keys, which takes as long as `keys`."""
        return len(self.keys())

    def __bool__(self) -> bool:
        """Every bucket is true, also an empty one: the question costs nothing."""
        return True


def check_keys(keys: Iterable[str]) -> Iterable[str]:
    """Return what can be a number of keys.

    Raises:
        TypeError: it is a single str.
    """
    if isinstance(keys, str):
        raise TypeError(f"keys must be several, not one str: write [{keys!r}]")
    return keys
