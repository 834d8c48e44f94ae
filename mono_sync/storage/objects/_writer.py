"""Objects as files that are written."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, Final, TypeVarTuple, cast

from typing_extensions import Buffer

from mono_sync._durations import Deadline, Timeout
from mono_sync.errors import ForkedError, StorageError
from mono_sync.storage.objects._info import ObjectInfo
from mono_sync.storage.objects._lone_stream import REFUSALS, LoneStream, LoneText, alone, in_turn
from mono_sync.storage.objects._upload import Upload
from mono_sync.storage.objects._views import view_of

Given = TypeVarTuple("Given")


class ObjectWriter(LoneStream):
    """A binary stream whose content becomes an object when it is closed. One thread at a time.

    `close`, also by a ``with`` that ends well, makes the object visible as a whole. An exception in the ``with``,
    `abort`, or a call of the stream itself that fails or is interrupted leaves what was there before, and removes what
    was written; see `close` for when that is not known. A call that is refused, for its argument or because another
    thread, or this one, is in the stream, takes nothing and does not count; nor does one that is interrupted before its
    first step. A stream that is never closed stores nothing.

    ``timeout`` is for each call that waits, not for the whole life of the stream. Memory stays bounded.

    Attributes:
        name: of the object.
        mode: ``"wb"`` or ``"xb"``.
    """

    def __init__(
        self, upload: Upload, bucket: str, name: str, chunk_size: int, *, exclusive: bool, timeout: Timeout
    ) -> None:
        super().__init__()
        self.name: str = name
        self.mode: str = "xb" if exclusive else "wb"
        self._bucket = bucket
        self._upload = upload
        self._size = chunk_size
        self._timeout = timeout
        self._buffer = bytearray()
        self._position = 0
        self._closed = False
        self._abandoned = False
        self._info: ObjectInfo | None = None
        self._seems_seekable = False

    # --- what a stream is

    def writable(self) -> bool:
        """Return True."""
        self._check_open()
        return True

    def seekable(self) -> bool:
        """Return False."""
        return self._seems_seekable

    def write(self, data: Buffer, /) -> int:
        """Take all bytes of a bytes-like object, and return how many.

        They are sent as soon as they fill a chunk. Raises what `close` raises; the stream is of no use then. What is
        not bytes-like is refused, a str for example, and the stream stays of use.
        """
        refusals: tuple[type[BaseException], ...] = REFUSALS
        try:
            self._check_usable()
            if isinstance(data, str):
                raise TypeError("a bytes-like object is required, not 'str': call .encode(), or open with mode 'w'")
            with self._turn, view_of(data) as view:
                refusals = ()  # that of a call out of a signal handler, which comes into this one, would look like one
                self._work(self._take, view)
                return len(view)
        except refusals:
            raise
        except BaseException as error:
            if self._failure is None:
                self._failure = error
            raise

    def writelines(self, lines: Iterable[Buffer], /) -> None:
        """Write each of some bytes-like objects; nothing is put between them.

        Where it ends in the middle, by an error of ``lines`` for example, the stream is of no use.
        """
        began = False
        try:
            self._check_usable()
            for line in lines:
                self.write(line)
                began = True
        except BaseException as error:
            if (began or not isinstance(error, Exception)) and self._failure is None:
                self._failure = error
            raise

    def flush(self) -> None:
        """Wait until the server has acknowledged what can be sent.

        The object is seen by nobody before `close`, and the last chunk waits here for more to come.
        """
        try:
            self._flush()
        except REFUSALS:
            raise
        except BaseException as error:
            if self._failure is None:
                self._failure = error
            raise

    @alone
    def _flush(self) -> None:
        self._work(self._upload.flush)

    def tell(self) -> int:
        """Return how many bytes have been written."""
        self._check_open()
        return self._position

    @property
    def closed(self) -> bool:
        """Whether the stream has ended, by `close` or `abort`."""
        return self._closed

    @property
    def info(self) -> ObjectInfo | None:
        """What the bucket knows of the object; None until it is stored."""
        return self._info

    # --- the end

    def close(self) -> None:
        """Make what was written the object, and return when it can be seen. Idempotent.

        As with a file, the stream is closed also where this fails; only a call that is refused, in another process or
        while another thread is in the stream, leaves it as it was.

        Raises:
            StorageError: a call before has failed, and nothing was stored; or a call is under way in the stream.
            ObjectExistsError: with mode ``"xb"``: there is an object meanwhile.
            RevisionMismatchError: it is not at the revision ``if_match``.
            BucketFullError: the bucket's limit is reached.
            BucketSealedError: the bucket has been sealed.
            UploadLostError: the stream stood still for so long that its chunks were removed, or took longer than one
                with a ``ttl`` may; see `ObjectBucket.open`.
            OperationTimeoutError: it did not get that far within the ``timeout``.
            OutcomeUnknownError: an answer to the last step was lost, and nobody could tell what became of it: it may be
                stored.
            ConnectionClosedError: the connection was closed; where that was in the last step, it may be stored.
            ForkedError: the stream belongs to the parent process.
        """
        if self._abandoned:
            self._closed = True
        if self._closed:
            return
        self._check_usable()
        try:
            self._store()
        except BaseException as error:
            self._abort(error)  # where an interrupt has come before the end did
            raise

    def abort(self) -> None:
        """End the stream without storing anything; what was written is removed, what was there before stays.

        Idempotent, and nothing after `close`.
        """
        self._abort(None)

    def _abort(self, reason: BaseException | None) -> None:
        if not self._closed:
            self._end(reason)

    def _abort_for(self, error: BaseException) -> None:
        """Abort for what has ended a ``with``, in whose place nobody is to get why that was refused."""
        try:
            self._abort(error)
        except (ForkedError, StorageError) as refusal:
            error.add_note(f"and the stream was not aborted: {refusal}")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self.close()
        except BaseException as failure:
            self._abort(failure)  # where an interrupt has come before `close` did anything
            raise
        if error is not None:
            self._abort_for(error)

    def __del__(self, warn: Any = warnings.warn) -> None:
        """Store nothing: whoever forgets a file has not said that it is complete."""
        forgotten = not (getattr(self, "_closed", True) or self._abandoned)
        if forgotten and self._failure is None and self._pid == os.getpid():
            warn(f"unclosed {self!r}: it is not stored", ResourceWarning, source=self)

    def _dealloc_warn(self, owner: object, warn: Any = warnings.warn) -> None:
        """Warn in the name of a stream around this one that is collected, and then flushes and closes this one."""
        if self._failure is None:
            warn(f"unclosed {owner!r}: it is not stored", ResourceWarning)
        self._abandoned = True

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"at {self._position}"
        return f"<{type(self).__name__} {self.name!r} of bucket {self._bucket!r}, {state}>"

    # --- steps

    def _take(self, view: memoryview, deadline: Deadline) -> None:
        buffer, size, taken = self._buffer, self._size, 0
        self._position += len(view)
        if buffer or len(view) < size:
            taken = min(size - len(buffer), len(view))
            buffer += view[:taken]
            if len(buffer) < size:
                return
            self._upload.add(bytes(buffer), deadline)
            buffer.clear()
        while taken + size <= len(view):
            self._upload.add(bytes(view[taken : taken + size]), deadline)
            taken += size
        buffer += view[taken:]

    def _deadline(self) -> Deadline:
        return Deadline.of(self._timeout, None)

    def _store(self) -> None:
        """Store all as the object, unless something of it is lost."""
        failure = self._failure
        if failure is not None:
            self._end(failure)
            raise StorageError(f"object {self.name!r} was not stored, for {self._before}") from failure
        self._finish()

    @alone
    def _finish(self) -> None:
        self._work(self._make_object)

    def _make_object(self, deadline: Deadline) -> None:
        try:
            if self._buffer:
                self._upload.add(bytes(self._buffer), deadline)
                self._buffer.clear()
            self._info = self._upload.finish(deadline)
        finally:
            self._closed = True

    def _work(self, step: Callable[[*Given, Deadline], None], *given: *Given) -> None:
        """Let one call, which has the turn, work on the stream, which is of no use once that has failed.

        Nothing here is a generator: one that an interrupt keeps from its ``with`` ends some time later.
        """
        if self._abandoned:
            return
        self._check_open()
        deadline = self._deadline()
        try:
            step(*given, deadline)
        except BaseException as error:
            self._failure = error
            self._buffer.clear()
            self._upload.abort(error, deadline)
            raise

    @alone
    def _end(self, reason: BaseException | None) -> None:
        """End the stream, and remove what was written."""
        self._closed = True
        self._buffer.clear()
        self._upload.abort(reason, self._deadline())

    def _check_open(self) -> None:
        if self._closed:
            raise ValueError(f"I/O operation on {self!r}")
        if self._failure is not None:
            raise ValueError(f"the stream of object {self.name!r} is of no use, for {self._before}")

    @property
    def _before(self) -> str:
        """That a call has failed before; the error may name the stream by itself, and an interrupt says nothing."""
        return f"a call before failed: {str(self._failure) or type(self._failure).__name__}"


_SPARED: Final = (TypeError, UnicodeError, LookupError)  # what was taken before is still here


class TextObjectWriter(LoneText):
    """A text stream whose content becomes an object when it is closed: an `ObjectWriter` with an encoding.

    An exception in its ``with``, and `abort`, leave what was there before. So does a call that fails on the way to the
    binary stream, also where another thread is in it: `io.TextIOWrapper` has forgotten by then what it was to pass on.
    A call out of a ``__del__`` or a signal handler that comes into one of its thread is refused, and loses nothing; one
    between two lines of `writelines`, also by what makes them, is taken there.

    Attributes:
        mode: as it was opened, ``"w"`` for example.
    """

    def __init__(
        self, binary: ObjectWriter, mode: str, *, encoding: str | None, errors: str | None, newline: str | None
    ) -> None:
        # CPython sees to marks of the byte order, and to the state of encoders, where it finds now that it can seek.
        binary._seems_seekable = True  # noqa: SLF001  # the other half of this stream
        super().__init__(binary, mode, encoding=encoding, errors=errors, newline=newline)
        binary._seems_seekable = False  # noqa: SLF001

    @property
    def info(self) -> ObjectInfo | None:
        """What the bucket knows of the object; None until it is stored."""
        return self._binary.info

    @in_turn(_SPARED)
    def write(self, text: str, /) -> int:
        """Take a text, and return its length. Raises what `ObjectWriter.write` raises.

        What is no str, or cannot be encoded, is refused, and the stream stays of use.
        """
        return super().write(text)

    @in_turn(Exception, admits=("write", "writelines", "flush", "tell"))
    def writelines(self, lines: Iterable[str], /) -> None:  # type: ignore[override]  # as typeshed has it of files
        """Write each of some texts, as `ObjectWriter.writelines` does; nothing is put between them."""
        began = False
        try:
            self._binary._check_usable()  # noqa: SLF001  # the other half of this stream
            for line in lines:
                self.write(line)
                began = True
        except Exception as error:
            half = self._half
            if began and half._failure is None:  # noqa: SLF001
                half._failure = error  # noqa: SLF001
            raise

    @in_turn((TypeError, ValueError, LookupError), admits=("flush",))
    def reconfigure(self, /, **options: Any) -> None:
        """Change encoding, errors or newline of what follows, as `io.TextIOWrapper.reconfigure` does.

        A mark of the byte order comes at the beginning only, whatever the encoding is changed to later.
        """
        super().reconfigure(**options)

    @in_turn(TypeError)
    def flush(self) -> None:
        """Wait until the server has acknowledged what can be sent, as `ObjectWriter.flush` does."""
        super().flush()

    @in_turn(TypeError)
    def tell(self) -> int:
        """Return how many bytes have been written, after a `flush`."""
        super().flush()
        return self._binary.tell()

    def close(self) -> None:
        """Make what was written the object, as `ObjectWriter.close` does. Idempotent.

        `io.TextIOWrapper.close` would close the binary stream also where an interrupt kept it from passing on the rest.
        """
        if not self.closed:
            self._close()

    @in_turn()
    def _close(self) -> None:
        binary = self._binary
        binary._check_usable()  # noqa: SLF001  # the other half of this stream
        try:
            if binary._failure is None:  # noqa: SLF001  # else nothing is stored in any case
                super().flush()
            binary.close()
        except BaseException as error:
            binary._abort(error)  # noqa: SLF001
            raise

    def abort(self) -> None:
        """End the stream without storing anything. Idempotent, and nothing after `close`."""
        self._binary.abort()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self.close()
        except BaseException as failure:
            if self.buffer is not None:  # else it is detached, which `close` has said
                self._binary._abort(failure)  # noqa: SLF001  # the other half of this stream
            raise
        if error is not None and self.buffer is not None:
            self._binary._abort_for(error)  # noqa: SLF001

    def __del__(self) -> None:
        """Do not close it, as `io.TextIOWrapper` would: the binary stream says that it is not stored."""

    @property
    def _binary(self) -> ObjectWriter:
        return cast(ObjectWriter, super()._binary)
