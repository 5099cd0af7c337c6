"""A cache of the Hub written by hand, so that repositories need no Hub, and other places that timm looks at."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from timm.models import get_pretrained_cfg
from timm.models._hub import save_config_for_hf
from torch import Tensor, nn

State = dict[str, Tensor]


def write_checkpoint(folder: Path, model: nn.Module, tensors: State, delta_of: Mapping[str, Any] | None = None) -> None:
    """Write config.json and model.safetensors as a staged folder has them."""
    folder.mkdir(parents=True, exist_ok=True)
    save_config_for_hf(model, str(folder / 'config.json'))
    config = json.loads((folder / 'config.json').read_text())
    config.setdefault('model_args', {}).pop('num_classes', None)
    if delta_of is not None:
        config['model_args']['delta_of'] = dict(delta_of)
    (folder / 'config.json').write_text(json.dumps(config))
    save_file(tensors, folder / 'model.safetensors')


def snapshot(cache: Path, repo_id: str, commit: str) -> Path:
    """Make room for a commit of a repository, its main branch."""
    repository = cache / f'models--{repo_id.replace("/", "--")}'
    (repository / 'refs').mkdir(parents=True, exist_ok=True)
    (repository / 'refs' / 'main').write_text(commit)
    folder = repository / 'snapshots' / commit
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def put_base(cache: Path, name: str, state: State, commit: str) -> str | None:
    """Put a base's weights where timm looks for them; gives the commit, if that is a repository."""
    cfg = get_pretrained_cfg(name)
    assert cfg is not None
    if not cfg.hf_hub_id:
        cache.mkdir(parents=True, exist_ok=True)
        torch.save(state, cache / Path(str(cfg.url)).name)
        return None
    save_file(state, snapshot(cache, cfg.hf_hub_id, commit) / 'model.safetensors')
    return commit
