"""Several keys, read and written as one."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from enum import Enum, auto
from types import TracebackType
from typing import Final, Generic, NamedTuple, NoReturn, Self, TypeAlias, overload

from typing_extensions import TypeVar

from mono_sync._durations import DEFAULT, Deadline, Duration, Timeout
from mono_sync.adapter import Payload, check_payload
from mono_sync.connection import (
    AtomicBatches,
    BatchRefusedError,
    Conditional,
    CoreConnection,
    Json,
    is_conflict,
)
from mono_sync.errors import (
    ClosedError,
    ForkedError,
    JetStreamAPIError,
    KeyNotFoundError,
    MonoError,
    RevisionMismatchError,
)
from mono_sync.storage._codec import View, as_it_is
from mono_sync.storage._errors import no_transactions
from mono_sync.storage._values import Entry, Operation, V_co
from mono_sync.storage.kv._many import ManyKeys, check_keys
from mono_sync.storage.kv._single import DELETION, PURGE

T = TypeVar("T")
W_contra = TypeVar("W_contra", default=Payload, contravariant=True)

_ATOMIC_SINCE: Final = "2.12.0"
_CARRIER: Final = "$tx"
"""Where messages go that only assert a revision: the $ keeps it apart from every key."""
_GONE_AT_ONCE: Final = {
    "KV-Operation": "PURGE",
    "Nats-TTL": "1",
}  # for a purge that expires the server leaves no marker

Revisions: TypeAlias = Mapping[str, int]


class Write(NamedTuple):
    """What a transaction is to do to a key."""

    value: bytes
    headers: dict[str, str]
    operation: Operation


Writes: TypeAlias = Mapping[str, Write]


class _State(Enum):
    NEW = auto()
    OPEN = auto()
    ENDED = auto()


class Transaction(Generic[V_co, W_contra]):
    """Reads and writes of several keys that happen as one; made by `KVBucket.transaction`. One thread at a time.

    Inside its ``with`` nothing is sent but reads. At a clean end of it all writes are stored at once, if every key that
    was read or written is still as it was when the transaction first touched it; `RevisionMismatchError` says which one
    is not, and then nothing has been written. An exception in the ``with``, and `rollback`, discard everything. A
    transaction that only reads is checked in the same way: at its end all that it has read was true at one moment.

    A key is touched by the first call that names it. That reads it, also when it is to be written: from then on others'
    changes count. Later reads of the key return the same again, or what the transaction itself has written. What is
    read is kept in memory until the end. Up to 1,000 keys can be touched, the server's limit.

    It reads and takes bytes; one of a `TypedBucket` of T, a ``Transaction[T, T]``, reads and takes values of type T.

    Calls raise `ClosedError` before and after the ``with``, and what calls of the bucket raise.
    """

    def __init__(
        self,
        name: str,
        *,
        read: Callable[[Sequence[str], Timeout], list[Entry | None]],
        view: View[V_co],
        encode: Callable[[str, W_contra], bytes],
        ttl_headers: Callable[[Duration | None], dict[str, str]],
        commit: Callable[[Revisions, Writes, Timeout], dict[str, int]],
        timeout: Timeout,
    ) -> None:
        self._name = name
        self._read = read
        self._view = view
        self._encode = encode
        self._ttl_headers = ttl_headers
        self._commit = commit
        self._timeout = timeout
        self._touched: dict[str, Entry | None] = {}
        self._writes: dict[str, Write] = {}
        self._revisions: dict[str, int] = {}
        self._state = _State.NEW
        self._pid = os.getpid()

    # --- reading

    @overload
    def get(self, key: str, default: None = None, *, timeout: Timeout = DEFAULT) -> V_co | None: ...
    @overload
    def get(self, key: str, default: T, *, timeout: Timeout = DEFAULT) -> V_co | T: ...

    def get(self, key: str, default: object = None, *, timeout: Timeout = DEFAULT) -> object:
        """Return the value of a key, or ``default`` when it is missing, deleted, purged or expired."""
        return self.get_many([key], timeout=timeout).get(key, default)

    def get_entry(self, key: str, *, timeout: Timeout = DEFAULT) -> Entry[V_co]:
        """Return value, revision and time of a key. What the transaction itself has written has revision 0 yet.

        Raises:
            KeyNotFoundError: the key is missing, deleted, purged or expired.
        """
        self._touch([key], timeout)
        entry = self._now(key)
        if entry is None:
            raise KeyNotFoundError(self._name, key)
        return self._view(entry)

    def get_many(self, keys: Iterable[str], *, timeout: Timeout = DEFAULT) -> dict[str, V_co]:
        """Return the values of those keys that are there. Reading together what is needed saves waiting.

        Raises:
            ValueError: the transaction would touch too many keys.
        """
        wanted = list(dict.fromkeys(check_keys(keys)))
        self._touch(wanted, timeout)
        return {key: self._view(entry).value for key in wanted if (entry := self._now(key)) is not None}

    # --- writing

    def set(self, key: str, value: W_contra, *, ttl: Duration | None = None, timeout: Timeout = DEFAULT) -> None:
        """Write a value at the end. Arguments are those of `KVBucket.set`; ``timeout`` is for reading the key."""
        headers = self._ttl_headers(ttl)
        self._write(key, Write(self._encode(key, value), headers, Operation.PUT), timeout)

    def delete(self, key: str, *, timeout: Timeout = DEFAULT) -> None:
        """Delete a key at the end; deleting a missing one is no error."""
        self._write(key, Write(b"", DELETION, Operation.DELETE), timeout)

    def purge(self, key: str, *, timeout: Timeout = DEFAULT) -> None:
        """Delete a key with all its history at the end; purging a missing one is no error."""
        self._write(key, Write(b"", PURGE, Operation.PURGE), timeout)

    def rollback(self) -> None:
        """Discard all writes and end the transaction; the ``with`` then ends without doing anything. Idempotent."""
        self._check_process()
        self._state = _State.ENDED

    @property
    def revisions(self) -> dict[str, int]:
        """The new revision of each key that was written; empty until the ``with`` has ended without an error."""
        return dict(self._revisions)

    def _write(self, key: str, write: Write, timeout: Timeout) -> None:
        self._touch([key], timeout)
        self._writes[key] = write

    def _touch(self, keys: Sequence[str], timeout: Timeout) -> None:
        self._check_process()
        if self._state is not _State.OPEN:
            raise ClosedError(f"{self!r} is used outside its `with`, or was rolled back")
        missing = [key for key in keys if key not in self._touched]
        if len(self._touched) + len(missing) > AtomicBatches.LARGEST:
            raise ValueError(f"a transaction can touch {AtomicBatches.LARGEST} keys, the server's limit")
        if missing:
            self._touched.update(zip(missing, self._read(missing, timeout), strict=True))

    def _now(self, key: str) -> Entry | None:
        write, entry = self._writes.get(key), self._touched[key]
        if write is not None:
            entry = Entry(self._name, key, write.value, 0, datetime.now(UTC), write.operation)
        return None if entry is None or entry.operation is not Operation.PUT else entry

    # --- begin and end

    def __enter__(self) -> Self:
        self._check_process()
        if self._state is not _State.NEW:
            raise ClosedError(f"{self!r} has been used; a transaction is for one `with`")
        self._state = _State.OPEN
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._check_process()
        is_open, self._state = self._state is _State.OPEN, _State.ENDED
        if is_open and error is None:
            touched = {key: 0 if entry is None else entry.revision for key, entry in self._touched.items()}
            self._revisions = self._commit(touched, self._writes, self._timeout)

    def _check_process(self) -> None:
        if os.getpid() != self._pid:
            raise ForkedError("the transaction belongs to the parent process; begin one of your own")

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of bucket {self._name!r}>"


class Transactions(ManyKeys):
    """The part of a key-value bucket that reads and writes several keys as one."""

    def __init__(self, connection: CoreConnection, name: str, info: Json, *, stale_reads: bool) -> None:
        super().__init__(connection, name, info, stale_reads=stale_reads)
        self._batches = AtomicBatches(connection, self._jetstream, self._stream, info)

    def transaction(self, *, timeout: Timeout = DEFAULT) -> Transaction:
        """Return a context manager whose reads and writes of several keys happen as one; see `Transaction`.

        ::

            with bucket.transaction() as tx:
                balance = int(tx.get("alice"))
                tx.set("alice", str(balance - 10).encode())
                tx.set("bob", str(int(tx.get("bob")) + 10).encode())

        Args:
            timeout: total deadline of what is done at the end of the ``with``, from there on. Reads have their own.

        Raises:
            UnsupportedByServerError: the server is older than 2.12.
            BucketConfigError: another client made the bucket, without transactions; opening it with a
                `KVBucketConfig` switches them on.

        The end of the ``with`` raises:

        * `RevisionMismatchError`: a key that was touched has changed since; nothing was written.
        * `OutcomeUnknownError`: whether it was written could not be found out.
        * what writes of the bucket raise; nothing was written.
        """
        return self._transaction(as_it_is, lambda _, value: check_payload(value), timeout)

    def _transaction(
        self, view: View[V_co], encode: Callable[[str, W_contra], bytes], timeout: Timeout
    ) -> Transaction[V_co, W_contra]:
        self._deadline(timeout)  # raises what is wrong with it now, not at the end
        self._connection.server_info.require("a transaction", _ATOMIC_SINCE)
        if not self._batches.allowed:
            raise no_transactions(self._name)
        return Transaction(
            self._name,
            read=self._read_newest,
            view=view,
            encode=encode,
            ttl_headers=self._ttl_headers,
            commit=self._commit,
            timeout=timeout,
        )

    def _read_newest(self, keys: Sequence[str], timeout: Timeout) -> list[Entry | None]:
        """Return what the bucket holds of keys, marks of deletion included."""
        deadline, subjects = self._deadline(timeout), [self._subject(key) for key in keys]
        with self._errors(deadline, *(("reading key", keys[0]) if len(keys) == 1 else ("reading keys",))):
            found = self._reader.stored_newest_of(subjects, deadline, direct=self._direct_is_newest)
        return [self._entry(found[subject]) if subject in found else None for subject in subjects]

    def _commit(self, touched: Revisions, writes: Writes, timeout: Timeout) -> dict[str, int]:
        deadline = self._deadline(timeout)
        if not writes:
            self._verify(touched, deadline)
            return {}
        only_read = [key for key in touched if key not in writes]
        messages = [
            Conditional(self._subject(key), write.value, write.headers, touched[key]) for key, write in writes.items()
        ]
        messages += [
            Conditional(self._prefix + _CARRIER, b"", _GONE_AT_ONCE, touched[key], of=self._subject(key))
            for key in only_read
        ]
        operation = self._describe("committing a transaction")
        try:
            first = self._batches.store_all(messages, deadline, operation)
        except BatchRefusedError as refused:
            key = [*writes, *only_read][refused.index]
            self._refuse(refused, key, touched[key], writes.get(key), deadline)
        except MonoError as error:
            self._explain(error, deadline, "committing a transaction")
        return {key: first + place for place, key in enumerate(writes)}

    def _refuse(
        self, refused: BatchRefusedError, key: str, expected: int, write: Write | None, deadline: Deadline
    ) -> NoReturn:
        reason = refused.reason
        if isinstance(reason, JetStreamAPIError) and is_conflict(reason):
            raise RevisionMismatchError(self._name, key, expected, refused.actual) from reason
        self._explain(reason, deadline, "writing key", key, 0 if write is None else len(write.value))

    def _verify(self, touched: Revisions, deadline: Deadline) -> None:
        """Read once more what was only read: revisions never come back, so all were true when the second look began."""
        if not touched:
            return
        for key, entry in zip(touched, self._read_newest(list(touched), deadline), strict=True):
            actual = 0 if entry is None else entry.revision
            if actual != touched[key]:
                raise RevisionMismatchError(self._name, key, touched[key], actual)
