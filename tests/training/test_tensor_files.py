import hashlib
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

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


ODD = {
    'scalar': torch.tensor(3),
    'empty': torch.empty(0, 3),
    'bool': torch.tensor([True, False, True]),
    'half': torch.arange(5, dtype=torch.float16),
    'transposed': torch.arange(6.0).reshape(2, 3).T,
    'channels_last': torch.rand(2, 3, 4, 5).to(memory_format=torch.channels_last),
    'nan': torch.tensor([float('nan'), -0.0]),
    'bytes': torch.arange(3, dtype=torch.uint8),
}


def test_the_tensors_lie_as_safetensors_itself_would_lay_them(tmp_path: Path) -> None:
    write_tensors(tmp_path / 'ours', ODD, {'format': 'pt'})
    save_file({name: tensor.contiguous() for name, tensor in ODD.items()}, tmp_path / 'theirs', {'format': 'pt'})
    assert (tmp_path / 'ours').read_bytes() == (tmp_path / 'theirs').read_bytes()


def test_the_checksum_is_that_of_the_file(tmp_path: Path) -> None:
    checksum = write_tensors(tmp_path / 'file', {'a': torch.rand(3_000_000)}, {})  # of several chunks
    assert checksum == hashlib.sha256((tmp_path / 'file').read_bytes()).hexdigest()


def test_only_floating_point_tensors_are_rounded(tmp_path: Path) -> None:
    write_tensors(tmp_path / 'file', ODD, {}, torch.bfloat16)
    kinds = {name: tensor.dtype for name, tensor in load_file(tmp_path / 'file').items()}
    assert {name for name, kind in kinds.items() if kind == torch.bfloat16} == {
        *('empty', 'half', 'transposed', 'channels_last', 'nan')
    }
    assert kinds['scalar'] == torch.int64


def test_types_that_are_not_stored_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match='tensor z is of type torch.complex64: only int64, float64'):
        write_tensors(tmp_path / 'file', {'z': torch.zeros(1, dtype=torch.complex64)}, {})
