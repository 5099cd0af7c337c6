import hashlib
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from training import tensor_files
from training.tensor_files import DTYPES, write_tensors


def make(dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
    return (torch.randn(shape) * 50).to(dtype)


@pytest.mark.parametrize('piece_bytes', [1, 100, 1 << 24])
def test_the_library_reads_what_was_written(piece_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensor_files, 'PIECE_BYTES', piece_bytes)
    shapes = [(), (0,), (3,), (2, 0, 4), (5, 3, 2, 2)]
    tensors = {f'{dtype} {shape}': make(dtype, shape) for dtype in DTYPES for shape in shapes}
    tensors['channels last'] = make(torch.float32, (5, 3, 2, 2)).to(memory_format=torch.channels_last)
    tensors['one pixel, channels last'] = make(torch.float32, (5, 3, 1, 1)).to(memory_format=torch.channels_last)
    tensors['turned'] = make(torch.bfloat16, (4, 7)).T
    path = tmp_path / 'tensors.safetensors'
    checksum = write_tensors(path, tensors, {'format': 'pt', 'ü': '"\n'})
    read = load_file(path)
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert read[name].dtype == tensor.dtype and torch.equal(read[name], tensor)
    with safe_open(path, 'pt') as file:
        assert file.metadata() == {'format': 'pt', 'ü': '"\n'}
    assert checksum == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_type_without_a_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match='weight is of torch.complex64'):
        write_tensors(tmp_path / 'file', {'weight': torch.zeros(1, dtype=torch.complex64)})
    assert not list(tmp_path.iterdir())
