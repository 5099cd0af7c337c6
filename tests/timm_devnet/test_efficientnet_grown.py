"""Grown EfficientNet-Lite: real weights, real photographs, the original layout."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor

from timm_devnet import convert_lite, grow
from timm_devnet.models import efficientnet_grown

LITE = 'tf_efficientnet_lite0'
Build = Callable[..., Any]


@pytest.fixture(scope='module')
def lite(lite_weights: Path) -> Any:
    model = timm.create_model(LITE).eval()
    model.load_state_dict(convert_lite(torch.load(lite_weights, weights_only=True)))
    return model


@pytest.fixture(scope='module')
def known(lite: Any, photographs: Tensor) -> Tensor:
    """What the old network sees in the photographs."""
    with torch.no_grad():
        return lite(photographs).argmax(1)


@torch.no_grad()
def test_the_converted_weights_know_what_they_see(lite: Any, photographs: Tensor) -> None:
    assert lite(photographs[3:4]).argmax().item() in (281, 282, 283, 284, 285)  # ImageNet's cats


@pytest.mark.parametrize('growth', ['wa', 'mwa', 'xwa', 'skip', 'norm', 'wwa'])
@torch.no_grad()
def test_an_untrained_grown_network_sees_what_its_base_sees(
    growth: str, lite_weights: Path, photographs: Tensor, known: Tensor
) -> None:
    overlay = dict(file=str(lite_weights))
    model = timm.create_model(f'{LITE}_{growth}', pretrained=True, pretrained_cfg_overlay=overlay).eval()
    # Smaller logits, at scales of 5, under the same bias: 94 % of 114 answers stay, and 98 % at 10.
    assert (model(photographs).argmax(1) == known).float().mean() >= 0.9


@pytest.mark.parametrize('growth', ['wa', 'mwa', 'skip', 'norm', 'wwa'])
@torch.no_grad()
def test_without_a_bias_it_sees_just_what_its_base_sees(growth: str, lite_weights: Path) -> None:
    base = timm.create_model(LITE).eval()
    base.load_state_dict(convert_lite(torch.load(lite_weights, weights_only=True)))
    base.classifier.bias.zero_()
    images = torch.randn(64, 3, 64, 64)
    known = base(images).argmax(1)
    assert torch.equal(grow(base, growth).eval()(images).argmax(1), known)


@pytest.mark.parametrize('growth', ['mwa32', 'wwa32', 'skip'])
def test_grad_checkpointing_does_not_change_the_answers(growth: str, images: Tensor) -> None:
    model = timm.create_model(f'{LITE}_wa', growth=growth, num_classes=3).train()
    with torch.no_grad():
        before = model(images)
        model.set_grad_checkpointing()
        torch.testing.assert_close(model(images), before, rtol=0, atol=0)


def test_grad_checkpointing_does_not_change_the_gradients(images: Tensor) -> None:
    model = timm.create_model(f'{LITE}_mwa', growth='mwa32', num_classes=3).train()
    model(images).square().mean().backward()
    before = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    model.set_grad_checkpointing()
    model(images).square().mean().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, before[name], msg=name)


def test_converted_names_are_timms(lite_weights: Path, on_meta: Build) -> None:
    converted = convert_lite(torch.load(lite_weights, weights_only=True))
    assert {key for key in on_meta(LITE).state_dict() if 'num_batches' not in key} <= converted.keys()


def test_converting_twice_changes_nothing(lite_weights: Path) -> None:
    once = convert_lite(torch.load(lite_weights, weights_only=True))
    assert convert_lite(once).keys() == once.keys()


@pytest.mark.parametrize('name', efficientnet_grown.BASES)
def test_levels_go_from_the_top_down_to_the_stem(name: str, on_meta: Build) -> None:
    levels = efficientnet_grown.GrownEfficientNet.levels_of(on_meta(name))
    assert [level.name for level in levels] == ['conv_head', *(f'blocks.{i}' for i in range(6, -1, -1)), 'conv_stem']


@pytest.mark.parametrize('name', efficientnet_grown.BASES)
def test_levels_have_the_widths_of_their_maps(name: str, on_meta: Build) -> None:
    model = on_meta(name)
    _, maps = model.forward_intermediates(torch.empty(1, 3, 64, 64, device='meta'), extra_blocks=True)
    levels = efficientnet_grown.GrownEfficientNet.levels_of(model)
    assert [level.width for level in reversed(levels[1:])] == [x.shape[1] for x in maps]


def test_new_units_have_the_norm_of_the_old_ones() -> None:
    model = timm.create_model(f'{LITE}_wa', device='meta')
    norm = model.grown.conv_head_1.norm
    assert (norm.eps, norm.momentum, type(norm.act)) == (model.bn2.eps, model.bn2.momentum, type(model.bn2.act))


@pytest.mark.parametrize(('in_chans', 'kind'), [(1, 'wa'), (4, 'mwa')])
def test_an_efficientnet_that_is_no_lite_grows_as_well(in_chans: int, kind: str) -> None:
    model = grow(timm.create_model('efficientnet_b0', num_classes=3, in_chans=in_chans), f'{kind}32').eval()
    assert model(torch.rand(1, in_chans, 64, 64)).shape == (1, 3)
