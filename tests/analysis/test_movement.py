"""How far tensors moved."""

import pytest
import torch

from analysis.movement import movement, norm_movement, unit_movements


def test_a_known_perturbation_is_measured_exactly() -> None:
    before = torch.zeros(3, 4)
    before[0, 0], before[1, 1], before[2, 2] = 3.0, 4.0, 5.0
    after = before.clone()
    after[0, 0], after[1, 0] = 6.0, 3.0  # doubled; turned
    first, second, third = unit_movements(before, after)
    assert (first.relative, first.cosine) == (1.0, 1.0)
    assert (second.relative, second.cosine) == (0.75, 0.8)
    assert (third.moved, third.relative, third.cosine) == (0.0, 0.0, 1.0)


def test_the_whole_is_all_units_together() -> None:
    before, after = torch.randn(5, 7), torch.randn(5, 7)
    units = unit_movements(before, after)
    assert movement(before, after).moved == pytest.approx(sum(unit.moved**2 for unit in units) ** 0.5)


def test_what_began_at_zero_has_no_relative_movement() -> None:
    found = movement(torch.zeros(2), torch.tensor([3.0, 4.0]))
    assert (found.moved, found.relative, found.cosine) == (5.0, None, None)


def test_cosines_stay_within_their_bounds() -> None:
    tensor = torch.randn(100, 37)
    assert all(unit.cosine is not None and -1 <= unit.cosine <= 1 for unit in unit_movements(tensor, 1.7 * tensor))


def test_channels_that_never_vary_stay_finite() -> None:
    before = {'running_mean': torch.zeros(2), 'running_var': torch.tensor([0.0, 1.0])}
    found = norm_movement(before, {**before, 'running_var': torch.tensor([1.0, 1.0])}, eps=1e-2)
    assert found.spread_change == pytest.approx(101**0.5)
    assert found.mean_shift == 0


def test_means_move_by_standard_deviations_of_before() -> None:
    before = {'running_mean': torch.zeros(1), 'running_var': torch.tensor([4.0])}
    after = {'running_mean': torch.tensor([6.0]), 'running_var': torch.tensor([1.0])}
    assert norm_movement(before, after, eps=0.0).mean_shift == 3.0
