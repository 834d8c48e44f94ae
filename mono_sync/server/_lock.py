"""The claim to a store directory: one nats-server at a time."""

from __future__ import annotations

import errno
import fcntl
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

from mono_sync._durations import Deadline
from mono_sync.errors import StoreInUseError

_FILE: Final = "mono_sync.lock"
_PAUSE: Final = 0.02


class StoreLock:
    """An exclusive flock on a file in the store directory; the file holds the process id of its owner.

    nats-server inherits the descriptor, so the lock lasts as long as either of the two lives.
    """

    def __init__(self, store_dir: Path, deadline: Deadline, pause: Callable[[float], None]) -> None:
        """Take the lock.

        Raises:
            StoreInUseError: a process that lives has it, or what a dead one left running did not end in time.
            OSError: the directory cannot be written to.
        """
        self._file = io.FileIO(os.open(store_dir / _FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), "r+")
        try:
            while not self._try_lock():
                owner = self._read_owner()
                if deadline.expired or (owner is not None and _is_alive(owner)):
                    raise StoreInUseError(str(store_dir), owner)
                pause(_PAUSE)  # its owner is dead, and so is its server soon; or has it this moment
            self._write_owner(b"%d\n" % os.getpid())
        except BaseException:
            self._file.close()
            raise

    def fileno(self) -> int:
        """Return the descriptor to be inherited by the server."""
        return self._file.fileno()

    def release(self) -> None:
        """Give the directory free; the server must have ended."""
        self._write_owner(b"")  # nobody may take us for the owner while a child of ours still closes its copy
        self._file.close()

    def forget(self) -> None:
        """Close the copy of a forked child, which does not own the directory."""
        self._file.close()

    def _try_lock(self) -> bool:
        try:
            fcntl.flock(self._file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                return False
            raise
        return True

    def _read_owner(self) -> int | None:
        text = os.pread(self._file.fileno(), 32, 0)
        return int(text) if text.endswith(b"\n") and text.strip().isdigit() else None

    def _write_owner(self, text: bytes) -> None:
        os.ftruncate(self._file.fileno(), 0)
        os.pwrite(self._file.fileno(), text, 0)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
