import copy
import json
from pathlib import Path

import pytest
import timm
import torch
from accelerate import Accelerator

from training import tuning
from training.config import Config, MemoryFormat
from training.tuning import choose_memory_format

CONFIG = Config(model='test_efficientnet', batch_size=2)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    return tmp_path / 'timm_devnet' / 'tuning.json'


@pytest.fixture
def accelerator() -> Accelerator:
    return Accelerator(cpu=True)


def test_measuring_leaves_the_network_and_the_generators_alone(accelerator: Accelerator) -> None:
    network = timm.create_model('test_efficientnet', drop_rate=0.5)
    before, random = copy.deepcopy(network.state_dict()), torch.get_rng_state()
    seconds = tuning.measure(network, 2, 32, accelerator)
    assert all(0 < value < 60 for value in seconds.values())
    torch.testing.assert_close(network.state_dict(), before, rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(parameter.grad is None for parameter in network.parameters())


@pytest.mark.parametrize('faster', tuning.LAYOUTS)
def test_the_faster_layout_is_chosen_and_remembered(
    accelerator: Accelerator, cache: Path, faster: MemoryFormat, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuning, 'measure', lambda *_: {**dict.fromkeys(tuning.LAYOUTS, 2.0), faster: 1.0})
    network = timm.create_model('test_efficientnet')
    assert choose_memory_format(CONFIG, network, 32, accelerator) == faster
    monkeypatch.setattr(tuning, 'measure', None)  # would fail if it were called
    assert choose_memory_format(CONFIG, network, 32, accelerator) == faster
    (key,) = json.loads(cache.read_text())
    assert key.startswith('test_efficientnet, all, 2x32, ')


@pytest.mark.parametrize('content', ['no json', '[]', '{"test_efficientnet": 3}'])
def test_a_broken_file_counts_as_none(cache: Path, content: str, accelerator: Accelerator) -> None:
    cache.parent.mkdir()
    cache.write_text(content)
    assert tuning.read_choices(cache) == {}


def test_the_user_has_the_last_word(accelerator: Accelerator, cache: Path) -> None:
    network = timm.create_model('test_efficientnet')
    for given in tuning.LAYOUTS:
        config = Config(model='test_efficientnet', memory_format=given)
        assert choose_memory_format(config, network, 32, accelerator) == given
    assert choose_memory_format(Config(tune=False), network, 32, accelerator) == 'channels_last'
    assert not cache.exists()


def test_a_folder_that_cannot_be_written_is_no_obstacle(
    accelerator: Accelerator, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.parent.write_text('a file where the folder should be')
    monkeypatch.setattr(tuning, 'measure', lambda *_: {'channels_last': 2.0, 'contiguous_format': 1.0})
    assert choose_memory_format(CONFIG, timm.create_model('test_efficientnet'), 32, accelerator) == 'contiguous_format'
