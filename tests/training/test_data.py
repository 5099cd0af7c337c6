import gc
import random
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from timm.data import create_transform
from torch.utils.data import DataLoader

from training.config import Config
from training.data import (
    UNREADABLE,
    Images,
    InputFormat,
    Normalize,
    create_images,
    create_loaders,
    seeded,
)
from training.order import EpochOrder, create_order
from training.sources import load_sources
from training.tasks import SingleLabel

FORMAT = InputFormat(img_size=32, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), interpolation='bicubic')


def make_images(root: Path, seed: int = 0) -> Images:
    source = load_sources(Config(data_dir=str(root)))['train']
    return Images(source, FORMAT.train_transform(Config(hflip=0.5)), seed, SingleLabel())


def make_loader(root: Path, workers: int) -> tuple[DataLoader, EpochOrder]:
    config = Config(data_dir=str(root), workers=workers, batch_size=4, threads=1).resolved()
    sources = load_sources(config)
    order = create_order(config, sources, processes=1)
    return create_loaders(config, create_images(config, sources, FORMAT, SingleLabel()), order)['train'], order


def test_augmentation_depends_on_epoch_and_index_only(image_folder: Path) -> None:
    images = make_images(image_folder)
    first = images[0, 3][0]
    _ = images[1, 3], images[0, 4]
    torch.testing.assert_close(images[0, 3][0], first, rtol=0, atol=0)
    assert not torch.equal(images[1, 3][0], first)


def test_augmentation_depends_on_the_seed(image_folder: Path) -> None:
    images, others = make_images(image_folder), make_images(image_folder, seed=7)
    same = [torch.equal(images[0, index][0], others[0, index][0]) for index in range(8)]
    assert same.count(True) <= 2  # one of the 50 crops and flips may be drawn twice


def test_global_generators_are_left_alone() -> None:
    before = torch.get_rng_state(), random.getstate(), np.random.get_state(legacy=False)
    with seeded(1, 2, 3):
        drawn = torch.rand(1).item(), random.random(), np.random.random()
    with seeded(1, 2, 3):
        assert (torch.rand(1).item(), random.random(), np.random.random()) == drawn
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert str(np.random.get_state(legacy=False)) == str(before[2])


def test_order_holds_whole_updates_of_different_images() -> None:
    order = EpochOrder(np.arange(10), seed=0, update_size=4)
    keys = list(order)
    assert len(keys) == len(order) == 8
    assert len({*keys}) == 8
    order.seek(epoch=1, updates_done=0)
    assert [epoch for epoch, _ in order] == [1] * 8
    assert [index for _, index in order] != [index for _, index in keys]


def test_order_goes_on_from_any_place() -> None:
    order = EpochOrder(np.arange(20), seed=0, update_size=4)
    order.seek(epoch=2, updates_done=0)
    whole = list(order)
    order.seek(epoch=2, updates_done=3)
    assert list(order) == whole[12:]


def test_too_few_images_for_one_update() -> None:
    with pytest.raises(ValueError, match=r'3 training images do not fill one update of 4 .* lower --batch-size'):
        EpochOrder(np.arange(3), seed=0, update_size=4)


@pytest.mark.parametrize('workers', [0, 2])
def test_loader_gives_the_same_batches_from_any_place(image_folder: Path, workers: int) -> None:
    reference, order = make_loader(image_folder, workers=0)
    order.seek(epoch=1, updates_done=0)
    expected = list(reference)[2:]
    loader, order = make_loader(image_folder, workers)
    list(loader)
    order.seek(epoch=1, updates_done=2)
    for (images, _, indices), (expected_images, _, expected_indices) in zip(loader, expected, strict=True):
        assert indices.tolist() == expected_indices.tolist()
        torch.testing.assert_close(images, expected_images, rtol=0, atol=0)


def test_loader_leaves_the_global_generator_alone(image_folder: Path) -> None:
    loader, _ = make_loader(image_folder, workers=0)
    before = torch.get_rng_state()
    list(loader)
    assert torch.equal(torch.get_rng_state(), before)


def test_evaluation_sees_what_timm_shows_to_others(image_folder: Path) -> None:
    image = load_sources(Config(data_dir=str(image_folder)))['val'].read(0)
    shown = create_transform(**FORMAT.timm_config(), is_training=False)(image)
    pixels = FORMAT.eval_transform()(image).movedim(0, -1)[None]
    for memory_format in (torch.channels_last, torch.contiguous_format):
        seen = Normalize(FORMAT.mean, FORMAT.std, memory_format)(pixels)
        assert seen.is_contiguous(memory_format=memory_format)
        torch.testing.assert_close(seen[0], shown, rtol=0, atol=0)
    assert FORMAT.timm_config()['crop_pct'] == 0.875


def test_training_images_are_resized_on_both_sides_then_cropped(image_folder: Path) -> None:
    resize = FORMAT.train_transform(Config(hflip=0.0)).transforms[0]  # type: ignore[attr-defined]
    assert resize.size == (36, 36)
    assert make_images(image_folder)[0, 0][0].shape == (32, 32, 3)


def test_without_augmentation_training_sees_what_evaluation_sees(image_folder: Path) -> None:
    image = load_sources(Config(data_dir=str(image_folder)))['val'].read(0)
    transform = FORMAT.train_transform(Config(no_aug=True).resolved())
    torch.testing.assert_close(transform(image), FORMAT.eval_transform()(image), rtol=0, atol=0)


@pytest.mark.parametrize(
    'options',
    [
        {'aa': 'rand-m9-mstd0.5'},
        {'aa': 'augmix-m5-w4-d2'},
        {'color_jitter': 0.4},
        {'vflip': 1.0},
        {'train_crop_mode': 'rrc'},
        {'train_crop_mode': 'rkrc'},
        {'train_crop_mode': 'rrc', 'scale': (0.9, 1.0), 'ratio': (1.0, 1.0)},
    ],
)
def test_each_augmentation_changes_images_and_draws_from_the_key_alone(image_folder: Path, options: dict) -> None:
    source = load_sources(Config(data_dir=str(image_folder)))['train']
    plain, images = (
        Images(source, FORMAT.train_transform(Config(hflip=0.0, **given)), seed=0, task=SingleLabel())
        for given in ({}, options)
    )
    pixels = torch.stack([images[0, index][0] for index in range(8)])
    assert (pixels.dtype, pixels.shape) == (torch.uint8, (8, 32, 32, 3))
    assert not torch.equal(pixels, torch.stack([plain[0, index][0] for index in range(8)]))
    before = torch.get_rng_state(), random.getstate(), str(np.random.get_state(legacy=False))
    torch.testing.assert_close(torch.stack([images[0, index][0] for index in range(8)]), pixels, rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (random.getstate(), str(np.random.get_state(legacy=False))) == before[1:]


@pytest.mark.parametrize('kept_bytes', [0, 20, 400])
def test_an_unreadable_image_has_no_target(image_folder: Path, kept_bytes: int) -> None:
    path = image_folder / 'train' / 'blue' / '0.png'
    path.write_bytes(path.read_bytes()[:kept_bytes])
    pixels, target, index = make_images(image_folder)[0, 0]
    assert (pixels.shape, target, index) == ((32, 32, 3), UNREADABLE, 0)


def test_workers_end_at_once(image_folder: Path) -> None:
    loader, _ = make_loader(image_folder, workers=2)
    next(iter(loader))
    start = time.monotonic()
    del loader
    gc.collect()
    assert time.monotonic() - start < 4  # torch gives a worker five seconds before it kills it
