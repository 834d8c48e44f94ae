"""How much a process grows that watches a bucket and does not read."""

from __future__ import annotations

import os
import re
import select
import subprocess
import sys
import time
from pathlib import Path

from mono_sync import EmbeddedServer

_ROOT = Path(__file__).parent.parent
_BETWEEN_LOOKS = 0.02
_LOOKS_AFTERWARDS = 25


def program(name: str, *arguments: str) -> subprocess.Popen[str]:
    """Start one of benchmarks/programs."""
    command = [sys.executable, "-m", f"benchmarks.programs.{name}", *arguments]
    path = os.pathsep.join([str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path}
    return subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def resident(pid: int) -> int:
    """Return the bytes of memory that a process has."""
    found = re.search(r"^VmRSS:\s+(\d+) kB$", Path(f"/proc/{pid}/status").read_text("utf-8"), re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024


def growth_of_unread_watcher(client: str, server: EmbeddedServer, bucket: str, count: int, size: int) -> int:
    """Return by how many bytes a process grows at most that watches and reads one entry, while another writes ``count``
    values and until half a second later. One of ours then has to read them all.
    """
    where = (server.url, server.token, bucket)
    with program("unread", client, *where) as reader:
        try:
            assert reader.stdout is not None
            assert reader.stdout.readline() == "ready\n"
            before = resident(reader.pid)
            most = most_resident(reader.pid, program("fill", *where, str(count), str(size)))
            read, _ = reader.communicate(f"{count}\n")
            assert reader.returncode == 0
            assert client != "mono_sync" or int(read) == count
        finally:
            reader.kill()
    return most - before


def most_resident(pid: int, writer: subprocess.Popen[str]) -> int:
    """Return the most memory that a process has until some time after the end of another, which must be a good one."""
    most, looks = 0, _LOOKS_AFTERWARDS
    with writer:
        try:
            while looks:
                looks -= writer.poll() is not None
                most = max(most, resident(pid))
                time.sleep(_BETWEEN_LOOKS)
        finally:
            writer.kill()
    assert writer.returncode == 0
    return most


def most_resident_while_reading(server: EmbeddedServer, bucket: str, key: str, size: int) -> int:
    """Return by how many bytes a process grows at most that reads an object through a stream."""
    with program("stream", server.url, server.token, bucket, key) as reader:
        try:
            assert reader.stdin is not None
            assert reader.stdout is not None
            assert reader.stdout.readline() == "ready\n"
            before = most = resident(reader.pid)
            reader.stdin.write("go\n")
            reader.stdin.flush()
            while reader.poll() is None and not select.select([reader.stdout], [], [], _BETWEEN_LOOKS)[0]:
                most = max(most, resident(reader.pid))
            assert int(reader.stdout.readline()) == size
        finally:
            reader.kill()
    return most - before
