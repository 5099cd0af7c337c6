import pytest
import torch

from training.config import Config
from training.schedule import create_optimizer, create_schedule


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
