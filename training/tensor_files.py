"""Safetensors files written piece by piece, in whatever layout the tensors lie in memory.

The safetensors library wants every tensor contiguous and all of them at once. The copies that this takes of a
channels-last network are as large as the network, and how much memory a frozen VGG trains in was decided by them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

# How the format calls the types that networks have.
DTYPES = {
    torch.float64: 'F64',
    torch.float32: 'F32',
    torch.float16: 'F16',
    torch.bfloat16: 'BF16',
    torch.int64: 'I64',
    torch.int32: 'I32',
    torch.int16: 'I16',
    torch.int8: 'I8',
    torch.uint8: 'U8',
    torch.bool: 'BOOL',
}
PIECE_BYTES = 1 << 24


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> str:
    """Write tensors as a safetensors file.

    Args:
        path: Of the file.
        tensors: On any device, in any layout; tensors that share memory are written each for itself.
        metadata: Text that goes along.

    Returns:
        The file's sha256.

    Raises:
        ValueError: A tensor's type has no name in the format.
    """
    # Large elements first, as the format's own writer has it, so that every tensor is aligned.
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0]))
    header: dict[str, object] = {'__metadata__': dict(metadata)} if metadata else {}
    place = 0
    for name, tensor in ordered:
        if tensor.dtype not in DTYPES:
            raise ValueError(f'{name} is of {tensor.dtype}, for which safetensors files have no name')
        end = place + tensor.numel() * tensor.element_size()
        header[name] = {'dtype': DTYPES[tensor.dtype], 'shape': list(tensor.shape), 'data_offsets': [place, end]}
        place = end
    text = json.dumps(header, separators=(',', ':')).encode()
    text += b' ' * (-len(text) % 8)
    digest = hashlib.sha256()
    with open(path, 'wb') as file:
        for piece in (len(text).to_bytes(8, 'little'), text):
            digest.update(piece)
            file.write(piece)
        for _, tensor in ordered:
            for data in pieces(tensor):
                digest.update(data)
                file.write(data)
    return digest.hexdigest()


def pieces(tensor: Tensor) -> Iterator[memoryview]:
    """Give a tensor's bytes in the order of its elements, some rows at a time."""
    tensor = tensor.detach()
    if not tensor.numel():
        return
    rows = tensor if tensor.ndim else tensor.reshape(1)
    row_bytes = rows[0].numel() * rows.element_size()
    for part in rows.split(max(1, PIECE_BYTES // row_bytes)):
        yield memoryview(part.cpu().contiguous().flatten().view(torch.uint8).numpy()).cast('B')
