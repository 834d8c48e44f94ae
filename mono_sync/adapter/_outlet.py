"""The step of sending that nothing may interrupt: bytes go to the socket, and how many is noted."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import threading
from collections.abc import Iterator, Sequence
from itertools import chain, compress, repeat
from operator import call, ne, not_
from typing import Protocol

_HELD = [True]
"""What has been done when the pen is taken and no more."""


class Command(Protocol):
    """Bytes that are to leave as a whole, and what becomes of them."""

    @property
    def data(self) -> bytes:
        """One complete command of the protocol, or several."""

    def claim(self) -> bool:
        """Note that it is being sent from here on; return whether it is still wanted."""

    def refuse(self) -> bool:
        """Learn that nothing of it was sent, because the socket takes no more or is gone.

        Returns:
            False for a command that has to be sent as soon as the socket takes bytes again.
        """


class Batch:
    """Commands that leave in one system call, and how far they got.

    Attributes:
        data: all of them.
        written: what the only attempt to write them returned: a number of bytes, or None for none; empty before.
    """

    __slots__ = ("_commands", "data", "written")

    def __init__(self, commands: Sequence[Command] = ()) -> None:
        self._commands = commands
        self.data: bytes = commands[0].data if len(commands) == 1 else b"".join([one.data for one in commands])
        self.written: list[int | None] = []

    @property
    def begun(self) -> int:
        """How many bytes were written."""
        return (self.written[0] if self.written else None) or 0

    @property
    def unsettled(self) -> int:
        """How many bytes are neither written nor settled."""
        return len(self.data) - self.begun if self._commands else 0

    def settle(self) -> Iterator[bytes]:
        """Refuse what has not begun to leave, and yield what must still be sent; nothing when called again."""
        commands, self._commands = self._commands, ()
        left = self.begun
        for command in commands:
            begun = min(left, len(command.data))
            left -= begun
            if begun < len(command.data) and (begun or not command.refuse()):
                yield command.data[begun:]


class Outlet:
    """Writes to a socket for any thread, one batch at a time, until the socket does not take one as a whole.

    Signal handlers run in the main thread, between any two steps of Python code, and may raise or write themselves; so
    may a ``__del__`` in any thread. Were one interrupted while he writes, the others would wait for him, and if he did
    not come back nobody would know how much was written. CPython lets handlers in between the steps of Python code
    only. So all of `write` that matters is one call of a function in C, which runs iterators that are made of such.

    Args:
        transport: the transport of the socket; it does not write while this may.
        direct: whether to write at all.

    Attributes:
        left: batches that were not written as a whole, in the order of the attempts. While there is one, nothing is
            written. Whoever has taken care of them removes them.
    """

    def __init__(self, transport: asyncio.WriteTransport, *, direct: bool) -> None:
        self._file = duplicate(transport, "wb") if direct else None
        self.left: list[Batch] = [Batch()]
        # Whoever holds it writes. It can be taken twice, for a write that fails may set off a `__del__` that writes.
        self._pen = threading.RLock()
        self._take_pen, self._give_pen = (self._pen.acquire,), (self._pen.release,)
        self._free = map(not_, repeat(self.left))
        self._emit = len if self._file is None else self._file.write  # not called without a file: it is never free

    @property
    def usable(self) -> bool:
        """Whether there is a socket to write to."""
        return self._file is not None and not self._file.closed

    def write(self, batch: Batch) -> bool:
        """Write a batch; what the socket does not take, or all while something is left, is left.

        An exception is that of a signal handler; nothing is half done then.

        Returns:
            Whether the connection still works; else nothing of the batch was written, and nothing is left.
        """
        done: list[object] = []
        # Of iterators that are there already: to make one might set off a garbage collection while the pen is taken.
        written = chain(iter(batch.written), iter((None,)))
        steps = chain(
            map(call, self._take_pen),
            map(batch.written.append, map(self._emit, compress((batch.data,), self._free))),
            map(self.left.append, compress((batch,), map(ne, written, (len(batch.data),)))),
            map(call, self._give_pen),
        )
        try:
            done.extend(steps)
        except BaseException as error:
            if done != _HELD:  # a handler raised, while this waited for the pen or when all was done
                raise
            self._pen.release()  # nor are handlers let in between a function that fails and this
            if not isinstance(error, OSError):
                raise
            return False
        return True

    def close(self) -> None:
        """Write nothing any more."""
        self.left.append(Batch())
        list(chain(map(call, self._take_pen), map(call, self._give_pen)))  # whoever was writing has ended
        if self._file is not None:
            self._file.close()


def duplicate(transport: asyncio.BaseTransport, mode: str) -> io.FileIO | None:
    """Return a file of our own for the transport's socket: its number stays ours when the transport closes.

    Not a socket: that reports by an exception when it takes nothing, and its `send` makes objects first, so that a
    garbage collection may begin, with any ``__del__``, before it has written.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):
        return io.FileIO(os.dup(transport.get_extra_info("socket").fileno()), mode)
    return None
