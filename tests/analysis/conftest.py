"""A finished run of a grown network and one of its plain base, made once for all tests here."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

import train
from tests.conftest import write_colours
from training.config import Config

Train = Callable[..., Path]


@pytest.fixture(scope='session')
def train_run(tmp_path_factory: pytest.TempPathFactory) -> Train:
    """Train a small network on three colours; the same options give the same run folder."""
    root = tmp_path_factory.mktemp('analysis')
    images = write_colours(root / 'colours')
    made: dict[str, Path] = {}

    def make(**options: object) -> Path:
        key = repr(sorted(options.items()))
        if key not in made:
            config = Config(
                data_dir=str(images),
                model='test_efficientnet_wa16',
                pretrained=False,
                img_size=32,
                batch_size=8,
                epochs=2,
                threads=1,
                memory_format='channels_last',
                output=str(root),
                experiment=f'run{len(made)}',
                tracker='none',
            )
            made[key] = Path(train.main(dataclasses.replace(config, **options))['run'])
        return made[key]

    return make


@pytest.fixture
def grown_run(train_run: Train) -> Path:
    """A network grown by 16 new units."""
    return train_run()


@pytest.fixture
def plain_run(train_run: Train) -> Path:
    """The same network without them."""
    return train_run(model='test_efficientnet')
