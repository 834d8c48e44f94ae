"""Every exception type of mono_sync.

What goes wrong while mono_sync works is one of these. Besides, an argument of a wrong type or value may be a plain
``TypeError`` or ``ValueError``, and the stop of an application raises an ``ExceptionGroup`` of `ModuleStopError`.

The tree; behind each name the builtin that it also is, so that ``except TimeoutError`` or ``except KeyError`` works::

    MonoError
    ├── ConfigurationError                  ValueError          an option that cannot be right; nothing was sent
    ├── ClosedError                         RuntimeError        the object was closed or stopped
    ├── ForkedError                         RuntimeError        the object belongs to the parent process
    ├── OperationTimeoutError               TimeoutError        the deadline of one call passed
    │   └── OutcomeUnknownError                                 a write that may have happened or not
    ├── LoopError                           RuntimeError        the background event-loop thread
    │   ├── LoopStartError                                      it could not be started
    │   └── BlockingCallError                                   blocking call from the loop thread itself
    ├── ServerError                                             the embedded nats-server
    │   ├── ServerNotFoundError             FileNotFoundError   no nats-server binary on this machine
    │   ├── ServerBinaryError               OSError             a file that is not a usable nats-server
    │   ├── ServerStartError                RuntimeError        it did not become ready; carries its log
    │   └── StoreInUseError                 BlockingIOError     another server holds the store directory
    ├── NatsConnectionError                 ConnectionError     the connection to NATS
    │   ├── ConnectFailedError                                  no server accepted us; one reason per server
    │   │   └── AuthenticationError         PermissionError     every server that answered refused our credentials
    │   ├── ConnectionLostError                                 broke while the call waited for its answer
    │   ├── ConnectionClosedError           (ClosedError)       closed for good
    │   ├── NoRespondersError                                   nobody listens on the subject
    │   └── PermissionDeniedError           PermissionError     our user may not publish on the subject
    ├── MessageError                        ValueError          a message that NATS cannot carry; nothing was sent
    │   ├── InvalidSubjectError
    │   ├── InvalidHeaderError
    │   └── MessageTooLargeError
    ├── JetStreamError                                          an answer of JetStream that is no success
    │   ├── JetStreamUnavailableError                           not enabled, or not reachable now
    │   ├── UnsupportedByServerError        NotImplementedError the server is too old for the feature
    │   └── JetStreamAPIError                                   any other refusal, with the server's own codes
    ├── StorageError                                            key-value and object buckets
    │   ├── BucketNotFoundError             LookupError
    │   ├── BucketConfigError               ValueError          the server refuses the bucket's configuration
    │   ├── BucketFullError                 OSError             a limit of the bucket is reached
    │   ├── BucketSealedError               PermissionError     a sealed bucket cannot be changed
    │   ├── InvalidKeyError                 ValueError          not a legal key or object name
    │   ├── ValueTooLargeError              ValueError          larger than bucket or server allow
    │   ├── CodecError                      ValueError          a value that its codec cannot encode or decode
    │   ├── PartialWriteError                                   of several keys some were written, others not
    │   ├── KeyNotFoundError                KeyError
    │   │   └── ObjectNotFoundError         FileNotFoundError
    │   ├── ConflictError                                       somebody else changed the key first
    │   │   ├── KeyExistsError              FileExistsError
    │   │   │   └── ObjectExistsError
    │   │   └── RevisionMismatchError
    │   ├── LockError                                           a lock
    │   │   ├── LockNotAcquiredError        TimeoutError        somebody else held it until the deadline
    │   │   └── LockLostError                                   it is not held any more
    │   ├── ConflictRetriesExhaustedError                       a retry met conflicts until its bounds were reached
    │   ├── DigestMismatchError             OSError             the bytes read are not the bytes stored
    │   ├── ObjectChangedError              OSError             replaced or deleted while it was read
    │   └── UploadLostError                 OSError             what was uploaded of an object is not there any more
    ├── ServiceError                                            services between modules
    │   ├── ServiceNotFoundError            LookupError
    │   └── ServiceExistsError              ValueError
    └── LifecycleError                                          application, plugins, modules
        ├── ApplicationStateError           RuntimeError        not possible in the application's present state
        ├── RegistrationError               ValueError          a module or plugin that cannot be registered
        │   ├── InvalidModuleError          TypeError           wrong type, missing or wrong member
        │   └── DuplicateNameError                              name or alias taken
        ├── DependencyError
        │   ├── MissingDependencyError      LookupError
        │   └── CircularDependencyError
        ├── PluginNotFoundError             LookupError
        ├── ModuleStartError                RuntimeError        names module and phase; ``__cause__`` is the real error
        └── ModuleStopError                 RuntimeError

Every instance can be pickled and carries the facts of its message as attributes. Where another library's exception was
the reason, it is the ``__cause__``.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = [
    "ApplicationStateError",
    "AuthenticationError",
    "BlockingCallError",
    "BucketConfigError",
    "BucketFullError",
    "BucketNotFoundError",
    "BucketSealedError",
    "CircularDependencyError",
    "ClosedError",
    "CodecError",
    "ConfigurationError",
    "ConflictError",
    "ConflictRetriesExhaustedError",
    "ConnectFailedError",
    "ConnectionClosedError",
    "ConnectionLostError",
    "DependencyError",
    "DigestMismatchError",
    "DuplicateNameError",
    "ForkedError",
    "InvalidHeaderError",
    "InvalidKeyError",
    "InvalidModuleError",
    "InvalidSubjectError",
    "JetStreamAPIError",
    "JetStreamError",
    "JetStreamUnavailableError",
    "KeyExistsError",
    "KeyNotFoundError",
    "LifecycleError",
    "LockError",
    "LockLostError",
    "LockNotAcquiredError",
    "LoopError",
    "LoopStartError",
    "MessageError",
    "MessageTooLargeError",
    "MissingDependencyError",
    "ModuleStartError",
    "ModuleStopError",
    "MonoError",
    "NatsConnectionError",
    "NoRespondersError",
    "ObjectChangedError",
    "ObjectExistsError",
    "ObjectNotFoundError",
    "OperationTimeoutError",
    "OutcomeUnknownError",
    "PartialWriteError",
    "PermissionDeniedError",
    "PluginNotFoundError",
    "RegistrationError",
    "RevisionMismatchError",
    "ServerBinaryError",
    "ServerError",
    "ServerNotFoundError",
    "ServerStartError",
    "ServiceError",
    "ServiceExistsError",
    "ServiceNotFoundError",
    "StorageError",
    "StoreInUseError",
    "UnsupportedByServerError",
    "UploadLostError",
    "ValueTooLargeError",
]


def _rebuild(cls: type[MonoError], message: str, facts: dict[str, Any]) -> MonoError:
    """Make an unpickled exception without calling its ``__init__``, whose arguments are facts, not the message."""
    native: type[BaseException] = cls  # its builtin lays out the instance; cls.__new__ may find another base's first
    while native.__module__ != "builtins":
        native = native.__base__  # type: ignore[assignment]  # never None: every class here ends in a builtin
    error: MonoError = native.__new__(cls, message)
    Exception.__init__(error, message)
    error.__dict__.update(facts)
    return error


class MonoError(Exception):
    """The root: ``except MonoError`` catches whatever goes wrong while mono_sync works.

    It does not catch a plain ``TypeError`` or ``ValueError``, which a wrong argument may be, nor the ``ExceptionGroup``
    that the stop of an application raises; ``except* MonoError`` catches that.

    ``str(error)`` is the message, also where the builtin base would show something else (``KeyError`` quotes it).
    Instances survive pickling with their attributes; as usual, ``__cause__`` and the traceback do not.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message)

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), str(self), dict(self.__dict__))


# --- everywhere -----------------------------------------------------------------------------------------------------


class ConfigurationError(MonoError, ValueError):
    """An option, URL or file that cannot be right. Raised before anything is sent or started."""


class ClosedError(MonoError, RuntimeError):
    """The object was closed or stopped, before or during the call."""


class ForkedError(MonoError, RuntimeError):
    """The object was made in the parent process and cannot be used in a forked child."""


class OperationTimeoutError(MonoError, TimeoutError):
    """The deadline of one call passed.

    The call has been given up: a message whose turn to be written had not come is never sent. One that had been written
    may still take effect, also when it has to wait for the socket inside the process (one message at most, unless
    ``pending_size`` of the connection lets more of them wait). So after a write the outcome is not known.

    Attributes:
        operation: what was called, for example ``"request $JS.API.INFO"``.
        timeout: the deadline of the call in seconds.
        sent: whether anything may have left this process. False is certain: nothing has happened, nor will.
    """

    def __init__(self, operation: str, timeout: float | None, hint: str = "", *, sent: bool = True) -> None:
        self.operation = operation
        self.timeout = timeout
        self.sent = sent
        super().__init__(self._describe(hint))

    def _describe(self, hint: str) -> str:
        after = "" if self.timeout is None else f" after {self.timeout:g} s"
        return f"{self.operation} timed out{after}" + (f": {hint}" if hint else "")


class OutcomeUnknownError(OperationTimeoutError):
    """A write whose answer was lost: it may have happened or not, and nothing of it is sent any more.

    Mostly the deadline passed before the server could be asked again. Rarely it was asked and cannot tell: when the key
    has been overwritten and the server has restarted in between, or the deadline is longer than the time for which the
    bucket remembers writes. Read the key before you write it again.

    Attributes:
        operation: what was called.
        timeout: the deadline of the call in seconds; None where that is not the reason.
    """

    def __init__(self, operation: str, timeout: float | None, reason: str = "") -> None:
        super().__init__(operation, timeout, reason)

    def _describe(self, hint: str) -> str:
        after = "no answer" if self.timeout is None else f"no answer within {self.timeout:g} s"
        return f"{self.operation}: it is not known whether it happened: {hint or after}"


# --- the loop thread ------------------------------------------------------------------------------------------------


class LoopError(MonoError, RuntimeError):
    """The background event-loop thread cannot do what was asked."""


class LoopStartError(LoopError):
    """The background thread did not come up; the message says what usually prevents it."""


class BlockingCallError(LoopError):
    """A blocking call was made from the event-loop thread itself, where it could only deadlock."""


# --- the embedded server --------------------------------------------------------------------------------------------


class ServerError(MonoError):
    """The embedded nats-server cannot be used."""


class ServerNotFoundError(ServerError, FileNotFoundError):
    """No nats-server binary was found.

    Attributes:
        searched: the places that were looked at, in order.
    """

    def __init__(self, message: str, searched: Sequence[str] = ()) -> None:
        self.searched: tuple[str, ...] = tuple(searched)
        super().__init__(message)


class ServerBinaryError(ServerError, OSError):
    """A file that cannot be run, is no nats-server, or is too old a one.

    Attributes:
        path: the file.
    """

    def __init__(self, path: str, reason: str) -> None:
        self.path = path
        super().__init__(f"cannot use {path} as nats-server: {reason}")


class ServerStartError(ServerError, RuntimeError):
    """The server was started and did not become ready.

    Attributes:
        exit_code: what it exited with; None while it still ran.
        log_tail: the last lines of its log.
    """

    def __init__(self, reason: str, *, exit_code: int | None = None, log_tail: str = "") -> None:
        self.exit_code = exit_code
        self.log_tail = log_tail
        tail = f"\nlast lines of its log:\n{log_tail}" if log_tail else ""
        super().__init__(f"nats-server did not start: {reason}{tail}")


class StoreInUseError(ServerError, BlockingIOError):
    """Another nats-server works on this store directory.

    Attributes:
        path: the store directory.
        owner: process id of the Python process that owns it, where it is known.
    """

    def __init__(self, path: str, owner: int | None = None) -> None:
        self.path = path
        self.owner = owner
        by = f" by process {owner}" if owner is not None else ""
        super().__init__(f"store directory {path} is in use{by}: give each embedded server a directory of its own")


# --- the connection -------------------------------------------------------------------------------------------------


class NatsConnectionError(MonoError, ConnectionError):
    """The connection to NATS cannot do what was asked."""


class ConnectFailedError(NatsConnectionError):
    """No server accepted the connection.

    Attributes:
        failures: for each server, in the order tried, why it was not that one. The addresses hold no credentials.
    """

    def __init__(self, failures: Mapping[str, str]) -> None:
        self.failures: dict[str, str] = dict(failures)
        reasons = "; ".join(f"{server}: {reason}" for server, reason in self.failures.items())
        super().__init__(f"cannot connect to NATS: {reasons}")


class AuthenticationError(ConnectFailedError, PermissionError):
    """Every server that answered refused the credentials."""


class ConnectionLostError(NatsConnectionError):
    """The connection broke while the call waited for its answer; whether the request took effect is not known."""


class ConnectionClosedError(NatsConnectionError, ClosedError):
    """The connection is closed for good, by ``close()``, ``drain()`` or the end of the interpreter."""


class NoRespondersError(NatsConnectionError):
    """Nobody is subscribed to the subject of a request.

    Attributes:
        subject: the subject.
    """

    def __init__(self, subject: str) -> None:
        self.subject = subject
        super().__init__(f"no responders on subject {subject!r}")


class PermissionDeniedError(NatsConnectionError, PermissionError):
    """The server does not let our user publish on the subject; nothing was delivered.

    Attributes:
        subject: the subject.
    """

    def __init__(self, subject: str) -> None:
        self.subject = subject
        super().__init__(f"no permission to publish on subject {subject!r}")


class MessageError(MonoError, ValueError):
    """A message that NATS cannot carry. It was refused before anything was sent."""


class InvalidSubjectError(MessageError):
    """Not a legal NATS subject.

    Attributes:
        subject: the subject.
    """

    def __init__(self, subject: str, rule: str) -> None:
        self.subject = subject
        shown = subject if len(subject) <= 80 else f"{subject[:77]}..."
        super().__init__(f"invalid subject {shown!r}: {rule}")


class InvalidHeaderError(MessageError):
    """Not a legal NATS header.

    Attributes:
        header: the name of the header.
    """

    def __init__(self, header: str, rule: str) -> None:
        self.header = header
        super().__init__(f"invalid header {header!r}: {rule}")


class MessageTooLargeError(MessageError):
    """Payload and headers together exceed what the server accepts.

    Attributes:
        size: bytes of payload and headers.
        limit: the server's ``max_payload``.
    """

    def __init__(self, size: int, limit: int) -> None:
        self.size = size
        self.limit = limit
        super().__init__(f"message of {size} bytes (headers included) exceeds the server's max_payload of {limit}")


# --- JetStream ------------------------------------------------------------------------------------------------------


class JetStreamError(MonoError):
    """JetStream answered, and the answer is no success."""


class JetStreamUnavailableError(JetStreamError):
    """JetStream is not enabled on the server or for the account, or has no leader at the moment.

    Attributes:
        temporary: whether it should be back soon: a leader is being elected.
    """

    def __init__(self, message: str, *, temporary: bool = False) -> None:
        self.temporary = temporary
        super().__init__(message)


class UnsupportedByServerError(JetStreamError, NotImplementedError):
    """The server is too old for a feature.

    Attributes:
        feature: what was asked for.
        required: the first version that has it.
        actual: the version of the connected server.
    """

    def __init__(self, feature: str, required: str, actual: str) -> None:
        self.feature = feature
        self.required = required
        self.actual = actual
        super().__init__(f"{feature} needs nats-server {required} or newer; the connected server is {actual}")


class JetStreamAPIError(JetStreamError):
    """A refusal by the server that has no class of its own here.

    Attributes:
        code: the HTTP-like status.
        err_code: the server's own number of the reason.
        description: the server's text.
    """

    def __init__(self, code: int, err_code: int, description: str, *, context: str = "") -> None:
        self.code = code
        self.err_code = err_code
        self.description = description
        prefix = f"{context}: " if context else ""
        super().__init__(f"{prefix}{description} (status {code}, error {err_code})")


# --- storage --------------------------------------------------------------------------------------------------------


class StorageError(MonoError):
    """A key-value or object bucket cannot do what was asked."""


class BucketNotFoundError(StorageError, LookupError):
    """The bucket does not exist, or is none of the plugin's.

    Attributes:
        bucket: its name.
        known: the names that would have been found, where they are known.
    """

    def __init__(self, bucket: str, known: Sequence[str] | None = None) -> None:
        self.bucket = bucket
        self.known: tuple[str, ...] | None = None if known is None else tuple(known)
        hint = "" if known is None else f"; configured: {', '.join(known) or 'none'}"
        super().__init__(f"bucket {bucket!r} not found{hint}")


class BucketConfigError(StorageError, ValueError):
    """The server refuses the configuration of a bucket.

    Attributes:
        bucket: its name.
        fields: the configuration fields that differ from the existing bucket; empty where that is not the reason.
    """

    def __init__(self, bucket: str, reason: str, fields: Sequence[str] = ()) -> None:
        self.bucket = bucket
        self.fields: tuple[str, ...] = tuple(fields)
        super().__init__(f"bucket {bucket!r}: {reason}")


class BucketFullError(StorageError, OSError):
    """A limit of the bucket or of the server's storage is reached; nothing was written.

    Attributes:
        bucket: its name.
    """

    errno: int | None = errno.ENOSPC

    def __init__(self, bucket: str, reason: str) -> None:
        self.bucket = bucket
        super().__init__(f"bucket {bucket!r} is full: {reason}")


class BucketSealedError(StorageError, PermissionError):
    """The bucket is sealed: nothing in it can be written, changed or removed any more.

    Attributes:
        bucket: the bucket.
    """

    errno: int | None = errno.EPERM

    def __init__(self, bucket: str) -> None:
        self.bucket = bucket
        super().__init__(f"bucket {bucket!r} is sealed: it can only be read")


class InvalidKeyError(StorageError, ValueError):
    """Not a legal key, pattern or object name. Nothing was sent.

    Attributes:
        key: what was given.
    """

    def __init__(self, key: str, rule: str, *, kind: str = "key") -> None:
        self.key = key
        shown = key if len(key) <= 80 else f"{key[:77]}..."
        super().__init__(f"invalid {kind} {shown!r}: {rule}")


class ValueTooLargeError(StorageError, ValueError):
    """The value is larger than the bucket or the server allows; nothing was written.

    Attributes:
        bucket: the bucket.
        key: the key, or the name of the object.
        size: bytes of the value.
    """

    def __init__(self, bucket: str, key: str, size: int, reason: str, *, kind: str = "value for key") -> None:
        self.bucket = bucket
        self.key = key
        self.size = size
        super().__init__(f"{kind} {key!r} of bucket {bucket!r} is too large, {size} bytes: {reason}")


class CodecError(StorageError, ValueError):
    """A value that the codec of a typed bucket cannot encode, or what is stored that it cannot decode.

    ``__cause__`` is what the codec raised. The message names no more than its type, for it may repeat the value.

    Attributes:
        bucket: the bucket.
        key: the key.
        revision: the revision that cannot be decoded, where the call has read it; else None.
    """

    def __init__(self, bucket: str, key: str, reason: str, *, revision: int | None = None) -> None:
        self.bucket = bucket
        self.key = key
        self.revision = revision
        at = "" if revision is None else f" at revision {revision}"
        super().__init__(f"the value of key {key!r}{at} of bucket {bucket!r} {reason}")


class PartialWriteError(StorageError):
    """Of the keys of one call some were written, or may have been, and others were not.

    ``__cause__`` is the first of ``errors``.

    Attributes:
        bucket: the bucket.
        written: the keys that were written, with their revisions; for `delete_many` those that were deleted.
        errors: what went wrong with each of the others. The key of an `OutcomeUnknownError` may have been written, all
            others have not been, nor will they be.
    """

    def __init__(self, bucket: str, written: Mapping[str, int], errors: Mapping[str, MonoError]) -> None:
        self.bucket = bucket
        self.written: dict[str, int] = dict(written)
        self.errors: dict[str, MonoError] = dict(errors)
        first = next(iter(self.errors.values()), "no reason given")
        counts = f"{len(self.written)} keys were written, {len(self.errors)} were not or may not have been"
        super().__init__(f"bucket {bucket!r}: {counts}: {first}")


class KeyNotFoundError(StorageError, KeyError):
    """The key is missing: never written, deleted, purged or expired.

    Attributes:
        bucket: the bucket.
        key: the key.
        revision: the revision that was asked for; None means the newest.
    """

    _what = "key"

    def __init__(self, bucket: str, key: str, revision: int | None = None) -> None:
        self.bucket = bucket
        self.key = key
        self.revision = revision
        super().__init__(self._describe())

    def _describe(self) -> str:
        at = "" if self.revision is None else f" has no revision {self.revision}"
        verb = "" if at else " not found"
        return f"{self._what} {self.key!r}{verb}{at} in bucket {self.bucket!r}"


class ObjectNotFoundError(KeyNotFoundError, FileNotFoundError):
    """The object is missing: never stored, deleted or expired; or it is a link, and what that leads to is missing.

    Attributes:
        link: the ``bucket/object`` that is missing, to which links led; None: the object itself is.
    """

    errno: int | None = errno.ENOENT
    _what = "object"

    def __init__(self, bucket: str, key: str, revision: int | None = None, *, link: str | None = None) -> None:
        self.link = link
        super().__init__(bucket, key, revision)

    def _describe(self) -> str:
        if self.link is None:
            return super()._describe()
        return (
            f"object {self.key!r} of bucket {self.bucket!r} is a link that leads to {self.link!r}, which is not there"
        )


class ConflictError(StorageError):
    """Somebody else changed the key first; nothing was written.

    Attributes:
        bucket: the bucket.
        key: the key.
        expected: the revision that the caller took for the newest; 0 means "no such key".
        actual: the newest revision, where the server told it.
    """

    def __init__(self, message: str, bucket: str, key: str, expected: int, actual: int | None) -> None:
        self.bucket = bucket
        self.key = key
        self.expected = expected
        self.actual = actual
        super().__init__(message)


class KeyExistsError(ConflictError, FileExistsError):
    """``create`` found a live key."""

    errno: int | None = errno.EEXIST
    _what = "key"

    def __init__(self, bucket: str, key: str, actual: int | None = None) -> None:
        at = "" if actual is None else f" at revision {actual}"
        super().__init__(f"{self._what} {key!r} already exists{at} in bucket {bucket!r}", bucket, key, 0, actual)


class ObjectExistsError(KeyExistsError):
    """There is an object of this name, and the call must not replace it."""

    _what = "object"


class RevisionMismatchError(ConflictError):
    """The key or object is not at the revision that the caller expected; a missing one is at none."""

    def __init__(self, bucket: str, key: str, expected: int, actual: int | None = None, *, kind: str = "key") -> None:
        now = "" if actual is None else f", it is at {actual}" if actual else ", it does not exist"
        message = f"{kind} {key!r} of bucket {bucket!r} is not at revision {expected}{now}"
        super().__init__(message, bucket, key, expected, actual)


class LockError(StorageError):
    """A lock cannot be had or kept.

    Attributes:
        bucket: the bucket.
        key: the name of the lock.
    """

    def __init__(self, bucket: str, key: str, message: str) -> None:
        self.bucket = bucket
        self.key = key
        super().__init__(message)


class LockNotAcquiredError(LockError, TimeoutError):
    """The lock was not free until the deadline; the caller does not hold it.

    Attributes:
        timeout: the deadline in seconds.
    """

    def __init__(self, bucket: str, key: str, timeout: float | None) -> None:
        self.timeout = timeout
        within = "" if timeout is None else f" within {timeout:g} s"
        super().__init__(bucket, key, f"lock {key!r} of bucket {bucket!r} was not to be had{within}")


class LockLostError(LockError):
    """The lock is not held, or not any more: it was not renewed in time, or somebody removed it."""

    def __init__(self, bucket: str, key: str) -> None:
        super().__init__(bucket, key, f"lock {key!r} of bucket {bucket!r} is not held any more")


class ConflictRetriesExhaustedError(StorageError):
    """A retry gave up: its attempts or its time are used up, and the last attempt failed like those before.

    ``__cause__`` is what that attempt raised: a `ConflictError`, unless the policy was told to retry something else.
    It is no `ConflictError` itself, so that a retry around it does not begin all over again.

    Attributes:
        attempts: how many were made.
        elapsed: seconds from the beginning of the first to the end of the last.
        bucket: the bucket of the last conflict; None where the error named none.
        key: the key of the last conflict; None where the error named none.
    """

    def __init__(
        self, attempts: int, elapsed: float, reason: str, *, bucket: str | None = None, key: str | None = None
    ) -> None:
        self.attempts = attempts
        self.elapsed = elapsed
        self.bucket = bucket
        self.key = key
        made = "1 attempt" if attempts == 1 else f"{attempts} attempts"
        super().__init__(f"gave up after {made} in {elapsed:.3g} s: {reason}")


class DigestMismatchError(StorageError, OSError):
    """The bytes that were read are not those that were stored.

    Attributes:
        bucket: the bucket.
        key: the object.
    """

    def __init__(self, bucket: str, key: str, reason: str) -> None:
        self.bucket = bucket
        self.key = key
        super().__init__(f"object {key!r} of bucket {bucket!r} is damaged: {reason}")


class ObjectChangedError(StorageError, OSError):
    """The version of an object that was being read is gone: it was replaced or deleted, or has expired.

    A call that can begin anew, as `get` can, does so first, several times.

    Attributes:
        bucket: the bucket.
        key: the object.
    """

    def __init__(self, bucket: str, key: str) -> None:
        self.bucket = bucket
        self.key = key
        super().__init__(f"object {key!r} of bucket {bucket!r} changed while it was being read")


class UploadLostError(StorageError, OSError):
    """What had been uploaded of an object is not there any more, or not as a whole; the object was not stored.

    An upload that stood still for long may have been given up by `ObjectBucket.sweep`, or took longer than its chunks
    live, or somebody has reset the bucket.

    Attributes:
        bucket: the bucket.
        key: the object.
    """

    def __init__(self, bucket: str, key: str, reason: str) -> None:
        self.bucket = bucket
        self.key = key
        super().__init__(f"object {key!r} was not stored in bucket {bucket!r}: {reason}")


# --- services -------------------------------------------------------------------------------------------------------


class ServiceError(MonoError):
    """A service between modules.

    Attributes:
        module: the module whose container was asked.
        service: the name of the service.
    """

    def __init__(self, module: str, service: str, message: str) -> None:
        self.module = module
        self.service = service
        super().__init__(message)


class ServiceNotFoundError(ServiceError, LookupError):
    """The module offers no service of this name.

    Attributes:
        known: the names that it does offer.
    """

    def __init__(self, module: str, service: str, known: Sequence[str] = ()) -> None:
        self.known: tuple[str, ...] = tuple(known)
        offered = ", ".join(known) or "none"
        super().__init__(module, service, f"module {module!r} offers no service {service!r}; it offers: {offered}")


class ServiceExistsError(ServiceError, ValueError):
    """The module has registered a service of this name already."""

    def __init__(self, module: str, service: str) -> None:
        super().__init__(module, service, f"module {module!r} has registered service {service!r} already")


# --- lifecycle ------------------------------------------------------------------------------------------------------


class LifecycleError(MonoError):
    """The application, a plugin or a module."""


class ApplicationStateError(LifecycleError, RuntimeError):
    """Not possible in the application's present state.

    Attributes:
        state: name of the state, for example ``"RUNNING"``.
    """

    def __init__(self, message: str, state: str) -> None:
        self.state = state
        super().__init__(message)


class RegistrationError(LifecycleError, ValueError):
    """A module or plugin that cannot be registered.

    Attributes:
        module: its name or alias, or its type where it has none.
    """

    def __init__(self, module: str, message: str) -> None:
        self.module = module
        super().__init__(message)


class InvalidModuleError(RegistrationError, TypeError):
    """Wrong type, or a member that is missing or cannot be right."""


class DuplicateNameError(RegistrationError):
    """The name or alias is taken."""


class DependencyError(LifecycleError):
    """The dependencies between the modules cannot be met."""


class MissingDependencyError(DependencyError, LookupError):
    """A module depends on a name that no module has.

    Attributes:
        module: the module that declares the dependency.
        dependency: the name that it declares.
    """

    def __init__(self, module: str, dependency: str, hint: str = "") -> None:
        self.module = module
        self.dependency = dependency
        reason = hint or "no module of that name is registered"
        super().__init__(f"module {module!r} depends on {dependency!r}: {reason}")


class CircularDependencyError(DependencyError):
    """Modules depend on each other in a circle.

    Attributes:
        chain: the circle, its first name repeated at the end.
    """

    def __init__(self, chain: Sequence[str]) -> None:
        self.chain: tuple[str, ...] = tuple(chain)
        super().__init__(f"modules depend on each other in a circle: {' -> '.join(self.chain)}")


class PluginNotFoundError(LifecycleError, LookupError):
    """No plugin is registered under the alias.

    Attributes:
        alias: the alias.
        known: the aliases that are registered.
    """

    def __init__(self, alias: str, known: Sequence[str] = ()) -> None:
        self.alias = alias
        self.known: tuple[str, ...] = tuple(known)
        super().__init__(f"no plugin is registered as {alias!r}; registered: {', '.join(known) or 'none'}")


class ModuleStartError(LifecycleError, RuntimeError):
    """A step of the start failed; everything that had started has been stopped again.

    Attributes:
        module: the module, plugin alias, or ``"application"`` for server and connection.
        phase: the step, for example ``"start"`` or ``"set_plugin"``.
        rollback_errors: texts of what went wrong while stopping the others.
    """

    def __init__(self, module: str, phase: str, reason: str, rollback_errors: Sequence[str] = ()) -> None:
        self.module = module
        self.phase = phase
        self.rollback_errors: tuple[str, ...] = tuple(rollback_errors)
        more = "".join(f"\nduring rollback: {text}" for text in self.rollback_errors)
        super().__init__(f"{module!r} failed in {phase}: {reason}{more}")


class ModuleStopError(LifecycleError, RuntimeError):
    """A step of the stop failed; the later steps were done all the same.

    Attributes:
        module: the module, plugin alias, or ``"application"`` for server and connection.
        phase: the step, for example ``"stop"``.
    """

    def __init__(self, module: str, phase: str, reason: str) -> None:
        self.module = module
        self.phase = phase
        super().__init__(f"{module!r} failed in {phase}: {reason}")
