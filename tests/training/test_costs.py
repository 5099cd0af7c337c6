import timm
import torch
from torch import nn

from training.costs import multiply_adds


def test_multiply_adds_by_hand() -> None:
    model = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.Flatten(), nn.Linear(5 * 8 * 8, 7))
    assert multiply_adds(model, img_size=8) == 8 * 8 * 5 * 3 * 9 + 5 * 8 * 8 * 7


def test_multiply_adds_leave_the_network_as_it_was() -> None:
    model = timm.create_model('tf_efficientnet_lite0_norm').train()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    multiply_adds(model, img_size=64)
    assert model.training
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


def test_multiply_adds_of_alexnet_are_the_published_ones() -> None:
    # torchvision's documentation of its AlexNet weights: 0.71 GFLOPS, 61,100,840 parameters.
    model = timm.create_model('alexnet', device='meta')
    assert round(multiply_adds(model, 224) / 1e9, 2) == 0.71
    assert sum(parameter.numel() for parameter in model.parameters()) == 61_100_840


def test_multiply_adds_of_grey_images() -> None:
    model = timm.create_model('alexnet', device='meta', in_chans=1)
    colour = timm.create_model('alexnet', device='meta')
    assert multiply_adds(colour, 224) - multiply_adds(model, 224) == 55 * 55 * 64 * 11 * 11 * 2
