"""How new units are built: the layers that a growth adds to a network.

Each layer names the values it reads and the phase of the forward pass that computes it, so that a grown network is its
old network plus an ordered list of such layers (`grown.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from timm.models import register_notrace_function, register_notrace_module
from torch import Tensor, nn

from .plan import Layer
from .reconcile import Reconcile

__all__ = [
    'Added',
    'AtLeast',
    'ConvUnits',
    'LinearUnits',
    'Pass',
    'Scaled',
    'copy_units',
    'gather',
    'init_uniform',
    'match_size',
]


@register_notrace_function  # reason: control flow on shapes
def match_size(x: Tensor, like: Tensor) -> Tensor:
    """Average-pool a map (N, C, H, W) to the height and width of `like`, if it has another."""
    if x.shape[-2:] == like.shape[-2:]:
        return x
    return F.adaptive_avg_pool2d(x, (like.shape[-2], like.shape[-1]))


@register_notrace_module  # reason: control flow on the input's shape
class AtLeast(nn.Module):
    """Average-pools a map up to a least height and width, as timm's VGG does before FC6."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        """The map (N, C, H, W), H and W at least `size`."""
        if x.shape[-2] < self.size or x.shape[-1] < self.size:
            return F.adaptive_avg_pool2d(x, (max(self.size, x.shape[-2]), max(self.size, x.shape[-1])))
        return x


class Added(nn.Module):
    """A layer that a growth added; the base of the layers below.

    It reads values by name, concatenated over channels; maps are brought to the first one's size.

    Args:
        layer: What it is in the plan of its network.
    """

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        self.reads = list(layer.reads)
        self.phase = int(layer.phase)
        self.level = layer.level
        self.step = layer.step

    def init_new(self, generator_for: Callable[[str], torch.Generator]) -> None:
        """Give the layer's own parameters their first values.

        Args:
            generator_for: Gives the random numbers for a parameter, by the parameter's name within this layer.
        """

    def extra_repr(self) -> str:
        return f'reads={self.reads}, level={self.level!r}, step={self.step}'


@register_notrace_function  # reason: control flow on shapes
def gather(values: list[Tensor]) -> Tensor:
    """Concatenate blocks over channels, maps brought to the first one's height and width."""
    if len(values) == 1:
        return values[0]
    if values[0].dim() == 4:
        values = [match_size(value, values[0]) for value in values]
    return torch.cat(values, 1)


def init_uniform(parameter: Tensor, bound: float, generator: torch.Generator) -> None:
    """Fill a parameter uniformly within +-bound, drawn on the CPU so that every device gets the same numbers."""
    if parameter.is_meta:
        return
    with torch.no_grad():
        in_place = parameter.device.type == 'cpu' and parameter.dtype == torch.float32 and parameter.is_contiguous()
        drawn = parameter if in_place else torch.empty(parameter.shape, device='cpu', dtype=torch.float32)
        drawn.uniform_(-bound, bound, generator=generator)
        if not in_place:
            parameter.copy_(drawn)


def _init_he(weight: Tensor, generator: torch.Generator) -> None:
    init_uniform(weight, math.sqrt(6 / weight[0].numel()), generator)  # He's law for units with a ReLU


@register_notrace_module  # reason: resizing is control flow on the input's shape
class ConvUnits(Added):
    """New units on maps: a convolution (of the plan's kernel unless told otherwise), norm and activation.

    Args:
        layer: What they are in the plan of their network.
        norm: Normalisation of the units (its own activation included, as in timm's BatchNormAct2d), or None.
        act: Activation after the convolution, for units without a norm that has its own.
        conv: The convolution, for units shaped like the old layer beside them; None builds one that keeps
            the size of maps.
        drop_rate: Dropout on what is read.
        device, dtype: Where and what the parameters are.
    """

    def __init__(
        self,
        layer: Layer,
        norm: nn.Module | None = None,
        act: nn.Module | None = None,
        conv: nn.Conv2d | None = None,
        drop_rate: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(layer)
        self.drop = nn.Dropout(drop_rate)
        self.conv = conv or nn.Conv2d(
            *(layer.in_width, layer.width, layer.kernel),
            padding=layer.kernel // 2,
            bias=norm is None,
            device=device,
            dtype=dtype,
        )
        self.norm = norm or nn.Identity()
        self.act = act or nn.Identity()

    def init_new(self, generator_for: Callable[[str], torch.Generator]) -> None:
        """He's law for the convolution, zero bias, the norm at one and zero."""
        for name, parameter in self.conv.named_parameters():
            if name.endswith('weight'):
                _init_he(parameter, generator_for(f'conv.{name}'))
            else:
                nn.init.zeros_(parameter)
        if not isinstance(self.norm, nn.Identity):
            self.norm.reset_parameters()  # type: ignore[operator]

    def forward(self, values: list[Tensor]) -> Tensor:
        """Units (N, units, H, W) of maps (N, C_i, H_i, W_i)."""
        return self.act(self.norm(self.conv(self.drop(gather(values)))))


class WeightsFirst(nn.Linear):
    """A linear layer that multiplies its weights by what it reads, and not the other way round.

    The result is the same up to rounding; on CPUs this order is a quarter faster for the few rows of a batch.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Outputs (..., out_features) of inputs (..., in_features)."""
        rows = x.reshape(-1, self.in_features)
        product = torch.addmm(self.bias.unsqueeze(1), self.weight, rows.t()).t()
        return product.reshape(x.shape[:-1] + (self.out_features,))


@register_notrace_module  # reason: as ConvUnits
class LinearUnits(Added):
    """New units of a fully connected layer with a ReLU; on a map, at every position.

    Args:
        layer: What they are in the plan of their network.
        drop_rate: Dropout on what is read.
        device, dtype: Where and what the parameters are.
    """

    def __init__(
        self,
        layer: Layer,
        drop_rate: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(layer)
        self.drop = nn.Dropout(drop_rate)
        self.fc = WeightsFirst(layer.in_width, layer.width, device=device, dtype=dtype)
        self.act = nn.ReLU()

    def init_new(self, generator_for: Callable[[str], torch.Generator]) -> None:
        """He's law, zero bias."""
        _init_he(self.fc.weight, generator_for('fc.weight'))
        nn.init.zeros_(self.fc.bias)

    def forward(self, values: list[Tensor]) -> Tensor:
        """Units (N, units) or (N, units, H, W) of what is read, (N, C_i) or (N, C_i, H_i, W_i)."""
        x = self.drop(gather(values))
        return self.act(self.fc(x.movedim(1, -1)).movedim(-1, 1))


class Pass(Added):
    """A lower level's pooled activations, rectified and passed on: a block without units of its own."""

    def forward(self, values: list[Tensor]) -> Tensor:
        """The rectified value, shape unchanged."""
        return F.relu(values[0])


class Scaled(Added):
    """One block, reconciled: its L2 norm taken out, its learnt scale put in."""

    def __init__(
        self,
        layer: Layer,
        scale_init: float,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(layer)
        self.reconcile = Reconcile(layer.width, scale_init, device=device, dtype=dtype)

    def init_new(self, generator_for: Callable[[str], torch.Generator]) -> None:
        """Every scale at `scale_init`."""
        self.reconcile.reset_parameters()

    def forward(self, values: list[Tensor]) -> Tensor:
        """The reconciled block, shape unchanged."""
        return self.reconcile(values[0])


def copy_units(
    units: ConvUnits | LinearUnits,
    old: nn.Conv2d,
    old_norm: nn.Module | None,
    generator: torch.Generator,
    noise: float = 0.1,
) -> None:
    """Make new units copies of old units of the layer beside them, plus noise.

    Args:
        units: The new units; their first inputs must be the old layer's.
        old: The old layer, a convolution or linear map with `weight` (units, inputs, ...) and perhaps `bias`.
        old_norm: The batch normalisation after it, copied along, or None.
        generator: Random numbers for the choice of old units and the noise.
        noise: Standard deviation of the noise, as a share of the old weights' own.

    Source:
        Growing a Brain (Wang, Ramanan, Hebert, 2017), table 3, "copy + noise"; the amount of noise is not stated there.
    """
    new = units.conv if isinstance(units, ConvUnits) else units.fc
    if new.weight.is_meta:
        return
    with torch.no_grad():
        old_weight = old.weight.detach().cpu().float()
        count = len(new.weight)
        chosen = torch.cat(
            [torch.randperm(len(old_weight), generator=generator) for _ in range(-(-count // len(old_weight)))]
        )
        chosen = chosen[:count]
        inputs = old_weight.shape[1]
        weight = torch.zeros((count, new.weight.shape[1], *old_weight.shape[2:]))
        weight[:, :inputs] = old_weight[chosen]
        weight += torch.empty_like(weight).normal_(0, noise * old_weight.std().item(), generator=generator)
        new.weight.copy_(weight.reshape(new.weight.shape))
        if new.bias is not None and old.bias is not None:
            new.bias.copy_(old.bias[chosen.to(old.bias.device)])
        if old_norm is not None:
            assert isinstance(units, ConvUnits)
            own = units.norm.state_dict()
            for key, value in old_norm.state_dict().items():
                own[key].copy_(value[chosen.to(value.device)] if value.ndim else value)
