"""What buckets return."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum
from typing import Generic

from typing_extensions import TypeVar

from mono_sync.connection import Json
from mono_sync.storage._config import Storage


class Operation(Enum):
    """What a revision did to its key."""

    PUT = "PUT"
    """A value was written."""
    DELETE = "DEL"
    """The key was deleted; older revisions stay within the bucket's history."""
    PURGE = "PURGE"
    """The key was removed with its history: by `purge`, or by the server when its time was up."""


V_co = TypeVar("V_co", default=bytes, covariant=True)


@dataclass(frozen=True, slots=True)
class Entry(Generic[V_co]):
    """One revision of a key.

    Attributes:
        bucket: the bucket.
        key: the key.
        value: the value; where there is none, as in a deletion, empty, and of a typed bucket None.
        revision: number of the revision, counted over the whole bucket.
        created: when the server stored it.
        operation: what it did to the key.
        expired: whether the server removed the key because its time was up.
    """

    bucket: str
    key: str
    value: V_co
    revision: int
    created: datetime
    operation: Operation = Operation.PUT
    expired: bool = False

    @property
    def removed(self) -> bool:
        """Whether this revision removed the key: deleted, purged or expired."""
        return self.operation is not Operation.PUT


@dataclass(frozen=True, slots=True)
class BucketStatus:
    """Size and limits of a bucket.

    Attributes:
        bucket: its name.
        messages: messages stored: of a key-value bucket every revision kept and every mark of a deletion, of an object
            bucket every chunk and every description of an object.
        bytes: size of all of them.
        ttl: life of every key or object; None: unlimited.
        history: revisions kept of each key.
        max_bytes: limit of ``bytes``; None: unlimited.
        max_value_size: limit of one message; None: the server's.
        storage: ``"file"`` or ``"memory"``.
        replicas: copies in a cluster.
        compression: whether the server compresses.
        description: for people.
        keys: live keys of a key-value bucket; None for an object bucket.
        tombstones: keys or objects that are deleted, purged or expired, and of which the bucket still holds the mark.
        objects: objects and links of an object bucket; None for a key-value bucket.
        sealed: whether nothing in the bucket can be changed any more.
    """

    bucket: str
    messages: int
    bytes: int
    ttl: timedelta | None
    history: int
    max_bytes: int | None
    max_value_size: int | None
    storage: Storage
    replicas: int
    compression: bool
    description: str
    keys: int | None = None
    tombstones: int | None = None
    objects: int | None = None
    sealed: bool = False

    @classmethod
    def from_stream(cls, bucket: str, info: Json) -> BucketStatus:
        """Read the server's answer."""
        config, state = info["config"], info["state"]
        return cls(
            bucket=bucket,
            messages=state["messages"],
            bytes=state["bytes"],
            ttl=timedelta(microseconds=config["max_age"] / 1000) if config.get("max_age") else None,
            history=max(1, config.get("max_msgs_per_subject", 1)),
            max_bytes=_limit(config.get("max_bytes", -1)),
            max_value_size=_limit(config.get("max_msg_size", -1)),
            storage=config["storage"],
            replicas=config["num_replicas"],
            compression=config.get("compression", "none") != "none",
            description=config.get("description", ""),
            sealed=bool(config.get("sealed")),
        )


def _limit(value: int) -> int | None:
    return value if value > 0 else None
