"""The images that most activate each unit."""

import pytest
import torch

from analysis.top_images import TopImages, chance


@pytest.mark.parametrize('batch', [1, 7, 100])
def test_it_equals_sorting_everything(batch: int) -> None:
    values = torch.randint(0, 12, (60, 9)).float()  # many are equal
    targets = torch.randint(0, 4, (60,))
    top = TopImages(9, 8)
    for part, indices in zip(values.split(batch), torch.arange(60).split(batch), strict=True):
        top.add(part, indices, targets[indices])
    for unit in range(9):
        said = values[:, unit].tolist()
        best = sorted(zip((-value for value in said), range(60), strict=True))[:8]
        assert top.of(unit) == [(index, targets[index].item(), said[index]) for _, index in best]


def test_places_stay_empty_where_there_are_few_images() -> None:
    top = TopImages(2, 5)
    top.add(torch.tensor([[1.0, 2.0], [3.0, 0.0]]), torch.tensor([10, 11]), torch.tensor([1, 0]))
    assert top.of(0) == [(11, 0, 3.0), (10, 1, 1.0)]
    assert top.selectivity(3).share.tolist() == [0.5, 0.5]


def test_selectivity_is_the_share_of_the_commonest_class() -> None:
    top = TopImages(2, 4)
    values = torch.tensor([[4.0, 1.0], [3.0, 2.0], [2.0, 3.0], [1.0, 4.0], [0.0, 5.0]])
    top.add(values, torch.arange(5), torch.tensor([2, 2, 1, 0, 0]))
    found = top.selectivity(3)
    assert found.share.tolist() == [0.5, 0.5]
    assert found.commonest.tolist() == [2, 0]


def test_images_drawn_by_lot_are_as_selective_as_arithmetic_says() -> None:
    # Of two images of two equally common classes half the pairs agree: the mean of 1 and 1/2.
    assert chance([0, 1] * 50, 2, 2, draws=20000) == pytest.approx(0.75, abs=0.01)
    assert chance([3] * 10, 5, 4) == 1.0
