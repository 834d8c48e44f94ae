"""What counts as a word."""

from __future__ import annotations

import re
from collections import Counter

_WORD = re.compile(r"[^\W\d_]{2,64}")


def count_words(data: bytes) -> Counter[str]:
    """Return how often each word occurs in a file.

    A word is a run of 2 to 64 letters, whatever their case; longer runs are cut. Bytes that are no UTF-8 separate
    words, and a file with a zero byte is not text and has none.
    """
    if b"\0" in data:
        return Counter()
    return Counter(_WORD.findall(data.decode("utf-8", "replace").casefold()))
