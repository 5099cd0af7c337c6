"""How grown networks enter timm's registry and are built from their base's weights."""

from __future__ import annotations

import difflib
import logging
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from numbers import Integral
from typing import Any

import torch
from timm.models import (
    PretrainedCfg,
    build_model_with_cfg,
    generate_default_cfgs,
    get_pretrained_cfg,
    is_model,
    list_models,
    model_entrypoint,
    register_model,
)
from torch import Tensor, nn

from .any_network import GrownAny
from .checkpoint import filter_checkpoint, lacks_old_network
from .delta import Base, complete, fetch
from .growing import family_of
from .grown import ANY, Grown, Options, registered_for
from .growth import parse
from .heads import read_heads
from .memory import check_memory, count_bytes
from .published import check_published, takes_published_tags
from .reconcile import SCALE_INIT

__all__ = [
    'create_grown',
    'find_source',
    'grown_cfgs',
    'is_grown_name',
    'register_grown',
    'resolve_name',
    'usual_levels',
]

_logger = logging.getLogger(__name__)
_grown: set[str] = set()  # names of grown architectures
_USUAL = 100_000  # of channels and classes: more are counted before they are built


def grown_cfgs(bases: Iterable[str], growths: Iterable[str]) -> Mapping[str, Any]:
    """timm's `default_cfgs` for grown networks: a cfg for each base, growth and tag of the base's weights.

    The tag names the weights that a network grows from; they are the base's own, wherever timm finds them.
    """
    cfgs: dict[str, dict[str, Any] | PretrainedCfg] = {}
    for base in bases:
        for tagged in list_models(f'{base}.*', include_tags=True):
            cfg = get_pretrained_cfg(tagged)
            assert cfg is not None
            for growth in growths:
                own = {**asdict(cfg), 'architecture': None, 'tag': None}
                cfgs[f'{base}_{growth}.{tagged.partition(".")[2]}'] = own
    return generate_default_cfgs(cfgs)


def register_grown(
    module: str,
    bases: Iterable[str],
    growths: Sequence[str],
    feature_levels: int | None = None,
    flatten_sequential: bool = False,
) -> None:
    """Register every growth of every base with timm.

    Args:
        module: The name of the calling module, whose `default_cfgs` must be there already.
        bases: Names of registered architectures.
        growths: Growth names.
        feature_levels: How many levels `features_only` gives unless told otherwise; None to find out from the base.
        flatten_sequential: For timm's feature lists: whether levels lie within one `nn.Sequential`, as in VGG.
    """
    for base in bases:
        for growth in growths:
            _register(module, base, growth, feature_levels, flatten_sequential)


def _register(module: str, base: str, growth: str, feature_levels: int | None, flatten_sequential: bool) -> None:
    variant = f'{base}_{growth}'

    def entrypoint(
        pretrained: bool = False,
        growth: str = growth,
        scale_init: float | None = SCALE_INIT,
        new_init: str = 'random',
        settled: int = 0,
        delta_of: dict[str, Any] | None = None,
        heads: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> nn.Module:
        options = Options(scale_init, new_init)
        if kwargs.get('features_only'):
            kwargs.setdefault('out_indices', tuple(range(feature_levels)) if feature_levels else usual_levels(base))
        return create_grown(
            variant, base, growth, options, pretrained, settled, delta_of, heads, flatten_sequential, **kwargs
        )

    entrypoint.__name__ = entrypoint.__qualname__ = variant
    entrypoint.__module__ = module  # timm looks there for default_cfgs, and lists the model under its last part
    entrypoint.__doc__ = f'`{base}` grown by {growth}; see `timm_devnet.grow` for the arguments.'
    _grown.add(variant)
    registered = takes_published_tags(entrypoint)
    setattr(sys.modules[module], variant, registered)
    register_model(registered)


def usual_levels(base: str) -> tuple[int, ...]:
    """Which levels `features_only` gives: all of a network of stages, as timm the last three of one of equal blocks."""
    count = len(model_entrypoint(base)(pretrained=False, device='meta').feature_info)
    return tuple(range(count)) if count <= 5 else (-3, -2, -1)


def is_grown_name(name: str) -> bool:
    """Whether an architecture's name stands for a grown network."""
    return name == ANY or name in _grown


def find_source(source: str) -> tuple[str, PretrainedCfg]:
    """A plain network's architecture, and the cfg of its weights.

    Args:
        source: An architecture, with or without the tag of its weights.

    Raises:
        ValueError: If it is none of timm's, or a grown one's.
    """
    base, _, tag = str(source).partition('.')
    if not is_model(base):
        near = difflib.get_close_matches(base, list_models(), n=3)
        raise ValueError(
            f"source is one of timm's architectures, given {source!r:.100}."
            + (f' Did you mean {", ".join(near)}?' if near else '')
        )
    if is_grown_name(base):
        raise ValueError(f'{source!r} has grown already: give what it grew from as source, and its growth as growth.')
    try:
        cfg = get_pretrained_cfg(f'{base}.{tag}' if tag else base)
    except RuntimeError:
        tags = ', '.join(name.partition('.')[2] for name in list_models(f'{base}.*', include_tags=True))
        raise ValueError(f'{base} has no weights with the tag {tag!r}; it has these: {tags or "none"}.') from None
    return base, cfg or PretrainedCfg(architecture=base)


def resolve_name(name: str) -> tuple[str, dict[str, Any]]:
    """Find what timm's `create_model` needs to build any grown network, also of sizes that are not registered.

    Args:
        name: A model name, with or without a tag, such as `vgg16_wa2048.tv_in1k` or `vgg16_wa300_da50`.

    Returns:
        The registered name and further arguments for `create_model`.

    Raises:
        ValueError: If the name is no network's, or its ending is no growth.

    Example:
        >>> resolve_name('vgg16_wa300_da50')
        ('vgg16_wa', {'growth': 'wa300_da50'})
        >>> resolve_name('cspresnet50_wa64')
        ('devnet', {'source': 'cspresnet50', 'growth': 'wa64'})
    """
    if ':' in name or is_model(name):
        return name, {}
    plain, _, tag = name.partition('.')
    words = plain.split('_')
    for count in range(len(words) - 1, 0, -1):
        base, growth = '_'.join(words[:count]), '_'.join(words[count:])
        if is_model(base):
            parse(growth)  # says what is wrong with it
            registered = registered_for(base, growth)
            if registered:
                return registered + ('.' + tag if tag else ''), {'growth': growth}
            if not is_grown_name(base):  # a shorter name is the base then
                return ANY, {'source': base + ('.' + tag if tag else ''), 'growth': growth}
    near = difflib.get_close_matches(plain, list_models(), n=3)
    raise ValueError(f'Unknown model {name!r}.' + (f' Did you mean {", ".join(near)}?' if near else ''))


def create_grown(
    variant: str,
    base: str,
    growth: str,
    options: Options,
    pretrained: bool = False,
    settled: int = 0,
    delta_of: dict[str, Any] | None = None,
    heads: dict[str, Any] | None = None,
    flatten_sequential: bool = False,
    **kwargs: Any,
) -> nn.Module:
    """Build a grown network, with its base's weights or a grown checkpoint's if `pretrained`.

    Then the base is laid out on the meta device, so that nothing is initialised that the weights overwrite.

    Args:
        variant: Its registered name.
        base: The registered name of the old network.
        growth: What is added.
        options: How new units meet old ones.
        pretrained: Whether to load weights.
        settled: How many of the growth's steps count as old, as in a saved network that grew again after training.
        delta_of: What the checkpoint stands on, as `timm_devnet.delta.Base.to_dict` writes it, if it is one that holds
            only what differs. A whole checkpoint needs no base, whatever this says. An empty dict says that there is
            none, to build the network of a delta without weights.
        heads: Heads kept of earlier tasks, by name, as `timm_devnet.heads.Head.to_dict` writes them.
        flatten_sequential: See `register_grown`.
        **kwargs: timm's: for its `build_model_with_cfg` and for the base's constructor, which refuses unknown ones.

    Returns:
        The network, or its feature extractor with `features_only=True`.

    Raises:
        ValueError: If an argument or the checkpoint does not fit, or the base of a delta cannot be had.
    """
    below = Base.from_dict(delta_of) if delta_of is not None and delta_of != {} else None
    if below is not None and not pretrained:
        _refuse_without_base(variant, below, kwargs.get('device'))

    base_kwargs: dict[str, Any] = {}

    def build(**model_kwargs: Any) -> nn.Module:
        _check_sizes(model_kwargs)
        base_kwargs.update(model_kwargs)
        if pretrained:
            model_kwargs['device'] = 'meta'
        elif max(model_kwargs.get(name, 0) for name in ('in_chans', 'num_classes')) > _USUAL:
            base_on_meta = model_entrypoint(base)(pretrained=False, **{**model_kwargs, 'device': 'meta'})
            check_memory(count_bytes(base_on_meta.parameters()), f'The network {base}')
        model = model_entrypoint(base)(pretrained=False, **model_kwargs)
        if pretrained and any(not hasattr(owner, _REINIT) for owner, _ in _unsaved_buffers(model)):
            model = model_entrypoint(base)(pretrained=False, **{**model_kwargs, 'device': 'cpu'})
        family = family_of(model)
        parsed = parse(growth, family.units_for(model))
        if not isinstance(settled, Integral) or not 0 <= settled <= len(parsed.steps):
            raise ValueError(f'settled is 0 to {len(parsed.steps)}, the steps of growth {parsed}; given {settled!r}.')
        planned = family.plan_for(model, parsed, options)
        family.check_copies(planned, parsed, options, 0)
        if pretrained or next(model.parameters()).device.type == 'cpu':
            family.check_room(model, planned, 0)
        model.__class__ = family
        model.take(parsed, options, settled)
        model.add_heads(read_heads(heads, len(parsed.steps)))
        return model

    def filter_fn(state_dict: Mapping[str, Any], model: Grown) -> dict[str, Tensor]:
        check_published(state_dict, model.pretrained_cfg)
        if below is not None and lacks_old_network(state_dict, model):
            state_dict = complete(state_dict, fetch(below, kwargs.get('cache_dir')))
        try:
            return filter_checkpoint(state_dict, model)
        except ValueError:
            converted = _as_timm_loads(state_dict, model, base, base_kwargs)
            if converted is None:
                raise
            return filter_checkpoint(converted, model)

    model = build_model_with_cfg(
        build,
        variant,
        pretrained,
        feature_cfg=dict(feature_cls='getter', flatten_sequential=flatten_sequential),
        pretrained_filter_fn=filter_fn,
        **kwargs,
    )
    for module in (model, getattr(model, 'model', None)):  # the network inside a feature getter too
        if isinstance(module, Grown):
            module.pretrained_cfg = module.default_cfg = {**module.pretrained_cfg, 'classifier': module.classifier_name}
    if pretrained:
        for module in model.modules():  # timm leaves a copy of the weights there, also in the network inside a getter
            for kind in ('pretrained_cfg', 'default_cfg'):
                vars(module).get(kind, {}).pop('state_dict', None)
        _finish(model, kwargs.get('device'))
    return model


def _as_timm_loads(
    state_dict: Mapping[str, Any], model: Grown, base: str, base_kwargs: Mapping[str, Any]
) -> dict[str, Tensor] | None:
    """A base's checkpoint as timm brings it into the base: other layouts renamed, positions resized to the images.

    Returns:
        The whole base's state, or None if the checkpoint is a grown one or timm cannot load it either.
    """
    if not isinstance(model, GrownAny) or any(key.startswith('grown.') for key in state_dict):
        return None
    cfg = {**model.pretrained_cfg, 'architecture': base, 'state_dict': dict(state_dict), 'source': None}
    # With the checkpoint's own classes and channels, where timm is strict; those of the network are `adapt`'s.
    arguments = {**base_kwargs, 'num_classes': cfg['num_classes'], 'in_chans': cfg['input_size'][0]}
    for placed in ('device', 'dtype'):
        arguments.pop(placed, None)
    try:
        return model_entrypoint(base)(pretrained=True, pretrained_cfg=cfg, **arguments).state_dict()
    except Exception as error:  # of whatever kind: the checkpoint is not the base's, which the caller says
        _logger.debug(f'timm does not load the checkpoint into {base} either: {error}')
        return None


def _check_sizes(model_kwargs: Mapping[str, Any]) -> None:
    for name, least in (('in_chans', 1), ('num_classes', 0)):
        value = model_kwargs.get(name, least)
        if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
            raise ValueError(f'{name} is a whole number from {least}; given {value!r:.100}.')


def _refuse_without_base(variant: str, below: Base, device: torch.device | str | None) -> None:
    """Refuse to build the network of a delta for someone who loads the file alone, and would have a random base.

    transformers does so, on the meta device by a context; whoever says device='meta' wants shapes.
    """
    if device is None or torch.device(device).type != 'meta':
        raise ValueError(
            f'This checkpoint of {variant} may hold only what differs from {below}, so without pretrained=True the '
            'base would stay at random numbers. timm: give pretrained=True, or delta_of={} for random numbers. '
            'transformers: make a whole copy with `python -m hub pull ORG/NAME --local-dir DIR` and load DIR; if '
            'model.safetensors is whole already, take delta_of out of model_args in config.json.'
        )


def _finish(model: nn.Module, device: torch.device | str | None) -> None:
    """Give first values to what the weights did not have, and leave the meta device."""
    if isinstance(model, Grown):
        fresh = [added for _, added in model.added() if _on_meta(added)]
        for added in fresh:
            added.to_empty(device='cpu')
        model.init_new(min((added.step for added in fresh), default=len(model.grown)))
        classifier = model.get_classifier()
        if _on_meta(classifier):
            classifier.to_empty(device='cpu')
            model.init_classifier()
    unsaved = [(owner, name) for owner, name in _unsaved_buffers(model) if owner._buffers[name].is_meta]
    for owner, name in unsaved:
        owner._buffers[name] = torch.empty_like(owner._buffers[name], device='cpu')
    for owner in {owner for owner, _ in unsaved}:
        getattr(owner, _REINIT)()
    empty = [name for name, tensor in (*model.named_parameters(), *model.named_buffers()) if tensor.is_meta]
    if empty:
        raise ValueError(
            f'{", ".join(empty[:3])} got no values: the pretrained_cfg calls something the classifier that is none, so '
            'that timm left its weights out.'
        )
    if device is not None:
        model.to(device)


_REINIT = 'init_non_persistent_buffers'  # timm's name for what computes the buffers that no checkpoint holds


def _unsaved_buffers(model: nn.Module) -> list[tuple[Any, str]]:
    return [
        (module, name)
        for module in model.modules()
        for name in module._non_persistent_buffers_set
        if module._buffers.get(name) is not None
    ]


def _on_meta(module: nn.Module) -> bool:
    return any(tensor.is_meta for tensors in (module.parameters(), module.buffers()) for tensor in tensors)
