"""How progress is shown."""

from __future__ import annotations

import io

import pytest

from mono_sync.demo._progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_terminal_gets_one_line_at_most_ten_times_a_second() -> None:
    out, clock = Terminal(), Clock()
    with Progress(out, clock).step("storing", 1000, 1000) as advance:
        for _ in range(1000):
            clock.now += 0.001
            advance(1)
    assert out.getvalue().count("\n") == 1
    assert 10 <= out.getvalue().count("\r") <= 12


def test_elsewhere_a_line_comes_at_most_every_two_seconds() -> None:
    out, clock = io.StringIO(), Clock()
    with Progress(out, clock).step("storing", 1000, 1000) as advance:
        for _ in range(1000):
            clock.now += 1 / 128  # exact in binary
            advance(1)
    assert out.getvalue().splitlines() == [
        "storing       256 of 1,000 files    256 B of 1.0 kB   26%",
        "storing       512 of 1,000 files    512 B of 1.0 kB   51%",
        "storing       768 of 1,000 files    768 B of 1.0 kB   77%",
        "storing     1,000 of 1,000 files   1.0 kB of 1.0 kB  100%",
    ]


def test_step_that_fails_says_how_far_it_got() -> None:
    out = io.StringIO()

    def fail() -> None:
        with Progress(out).step("storing", 4, 100) as advance:
            advance(25)
            raise LookupError

    with pytest.raises(LookupError):
        fail()
    assert out.getvalue() == "storing         1 of 4 files     25 B of 100 B   25%\n"


def test_line_on_a_terminal_is_no_longer_than_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    out = Terminal()
    with Progress(out).step("storing", 4, 100):
        pass
    assert all(len(line.removesuffix("\x1b[K")) <= 19 for line in out.getvalue().strip().split("\r"))


def test_files_without_bytes_count_as_files() -> None:
    out = io.StringIO()
    with Progress(out).step("storing", 2, 0) as advance:
        advance(0)
    assert " 50%" in out.getvalue()
