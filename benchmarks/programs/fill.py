"""Write so many values of so many bytes into a bucket, each under a key of its own."""

from __future__ import annotations

import sys
from contextlib import closing

from benchmarks.peers.raw_socket import RawSocket

_AHEAD = 64

if __name__ == "__main__":
    url, token, bucket, count, size = sys.argv[1:]
    with closing(RawSocket(url, token, bucket)) as client:
        client.fill((f"key.{number}" for number in range(int(count))), b"v" * int(size), ahead=_AHEAD)
