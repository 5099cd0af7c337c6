"""How any network with timm's interface grows: its own layers run as they are, new units read what they pass on.

Nothing here knows a network by name. What plays the top layer is told from the outline (`outline.py`): a layer
between pooling and classifier (MobileNetV3, Inception-NeXt), a convolution after the last stage (DPN, FastViT), the
last stage of a convolutional network (ResNet, ConvNeXt, DenseNet) or the last block of a transformer or mixer (ViT,
MLP-Mixer). Below it are the earlier values of timm's `forward_intermediates`. New units are 1x1 convolutions on those
maps with a norm and an activation of the network's own kind; the classifier reads every block pooled.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import floor, log2
from typing import Any, cast

import torch.nn.functional as F
from timm.layers import BatchNormAct2d, LayerNorm2d
from timm.layers.adaptive_avgmax_pool import adaptive_pool_feat_mult
from torch import Tensor, fx, nn

from .frozen import Tracer
from .grown import Grown
from .layers import ConvUnits, LinearUnits
from .layout import OPAQUE, append_maps, channels_first, channels_last_of, pool_features
from .outline import Outline, outline_of, pool_type_of
from .plan import Layer, Level, Phase

__all__ = ['GrownAny', 'grown_class']

fx.wrap('append_maps')


class GrownAny(Grown):
    """Any timm network with new units; see `timm_devnet.grow`. `grown_class` makes the class for a network's class."""

    unit_levels = ()  # old layers of blocks of layers are none that units could be copies of

    outline: Outline
    head_drop_rate: float
    own_widths: tuple[int, int]  # num_features and head_hidden_size of the old network, which its own methods mean

    @classmethod
    def levels_of(cls, model: Any) -> list[Level]:
        outline = _outline(model)
        return [
            Level(
                stage.name,
                stage.width,
                Phase.POOLED if stage.name == outline.head else Phase.TRUNK,
                stage.modules,
            )
            for stage in reversed(outline.stages)
        ]

    @classmethod
    def final_of(cls, model: Any) -> str:
        return _outline(model).final

    @classmethod
    def units_for(cls, model: Any) -> Mapping[str, int]:
        """In proportion to the width of what the classifier reads: 512 units for 1280 or 2048 channels, 256 for 768."""
        units = max(16, 2 ** floor(log2(0.4 * _outline(model).stages[-1].width)))
        return {'da': 2 * units, **dict.fromkeys(('wa', 'dwa', 'wwa', 'mwa', 'xwa'), units)}

    def _begin(self) -> None:
        """Keep what the plain network looked like, and let its dropout stand behind the reconciled blocks."""
        grown = type(self)
        self.__class__ = self.base_class  # type: ignore[assignment]  # what is told of it is told of the plain network
        outline = _outline(self)
        self.__class__ = grown
        self.outline = outline
        self.classifier_name, self.replaced = outline.classifier, outline.replaced
        self.own_widths = self.num_features, getattr(self, 'head_hidden_size', self.num_features)
        drops = [module for name, module in self.named_modules() if _is_head_drop(name, module)]
        self.head_drop_rate = max([float(getattr(self, 'drop_rate', 0.0) or 0.0), *(drop.p for drop in drops)])
        self.drop_rate = 0.0
        for drop in drops:
            drop.p = 0.0

    def get_classifier(self) -> nn.Module:
        """The classifier that reads every block."""
        return self.get_submodule(self.classifier_name)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """As every grown network's."""
        joined = self.num_features, self.head_hidden_size
        self.num_features, self.head_hidden_size = self.own_widths
        try:
            super().reset_classifier(num_classes, global_pool)
        except ValueError:
            self.num_features, self.head_hidden_size = joined
            raise

    def _wire(self) -> None:
        super()._wire()
        stages = {stage.name: stage.index for stage in self.outline.stages}
        indices = {name: stages[name] for name in self.plan.taps}
        self.tapped = sorted(indices, key=lambda name: cast(int, indices[name]))
        self.tap_indices = sorted(cast(int, index) for index in indices.values())
        self.top_pool = pool_type_of(self)

    def forward_trunk(self, x: Tensor, taps: list[str]) -> dict[str, Tensor]:
        base = cast(Any, self.base_class)
        if not self.tap_indices:
            return {self.final_level: base.forward_features(self, x)}
        last, maps = base.forward_intermediates(self, x, indices=self.tap_indices, stop_early=False)
        values = {name: maps[i] for i, name in enumerate(self.tapped)}
        values[self.final_level] = last
        return values

    def join_features(self, values: dict[str, Tensor]) -> Tensor:
        values = self.forward_added(values, 0)
        last, *others = (values[name] for name in self.feature_names)
        return append_maps(last, others, self.outline.layout) if others else last

    def head_values(self, x: Tensor) -> dict[str, Tensor]:
        base, layout = cast(Any, self.base_class), self.outline.layout
        parts = [x] if layout == OPAQUE else x.split(self.feature_widths, -1 if channels_last_of(layout) else 1)
        values: dict[str, Tensor] = {}
        for i, name in enumerate(self.feature_names):
            if self.top_pool == '' and layout != OPAQUE:
                values[name] = channels_first(parts[i], layout)
            elif name in self.pooled and layout != OPAQUE:
                values[name] = pool_features(parts[i], layout, self.top_pool)
        old = base.forward_head(self, parts[0], pre_logits=True)
        values[self.outline.head or self.final_level] = channels_first(old, layout) if self.top_pool == '' else old
        return self.forward_added(values, 2)

    def classify_top(self, x: Tensor, pre_logits: bool) -> Tensor:
        x = F.dropout(x, self.head_drop_rate, self.training)
        if self.top_pool == '' and channels_last_of(self.outline.layout):
            x = x.movedim(1, -1)
        return x if pre_logits or self.num_classes == 0 else self.get_classifier()(x)

    @staticmethod
    def pool_mult(model: Any) -> int:
        return adaptive_pool_feat_mult(pool_type_of(model))

    def new_units(self, layer: Layer, dd: dict[str, Any]) -> ConvUnits | LinearUnits:
        norm, act = _manner_of(self)
        if norm is BatchNormAct2d:
            return ConvUnits(layer, norm=BatchNormAct2d(layer.width, act_layer=act, **dd), **dd)
        return ConvUnits(layer, norm=LayerNorm2d(layer.width, **dd) if norm else None, act=act(), **dd)

    def feature_levels(self, extra_blocks: bool = False) -> list[str]:
        return [info['module'] for info in cast(Any, self.feature_info)]

    def forward_intermediates(self, x: Tensor, *args: Any, intermediates_only: bool = False, **kwargs: Any) -> Any:
        """As the old network's, the features being those of `forward_features`; see timm."""
        forward = cast(Any, self.base_class).forward_intermediates
        given = forward(self, x, *args, intermediates_only=intermediates_only, **kwargs)
        return given if intermediates_only else (self.forward_features(x), given[1])

    def shed(self) -> None:
        super().shed()
        self.num_features, self.head_hidden_size = self.own_widths
        self.drop_rate = self.head_drop_rate
        del (
            self.outline,
            self.own_widths,
            self.classifier_name,
            self.replaced,
            self.head_drop_rate,
            self.tapped,
            self.tap_indices,
            self.top_pool,
        )

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return _blank, (self.base_class,), self.__dict__.copy()  # pickle would not find a class that was made

    def __prepare_scriptable__(self) -> nn.Module:
        """What TorchScript compiles: the graph, since timm's `forward_intermediates` is not written for it."""
        return fx.GraphModule(self, Tracer().trace(self))


def _is_head_drop(name: str, module: nn.Module) -> bool:
    """Whether a module is dropout between pooling and classifier, and not of positions or patches."""
    parent, _, last = name.rpartition('.')
    is_of_head = name.startswith('head.') if parent else not last.startswith(('pos', 'patch'))
    return isinstance(module, nn.Dropout) and is_of_head


_CLASSES: dict[type[nn.Module], type[GrownAny]] = {}
_outlines: dict[Any, Outline] = {}  # by all that an outline depends on
_MOST_OUTLINES = 64


def grown_class(base: type[nn.Module]) -> type[GrownAny]:
    """The class of a grown network whose old network is of class `base`, made when first asked for.

    Raises:
        ValueError: If the base has methods of its own under names that grown networks need.
    """
    if base not in _CLASSES:
        taken = sorted(_own_names() & set(dir(base)) - set(dir(nn.Module)))
        if taken:
            raise ValueError(f'{base.__name__} cannot grow: it has other attributes called {", ".join(taken)}.')
        name = f'Grown{base.__name__}'
        doc = f'A {base.__name__} with new units; see `timm_devnet.grow`.'
        _CLASSES[base] = type(name, (GrownAny, base), {'base_class': base, '__module__': __name__, '__doc__': doc})
    return _CLASSES[base]


def _own_names() -> set[str]:
    """Names that mean something else in a grown network than timm's interface has them mean."""
    names = {*vars(Grown), *vars(GrownAny), *Grown.__annotations__, *GrownAny.__annotations__}
    return {name for name in names if not name.startswith(('__', 'forward_head', 'forward_features'))} - _INTERFACE


_INTERFACE = {
    *('forward', 'forward_intermediates', 'prune_intermediate_layers', 'load_state_dict', 'num_classes', 'drop_rate'),
    *('get_classifier', 'reset_classifier', 'pretrained_cfg'),
}


def _blank(base: type[nn.Module]) -> GrownAny:
    made = grown_class(base)
    return made.__new__(made)


def _outline(model: nn.Module) -> Outline:
    known = vars(model).get('outline')
    if known is not None:
        return known
    shapes = tuple((name, parameter.shape) for name, parameter in model.named_parameters())
    key = type(model), pool_type_of(model), getattr(model, 'num_classes', None), shapes
    if key not in _outlines:
        while len(_outlines) >= _MOST_OUTLINES:
            del _outlines[next(iter(_outlines))]
        _outlines[key] = outline_of(model)
    return _outlines[key]


def _manner_of(model: nn.Module) -> tuple[type[nn.Module] | None, type[nn.Module]]:
    """The kind of normalisation that new units have, and the class of their activation: the network's own."""
    act = next((type(module) for module in reversed(list(model.modules())) if isinstance(module, _ACTIVATIONS)), None)
    modules = [module for name, module in model.named_modules() if not name.startswith('grown.')]
    if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in modules):
        return BatchNormAct2d, act or nn.ReLU
    if any('norm' in type(module).__name__.lower() for module in modules):
        return LayerNorm2d, act or nn.GELU
    return None, act or nn.ReLU


_ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.GELU, nn.SiLU, nn.Hardswish, nn.Mish)
