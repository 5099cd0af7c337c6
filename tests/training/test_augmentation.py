import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from training.augmentation import BatchAugmentation, greatest_part
from training.config import Config
from training.data import UNREADABLE
from training.tasks import SingleLabel

CLASSES = 5
MODES = ('batch', 'pair', 'elem')


def batch(count: int = 8) -> tuple[Tensor, Tensor]:
    """Make images that are all of one value: the index of their class."""
    targets = torch.arange(count) % CLASSES
    return targets.float()[:, None, None, None].expand(-1, 3, 16, 16).clone(), targets


def augment(images: Tensor, targets: Tensor, epoch: int = 0, number: int = 0, process: int = 0, **options: Any) -> Any:
    [out], parts = BatchAugmentation(Config(**options), CLASSES, process, SingleLabel())(
        (images,), targets, epoch, number
    )
    return out, parts


def test_by_default_a_batch_stays_as_it_is() -> None:
    images, targets = batch()
    out, parts = augment(images, targets)
    assert out is images
    assert parts is targets


@pytest.mark.parametrize('mode', MODES)
@pytest.mark.parametrize('options', [{'mixup': 1.0}, {'cutmix': 1.0}, {'mixup': 1.0, 'cutmix': 1.0}])
def test_a_target_has_the_parts_of_its_image(mode: str, options: dict) -> None:
    images, parts = augment(*batch(), mixup_mode=mode, **options)
    assert not torch.equal(images, batch()[0])
    torch.testing.assert_close(parts.sum(1), torch.ones(8))
    torch.testing.assert_close(images.mean((1, 2, 3)), parts @ torch.arange(CLASSES).float())


@pytest.mark.parametrize('mode', MODES)
def test_an_image_with_an_unreadable_one_in_it_has_no_target(mode: str) -> None:
    images, targets = batch()
    targets[1] = UNREADABLE
    _, parts = augment(images, targets, mixup=1.0, mixup_mode=mode)
    _, whole = augment(*batch(), mixup=1.0, mixup_mode=mode)
    assert (parts.sum(1) == 0).nonzero().flatten().tolist() == [1, 6]  # images are mixed with those from the other end
    kept = [0, 2, 3, 4, 5, 7]
    torch.testing.assert_close(parts[kept], whole[kept], rtol=0, atol=0)


def test_only_unreadable_images_themselves_are_left_out_where_nothing_is_mixed() -> None:
    images, targets = batch()
    targets[1] = UNREADABLE
    _, parts = augment(images, targets, mixup=1.0, mixup_prob=0.0)
    assert greatest_part(parts).tolist() == targets.tolist()


def test_greatest_part() -> None:
    assert greatest_part(torch.tensor([[0.3, 0.7], [0.8, 0.2], [0.0, 0.0]])).tolist() == [1, 0, UNREADABLE]
    assert greatest_part(torch.tensor([4, UNREADABLE])).tolist() == [4, UNREADABLE]


@pytest.mark.parametrize('options', [{'mixup': 1.0, 'mixup_mode': 'elem'}, {'cutmix': 1.0}, {'reprob': 1.0}])
def test_randomness_depends_on_seed_epoch_batch_and_process_only(options: dict) -> None:
    images, _ = augment(*batch(), epoch=1, number=2, process=3, **options)
    torch.rand(1), random.random(), np.random.random()
    again, _ = augment(*batch(), epoch=1, number=2, process=3, **options)
    torch.testing.assert_close(again, images, rtol=0, atol=0)
    for change in ({'epoch': 0}, {'number': 0}, {'process': 0}, {'seed': 7}):
        other, _ = augment(*batch(), **{'epoch': 1, 'number': 2, 'process': 3, **options, **change})
        assert not torch.equal(other, images)


def test_global_generators_are_left_alone() -> None:
    before = torch.get_rng_state(), random.getstate(), str(np.random.get_state(legacy=False))
    augment(*batch(), mixup=1.0, cutmix=1.0, reprob=1.0)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (random.getstate(), str(np.random.get_state(legacy=False))) == before[1:]


def test_mixing_ends() -> None:
    config = dict(mixup=1.0, mixup_off_epoch=2)
    assert augment(*batch(), epoch=1, **config)[1].ndim == 2
    assert augment(*batch(), epoch=2, **config)[1].ndim == 1


@pytest.mark.parametrize(('mode', 'is_noise'), [('const', False), ('rand', False), ('pixel', True)])
def test_erasing(mode: str, is_noise: bool) -> None:
    images, targets = torch.full((8, 3, 16, 16), 5.0), torch.arange(8)
    erased, same = augment(images.clone(), targets, reprob=1.0, remode=mode)
    assert same is targets
    assert all((erased != images).flatten(1).any(1))
    assert (len(erased.unique()) > 100) == is_noise
    assert (erased == 0).any() == (mode == 'const')


def test_memory_format_is_kept() -> None:
    images, targets = batch()
    images = images.to(memory_format=torch.channels_last)
    for options in ({'mixup': 1.0}, {'cutmix': 1.0, 'reprob': 1.0}):
        out, _ = augment(images.clone(), targets, **options)
        assert out.is_contiguous(memory_format=torch.channels_last)
