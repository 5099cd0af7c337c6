"""A stand-in Hub that huggingface_hub talks to, and staged folders to put there."""

import json
import os
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import close_session, constants, hf_api
from safetensors.torch import save_file

from tests.hub_server import HubServer, environment

ROOT = Path(__file__).parents[2]
CARD = '---\nlibrary_name: timm\nlicense: apache-2.0\ntags:\n- timm\n- timm_devnet\n---\n# A grown network\n'
SECTION = {
    'format': 1,
    'version': '0.1.0',
    'growth': 'mwa512',
    'base': {'model': 'tf_efficientnet_lite0.in1k', 'revision': None, 'tensors': '0' * 64},
    'delta': False,
    'storage': 'float32',
    'license': 'apache-2.0',
    'dataset': 'digits',
    'regime': 'all',
    'metrics': {'top1': 98.2, 'top5': 100.0, 'loss': 0.05, 'images': 1000, 'epoch': 3},
    'sha256': {},
}

Stage = Callable[..., Path]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """Start an empty stand-in Hub; in this process and its children huggingface_hub knows no other, and no cache."""
    home = tmp_path / 'hub-home'
    with HubServer() as server:
        for name, text in environment(server.url, str(home)).items():
            monkeypatch.setenv(name, text)
        # huggingface_hub has read the environment already.
        known = {
            'ENDPOINT': server.url,
            'HUGGINGFACE_CO_URL_TEMPLATE': server.url + '/{repo_id}/resolve/{revision}/{filename}',
            'HF_HOME': str(home),
            'HF_HUB_CACHE': str(home / 'hub'),
            'HF_TOKEN_PATH': str(home / 'token'),
            'HF_STORED_TOKENS_PATH': str(home / 'stored_tokens'),
            'HF_HUB_DISABLE_XET': True,
            'HF_HUB_OFFLINE': False,
        }
        for name, value in known.items():
            monkeypatch.setattr(constants, name, value)
        monkeypatch.setattr(hf_api.api, 'endpoint', server.url)
        yield server
        close_session()
    assert server.leaks == []


@pytest.fixture
def child_environment(hub: HubServer) -> dict[str, str]:
    """What a process of its own needs to talk to the stand-in."""
    return {**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1'}


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Note the seconds that huggingface_hub and we would wait for the Hub, instead of waiting."""
    waited: list[float] = []
    for module in ('huggingface_hub.utils._http', 'huggingface_hub.file_download', 'hub.faults'):
        monkeypatch.setattr(f'{module}.time', types.SimpleNamespace(sleep=waited.append))
    return waited


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    """Make a staged folder, by hand: its tensors hold random numbers."""

    def make(name: str = 'staged', seed: int = 0, numbers: int = 100_000, **changes: Any) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        tensors = {'head.weight': torch.randn(numbers, generator=torch.Generator().manual_seed(seed))}
        save_file(tensors, folder / 'model.safetensors', {'format': 'pt'})
        contents = {'architecture': 'tf_efficientnet_lite0_mwa512', 'timm_devnet': {**SECTION, **changes}}
        (folder / 'config.json').write_text(json.dumps(contents, indent=2))
        (folder / 'README.md').write_text(CARD)
        (folder / 'metrics.csv').write_text('epoch,val_top1\n1,98.2\n')
        (folder / 'growth.png').write_bytes(b'\x89PNG\r\n\x1a\n' + bytes([seed]) * 50_000)
        return folder

    return make


@pytest.fixture
def staged(stage: Stage) -> Path:
    """One staged folder."""
    return stage()
