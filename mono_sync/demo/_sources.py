"""The files that the demo works on."""

from __future__ import annotations

import os
import stat
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

MAX_FILE_SIZE = 64 * 1024 * 1024
"""Larger files are left out: each is held in memory while it is stored."""

_NO_SOURCES = frozenset({"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"})


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One file.

    Attributes:
        name: its path within the directory, with slashes; the name of the object that it becomes.
        path: where it is.
        size: bytes when it was found.
    """

    name: str
    path: Path
    size: int


@dataclass(slots=True)
class Sources:
    """The files of a directory, and what was left out.

    Attributes:
        directory: the directory.
        files: the files, sorted by name.
        skipped: reason by path for what could not be used.
    """

    directory: Path
    files: list[SourceFile] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)


def standard_library() -> Sources:
    """Find the Python sources of the running interpreter's standard library, its tests left out.

    Raises:
        OSError: the directory cannot be read.
    """
    return _scan(Path(sysconfig.get_path("stdlib")), ".py", _NO_SOURCES)


def directory(path: Path) -> Sources:
    """Find every regular file below a directory. Linked files count, linked directories are not entered.

    Raises:
        OSError: the directory cannot be read.
    """
    return _scan(path, "", frozenset())


def _scan(root: Path, suffix: str, without: frozenset[str]) -> Sources:
    root = root.resolve(strict=True)
    sources = Sources(root)
    os.scandir(root).close()  # a root that cannot be read is an error, a folder below it is skipped

    def unreadable(error: OSError) -> None:
        sources.skipped[str(error.filename)] = error.strerror or str(error)

    for folder, folders, names in os.walk(root, onerror=unreadable):
        folders[:] = sorted(set(folders) - without)
        for name in names:
            if name.endswith(suffix):
                _add(sources, Path(folder, name))
    sources.files.sort(key=lambda file: file.name)
    return sources


def _add(sources: Sources, path: Path) -> None:
    name = path.relative_to(sources.directory).as_posix()
    try:
        name.encode()
        status = path.stat()
    except UnicodeEncodeError:
        sources.skipped[os.fsencode(name).decode("utf-8", "backslashreplace")] = "its name is no UTF-8"
        return
    except OSError as error:  # a link that leads nowhere or in a circle, a file that is gone again
        sources.skipped[name] = error.strerror or str(error)
        return
    if not stat.S_ISREG(status.st_mode):
        sources.skipped[name] = "not a regular file"
    elif status.st_size > MAX_FILE_SIZE:
        sources.skipped[name] = f"larger than {MAX_FILE_SIZE >> 20} MiB"
    else:
        sources.files.append(SourceFile(name, path, status.st_size))


def by_size(files: list[SourceFile]) -> Iterator[SourceFile]:
    """Yield the large files first, so that threads that share them end at about the same time."""
    yield from sorted(files, key=lambda file: -file.size)
