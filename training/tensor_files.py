"""Safetensors files written in one pass: each tensor is converted, hashed and written piece by piece.

The safetensors library wants all tensors at once, contiguous and converted already, and leaves hashing to a second pass
over the file. Such copies of a channels-last network are as large as the network, and how much memory a frozen VGG
trains in was decided by them.

Source:
    The format: https://github.com/huggingface/safetensors (8 bytes with the length of the header, the header as JSON,
    the tensors one after the other).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

# safetensors' names, in the order in which it lays tensors, so that each of them is aligned.
DTYPES = {
    torch.int64: 'I64',
    torch.float64: 'F64',
    torch.float32: 'F32',
    torch.int32: 'I32',
    torch.bfloat16: 'BF16',
    torch.float16: 'F16',
    torch.int16: 'I16',
    torch.int8: 'I8',
    torch.uint8: 'U8',
    torch.bool: 'BOOL',
}
# Small enough to stay in the processor's cache between converting, hashing and writing.
PIECE_BYTES = 1 << 20


def write_tensors(
    path: Path,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str] | None = None,
    dtype: torch.dtype | None = None,
) -> str:
    """Write tensors as a safetensors file, in the order in which safetensors itself would.

    Args:
        path: Of the new file.
        tensors: By name, on any device, in any layout; those that share memory are written each for itself.
        metadata: Goes into the header.
        dtype: What floating-point tensors are stored in; None keeps theirs.

    Returns:
        The file's SHA-256; the file is on the disk itself by then.

    Raises:
        ValueError: A tensor is of a type that is not stored, or has no values.
    """
    stored = {name: stored_dtype(name, tensor, dtype) for name, tensor in tensors.items()}
    order = list(DTYPES)
    names = sorted(tensors, key=lambda name: (order.index(stored[name]), name))
    header: dict[str, object] = {'__metadata__': dict(metadata)} if metadata else {}
    end = 0
    for name in names:
        start, end = end, end + tensors[name].numel() * stored[name].itemsize
        header[name] = {'dtype': DTYPES[stored[name]], 'shape': list(tensors[name].shape), 'data_offsets': [start, end]}
    text = json.dumps(header, separators=(',', ':')).encode()
    text += b' ' * (-len(text) % 8)
    digest = hashlib.sha256()
    with open(path, 'wb') as file:
        for part in (len(text).to_bytes(8, 'little'), text):
            digest.update(part)
            file.write(part)
        for name in names:
            for piece in pieces(tensors[name], stored[name]):
                digest.update(piece)
                file.write(piece)
    return digest.hexdigest()


def stored_dtype(name: str, tensor: Tensor, dtype: torch.dtype | None) -> torch.dtype:
    """Tell what a tensor is stored in.

    Raises:
        ValueError: It cannot be stored.
    """
    if tensor.is_meta:
        raise ValueError(f'tensor {name} has no values (it is on the meta device): load weights first')
    if tensor.dtype not in DTYPES:
        allowed = ', '.join(str(known).removeprefix('torch.') for known in DTYPES)
        raise ValueError(f'tensor {name} is of type {tensor.dtype}: only {allowed} are stored')
    return dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype


def pieces(tensor: Tensor, dtype: torch.dtype) -> Iterator[memoryview]:
    """Give a tensor's bytes in the order of its indices; of one that lies otherwise, some rows at a time are copied."""
    rows = tensor.detach() if tensor.ndim else tensor.detach().reshape(1)
    if rows.is_contiguous():
        rows = rows.reshape(-1)  # so that no row is larger than a piece
    row_bytes = max(1, rows[:1].numel() * dtype.itemsize)
    for part in rows.split(max(1, PIECE_BYTES // row_bytes)) if rows.numel() else ():
        yield part.to(dtype).cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
