"""How features lie in memory in timm's networks, and how maps become further channels of them.

A convolutional network gives maps (N, C, H, W), some transformers (N, H, W, C), others tokens (N, L, C) with class
tokens before those of the positions, and a few one vector (N, C). The names are those of `timm.layers.Format`, and
'NC' for vectors; features that are several tensors are opaque, and nothing can be appended to them.
"""

from __future__ import annotations

import torch
from timm.models import register_notrace_function
from torch import Tensor

from .layers import match_size

__all__ = ['OPAQUE', 'append_maps', 'channels_first', 'channels_last_of', 'pool_features']

OPAQUE = 'several tensors'


def channels_last_of(layout: str) -> bool:
    """Whether channels are the last of several dimensions."""
    return layout in ('NHWC', 'NLC')


@register_notrace_function  # reason: control flow on shapes
def append_maps(features: Tensor, maps: list[Tensor], layout: str, most_class_tokens: int = 16) -> Tensor:
    """Append maps to features as further channels, average-pooled to the features' height and width.

    Tokens that stand for no position (class tokens), and every token where the map has another number of positions
    than there are tokens, get a map's mean over positions. So the mean over all tokens is the mean of the map.

    Args:
        features: Features in a layout.
        maps: Maps (N, C_i, H_i, W_i).
        layout: 'NCHW', 'NHWC', 'NLC' or 'NC'.
        most_class_tokens: How many tokens at most stand for no position; timm's networks have up to nine.

    Returns:
        Features with C + sum(C_i) channels, in the same layout.
    """
    if layout == 'NCHW':
        return torch.cat([features] + [match_size(x, features) for x in maps], 1)
    if layout == 'NHWC':
        like = features.permute(0, 3, 1, 2)
        return torch.cat([features] + [match_size(x, like).permute(0, 2, 3, 1) for x in maps], -1)
    if layout == 'NC':
        return torch.cat([features] + [x.mean((2, 3)) for x in maps], 1)
    parts = [features]
    for x in maps:
        tokens = x.flatten(2).transpose(1, 2)
        mean = tokens.mean(1, keepdim=True)
        others = features.shape[1] - tokens.shape[1]
        if others < 0 or others > most_class_tokens:
            tokens = mean.expand(-1, features.shape[1], -1)
        elif others > 0:
            tokens = torch.cat([mean.expand(-1, others, -1), tokens], 1)
        parts.append(tokens)
    return torch.cat(parts, -1)


def channels_first(features: Tensor, layout: str) -> Tensor:
    """Features with the channels as dimension 1: (N, C), (N, C, L) or (N, C, H, W)."""
    return features.movedim(-1, 1) if channels_last_of(layout) else features


def pool_features(features: Tensor, layout: str, pool_type: str) -> Tensor:
    """Pool features over positions.

    Args:
        features: Features in a layout.
        layout: Theirs.
        pool_type: 'max', 'avgmax' or 'catavgmax' as in timm's `SelectAdaptivePool2d`; anything else is the mean.

    Returns:
        Vectors (N, C), or (N, 2 * C) for 'catavgmax'.
    """
    if layout == 'NC':
        return features
    positions = channels_first(features, layout).flatten(2)
    if pool_type.endswith('catavgmax'):
        return torch.cat([positions.mean(2), positions.amax(2)], 1)
    if pool_type.endswith('avgmax'):
        return 0.5 * (positions.mean(2) + positions.amax(2))
    return positions.amax(2) if pool_type.endswith('max') else positions.mean(2)
