"""Watching the keys of a bucket."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Final, Generic, NoReturn, Self, TypeAlias

from mono_sync._durations import DEFAULT, Deadline, Timeout
from mono_sync.connection import Followed, Follower
from mono_sync.errors import ClosedError, MonoError, OperationTimeoutError, StorageError
from mono_sync.storage._marks import is_value, operation_of
from mono_sync.storage._names import is_key
from mono_sync.storage._values import Entry, Operation, V_co

Explain: TypeAlias = Callable[[MonoError, Deadline, str, str], NoReturn]
ReadEntry: TypeAlias = Callable[[Entry], Entry[V_co] | None]
"""What an entry of bytes means; None: nothing to whoever watches. Raises `StorageError` where it cannot be read."""

_FOR_EVER: Final = Deadline(None)


class Watcher(Generic[V_co]):
    """What happens to the keys or objects of a bucket: an iterator of `Entry`, and a context manager. Thread-safe.

    ``for entry in watcher`` waits for the next entry, for ever; `next` until a deadline. First come the entries that
    the bucket holds, the newest of each key, then every change. Get one from `KVBucket.watch`, `KVBucket.watch_all` or
    `ObjectBucket.watch`, whose entries hold an `ObjectInfo` instead of bytes.

    Entries come in the order of their revisions, each once, and nothing that the bucket still holds is skipped: across
    lost connections, restarts of the server, and however slowly they are read. What was overwritten or removed before
    it could be read is not held any more: after a long absence a key's newest revision comes, and of those before it as
    many as the ``history`` of the bucket keeps. An initial state that was broken off begins again with the newest
    entries of that later moment. A bucket that was deleted and made anew, or that lost data, counts its revisions from
    the beginning, and so does the watcher. What nats-server before 2.9.12 skips by mistake, when somebody removes a key
    with its history, comes at the latest with the next change.

    That of a `TypedBucket` reads values of its type, and None where there is none. A value that cannot be decoded
    raises `CodecError` in its turn, with key and revision, and counts as delivered: it is behind the `position`, and
    reading goes on after it. `snapshot` begins again, and leaves out what an earlier one has raised. So it is with the
    `StorageError` about something in an object bucket that does not describe an object.

    There is no thread behind it: nothing is fetched unless somebody reads, so one that is not read costs next to
    nothing, and a slow reader never has more than 4 MiB in memory, or one value that is larger. Any number of threads
    may read; each entry goes to one of them. After Ctrl-C in a read it goes on with the entry that was not delivered.

    One connection may have thousands. A server from 2.15 on grants 1,000 to a bucket that was never opened with a
    `KVBucketConfig`, unless its own configuration says otherwise; `JetStreamAPIError` then refuses the next one.

    These end the iteration:

    * `stop`, or the end of the ``with``: a ``for`` ends, `next` and `snapshot` raise `ClosedError`.
    * The connection is closed: `ConnectionClosedError`.
    * The bucket is deleted: `BucketNotFoundError`. Once it is there again, reading goes on with its beginning.
    * In a forked child: `ForkedError`.

    One that is dropped without `stop` gives a `ResourceWarning`; the server then forgets it within two minutes.
    """

    def __init__(
        self,
        bucket: str,
        prefix: str,
        pattern: str,
        follower: Follower,
        read: ReadEntry[V_co],
        *,
        default_timeout: float | None,
        explain: Explain,
        ignore_deletes: bool,
        whole_history: bool,
    ) -> None:
        self._bucket = bucket
        self._prefix = len(prefix)
        self._pattern = pattern
        self._follower = follower
        self._read = read
        self._default_timeout = default_timeout
        self._explain = explain
        self._ignore_deletes = ignore_deletes
        self._whole_history = whole_history
        self._told: set[tuple[int, int]] = set()  # revisions and times of what snapshots have raised

    # --- reading

    def next(self, *, timeout: Timeout = DEFAULT) -> Entry[V_co]:
        """Return the next entry.

        Args:
            timeout: how long to wait for it; 0 takes only one that has arrived, and asks the server for more.

        Raises:
            OperationTimeoutError: none came in time; the next call goes on.
            ClosedError: the watcher was stopped.
            ConnectionClosedError: the connection was closed.
            BucketNotFoundError: the bucket was deleted.
            CodecError: the codec of a typed bucket cannot decode it; the next call goes on after it.
            ForkedError: it belongs to the parent process.
        """
        return self._next(Deadline.of(timeout, self._default_timeout))

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Entry[V_co]:
        try:
            return self._next(_FOR_EVER)
        except ClosedError:
            if self._follower.stopped:
                raise StopIteration from None
            raise

    def snapshot(self, *, timeout: Timeout = DEFAULT) -> list[Entry[V_co]]:
        """Return the initial state, or what is left of it, in the order of the revisions; iteration goes on after it.

        Each key is there once, with its newest entry, unless that is a deletion. With ``include_history`` or
        ``resume_from`` every entry is there, deletions included. A key that lives during the whole call is never left
        out, however much is written meanwhile. Once `synced` there is nothing left.

        Raises:
            OperationTimeoutError: it was not complete in time. Nothing is lost: the next call begins where this one
                did. Otherwise as `next`.
            CodecError: a value cannot be decoded. The next call begins where this one did, without that entry.
        """
        deadline, follower = Deadline.of(timeout, self._default_timeout), self._follower
        self._check(deadline)
        entries: list[Entry[V_co]] = []
        mark = follower.mark()
        try:
            while not follower.synced:
                entries += follower.next_few(deadline, self._few)
        except BaseException as error:
            follower.rewind(mark)
            if isinstance(error, MonoError):
                self._fail(error, deadline)
            raise
        if self._whole_history:
            return list(filter(self._is_wanted, entries))
        newest = {entry.key: entry for entry in entries}
        if len(newest) < len(entries):
            entries = sorted(newest.values(), key=lambda entry: entry.revision)
        return [entry for entry in entries if entry.operation is Operation.PUT]

    # --- what is known of it

    @property
    def synced(self) -> bool:
        """Whether the initial state is complete: all has been delivered that the bucket held at one moment.

        It becomes so when somebody reads on after the last entry of it.
        """
        return self._follower.synced

    def wait_synced(self, *, timeout: Timeout = DEFAULT) -> None:
        """Wait until the initial state is complete, while another thread reads; to read it yourself use `snapshot`.

        Raises:
            OperationTimeoutError: it was not in time.
            ClosedError: the watcher was stopped.
            ConnectionClosedError: the connection was closed.
            ForkedError: it belongs to the parent process.
        """
        deadline = Deadline.of(timeout, self._default_timeout)
        try:
            self._follower.wait_synced(deadline)
        except OperationTimeoutError as error:
            what, hint = f"waiting for a reader of {self!r}", "it takes a thread that reads; or use snapshot()"
            raise OperationTimeoutError(what, deadline.timeout, hint, sent=False) from error
        except ClosedError as error:
            self._fail(error, deadline)

    @property
    def position(self) -> int:
        """Up to this revision everything has been delivered: with ``resume_from`` another watcher goes on after it.

        Store it when the entry before it is done with.
        """
        return self._follower.position

    # --- ending

    def stop(self) -> None:
        """End the iteration in every thread, and leave nothing on the server. Any thread; idempotent."""
        self._follower.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def __del__(self, warn: Any = warnings.warn) -> None:
        follower = getattr(self, "_follower", None)
        if follower is not None and not follower.ended:
            warn(f"unclosed {self!r}: call stop() or use it as a context manager", ResourceWarning)

    def __repr__(self) -> str:
        state = "stopped" if self._follower.stopped else f"at {self.position}"
        return f"<{type(self).__name__} of {self._pattern!r} in bucket {self._bucket!r}, {state}>"

    # ---

    def _next(self, deadline: Deadline) -> Entry[V_co]:
        follower = self._follower
        try:
            while True:
                entry = follower.next(deadline, self._entry)
                if entry is not None and self._is_wanted(entry):
                    return entry
        except MonoError as error:
            self._fail(error, deadline)

    def _check(self, deadline: Deadline) -> None:
        try:
            self._follower.check()
        except MonoError as error:
            self._fail(error, deadline)

    def _fail(self, error: MonoError, deadline: Deadline) -> NoReturn:
        """Raise an error in the words of the bucket."""
        if type(error) is ClosedError and self._follower.stopped:
            raise ClosedError(f"the watcher of {self._pattern!r} in bucket {self._bucket!r} was stopped") from error
        self._explain(error, deadline, "watching", self._pattern)

    def _is_wanted(self, entry: Entry[Any]) -> bool:
        return not (self._ignore_deletes and entry.removed)

    def _few(self, few: list[Followed]) -> list[Entry[V_co]]:
        """Read messages for a snapshot; what one has raised is left out by the next, else none would ever succeed."""
        entries: list[Entry[V_co]] = []
        for found in few:
            try:
                entry = self._entry(found)
            except StorageError:
                if found[1:] not in self._told:
                    self._told.add(found[1:])
                    raise
                continue
            if entry is not None:
                entries.append(entry)
        return entries

    def _entry(self, found: Followed | None) -> Entry[V_co] | None:
        """Read a message; None where there is none, or it means nothing."""
        if found is None:
            return None
        message, sequence, nanoseconds = found
        key = message.subject[self._prefix :]
        if not is_key(key):
            return None
        created = datetime.fromtimestamp(nanoseconds // 1000 / 1e6, UTC)
        if is_value(message.header_block):
            return self._read(Entry(self._bucket, key, message.data, sequence, created))
        headers = message.headers
        operation = operation_of(headers)
        expired = headers.get("Nats-Marker-Reason") == "MaxAge"
        return self._read(Entry(self._bucket, key, message.data, sequence, created, operation, expired))
