from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.state import AcceleratorState
from torch import Tensor, nn

from training.config import Config
from training.l2_sp import StartingPoint
from training.schedule import create_groups, create_optimizer
from training.thaw import Thawing

WEIGHT = 0.3


@pytest.fixture
def network() -> nn.Module:
    return timm.create_model('test_efficientnet', num_classes=3).train()


def start(network: nn.Module, regime: str = 'all', **options: Any) -> tuple[StartingPoint, AcceleratedOptimizer]:
    AcceleratorState._reset_state()
    config = Config(model='test_efficientnet', regime=regime, l2_sp=WEIGHT, **options)
    optimizer = Accelerator(cpu=True).prepare(create_optimizer(config, create_groups(config, network, regime)))
    return StartingPoint(WEIGHT, network, optimizer), optimizer


def move(network: nn.Module) -> None:
    """Move what learns, as training would."""
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)


def gradients(network: nn.Module, penalty: Tensor | float = 0.0) -> dict[str, Tensor]:
    """Compute the gradients of some loss plus a penalty; they stay in the parameters too."""
    network.zero_grad()
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    (network.eval()(images).square().sum() + penalty).backward()
    return {name: parameter.grad.clone() for name, parameter in network.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize('regime', ['conv_head-new', 'all'])
def test_the_gradient_is_that_of_the_formula(network: nn.Module, regime: str) -> None:
    point, _ = start(network, regime)
    starts = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
    move(network)
    old = {name: p for name, p in network.named_parameters() if p.requires_grad and not name.startswith('classifier')}
    penalty = WEIGHT / 2 * torch.stack([(p - starts[name]).square().sum() for name, p in old.items()]).sum()
    expected = gradients(network, penalty)
    gradients(network)
    point.pull()
    found = {name: p.grad for name, p in network.named_parameters() if p.requires_grad}
    torch.testing.assert_close(found, expected)


def test_what_is_new_is_not_pulled(network: nn.Module) -> None:
    point, _ = start(network)
    move(network)
    before = gradients(network)
    point.pull()
    for name, parameter in network.classifier.named_parameters():
        torch.testing.assert_close(parameter.grad, before[f'classifier.{name}'], rtol=0, atol=0)


def test_where_gradients_are_scaled_the_penalty_is_too(network: nn.Module) -> None:
    point, _ = start(network)
    move(network)
    gradients(network)
    point.pull()
    plain = {name: parameter.grad.clone() for name, parameter in network.named_parameters()}
    gradients(network)
    for parameter in network.parameters():
        parameter.grad.mul_(1024)
    point.pull(SimpleNamespace(get_scale=lambda: 1024.0))
    scaled = {name: parameter.grad / 1024 for name, parameter in network.named_parameters()}
    torch.testing.assert_close(scaled, plain)


def test_it_stands_in_the_place_of_the_decay_of_old_weights(network: nn.Module) -> None:
    _, optimizer = start(network, weight_decay=0.02, layer_decay=0.5)
    decays = {(group['name'].partition(',')[0], group['weight_decay']) for group in optimizer.param_groups}
    assert decays == {('new', 0.02), ('new', 0.0), ('old', 0.0)}


def test_what_thaws_is_pulled_to_where_it_thawed(network: nn.Module) -> None:
    config = Config(model='test_efficientnet', regime='conv_head-new', thaw='all@1', l2_sp=WEIGHT)
    point, optimizer = start(network, 'conv_head-new', thaw='all@1')
    first = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
    assert point.starts.keys() == {'conv_head.weight', 'bn2.weight', 'bn2.bias'}
    move(network)
    Thawing(config, network, optimizer).thaw(1)
    point.follow()
    move(network)
    point.follow()
    expected = {name: tensor for name, tensor in first.items() if not name.startswith('classifier')}
    torch.testing.assert_close(point.starts, expected, rtol=0, atol=0)


def test_a_state_brings_back_the_starts_of_another_file(network: nn.Module) -> None:
    point, _ = start(network)
    starts = {name: tensor.clone() for name, tensor in point.starts.items()}
    other, _ = start(timm.create_model('test_efficientnet', num_classes=3))
    assert not torch.equal(other.starts['conv_stem.weight'], starts['conv_stem.weight'])
    other.load_state_dict(point.state_dict())
    torch.testing.assert_close(other.starts, starts, rtol=0, atol=0)
