"""How old and new units are brought to one pace: each block's L2 norm, then a learnt scale for every channel."""

from __future__ import annotations

import torch
from timm.models import register_notrace_module
from torch import Tensor, nn

__all__ = ['SCALE_INIT', 'Reconcile', 'UnitLength', 'reconcile']

# Where scales start. The paper says "e.g. 10 or 20"; at the usual rates 5 measured better (docs/growth.md), since the
# pace at which a block learns goes as the square of its scale.
SCALE_INIT = 5.0


def reconcile(block: Tensor, scale: Tensor, eps: float = 1e-6) -> Tensor:
    """Divide each sample's activations by their L2 norm and scale every channel.

    Brings old and new units to one magnitude, so that both learn at the same pace. The norm is taken over the channels
    of one sample (and of one position, where the block is a map), in float32 at least.

    Args:
        block: Activations after the nonlinearity, shape (N, K * C) or (N, K * C, H, W); K is 1, or 2 where the pooling
            concatenates two statistics of every channel.
        scale: Learnt gamma, shape (C,).
        eps: A sample whose norm is below this gives zero, and zero gradient, in place of a division by nothing.

    Returns:
        Tensor of `block`'s shape and dtype.

    Source:
        Growing a Brain (Wang, Ramanan, Hebert, 2017), equations 1 and 2.

    Example:
        >>> reconcile(torch.tensor([[3.0, 4.0], [0.0, 0.0]]), torch.tensor([10.0, 1.0]))
        tensor([[6.0000, 0.8000],
                [0.0000, 0.0000]])
    """
    wide = _widen(block).unflatten(1, (-1, scale.shape[0]))
    scaled = (_unit_length(wide, [1, 2], eps).movedim(2, -1) * scale).movedim(-1, 2)
    return scaled.flatten(1, 2).to(block.dtype)


def _widen(block: Tensor) -> Tensor:
    return block.float() if block.dtype == torch.float16 or block.dtype == torch.bfloat16 else block


def _unit_length(wide: Tensor, dim: list[int], eps: float = 1e-6) -> Tensor:
    norm = torch.linalg.vector_norm(wide, dim=dim, keepdim=True)
    return wide * torch.where(norm > eps, 1 / norm.clamp(min=eps), torch.zeros_like(norm))


@register_notrace_module  # reason: the choice of dtype is control flow that FX cannot trace
class Reconcile(nn.Module):
    """A block's L2 norm and its learnt scale, as a layer.

    Args:
        width: Number of channels C.
        scale_init: Where every channel's scale starts.
        device: Where the scale lives.
        dtype: The scale's type; the norm is computed in float32 at least.
    """

    def __init__(
        self,
        width: int,
        scale_init: float = SCALE_INIT,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.scale_init = scale_init
        self.scale = nn.Parameter(torch.empty(width, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start every scale at `scale_init`."""
        nn.init.constant_(self.scale, self.scale_init)

    def forward(self, block: Tensor) -> Tensor:
        """Reconcile a block of shape (N, C) or (N, C, H, W)."""
        return reconcile(block, self.scale)

    def extra_repr(self) -> str:
        return f'{self.scale.shape[0]}, scale_init={self.scale_init}'


@register_notrace_module  # reason: as Reconcile
class UnitLength(nn.Module):
    """A block's L2 norm alone, where its scale is part of the layer that reads it."""

    def forward(self, block: Tensor) -> Tensor:
        """The block (N, C) or (N, C, H, W) divided by its norm over C."""
        return _unit_length(_widen(block), [1]).to(block.dtype)
