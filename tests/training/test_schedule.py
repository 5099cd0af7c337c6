import pytest
import timm
import torch
from timm.optim import param_groups_layer_decay
from torch import nn

import timm_devnet
from training.config import Config
from training.schedule import create_groups, create_optimizer, create_schedule


def rates(config: Config, updates: int = 10) -> list[tuple[float, float]]:
    """Follow the rates of old and new layers through a run of 10 epochs."""
    old, new = (torch.nn.Parameter(torch.zeros(1)) for _ in range(2))
    groups = [
        {'params': [old], 'lr': config.lr, 'lr_scale': 1.0},
        {'params': [new], 'lr': config.lr, 'lr_scale': config.new_lr_mult},
    ]
    optimizer = create_optimizer(config, groups)
    schedule = create_schedule(config, optimizer, updates)
    followed = []
    for update in range(10 * updates):
        schedule.step_update(update)
        followed.append((optimizer.param_groups[0]['lr'], optimizer.param_groups[1]['lr']))
    return followed


@pytest.mark.parametrize('sched', ['step', 'cosine', 'tanh', 'none'])
def test_new_layers_learn_at_their_multiple_throughout(sched: str) -> None:
    config = Config(epochs=10, sched=sched, new_lr_mult=7.0)  # from the list above
    assert all(new == pytest.approx(7 * old) for old, new in rates(config))


def test_step_falls_twice_by_ten() -> None:
    old = [rate for rate, _ in rates(Config(epochs=10, warmup_epochs=0))]
    assert old[39] == pytest.approx(0.01)
    assert old[40] == old[79] == pytest.approx(0.001)
    assert old[80] == old[99] == pytest.approx(0.0001)


def test_warm_up_rises_update_by_update() -> None:
    old = [rate for rate, _ in rates(Config(epochs=10, sched='none'))]
    assert old[0] == pytest.approx(0.0001)
    assert old[:6] == sorted(old[:6])
    assert old[5:] == [pytest.approx(0.01)] * 95


def test_momentum_is_classical_and_reaches_the_optimizer() -> None:
    groups = [{'params': [torch.nn.Parameter(torch.zeros(1))], 'weight_decay': 0.3}]
    group = create_optimizer(Config(momentum=0.7), groups).param_groups[0]
    assert (group['momentum'], group['nesterov'], group['weight_decay']) == (0.7, False, 0.3)


def scales(network: nn.Module, config: Config, regime: str = 'all') -> dict[str, float]:
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    groups = create_groups(config, network, regime)
    assert len({group['name'] for group in groups}) == len(groups)
    return {names[id(parameter)]: group['lr_scale'] for group in groups for parameter in group['params']}


def test_layer_decay_of_a_plain_network_is_that_of_timm() -> None:
    network = timm.create_model('test_efficientnet', num_classes=3)
    found = scales(network, Config(layer_decay=0.8, new_lr_mult=1.0))
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    layers = param_groups_layer_decay(network, layer_decay=0.8)
    assert found == {names[id(parameter)]: layer['lr_scale'] for layer in layers for parameter in layer['params']}
    assert len({*found.values()}) == 7


def test_layer_decay_leaves_new_units_their_own_rate() -> None:
    network = timm.create_model('tf_efficientnet_lite0_mwa256', num_classes=3)
    plain, decayed = (scales(network, Config(layer_decay=decay)) for decay in (None, 0.5))
    for name, scale in decayed.items():
        if name.startswith(('grown.', 'classifier.')):
            assert scale == plain[name] == 10
        else:
            assert scale < plain[name] == 1
    assert decayed['conv_head.weight'] == 0.5
    assert decayed['conv_stem.weight'] == 0.5**17


def test_layer_decay_trains_nothing_that_the_regime_freezes() -> None:
    network = timm.create_model('test_efficientnet', num_classes=3)
    regime = timm_devnet.regimes(network)[1]
    plain, decayed = (scales(network, Config(layer_decay=decay), regime) for decay in (None, 0.5))
    assert decayed.keys() == plain.keys()
    assert not network.get_parameter('conv_stem.weight').requires_grad


def test_statistics_can_be_frozen_only_where_there_are_some() -> None:
    config = Config(freeze_bn_stats=True)
    network = timm.create_model('test_efficientnet', num_classes=3)
    create_groups(config, network, 'all')
    assert not any(module.training for module in network.train().modules() if isinstance(module, torch.nn.BatchNorm2d))
    with pytest.raises(ValueError, match=r'--freeze-bn-stats: .* has no BatchNorm: leave it out'):
        create_groups(config, timm.create_model('test_vit', num_classes=3), 'all')


def test_eps_and_betas_reach_the_optimizer() -> None:
    config = Config(opt='adamw', opt_eps=1e-4, opt_betas=(0.7, 0.8))
    groups = [{'params': [torch.nn.Parameter(torch.zeros(1))]}]
    group = create_optimizer(config, groups).param_groups[0]
    assert (group['eps'], group['betas']) == (1e-4, (0.7, 0.8))
