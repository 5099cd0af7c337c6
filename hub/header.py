"""The header of a safetensors file: read without its data, and refused unless it describes just this file."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .strict_json import MAX_BYTES, parse, shown

__all__ = ['FLOATS', 'Entry', 'Header', 'read_header']

FLOATS = {'F32': 'float32', 'BF16': 'bfloat16', 'F16': 'float16'}  # that networks are stored in, by torch's names
_BYTES = {'F32': 4, 'BF16': 2, 'F16': 2, 'I64': 8, 'I32': 4, 'I16': 2, 'I8': 1, 'U8': 1, 'BOOL': 1}
_METADATA = '__metadata__'
_MAX_DIMENSIONS = 8
_MAX_NAME = 500


@dataclass(frozen=True)
class Entry:
    """A tensor as the header describes it.

    Attributes:
        dtype: In the words of safetensors, such as 'F32'.
        shape: Its shape.
        start: Where its data begins, counted in bytes from the beginning of the file.
        stop: Where its data ends.
    """

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True)
class Header:
    """What a safetensors file says of itself.

    Attributes:
        tensors: Every tensor by name, in the order of their data.
        metadata: Further texts.
    """

    tensors: dict[str, Entry]
    metadata: dict[str, str]

    @property
    def numbers(self) -> int:
        """How many numbers the file holds."""
        return sum(math.prod(entry.shape) for entry in self.tensors.values())


def read_header(path: Path) -> Header:
    """Read and check the header of a safetensors file.

    As strict as safetensors itself and stricter: tensors lie one after the other and fill the file, nothing is named
    twice or besides, and the types are those that networks are stored in.

    Args:
        path: The file.

    Returns:
        The header.

    Raises:
        ValueError: The file is not what its header says, or the header is longer than any honest one.
    """
    name, size = path.name, path.stat().st_size
    with open(path, 'rb') as file:
        start = file.read(8)
        length = int.from_bytes(start, 'little')
        if len(start) < 8 or length > size - 8:
            raise ValueError(
                f'{name} is cut off, or no safetensors file: its header needs more than its {size:,} bytes'
            )
        if length > MAX_BYTES:
            raise ValueError(f'{name} has a header of at most {MAX_BYTES:,} bytes; it claims {length:,}')
        content = file.read(length)
    if not content.startswith(b'{'):
        raise ValueError(f'{name} is no safetensors file: its header begins with {content[:1]!r}, not {{')
    found = parse(content, f'the header of {name}')
    metadata = found.pop(_METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        raise ValueError(f'{name} has metadata that is no object of texts')
    tensors = {tensor: _read_entry(f'{name}: tensor {shown(tensor)}', fields) for tensor, fields in found.items()}
    problem = next(_misplaced(tensors, size - 8 - length), None) or next(_misnamed(tensors), None)
    if problem:
        raise ValueError(f'{name}: {problem}')
    ordered = sorted(tensors.items(), key=lambda item: (item[1].start, item[1].stop))
    first = 8 + length
    placed = {
        tensor: Entry(entry.dtype, entry.shape, first + entry.start, first + entry.stop) for tensor, entry in ordered
    }
    return Header(placed, metadata)


def _read_entry(tensor: str, fields: Any) -> Entry:
    """A tensor's entry, its offsets still counted from the header's end."""
    if not isinstance(fields, dict) or fields.keys() != {'dtype', 'shape', 'data_offsets'}:
        raise ValueError(f'{tensor} is described by dtype, shape and data_offsets, nothing else')
    dtype, shape, offsets = fields['dtype'], fields['shape'], fields['data_offsets']
    if not isinstance(dtype, str) or dtype not in _BYTES:
        raise ValueError(f'{tensor} has a dtype that is one of {", ".join(_BYTES)}; found {shown(dtype)}')
    if not _are_sizes(shape) or len(shape) > _MAX_DIMENSIONS:
        raise ValueError(f'{tensor} has a shape of at most {_MAX_DIMENSIONS} whole numbers from 0; found {shape!s:.80}')
    if not _are_sizes(offsets) or len(offsets) != 2:
        raise ValueError(f'{tensor} has data_offsets that are two whole numbers from 0; found {offsets!s:.80}')
    if offsets[1] - offsets[0] != math.prod(shape) * _BYTES[dtype]:
        raise ValueError(
            f'{tensor}, {dtype} of shape {shape}, takes {math.prod(shape) * _BYTES[dtype]:,} bytes; its data_offsets '
            f'{offsets} give it {offsets[1] - offsets[0]:,}'
        )
    return Entry(dtype, tuple(shape), *offsets)


def _are_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(size) is int and size >= 0 for size in value)


def _misplaced(tensors: dict[str, Entry], size: int) -> Iterator[str]:
    """Say where the tensors do not fill `size` bytes one after the other."""
    end, before = 0, 'the header'
    for tensor, entry in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].stop)):
        if entry.start != end:
            how = 'overlaps' if entry.start < end else 'leaves a hole after'
            yield f'tensor {shown(tensor)} {how} {before}: it begins at byte {entry.start:,} of the data, not {end:,}'
        end, before = entry.stop, f'tensor {shown(tensor)}'
    if end != size:
        yield f'the tensors take {end:,} bytes, the file has {size:,} for them'


def _misnamed(tensors: dict[str, Entry]) -> Iterator[str]:
    for tensor in tensors:
        if not 0 < len(tensor) <= _MAX_NAME or not tensor.isprintable():
            yield f'a tensor has a name of 1 to {_MAX_NAME} printable characters; found {shown(tensor)}'
