"""The end of streams that write objects."""

from __future__ import annotations

from typing import Any, Literal

import pytest

from mono_sync import ObjectBucket, ObjectWriter, StorageError


@pytest.mark.parametrize("mode", ["wb", "w"])
def test_close_that_is_refused_because_another_thread_is_in_the_stream_changes_nothing(
    objects: ObjectBucket, mode: Literal["wb", "w"]
) -> None:
    stream: Any = objects.open("k", mode)
    binary: ObjectWriter = stream if mode == "wb" else stream.buffer
    stream.write("whole" if mode == "w" else b"whole")
    with binary._turn, pytest.raises(StorageError, match="in use: one thread at a time"):
        stream.close()
    assert not stream.closed
    stream.close()
    assert objects.get("k") == b"whole"
