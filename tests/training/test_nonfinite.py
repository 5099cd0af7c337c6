from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import nn

from training.config import Config
from training.data import UNREADABLE
from training.nonfinite import MOST_SKIPPED_IN_A_ROW, LossWatch
from training.sources import load_sources

NAN = torch.tensor(float('nan'))
INDICES = torch.tensor([0, 8])


@pytest.fixture
def accelerator() -> Accelerator:
    return Accelerator(cpu=True)


def make_watch(image_folder: Path, skips: bool) -> LossWatch:
    network = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    return LossWatch(network, load_sources(Config(data_dir=str(image_folder)))['train'], skips)


def give_update(
    watch: LossWatch, accelerator: Accelerator, update: int, loss: torch.Tensor, images: float = 1.0
) -> bool:
    watch.begin_batch()
    watch.network(torch.full((2, 3), images) * torch.tensor([[1.0], [2.0]])).sum().backward()
    watch.note(1, update, loss, INDICES)
    return watch.leaves_out(accelerator)


def test_finite_losses_are_not_told(image_folder: Path, accelerator: Accelerator) -> None:
    watch = make_watch(image_folder, skips=False)
    assert not give_update(watch, accelerator, 1, torch.tensor(1.0))
    assert watch.look(accelerator) == []


def test_the_first_bad_update_is_told_with_its_images(image_folder: Path, accelerator: Accelerator) -> None:
    watch = make_watch(image_folder, skips=False)
    for update, loss in enumerate((torch.tensor(1.0), -torch.inf * torch.ones(()), NAN), start=1):
        assert not give_update(watch, accelerator, update, loss)
    told = 'epoch 1, update 2, process 0: loss -inf\n  train/blue/0.png\n  train/green/0.png\n'
    assert watch.look(accelerator) == [told]
    assert watch.look(accelerator) == []


def test_a_skipped_update_leaves_no_trace_in_the_running_statistics(
    image_folder: Path, accelerator: Accelerator
) -> None:
    watch = make_watch(image_folder, skips=True)
    assert not give_update(watch, accelerator, 1, torch.tensor(1.0))
    watch.network.zero_grad()
    before = [buffer.clone() for buffer in watch.network.buffers()]
    assert give_update(watch, accelerator, 2, NAN, images=float('nan'))
    torch.testing.assert_close([*watch.network.buffers()], before, rtol=0, atol=0)
    assert [told.splitlines()[0] for told in watch.look(accelerator)] == ['epoch 1, update 2, process 0: loss nan']


def test_a_gradient_that_is_not_finite_is_skipped_too(image_folder: Path, accelerator: Accelerator) -> None:
    watch = make_watch(image_folder, skips=True)
    assert give_update(watch, accelerator, 1, torch.tensor(1.0), images=float('inf'))
    assert watch.look(accelerator)[0].startswith('epoch 1, update 1, process 0: gradient not finite, loss 1.0\n')


@pytest.mark.parametrize('skips', [False, True])
def test_metrics_count_what_is_not_skipped(image_folder: Path, skips: bool) -> None:
    watch, targets = make_watch(image_folder, skips), torch.tensor([1, 2])
    loss, counted = watch.counted(NAN, targets)
    assert loss.isnan().item() != skips
    assert counted.tolist() == ([UNREADABLE] * 2 if skips else [1, 2])
    loss, counted = watch.counted(torch.tensor(3.0), targets)
    assert (loss.item(), counted.tolist()) == (3.0, [1, 2])


def test_skipping_without_end_is_hopeless(image_folder: Path, accelerator: Accelerator) -> None:
    watch = make_watch(image_folder, skips=True)
    for update in range(MOST_SKIPPED_IN_A_ROW - 1):
        give_update(watch, accelerator, update, NAN)
    assert not watch.is_hopeless()
    give_update(watch, accelerator, 99, NAN)
    assert watch.is_hopeless()
    watch.network.zero_grad()
    give_update(watch, accelerator, 100, torch.tensor(1.0))
    assert not watch.is_hopeless()


@pytest.mark.parametrize('place', [0, 1])
def test_weights_and_statistics_that_are_not_finite_are_told(
    image_folder: Path, accelerator: Accelerator, place: int
) -> None:
    watch = make_watch(image_folder, skips=False)
    give_update(watch, accelerator, 1, torch.tensor(1.0))
    assert watch.look_at_weights(accelerator) == []
    poisoned = watch.network[0].weight if place == 0 else watch.network[1].running_var
    with torch.no_grad():
        poisoned[0] = np.inf
    assert watch.look_at_weights(accelerator)[0].startswith('epoch 1, update 1, process 0: weights not finite')
