"""What `open` can be told, as the built-in one."""

from __future__ import annotations

from typing import Literal, NamedTuple, TypeAlias

BinaryReading: TypeAlias = Literal["rb", "br"]
TextReading: TypeAlias = Literal["r", "rt", "tr"]
BinaryWriting: TypeAlias = Literal["wb", "bw", "xb", "bx"]
TextWriting: TypeAlias = Literal["w", "wt", "tw", "x", "xt", "tx"]


class Mode(NamedTuple):
    """A mode, taken apart.

    Attributes:
        action: ``"r"``, ``"w"`` or ``"x"``.
        text: whether a text stream is wanted.
    """

    action: str
    text: bool


def parse_mode(mode: str, *, encoding: str | None, errors: str | None, newline: str | None) -> Mode:
    """Return what a mode means.

    Raises:
        TypeError: it is no str.
        ValueError: there is none such, or options of text streams are given for a binary one.
    """
    if not isinstance(mode, str):
        raise TypeError(f"a mode must be a str, not {type(mode).__name__}")
    action = next((letter for letter in "rwx" if letter in mode), "")
    kinds = mode.replace(action, "", 1)
    if not action or kinds not in ("", "b", "t"):
        known = "'rb' is for reading, 'wb' for writing, 'xb' for writing what is missing; without b as text"
        raise ValueError(f"invalid mode {mode!r}: {known}")
    options = {"encoding": encoding, "errors": errors, "newline": newline}
    given = [name for name, value in options.items() if value is not None]
    if given and kinds == "b":
        raise ValueError(f"binary mode {mode!r} takes no {given[0]}")
    return Mode(action, kinds != "b")
