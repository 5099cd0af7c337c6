"""What config.json may say: every field by name, type and range; anything else is refused.

timm hands `model_args` to a network's constructor and `pretrained_cfg` to its loader, so a field that neither needs is
a way in: another file, another repository, another loader.
"""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
from timm.models import get_pretrained_cfg

import timm_devnet
from timm_devnet.delta import Base
from timm_devnet.grown import ANY
from timm_devnet.growth import MAX_LENGTH
from timm_devnet.heads import MAX_HEADS, read_heads
from timm_devnet.registration import find_source

from .strict_json import MAX_BYTES, parse, shown

__all__ = ['MODEL_ARGS', 'PRETRAINED_CFG', 'SECTION', 'SOURCES', 'check_config', 'default_growth', 'read_config']

FORMAT = 1  # of the section timm_devnet
MAX_CHANS = 1024
MAX_CLASSES = 1_000_000
MAX_SIZE = 2048  # of images, in pixels: tables of positions grow with it, and some are computed when they are built


@dataclass(frozen=True)
class Rule:
    """What a field may hold.

    Attributes:
        words: Completes 'The field is ...'.
        allows: Whether a value is that.
    """

    words: str
    allows: Callable[[Any], bool]


def _whole(low: int, high: int) -> Rule:
    return Rule(f'a whole number from {low:,} to {high:,}', lambda value: type(value) is int and low <= value <= high)


def _number(low: float, high: float) -> Rule:
    return Rule(
        f'a number from {low:g} to {high:g}', lambda value: type(value) in (int, float) and low <= value <= high
    )


def _text(length: int, pattern: str = '.*') -> Rule:
    words = f'a text of 1 to {length} printable characters'
    shape = re.compile(pattern)

    def allows(value: Any) -> bool:
        return (
            isinstance(value, str) and 0 < len(value) <= length and value.isprintable() and bool(shape.fullmatch(value))
        )

    return Rule(words if pattern == '.*' else f'{words} of the form {pattern}', allows)


def _prose(length: int) -> Rule:
    def allows(value: Any) -> bool:
        return isinstance(value, str) and len(value) <= length and not _CONTROL.search(value)

    return Rule(f'a text of at most {length} characters, none of which controls a terminal', allows)


def _choice(*allowed: Any) -> Rule:
    def allows(value: Any) -> bool:
        return any(type(value) is type(one) and value == one for one in allowed)

    return Rule(' or '.join(map(repr, allowed)), allows)


def _list(rule: Rule, least: int, most: int) -> Rule:
    def allows(value: Any) -> bool:
        return isinstance(value, list) and least <= len(value) <= most and all(map(rule.allows, value))

    return Rule(f'a list of {least:,} to {most:,}, each {rule.words}', allows)


def _object(rule: Rule, most: int) -> Rule:
    key = _prose(500)

    def allows(value: Any) -> bool:
        return (
            isinstance(value, dict)
            and len(value) <= most
            and all(map(key.allows, value))
            and all(map(rule.allows, value.values()))
        )

    return Rule(f'an object of at most {most:,}, each {rule.words}', allows)


def _any_of(*rules: Rule) -> Rule:
    return Rule(' or '.join(rule.words for rule in rules), lambda value: any(rule.allows(value) for rule in rules))


_CONTROL = re.compile(r'[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]')
_NULL = Rule('null', lambda value: value is None)
_FLAG = Rule('true or false', lambda value: type(value) is bool)
_NAME = _text(100)
_GROWTH = _text(MAX_LENGTH)
_LABELS = _list(_prose(500), 1, MAX_CLASSES)
_DESCRIPTIONS = _object(_prose(2000), MAX_CLASSES)
_POOL = _text(20, '[a-z]*')
_SIDE = _whole(1, MAX_SIZE)
_IMAGE = Rule(
    f'[channels, height, width], whole numbers from 1 to {MAX_CHANS:,} and {MAX_SIZE:,}',
    lambda value: (
        isinstance(value, list)
        and len(value) == 3
        and _whole(1, MAX_CHANS).allows(value[0])
        and all(map(_SIDE.allows, value[1:]))
    ),
)
_MAP = _list(_SIDE, 2, 2)
_MODULES = _any_of(_NULL, _NAME, _list(_NAME, 1, 20))


def _are_heads(value: Any) -> bool:
    try:
        heads = read_heads(value, MAX_LENGTH)  # how many steps the growth has is known to the network alone
    except ValueError:
        return False
    labels = (label for head in heads.values() for label in head.label_names)
    return value is not None and all(map(_prose(500).allows, labels))


CONFIG: Mapping[str, Rule] = {
    'architecture': _text(100, '[A-Za-z0-9_]+'),
    'num_classes': _whole(0, MAX_CLASSES),
    'num_features': _whole(1, 10**12),
    'global_pool': _any_of(_NULL, _POOL),
    'label_names': _LABELS,
    'label_descriptions': _DESCRIPTIONS,
    'problem_type': _choice('single_label_classification', 'multi_label_classification'),  # transformers' word
    'model_args': Rule('an object', lambda value: isinstance(value, dict)),
    'pretrained_cfg': Rule('an object', lambda value: isinstance(value, dict)),
    'timm_devnet': Rule('an object', lambda value: isinstance(value, dict)),
}
MODEL_ARGS: Mapping[str, Rule] = {
    'num_classes': _whole(0, MAX_CLASSES),
    'in_chans': _whole(1, MAX_CHANS),
    'global_pool': _any_of(_NULL, _POOL),
    'img_size': _any_of(_SIDE, _MAP),
}
GROWN_ARGS: Mapping[str, Rule] = {
    **MODEL_ARGS,
    'source': _text(200, '[A-Za-z0-9_.]+'),
    'growth': _GROWTH,
    'scale_init': _any_of(_NULL, _number(0, 1e6)),
    'new_init': _choice('random', 'copy'),
    'settled': _whole(0, 200),
    'delta_of': Rule('an object', lambda value: isinstance(value, dict)),
    'heads': Rule(
        f'an object of at most {MAX_HEADS} heads by name, each with num_classes, steps, and perhaps label_names and '
        'multi_label',
        _are_heads,
    ),
}
# Fields of timm's PretrainedCfg that say where weights come from: that is here, and nowhere else.
SOURCES = ('url', 'file', 'state_dict', 'hf_hub_id', 'hf_hub_filename', 'source')
PRETRAINED_CFG: Mapping[str, Rule] = {
    'architecture': _any_of(_NULL, _NAME),
    'tag': _any_of(_NULL, _text(100)),
    'custom_load': _choice(False),
    'input_size': _IMAGE,
    'test_input_size': _any_of(_NULL, _IMAGE),
    'min_input_size': _any_of(_NULL, _IMAGE),
    'fixed_input_size': _FLAG,
    'interpolation': _choice('bicubic', 'bilinear', 'nearest', 'box', 'hamming', 'lanczos', 'random'),
    'crop_pct': _number(0.01, 10),
    'test_crop_pct': _any_of(_NULL, _number(0.01, 10)),
    'crop_mode': _choice('center', 'squash', 'border'),
    'mean': _list(_number(-1000, 1000), 1, MAX_CHANS),
    'std': _list(_number(1e-6, 1000), 1, MAX_CHANS),
    'num_classes': _whole(0, MAX_CLASSES),
    'label_offset': _any_of(_NULL, _choice(0)),  # else timm cuts the classifier's first rows off
    'label_names': _any_of(_NULL, _LABELS),
    'label_descriptions': _any_of(_NULL, _DESCRIPTIONS),
    'pool_size': _any_of(_NULL, _MAP),
    'test_pool_size': _any_of(_NULL, _MAP),
    'first_conv': _MODULES,
    'classifier': _MODULES,
    'license': _any_of(_NULL, _NAME),
    'description': _any_of(_NULL, _prose(10_000)),
    'origin_url': _any_of(_NULL, _text(500)),
    'paper_name': _any_of(_NULL, _prose(500)),
    'paper_ids': _any_of(_NULL, _text(500), _list(_text(500), 0, 20)),
    'notes': _any_of(_NULL, _prose(10_000), _list(_prose(10_000), 0, 20)),
}
SECTION: Mapping[str, Rule] = {
    'format': Rule(f'{FORMAT}, the format that this version of timm_devnet reads', _choice(FORMAT).allows),
    'version': _text(50),
    'growth': _any_of(_NULL, _GROWTH),
    'base': Rule('an object or null', lambda value: value is None or isinstance(value, dict)),
    'delta': _FLAG,
    'storage': _choice('float32', 'bfloat16'),
    'license': _NAME,
    'dataset': _any_of(_NULL, _text(200)),
    'regime': _any_of(_NULL, _text(200)),
    'metrics': _any_of(_NULL, _object(_any_of(_NULL, _number(0, 1e12)), 50)),
    'sha256': _object(_text(64, '[0-9a-f]{64}'), 20),
}
_PERCENT = re.compile('(top1|top5|map)(_.*)?')


def read_config(path: Path) -> dict[str, Any]:
    """Read config.json within bounds of size and depth; what it says is not checked.

    Raises:
        ValueError: It is too large, no JSON, or no object.
    """
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise ValueError(f'{path.name} is at most {MAX_BYTES:,} bytes long; found {size:,}')
    config = parse(path.read_bytes(), path.name)
    if not isinstance(config, dict):
        raise ValueError(f'{path.name} is an object; found {shown(config)}')
    return config


def default_growth(architecture: str) -> str | None:
    """The growth that a registered name stands for, None if it is no grown network's."""
    parameter = inspect.signature(timm.model_entrypoint(architecture)).parameters.get('growth')
    return None if parameter is None else str(parameter.default)


def check_config(config: dict[str, Any]) -> Iterator[str]:
    """Find what is wrong with the contents of config.json, as far as that shows without building the network.

    Args:
        config: What `read_config` gave.

    Yields:
        A sentence for every problem.
    """
    problems = list(_check_fields('', config, CONFIG, ('architecture', 'num_classes', 'pretrained_cfg')))
    if not problems:
        problems += _check_architecture(config)
    if problems:  # the rest depends on which network it is
        yield from problems
        return
    grown = default_growth(config['architecture']) is not None
    cfg, args, section = config['pretrained_cfg'], config.get('model_args', {}), config.get('timm_devnet')
    problems += _check_fields('model_args.', args, GROWN_ARGS if grown else MODEL_ARGS)
    given = [name for name in SOURCES if cfg.get(name) not in (None, '')]
    if given:
        problems.append(
            f'config.json: pretrained_cfg.{given[0]} is {shown(cfg[given[0]])}; the weights are model.safetensors, so '
            f'leave out {", ".join(SOURCES)}'
        )
    known = {name: value for name, value in cfg.items() if name not in SOURCES}
    problems += _check_fields('pretrained_cfg.', known, PRETRAINED_CFG, ('num_classes', 'input_size'))
    if section is not None:
        problems += _check_fields('timm_devnet.', section, SECTION, tuple(SECTION))
    yield from problems or _check_agreement(config, cfg, args, section)


def _check_fields(
    where: str, given: Mapping[str, Any], rules: Mapping[str, Rule], needed: tuple[str, ...] = ()
) -> list[str]:
    problems = [
        f'config.json: {where}{name} is missing; it is {rules[name].words}' for name in needed if name not in given
    ]
    unknown = [name for name in given if name not in rules]
    if unknown:
        more = f' and {len(unknown) - 3} more' if len(unknown) > 3 else ''
        problems.append(
            f'config.json: {where}{", ".join(map(shown, unknown[:3]))}{more}: no field that is known; known are '
            f'{", ".join(rules)}'
        )
    for name, rule in rules.items():
        if name in given and not rule.allows(given[name]):
            problems.append(f'config.json: {where}{name} is {rule.words}; found {shown(given[name])}')
    return problems


def _check_architecture(config: dict[str, Any]) -> Iterator[str]:
    name = config['architecture']
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3)
        advice = f'; did you mean {", ".join(near)}?' if near else '; timm.list_models() lists them'
        yield f'config.json: architecture {shown(name)} is no model that timm or timm_devnet knows{advice}'


def _check_agreement(
    config: dict[str, Any], cfg: dict[str, Any], args: dict[str, Any], section: dict[str, Any] | None
) -> Iterator[str]:
    """Find where fields contradict each other, each of which may be right alone."""
    classes, labels = config['num_classes'], config.get('label_names')
    for where, value in (('pretrained_cfg', cfg['num_classes']), ('model_args', args.get('num_classes', classes))):
        if value != classes:
            yield f'config.json: num_classes is {classes:,}, but {where}.num_classes is {value:,}'
    if labels is not None and len(labels) != classes:
        yield f'config.json: num_classes is {classes:,}, but label_names has {len(labels):,} names'
    if cfg.get('architecture') not in (None, config['architecture']):
        yield f'config.json: pretrained_cfg.architecture is another than architecture, {config["architecture"]}'
    chans = args.get('in_chans', cfg['input_size'][0])
    for name in ('input_size', 'test_input_size', 'min_input_size'):
        if cfg.get(name) and cfg[name][0] != chans:
            yield f'config.json: the network reads {chans:,} channels, but pretrained_cfg.{name} is {cfg[name]}'
    for name in ('mean', 'std'):
        if len(cfg.get(name, [0])) not in (1, chans):
            yield f'config.json: pretrained_cfg.{name} has {len(cfg[name])} numbers, not 1 or {chans:,}, one a channel'
    if (
        None not in (config.get('global_pool'), args.get('global_pool'))
        and config['global_pool'] != args['global_pool']
    ):
        yield 'config.json: global_pool and model_args.global_pool differ'
    is_any = config['architecture'] == ANY  # whose layers are its source's, and its classifier's name its own
    try:
        registered = find_source(args['source'])[1] if 'source' in args else get_pretrained_cfg(config['architecture'])
    except ValueError as error:
        yield f'config.json: model_args.source: {error}'
        return
    for name in ('first_conv',) if is_any else ('first_conv', 'classifier'):
        # timm leaves out the weights of what is called the classifier, when another number of classes is asked for.
        right = getattr(registered, name, None)
        if name in cfg and cfg[name] not in (None, list(right) if isinstance(right, tuple) else right):
            yield f'config.json: pretrained_cfg.{name} of {config["architecture"]} is {right!r}, not {cfg[name]!s:.80}'
    if 'delta_of' in args:
        yield from _check_base('model_args.delta_of', args['delta_of'])
    if section is not None:
        yield from _check_section(section, args.get('delta_of'))


def _check_section(section: dict[str, Any], delta_of: dict[str, Any] | None) -> Iterator[str]:
    base = section['base']
    if base is not None:
        yield from _check_base('timm_devnet.base', base)
    if section['delta'] and (base is None or delta_of != base):
        yield 'config.json: timm_devnet.delta is true, so timm_devnet.base and model_args.delta_of name the same base'
    if section['growth'] is not None:
        try:
            timm_devnet.parse_growth(section['growth'])
        except ValueError as error:
            yield f'config.json: timm_devnet.growth: {error}'
    for name, value in (section['metrics'] or {}).items():
        if _PERCENT.fullmatch(name) and value is not None and value > 100:
            yield f'config.json: timm_devnet.metrics.{name} is a percentage, from 0 to 100; found {value}'


def _check_base(where: str, base: dict[str, Any]) -> Iterator[str]:
    try:
        Base.from_dict(base)
    except ValueError as error:
        yield f'config.json: {where}: {error}'
