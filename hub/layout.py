"""Which files a published network consists of, and how large they may be."""

from __future__ import annotations

WEIGHTS = 'model.safetensors'
CONFIG = 'config.json'
CARD = 'README.md'
# The first two are what a network is; the others tell of it.
REQUIRED = (CONFIG, WEIGHTS)
FILES = (*REQUIRED, CARD, 'metrics.csv', 'curves.png', 'growth.png')
# By this tag of its card a published network is found.
TAG = 'timm_devnet'
# Of every file but the weights. A card with a thousand class names has 0.1 MB; JSON takes up to thirty times that in
# memory.
MAX_BYTES = 10_000_000


def format_bytes(count: float) -> str:
    """Write a number of bytes as people read it.

    Example:
        >>> format_bytes(512), format_bytes(37_500_000)
        ('512 B', '37.5 MB')
    """
    if count < 1000:
        return f'{count:.0f} B'
    for unit in ('kB', 'MB'):
        count /= 1000
        if count < 999.95:
            return f'{count:.1f} {unit}'
    return f'{count / 1000:.1f} GB'
