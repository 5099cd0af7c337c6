import pytest
import timm
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.state import AcceleratorState
from torch import nn

import timm_devnet
from training.config import Config
from training.schedule import create_groups, create_optimizer, create_schedule
from training.thaw import Thawing

CONFIG = Config(model='test_efficientnet', regime='new', thaw='conv_head-new@1,all@3', epochs=5, new_lr_mult=7.0)


@pytest.fixture
def network() -> nn.Module:
    return timm.create_model('test_efficientnet', num_classes=3).train()


def start(network: nn.Module, config: Config = CONFIG) -> tuple[Thawing, AcceleratedOptimizer]:
    AcceleratorState._reset_state()
    optimizer = Accelerator(cpu=True).prepare(create_optimizer(config, create_groups(config, network, config.regime)))
    return Thawing(config, network, optimizer), optimizer


def learn(network: nn.Module, optimizer: AcceleratedOptimizer) -> None:
    network(torch.rand(4, 3, 32, 32)).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def test_regimes_come_when_they_are_due(network: nn.Module) -> None:
    thawing, _ = start(network)
    came = [(thawing.thaw(epoch), thawing.regime) for epoch in range(5)]
    assert came == [(False, 'new'), (True, 'conv_head-new'), (False, 'conv_head-new'), (True, 'all'), (False, 'all')]


def test_momenta_of_what_goes_on_learning_are_kept(network: nn.Module) -> None:
    thawing, optimizer = start(network)
    learn(network, optimizer)
    before = {parameter: state['momentum_buffer'].clone() for parameter, state in optimizer.state.items()}
    assert len(before) == 2  # the classifier's
    thawing.thaw(3)
    assert len(optimizer.state) == 2
    for parameter, buffer in before.items():
        torch.testing.assert_close(optimizer.state[parameter]['momentum_buffer'], buffer, rtol=0, atol=0)
    learn(network, optimizer)
    assert len(optimizer.state) == len(list(network.parameters()))


@pytest.mark.parametrize('layer_decay', [None, 0.5])
def test_after_thawing_rates_and_decay_are_those_of_the_last_regime(
    network: nn.Module, layer_decay: float | None
) -> None:
    config = Config(**{**vars(CONFIG), 'layer_decay': layer_decay})
    thawing, optimizer = start(network, config)
    thawing.thaw(3)
    create_schedule(config, optimizer.optimizer, 10).step_update(12)
    found = {
        parameter: (group['lr'], group['weight_decay'])
        for group in optimizer.param_groups
        for parameter in group['params']
    }
    whole = create_optimizer(config, create_groups(config, network, 'all'))
    create_schedule(config, whole, 10).step_update(12)
    expected = {
        parameter: (group['lr'], group['weight_decay']) for group in whole.param_groups for parameter in group['params']
    }
    assert found == expected
    assert sum(len(group['params']) for group in optimizer.param_groups) == len(expected)


def test_groups_have_names_of_their_own(network: nn.Module) -> None:
    thawing, optimizer = start(network)
    thawing.thaw(3)
    names = [group['name'] for group in optimizer.param_groups]
    assert names[:2] == ['new', 'new, not decayed']
    assert 'old, since conv_head-new' in names
    assert len({*names}) == len(names)


def test_a_state_brings_back_groups_in_their_order(network: nn.Module) -> None:
    thawing, optimizer = start(network)
    thawing.thaw(3)
    learn(network, optimizer)
    names = [group['name'] for group in optimizer.param_groups]
    twin = timm.create_model('test_efficientnet', num_classes=3)
    other, fresh = start(twin)
    other.load_state_dict(thawing.state_dict())
    fresh.load_state_dict(optimizer.state_dict())
    assert [group['name'] for group in fresh.param_groups] == names
    buffers = {name: optimizer.state[parameter]['momentum_buffer'] for name, parameter in network.named_parameters()}
    loaded = {name: fresh.state[parameter]['momentum_buffer'] for name, parameter in twin.named_parameters()}
    torch.testing.assert_close(loaded, buffers, rtol=0, atol=0)


def test_grown_networks_thaw_level_by_level() -> None:
    network = timm.create_model('tf_efficientnet_lite0_mwa256', num_classes=3)
    regimes = timm_devnet.regimes(network)
    config = Config(regime=regimes[0], thaw=','.join(f'{name}@{place}' for place, name in enumerate(regimes[1:], 1)))
    thawing, optimizer = start(network, config)
    counts = []
    for epoch in range(len(regimes)):
        thawing.thaw(epoch)
        counts.append(sum(len(group['params']) for group in optimizer.param_groups))
        assert counts[-1] == sum(parameter.requires_grad for parameter in network.parameters())
    assert counts == sorted({*counts})
