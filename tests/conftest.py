"""What the whole suite shares; the fixtures themselves are in tests/fixtures."""

from __future__ import annotations

pytest_plugins = ["tests.fixtures.leaks", "tests.fixtures.servers"]
