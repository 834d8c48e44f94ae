"""How numbers and names are shown."""

from __future__ import annotations

import pytest

from mono_sync.demo._text import counted, printable, size_text


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (12_118_641, "12.1 MB"), (5e12, "5,000.0 GB")]
)
def test_size_is_readable(size: float, text: str) -> None:
    assert size_text(size) == text


@pytest.mark.parametrize(("number", "text"), [(0, "0 files"), (1, "1 file"), (2, "2 files"), (1000, "1,000 files")])
def test_one_is_no_plural(number: int, text: str) -> None:
    assert counted(number, "file") == text


def test_what_a_terminal_would_obey_is_escaped_and_nothing_else() -> None:
    assert printable("grün \x1b[31mred\n\x85\udcff") == "grün \\x1b[31mred\\n\\x85\\udcff"
