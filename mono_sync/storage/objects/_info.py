"""What an object bucket tells of its objects."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """What a bucket knows of an object. Hashable, and the same after pickling.

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
    headers: Mapping[str, Sequence[str]] = field(hash=False)
    revision: int
    link: str | None = None
    chunk_size: int = 0
    metadata: Mapping[str, str] = field(default_factory=dict, hash=False)

    @property
    def content_type(self) -> str | None:
        """The value of its header ``Content-Type``, in whatever case that is written; None: it has none."""
        found = (values for name, values in self.headers.items() if name.lower() == "content-type")
        return next((values[0] for values in found if values), None)


@dataclass(frozen=True, slots=True)
class Folder:
    """What an object bucket has right under a prefix, as a directory has files and directories. Hashable.

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
