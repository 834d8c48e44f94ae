"""Read an object through a stream, in portions of 64 KiB, when a line on standard input says so."""

from __future__ import annotations

import sys

import mono_sync

if __name__ == "__main__":
    url, token, bucket, key = sys.argv[1:]
    with mono_sync.connect(url, token=token) as connection:
        objects = connection.objects(bucket)
        with objects.get_reader(key, timeout=60) as reader:
            reader.read(1)
            print("ready", flush=True)
            sys.stdin.readline()
            count = 1
            while portion := reader.read(1 << 16):
                count += len(portion)
            print(count)
