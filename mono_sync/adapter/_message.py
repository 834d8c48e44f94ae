"""What travels on the wire, as our own types; encoded and decoded in the calling thread, not on the loop."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TypeAlias

from mono_sync.errors import InvalidHeaderError, InvalidSubjectError, MessageTooLargeError

Payload: TypeAlias = bytes | bytearray | memoryview

MAX_CONTROL_LINE = 4096
"""The server's default limit of one protocol line; a longer one makes it drop the connection."""

_CRLF = b"\r\n"
_VERSION = b"NATS/1.0"
_NO_STATUS = _VERSION + _CRLF
_NO_SUBJECT = re.compile(r"[\x00-\x20\x7f]")  # a range far beyond ASCII takes a millisecond to compile
_HEADER_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_NO_HEADER_VALUE = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")


class Message:
    """A message that arrived.

    Attributes:
        subject: where it was sent to.
        data: the payload.
        reply: subject for an answer; empty when none is expected.
        header_block: the headers as they came; `parse_header_block` splits them.
    """

    __slots__ = ("_parsed", "data", "header_block", "reply", "subject")

    def __init__(self, subject: str, data: bytes, reply: str = "", header_block: bytes = b"") -> None:
        self.subject: str = subject
        self.data: bytes = data
        self.reply: str = reply
        self.header_block: bytes = header_block
        self._parsed: tuple[Mapping[str, str], int | None, str] | None = None

    def _parse(self) -> tuple[Mapping[str, str], int | None, str]:
        if self._parsed is None:
            self._parsed = parse_header_block(self.header_block)
        return self._parsed

    @property
    def headers(self) -> Mapping[str, str]:
        """The headers by name; the first value where a name occurs more than once."""
        return self._parse()[0]

    @property
    def status(self) -> int | None:
        """Number of a status message of the server (503: no responders), else None."""
        if not self.header_block or self.header_block.startswith(_NO_STATUS):
            return None
        return self._parse()[1]

    @property
    def description(self) -> str:
        """Text of a status message, else empty."""
        return self._parse()[2]

    def __repr__(self) -> str:
        return f"<Message on {self.subject!r}, {len(self.data)} bytes>"


def parse_header_block(raw: bytes) -> tuple[dict[str, str], int | None, str]:
    """Split a header block (NATS ADR-4).

    Our own, because nats-py's goes through fast-mail-parser wherever that happens to be installed, and then breaks.
    """
    if not raw:
        return {}, None, ""
    first, *lines = raw.split(_CRLF)
    status, _, description = first[len(_VERSION) :].strip().decode("utf-8", "replace").partition(" ")
    headers: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(b":")
        if colon:
            headers.setdefault(name.strip().decode("ascii", "replace"), value.strip().decode("utf-8", "replace"))
    return headers, int(status) if status.isdecimal() else None, description


def encode_headers(headers: Mapping[str, str]) -> bytes:
    """Build a header block; empty where there are no headers.

    Raises:
        InvalidHeaderError: a name that is no token, or a value with control characters (injection).
        TypeError: they are no mapping, or a name or value is no str.
    """
    if not isinstance(headers, Mapping):
        raise TypeError(f"headers must be a mapping of str to str, not {type(headers).__name__}")
    if not headers:
        return b""
    block = bytearray(_VERSION + _CRLF)
    for name, value in headers.items():
        if not isinstance(name, str) or not isinstance(value, str):
            raise TypeError(f"headers map str to str, not {type(name).__name__} to {type(value).__name__}")
        check_header(name, value)
        block += f"{name}: {value}\r\n".encode()
    return bytes(block + _CRLF)


def encode_known_headers(headers: Mapping[str, str]) -> bytes:
    """Build a header block of names and values that are known to be right."""
    lines = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
    return f"NATS/1.0\r\n{lines}\r\n".encode()


def add_known_header(block: bytes, name: str, value: str) -> bytes:
    """Return a header block, which may have no headers, with one more that is known to be right."""
    return f"NATS/1.0\r\n{name}: {value}\r\n".encode() + block[len(_NO_STATUS) :]


def check_header(name: str, value: str) -> None:
    """Do nothing if NATS can carry the header.

    Raises:
        InvalidHeaderError: a name that is no token, or a value with control characters (injection).
    """
    if not _HEADER_NAME.fullmatch(name):
        raise InvalidHeaderError(name, "a name is letters, digits and !#$%&'*+-.^_`|~")
    if _NO_HEADER_VALUE.search(value) or not _can_be_encoded(value):
        raise InvalidHeaderError(name, "a value has no line breaks, other control characters or lone surrogates")


def check_subject(subject: str) -> str:
    """Return ``subject`` if a message can be sent to it.

    Raises:
        InvalidSubjectError: empty, blanks, empty tokens, or wildcards.
        TypeError: it is no str.
    """
    if not isinstance(subject, str):
        raise TypeError(f"a subject must be a str, not {type(subject).__name__}")
    if not subject:
        raise InvalidSubjectError(subject, "it is empty")
    if _NO_SUBJECT.search(subject) or not (subject.isascii() or _is_one_word(subject)):
        raise InvalidSubjectError(subject, "blanks, control characters and lone surrogates are not allowed")
    tokens = subject.split(".")
    if not all(tokens):
        raise InvalidSubjectError(subject, "it must not begin or end with a dot, nor hold two in a row")
    if not {"*", ">"}.isdisjoint(tokens):
        raise InvalidSubjectError(subject, "wildcards are for subscribing only")
    return subject


def _is_one_word(text: str) -> bool:
    return text.split() == [text] and _can_be_encoded(text)


def _can_be_encoded(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # lone surrogates
        return False
    return True


def check_payload(data: Payload) -> bytes:
    """Return ``data`` as bytes; what could still change under our hands is copied.

    Raises:
        TypeError: it is not bytes-like; for a str the message says to encode it.
    """
    if isinstance(data, (bytes, bytearray, memoryview)):
        return bytes(data)
    hint = ": call .encode() first" if isinstance(data, str) else ""
    raise TypeError(f"a payload must be bytes, bytearray or memoryview, not {type(data).__name__}{hint}")


def encode_publish(subject: str, data: bytes, reply: str, header_block: bytes, max_payload: int) -> bytes:
    """Build the PUB or HPUB command of a message.

    Refusing here what the server would answer with a protocol error keeps one bad call from costing everybody the
    connection.

    Raises:
        InvalidSubjectError: subject and reply do not fit one protocol line.
        MessageTooLargeError: payload and headers exceed ``max_payload``.
    """
    size = len(header_block) + len(data)
    if size > max_payload:
        raise MessageTooLargeError(size, max_payload)
    target = f"{subject} {reply}" if reply else subject
    line = f"HPUB {target} {len(header_block)} {size}\r\n" if header_block else f"PUB {target} {size}\r\n"
    command = line.encode()
    if len(command) > MAX_CONTROL_LINE:
        raise InvalidSubjectError(subject, f"it exceeds the server's limit of {MAX_CONTROL_LINE} bytes for one line")
    return b"".join((command, header_block, data, _CRLF))
