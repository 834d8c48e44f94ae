"""Read, change and write back, again until nobody came in between."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import Final

from mono_sync._durations import DEFAULT, Deadline, Duration, Timeout
from mono_sync.adapter import Payload, check_payload
from mono_sync.connection import actual_revision, is_conflict
from mono_sync.errors import JetStreamAPIError, RevisionMismatchError
from mono_sync.recipes import RetryPolicy
from mono_sync.storage._values import Entry, Operation
from mono_sync.storage.kv._many import check_keys
from mono_sync.storage.kv._single import DELETION
from mono_sync.storage.kv._transaction import Transactions

DEFAULT_POLICY: Final = RetryPolicy()


class Modifications(Transactions):
    """The part of a key-value bucket that changes values by functions of them."""

    def modify(
        self,
        key: str,
        fn: Callable[[bytes | None], Payload | None],
        *,
        ttl: Duration | None = None,
        retry: RetryPolicy = DEFAULT_POLICY,
        timeout: Timeout = DEFAULT,
    ) -> Entry:
        """Replace the value of a key by a function of it, and return what was written.

        Whatever others write at the same time, no change is lost: the key is read again, and the function called again,
        until nobody has changed it in between. So the function may be called many times; the last call counts. It must
        not have effects of its own.

        Args:
            key: the key.
            fn: gets the value, or None when the key is missing, deleted, purged or expired; returns the new one,
                or None to delete the key. An exception in it passes through, and nothing is written.
            ttl: as for `set`.
            retry: how often to try, and for how long at most.
            timeout: total deadline of all attempts; omitted, the connection's, as for every call.

        Returns:
            The new revision, with this machine's time as ``created``; its ``operation`` tells of a deletion.

        Raises:
            ConflictRetriesExhaustedError: others were always faster, until the policy gave up.
            OperationTimeoutError: or until the deadline.

        Besides, what `set` raises.
        """
        headers, deadline = self._ttl_headers(ttl), self._deadline(timeout)
        self._subject(key)  # raises what is wrong with the key, before the first attempt

        def attempt() -> Entry:
            newest = self._newest(key, deadline, direct=self._direct_is_newest)
            value = fn(None if newest is None or newest.operation is not Operation.PUT else newest.value)
            expected = 0 if newest is None else newest.revision
            return self._replace(key, value, headers, deadline, expected)

        return retry.within(deadline, self._describe("modifying key", key)).call(attempt)

    def _replace(
        self, key: str, value: Payload | None, headers: dict[str, str], deadline: Deadline, expected: int
    ) -> Entry:
        operation = Operation.DELETE if value is None else Operation.PUT
        data = b"" if value is None else check_payload(value)
        try:
            revision = self._write(key, data, DELETION if value is None else headers, deadline, expected=expected)
        except JetStreamAPIError as error:
            if is_conflict(error):
                raise RevisionMismatchError(self._name, key, expected, actual_revision(error)) from error
            raise
        return Entry(self._name, key, data, revision, datetime.now(UTC), operation)

    def modify_many(
        self,
        keys: Iterable[str],
        fn: Callable[[dict[str, bytes | None]], Mapping[str, Payload | None]],
        *,
        ttl: Duration | None = None,
        retry: RetryPolicy = DEFAULT_POLICY,
        timeout: Timeout = DEFAULT,
    ) -> dict[str, int]:
        """Replace the values of several keys by a function of all of them, in one `transaction`.

        As `modify`, for up to 1,000 keys: all that the function returns is written at once, while none of the keys has
        changed, those left out included.

        Args:
            keys: the keys to read.
            fn: gets their values, None for those that are missing; returns the new values of those that are to be
                written, None to delete a key. It may be called many times.
            ttl: as for `set`, for all that is written.
            retry: how often to try, and for how long at most.
            timeout: total deadline of all attempts; omitted, the connection's, as for every call.

        Returns:
            The new revision of each key that was written.

        Raises:
            ConflictRetriesExhaustedError: others were always faster, until the policy gave up.
            OperationTimeoutError: or until the deadline.
            UnsupportedByServerError: the server is older than 2.12.
            BucketConfigError: another client made the bucket, without transactions.
            ValueError: too many keys, or the function returned one that was not asked for.
            TypeError: it returned no mapping.

        Besides, what a transaction raises.
        """
        wanted, deadline = list(dict.fromkeys(check_keys(keys))), self._deadline(timeout)

        def attempt() -> dict[str, int]:
            with self.transaction(timeout=deadline) as tx:
                found = tx.get_many(wanted, timeout=deadline)
                changes = fn({key: found.get(key) for key in wanted})
                if not isinstance(changes, Mapping):
                    kind = type(changes).__name__
                    raise TypeError(f"the function must return a mapping of keys to values, not {kind}")
                if unknown := changes.keys() - set(wanted):
                    raise ValueError(f"the function returned keys that were not asked for: {sorted(unknown)}")
                for key, value in changes.items():
                    if value is None:
                        tx.delete(key)
                    else:
                        tx.set(key, value, ttl=ttl)
            return tx.revisions

        return retry.within(deadline, self._describe("modifying keys")).call(attempt)
