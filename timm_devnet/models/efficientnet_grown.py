"""Grown EfficientNets whose top layer is a 1x1 convolution before the pooling; registered for EfficientNet-Lite.

The top layer, in the part of FC7, is `conv_head` with its norm and activation `bn2`; it reads the last stage,
`blocks.6`, in the part of FC6. Below are the earlier stages `blocks.5`, `blocks.4`, ... and the stem. New units are 1x1
(`xwa`: 3x3) convolutions with their own norm and activation; the classifier reads every block pooled.

Source:
    EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks (Tan, Le, 2019).
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import BatchNormAct2d
from timm.models import EfficientNet, checkpoint_seq
from torch import Tensor, nn

from ..grown import Grown, grows
from ..layers import ConvUnits
from ..plan import Layer, Level, Phase
from ..registration import grown_cfgs, register_grown

__all__ = ['GrownEfficientNet', 'convert_lite']


@grows(EfficientNet)
class GrownEfficientNet(Grown, EfficientNet):  # type: ignore[misc]  # prune_intermediate_layers takes **kwargs
    """An EfficientNet with new units; see `timm_devnet.grow`."""

    final_level = 'conv_head'
    classifier_name = 'classifier'
    unit_levels = ('conv_head',)
    default_units = MappingProxyType({'da': 1024, 'wa': 512, 'dwa': 512, 'wwa': 512, 'mwa': 512, 'xwa': 512})

    @classmethod
    def levels_of(cls, model: Any) -> list[Level]:
        stages = [_out_channels(stage) for stage in model.blocks]
        below = [Level(f'blocks.{i}', width, Phase.TRUNK, (f'blocks.{i}',)) for i, width in enumerate(stages)]
        top = Level('conv_head', model.conv_head.out_channels, Phase.TRUNK, ('conv_head', 'bn2'))
        stem = Level('conv_stem', model.conv_stem.out_channels, Phase.TRUNK, ('conv_stem', 'bn1'))
        return [top, *reversed(below), stem]

    @classmethod
    def takes(cls, model: Any) -> bool:
        """Others have no top layer, or one that new units with a BatchNorm would be unlike."""
        return isinstance(model.conv_head, nn.Conv2d) and isinstance(model.bn2, BatchNormAct2d)

    def feature_levels(self, extra_blocks: bool = False) -> list[str]:
        ends = range(len(self.blocks) + 1) if extra_blocks else self.stage_ends
        return [f'blocks.{end - 1}' if end else 'conv_stem' for end in ends]

    def _wire(self) -> None:
        super()._wire()
        self.stage_names = [f'blocks.{i}' for i in range(len(self.blocks))]

    def forward_trunk(self, x: Tensor, taps: list[str]) -> dict[str, Tensor]:
        values: dict[str, Tensor] = {}
        x = self.bn1(self.conv_stem(x))
        if 'conv_stem' in taps:
            values['conv_stem'] = x
        for i, stage in enumerate(self.blocks):
            if self.grad_checkpointing and not torch.jit.is_scripting():  # noqa: SIM108 (TorchScript compiles no ternary)
                x = checkpoint_seq(stage, x)
            else:
                x = stage(x)
            if self.stage_names[i] in taps:
                values[self.stage_names[i]] = x
        values['conv_head'] = self.bn2(self.conv_head(x))
        return values

    def pool_map(self, x: Tensor) -> Tensor:
        return self.global_pool(x)

    def classify_top(self, x: Tensor, pre_logits: bool) -> Tensor:
        if self.drop_rate > 0.0:
            x = F.dropout(x, p=self.drop_rate, training=self.training)
        return x if pre_logits else self.classifier(x)

    @staticmethod
    def pool_mult(model: Any) -> int:
        return model.global_pool.feat_mult()

    def new_units(self, layer: Layer, dd: dict[str, Any]) -> ConvUnits:
        norm = BatchNormAct2d(
            layer.width, eps=self.bn2.eps, momentum=self.bn2.momentum, act_layer=type(self.bn2.act), **dd
        )
        return ConvUnits(layer, norm=norm, **dd)

    def old_units(self, level: str) -> tuple[nn.Conv2d, nn.Module | None]:
        return {'conv_head': (self.conv_head, self.bn2)}[level]

    @staticmethod
    def to_own_layout(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """timm's names, also of the original EfficientNet-Lite checkpoints."""
        return convert_lite(state_dict)

    def shed(self) -> None:
        super().shed()
        del self.stage_names


def _out_channels(stage: nn.Sequential) -> int:
    return [module.num_features for module in stage.modules() if isinstance(module, BatchNormAct2d)][-1]


def convert_lite(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename a checkpoint in the layout that the original EfficientNet-Lite weights come in (`_conv_stem`, ...).

    Args:
        state_dict: Such a checkpoint, or one in timm's names, which passes unchanged.

    Returns:
        The checkpoint under the names of timm's `tf_efficientnet_lite*`.

    Example:
        >>> import torch
        >>> list(convert_lite({'_conv_stem.weight': torch.zeros(32, 3, 3, 3), '_fc.bias': torch.zeros(1000)}))
        ['conv_stem.weight', 'classifier.bias']
    """
    if '_conv_stem.weight' not in state_dict:
        return dict(state_dict)
    places = _block_places(state_dict)
    renamed = {}
    for key, value in state_dict.items():
        first, *rest = key.split('.')
        if first == '_blocks':
            index, layer, *rest = rest
            names = _EXPANDING if f'_blocks.{index}._expand_conv.weight' in state_dict else _SEPARABLE
            first = f'{places[int(index)]}.{names.get(layer, layer)}'
        renamed['.'.join([_OUTER.get(first, first), *rest])] = value
    return renamed


_OUTER = {'_conv_stem': 'conv_stem', '_bn0': 'bn1', '_conv_head': 'conv_head', '_bn1': 'bn2', '_fc': 'classifier'}
_EXPANDING = {
    '_expand_conv': 'conv_pw',
    '_bn0': 'bn1',
    '_depthwise_conv': 'conv_dw',
    '_bn1': 'bn2',
    '_project_conv': 'conv_pwl',
    '_bn2': 'bn3',
}
_SEPARABLE = {'_depthwise_conv': 'conv_dw', '_bn1': 'bn1', '_project_conv': 'conv_pw', '_bn2': 'bn2'}


def _block_places(state_dict: Mapping[str, Tensor]) -> list[str]:
    """timm's place of every block of the flat list: a stage ends where the number of output channels changes."""
    places: list[str] = []
    stage, inner, width = -1, 0, 0
    while (weight := state_dict.get(f'_blocks.{len(places)}._project_conv.weight')) is not None:
        stage, inner = (stage, inner + 1) if len(weight) == width else (stage + 1, 0)
        width = len(weight)
        places.append(f'blocks.{stage}.{inner}')
    return places


BASES = tuple(f'tf_efficientnet_lite{size}' for size in range(5))
GROWTHS = (
    *('da', 'da512', 'da1024'),
    *('wa', 'wa256', 'wa512', 'wa1024'),
    *('dwa', 'dwa512'),
    *('wwa', 'wwa512'),
    *('mwa', 'mwa256', 'mwa512', 'mwa1024'),
    *('xwa', 'xwa256', 'xwa512', 'xwa1024'),
    *('norm', 'skip'),
    *('wa512_wa256', 'wa512_wa512', 'mwa512_mwa512'),
)

default_cfgs = grown_cfgs(BASES, GROWTHS)
register_grown(__name__, BASES, GROWTHS, feature_levels=5, flatten_sequential=True)
