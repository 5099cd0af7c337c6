"""Orders of an epoch."""

import collections

import numpy as np
import pytest

from training.config import Config
from training.order import BalancedOrder, EpochOrder, create_order
from training.sources import ArraySource, choose_share

TARGETS = [0] * 2 + [1] * 30 + [2] * 7


def make_order(update_size: int = 4, seed: int = 0) -> BalancedOrder:
    return BalancedOrder(np.arange(len(TARGETS)), seed, update_size, TARGETS)


@pytest.mark.parametrize('epoch', [0, 1, 5])
@pytest.mark.parametrize('update_size', [1, 4, 5])
def test_every_class_comes_up_equally_often(epoch: int, update_size: int) -> None:
    order = make_order(update_size)
    order.seek(epoch, 0)
    indices = [index for _, index in order]
    assert len(indices) == len(order) == 39 // update_size * update_size
    counts = collections.Counter(TARGETS[index] for index in indices).values()
    assert len(counts) == 3
    assert max(counts) - min(counts) <= 1


def test_every_image_of_a_class_comes_up_equally_often() -> None:
    counts = collections.Counter(index for _, index in make_order())
    for label in range(3):
        of_class = [counts[index] for index, target in enumerate(TARGETS) if target == label]
        assert max(of_class) - min(of_class) <= 1


def test_an_image_that_comes_up_again_is_cropped_anew() -> None:
    order = make_order()
    order.seek(3, 0)
    keys = list(order)
    assert len({*keys}) == len(keys)
    assert {epoch % 2**32 for epoch, _ in keys} == {3}


def test_over_epochs_every_image_of_a_large_class_is_seen() -> None:
    order, seen = make_order(), set()
    for epoch in range(12):
        order.seek(epoch, 0)
        seen |= {index for _, index in order}
    assert seen == {*range(39)}


def test_the_order_depends_on_seed_and_epoch_only() -> None:
    order = make_order()
    order.seek(2, 0)
    whole = list(order)
    order.seek(2, 3)
    assert list(order) == whole[12:]
    other = make_order(seed=1)
    other.seek(2, 0)
    assert list(other) != whole


def test_the_flag_chooses_the_order() -> None:
    source = ArraySource(np.zeros((39, 4, 4), dtype=np.uint8), TARGETS, ['a', 'b', 'c'])
    assert type(create_order(Config(batch_size=4), {'train': source}, 1)) is EpochOrder
    order = create_order(Config(balanced=True, labels_per_class=2, batch_size=3), {'train': source}, 1)
    assert isinstance(order, BalancedOrder)
    assert len({*order.indices}) == len({index for _, index in order}) == 6


@pytest.mark.parametrize(('share', 'counts'), [(1.0, [2, 30, 7]), (0.5, [1, 15, 4]), (0.15, [1, 4, 1])])
def test_a_share_is_one_of_each_class(share: float, counts: list[int]) -> None:
    source = ArraySource(np.zeros((39, 4, 4), dtype=np.uint8), TARGETS, ['a', 'b', 'c'])
    order = create_order(Config(label_share=share, batch_size=2), {'train': source}, 1)
    assert np.bincount(np.asarray(TARGETS)[order.indices]).tolist() == counts


def test_a_lesser_share_is_part_of_a_greater_one() -> None:
    source = ArraySource(np.zeros((39, 4, 4), dtype=np.uint8), TARGETS, ['a', 'b', 'c'])
    shares = [{*choose_share(source, share, seed=3).tolist()} for share in (0.15, 0.3, 0.5, 1.0)]
    assert shares == sorted(shares, key=len)
    assert all(less < more for less, more in zip(shares, shares[1:], strict=False))
    assert {*choose_share(source, 0.3, seed=4).tolist()} != shares[1]


def test_a_batch_is_of_one_view_of_cached_features() -> None:
    source = ArraySource(np.zeros((39, 4, 4), dtype=np.uint8), TARGETS, ['a', 'b', 'c'])
    order = create_order(Config(balanced=True, batch_size=3, cache_features=3), {'train': source}, 1)
    order.seek(4, 0)
    assert {epoch % 3 for epoch, _ in order} == {1}
    assert len({epoch for epoch, _ in order}) > 1
