"""A lock that threads and processes share.

Error handling: whoever holds a lock may lose it, when the server cannot be reached for longer than the lock's time to
live. `Lock.lost` is set at that moment at the latest, before anybody else can get the lock, as far as clocks run evenly
and the process is not suspended. Only the resource itself can be entirely sure: hand it `Lock.token` with every change
and let it refuse a token smaller than the largest that it has seen.
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
import threading
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import Any, Final, Protocol, Self

from mono_sync._durations import DEFAULT, Deadline, Duration, Timeout, to_ttl
from mono_sync._threads import start_thread
from mono_sync.errors import (
    BucketNotFoundError,
    ClosedError,
    ConflictError,
    ForkedError,
    JetStreamUnavailableError,
    KeyExistsError,
    KeyNotFoundError,
    LockLostError,
    LockNotAcquiredError,
    MonoError,
    OperationTimeoutError,
    OutcomeUnknownError,
    RevisionMismatchError,
)

_log = logging.getLogger("mono_sync.lock")

_RENEWALS: Final = 3
"""How often a lock is renewed within its time to live."""
_SAFE: Final = 0.95
"""How much of its time to live is relied on: who loses it has to know first, also where threads wake up late."""
_RELEASE_PATIENCE: Final = 1.0
_WITHDRAWALS: Final = (0.0, 0.1, 1.0)
"""How long to wait before each look for what an attempt without an answer may have left."""


class Change(Protocol):
    """What a watcher tells of a key."""

    @property
    def removed(self) -> bool:
        """Whether the key is gone."""


class Changes(Protocol):
    """A watcher of one key."""

    def next(self, *, timeout: Timeout = DEFAULT) -> Change:
        """Return the next change."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...


class Stored(Protocol):
    """What a bucket holds of a key."""

    @property
    def value(self) -> bytes:
        """The value."""

    @property
    def revision(self) -> int:
        """Number of the revision."""


class LockStore(Protocol):
    """What a lock needs of a bucket."""

    @property
    def name(self) -> str:
        """Name of the bucket."""

    def get_entry(self, key: str, *, timeout: Timeout = DEFAULT) -> Stored:
        """Return what a key holds."""

    def create(self, key: str, value: bytes, *, ttl: Duration | None = None, timeout: Timeout = DEFAULT) -> int:
        """Write a key if it is missing."""

    def update(
        self, key: str, value: bytes, revision: int, *, ttl: Duration | None = None, timeout: Timeout = DEFAULT
    ) -> int:
        """Write a key if it is still at a revision."""

    def delete(self, key: str, *, revision: int | None = None, timeout: Timeout = DEFAULT) -> None:
        """Delete a key if it is still at a revision."""


class Lock:
    """A lock on a name, shared by all who use the bucket; a context manager. Thread-safe; not reentrant.

    It is a key of the bucket that expires ``ttl`` after the holder was last heard of. While it is held, a thread renews
    it; when the holder dies, it is free again within ``ttl``. A cluster whose leader has died takes up to 10 s to elect
    another: only a lock with a ``ttl`` of 20 s or more is sure to outlive that. Who waits is told by the server when it
    becomes free, and then all who wait try at once, so each gets it sooner or later, in no order.

    ``with`` runs its body only with the lock, and raises `LockLostError` at the end when it was lost meanwhile; look at
    ``lost`` before steps that must not happen without it. Any thread may release what another has acquired. Threads may
    share one object: until what one has acquired through it is released, also when it was lost, the others wait. After
    a fork the child does not hold it.

    Get one from ``bucket.lock(name)``.

    Attributes:
        lost: an event that is set when the lock that was held is no longer certain to be held: it could not be renewed
            in time, or somebody removed it. Each `acquire` clears it.
    """

    def __init__(
        self,
        store: LockStore,
        name: str,
        watch: Callable[[int, Deadline], Changes],
        *,
        ttl: Duration,
        wait: Timeout,
        call_timeout: float,
    ) -> None:
        seconds = to_ttl(ttl)
        if seconds is None:
            raise ValueError("a lock needs a ttl: without one it would stay when its holder dies")
        self._store = store
        self._name = name
        self._watch = watch
        self._ttl = seconds
        self._wait = wait
        self._call_timeout = call_timeout
        self._holding: _Holding | None = None
        self._pid = os.getpid()
        self._turn = threading.Lock()  # held from the beginning of `acquire` to `release`
        self.lost: threading.Event = threading.Event()

    @property
    def name(self) -> str:
        """The key that stands for it."""
        return self._name

    @property
    def held(self) -> bool:
        """Whether this object holds the lock, as far as is known."""
        holding = self._holding
        return holding is not None and holding.is_certain

    @property
    def token(self) -> int:
        """The fencing token: a number that is larger than that of every earlier holder.

        Raises:
            LockLostError: the lock is not held, or was lost.
        """
        holding = self._holding
        if holding is None or not holding.is_certain:
            raise LockLostError(self._store.name, self._name)
        return holding.token

    def acquire(self, *, timeout: Timeout = DEFAULT) -> int:
        """Wait until the lock is free, take it, and return its token.

        Args:
            timeout: total deadline; 0 tries once, within the connection's default timeout. Omitted: the one that the
                lock was made with.

        Raises:
            LockNotAcquiredError: somebody else held it until the deadline, or this object itself; or the server did not
                answer until then.
            UnsupportedByServerError: the server knows no TTL per key (before 2.11).
        """
        deadline = Deadline.of(self._wait if timeout is DEFAULT else timeout, self._call_timeout)
        self._take_turn(deadline)
        try:
            return self._acquire(deadline)
        except BaseException:
            holding, self._holding = self._holding, None
            if holding is not None:
                holding.abandon()
                if not self.lost.is_set():  # no older one, but what has just been acquired
                    _remove(self._store, self._name, holding.token)
            self._turn.release()
            raise

    def _take_turn(self, deadline: Deadline) -> None:
        """Wait until no other thread holds or acquires the lock through this object."""
        if self._pid != os.getpid():  # what the parent has is its own
            self._pid, self._turn, self._holding = os.getpid(), threading.Lock(), None
        holding, remaining = self._holding, deadline.remaining
        if holding is not None and holding.thread == threading.get_ident() and self.lost.is_set():
            return  # it still is this thread's turn
        if not self._turn.acquire(timeout=-1 if remaining is None else remaining):
            raise LockNotAcquiredError(self._store.name, self._name, deadline.timeout)

    def _acquire(self, deadline: Deadline) -> int:
        owner = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(8)}".encode()
        once = Deadline(self._call_timeout) if deadline.timeout == 0 else deadline
        while True:
            begun = time.monotonic()
            try:
                token = self._store.create(self._name, owner, ttl=self._ttl, timeout=once)
            except KeyExistsError as error:
                if deadline.expired:
                    raise LockNotAcquiredError(self._store.name, self._name, deadline.timeout) from None
                self._wait_for_change(error.actual or 0, deadline)
            except (OperationTimeoutError, JetStreamUnavailableError) as error:
                self._meet(error, owner, deadline)
            else:
                if time.monotonic() - begun < self._ttl / _RENEWALS:
                    return self._begin_to_hold(owner, token, begun)
                _remove(self._store, self._name, token)  # the answer came too late to be certain for long
                if deadline.expired:
                    raise LockNotAcquiredError(self._store.name, self._name, deadline.timeout)

    def _meet(self, error: OperationTimeoutError | JetStreamUnavailableError, owner: bytes, deadline: Deadline) -> None:
        """Raise what ended an attempt, unless there is time for another one and what became of it is not known."""
        if isinstance(error, JetStreamUnavailableError) and not error.temporary:
            raise error
        if isinstance(error, OutcomeUnknownError):
            if error.timeout is None and not deadline.expired:
                _take_back(self._store, self._name, owner)
                return
            with suppress(RuntimeError):  # no more threads: then it expires
                self._start(partial(_withdraw, self._store, self._name, owner))
        raise LockNotAcquiredError(self._store.name, self._name, deadline.timeout) from error

    def _wait_for_change(self, revision: int, deadline: Deadline) -> None:
        """Wait until the key is removed, or until its holder should have been heard of again."""
        patience = deadline.at_most(self._ttl + 1.0)  # not every bucket tells that a key has expired
        try:
            with self._watch(revision, patience) as changes:
                while not changes.next(timeout=patience).removed:
                    patience = deadline.at_most(self._ttl + 1.0)
        except OperationTimeoutError:
            if deadline.expired:
                raise LockNotAcquiredError(self._store.name, self._name, deadline.timeout) from None

    def _begin_to_hold(self, owner: bytes, token: int, begun: float) -> int:
        self.lost.clear()
        holding = _Holding(self._store, self._name, owner, token, ttl=self._ttl, begun=begun, lost=self.lost)
        self._holding = holding
        self._start(holding.renew)
        return token

    def _start(self, target: Callable[[], object]) -> None:
        start_thread(threading.Thread(target=target, name=f"mono_sync-lock-{self._name}", daemon=True))

    def release(self, *, timeout: Timeout = DEFAULT) -> None:
        """Let others have the lock. Any thread may do that.

        Raises:
            LockLostError: it was not held any more, or not at all.
            ForkedError: it was acquired by the parent process, which still holds it.
        """
        deadline = Deadline.of(timeout, self._call_timeout)
        holding, self._holding = self._holding, None
        if holding is None:
            raise LockLostError(self._store.name, self._name)
        if holding.pid != os.getpid():
            raise ForkedError(f"lock {self._name!r} belongs to process {holding.pid}, not to its child")
        try:
            holding.release(deadline)
        finally:
            self._turn.release()

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self.release()
        except MonoError as failed:
            if error is None:
                raise
            error.add_note(f"and the lock was not released: {failed}")

    def __repr__(self) -> str:
        return f"<Lock {self._name!r} of bucket {self._store.name!r} {'held' if self.held else 'not held'}>"

    def __del__(self, warn: Any = warnings.warn) -> None:
        holding = getattr(self, "_holding", None)
        if holding is not None and holding.pid == os.getpid():
            holding.abandon()
            if not self.lost.is_set():
                warn(f"{self!r} was never released: it expires in up to {self._ttl} s", ResourceWarning)


class _Holding:
    """One time of holding the lock. Its thread knows this, and not the `Lock`, so that one can be collected."""

    def __init__(
        self, store: LockStore, name: str, owner: bytes, token: int, *, ttl: int, begun: float, lost: threading.Event
    ) -> None:
        self.pid = os.getpid()
        self.thread = threading.get_ident()
        self.token = token
        self._store = store
        self._name = name
        self._owner = owner
        self._revision = token
        self._ttl = ttl
        self._certain_until = begun + ttl * _SAFE
        self._lost = lost
        self._ends = threading.Event()
        self._idle = threading.Lock()  # held while a renewal is under way

    @property
    def is_certain(self) -> bool:
        """Whether nobody else can have it, and it belongs to this process."""
        return self.pid == os.getpid() and self._left > 0 and not self._lost.is_set()

    # --- the thread

    def renew(self) -> None:
        """Renew until the end."""
        while not self._ends.wait(min(self._ttl / _RENEWALS, self._left)):
            with self._idle:
                if self._ends.is_set() or not self._renew_once():
                    return

    @property
    def _left(self) -> float:
        return max(0.0, self._certain_until - time.monotonic())

    def _renew_once(self) -> bool:
        """Renew; return whether the lock is still held."""
        begun = time.monotonic()
        try:
            self._revision = self._store.update(
                self._name, self._owner, self._revision, ttl=self._ttl, timeout=self._left
            )
        except (RevisionMismatchError, BucketNotFoundError, ClosedError) as error:
            return self._lose(error)
        except Exception as error:  # whatever it was: there may be time for another attempt
            if not self._left:
                return self._lose(error)
            _log.warning("lock %r of bucket %r could not be renewed yet: %s", self._name, self._store.name, error)
            return True
        self._certain_until = begun + self._ttl * _SAFE
        return True

    def _lose(self, error: Exception) -> bool:
        if self._ends.is_set():  # the lock may have been acquired anew
            return False
        self._lost.set()
        _log.error("lock %r of bucket %r is lost: %s", self._name, self._store.name, error)
        return False

    # --- the end

    def abandon(self) -> None:
        """Renew no more."""
        self._ends.set()

    def release(self, deadline: Deadline) -> None:
        """End the thread and remove the key."""
        self._ends.set()
        remaining = deadline.remaining
        if not self._idle.acquire(timeout=-1 if remaining is None else max(remaining, _RELEASE_PATIENCE)):
            raise OperationTimeoutError(f"release of lock {self._name!r}", deadline.timeout)
        try:
            if self._lost.is_set():
                raise LockLostError(self._store.name, self._name)
            self._store.delete(self._name, revision=self._revision, timeout=deadline)
        except ConflictError as error:
            self._lost.set()
            raise LockLostError(self._store.name, self._name) from error
        except OutcomeUnknownError:
            if deadline.expired or self._is_still_there(deadline):
                raise
        finally:
            self._idle.release()

    def _is_still_there(self, deadline: Deadline) -> bool:
        try:
            return self._store.get_entry(self._name, timeout=deadline).value == self._owner
        except KeyNotFoundError:
            return False


def _remove(store: LockStore, name: str, revision: int) -> None:
    """Remove a lock that nobody will hold; if that fails, it expires."""
    with suppress(MonoError):
        store.delete(name, revision=revision, timeout=_RELEASE_PATIENCE)


def _withdraw(store: LockStore, name: str, owner: bytes) -> None:
    """Remove a lock that was taken though its taker has given up, so that others need not wait until it expires."""
    for pause in _WITHDRAWALS:
        time.sleep(pause)
        if _take_back(store, name, owner):
            return


def _take_back(store: LockStore, name: str, owner: bytes) -> bool:
    """Remove a lock if an attempt has taken it whose answer was lost; return whether it was there."""
    with suppress(MonoError):  # not there, or not yet; or the server cannot be reached
        found = store.get_entry(name, timeout=_RELEASE_PATIENCE)
        if found.value == owner:
            _remove(store, name, found.revision)
            return True
    return False
