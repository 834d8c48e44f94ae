"""Timeouts, times to live and the deadline of a call."""

from __future__ import annotations

import math
import threading
import time
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mono_sync._durations import DEFAULT, Deadline, to_seconds, to_ttl

MICROSECOND = 1e-6
seconds = st.floats(min_value=0, max_value=1e9)
spans = st.timedeltas(min_value=timedelta(0), max_value=timedelta(days=10_000))
no_durations = st.none() | st.booleans() | st.text() | st.binary() | st.complex_numbers() | st.lists(st.integers())


@given(seconds | st.integers(min_value=0, max_value=10**9))
def test_a_number_is_seconds(value: float) -> None:
    assert to_seconds(value) == value
    assert type(to_seconds(value)) is float


@given(spans)
def test_a_timedelta_means_its_length(span: timedelta) -> None:
    assert to_seconds(span) == span.total_seconds()


@given(
    st.floats(max_value=0, exclude_max=True)
    | st.integers(max_value=-1)
    | st.timedeltas(max_value=timedelta(microseconds=-1))
    | st.sampled_from([math.inf, math.nan, 10**400])
)
def test_a_negative_or_endless_duration_is_refused_by_name(value: float | timedelta) -> None:
    with pytest.raises(ValueError, match=r"^wait must be a finite number of seconds, not negative: "):
        to_seconds(value, "wait")


@given(no_durations)
def test_what_is_no_duration_is_refused_by_type(value: Any) -> None:
    with pytest.raises(TypeError, match=rf"^wait must be seconds or a timedelta, not {type(value).__name__}$"):
        to_seconds(value, "wait")


def test_no_ttl_is_no_ttl() -> None:
    assert to_ttl(None) is None


@given(st.floats(min_value=1, max_value=1e9) | st.timedeltas(timedelta(seconds=1), timedelta(days=10_000)))
def test_a_ttl_is_rounded_up_to_whole_seconds(value: float | timedelta) -> None:
    ttl = to_ttl(value)
    assert type(ttl) is int
    assert 0 <= ttl - to_seconds(value) < 1


@given(st.floats(0, 1, exclude_max=True) | st.timedeltas(timedelta(0), timedelta(microseconds=999_999)))
def test_a_ttl_below_the_granularity_of_the_server_is_refused(value: float | timedelta) -> None:
    with pytest.raises(ValueError, match="at least 1 second"):
        to_ttl(value)


@given(no_durations.filter(lambda value: value is not None))
def test_what_is_no_ttl_is_refused_by_type(value: Any) -> None:
    with pytest.raises(TypeError, match=r"^ttl must be seconds or a timedelta"):
        to_ttl(value)


@given(seconds)
def test_a_deadline_leaves_at_most_its_timeout(timeout: float) -> None:
    started = time.monotonic()
    deadline = Deadline.of(timeout, default=None)
    left = deadline.remaining
    elapsed = time.monotonic() - started
    assert deadline.timeout == timeout
    assert left is not None
    assert timeout - elapsed - MICROSECOND <= left <= timeout + MICROSECOND


def test_remaining_time_shrinks_to_zero_and_never_below() -> None:
    deadline = Deadline(0.02)
    seen = [deadline.remaining]
    while not deadline.expired:
        seen.append(deadline.remaining)
    seen.append(deadline.remaining)
    numbers = [left for left in seen if left is not None]
    assert numbers == sorted(numbers, reverse=True)
    assert numbers[-1] == 0


def test_a_timeout_of_zero_has_expired_at_once() -> None:
    deadline = Deadline.of(0, default=5)
    assert deadline.expired
    assert deadline.remaining == 0


@pytest.mark.parametrize("deadline", [Deadline.of(None, default=0), Deadline.of(DEFAULT, default=None), Deadline(None)])
def test_for_ever_never_expires(deadline: Deadline) -> None:
    assert deadline.remaining is None
    assert deadline.timeout is None
    assert not deadline.expired


@given(seconds)
def test_an_omitted_timeout_is_the_default(default: float) -> None:
    assert Deadline.of(DEFAULT, default).timeout == default


@given(st.floats(max_value=0, exclude_max=True))
def test_a_negative_timeout_starts_no_clock(timeout: float) -> None:
    for start in (Deadline, lambda timeout: Deadline.of(timeout, default=5)):
        with pytest.raises(ValueError, match=r"^timeout must be"):
            start(timeout)


def test_a_deadline_takes_a_timedelta() -> None:
    assert Deadline(timedelta(minutes=1)).timeout == 60


def test_whatever_a_deadline_leaves_can_be_waited_for() -> None:
    remaining = Deadline(1e300).remaining
    event = threading.Event()
    event.set()
    assert event.wait(remaining)
    assert threading.Lock().acquire(timeout=remaining or 0)


def test_the_default_shows_what_it_is() -> None:
    assert repr(DEFAULT) == "DEFAULT"
