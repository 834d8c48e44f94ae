"""What an open connection owns in one process."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, TypeVar, TypeVarTuple

from mono_sync._durations import Deadline
from mono_sync.adapter import ConnectionConfig, Link, LinkState, Message, NotSentError, Request
from mono_sync.connection._state import ConnectionState, StateBoard
from mono_sync.errors import ClosedError, ConnectionClosedError, OperationTimeoutError
from mono_sync.loop import LoopThread, new_event_loop

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

_STATES = {
    LinkState.CONNECTED: ConnectionState.CONNECTED,
    LinkState.RECONNECTING: ConnectionState.RECONNECTING,
    LinkState.CLOSED: ConnectionState.CLOSED,
}


class Session:
    """What an open connection owns in one process: the loop thread, and the link that lives on it."""

    __slots__ = ("link", "loop")

    def __init__(self, config: ConnectionConfig, board: StateBoard) -> None:
        self.loop: LoopThread = LoopThread(
            f"mono_sync-loop-{config.name}", loop_factory=partial(new_event_loop, uvloop=config.uvloop)
        )
        told = weakref.ref(board)  # the loop would keep the board, and its listeners the connection, from collection

        def tell(state: LinkState) -> None:
            if (board := told()) is not None:
                board.set(_STATES[state])

        self.link: Link = Link(config, tell)

    def run(self, fn: Callable[[*Ts], Coroutine[Any, Any, T]], /, *args: *Ts, deadline: Deadline, operation: str) -> T:
        """Run a coroutine of the link."""
        try:
            return self.loop.run(fn, *args, deadline=deadline, operation=operation)
        except ConnectionClosedError:
            raise
        except ClosedError as error:  # the loop was stopped first
            raise ConnectionClosedError("the connection is closed") from error

    def publish(
        self, command: bytes, deadline: Deadline, operation: str, refused: Callable[[], bool] | None = None
    ) -> None:
        """Hand a command to the socket; ``refused`` is asked about each connection, see `Link.transmit`."""
        try:
            self.loop.admit(deadline, operation)
            if not self.link.transmit(command, refused):  # no connection, or a full socket: the loop waits for it
                self.run(self.link.publish, command, refused, deadline=deadline, operation=operation)
        except ConnectionClosedError:
            raise
        except ClosedError as error:  # the loop was stopped first
            raise ConnectionClosedError("the connection is closed") from error

    def request(self, request: Request, deadline: Deadline, operation: str) -> Message:
        """Send a request and return the message on its reply subject; ``request.sent`` tells how far it got."""
        link = self.link
        try:
            try:
                answer: Message = self.loop.exchange(
                    link.exchange, request, deadline, deadline=deadline, operation=operation
                )
            except NotSentError:  # as for `publish`
                answer = self.run(link.request, request, deadline=deadline, operation=operation)
        except ConnectionClosedError:
            raise
        except OperationTimeoutError as error:
            error.sent = request.sent
            raise
        except ClosedError as error:  # the loop was stopped first
            raise ConnectionClosedError("the connection is closed") from error
        else:
            return answer
        finally:
            link.forget(request)
