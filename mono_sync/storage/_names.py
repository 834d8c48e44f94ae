"""What NATS allows as names of buckets, keys and patterns (NATS ADR-6, ADR-8, ADR-20)."""

from __future__ import annotations

import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Collection
from contextlib import suppress

from mono_sync.errors import ConfigurationError, InvalidKeyError

_MAX_BUCKET = 251  # 255 for the stream, with a prefix of up to four
_BUCKET = re.compile(r"[-_a-zA-Z0-9]+")
_KEY = re.compile(r"[-/_=a-zA-Z0-9]+(?:\.[-/_=a-zA-Z0-9]+)*")
_LETTERS_OF_KEYS = re.compile(r"[-/_=.a-zA-Z0-9]+")
_PATTERN_TOKEN = re.compile(r"\*|>|[-/_=a-zA-Z0-9]+")


def check_bucket_name(name: str) -> str:
    """Return the name of a bucket if NATS allows it.

    Raises:
        ConfigurationError: it does not.
    """
    if not isinstance(name, str):
        raise ConfigurationError(f"the name of a bucket must be a str, not {type(name).__name__}")
    if not _BUCKET.fullmatch(name):
        raise ConfigurationError(f"invalid bucket name {name!r}: letters, digits, - and _ are allowed, at least one")
    if len(name) > _MAX_BUCKET:
        raise ConfigurationError(f"invalid bucket name {name[:60]!r}...: it has more than {_MAX_BUCKET} characters")
    return name


def check_key(key: str) -> str:
    """Return a key if NATS allows it.

    Raises:
        InvalidKeyError: it does not; the message has the rule.
        TypeError: it is no str.
    """
    if isinstance(key, str) and _KEY.fullmatch(key):
        return key
    _check_text(key, "key")
    if ":" in key:
        raise InvalidKeyError(key, f"NATS allows no colon in a key; write {key.replace(':', '.')!r} instead")
    if not _LETTERS_OF_KEYS.fullmatch(key):
        raise InvalidKeyError(key, "letters, digits and - / _ = . are allowed")
    raise InvalidKeyError(key, "it must not begin or end with a dot, nor hold two in a row")


def check_every_key(keys: Collection[str]) -> None:
    """Do nothing if NATS allows each of the keys; quicker than `check_key` one by one, whose errors it raises."""
    with suppress(TypeError):  # one is no str
        if all(map(_KEY.fullmatch, keys)):
            return
    for key in keys:
        check_key(key)


def is_key(text: str) -> bool:
    """Return whether a text is no other than a key: others may publish what is none, and nobody could read it."""
    return _KEY.fullmatch(text) is not None


def check_pattern(pattern: str) -> str:
    """Return a pattern of keys: tokens between dots, ``*`` for one token, ``>`` at the end for all that follow.

    Raises:
        InvalidKeyError: it is no pattern; the message has the rule.
        TypeError: it is no str.
    """
    _check_text(pattern, "pattern")
    tokens = pattern.split(".")
    if not all(_PATTERN_TOKEN.fullmatch(token) for token in tokens):
        rule = "tokens of letters, digits and - / _ =, or * alone, with single dots between them"
        raise InvalidKeyError(pattern, rule, kind="pattern")
    if ">" in tokens[:-1]:
        raise InvalidKeyError(pattern, "> must be the last token", kind="pattern")
    return pattern


def check_object_name(name: str) -> str:
    """Return the name of an object: any text that is not empty.

    Raises:
        InvalidKeyError: it is empty, or cannot be encoded.
        TypeError: it is no str.
    """
    _check_text(name, "object name")
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise InvalidKeyError(repr(name), f"it cannot be encoded: {error.reason}", kind="object name") from None
    return name


def encode_object_name(name: str) -> str:
    """Return the token that stands for the name in a subject (NATS ADR-20)."""
    return urlsafe_b64encode(name.encode()).decode()


def decode_object_name(token: str) -> str | None:
    """Return the name for which a token stands; None: for none."""
    try:
        return urlsafe_b64decode(token).decode()
    except ValueError:
        return None


def _check_text(text: str, kind: str) -> None:
    if not isinstance(text, str):
        raise TypeError(f"the {kind} must be a str, not {type(text).__name__}")
    if not text:
        raise InvalidKeyError(text, "it is empty", kind=kind)
