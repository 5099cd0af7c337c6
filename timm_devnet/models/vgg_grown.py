"""Grown VGG networks.

The top layer is FC7, `pre_logits.fc2`; it reads FC6, `pre_logits.fc1`. Below are the last pooled map, `pool5`, which
FC6 reads, and the convolution stages `conv4` to `conv1`, each as it leaves its activation, before its pooling.

Source:
    Very Deep Convolutional Networks for Large-Scale Image Recognition (Simonyan, Zisserman, 2014); Growing a Brain
    (Wang, Ramanan, Hebert, 2017).
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any, cast

from timm.layers import BatchNormAct2d
from timm.models import VGG
from timm.models.vgg import _filter_fn
from torch import Tensor, nn

from ..grown import Grown, grows
from ..layers import AtLeast, ConvUnits, LinearUnits
from ..plan import Layer, Level, Phase
from ..registration import grown_cfgs, register_grown

__all__ = ['GrownVGG']


@grows(VGG)
class GrownVGG(Grown, VGG):
    """A VGG with new units; see `timm_devnet.grow`."""

    final_level = 'pool5'
    classifier_name = 'head.fc'
    unit_levels = ('fc7', 'fc6')

    @staticmethod
    def trunk_ends(model: VGG) -> dict[str, int]:
        """Where in `model.features` each named value is complete."""
        stages = len(model.feature_ends) - 1
        return {**{f'conv{i + 1}': model.feature_ends[i] for i in range(stages)}, 'pool5': model.feature_ends[-1]}

    @classmethod
    def levels_of(cls, model: Any) -> list[Level]:
        fc6, fc7 = model.pre_logits.fc1, model.pre_logits.fc2
        below = [name for name in reversed(cls.trunk_ends(model)) if name != 'conv5']  # pool5 is conv5, pooled
        return [
            Level('fc7', fc7.out_channels, Phase.HEAD, ('pre_logits.fc2',)),
            Level('fc6', fc6.out_channels, Phase.HEAD, ('pre_logits.fc1',)),
            *(Level(name, _width(model.features, cls.trunk_ends(model)[name]), Phase.TRUNK, ()) for name in below),
        ]

    def feature_levels(self, extra_blocks: bool = False) -> list[str]:
        return [name for name, end in self.trunk_ends(self).items() if end in self.feature_ends]

    def _wire(self) -> None:
        super()._wire()
        if not hasattr(self, 'resize'):
            self.resize: nn.Module = AtLeast(self.pre_logits.input_kernel_size)
        names = {end: name for name, end in self.trunk_ends(self).items()}
        self.end_names = [names.get(i, '') for i in range(len(self.features))]

    def forward_trunk(self, x: Tensor, taps: list[str]) -> dict[str, Tensor]:
        values: dict[str, Tensor] = {}
        for i, layer in enumerate(self.features):
            x = layer(x)
            if self.end_names[i] in taps:
                values[self.end_names[i]] = x
        values['pool5'] = x
        return values

    def forward_top(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        values['pool5'] = self.resize(values['pool5'])
        values['fc6'] = self.pre_logits.act1(self.pre_logits.fc1(values['pool5']))
        values['fc7'] = self.pre_logits.act2(self.pre_logits.fc2(self.pre_logits.drop(values['fc6'])))
        return values

    def pool_map(self, x: Tensor) -> Tensor:
        return self.head.global_pool(x)

    def classify_top(self, x: Tensor, pre_logits: bool) -> Tensor:
        x = self.head.drop(x)
        return x if pre_logits else self.head.fc(x)

    @staticmethod
    def pool_mult(model: Any) -> int:
        return model.head.global_pool.feat_mult()

    def new_units(self, layer: Layer, dd: dict[str, Any]) -> ConvUnits | LinearUnits:
        if layer.like_old and layer.level == 'fc6':
            kernel_size = self.old_units('fc6')[0].kernel_size
            conv = nn.Conv2d(layer.in_width, layer.width, cast(tuple[int, int], kernel_size), **dd)
            return ConvUnits(layer, conv=conv, act=nn.ReLU())
        if layer.phase == Phase.HEAD:
            return LinearUnits(layer, drop_rate=self.drop_rate, **dd)
        if self.use_norm:
            return ConvUnits(layer, norm=BatchNormAct2d(layer.width, **dd), **dd)
        return ConvUnits(layer, act=nn.ReLU(), **dd)

    @classmethod
    def count_weights(cls, model: Any, layer: Layer) -> int:
        is_like_fc6 = layer.like_old and layer.level == 'fc6'
        return super().count_weights(model, layer) * (prod(model.pre_logits.fc1.kernel_size) if is_like_fc6 else 1)

    def old_units(self, level: str) -> tuple[nn.Conv2d, nn.Module | None]:
        old = {'fc7': self.pre_logits.fc2, 'fc6': self.pre_logits.fc1}[level]
        return cast(nn.Conv2d, old), None

    @staticmethod
    def to_own_layout(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """timm's names, also of torchvision's checkpoints."""
        return _filter_fn(dict(state_dict)) if 'classifier.0.weight' in state_dict else dict(state_dict)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Parameter groups for timm: the trunk by layer, then FC6, FC7, and last what is new, with the classifier."""
        return dict(
            stem=r'^features\.0',
            blocks=[(r'^features\.(\d+)', None), (r'^pre_logits\.fc1', (98,)), (r'^pre_logits\.fc2', (99,))],
        )

    def shed(self) -> None:
        super().shed()
        del self.end_names
        if isinstance(self.resize, AtLeast):
            del self.resize


def _width(features: nn.Sequential, end: int) -> int:
    return next(layer.out_channels for layer in reversed(features[: end + 1]) if isinstance(layer, nn.Conv2d))


BASES = tuple(f'vgg{depth}{norm}' for depth in (11, 13, 16, 19) for norm in ('', '_bn'))
GROWTHS = (
    *('da', 'da1024', 'da2048', 'da4096', 'da6144'),
    *('wa', 'wa1024', 'wa2048'),
    *('dwa', 'dwa1024', 'dwa2048'),
    *('wwa', 'wwa1024', 'wwa2048', 'wwa4096'),
    *('mwa', 'mwa512', 'mwa1024', 'mwa2048'),
    *('xwa', 'xwa512', 'xwa1024', 'xwa2048'),
    *('norm', 'skip'),
    *('wa1024_wa1024', 'wa2048_wa1024', 'wa2048_wa2048'),
)

default_cfgs = grown_cfgs(BASES, GROWTHS)
register_grown(__name__, BASES, GROWTHS, feature_levels=6, flatten_sequential=True)
