"""Maps as further channels of features in every layout."""

import pytest
import torch
from torch import Tensor

from timm_devnet.layout import append_maps, channels_first, pool_features

SHAPES = {'NCHW': (2, 5, 4, 4), 'NHWC': (2, 4, 4, 5), 'NLC': (2, 16, 5), 'NC': (2, 5)}


def joined(layout: str, size: int = 4, tokens: int = 16) -> tuple[Tensor, Tensor]:
    """A map (2, 3, size, size), and features with it as their last three channels, split off again."""
    shape = (2, tokens, 5) if layout == 'NLC' else SHAPES[layout]
    x = torch.rand(2, 3, size, size)
    features = append_maps(torch.rand(shape), [x], layout)
    return x, features[..., -3:] if layout in ('NHWC', 'NLC') else features[:, -3:]


@pytest.mark.parametrize('layout', SHAPES)
def test_the_old_features_come_first_and_unchanged(layout: str) -> None:
    old = torch.rand(SHAPES[layout])
    features = append_maps(old, [torch.rand(2, 3, 4, 4), torch.rand(2, 2, 8, 8)], layout)
    place = -1 if layout in ('NHWC', 'NLC') else 1
    assert features.shape[place] == 10 and torch.equal(features.narrow(place, 0, 5), old)


@pytest.mark.parametrize('layout', ['NCHW', 'NHWC'])
def test_a_map_of_the_features_size_is_appended_as_it_is(layout: str) -> None:
    x, appended = joined(layout)
    assert torch.equal(channels_first(appended, layout), x)


def test_tokens_are_in_the_order_of_positions() -> None:
    x, appended = joined('NLC')
    assert torch.equal(appended[:, 5], x[:, :, 1, 1])


@pytest.mark.parametrize(('size', 'tokens'), [(4, 16), (4, 17), (4, 18), (4, 1), (8, 16), (2, 40)])
def test_the_mean_over_tokens_is_the_maps(size: int, tokens: int) -> None:
    x, appended = joined('NLC', size, tokens)
    torch.testing.assert_close(pool_features(appended, 'NLC', 'token'), x.mean((2, 3)))


def test_a_class_token_gets_the_mean_and_positions_stay() -> None:
    x, appended = joined('NLC', 4, 17)
    torch.testing.assert_close(appended[:, 0], x.mean((2, 3)))
    assert torch.equal(appended[:, 1], x[:, :, 0, 0])


@pytest.mark.parametrize('layout', ['NCHW', 'NHWC', 'NC'])
def test_larger_maps_keep_their_mean(layout: str) -> None:
    x, appended = joined(layout, 8)
    torch.testing.assert_close(pool_features(appended, layout, 'avg'), x.mean((2, 3)))


def test_pooling_kinds() -> None:
    x = torch.rand(2, 3, 4, 4)
    mean, largest = x.mean((2, 3)), x.amax((2, 3))
    torch.testing.assert_close(pool_features(x, 'NCHW', 'avgmax'), (mean + largest) / 2)
    torch.testing.assert_close(pool_features(x, 'NCHW', 'catavgmax'), torch.cat([mean, largest], 1))
    assert torch.equal(pool_features(x, 'NCHW', 'fastmax'), largest)
