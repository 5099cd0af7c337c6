"""What a timm network looks like from outside: its levels, features and classifier, found by running it once.

Any network with timm's interface (`forward_features`, `forward_head(pre_logits=True)`, `forward_intermediates`) tells
all that growth must know when it is run on the meta device: shapes alone, no arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, cast

import torch
from timm.layers.adaptive_avgmax_pool import adaptive_pool_feat_mult
from torch import Tensor, nn

from .layout import OPAQUE, channels_last_of

__all__ = ['Outline', 'Stage', 'classifiers_of', 'outline_of', 'pool_type_of', 'run_on_meta']


@dataclass(frozen=True)
class Stage:
    """A value that new units can read or stand beside.

    Attributes:
        name: The old layer's name.
        width: Its channels.
        index: Its place in `forward_intermediates`, None for what comes after.
        modules: The modules whose parameters belong to it: all since the stage before.
    """

    name: str
    width: int
    index: int | None
    modules: tuple[str, ...]


@dataclass(frozen=True)
class Outline:
    """What growth must know of a network.

    Attributes:
        stages: From the bottom up; the last one, or the one before it if there is a `head`, is `forward_features`.
        final: The name of the stage that `forward_features` gives.
        head: The name of the last layer between pooling and classifier, '' where the classifier reads pooled features.
        layout: Of the features, as `layout.py` names it.
        classifier: The name of the module whose place the classifier of the grown network takes.
        replaced: The names of all modules that go with it: two for networks distilled with a second classifier.
    """

    stages: tuple[Stage, ...]
    final: str
    head: str
    layout: str
    classifier: str
    replaced: tuple[str, ...]


def pool_type_of(model: nn.Module) -> str:
    """The kind of global pooling by timm's name; '' for none."""
    for owner in (model, getattr(model, 'head', None)):
        pool = getattr(owner, 'global_pool', None)
        if isinstance(pool, str):
            return pool
        if isinstance(getattr(pool, 'pool_type', None), str):
            return cast(Any, pool).pool_type
    return 'avg'


def classifiers_of(model: nn.Module) -> list[nn.Module]:
    """The modules that a fresh classifier replaces, the main one first; several in networks distilled with two."""
    return [model.get_submodule(name) for name in _find_classifier(model)[1]]


def outline_of(model: nn.Module) -> Outline:
    """Run a network once on the meta device and tell its outline.

    Args:
        model: A plain timm network; it is not changed.

    Raises:
        ValueError: If it has no classifier to replace or its features are not what can be widened; tells why.
    """
    name = type(model).__name__
    lacking = [method for method in _INTERFACE if not callable(getattr(model, method, None))]
    if lacking:
        raise ValueError(f"{name} cannot grow: it lacks {', '.join(lacking)} of timm's interface.")
    if hasattr(model, 'weights'):  # EfficientViM, whose classifiers are weighed by parameters outside them
        raise ValueError(f'{name} cannot grow: what it classifies with is spread over several places.')
    classifier, replaced = _find_classifier(model)
    features, maps, pooled = _look(model)
    if pooled.ndim != 2 and pool_type_of(model):
        raise ValueError(
            f'{name} cannot grow: forward_head(pre_logits=True) gives {tuple(pooled.shape)}, not one vector an image.'
        )
    if not isinstance(features, Tensor):  # several: nothing can be appended to them, but the top can grow
        whole = Stage('features', pooled.shape[1], None, tuple(_Order(model, replaced).holders))
        return Outline((whole,), whole.name, '', OPAQUE, classifier, replaced)
    layout, width = _layout_of(model, features)
    is_last = layout == 'NC' or bool(maps) and maps[-1].width == width
    is_counted_twice = is_last and 0 < len(maps) < _LEAST_LEVELS  # networks of three stages
    below = maps[:-1] if is_last and not is_counted_twice else maps
    order = _Order(model, replaced)
    layers = order.layers_after(order.end(maps[-1].name) if maps else 0)
    head_width = pooled.shape[-1 if pooled.ndim > 2 and channels_last_of(layout) else 1]
    has_head = head_width != width * adaptive_pool_feat_mult(pool_type_of(model))
    if has_head and not (maps and layers):
        raise ValueError(
            f'{name} cannot grow: {width} channels of features become {head_width} by no layer that can be told.'
        )
    own = maps[-1].name if is_last and maps else next(iter(layers), 'features')
    final = 'features' if is_counted_twice else own
    values = [*below, _Value(final, width, None)]
    ends = [order.end(value.name) for value in values]
    head = ''
    if has_head:
        head = layers[-1] if layers[-1] != final else f'{final}_head'
        values.append(_Value(head, head_width, None))
        ends[-1] = min(ends[-1], order.holders.index(layers[-1]))
        ends.append(0)
    ends[-1] = len(order.holders)  # norms after the last layer are the top's
    starts = [0, *accumulate(ends[:-1], max)]
    stages = [
        Stage(value.name, value.width, value.index, tuple(order.holders[start:end]))
        for value, start, end in zip(values, starts, ends, strict=True)
    ]
    return Outline(tuple(stages), final, head, layout, classifier, replaced)


# mwa and skip read level 3. Where there are fewer stages, the last one is level 1, and the top layer its features.
_LEAST_LEVELS = 4
_INTERFACE = ('forward_features', 'forward_head', 'get_classifier', 'reset_classifier')


@dataclass(frozen=True)
class _Value:
    name: str
    width: int
    index: int | None


class _Run(nn.Module):
    """All that is asked of a network, as one forward pass that `functional_call` can run on other tensors."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Any, list[Tensor], Any]:
        model, maps = cast(Any, self.model), []
        if callable(getattr(model, 'forward_intermediates', None)):
            features, maps = model.forward_intermediates(images, output_fmt='NCHW')
        else:
            features = model.forward_features(images)
        return features, maps, model.forward_head(features, pre_logits=True)


def run_on_meta(module: nn.Module, images: Tensor) -> Any:
    """What a module gives of images on the meta device, wherever its parameters and buffers are; they stay there."""
    # Each place once: torch restores places twice, and wrongly, where modules are shared and weights are tied.
    tensors = {
        f'{place}.{name}' if place else name: tensor.detach().to('meta')
        for place, inner in module.named_modules()
        for name, tensor in (*inner._parameters.items(), *inner._buffers.items())
        if tensor is not None
    }
    with torch.no_grad():
        return torch.func.functional_call(module, tensors, (images,), tie_weights=False)


def _look(model: nn.Module) -> tuple[Any, list[_Value], Tensor]:
    run = _Run(model)
    first = next(model.parameters())
    channels = getattr(model, 'in_chans', 3)
    failure: Exception | None = None
    for height, width in _image_sizes(model):
        images = torch.zeros(2, channels, height, width, device='meta', dtype=first.dtype)
        try:
            features, maps, pooled = run_on_meta(run, images)
            _forget_kept(model)
            break
        except Exception as error:  # networks raise errors of every kind at images of a size that is not theirs
            failure = failure or error
    else:
        reason = str(failure).strip().partition('\n')[0]
        raise ValueError(f'{type(model).__name__} cannot grow: it could not be run to find its levels: {reason}')
    if not isinstance(pooled, Tensor):
        raise ValueError(
            f'{type(model).__name__} cannot grow: its classifier reads a {type(pooled).__name__}, not one tensor.'
        )
    infos = cast(Any, getattr(model, 'feature_info', None)) or []
    names = [info['module'] for info in infos]
    if len(names) != len(maps) or len(set(names)) != len(names):
        names = [f'level{i}' for i in range(len(maps))]
    is_map = all(isinstance(value, Tensor) and value.ndim == 4 for value in maps)
    found = [_Value(name, value.shape[1], i) for i, (name, value) in enumerate(zip(names, maps, strict=True))]
    return features, found if is_map else [], pooled


def _forget_kept(model: nn.Module) -> None:
    """Let layers forget what they keep in evaluation (LeViT's attention biases), as they do when training begins."""
    modes = [(module, module.training) for module in model.modules()]
    model.train()
    for module, mode in modes:
        module.training = mode


def _image_sizes(model: nn.Module) -> Iterator[tuple[int, int]]:
    embed, cfg = getattr(model, 'patch_embed', None), getattr(model, 'pretrained_cfg', None) or {}
    for size in (
        getattr(embed, 'img_size', None),
        getattr(model, 'img_size', None),
        (cfg.get('input_size') or (None,))[1:],
        224,
    ):
        if isinstance(size, int):
            yield size, size
        elif isinstance(size, Sequence) and len(size) == 2:
            yield size[0], size[1]


def _layout_of(model: nn.Module, features: Tensor) -> tuple[str, int]:
    width = cast(int, getattr(model, 'num_features', features.shape[1]))
    if features.ndim == 4:
        is_last = str(getattr(model, 'output_fmt', 'NCHW')).endswith('NHWC') or (
            features.shape[1] != width and features.shape[-1] == width
        )
        return ('NHWC', features.shape[-1]) if is_last else ('NCHW', features.shape[1])
    if features.ndim == 3:
        return 'NLC', features.shape[-1]
    if features.ndim == 2:
        return 'NC', features.shape[-1]
    raise ValueError(f'{type(model).__name__} cannot grow: its features have {features.ndim} dimensions.')


def _find_classifier(model: nn.Module) -> tuple[str, tuple[str, ...]]:
    """The name of the module that the new classifier replaces, and of all that go with it."""
    found = cast(Any, model).get_classifier()
    classifiers = found if isinstance(found, tuple | list) else (found,)
    names = {module: name for name, module in model.named_modules()}
    if not classifiers or any(module not in names for module in classifiers):
        raise ValueError(f'{type(model).__name__} cannot grow: it has no classifier to replace.')
    replaced = [names[module] for module in classifiers]
    for i, name in enumerate(replaced):
        if hasattr(classifiers[i], 'global_pool') and isinstance(getattr(classifiers[i], 'fc', None), nn.Module):
            replaced[i] = name = f'{name}.fc'  # timm's ClassifierHead: pooling, dropout and the classifier
        parent = name.rpartition('.')[0]
        inside = model.get_submodule(parent)
        # timm's NormLinear: a norm and a linear map that are the classifier together.
        if parent and not hasattr(inside, 'global_pool') and type(inside).__name__ == 'NormLinear':
            replaced[i] = parent
    return replaced[0], tuple(replaced)


class _Order:
    """The modules that hold parameters, in the order in which the network registered them: that of its forward pass."""

    def __init__(self, model: nn.Module, replaced: Sequence[str]) -> None:
        self.holders: list[str] = []
        self.ends: dict[str, int] = {}
        self.layers: set[str] = set()
        for name, module in model.named_modules():
            own = list(module.parameters(recurse=False))
            if own and name and not any(_is_inside(name, place) for place in replaced):
                self.holders.append(name)
                if any(parameter.ndim > 1 for parameter in own):
                    self.layers.add(name)
            self.ends[name] = len(self.holders)
            while name:
                name = name.rpartition('.')[0]
                self.ends[name] = len(self.holders)

    def end(self, name: str) -> int:
        """How many of them are registered up to the end of a module; 0 for one that is none."""
        return self.ends.get(name, 0)

    def layers_after(self, end: int) -> list[str]:
        """Those from a place on that have weights."""
        return [name for name in self.holders[end:] if name in self.layers]


def _is_inside(name: str, place: str) -> bool:
    return name == place or name.startswith(place + '.')
