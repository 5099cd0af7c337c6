"""What the units say of images, in every family of networks."""

import pytest
import timm
import torch

import timm_devnet
from analysis.activations import Watcher
from tests.conftest import Build
from timm_devnet.reconcile import reconcile


def test_what_is_seen_is_the_network(build: Build, images: torch.Tensor) -> None:
    network = build(num_classes=5).eval()
    seen = Watcher(network)(images)
    with torch.no_grad():
        torch.testing.assert_close(seen.logits, network(images))
    assert [block.shape[1] for block in seen.blocks] == Watcher(network).widths
    assert seen.read.shape[1] == sum(Watcher(network).widths)


def test_blocks_are_seen_before_reconciliation(images: torch.Tensor) -> None:
    network = timm_devnet.grow(timm.create_model('test_efficientnet', num_classes=5), 'mwa16').eval()
    seen = Watcher(network)(images)
    layers = [network.grown[name] for name, _ in network.plan.top]
    with torch.no_grad():
        expected = [reconcile(block, layer.reconcile.scale) for block, layer in zip(seen.blocks, layers, strict=True)]
    torch.testing.assert_close(seen.read, torch.cat(expected, 1), rtol=0, atol=0)


def test_old_units_say_what_they_said_before_the_network_grew(images: torch.Tensor) -> None:
    plain = timm.create_model('test_efficientnet', num_classes=5).eval()
    [before] = Watcher(plain)(images).blocks
    grown = timm_devnet.grow(plain, 'wa16').eval()
    torch.testing.assert_close(Watcher(grown)(images).blocks[0], before, rtol=0, atol=0)
    assert Watcher(grown).blocks[0].name == 'conv_head'


@pytest.mark.parametrize('growth', [None, 'mwa16'])
def test_the_maximum_is_over_positions(growth: str | None, images: torch.Tensor) -> None:
    network = timm.create_model('test_efficientnet', num_classes=5)
    network = (timm_devnet.grow(network, growth) if growth else network).eval()
    seen = Watcher(network, 'max')(images)
    with torch.no_grad():
        features = network.forward_features(images)
    torch.testing.assert_close(torch.cat(seen.blocks, 1), features.amax((2, 3)), rtol=0, atol=0)
    means = Watcher(network)(images).blocks
    assert all((block >= mean - 1e-6).all() for block, mean in zip(seen.blocks, means, strict=True))


def test_a_vector_has_no_maximum_over_positions() -> None:
    network = timm_devnet.grow(timm.create_model('test_efficientnet', num_classes=5), 'da16').eval()
    with pytest.raises(ValueError, match='fca has no positions: use --over mean'):
        Watcher(network, 'max')
