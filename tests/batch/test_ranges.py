"""Sets of row numbers, against Python's own."""

from hypothesis import given
from hypothesis import strategies as st

from foveate.batch.ranges import Ranges, runs_of


def test_numbers_in_a_row_are_one_range():
    assert runs_of([9, 3, 5, 4]) == [(3, 5), (9, 9)]
    assert runs_of([]) == []


@given(st.sets(st.integers(0, 60)))
def test_a_set_of_ranges_is_the_set_of_its_numbers(numbers):
    ranges = Ranges(runs_of(numbers))
    assert len(ranges) == len(numbers)
    assert {number for number in range(-2, 64) if number in ranges} == numbers
    assert ranges.overlap is None


def test_ranges_that_touch_are_joined_and_those_that_overlap_are_told():
    assert list(Ranges([(0, 4), (5, 9)])) == [(0, 9)]
    assert Ranges([(0, 4), (4, 9)]).overlap == (4, 9)
    assert list(Ranges([(0, 9), (2, 3)])) == [(0, 9)]
    assert Ranges([(0, 9), (2, 3)]).overlap == (2, 3)


def test_a_million_rows_are_held_as_what_is_between_the_gaps():
    ranges = Ranges((first, first + 999) for first in range(0, 1_000_000, 1000))
    assert list(ranges) == [(0, 999_999)]
