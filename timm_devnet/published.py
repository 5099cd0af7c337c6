"""Which checkpoints are published, and how timm knows them: as further tags of their architectures.

`published.json` lists those that this project vouches for; `register_published` adds a list of one's own. A tag is
pinned to a commit and to the checksum of the file's tensors.
"""

from __future__ import annotations

import functools
import json
import re
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from sys import modules
from typing import Any

from timm.models import PretrainedCfg, get_pretrained_cfg, model_entrypoint, register_model
from torch import Tensor, nn

from .delta import SAFE_FILE, Base, digest, is_repo_id
from .grown import Options
from .growth import parse
from .reconcile import SCALE_INIT

__all__ = ['Published', 'check_published', 'list_published', 'register_published', 'takes_published_tags']

_INPUT_FIELDS = (
    *('input_size', 'test_input_size', 'min_input_size', 'interpolation', 'crop_pct', 'test_crop_pct', 'crop_mode'),
    *('mean', 'std', 'pool_size', 'test_pool_size', 'description'),
)
_ARGUMENTS = ('source', 'growth', 'scale_init', 'new_init', 'settled', 'delta_of', 'in_chans', 'global_pool')

_architectures: set[str] = set()  # those whose entrypoints bring along what a tag needs
_entries: dict[tuple[str, str], Published] = {}  # by architecture and tag


@dataclass(frozen=True)
class Published:
    """A published checkpoint, as an entry of published.json has it.

    Attributes:
        architecture: A grown one's registered name, as in the checkpoint's config.json.
        tag: Its name besides: `timm.create_model('ARCHITECTURE.TAG', pretrained=True)` loads it.
        hub_id: Of its repository: ORG/NAME.
        revision: The commit that the tag stands for, 40 hex digits.
        sha256: `timm_devnet.delta.digest(tensors, None)` of all tensors in its model.safetensors, a delta's or a whole.
        num_classes: Outputs of its classifier.
        license: As the Hub names licences.
        pretrained_cfg: The images it wants: input_size, mean, std, crop_pct and others of timm's fields.
        model_args: What builds it besides its architecture: growth, delta_of, settled and others.
        metrics: What was measured, in percent where it is a share, such as {'top1': 71.3}.
        label_names: Of its classes, in order.

    Raises:
        ValueError: A field is none of that.
    """

    architecture: str
    tag: str
    hub_id: str
    revision: str
    sha256: str
    num_classes: int
    license: str
    pretrained_cfg: Mapping[str, Any] = field(default_factory=dict)
    model_args: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, float | None] = field(default_factory=dict)
    label_names: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        for name in ('architecture', 'tag', 'hub_id', 'revision', 'sha256', 'license'):
            if type(getattr(self, name)) is not str or not getattr(self, name):
                raise ValueError(f'{name} is a text, not {getattr(self, name)!r}')
        if self.architecture not in _architectures:
            raise ValueError(f'architecture {self.architecture!r} is no registered name of a grown network')
        if not re.fullmatch(r'\w[\w.-]*', self.tag, re.ASCII):
            raise ValueError(f'tag {self.tag!r} is not made of letters, digits, dots, dashes and underscores')
        if not is_repo_id(self.hub_id):
            raise ValueError(f'hub_id is ORG/NAME, not {self.hub_id!r}')
        for name, digits in (('revision', 40), ('sha256', 64)):
            if not re.fullmatch(f'[0-9a-f]{{{digits}}}', getattr(self, name)):
                raise ValueError(f'{name} is {digits} hex digits, not {getattr(self, name)!r}')
        if type(self.num_classes) is not int or self.num_classes < 0:
            raise ValueError(f'num_classes is a number from 0, not {self.num_classes!r}')
        self._check_arguments()
        self._check_facts()

    def _check_arguments(self) -> None:
        _check_names('model_args', self.model_args, _ARGUMENTS)
        parse(self.model_args.get('growth', 'norm'))
        Options(self.model_args.get('scale_init', SCALE_INIT), self.model_args.get('new_init', 'random'))
        for name, kind in (('settled', int), ('in_chans', int), ('global_pool', str)):
            if name in self.model_args and type(self.model_args[name]) is not kind:
                raise ValueError(f'model_args has {name}={self.model_args[name]!r}, which is no {kind.__name__}')
        if self.model_args.get('delta_of'):
            Base.from_dict(self.model_args['delta_of'])

    def _check_facts(self) -> None:
        _check_names('pretrained_cfg', self.pretrained_cfg, _INPUT_FIELDS)
        for name, value in self.pretrained_cfg.items():
            numbers = value if isinstance(value, list) else [value]
            if not isinstance(value, str) and not _is_list_of(numbers, int | float):
                raise ValueError(f'pretrained_cfg has {name}={value!r}, which is no number, text or list of numbers')
        if not isinstance(self.metrics, Mapping) or not _is_list_of(list(self.metrics.values()), int | float | None):
            raise ValueError(f'metrics is a dict of numbers, not {self.metrics!r}')
        names = self.label_names
        if names is not None and (not _is_list_of(names, str) or len(names) != self.num_classes):
            raise ValueError(f'label_names is a list of {self.num_classes} texts, or null')

    @property
    def pinned_id(self) -> str:
        """The repository at the commit, as timm writes it."""
        return f'{self.hub_id}@{self.revision}'

    def to_timm(self) -> PretrainedCfg:
        """What timm must know of it; fields that are the architecture's own come from the tag of its base."""
        own = get_pretrained_cfg(self.architecture)
        assert own is not None, 'a registered grown network has the cfg of its base'
        given: dict[str, Any] = {'label_names': self.label_names} | {
            name: tuple(value) if isinstance(value, list) else value for name, value in self.pretrained_cfg.items()
        }
        return replace(
            own,
            url=None,
            hf_hub_id=self.pinned_id,
            hf_hub_filename=SAFE_FILE,  # else timm might open a pickle that lies beside it
            num_classes=self.num_classes,
            license=self.license,
            **given,
        )


def list_published() -> list[Published]:
    """Every published checkpoint that is registered, in the order of registration."""
    return list(_entries.values())


def register_published(path: str | Path) -> list[Published]:
    """Register published checkpoints, so that timm knows them as tags: an organisation's own, for instance.

    The default tag of an architecture stays its base's. Of a file with an error nothing is registered.

    Args:
        path: A JSON file with a list of entries, whose fields are those of `Published`.

    Returns:
        The entries.

    Raises:
        ValueError: The file or an entry is wrong, or its tag means something else already.
    """
    try:
        given = json.loads(Path(path).read_text(encoding='utf-8'))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f'{path} is no file of JSON that can be read: {error}') from error
    if not isinstance(given, list):
        raise ValueError(f'{path} is not a list of published checkpoints, but a {type(given).__name__}')
    entries: dict[tuple[str, str], Published] = {}
    for number, fields_of_entry in enumerate(given, 1):
        entry = _read_entry(fields_of_entry, f'entry {number} of {path}')
        key = (entry.architecture, entry.tag)
        known = entries.get(key) or _entries.get(key)
        if known != entry and (known is not None or _is_tag(entry)):
            raise ValueError(f'entry {number} of {path}: {entry.architecture}.{entry.tag} means something else already')
        entries[key] = entry
    _enter(entry for key, entry in entries.items() if key not in _entries)
    return list(entries.values())


def _read_entry(given: Any, place: str) -> Published:
    known = [each.name for each in fields(Published)]
    try:
        _check_names('the entry', given, known)
        lacking = [name for name in known[: known.index('license') + 1] if name not in given]
        if lacking:
            raise ValueError(f'it lacks {", ".join(lacking)}')
        names = given.get('label_names')
        return Published(**{**given, 'label_names': tuple(names) if isinstance(names, list) else names})
    except ValueError as error:
        name = f' ({given.get("architecture")}.{given.get("tag")})' if isinstance(given, dict) else ''
        raise ValueError(f'{place}{name} is no published checkpoint: {error}') from error


def _is_tag(entry: Published) -> bool:
    return entry.tag in _default_cfgs(entry.architecture)[entry.architecture].cfgs


def _default_cfgs(architecture: str) -> Mapping[str, Any]:
    """timm's `default_cfgs` of the module that an architecture is registered from."""
    return modules[model_entrypoint(architecture).__module__].default_cfgs


def _enter(entries: Iterable[Published]) -> None:
    changed = []
    for entry in entries:
        known = _default_cfgs(entry.architecture)[entry.architecture]
        known.tags.append(entry.tag)  # at the end: the first one is the default
        known.cfgs[entry.tag] = entry.to_timm()
        _entries[entry.architecture, entry.tag] = entry
        changed.append(entry.architecture)
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', 'Overwriting')  # timm reads tags only when an architecture is registered
        for architecture in dict.fromkeys(changed):
            register_model(model_entrypoint(architecture))


# What the entrypoints of grown networks do with a tag -----------------------------------------------------------------


def takes_published_tags(entrypoint: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """Decorate an entrypoint: with the tag of a published checkpoint come the arguments that build it.

    timm's registry has no place for them. Those that a caller gives go first.
    """

    @functools.wraps(entrypoint)
    def with_arguments(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        cfg = kwargs.get('pretrained_cfg')
        tag = cfg if isinstance(cfg, str | None) else (cfg.tag if isinstance(cfg, PretrainedCfg) else cfg.get('tag'))
        entry = _entries.get((entrypoint.__name__, tag)) if tag else None
        arguments = dict(entry.model_args) if entry else {}
        if not pretrained:
            arguments.pop('delta_of', None)  # a network without weights needs no base
        return entrypoint(pretrained, **{**arguments, **kwargs})

    _architectures.add(entrypoint.__name__)
    return with_arguments


def check_published(state_dict: Mapping[str, Any], cfg: Mapping[str, Any]) -> None:
    """Refuse weights that come from the place of a published checkpoint and are others.

    Args:
        state_dict: As it was read from the file.
        cfg: The pretrained_cfg by which timm found it.

    Raises:
        ValueError: Their checksum is another.
    """
    if cfg.get('source') is None and (cfg.get('state_dict') or cfg.get('file')):
        return
    entry = next((each for each in _entries.values() if each.pinned_id == cfg.get('hf_hub_id')), None)
    if entry is None:
        return
    found = digest({name: value for name, value in state_dict.items() if isinstance(value, Tensor)}, None)
    if found != entry.sha256:
        raise ValueError(
            f'{entry.pinned_id} should hold the published {entry.architecture}.{entry.tag}, its tensors with checksum '
            f'{entry.sha256}, but they have {found}: remove the file from the cache of the Hub and load it again; if '
            'that does not help, the list of published checkpoints or the repository is wrong.'
        )


def _check_names(what: str, given: Any, known: Iterable[str]) -> None:
    if not isinstance(given, Mapping):
        raise ValueError(f'{what} is a dict, not {given!r}')
    unknown = [name for name in given if name not in known]
    if unknown:
        raise ValueError(f'{what} has {unknown[0]!r}; allowed are {", ".join(known)}')


def _is_list_of(values: Any, kinds: Any) -> bool:
    return isinstance(values, list | tuple) and all(
        isinstance(value, kinds) and not isinstance(value, bool) for value in values
    )
