"""A small folder as it is published, which tests then break: EfficientNet in timm's test size, grown."""

import contextlib
import hashlib
import json
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save_file
from timm.models._hub import save_config_for_hf
from torch import Tensor

from timm_devnet.registration import grown_cfgs, register_grown

BASES, GROWTHS = ('test_efficientnet',), ('wa',)
default_cfgs = grown_cfgs(BASES, GROWTHS)
register_grown(__name__, BASES, GROWTHS, feature_levels=5)

ARCHITECTURE = 'test_efficientnet_wa'
BASE = {'model': 'test_efficientnet.r160_in1k', 'revision': 'a' * 40, 'tensors': 'b' * 64}
PNG = b'\x89PNG\r\n\x1a\n' + b'picture'


def write_staged(folder: Path, storage: str = 'float32') -> None:
    """Write a whole published folder."""
    model: Any = timm.create_model(ARCHITECTURE, growth='wa8', num_classes=3)
    tensors = {
        name: tensor.to(getattr(torch, storage)) if tensor.is_floating_point() else tensor
        for name, tensor in model.state_dict().items()
    }
    _write(folder, model, tensors, BASE, storage=storage)


def write_alexnet_delta(folder: Path) -> None:
    """Write a published folder of AlexNet's new units and classifier alone."""
    model: Any = timm.create_model('alexnet_wa2048', device='meta', growth='wa8', num_classes=3)
    tensors = {
        name: torch.zeros(tensor.shape)
        for name, tensor in model.state_dict().items()
        if name.startswith(('grown.', 'head.fc.'))
    }
    base = {'model': 'alexnet.tv_in1k', 'revision': None, 'tensors': 'b' * 64}
    _write(folder, model, tensors, base, delta=True)


def _write(
    folder: Path, model: Any, tensors: dict[str, Tensor], base: Any, delta: bool = False, storage: str = 'float32'
) -> None:
    folder.mkdir()
    described = {'label_names': ['cat', 'dog', 'emu'], 'pretrained_cfg': {'crop_pct': 1.0, 'crop_mode': 'squash'}}
    save_config_for_hf(model, str(folder / 'config.json'), model_config=described)
    config = json.loads((folder / 'config.json').read_text())
    del config['model_args']['num_classes']
    if delta:
        config['model_args']['delta_of'] = base
    metadata = {'format': 'pt', 'config': '{"lr": 0.01}', 'growth': 'wa8', 'base': json.dumps(base)}
    save_file(tensors, folder / 'model.safetensors', metadata)
    (folder / 'README.md').write_text('# A grown network\n')
    (folder / 'metrics.csv').write_text('epoch,val_top1\n1,98.0\n')
    (folder / 'curves.png').write_bytes(PNG)
    (folder / 'growth.png').write_bytes(PNG)
    config['timm_devnet'] = {
        'format': 1,
        'version': '0.1.0',
        'growth': 'wa8',
        'base': base,
        'delta': delta,
        'storage': storage,
        'license': 'apache-2.0',
        'dataset': 'digits',
        'regime': 'all',
        'metrics': {'top1': 98.2, 'top5': 100.0, 'loss': 0.05, 'images': 1000, 'epoch': 3},
    }
    write_config(folder, config)
    restate(folder)


def read_config(folder: Path) -> dict[str, Any]:
    """Read config.json."""
    return json.loads((folder / 'config.json').read_text())


def write_config(folder: Path, config: dict[str, Any]) -> None:
    """Write config.json."""
    (folder / 'config.json').write_text(json.dumps(config))


def restate(folder: Path) -> None:
    """State the checksums of the files as they are now."""
    names = ('model.safetensors', 'metrics.csv', 'curves.png', 'growth.png')
    config = read_config(folder)
    config['timm_devnet']['sha256'] = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}
    write_config(folder, config)


@contextlib.contextmanager
def one_gib_more() -> Iterator[None]:
    """Let this process take at most 1 GiB more of memory than it has."""
    pages = int(Path('/proc/self/statm').read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 2**30, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
