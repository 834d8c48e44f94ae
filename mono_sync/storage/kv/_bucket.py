"""The key-value bucket."""

from __future__ import annotations

from typing import TypeVar

from mono_sync._durations import DEFAULT, Duration, Timeout
from mono_sync.connection import Follower
from mono_sync.recipes import Lock
from mono_sync.storage._codec import Codec
from mono_sync.storage._names import check_key, check_pattern
from mono_sync.storage._watcher import Watcher
from mono_sync.storage.kv._modify import Modifications
from mono_sync.storage.kv._single import check_revision
from mono_sync.storage.kv._typed import TypedBucket

T = TypeVar("T")


class KVBucket(Modifications):
    """A key-value bucket (NATS ADR-8). Thread-safe; other NATS clients read what it writes and the reverse.

    Keys are letters, digits and ``- / _ = .``; values are bytes. Every call takes ``timeout``, a total deadline in
    seconds; omitted, it is the connection's.

    Every write happens once: it carries an id (`Nats-Msg-Id`), and when its answer is lost, because the connection
    breaks or the server restarts, it is looked for and sent again until the deadline. Reads are repeated as well. While
    there is no connection, calls wait within their deadlines. A client reads its own writes, from the bucket's leader
    where it is replicated, unless the bucket was opened with ``stale_reads``.

    Calls may raise, besides what they list:

    * `OperationTimeoutError`: the deadline passed. A write has not happened and never will, unless the error is the
      kind `OutcomeUnknownError`.
    * `OutcomeUnknownError`: the answer to a write was lost, and whether it happened could not be found out.
    * `ConnectionClosedError`: the connection is closed; a write under way may have happened.
    * `BucketNotFoundError`: the bucket was deleted meanwhile.
    * `InvalidKeyError`, `TypeError`: bad key or value; nothing was sent.
    * `JetStreamUnavailableError`: the server has no JetStream, or no leader for the bucket until the deadline.

    Get one from a plugin, or from ``connection.kv(name)``.
    """

    def watch(
        self,
        pattern: str,
        *,
        include_history: bool = False,
        updates_only: bool = False,
        ignore_deletes: bool = False,
        meta_only: bool = False,
        resume_from: int | None = None,
        timeout: Timeout = DEFAULT,
    ) -> Watcher:
        """Return a watcher of the keys that match a pattern: first what the bucket holds, then every change.

        Args:
            pattern: a key, or tokens between dots; ``*`` stands for one token, ``>`` at the end for all that follow.
            include_history: begin with every revision that the bucket holds, not only the newest of each key.
            updates_only: begin with what is written after this call has begun.
            ignore_deletes: leave out deletions.
            meta_only: leave the values away; they are empty then.
            resume_from: begin after this revision, the `Watcher.position` of an earlier watcher; 0: with all that the
                bucket holds. If the bucket has not come that far, it has been made anew, and is begun with from its
                first revision on.
            timeout: total deadline of this call.

        Raises:
            BucketNotFoundError: the bucket was deleted.
            ValueError: more than one of ``include_history``, ``updates_only`` and ``resume_from``; a negative revision.
        """
        if include_history + updates_only + (resume_from is not None) > 1:
            raise ValueError("include_history, updates_only and resume_from exclude each other")
        if resume_from:
            check_revision(resume_from)
        subject, deadline = self._prefix + check_pattern(pattern), self._deadline(timeout)
        follower = Follower(
            self._connection,
            self._stream,
            subject,
            start="all" if include_history else "new" if updates_only else "last_per_subject",
            after=resume_from,
            headers_only=meta_only,
        )
        try:
            with self._errors(deadline, "watching", pattern):
                follower.open(deadline)
        except BaseException:
            follower.stop()
            raise
        return Watcher(
            self._name,
            self._prefix,
            pattern,
            follower,
            default_timeout=self._connection.config.call_timeout,
            explain=self._explain,
            ignore_deletes=ignore_deletes,
            whole_history=include_history or resume_from is not None,
        )

    def watch_all(
        self,
        *,
        include_history: bool = False,
        updates_only: bool = False,
        ignore_deletes: bool = False,
        meta_only: bool = False,
        resume_from: int | None = None,
        timeout: Timeout = DEFAULT,
    ) -> Watcher:
        """Return a watcher of all keys. Arguments and errors are those of `watch`."""
        return self.watch(
            ">",
            include_history=include_history,
            updates_only=updates_only,
            ignore_deletes=ignore_deletes,
            meta_only=meta_only,
            resume_from=resume_from,
            timeout=timeout,
        )

    def lock(self, name: str, *, ttl: Duration = 10, timeout: Timeout = DEFAULT) -> Lock:
        """Return a lock on a name, which all who use the bucket share; nothing is sent yet. Needs nats-server 2.11.

        Args:
            name: the key that stands for the lock; it must be no other one of yours.
            ttl: the lock is free again this long after its holder was last heard of; seconds or ``timedelta``, at least
                1 s.
            timeout: how long ``with`` waits for the lock.

        Raises:
            InvalidKeyError: the name is no legal key.
            ValueError: a ttl of less than a second, or none.
        """
        return Lock(
            self,
            check_key(name),
            lambda revision, deadline: self.watch(name, resume_from=revision, timeout=deadline),
            ttl=ttl,
            wait=timeout,
            call_timeout=self._connection.config.call_timeout,
        )

    def typed(self, codec: Codec[T]) -> TypedBucket[T]:
        """Return this bucket seen through a codec, such as `JSONCodec`: values of its type instead of bytes."""
        return TypedBucket(self, codec)
