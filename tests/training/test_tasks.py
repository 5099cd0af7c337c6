"""What targets are in batches, for both tasks."""

import pytest
import torch
from torch.utils.data import default_collate

from training.augmentation import BatchAugmentation
from training.config import Config
from training.data import UNREADABLE, is_readable
from training.tasks import MultiLabel, SingleLabel, Task, choose_task

TARGETS = torch.tensor([[1.0, 0, 0], [1, 1, 0], [0, 0, 0], [0, 0, 1]])


def mix(targets: torch.Tensor, **options: float) -> torch.Tensor:
    images = torch.rand(len(targets), 3, 8, 8, generator=torch.Generator().manual_seed(0))
    augment = BatchAugmentation(Config(mixup=1.0, seed=1, **options), targets.shape[1], 0, MultiLabel(targets.shape[1]))
    return augment((images,), targets, 0, 0)[1]


@pytest.mark.parametrize(('multi_label', 'kind'), [(False, SingleLabel), (True, MultiLabel)])
def test_the_task_is_chosen(multi_label: bool, kind: type) -> None:
    assert isinstance(choose_task(multi_label, 3), kind)


def test_labels_become_ones_in_a_row_of_all_outputs() -> None:
    task = MultiLabel(4)
    batch = default_collate([task.encode(target) for target in ((0, 2), (), (3,))])
    assert batch.tolist() == [[1, 0, 1, 0], [0, 0, 0, 0], [0, 0, 0, 1]]


@pytest.mark.parametrize('task', [SingleLabel(), MultiLabel(3)])
def test_unreadable_images_are_told_from_others(task: Task) -> None:
    batch = default_collate([task.encode(task.blank), task.unreadable, task.encode(task.blank)])
    assert is_readable(batch).tolist() == [True, False, True]


def test_mixed_labels_have_the_parts_of_their_images() -> None:
    mixed = mix(TARGETS)
    part = (mixed[0, 0] - TARGETS[3, 0]) / (TARGETS[0, 0] - TARGETS[3, 0])
    assert 0 < part < 1
    torch.testing.assert_close(mixed, part * TARGETS + (1 - part) * TARGETS.flip(0))


def test_an_image_with_an_unreadable_one_in_it_is_unreadable() -> None:
    targets = TARGETS.clone()
    targets[1] = UNREADABLE
    mixed = mix(targets)
    assert is_readable(mixed).tolist() == [True, False, False, True]  # images are mixed with those from the other end
    torch.testing.assert_close(mixed[[0, 3]], mix(TARGETS)[[0, 3]], rtol=0, atol=0)
