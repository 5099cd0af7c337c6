"""The measurements behind the README: `python benchmark.py COMMAND`; `--help` lists commands and options."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import io
import itertools
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
import tyro
from safetensors.torch import load_file, save_file
from torch import nn

import timm_devnet
import train
from benchmarks.consolidate_speed import consolidate
from benchmarks.coverage import coverage
from benchmarks.publish_speed import hub
from benchmarks.resources import memory, scaling
from benchmarks.timing import interleave
from benchmarks.train_speed import train as train_speed
from experiments.intervals import MOST_SEEDS, difference
from experiments.sets import SETS, make_set
from experiments.tables import markdown
from training import devices
from training.config import DIGITS, ELPV, Config
from training.costs import multiply_adds
from training.files import replace_text

Row = dict[str, str]

# What the README shows: the paper's best size of each growth, one network of each family.
SHOWN_BASES = ('alexnet', 'vgg16', 'tf_efficientnet_lite0')
SHOWN_GROWTHS = ('', 'norm', 'skip', 'da', 'wa', 'dwa', 'wwa', 'mwa', 'xwa')

LITE = 'tf_efficientnet_lite0'
CONTROLS = ('none', 'norm', 'skip')
# Growth and weight of the block loss. `none` is plain fine-tuning; norm and skip are the controls without new units.
GROWTHS = (
    ('none', 0.0),
    ('norm', 0.0),
    ('skip', 0.0),
    ('wa512', 0.0),
    ('da1024', 0.0),
    ('dwa512', 0.0),
    ('wwa512', 0.0),
    ('mwa512', 0.0),
    ('mwa512', 1.0),
    ('xwa512', 0.0),
    ('xwa512', 1.0),
)
# Few labels, and images as small as they can be seen on. A mirrored digit is no digit.
FEW_LABELS: dict[str, dict[str, Any]] = {
    DIGITS: dict(labels_per_class=20, img_size=64),
    ELPV: dict(labels_per_class=100, img_size=96),
    'photographs': dict(labels_per_class=15, img_size=96),
    'materials': dict(labels_per_class=10, img_size=96),
    'cells': dict(labels_per_class=40, img_size=96),
    'small-digits': dict(labels_per_class=10, img_size=64, hflip=0.0),
    'scenes': dict(labels_per_class=40, img_size=64, hflip=0.0),
}


def build(model: str = 'vgg16_wa2048', base: str = 'vgg16', repeats: int = 5, limit: float = 0.3) -> int:
    """Time building a pretrained grown network from a file against timm building its plain base from the same file.

    Args:
        model: Name of the grown network.
        base: Name of its base.
        repeats: How often each is built, in turn.
        limit: Largest allowed ratio of the two medians.

    Returns:
        Exit code: 1 if the ratio is above the limit or the result differs from the slow way's, bit for bit.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / 'base.safetensors'
        torch.manual_seed(1)
        save_file(timm.create_model(base).state_dict(), file)
        overlay = dict(file=str(file))
        seconds = interleave(
            [
                lambda: timm.create_model(base, pretrained=True, pretrained_cfg_overlay=overlay),
                lambda: timm.create_model(model, pretrained=True, pretrained_cfg_overlay=overlay),
            ],
            repeats,
        )
        for name, times in zip((base, model), seconds, strict=True):
            print(f'{name:24} {describe_times(times)}')
        ratio = statistics.median(seconds[1]) / statistics.median(seconds[0])
        print(f'ratio {ratio:.3f}, at most {limit} allowed')
        torch.manual_seed(0)
        fast = timm.create_model(model, pretrained=True, pretrained_cfg_overlay=overlay).state_dict()
        torch.manual_seed(0)
        slow_model = timm.create_model(model)
        slow_model.load_state_dict(load_file(file))
        is_same = same_tensors(fast, slow_model.state_dict())
        print(f'bit for bit what building, initialising and then loading gives: {"yes" if is_same else "NO"}')
    return int(ratio > limit or not is_same)


def overhead(
    bases: tuple[str, ...] = ('alexnet', LITE),
    growths: tuple[str, ...] = ('norm', 'skip', 'da1024', 'wa1024', 'mwa1024'),
    batch_size: int = 8,
    img_size: int = 224,
    repeats: int = 11,
    limit: float = 0.05,
) -> int:
    """Time forward and backward of grown networks over their bases', beside the ratio of multiply-adds.

    Args:
        bases: Names of bases.
        growths: Growths of each.
        batch_size: Images in a batch.
        img_size: Side of the images in pixels.
        repeats: How often each network is run, in turn with its base.
        limit: By what share the ratio of times may be above the ratio of multiply-adds.

    Returns:
        Exit code: 1 if a ratio of times is further above.
    """
    devices.keep_freed_memory()  # as train.py does: page faults would be most of what varies
    rows, worst = [], 0.0
    images = torch.randn(batch_size, 3, img_size, img_size, generator=torch.Generator().manual_seed(0))
    for base, growth in itertools.product(bases, growths):
        plain, grown = timm.create_model(base), create(f'{base}_{growth}')
        times = interleave([lambda m=m: learn(m, images) for m in (plain, grown)], repeats, warmup=2)  # type: ignore[misc]
        ratios = [grown_s / plain_s for plain_s, grown_s in zip(*times, strict=True)]
        time_ratio = statistics.median(ratios)
        work_ratio = multiply_adds(grown, img_size) / multiply_adds(plain, img_size)
        excess = time_ratio / work_ratio - 1
        worst = max(worst, excess)
        medians = [f'{1000 * statistics.median(t):.0f} ms' for t in times]
        rows.append((base, growth, *medians, describe_range(ratios), f'{work_ratio:.3f}', f'{100 * excess:+.1f} %'))
    threads = torch.get_num_threads()
    print(f'forward and backward, batch {batch_size} at {img_size} px, {threads} threads, median of {repeats} rounds\n')
    print_table(('base', 'growth', 'base time', 'grown time', 'ratio of times', 'of multiply-adds', 'difference'), rows)
    return int(worst > limit)


def models(every: bool = False) -> int:
    """Print the table of models: parameters and multiply-adds of one image, and what multiple of the base's they are.

    Args:
        every: All registered names, with a heading: docs/models.md.

    Returns:
        Exit code 0.
    """
    if every:
        print('# Models\n\nEvery registered name; made by `python benchmark.py models --every`.')
        print(
            'From BEiT on, `_wa`, `_mwa` and `_xwa` without a number are registered too, and mean the number shown.\n'
        )
    print(models_table(registered_names() if every else shown_names()))
    return 0


def growths(
    csv_file: Path = Path('output/growths.csv'),
    datasets: tuple[str, ...] = (DIGITS, ELPV),
    regimes: tuple[str, ...] = ('new', 'all'),
    only: tuple[str, ...] = (),
    base: str = LITE,
    seeds: int = 3,
    epochs: int = 20,
    lr: float = 0.01,
    scale_init: float | None = None,
    sets: Path = Path('output/sets'),
) -> int:
    """Fine-tune a network on few labels with every growth, and print what each is worth.

    A row is written to the CSV file as soon as a run ends; runs that are there already are not repeated.

    Args:
        csv_file: Where the results are kept.
        datasets: Which of digits, elpv, photographs, materials, cells, small-digits and scenes.
        regimes: What learns.
        only: Growths to try, none for plain fine-tuning; all of them if empty.
        base: Name of the plain network.
        seeds: Number of runs of each kind, 2 to 10: seeds 0, 1, ...
        epochs: Passes over the training images.
        lr: Learning rate of pretrained layers; new ones learn ten times as fast.
        scale_init: Where scales start (None: the library's default).
        sets: Where the sets are written that are made of other packages' images.

    Returns:
        Exit code 0.

    Raises:
        ValueError: If an interval cannot be told from so many seeds, or a name is unknown.
    """
    unknown = [name for name in datasets if name not in FEW_LABELS] + list({*only} - {name for name, _ in GROWTHS})
    if unknown:
        known = ', '.join((*FEW_LABELS, *dict(GROWTHS)))
        raise ValueError(f'{", ".join(unknown)}: no data set or growth of this table; it has {known}')
    if not 2 <= seeds <= MOST_SEEDS:
        raise ValueError(f'--seeds is 2 to {MOST_SEEDS}, not {seeds}: the interval needs them')
    folders = {name: make_set(name, sets) for name in datasets if name in SETS}
    tried = [(growth, block_loss) for growth, block_loss in GROWTHS if not only or growth in only]
    cells = [
        dataclasses.replace(
            cell(dataset, regime, growth, block_loss, seed, epochs, lr, base, folders.get(dataset)),
            scale_init=None if growth == 'none' else scale_init,
        )
        for seed in range(seeds)  # outermost, so that a table can be made of whole seeds at any time
        for dataset, regime, (growth, block_loss) in itertools.product(datasets, regimes, tried)
    ]
    rows = read_rows(csv_file)
    for number, config in enumerate(cells, 1):
        if find_row(rows, config) is None:
            rows.append({**facts(config), **run(config)})
            write_rows(csv_file, rows)
            print(
                f'{number}/{len(cells)} {", ".join(f"{key} {value}" for key, value in rows[-1].items())}',
                file=sys.stderr,
            )
    for dataset, regime in itertools.product(datasets, regimes):
        wanted = [config for config in cells if (name_of(config), config.regime) == (dataset, regime)]
        found = [row for config in wanted if (row := find_row(rows, config))]
        print(f'\n{dataset}, regime {regime}: {wanted[0].labels_per_class} images a class, {wanted[0].img_size} px\n')
        header = ('growth', 'top-1 % (mean, spread)', *(f'over {control}' for control in CONTROLS))
        print_table(header, growths_table(found, base))
    return 0


def create(name: str) -> Any:
    """A network by name, also of a size that is not registered."""
    registered, arguments = timm_devnet.resolve_name(name)
    options: dict[str, Any] = dict(arguments)
    return timm.create_model(registered, **options)


def describe_range(values: Sequence[float]) -> str:
    """Median and range of ratios."""
    return f'{statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f})'


def describe_times(seconds: Sequence[float]) -> str:
    """Median and range."""
    return f'median {statistics.median(seconds):.3f} s, {min(seconds):.3f} to {max(seconds):.3f} s'


def same_tensors(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Whether two state dicts hold the same names in the same order and the same bits."""
    return list(one) == list(other) and all(torch.equal(one[key], other[key]) for key in one)


def learn(model: nn.Module, images: torch.Tensor) -> None:
    """One forward and backward pass, without an optimizer."""
    model.zero_grad()
    model(images).sum().backward()


def shown_names() -> list[str]:
    """The README's models."""
    return [f'{base}_{growth}'.rstrip('_') for base in SHOWN_BASES for growth in SHOWN_GROWTHS]


def registered_names() -> list[str]:
    """All grown models, each family after its bases."""
    modules = (timm_devnet.models.alexnet, timm_devnet.models.vgg_grown, timm_devnet.models.efficientnet_grown)
    growths_of = [(base, growth) for module in modules for base in module.BASES for growth in ('', *module.GROWTHS)]
    for base, units in timm_devnet.models.devnet.BASES.items():  # names without a number are those with it
        growths_of += [(base, growth) for growth in ('', f'wa{units}', f'mwa{units}', f'xwa{units}', 'norm', 'skip')]
    return [f'{base}_{growth}'.rstrip('_') for base, growth in growths_of]


def models_table(names: Iterable[str]) -> str:
    """Parameters and multiply-adds as a Markdown table; every base stands before its growths."""
    rows = []
    base_size = base_work = 0.0
    for name in names:
        model: Any = timm.create_model(name, device='meta')
        size = sum(parameter.numel() for parameter in model.parameters())
        work = multiply_adds(model, model.pretrained_cfg['input_size'][-1])
        if not timm_devnet.block_names(model):
            base_size, base_work = size, work
        sizes = f'{size / 1e6:.2f} M', f'{size / base_size:.3f}', f'{work / 1e9:.3f} G', f'{work / base_work:.3f}'
        rows.append((f'`{name}`', getattr(model, 'growth', ''), *sizes))
    return markdown(('model', 'growth', 'parameters', 'of base', 'multiply-adds', 'of base'), rows)


def cell(
    dataset: str,
    regime: str,
    growth: str,
    block_loss: float,
    seed: int,
    epochs: int,
    lr: float,
    base: str = LITE,
    folder: Path | None = None,
) -> Config:
    """The configuration of one run; the folder is that of a set which train.py does not know by name."""
    return Config(
        dataset=None if folder else dataset,
        data_dir=str(folder) if folder else None,
        model=base if growth == 'none' else f'{base}_{growth}',
        regime=regime,
        block_loss=block_loss,
        seed=seed,
        epochs=epochs,
        lr=lr,
        sched='cosine',
        warmup_epochs=0.05 * epochs,
        tracker='none',
        report=False,
        eval_every=epochs,  # the last epoch's accuracy, not the best of many, which would flatter
        **FEW_LABELS[dataset],
    )


def name_of(config: Config) -> str:
    """The data set of a run."""
    return config.dataset or Path(str(config.data_dir)).name


def facts(config: Config) -> Row:
    """What tells one run from another, as the CSV file has it."""
    names = 'dataset regime model block_loss seed epochs lr sched labels_per_class img_size scale_init'
    values = {**dataclasses.asdict(config), 'dataset': name_of(config)}
    return {name: str(values[name]) for name in names.split()}


def run(config: Config) -> Row:
    """Train in a folder that is then thrown away."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        result = train.main(dataclasses.replace(config, output=folder))
    return {'top1': f'{result["top1"]:.2f}', 'loss': f'{result["loss"]:.4f}', 'seconds': f'{result["seconds"]:.0f}'}


def read_rows(path: Path) -> list[Row]:
    """The finished runs."""
    return list(csv.DictReader(path.read_text().splitlines())) if path.exists() else []


def write_rows(path: Path, rows: list[Row]) -> None:
    """Keep the finished runs; the file is replaced at one stroke."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator='\n')
    writer.writeheader()
    writer.writerows(rows)
    replace_text(path, text.getvalue())


def find_row(rows: list[Row], config: Config) -> Row | None:
    """The row of a finished run, None if there is none."""
    wanted = facts(config)
    return next((row for row in rows if wanted.items() <= row.items()), None)


def growths_table(rows: list[Row], base: str = LITE) -> list[tuple[str, ...]]:
    """Mean and spread of each growth, and the paired difference to each control with its 95 % interval.

    Args:
        rows: Finished runs of one data set and regime, every seed of every growth.
        base: Name of the plain network.

    Returns:
        Cells of the table, a row for each growth.
    """
    top1: dict[str, dict[str, float]] = {}
    for row in rows:
        growth = row['model'].removeprefix(base).removeprefix('_') or 'none'
        label = growth if float(row['block_loss']) == 0 else f'{growth}, block loss {float(row["block_loss"]):g}'
        top1.setdefault(label, {})[row['seed']] = float(row['top1'])
    table = []
    for label, by_seed in top1.items():
        values = list(by_seed.values())
        differences = [
            '' if label == control or control not in top1 else str(difference(by_seed, top1[control]))
            for control in CONTROLS
        ]
        spread = f'{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f}'
        table.append((label, spread, *differences))
    return table


def print_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    print(markdown(header, rows))


COMMANDS: dict[str, Callable[..., Any]] = {
    'build': build,
    'overhead': overhead,
    'models': models,
    'train': train_speed,
    'memory': memory,
    'scaling': scaling,
    'hub': hub,
    'consolidate': consolidate,
    'growths': growths,
    'coverage': coverage,
}

if __name__ == '__main__':
    sys.exit(tyro.extras.subcommand_cli_from_dict(COMMANDS, prog='benchmark.py', description=__doc__))
