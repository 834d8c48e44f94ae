"""The module that checks what the others have done."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass, field

from mono_sync import ServiceContainer
from mono_sync.demo._indexer import Indexer
from mono_sync.demo._library import Advance, Library, StoredFile
from mono_sync.demo._words import count_words


@dataclass(slots=True)
class Audit:
    """What was found.

    Attributes:
        objects: objects read again.
        words: words counted again.
        distinct: different words among them.
        keys: keys of the index.
        changed: files that are not what they were when they were stored; their objects are compared with that.
        faults: what is not as it should be; empty means verified.
    """

    objects: int = 0
    words: int = 0
    distinct: int = 0
    keys: int = 0
    changed: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


class Auditor:
    """Compares objects with files, and the index with its own count. Its service ``audit`` is the module itself."""

    name = "auditor"
    dependencies = ("library", "indexer")

    def __init__(self) -> None:
        self._library: Library | None = None
        self._indexer: Indexer | None = None

    def set_dependency_container(self, name: str, container: ServiceContainer) -> None:
        """Take the services of library and indexer."""
        if name == "library":
            self._library = container.get("files")
        elif name == "indexer":
            self._indexer = container.get("index")

    def register_services(self, container: ServiceContainer) -> None:
        """Offer the audit to whoever drives the application."""
        container.register("audit", self)

    def start(self) -> None:
        """Have nothing to do: the work is done when it is asked for."""

    def stop(self) -> None:
        """Have nothing to give back."""

    def verify(self, advance: Advance) -> Audit:
        """Read every object again and compare it with its file; count all words again and compare with the index.

        Args:
            advance: called with the size of each file that has been compared.
        """
        library, indexer = self._library, self._indexer
        assert library is not None, "a dependency has started before"
        assert indexer is not None, "a dependency has started before"
        audit, expected = Audit(), Counter[str]()
        for file in library.files:
            expected.update(count_words(self._compare(file, library.read(file.name), audit)))
            advance(file.size)
        found, audit.keys = indexer.totals()
        audit.words, audit.distinct = expected.total(), len(expected)
        for word in sorted(expected.keys() | found.keys()):
            if expected[word] != found[word]:
                audit.faults.append(f"word {word!r}: the index says {found[word]}, the files {expected[word]}")
        return audit

    def _compare(self, file: StoredFile, stored: bytes | None, audit: Audit) -> bytes:
        """Compare an object with its file, and return the content whose words should be in the index."""
        audit.objects += 1
        if stored is None:
            audit.faults.append(f"object {file.name}: missing")
        elif hashlib.sha256(stored).hexdigest() != file.sha256:
            audit.faults.append(f"object {file.name}: {len(stored)} bytes that are not those stored")
        try:
            content = file.path.read_bytes()
        except OSError:
            content = b""
        if hashlib.sha256(content).hexdigest() == file.sha256:
            return content
        audit.changed.append(file.name)
        return stored or b""
