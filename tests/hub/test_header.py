"""The header of a safetensors file: what is read and what is refused."""

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from hub.header import Entry, read_header

FILE = 'model.safetensors'


def write(folder: Path, header: Any, data: bytes, length: int | None = None) -> Path:
    content = header if isinstance(header, bytes) else json.dumps(header).encode()
    path = folder / FILE
    path.write_bytes(struct.pack('<Q', len(content) if length is None else length) + content + data)
    return path


def tensor(shape: Any, offsets: Any, dtype: Any = 'F32', **more: Any) -> dict[str, Any]:
    return {'dtype': dtype, 'shape': shape, 'data_offsets': offsets, **more}


def test_what_safetensors_writes_is_read(tmp_path: Path) -> None:
    save_file({'b': torch.ones(2, 3), 'a': torch.tensor(7)}, tmp_path / FILE, {'format': 'pt'})
    header = read_header(tmp_path / FILE)
    assert header.metadata == {'format': 'pt'}
    assert header.numbers == 7
    entry = header.tensors['b']
    assert (entry.dtype, entry.shape) == ('F32', (2, 3))
    assert (tmp_path / FILE).read_bytes()[entry.start : entry.stop] == torch.ones(6).numpy().tobytes()


def test_tensors_come_in_the_order_of_their_data(tmp_path: Path) -> None:
    path = write(tmp_path, {'a': tensor([1], [4, 8]), 'b': tensor([1], [0, 4])}, bytes(8))
    assert list(read_header(path).tensors) == ['b', 'a']


WRONG: list[tuple[Any, bytes, str]] = [
    ({'a': tensor([2], [0, 8]), 'b': tensor([2], [4, 12])}, bytes(12), "tensor 'b' overlaps tensor 'a'"),
    ({'a': tensor([2], [0, 8]), 'b': tensor([2], [0, 8])}, bytes(8), "tensor 'b' overlaps tensor 'a'"),
    ({'a': tensor([2], [0, 8]), 'b': tensor([2], [12, 20])}, bytes(20), "tensor 'b' leaves a hole after tensor 'a'"),
    ({'a': tensor([2], [4, 12])}, bytes(12), "tensor 'a' leaves a hole after the header"),
    ({'a': tensor([2], [0, 8])}, bytes(9), 'the tensors take 8 bytes, the file has 9'),
    ({'a': tensor([2], [0, 8])}, bytes(7), 'the tensors take 8 bytes, the file has 7'),
    ({'a': tensor([250 * 10**9], [0, 10**12])}, bytes(8), 'the tensors take 1,000,000,000,000 bytes'),
    ({'a': tensor([3], [0, 8])}, bytes(8), 'takes 12 bytes; its data_offsets .0, 8. give it 8'),
    ({'a': tensor([2], [8, 0])}, bytes(8), 'data_offsets .8, 0. give it -8'),
    ({'a': tensor([2**33, 2**33], [0, 8])}, bytes(8), 'give it 8'),
    ({'a': tensor([2**62, 4], [0, 0])}, b'', 'give it 0'),
    ({'a': tensor([-2], [0, 8])}, bytes(8), 'has a shape of at most 8 whole numbers from 0'),
    ({'a': tensor([2.0], [0, 8])}, bytes(8), 'has a shape of at most 8 whole numbers from 0'),
    ({'a': tensor([True, 2], [0, 8])}, bytes(8), 'has a shape of at most 8 whole numbers from 0'),
    ({'a': tensor([1] * 9, [0, 4])}, bytes(4), 'has a shape of at most 8 whole numbers from 0'),
    ({'a': tensor('2', [0, 8])}, bytes(8), 'has a shape of at most 8 whole numbers from 0'),
    ({'a': tensor([float('nan')], [0, 8])}, bytes(8), 'the header of model.safetensors has NaN'),
    ({'a': tensor([2], [0, 8, 8])}, bytes(8), 'has data_offsets that are two whole numbers'),
    ({'a': tensor([2], [-8, 0])}, bytes(8), 'has data_offsets that are two whole numbers'),
    ({'a': tensor([1], [0, 8], 'F64')}, bytes(8), 'has a dtype that is one of F32, BF16'),
    ({'a': tensor([2], [0, 1], 'F4')}, bytes(1), 'has a dtype that is one of F32, BF16'),
    ({'a': tensor([2], [0, 8], ['F32'])}, bytes(8), 'has a dtype that is one of F32, BF16'),
    ({'a': tensor([2], [0, 8], more=1)}, bytes(8), 'is described by dtype, shape and data_offsets, nothing else'),
    ({'a': None}, b'', 'is described by dtype, shape and data_offsets, nothing else'),
    ({'\x1b[31m': tensor([1], [0, 4])}, bytes(4), r"printable characters; found '.x1b\[31m'"),
    ({'': tensor([1], [0, 4])}, bytes(4), 'a tensor has a name of 1 to 500'),
    ({'__metadata__': {'format': 1}}, b'', 'has metadata that is no object of texts'),
    ({'__metadata__': ['pt']}, b'', 'has metadata that is no object of texts'),
    (b'{"a": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}, "a": {}}', b'', "has the key 'a' twice"),
    (b'{"a":' + b'[' * 100_000, b'', 'is nested at most 16 deep'),
    (b'[1]', b'', r"its header begins with b'\[', not {"),
    (b' {}', b'', "its header begins with b' ', not {"),
    (b'', b'', "its header begins with b'', not {"),
    (b'{', b'', 'the header of model.safetensors is no JSON'),
]


@pytest.mark.parametrize(('header', 'data', 'message'), WRONG, ids=[message for _, _, message in WRONG])
def test_a_wrong_header_is_refused(header: Any, data: bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        read_header(write(tmp_path, header, data))


@pytest.mark.parametrize('length', [100, 2**40, 2**63, 2**64 - 1])
def test_a_header_longer_than_the_file_is_refused(length: int, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r'its header needs more than its 18 bytes'):
        read_header(write(tmp_path, b'{}', bytes(8), length))


def test_a_file_without_a_length_is_refused(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b'1234567')
    with pytest.raises(ValueError, match='is cut off, or no safetensors file'):
        read_header(tmp_path / FILE)


def test_a_long_header_is_not_read(tmp_path: Path) -> None:
    path = write(tmp_path, b'{}', b'', 20_000_000)
    with open(path, 'r+b') as file:
        file.truncate(30_000_000)  # takes no room on the disk
    with pytest.raises(ValueError, match='has a header of at most 5,000,000 bytes; it claims 20,000,000'):
        read_header(path)


def test_an_empty_tensor_takes_no_room(tmp_path: Path) -> None:
    path = write(tmp_path, {'a': tensor([0, 5], [0, 0]), 'b': tensor([1], [0, 4])}, bytes(4))
    assert read_header(path).tensors['a'] == Entry('F32', (0, 5), path.stat().st_size - 4, path.stat().st_size - 4)
