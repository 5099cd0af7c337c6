"""Whether there is memory for a network, asked before it is taken: a name or a config may ask for any amount."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from torch import Tensor

__all__ = ['check_memory', 'count_bytes', 'total_memory']

_CONTAINER_LIMIT = Path('/sys/fs/cgroup/memory.max')


def total_memory() -> int | None:
    """The bytes of memory that this process may have at most; None where the system does not tell."""
    try:
        total = os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
    except (AttributeError, ValueError, OSError):  # not on Windows
        return None
    try:
        limit = _CONTAINER_LIMIT.read_text().strip()
    except OSError:
        return total
    return min(total, int(limit)) if limit.isdecimal() else total


def count_bytes(tensors: Iterable[Tensor]) -> int:
    """The bytes that tensors take, or would take if they were not on the meta device."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def check_memory(needed: int, what: str) -> None:
    """Refuse what is larger than all the memory there is.

    Args:
        needed: Bytes.
        what: Whose they are; begins the error.

    Raises:
        ValueError: There is less.
    """
    total = total_memory()
    if total is not None and needed > total:
        raise ValueError(
            f'{what} would take {needed / 1e9:,.1f} GB, and this machine has {total / 1e9:,.1f} GB of memory: give '
            'fewer units, classes or channels.'
        )
