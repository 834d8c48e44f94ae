"""From values to bytes and back."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeAlias, TypeVar

from mono_sync.errors import CodecError
from mono_sync.storage._values import Entry, V_co

T = TypeVar("T")
V = TypeVar("V")

View: TypeAlias = Callable[[Entry], Entry[V_co]]
"""How an entry looks to somebody."""


class Codec(Protocol[T]):
    """Turns values into bytes and back. It is used by many threads at once, and whatever it raises names the key."""

    def encode(self, value: T, /) -> bytes:
        """Return the bytes that stand for a value."""

    def decode(self, data: bytes, /) -> T:
        """Return the value that bytes stand for."""


class JSONCodec:
    """JSON in UTF-8, without the numbers that JSON has not (NaN and the infinities)."""

    def encode(self, value: Any, /) -> bytes:
        """Return the text that stands for a value."""
        return json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()

    def decode(self, data: bytes, /) -> Any:
        """Return the value that a text stands for."""
        return json.loads(data)


class TextCodec:
    """Text in UTF-8."""

    def encode(self, value: str, /) -> bytes:
        """Return the bytes of a text."""
        if not isinstance(value, str):
            raise TypeError(f"text must be a str, not {type(value).__name__}")
        return value.encode()

    def decode(self, data: bytes, /) -> str:
        """Return the text."""
        return data.decode()


class BucketCodec(Generic[T]):
    """The codec of one bucket: its errors name bucket and key."""

    def __init__(self, bucket: str, codec: Codec[T]) -> None:
        self._bucket = bucket
        self._codec = codec

    def encode(self, key: str, value: T) -> bytes:
        """Return the bytes of a key's value.

        Raises:
            CodecError: the codec cannot, or returns something else than bytes.
        """
        try:
            data = self._codec.encode(value)
        except Exception as error:
            raise CodecError(self._bucket, key, f"cannot be encoded: {type(error).__name__}") from error
        if not isinstance(data, bytes):
            raise CodecError(self._bucket, key, f"is encoded as {type(data).__name__} instead of bytes")
        return data

    def decode(self, key: str, data: bytes, revision: int | None = None) -> T:
        """Return the value of a key.

        Raises:
            CodecError: the codec cannot.
        """
        try:
            return self._codec.decode(data)
        except Exception as error:
            raise CodecError(
                self._bucket, key, f"cannot be decoded: {type(error).__name__}", revision=revision
            ) from error

    def decode_entry(self, entry: Entry) -> Entry[T]:
        """Return an entry that has a value with this value decoded; errors are those of `decode`."""
        return _with_value(entry, self.decode(entry.key, entry.value, entry.revision))

    def decode_revision(self, entry: Entry) -> Entry[T | None]:
        """Return any entry with its value decoded, None where it removed the key; errors are those of `decode`."""
        return without_value(entry) if entry.removed else self.decode_entry(entry)


def as_it_is(entry: Entry) -> Entry:
    """Return an entry of bytes."""
    return entry


def without_value(entry: Entry) -> Entry[None]:
    """Return an entry with None as its value."""
    return _with_value(entry, None)


def _with_value(entry: Entry, value: V) -> Entry[V]:
    return Entry(entry.bucket, entry.key, value, entry.revision, entry.created, entry.operation, entry.expired)
