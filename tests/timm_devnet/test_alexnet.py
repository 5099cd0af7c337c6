"""AlexNet: torchvision's network in timm's frame."""

from functools import cache

import pytest
import timm
import torch
import torchvision
from torch import nn

from timm_devnet.models.alexnet import checkpoint_filter_fn


@cache
def both() -> tuple[nn.Module, nn.Module]:
    """torchvision's module and ours with the same random weights."""
    torch.manual_seed(0)
    theirs = torchvision.models.alexnet().eval()
    ours = timm.create_model('alexnet').eval()
    ours.load_state_dict(checkpoint_filter_fn(theirs.state_dict()))
    return theirs, ours


@pytest.mark.parametrize('size', [63, 96, 160, 224, 227, 256, 288])
@torch.no_grad()
def test_logits_are_torchvisions(size: int) -> None:
    theirs, ours = both()
    images = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(size))
    torch.testing.assert_close(ours(images), theirs(images), rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_logits_are_torchvisions_also_for_images_that_are_not_square() -> None:
    theirs, ours = both()
    images = torch.rand(1, 3, 160, 256)
    torch.testing.assert_close(ours(images), theirs(images), rtol=1e-5, atol=1e-6)


def test_it_has_torchvisions_parameters() -> None:
    theirs, ours = both()
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters()) == 61_100_840


def test_names_of_this_module_pass_unchanged() -> None:
    state = both()[1].state_dict()
    assert checkpoint_filter_fn(state).keys() == state.keys()


def test_dropout_stands_after_fc6_and_before_the_classifier() -> None:
    model = timm.create_model('alexnet', drop_rate=0.5, device='meta')
    assert {name for name, module in model.named_modules() if isinstance(module, nn.Dropout) and module.p} == {
        'pre_logits.drop',
        'head.drop',
    }
