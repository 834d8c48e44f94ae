"""What the table says is what was measured."""

from __future__ import annotations

import pytest

from benchmarks.measure import Figure, Goals, Row, result, table


@pytest.mark.parametrize(
    ("goals", "value", "reached"),
    [
        (Goals(must=0.6, aim=0.45), 0.45, "must and aim"),
        (Goals(must=0.6, aim=0.45), 0.6, "must"),
        (Goals(must=0.6, aim=0.45), 0.61, "no"),
        (Goals(must=10, aim=15, at_least=True), 15, "must and aim"),
        (Goals(must=10, aim=15, at_least=True), 10, "must"),
        (Goals(must=10, aim=15, at_least=True), 9.9, "no"),
        (Goals(aim=1, at_least=True), 2, "aim"),
        (Goals(), 1, ""),
    ],
)
def test_reached_names_the_goals_that_the_value_reaches(goals: Goals, value: float, reached: str) -> None:
    assert goals.reached(value) == reached


@pytest.mark.parametrize(("goals", "ratio"), [(Goals(), "0.500"), (Goals(must=1, at_least=True), "2.00")])
def test_ratio_is_of_times_or_of_speeds_as_its_goals_are(goals: Goals, ratio: str) -> None:
    row, _ = result(Figure("a call", "peer", goals), [1.0, 2.0, 3.0], [2.0, 4.0, 6.0])
    assert row.ratio == f"{ratio} ({ratio} to {ratio})"


def test_ratio_is_the_median_of_the_pairs_with_their_middle_half() -> None:
    row, _ = result(Figure("a call", "peer"), [1.0, 2.0, 3.0, 4.0, 5.0], [1.0] * 5)
    assert row.ratio == "3.00 (1.50 to 4.50)"


def test_table_has_a_line_for_each_row_and_columns_of_one_width() -> None:
    row = Row("a long name of a figure", "1 µs", "2 µs peer", "0.50", "", "≤ 1", "aim")
    lines = table([row, row])
    assert len(lines) == 4
    assert len({len(line) for line in lines}) == 1
