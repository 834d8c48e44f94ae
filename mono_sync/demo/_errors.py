"""What the demo itself can fail with."""

from __future__ import annotations


class DemoError(Exception):
    """The demo cannot go on; its text is for the user."""
