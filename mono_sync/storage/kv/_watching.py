"""Watching keys, and waiting for them."""

from __future__ import annotations

from dataclasses import dataclass

from mono_sync._durations import DEFAULT, Duration, Timeout
from mono_sync.recipes import Lock
from mono_sync.storage._bucket import check_revision
from mono_sync.storage._codec import View, as_it_is
from mono_sync.storage._names import check_key, check_pattern
from mono_sync.storage._values import V_co
from mono_sync.storage._watcher import Watcher
from mono_sync.storage.kv._modify import Modifications


@dataclass(slots=True, eq=False, repr=False)
class WatchOptions:
    """What a watcher begins with and leaves out; see `Watches.watch`.

    Raises:
        ValueError: they contradict each other, or the revision can be none.
    """

    include_history: bool
    updates_only: bool
    ignore_deletes: bool
    meta_only: bool
    resume_from: int | None

    def __post_init__(self) -> None:
        if self.include_history + self.updates_only + (self.resume_from is not None) > 1:
            raise ValueError("include_history, updates_only and resume_from exclude each other")
        if self.resume_from:
            check_revision(self.resume_from)


class Watches(Modifications):
    """The part of a key-value bucket that tells of changes."""

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
        options = WatchOptions(include_history, updates_only, ignore_deletes, meta_only, resume_from)
        return self._watch(pattern, as_it_is, options, timeout)

    def _watch(self, pattern: str, view: View[V_co], options: WatchOptions, timeout: Timeout) -> Watcher[V_co]:
        follower = self._follow(
            self._prefix + check_pattern(pattern),
            pattern,
            self._deadline(timeout),
            start="all" if options.include_history else "new" if options.updates_only else "last_per_subject",
            after=options.resume_from,
            headers_only=options.meta_only,
        )
        return Watcher(
            self._name,
            self._prefix,
            pattern,
            follower,
            view,
            default_timeout=self._connection.config.call_timeout,
            explain=self._explain,
            ignore_deletes=options.ignore_deletes,
            whole_history=options.include_history or options.resume_from is not None,
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
