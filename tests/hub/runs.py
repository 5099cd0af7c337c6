"""A real run to stage: a grown EfficientNet-Lite0 trained for a moment, from a base in a file."""

from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save_file

import train
from tests.conftest import write_colours
from training.config import Config

MODEL = 'tf_efficientnet_lite0_wa16'
TAG = 'tf_efficientnet_lite0.in1k'


def train_run(root: Path, **options: Any) -> Path:
    """Train in a folder: images in colours/, the base in base.safetensors, the run in runs/run, which is returned."""
    write_colours(root / 'colours')
    torch.manual_seed(0)
    save_file(timm.create_model('tf_efficientnet_lite0').state_dict(), root / 'base.safetensors')
    values: dict[str, Any] = {
        'data_dir': str(root / 'colours'),
        'model': MODEL,
        'pretrained_path': str(root / 'base.safetensors'),
        'regime': 'new',
        'img_size': 32,
        'batch_size': 8,
        'epochs': 1,
        'workers': 0,
        'threads': 1,
        'memory_format': 'channels_last',
        'output': str(root / 'runs'),
        'experiment': 'run',
        'tracker': 'none',
        'report': False,
        **options,
    }
    return Path(train.main(Config(**values))['run'])
