"""What asks for more memory than there is is refused before it is taken, by every way in."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file

from timm_devnet import grow, memory

LITE = 'tf_efficientnet_lite0_wa512'
TOO_MUCH = r'would take [0-9,.]+ GB, and this machine has [0-9,.]+ GB of memory'


def test_the_memory_is_that_of_the_machine_or_less() -> None:
    total = memory.total_memory()
    assert total is not None and 2**28 < total < 2**46


def test_a_containers_limit_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, '_CONTAINER_LIMIT', tmp_path / 'memory.max')
    whole = memory.total_memory()
    (tmp_path / 'memory.max').write_text('max\n')
    assert memory.total_memory() == whole
    (tmp_path / 'memory.max').write_text('1000000\n')
    assert memory.total_memory() == 1_000_000


def test_bytes_are_counted_without_memory_for_them() -> None:
    tensors = [torch.empty(10**6, 10**6, device='meta'), torch.empty(3, dtype=torch.bfloat16)]
    assert memory.count_bytes(tensors) == 4 * 10**12 + 6


@pytest.fixture
def base_folder(tmp_path: Path) -> Path:
    """Write a base's weights."""
    save_file(timm.create_model('tf_efficientnet_lite0').state_dict(), tmp_path / 'base.safetensors')
    return tmp_path / 'base.safetensors'


@pytest.mark.parametrize('kwargs', [{'growth': 'da1000000_da1000000'}, {'num_classes': 10**9}, {'in_chans': 10**9}])
@pytest.mark.parametrize('pretrained', [False, True])
def test_create_model_refuses_it(kwargs: dict[str, Any], pretrained: bool, base_folder: Path) -> None:
    overlay = {'file': str(base_folder)}
    with pytest.raises(ValueError, match=TOO_MUCH):
        timm.create_model(LITE, pretrained=pretrained, pretrained_cfg_overlay=overlay, **kwargs)


def test_the_kernel_of_fc6_counts() -> None:
    with pytest.raises(ValueError, match='would take 100.9 GB'):  # 49 times that without it
        timm.create_model('vgg16_wa2048', pretrained=True, growth='r2u1000000at1')


def test_a_kernel_that_is_spelled_out_counts() -> None:
    with pytest.raises(ValueError, match=TOO_MUCH):  # 0.8 GB without it
        timm.create_model(LITE, growth='r2u1000000k15')


def test_grow_refuses_it_and_leaves_the_network_as_it_was() -> None:
    model = timm.create_model('tf_efficientnet_lite0', num_classes=2)
    with pytest.raises(ValueError, match=TOO_MUCH):
        grow(model, 'da1000000_da1000000')
    assert type(model).__name__ == 'EfficientNet'
    assert not hasattr(model, 'grown')


def test_shapes_alone_are_never_refused() -> None:
    model: Any = timm.create_model(LITE, growth='da1000000_da1000000', device='meta')
    assert sum(parameter.numel() for parameter in model.parameters()) > 10**12
