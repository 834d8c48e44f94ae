"""The bytes of whatever has some, without a copy where they lie one after the other.

Use a view in a ``with``, which lets go of the bytes: an mmap cannot be closed before, and a traceback would keep them.
"""

from __future__ import annotations

import io

from typing_extensions import Buffer


def view_of(data: Buffer) -> memoryview:
    """Return the bytes of what has some to give.

    Raises:
        TypeError: it has none; for a str the message says to encode it.
    """
    try:
        view = memoryview(data)
    except TypeError:
        hint = ": call .encode() first" if isinstance(data, str) else ""
        raise TypeError(f"a bytes-like object is required, not {type(data).__name__}{hint}") from None
    except (ValueError, BufferError):  # it cannot say what they mean, as numpy cannot of times
        view = memoryview(io.BytesIO(data).getvalue())
    return view.cast("B") if view.c_contiguous and view.nbytes else memoryview(view.tobytes())


def room_in(buffer: Buffer) -> memoryview:
    """Return the bytes of what takes some.

    Raises:
        TypeError: it takes none, or they do not lie one after the other.
    """
    view = memoryview(buffer)
    if view.readonly:
        raise TypeError(f"a buffer that can be written to is wanted, not {type(buffer).__name__}")
    if not view.c_contiguous:
        raise TypeError("a buffer whose bytes lie one after the other is wanted")
    return view.cast("B") if view.nbytes else memoryview(bytearray())  # nothing cannot be cast
