"""Which of timm's networks grow, counted by growing every one of them."""

from __future__ import annotations

import copy
import csv
import multiprocessing
import platform
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import timm_devnet
from timm_devnet.growable import list_plain

KINDS = ('da', 'norm', 'skip', 'wa', 'mwa', 'wwa', 'dwa')
WANTED = {'da': 95, 'norm': 95, 'skip': 95, 'wa': 90, 'mwa': 90, 'wwa': 85, 'dwa': 85}
CLASSES = 5
COLUMNS = ('name', 'family', 'kind', 'how', 'result', 'seconds')


def coverage(
    csv_file: Path = Path('output/coverage.csv'),
    filter: str = '*',
    max_params: float = 6.0,
    processes: int = 1,
    sample: bool = False,
) -> int:
    """Grow every architecture of timm by every kind of growth, check what came of it, and count.

    Each is built with random weights, runs forward and backward with a gradient on every parameter, has its old block
    compared with the base's bit for bit, gets another classifier, is saved and built again from the file. Networks
    larger than --max-params are checked on the meta device, by shapes and gradients' presence alone, and built again
    for mwa only. Networks come in a random order, always the same: part of a sweep is a fair sample.

    Args:
        csv_file: Keeps every result as soon as it is known; what is there already is not repeated.
        filter: Of names, as of timm's list_models.
        max_params: Millions of parameters up to which networks are run with numbers.
        processes: How many networks are checked at once, each by one thread.
        sample: Only the smallest network of each of timm's families.

    Returns:
        Exit code: 1 if a kind of growth is taken by fewer networks than is wanted.
    """
    names = list_plain(filter)
    sizes: dict[str, float] = {}
    if sample:
        sizes = {name: millions(name) for name in names}
        smallest: dict[str, str] = {}
        for name in sorted(names, key=lambda name: sizes[name]):
            smallest.setdefault(family_file(name), name)
        names = sorted(smallest.values())
    random.Random(0).shuffle(names)
    known = {row['name'] for row in read(csv_file)}
    todo = [(name, max_params) for name in names if name not in known]
    with multiprocessing.get_context('spawn').Pool(processes, maxtasksperchild=20) as pool:
        for number, rows in enumerate(pool.imap_unordered(check, todo), 1):
            keep(csv_file, rows)
            results = Counter(row['result'] == 'ok' for row in rows)
            print(f'{number}/{len(todo)} {rows[0]["name"]}: {results[True]} of {len(rows)}', file=sys.stderr)
    rows = [row for row in read(csv_file) if row['name'] in set(names)]
    print_report(rows)
    shares = share_by_kind(rows)
    return int(any(shares[kind] < WANTED[kind] for kind in KINDS))


def millions(name: str) -> float:
    """Millions of parameters of a network."""
    return count_millions(timm.create_model(name, device='meta'))


def count_millions(model: nn.Module) -> float:
    return sum(parameter.numel() for parameter in model.parameters()) / 1e6


def family_file(name: str) -> str:
    """The file of timm that defines a network."""
    return timm.models.model_entrypoint(name).__module__.rpartition('.')[2]


def check(task: tuple[str, float], kinds: Sequence[str] = KINDS) -> list[dict[str, str]]:
    """Check kinds of growth of one network.

    Args:
        task: Its name, and millions of parameters up to which it is run with numbers.
        kinds: Names of growths.

    Returns:
        A row of the table for each kind.
    """
    name, max_params = task
    torch.set_num_threads(1)
    start = time.monotonic()
    device = 'meta'
    rows: list[dict[str, str]] = []
    base, images, features, failure = None, None, None, None
    try:
        base = timm.create_model(name, num_classes=CLASSES, device=device).eval()
        if count_millions(base) <= max_params:
            device = 'cpu'
            base = timm.create_model(name, num_classes=CLASSES).eval()
        images, features = run_base(base, device)
        base.train().eval()  # some keep what they computed in evaluation, with its graph
    except Exception as error:  # networks raise errors of every kind; the table names them
        failure = f'base: {one_line(error)}'
    for kind in kinds:
        result = failure or check_growth(name, base, images, features, kind, device)
        rows.append(dict(name=name, family=family_file(name), kind=kind, how=device, result=result, seconds=''))
    rows[-1]['seconds'] = f'{time.monotonic() - start:.1f}'
    return rows


def run_base(base: nn.Module, device: str) -> tuple[Tensor, Any]:
    """Images of the smallest size of a few that a network takes, and its features of them."""
    failure: Exception | None = None
    for side in image_sides(base):
        images = torch.randn(1, base.in_chans, side, side, device=device)  # type: ignore[call-overload]
        try:
            return images, detached(base.forward_features(images))  # type: ignore[operator]
        except Exception as error:  # of a size that is not the network's
            failure = error
    assert failure is not None
    raise failure


def image_sides(base: Any) -> Iterator[int]:
    """A side that costs little, and the network's own."""
    if not base.pretrained_cfg.get('fixed_input_size'):
        yield max(128, (base.pretrained_cfg.get('min_input_size') or (0, 0))[-1])
    yield base.pretrained_cfg['input_size'][-1]


def check_growth(name: str, base: Any, images: Any, features: Any, kind: str, device: str) -> str:
    """Grow a copy of a network and say 'ok', 'refused: ...' or what is wrong."""
    try:
        grown: Any = timm_devnet.grow(copy.deepcopy(base), kind)
    except ValueError as error:
        return f'refused: {one_line(error)}'
    try:
        joined = grown.forward_features(images)
        logits = grown.forward_head(joined)
        logits.sum().backward()
        return (
            check_logits(logits, device)
            or check_gradients(grown, base, images)
            or check_old_block(grown, joined, features, device)
            or check_classifiers(grown, detached(joined))
            or (check_saved(grown, base, images, detached(joined), device) if device == 'cpu' or kind == 'mwa' else '')
            or 'ok'
        )
    except Exception as error:  # whatever a network raises is what the table has to tell
        return one_line(error)


def detached(features: Any) -> Any:
    """Features without their graph; those of a few networks are several tensors."""
    return features.detach() if isinstance(features, Tensor) else type(features)(map(detached, features))


def check_logits(logits: Tensor, device: str) -> str:
    """Logits of the right shape, finite."""
    if logits.shape != (1, CLASSES):
        return f'logits of shape {tuple(logits.shape)}'
    return '' if device == 'meta' or logits.isfinite().all() else 'logits that are not finite'


def check_gradients(grown: Any, base: Any, images: Tensor) -> str:
    """Every new parameter has a gradient, and every old one that gets one in the base."""
    lacking = {name for name, parameter in grown.named_parameters() if parameter.grad is None}
    if lacking:
        base(images).sum().backward()
        lacking -= {name for name, parameter in base.named_parameters() if parameter.grad is None}
        base.zero_grad()
    return f'no gradient for {", ".join(sorted(lacking)[:3])}' if lacking else ''


def check_old_block(grown: Any, joined: Any, features: Any, device: str) -> str:
    """`num_features` is true, and the old network's share of the features is the base's, bit for bit."""
    if not isinstance(joined, Tensor):
        is_equal = all(device == 'meta' or torch.equal(*pair) for pair in zip(joined, features, strict=True))
        return '' if is_equal else 'the old features differ from the base'
    places = [place for place, size in enumerate(joined.shape) if place and size == grown.num_features]
    if not places:
        return f'num_features {grown.num_features} of features of shape {tuple(joined.shape)}'
    width = grown.feature_widths[0]
    shares = [joined.narrow(place, 0, width) for place in places]
    fits = [share for share in shares if share.shape == features.shape]
    is_same = fits and (device == 'meta' or any(torch.equal(share, features) for share in fits))
    return '' if is_same else 'the old features differ from the base'


def check_classifiers(grown: Any, joined: Any) -> str:
    """`reset_classifier` with 0 and another number: growth survives, and `head_hidden_size` is true."""
    with torch.no_grad():
        grown.reset_classifier(0)
        without = grown.forward_head(joined)
        if without.shape != (1, grown.head_hidden_size):
            return f'head_hidden_size {grown.head_hidden_size} of vectors of shape {tuple(without.shape)}'
        grown.reset_classifier(3)
        return '' if grown.forward_head(joined).shape == (1, 3) else 'wrong shape with another classifier'


def check_saved(grown: Any, base: Any, images: Tensor, joined: Any, device: str) -> str:
    """Saved as safetensors and built again by timm under the name `devnet`, it gives the same."""
    arguments = dict(source=base.pretrained_cfg['architecture'], growth=grown.growth, num_classes=3)
    if device == 'meta':
        again = timm.create_model('devnet', device='meta', **arguments)
        same = {key: value.shape for key, value in again.state_dict().items()}
        return '' if same == {key: value.shape for key, value in grown.state_dict().items()} else 'other keys'
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / 'model.safetensors'
        save_file({key: value.clone().contiguous() for key, value in grown.state_dict().items()}, file)
        overlay = dict(file=str(file), num_classes=3)
        again = timm.create_model('devnet', pretrained=True, pretrained_cfg_overlay=overlay, **arguments).eval()
    # With gradients, as before: without them attention takes another path, which rounds differently.
    return '' if torch.equal(again(images), grown.forward_head(joined)) else 'built again it gives other logits'


def one_line(error: Exception) -> str:
    """An error in a line."""
    return f'{type(error).__name__}: {" ".join(str(error).split())[:200]}'


def read(csv_file: Path) -> list[dict[str, str]]:
    """Read what is known."""
    if not csv_file.exists():
        return []
    with open(csv_file, newline='') as file:
        return list(csv.DictReader(file))


def keep(csv_file: Path, rows: list[dict[str, str]]) -> None:
    """Add what was found."""
    csv_file.parent.mkdir(parents=True, exist_ok=True)
    is_new = not csv_file.exists()
    with open(csv_file, 'a', newline='') as file:
        writer = csv.DictWriter(file, COLUMNS)
        if is_new:
            writer.writeheader()
        writer.writerows(rows)


def share_by_kind(rows: list[dict[str, str]]) -> dict[str, float]:
    """Percentage of networks that take each kind of growth."""
    of = Counter(row['kind'] for row in rows)
    taken = Counter(row['kind'] for row in rows if row['result'] == 'ok')
    return {kind: 100 * taken[kind] / of[kind] if of[kind] else 0.0 for kind in KINDS}


def print_report(rows: list[dict[str, str]]) -> None:
    """Print the percentages, a table by family, and the reasons of all that is not taken."""
    shares = share_by_kind(rows)
    how = Counter(row['how'] for row in rows if row['kind'] == KINDS[0])
    print(
        f'{time.strftime("%Y-%m-%d")}, timm {timm.__version__}, torch {torch.__version__}, Python '
        f'{platform.python_version()}: {how["cpu"]} architectures run with numbers, {how["meta"]} by shapes\n'
    )
    print('| ' + ' | '.join(KINDS) + ' |\n' + '| --- ' * len(KINDS) + '|')
    print('| ' + ' | '.join(f'{shares[kind]:.1f} % (wanted {WANTED[kind]})' for kind in KINDS) + ' |\n')
    families = sorted({row['family'] for row in rows})
    print(f'| family | networks | {" | ".join(KINDS)} |\n' + '| --- ' * (len(KINDS) + 2) + '|')
    for family in families:
        cells = []
        for kind in KINDS:
            results = [row['result'] for row in rows if (row['family'], row['kind']) == (family, kind)]
            cells.append(str(results.count('ok')))
        print(f'| {family} | {len(results)} | {" | ".join(cells)} |')
    reasons: dict[str, list[str]] = {}
    for row in rows:
        if row['result'] != 'ok':
            reasons.setdefault(row['result'], []).append(f'{row["name"]} ({row["kind"]})')
    print('\nNot taken:\n')
    for reason, where in sorted(reasons.items(), key=lambda item: -len(item[1])):
        print(f'- {reason}: {", ".join(where[:6])}' + (f' and {len(where) - 6} more' if len(where) > 6 else ''))
