"""What both kinds of buckets share: opening, status, and errors that name the bucket."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import ClassVar, Generic, NoReturn, Self, TypeVar

from mono_sync._durations import DEFAULT, Deadline, Timeout
from mono_sync.connection import CoreConnection, ExactlyOnce, Follower, JetStream, Json, Start, parse_time
from mono_sync.errors import (
    ConfigurationError,
    InvalidKeyError,
    JetStreamUnavailableError,
    MonoError,
    NoRespondersError,
    OperationTimeoutError,
    OutcomeUnknownError,
)
from mono_sync.storage._config import BucketConfig, ensure_stream, open_stream
from mono_sync.storage._errors import bucket_errors
from mono_sync.storage._names import check_bucket_name
from mono_sync.storage._values import BucketStatus

ConfigT = TypeVar("ConfigT", bound=BucketConfig)

LONGEST_SUBJECT = 3840
"""What is left of a protocol line of 4096 bytes beside reply subject, sizes and the API's prefix."""

_PROBE_TIMEOUT = 1.0
_LARGEST_REVISION = 2**63 - 1


class Bucket(Generic[ConfigT]):
    """A bucket that is open. Use `KVBucket` or `ObjectBucket`."""

    _config_type: ClassVar[type[BucketConfig]]

    def __init__(self, connection: CoreConnection, name: str, info: Json, *, stale_reads: bool) -> None:
        config = info["config"]
        self._connection = connection
        self._timeout = connection.config.call_timeout
        self._jetstream = JetStream(connection)
        self._name = name
        self._stream = f"{self._config_type.prefix}{name}"
        self._writer = ExactlyOnce(connection, self._jetstream, self._stream, info)
        self._direct = bool(config.get("allow_direct")) and (stale_reads or config["num_replicas"] == 1)

    @classmethod
    def bind(
        cls,
        connection: CoreConnection,
        bucket: str | ConfigT,
        *,
        stale_reads: bool = False,
        timeout: Timeout = DEFAULT,
    ) -> Self:
        """Open a bucket: an existing one by its name, or by a configuration, which creates or updates it.

        Args:
            connection: where it is.
            bucket: its name or configuration.
            stale_reads: let any replica answer reads, which spreads them over the cluster; one that lags behind may not
                know the newest writes, the caller's own included. Otherwise the leader answers.
            timeout: total deadline.

        Raises:
            BucketNotFoundError: there is none of that name.
            BucketConfigError: the server refuses the configuration.
            UnsupportedByServerError: the server is too old for an option.
            ConfigurationError: not a legal name, or the configuration of another kind of bucket.
        """
        deadline = Deadline.of(timeout, connection.config.call_timeout)
        jetstream = JetStream(connection)
        if isinstance(bucket, str):
            name = check_bucket_name(bucket)
            info = open_stream(jetstream, name, cls._config_type.prefix, deadline)
            return cls(connection, name, info, stale_reads=stale_reads)
        if not isinstance(bucket, cls._config_type):
            kind = cls._config_type.__name__
            raise ConfigurationError(f"a bucket is opened by its name or a {kind}, not {type(bucket).__name__}")
        info = ensure_stream(jetstream, bucket, connection.server_info, deadline)
        return cls(connection, bucket.name, info, stale_reads=stale_reads)

    @property
    def name(self) -> str:
        """Name of the bucket."""
        return self._name

    def status(self, *, timeout: Timeout = DEFAULT) -> BucketStatus:
        """Return size and limits of the bucket."""
        deadline = self._deadline(timeout)
        with self._errors(deadline, "status"):
            info = self._jetstream.stream_info(self._stream, deadline)
        return BucketStatus.from_stream(self._name, info)

    def _remove_all(self, deadline: Deadline) -> None:
        with self._errors(deadline, "reset"):
            state = self._jetstream.stream_info(self._stream, deadline)["state"]
            if state["messages"]:  # named by its end, so that doing it again after a lost answer does no more
                self._jetstream.purge_before(self._stream, state["last_seq"] + 1, deadline)

    def _follow(
        self,
        subject: str,
        pattern: str,
        deadline: Deadline,
        *,
        start: Start,
        after: int | None,
        headers_only: bool = False,
    ) -> Follower:
        """Return what follows the messages of a subject; ``pattern`` is what its owner calls it."""
        follower = Follower(
            self._connection, self._stream, subject, start=start, after=after, headers_only=headers_only
        )
        try:
            with self._errors(deadline, "watching", pattern):
                follower.open(deadline)
        except BaseException:
            follower.stop()
            raise
        return follower

    def _deadline(self, timeout: Timeout) -> Deadline:
        return Deadline.of(timeout, self._timeout)

    @contextmanager
    def _errors(self, deadline: Deadline, doing: str, key: str = "", size: int = 0) -> Iterator[None]:
        """Turn what connection and server refuse, and a passed deadline, into errors that name bucket and key."""
        try:
            yield
        except MonoError as error:
            self._explain(error, deadline, doing, key, size)

    def _explain(self, error: MonoError, deadline: Deadline, doing: str, key: str = "", size: int = 0) -> NoReturn:
        """Raise the error that says it in the words of buckets."""
        with bucket_errors(self._name, key, size):
            if isinstance(error, NoRespondersError):  # no stream takes the subject: the API tells why
                self._jetstream.stream_info(self._stream, deadline.at_most(_PROBE_TIMEOUT))
                reason = f"bucket {self._name!r} has no leader at the moment"
                raise JetStreamUnavailableError(reason, temporary=True) from error
            if isinstance(error, OperationTimeoutError) and not isinstance(error, OutcomeUnknownError):
                where = self._describe(doing, key)
                raise OperationTimeoutError(where, deadline.timeout, sent=error.sent) from error
            raise error

    def _describe(self, doing: str, key: str = "") -> str:
        return f"{doing} {key!r} of bucket {self._name!r}" if key else f"{doing} of bucket {self._name!r}"

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"cannot pickle {self!r}: open the bucket on a connection of the other process")

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._name!r} of {self._connection!r}>"


def check_subject_length(subject: str, key: str) -> str:
    """Return the subject if all commands on it fit a line of the protocol: who could write it can read and delete it.

    Raises:
        InvalidKeyError: it is too long.
    """
    if len(subject) > LONGEST_SUBJECT:
        raise InvalidKeyError(key, f"it is too long by {len(subject) - LONGEST_SUBJECT} bytes")
    return subject


def check_revision(revision: int, hint: str = "") -> int:
    """Return a revision if it can be one.

    Raises:
        TypeError: it is no int.
        ValueError: it is less than 1, or more than the server can count.
    """
    if not isinstance(revision, int) or isinstance(revision, bool):
        raise TypeError(f"a revision must be an int, not {type(revision).__name__}")
    if revision < 1:
        raise ValueError(f"a revision is 1 or more, not {revision}{hint}")
    if revision > _LARGEST_REVISION:  # the server would take it modulo 2**64, and so for another one
        raise ValueError(f"a revision is at most {_LARGEST_REVISION}, not {revision}")
    return revision


def server_time(info: Json) -> datetime:
    """Return the time of a stream's description by the server's clock, which dates what it stores.

    Old servers do not tell it: then it is the time here.
    """
    return parse_time(info["ts"]) if "ts" in info else datetime.now(UTC)
