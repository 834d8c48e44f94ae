"""What buckets return."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
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


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """What a bucket knows of an object.

    Attributes:
        bucket: the bucket.
        name: the object's key.
        size: bytes.
        digest: ``SHA-256=`` and the hash in base64 for URLs.
        modified: when its content was stored.
        chunks: number of messages that hold it.
        chunk_size: bytes of each chunk but the last, as far as its writer told; 0: unknown.
        nuid: identity of this version's chunks.
        description: for people.
        headers: by name, a tuple of values each, also where there is one.
        revision: number of this version in the bucket; a later one, also of its description only, has a larger number.
        link: ``bucket`` or ``bucket/object`` that this one stands for; None: it is no link.
        metadata: custom values by name.
    """

    bucket: str
    name: str
    size: int
    digest: str
    modified: datetime
    chunks: int
    nuid: str
    description: str
    headers: Mapping[str, Sequence[str]]
    revision: int
    link: str | None = None
    chunk_size: int = 0
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def content_type(self) -> str | None:
        """The value of its header ``Content-Type``, in whatever case that is written; None: it has none."""
        found = (values for name, values in self.headers.items() if name.lower() == "content-type")
        return next((values[0] for values in found if values), None)


@dataclass(frozen=True, slots=True)
class Folder:
    """What an object bucket has right under a prefix, as a directory has files and directories.

    Attributes:
        prefix: the prefix that was listed.
        objects: the objects whose names go on without the delimiter, sorted by name.
        folders: the prefixes of all others up to their next delimiter, which they end with; each once, sorted. Listing
            one of them goes a level deeper.
    """

    prefix: str
    objects: Sequence[ObjectInfo]
    folders: Sequence[str]

    @classmethod
    def of(cls, prefix: str, delimiter: str, infos: Iterable[ObjectInfo]) -> Folder:
        """Divide objects whose names begin with the prefix, and which are sorted."""
        objects, folders = list[ObjectInfo](), dict[str, None]()
        for info in infos:
            head, found, _ = info.name[len(prefix) :].partition(delimiter)
            if found:
                folders[prefix + head + delimiter] = None
            else:
                objects.append(info)
        return cls(prefix, tuple(objects), tuple(folders))
