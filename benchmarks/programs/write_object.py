"""Store an object of so many zero bytes, and print by how many bytes the process has grown at most meanwhile."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import mono_sync


class Zeros:
    """A file of zero bytes, which take no memory."""

    def __init__(self, size: int) -> None:
        self._left = size
        self._zeros = bytes(1 << 20)

    def read(self, size: int, /) -> bytes:
        size = min(size, self._left)
        self._left -= size
        return self._zeros[:size]


def most() -> int:
    """Return the most bytes of memory that this process has had."""
    found = re.search(r"^VmHWM:\s+(\d+) kB$", Path(f"/proc/{os.getpid()}/status").read_text("utf-8"), re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024


if __name__ == "__main__":
    url, token, bucket, size = sys.argv[1:]
    with mono_sync.connect(url, token=token) as connection:
        objects = connection.objects(bucket)
        before = most()
        objects.put_reader("k", Zeros(int(size)), timeout=None)
        print(most() - before)
