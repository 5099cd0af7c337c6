"""Differences with their intervals, by hand."""

from experiments.intervals import Difference, difference


def test_the_interval_by_hand() -> None:
    # Differences 1, 2, 3: mean 2, standard deviation 1, and Student's 4.303 / sqrt(3) = 2.484.
    found = difference({0: 2.0, 1: 4.0, 2: 6.0}, {0: 1.0, 1: 2.0, 2: 3.0})
    assert found is not None and found.half_width is not None
    assert (found.mean, round(found.half_width, 3)) == (2.0, 2.484)


def test_only_common_seeds_are_compared() -> None:
    assert difference({0: 5.0, 1: 9.0}, {0: 3.0}) == Difference(2.0, None)
    assert difference({0: 5.0}, {1: 3.0}) is None


def test_a_difference_is_clear_if_its_interval_leaves_zero_out() -> None:
    assert Difference(2.0, 1.9).is_clear
    assert not Difference(-2.0, 2.1).is_clear
    assert not Difference(9.0, None).is_clear
