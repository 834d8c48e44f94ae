"""A tiny process that ends the server when our process dies, however it dies."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Final

# The end of its input means that we are dead: nothing else can tell after a SIGKILL, on every POSIX system. TERM first,
# KILL after two seconds. A normal end is the line "done". In many containers nobody reaps an orphan: so a zombie, where
# /proc shows it, is as good as gone.
_WATCHDOG: Final = """
trap '' HUP INT TERM
pid=
while read -r word value; do
    case $word in
    server) pid=$value ;;
    gone) pid= ;;
    done) exit 0 ;;
    esac
done
n=0
while [ -n "$pid" ] && [ "$n" -lt 40 ] && kill -0 "$pid" 2>/dev/null; do
    case $(cat "/proc/$pid/stat" 2>/dev/null) in *") Z "*) break ;; esac
    [ "$n" -ne 0 ] || kill -TERM "$pid"
    [ "$n" -ne 20 ] || kill -KILL "$pid"
    sleep 0.1
    n=$((n + 1))
done
rm -rf -- "${1:?}"
"""

# Announces its process id to the watchdog and then becomes the server: whenever we die, the watchdog knows the server.
# Its output is the watchdog's pipe, which the server must not keep.
_LAUNCHER: Final = 'echo "server $$" && exec "$@" >&2'

_ENVIRONMENT: Final = {"PATH": os.defpath}
_END_WITHIN: Final = 2.0


class Watchdog:
    """The watchdog of one embedded server; made, used and released by one thread."""

    def __init__(self, run_dir: Path) -> None:
        with _no_fork:  # or a child forked just here keeps the pipe open, and the watchdog never learns of our death
            reader, writer = os.pipe()
            self._pipe = io.FileIO(writer, "w")
            _open_pipes.add(self._pipe)
        try:
            self._process = subprocess.Popen(
                ["/bin/sh", "-c", _WATCHDOG, "mono_sync-watchdog", str(run_dir)],
                stdin=reader,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd="/",
                env=_ENVIRONMENT,
                start_new_session=True,
            )
        except BaseException:
            self._close()
            raise
        finally:
            os.close(reader)

    @property
    def alive(self) -> bool:
        """Whether it does its work: nothing but a user can have killed it."""
        return self._process.poll() is None

    def launch(self, command: Sequence[str], log: IO[bytes], inherited: Sequence[int]) -> subprocess.Popen[bytes]:
        """Start the server under guard, in a session of its own: Ctrl-C in a terminal must not reach it."""
        return subprocess.Popen(
            ["/bin/sh", "-c", _LAUNCHER, "mono_sync-launcher", *command],
            stdin=subprocess.DEVNULL,
            stdout=self._pipe,
            stderr=log,
            cwd="/",
            pass_fds=inherited,
            start_new_session=True,
        )

    def server_is_gone(self) -> None:
        """Tell that the server has ended: its process id may soon be another's."""
        self._tell(b"gone\n")

    def release(self) -> None:
        """End the watchdog without harm to anybody; the server has ended."""
        self._tell(b"done\n")
        self._close()
        try:
            self._process.wait(_END_WITHIN)
        except subprocess.TimeoutExpired:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()

    def _close(self) -> None:
        self._pipe.close()
        _open_pipes.discard(self._pipe)

    def _tell(self, line: bytes) -> None:
        with contextlib.suppress(BrokenPipeError):  # killed this moment
            if self.alive:
                self._pipe.write(line)


_no_fork: Final = threading.Lock()
_open_pipes: Final[set[io.FileIO]] = set()


def before_fork() -> None:
    """Wait until no pipe is half made."""
    _no_fork.acquire()


def after_fork_in_parent() -> None:
    """Allow pipes again."""
    _no_fork.release()


def after_fork_in_child() -> None:
    """Close the child's copies of the pipes."""
    _no_fork.release()
    for pipe in tuple(_open_pipes):
        pipe.close()
    _open_pipes.clear()
