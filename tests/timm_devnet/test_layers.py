"""The layers that a growth adds: what they compute, and the first values of their parameters."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from timm_devnet.layers import ConvUnits, LinearUnits, Pass, Scaled, copy_units, match_size
from timm_devnet.plan import Layer, Phase


def layer(kind: str = 'units', in_width: int = 6, width: int = 4, reads: tuple[str, ...] = ('below',)) -> Layer:
    return Layer('new', kind, reads, Phase.HEAD, 'old', 0, in_width, width)


def generator_for(parameter: str) -> torch.Generator:
    return torch.Generator().manual_seed(len(parameter))


UNITS = [LinearUnits, ConvUnits]


def test_match_size_leaves_a_map_of_the_right_size_alone() -> None:
    x = torch.rand(2, 3, 4, 5)
    assert match_size(x, torch.rand(1, 7, 4, 5)) is x


def test_match_size_averages_over_equal_parts() -> None:
    x = torch.rand(2, 3, 4, 6)
    by_hand = x.reshape(2, 3, 2, 2, 3, 2).mean((3, 5))
    torch.testing.assert_close(match_size(x, torch.rand(1, 1, 2, 3)), by_hand)


def test_match_size_keeps_the_mean_over_positions() -> None:
    x = torch.rand(2, 3, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(match_size(x, torch.rand(1, 1, 2, 2)).mean((2, 3)), x.mean((2, 3)))


@pytest.mark.parametrize('kind', UNITS)
def test_units_on_a_map_act_at_every_position(kind: type[LinearUnits]) -> None:
    units, x = kind(layer()).eval(), torch.rand(2, 6, 3, 5)
    torch.testing.assert_close(units([x])[:, :, 1:2, 2:3], units([x[:, :, 1:2, 2:3]]))


def test_units_of_a_vector_are_those_of_a_map_of_one_position() -> None:
    units, x = LinearUnits(layer()), torch.rand(2, 6)
    assert torch.equal(units([x]), units([x[..., None, None]])[..., 0, 0])


def test_linear_units_by_hand() -> None:
    units, x = LinearUnits(layer()), torch.randn(2, 6)
    torch.testing.assert_close(units([x]), (x @ units.fc.weight.T + units.fc.bias).clamp(min=0))


def test_conv_units_by_hand() -> None:
    units, x = ConvUnits(layer(), act=nn.ReLU()), torch.randn(2, 6, 3, 3)
    assert units.conv.bias is not None
    by_hand = torch.einsum('oi,nihw->nohw', units.conv.weight[..., 0, 0], x) + units.conv.bias[:, None, None]
    torch.testing.assert_close(units([x]), by_hand.clamp(min=0))


def test_a_norm_stands_between_convolution_and_activation() -> None:
    norm = nn.BatchNorm2d(4).eval()
    nn.init.constant_(norm.bias, -0.3)
    units, x = ConvUnits(layer(), norm=norm, act=nn.ReLU()), torch.randn(2, 6, 3, 3)
    assert torch.equal(units([x]), norm(units.conv(x)).relu())


def test_a_convolution_before_a_norm_has_no_bias() -> None:
    assert ConvUnits(layer(), norm=nn.BatchNorm2d(4)).conv.bias is None


@pytest.mark.parametrize('kind', UNITS)
def test_units_read_several_blocks_side_by_side(kind: type[LinearUnits]) -> None:
    units = kind(layer(reads=('a', 'b'))).eval()
    a, b = torch.rand(2, 4, 3, 3), torch.rand(2, 2, 3, 3)
    assert torch.equal(units([a, b]), units([torch.cat([a, b], 1)]))


@pytest.mark.parametrize('kind', UNITS)
def test_units_bring_maps_to_the_size_of_the_first(kind: type[LinearUnits]) -> None:
    units = kind(layer(reads=('a', 'b')))
    assert units([torch.rand(2, 4, 3, 3), torch.rand(2, 2, 6, 6)]).shape == (2, 4, 3, 3)


@pytest.mark.parametrize('kind', UNITS)
def test_dropout_is_on_what_is_read_in_training(kind: type[LinearUnits]) -> None:
    units, x = kind(layer(), drop_rate=0.5), torch.ones(2, 6, 3, 3)
    assert not torch.equal(units([x]), units([x]))


@pytest.mark.parametrize('kind', UNITS)
def test_dropout_is_off_in_evaluation(kind: type[LinearUnits]) -> None:
    units, x = kind(layer(), drop_rate=0.5).eval(), torch.ones(2, 6, 3, 3)
    assert torch.equal(units([x]), units([x]))


def test_pass_rectifies() -> None:
    assert torch.equal(Pass(layer('pass'))([torch.tensor([[-1.0, 2.0]])]), torch.tensor([[0.0, 2.0]]))


def test_scaled_reconciles() -> None:
    out = Scaled(layer('scaled', width=2), scale_init=5.0)([torch.tensor([[3.0, 4.0]])])
    torch.testing.assert_close(out, torch.tensor([[3.0, 4.0]]))


@pytest.mark.parametrize('kind', UNITS)
def test_he_law_for_weights(kind: Callable[[Layer], Any]) -> None:
    units = kind(layer(in_width=24, width=4000))
    units.init_new(generator_for)
    weight = next(parameter for parameter in units.parameters() if parameter.ndim > 1)
    assert weight.abs().max().item() == pytest.approx(math.sqrt(6 / 24), rel=1e-3)
    assert weight.var().item() == pytest.approx(2 / 24, rel=0.02)


@pytest.mark.parametrize('kind', UNITS)
def test_biases_start_at_zero(kind: Callable[[Layer], Any]) -> None:
    units = kind(layer())
    units.init_new(generator_for)
    assert all(torch.equal(bias, torch.zeros_like(bias)) for name, bias in units.named_parameters() if 'bias' in name)


def test_a_norm_starts_at_one_and_zero() -> None:
    norm = nn.BatchNorm2d(4)
    assert norm.running_mean is not None
    tensors = [norm.weight, norm.bias, norm.running_mean]
    for tensor in tensors:
        nn.init.constant_(tensor, 7.0)
    ConvUnits(layer(), norm=norm).init_new(generator_for)
    assert [tensor.unique().item() for tensor in tensors] == [1.0, 0.0, 0.0]


def copies(count: int, noise: float, old_norm: nn.Module | None = None) -> tuple[ConvUnits, nn.Conv2d]:
    old = nn.Conv2d(6, 8, 1)
    norm = nn.BatchNorm2d(count) if old_norm else None
    units = ConvUnits(layer(width=count), norm=norm, conv=nn.Conv2d(6, count, 1))
    copy_units(units, old, old_norm, torch.Generator().manual_seed(0), noise)
    return units, old


@pytest.mark.parametrize('count', [3, 8])
def test_copies_without_noise_are_different_old_units(count: int) -> None:
    units, old = copies(count, 0.0)
    same = (units.conv.weight.flatten(1)[:, None] == old.weight.flatten(1)[None]).all(-1)
    assert same.any(0).sum() == same.any(1).sum() == count


def test_more_copies_than_old_units_take_every_unit_equally_often() -> None:
    units, old = copies(16, 0.0)
    same = (units.conv.weight.flatten(1)[:, None] == old.weight.flatten(1)[None]).all(-1)
    assert torch.equal(same.sum(0), torch.full((8,), 2))


def test_copies_take_the_bias_along() -> None:
    units, old = copies(8, 0.0)
    assert units.conv.bias is not None and old.bias is not None
    assert torch.equal(units.conv.bias.sort().values, old.bias.sort().values)


def test_copies_take_the_norm_along() -> None:
    norm = nn.BatchNorm2d(8)
    nn.init.normal_(norm.weight)
    units, old = copies(8, 0.0, norm)
    chosen = (units.conv.weight.flatten(1)[:, None] == old.weight.flatten(1)[None]).all(-1).int().argmax(1)
    assert torch.equal(units.norm.get_parameter('weight'), norm.weight[chosen])


def test_the_noise_is_a_share_of_the_old_weights_own_spread() -> None:
    old, units = nn.Conv2d(200, 300, 1), ConvUnits(layer(in_width=200, width=300))
    copy_units(units, old, None, torch.Generator().manual_seed(0), noise=0.1)
    exact = ConvUnits(layer(in_width=200, width=300))
    copy_units(exact, old, None, torch.Generator().manual_seed(0), noise=0.0)
    share = (units.conv.weight - exact.conv.weight).std() / old.weight.std()
    assert share.item() == pytest.approx(0.1, rel=0.02)


def test_inputs_that_the_old_layer_lacks_start_at_noise_alone() -> None:
    old, units = nn.Conv2d(4, 8, 1), ConvUnits(layer(width=8))
    copy_units(units, old, None, torch.Generator().manual_seed(0), noise=0.0)
    assert torch.equal(units.conv.weight[:, 4:], torch.zeros(8, 2, 1, 1))
