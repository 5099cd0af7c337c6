"""Grown VGG: its levels, small and large images."""

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from timm_devnet import grow
from timm_devnet.models import vgg_grown

Build = Callable[..., Any]


@pytest.mark.parametrize('name', vgg_grown.BASES)
def test_levels_go_from_fc7_down_to_the_first_stage(name: str, on_meta: Build) -> None:
    levels = vgg_grown.GrownVGG.levels_of(on_meta(name))
    assert [(level.name, level.width) for level in levels] == [
        *(('fc7', 4096), ('fc6', 4096), ('pool5', 512)),
        *(('conv4', 512), ('conv3', 256), ('conv2', 128), ('conv1', 64)),
    ]


def test_levels_of_alexnet(on_meta: Build) -> None:
    levels = timm.create_model('alexnet_wa', device='meta').levels_of(on_meta('alexnet'))
    assert [(level.name, level.width) for level in levels] == [
        *(('fc7', 4096), ('fc6', 4096), ('pool5', 256)),
        *(('conv4', 256), ('conv3', 384), ('conv2', 192), ('conv1', 64)),
    ]


@pytest.mark.parametrize('growth', ['wa32', 'wwa32', 'mwa32', 'skip', 'dwa32'])
@pytest.mark.parametrize('size', [32, 64, 256])
def test_images_of_every_size(growth: str, size: int, narrow: None) -> None:
    model = grow(timm.create_model('vgg11', num_classes=3), growth).eval()
    with torch.no_grad():
        assert model(torch.rand(1, 3, size, size)).shape == (1, 3)


@pytest.mark.parametrize(('name', 'kind'), [('vgg11', nn.Identity), ('vgg11_bn', nn.BatchNorm2d)])
def test_new_units_on_maps_are_normalised_where_the_old_ones_are(name: str, kind: type[nn.Module]) -> None:
    model = grow(timm.create_model(name, device='meta'), 'r4u8at2+r2u8')
    assert isinstance(model.grown.pool5_1.norm, kind)


@torch.no_grad()
def test_norm_with_nothing_scaled_is_the_old_network(narrow: None, images: Tensor) -> None:
    base = timm.create_model('vgg11', num_classes=3).eval()
    before = base(images)
    assert torch.equal(grow(base, 'norm', scale_init=None)(images), before)
