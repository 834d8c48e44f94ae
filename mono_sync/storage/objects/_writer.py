"""Objects as files that are written."""

from __future__ import annotations

import codecs
import io
import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Final

from typing_extensions import Buffer

from mono_sync._durations import Deadline, Timeout
from mono_sync.errors import ForkedError, StorageError
from mono_sync.storage.objects._info import ObjectInfo
from mono_sync.storage.objects._upload import Upload


class ObjectWriter(io.BufferedIOBase):
    """A binary stream whose content becomes an object when it is closed. One thread at a time.

    `close`, also by a ``with`` that ends well, makes the object visible as a whole. An exception in the ``with``,
    `abort`, or an exception in any call of the stream itself leaves what was there before, and removes what was
    written. A stream that is never closed stores nothing.

    ``timeout`` is for each call that waits, not for the whole life of the stream. Memory stays bounded.

    Attributes:
        name: of the object.
        mode: ``"wb"`` or ``"xb"``.
    """

    def __init__(self, upload: Upload, name: str, chunk_size: int, *, exclusive: bool, timeout: Timeout) -> None:
        self.name: str = name
        self.mode: str = "xb" if exclusive else "wb"
        self._upload = upload
        self._size = chunk_size
        self._timeout = timeout
        self._buffer = bytearray()
        self._position = 0
        self._closed = False
        self._failure: BaseException | None = None
        self._info: ObjectInfo | None = None
        self._turn = threading.Lock()
        self._pid = os.getpid()

    # --- what a stream is

    def writable(self) -> bool:
        """Return True."""
        self._check_open()
        return True

    def write(self, data: Buffer, /) -> int:
        """Take all bytes of a bytes-like object, and return how many.

        They are sent as soon as they fill a chunk. Raises what `close` raises; the stream is of no use then.
        """
        if isinstance(data, str):
            raise TypeError("a bytes-like object is required, not 'str': call .encode(), or open with mode 'w'")
        view = memoryview(data)
        view = view.cast("B") if view.c_contiguous else memoryview(view.tobytes())
        with self._working() as deadline:
            self._take(view, deadline)
        self._position += len(view)
        return len(view)

    def flush(self) -> None:
        """Wait until the server has acknowledged what can be sent.

        The object is seen by nobody before `close`, and the last chunk waits here for more to come.
        """
        with self._working() as deadline:
            self._upload.flush(deadline)

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

        Raises:
            StorageError: a call before has failed; nothing was stored.
            ObjectExistsError: with mode ``"xb"``: there is an object meanwhile.
            RevisionMismatchError: it is not at the revision ``if_match``.
            BucketFullError: the bucket's limit is reached.
            UploadLostError: the stream stood still for so long that its chunks were removed.
            OperationTimeoutError: it did not get that far within the ``timeout``.
            ForkedError: the stream belongs to the parent process.
        """
        if self._closed:
            return
        with self._one_at_a_time():
            failure = self._failure
            if failure is not None:
                self._closed = True
                self._upload.abort(failure, self._deadline())
        if failure is not None:
            raise StorageError(f"object {self.name!r} was not stored, for a call before failed: {failure}") from failure
        with self._working() as deadline:
            if self._buffer:
                self._upload.add(bytes(self._buffer), deadline)
                self._buffer.clear()
            self._info = self._upload.finish(deadline)
            self._closed = True

    def abort(self) -> None:
        """End the stream without storing anything; what was written is removed, what was there before stays.

        Idempotent, and nothing after `close`.
        """
        self._abort(None)

    def _abort(self, reason: BaseException | None) -> None:
        if self._closed:
            return
        with self._one_at_a_time():
            self._closed = True
            self._buffer.clear()
            self._upload.abort(reason, self._deadline())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        else:
            self._abort(error)

    def __del__(self, warn: Any = warnings.warn) -> None:
        """Store nothing: whoever forgets a file has not said that it is complete."""
        if not getattr(self, "_closed", True) and self._failure is None and self._pid == os.getpid():
            warn(f"unclosed {self!r}: it is not stored", ResourceWarning, source=self)

    def __repr__(self) -> str:
        return f"<ObjectWriter {self.name!r} {self.mode}>"

    # --- steps

    def _spoil(self, error: BaseException) -> None:
        """Let nothing be stored, for bytes that belong to it are lost; whatever another thread does at the moment."""
        if self._failure is None and not self._closed:
            self._failure = error

    def _take(self, view: memoryview, deadline: Deadline) -> None:
        buffer, size = self._buffer, self._size
        if buffer or len(view) < size:
            room = size - len(buffer)
            buffer += view[:room]
            view = view[room:]
            if len(buffer) < size:
                return
            self._upload.add(bytes(buffer), deadline)
            buffer.clear()
        whole = len(view) - len(view) % size
        for start in range(0, whole, size):
            self._upload.add(bytes(view[start : start + size]), deadline)
        buffer += view[whole:]

    def _deadline(self) -> Deadline:
        return Deadline.of(self._timeout, None)

    @contextmanager
    def _working(self) -> Iterator[Deadline]:
        """Let one call work on the stream, which is of no use once it has failed."""
        with self._one_at_a_time():
            self._check_open()
            deadline = self._deadline()
            try:
                yield deadline
            except BaseException as error:
                self._failure = error
                self._buffer.clear()
                self._upload.abort(error, deadline)
                raise

    @contextmanager
    def _one_at_a_time(self) -> Iterator[None]:
        if os.getpid() != self._pid:
            raise ForkedError(f"{self!r} belongs to the parent process; open the object anew")
        if not self._turn.acquire(blocking=False):
            raise StorageError(f"{self!r} is in use: a stream is for one thread at a time")
        try:
            yield
        finally:
            self._turn.release()

    def _check_open(self) -> None:
        if self._closed or self._failure is not None:
            raise ValueError(f"{self!r} is closed" if self._closed else f"{self!r} is of no use: {self._failure}")


_WITH_MARK: Final = "utf-8-sig"


def _name_of(encoding: str) -> str:
    """Return how Python calls an encoding; empty where it knows none such."""
    try:
        return codecs.lookup(encoding).name
    except LookupError:
        return ""


class TextObjectWriter(io.TextIOWrapper):
    """A text stream whose content becomes an object when it is closed: an `ObjectWriter` with an encoding.

    An exception in its ``with``, and `abort`, leave what was there before. So does a call that fails on the way to the
    binary stream, also where another thread is in it: `io.TextIOWrapper` has forgotten by then what it was to pass on.

    Attributes:
        mode: as it was opened, ``"w"`` for example.
    """

    mode: str

    def __init__(
        self, binary: ObjectWriter, mode: str, *, encoding: str | None, errors: str | None, newline: str | None
    ) -> None:
        super().__init__(binary, encoding=encoding or "utf-8", errors=errors, newline=newline)
        self.mode = mode
        self._has_begun = False

    @property
    def info(self) -> ObjectInfo | None:
        """What the bucket knows of the object; None until it is stored."""
        return self._binary.info

    def write(self, text: str, /) -> int:
        """Take a text, and return its length. Raises what `ObjectWriter.write` raises."""
        try:
            if not self._has_begun and isinstance(text, str):
                self._begin(text)
            return super().write(text)
        except (TypeError, ValueError):  # it cannot be taken, and what was taken before is still here
            raise
        except BaseException as error:
            self._binary._spoil(error)  # noqa: SLF001  # the other half of this stream
            raise

    def _begin(self, text: str) -> None:
        """Write the mark of the byte order that begins a text, which CPython leaves out where it cannot seek."""
        name = _name_of(self.encoding)
        if name in ("utf-16", "utf-32"):
            self._binary.write("".encode(name))
        self._has_begun = bool(text) or name in ("utf-16", "utf-32", _WITH_MARK)

    def reconfigure(self, *, encoding: str | None = None, errors: str | None = None, **options: Any) -> None:
        """Change encoding, errors or newline of what follows, as `io.TextIOWrapper.reconfigure` does.

        A mark of the byte order comes at the beginning only, whatever the encoding is changed to later.
        """
        if self._has_begun and _name_of(encoding or self.encoding) == _WITH_MARK:  # any change would write it again
            errors = self.errors if encoding is None and errors is None else errors
            encoding = "utf-8"
        super().reconfigure(encoding=encoding, errors=errors, **options)

    def flush(self) -> None:
        """Wait until the server has acknowledged what can be sent, as `ObjectWriter.flush` does."""
        try:
            super().flush()
        except BaseException as error:
            if not self.closed:
                self._binary._spoil(error)  # noqa: SLF001  # the other half of this stream
            raise

    def abort(self) -> None:
        """End the stream without storing anything. Idempotent, and nothing after `close`."""
        self._binary.abort()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        else:
            self._binary.__exit__(kind, error, traceback)

    def __del__(self) -> None:
        """Do not close it, as `io.TextIOWrapper` would: the binary stream says that it is not stored."""

    @property
    def _binary(self) -> ObjectWriter:
        binary = self.buffer
        assert isinstance(binary, ObjectWriter)
        return binary
