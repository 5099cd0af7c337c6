import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from accelerate import Accelerator
from torch import nn

import timm_devnet
from training.config import Config
from training.data import UNREADABLE, InputFormat, Normalize, create_images
from training.features import Features
from training.sources import load_sources
from training.tasks import SingleLabel

FORMAT = InputFormat(img_size=32, mean=(0.5,) * 3, std=(0.5,) * 3, interpolation='bicubic')


@pytest.fixture
def config(image_folder: Path) -> Config:
    return Config(
        data_dir=str(image_folder), model='test_efficientnet', regime='new', batch_size=5, cache_features=2, workers=0
    ).resolved()


@pytest.fixture
def network() -> nn.Module:
    network = timm.create_model('test_efficientnet', num_classes=3)
    timm_devnet.parameter_groups(network, 'new', lr=0.01, weight_decay=0.0)
    return network


def create(config: Config, network: nn.Module) -> tuple[Features, nn.Module]:
    images = create_images(config, load_sources(config), FORMAT, SingleLabel())
    normalize = Normalize(FORMAT.mean, FORMAT.std, torch.contiguous_format)
    return Features.create(config, network, images, np.arange(1, 24, 2), normalize, Accelerator(cpu=True))


def never() -> bool:
    return False


def test_views_are_what_the_epochs_show(config: Config, network: nn.Module, tmp_path: Path) -> None:
    features, head = create(config, network)
    assert features.fill(tmp_path, never)
    network.eval(), head.eval()
    views = features.views['train']
    for epoch in range(4):
        values, targets, indices = views.__getitems__([(epoch, 3), (epoch, 1)])
        pixels, expected, _ = zip(*(views.images[epoch % 2, index] for index in (3, 1)), strict=True)
        assert (indices.tolist(), targets.tolist()) == ([3, 1], list(expected))
        with torch.no_grad():
            whole = network(features.normalize(torch.stack(pixels)))
            torch.testing.assert_close(head(*features.arrange(values)), whole)


def test_a_batch_is_of_one_epoch(config: Config, network: nn.Module, tmp_path: Path) -> None:
    features, _ = create(config, network)
    features.fill(tmp_path, never)
    with pytest.raises(ValueError, match=r'a batch is of one epoch; given \[0, 1\]'):
        features.views['train'].__getitems__([(0, 1), (1, 1)])


def test_bf16_halves_the_files(config: Config, network: nn.Module, tmp_path: Path) -> None:
    sizes = {}
    for dtype in ('fp32', 'bf16'):
        features, _ = create(dataclasses.replace(config, cache_dtype=dtype), network)
        features.fill(tmp_path / dtype, never)
        sizes[dtype] = (tmp_path / dtype / 'train-000' / '0.npy').stat().st_size - 128  # numpy's header
        (values, *_) = features.views['val'].__getitems__([(0, 0)])
        assert values[0].dtype == {'fp32': torch.float32, 'bf16': torch.bfloat16}[dtype]
    assert sizes['fp32'] == 2 * sizes['bf16'] > 0


def test_what_is_whole_is_not_computed_again(config: Config, network: nn.Module, tmp_path: Path) -> None:
    root = tmp_path / 'features'
    features, _ = create(config, network)
    asked = iter([False] * 3 + [True])  # three batches of the first view, one of the second
    assert not features.fill(root, lambda: next(asked))
    assert sorted(path.name for path in root.iterdir()) == ['.train-001.unfinished', 'train-000']
    before = (root / 'train-000' / '0.npy').stat().st_mtime_ns
    assert features.fill(root, never)
    assert sorted(path.name for path in root.iterdir()) == ['train-000', 'train-001', 'val-000']
    assert (root / 'train-000' / '0.npy').stat().st_mtime_ns == before


def test_unreadable_images_stay_without_target(
    config: Config, network: nn.Module, image_folder: Path, tmp_path: Path
) -> None:
    (image_folder / 'train' / 'blue' / '1.png').write_bytes(b'no image')
    features, _ = create(config, network)
    features.fill(tmp_path, never)
    assert features.views['train'].__getitems__([(0, 1), (0, 3)])[1].tolist() == [UNREADABLE, 0]


def test_a_disk_that_is_too_small_is_told_before(
    config: Config, network: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    features, _ = create(config, network)
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, 'disk_usage', lambda _: usage)
    with pytest.raises(ValueError, match=r'the features need .* GB free: lower --cache-features'):
        features.fill(tmp_path, never)
    assert list(tmp_path.iterdir()) == [tmp_path / 'colours']
