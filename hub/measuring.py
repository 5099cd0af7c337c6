"""What rounding costs: weights as they are stored, measured on the run's own validation images."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from training import evaluation
from training.config import Config
from training.image_cache import open_cache
from training.sources import fingerprint, load_sources
from training.tensor_files import write_tensors

from .layout import WEIGHTS
from .material import Material
from .record import Record


def evaluation_of(record: Record | None) -> Config:
    """Configure an evaluation on the run's own validation images.

    Raises:
        ValueError: They cannot be had, or are others now.
    """
    assert record is not None, 'only runs are measured'
    what = f'weights in bf16 are measured again on the images of {record.folder.path}'
    kept = {name: record.config[name] for name in ('batch_size', 'bad_images', 'img_size')}
    config = Config(model=str(record.folder.path), eval_only=True, report=False, tracker='none', **kept)
    config = evaluation.with_data_of(config, record.folder)
    try:
        sources = load_sources(config.resolved(), open_cache(config.resolved()))
    except ValueError as error:
        raise ValueError(f'{what}, which cannot be had: {error}') from error
    if fingerprint(*sources.values()) != record.facts['data']['fingerprint']:
        raise ValueError(f'{what}, which are not the same any more: restore them, or leave out dtype')
    if record.metrics() is None:
        raise ValueError(f'{what}, but the run never was: leave out dtype')
    return config


def measure_stored(
    material: Material, stored: Mapping[str, Tensor], config: dict[str, Any], rounded: torch.dtype, place: Path
) -> dict[str, float]:
    """Measure the weights as they are stored.

    Args:
        material: What is staged.
        stored: The tensors that are written.
        config: config.json.
        rounded: What floating-point tensors are written in.
        place: Where they lie.

    Returns:
        top1_stored or map_stored, in percent.
    """
    asked = evaluation_of(material.record)
    with contextlib.ExitStack() as stack:
        if len(stored) < len(material.tensors):  # a delta: what is not stored comes from the base, as it is
            whole = {
                name: tensor.to(rounded) if name in stored and tensor.is_floating_point() else tensor
                for name, tensor in material.tensors.items()
            }
            place = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=place)))
            write_tensors(place / WEIGHTS, whole, {'format': 'pt'})
            config = {**config, 'model_args': {k: v for k, v in config['model_args'].items() if k != 'delta_of'}}
        (place / 'config.json').write_text(json.dumps(config), encoding='utf-8')
        with contextlib.redirect_stdout(io.StringIO()):
            result = evaluation.evaluate_only(dataclasses.replace(asked, model=str(place)))
    return {f'{name}_stored': result[name] for name in ('top1', 'map') if result.get(name) is not None}
