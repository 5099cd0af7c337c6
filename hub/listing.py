"""The grown networks of an account on the Hub, as a table."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.hf_api import ModelInfo

from .faults import Say, check_repo_id, explained, patiently, printable
from .layout import CONFIG, MAX_BYTES, TAG, WEIGHTS, format_bytes
from .strict_json import parse

# Questions to the Hub at once; it answers each in a fifth of a second.
THREADS = 8
FORMAT = 1
HEAD = ('repository', 'growth', 'base', 'data set', 'top-1', 'size', 'last commit')


@dataclass(frozen=True)
class Listed:
    """A grown network on the Hub; what is not told is None. `dataclasses.asdict` makes JSON of it."""

    repo_id: str
    growth: str | None = None
    base: str | None = None
    """What it grew from; None for a random start."""
    dataset: str | None = None
    regime: str | None = None
    top1: float | None = None
    """In percent; None for a network of many labels."""
    map: float | None = None
    """Mean average precision in percent, of a network of many labels."""
    is_delta: bool = False
    """Whether the repository holds only what differs from the base."""
    size_bytes: int | None = None
    """Of the weights."""
    commit: str | None = None
    date: str | None = None
    """Of the last commit."""
    problem: str | None = None
    """Why nothing more is told."""


def list_models(org: str, *, limit: int | None = None, say: Say = print, token: str | None = None) -> list[Listed]:
    """List the published networks of an organisation or user.

    They are found by the tag of their card. What is told of each comes from its config.json, which is bounded and
    checked; where it is broken, the reason is told instead. A repository that has the tag only is left out.

    Args:
        org: Name of the account.
        limit: Most repositories to look at, newest first.
        say: Told what there is to wait for.
        token: Instead of that of huggingface_hub's login or environment.

    Raises:
        ValueError: No account can have this name, or the Hub cannot be asked.
    """
    try:
        check_repo_id(f'{org}/name')
    except ValueError as error:
        raise ValueError(f'{printable(repr(org))} is no account on the Hub: give the name alone, as in ORG') from error
    if limit is not None and limit < 1:
        raise ValueError(f'--limit {limit}: give at least 1')
    api = HfApi(token=token)
    with explained(org):
        found = patiently(lambda: list(api.list_models(author=org, filter=TAG, sort='last_modified', limit=limit)), say)
        with ThreadPoolExecutor(THREADS) as threads:
            listed = threads.map(lambda model: look_at(api, model.id, say), found)
            return [network for network in listed if network is not None]


def look_at(api: HfApi, repo_id: str, say: Say) -> Listed | None:
    """Find out what a repository holds; None if it is none of ours."""
    try:
        with explained(repo_id):
            info = patiently(lambda: api.model_info(repo_id, files_metadata=True), say)
            config = fetch_config(api, info, say)
    except ValueError as error:
        return Listed(repo_id, problem=printable(str(error)))
    facts: dict[str, Any] = {
        'size_bytes': next((file.size for file in info.siblings or [] if file.rfilename == WEIGHTS), None),
        'commit': info.sha,
        'date': info.last_modified.isoformat() if info.last_modified else None,
    }
    try:
        if config is None:
            raise ValueError(f'there is no {CONFIG}')
        section = read_section(config)
        if section is None:
            return None
        if facts['size_bytes'] is None:
            raise ValueError(f'there is no {WEIGHTS}')
        return Listed(repo_id, **facts, **read_facts(section))
    except ValueError as error:
        return Listed(repo_id, **facts, problem=printable(str(error)))


def fetch_config(api: HfApi, info: ModelInfo, say: Say) -> bytes | None:
    """Fetch config.json of a commit into the cache, where it is found the next time; None if there is none.

    Raises:
        ValueError: It is too large.
    """
    size = next((file.size for file in info.siblings or [] if file.rfilename == CONFIG), -1)
    if size == -1:
        return None
    if size is None or size > MAX_BYTES:
        raise ValueError(f'{CONFIG} has {"an unknown size" if size is None else format_bytes(size)}')
    path = patiently(lambda: api.hf_hub_download(info.id, CONFIG, revision=info.sha), say)
    with open(path, 'rb') as file:
        return file.read(MAX_BYTES + 1)


def read_section(config: bytes) -> dict[str, Any] | None:
    """Read what config.json says of growing; None if that is nothing.

    Raises:
        ValueError: It cannot be read, or is of a later version than this one.
    """
    contents = parse(config, CONFIG)
    if not isinstance(contents, dict):
        raise ValueError(f'{CONFIG} holds no object')
    section = contents.get('timm_devnet')
    if section is None:
        return None
    if not isinstance(section, dict):
        raise ValueError(f'timm_devnet in {CONFIG} is no object')
    version = section.get('format')
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        raise ValueError(f'format in {CONFIG} is no version')
    if version > FORMAT:
        raise ValueError(f'written by a later timm_devnet (format {printable(str(version), 20)}): update yours')
    return section


def read_facts(section: dict[str, Any]) -> dict[str, Any]:
    """Take what the table tells from the section, each of the right type.

    Raises:
        ValueError: Names the first that is not.
    """
    base, metrics = section.get('base'), section.get('metrics')
    for name, part in (('base', base), ('metrics', metrics)):
        if part is not None and not isinstance(part, dict):
            raise ValueError(f'{name} in {CONFIG} is no object')
    delta = section.get('delta', False)
    if not isinstance(delta, bool):
        raise ValueError(f'delta in {CONFIG} is neither true nor false')
    growth = read_text(section, 'growth')
    if growth is None:
        raise ValueError(f'growth in {CONFIG} is missing')
    return {
        'growth': growth,
        'base': read_text(base, 'model') if base else None,
        'dataset': read_text(section, 'dataset'),
        'regime': read_text(section, 'regime'),
        'top1': read_percent(metrics, 'top1') if metrics else None,
        'map': read_percent(metrics, 'map') if metrics else None,
        'is_delta': delta,
    }


def read_text(part: dict[str, Any], name: str) -> str | None:
    text = part.get(name)
    if text is not None and not isinstance(text, str):
        raise ValueError(f'{name} in {CONFIG} is no text')
    return None if text is None else printable(text, 60)


def read_percent(part: dict[str, Any], name: str) -> float | None:
    number = part.get(name)
    if number is None:
        return None
    if isinstance(number, bool) or not isinstance(number, (int, float)) or not 0 <= number <= 100:
        raise ValueError(f'{name} in {CONFIG} is no percentage')
    return float(number)


def format_table(listed: Sequence[Listed]) -> str:
    """Write a list as a table for a terminal.

    Args:
        listed: Made by `list_models`.

    Returns:
        str: Lines without a last newline; a broken repository has its problem instead of its facts.
    """
    rows = [HEAD, *(format_row(network) for network in listed)]
    whole = [row for row in rows if len(row) == len(HEAD)]
    widths = [max(len(row[column]) for row in (whole if column else rows)) for column in range(len(HEAD))]
    lines = ['  '.join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)) for row in rows]
    return '\n'.join(line.rstrip() for line in lines)


def format_row(network: Listed) -> tuple[str, ...]:
    """Write the cells of one network: all of them, or its name and problem."""
    name = printable(network.repo_id)
    if network.problem is not None:
        return name, f'broken: {printable(network.problem)}'
    if network.map is not None:
        result = f'{network.map:.1f} mAP'
    else:
        result = '-' if network.top1 is None else f'{network.top1:.1f}'
    size = '-' if network.size_bytes is None else format_bytes(network.size_bytes)
    return (
        name,
        network.growth or '-',
        network.base or 'random start',
        network.dataset or '-',
        result,
        f'{size} delta' if network.is_delta else size,
        (network.date or '-')[:10],
    )
