"""What the whole suite shares; the fixtures themselves are in tests/fixtures."""

from __future__ import annotations

import signal

pytest_plugins = ["tests.fixtures.leaks", "tests.fixtures.servers", "tests.fixtures.cluster"]


def pytest_configure() -> None:
    """Let programs that tests start react to Ctrl-C, also where the suite runs in the background of a shell."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
