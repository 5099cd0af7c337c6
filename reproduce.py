"""The tables of Growing a Brain (2017), run anew: `python reproduce.py TABLE`; `--help` lists options."""

from __future__ import annotations

import dataclasses
import datetime
import os
import platform
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import timm
import torch
import tyro

from experiments import chains, grids
from experiments.bases import Base, describe_base
from experiments.cells import Pool, Stopped, locked
from experiments.estimates import describe_estimate, estimate, list_cells, measure_pace
from experiments.grids import Grid, Setting
from experiments.intervals import MOST_SEEDS
from experiments.labels import SMALL_EPOCHS, by_labels
from experiments.methods import describe_adamw
from experiments.published import network_of, published
from experiments.recipes import Recipe, make_recipe
from experiments.results import refuse_changes
from experiments.sets import SETS, make_set
from experiments.tables import write_table
from experiments.targets import Target, read_target, small_target
from train import EXIT_AT_ONCE, EXIT_USER_ERROR
from training.interruption import EXIT_INTERRUPTED

Table = Literal['table1', 'table2', 'table3', 'table4', 'table5', 'table6', 'table7', 'table8', 'labels']
GRIDS: dict[str, Callable[[Setting], Grid]] = {
    'table1': grids.table1,
    'table2': grids.table2,
    'table3': grids.table3,
    'table4': chains.table4,
    'table5': grids.table5,
    'table6': chains.table6,
    'table7': chains.table7,
    'labels': by_labels,
}
BY_REGIME = ('table1', 'table2', 'table3')
WITH_RIVALS = ('table1', 'table5')
WITH_SOURCE = ('table4', 'table6', 'table7')
FULL_BASE, SMALL_BASE = 'alexnet', 'tf_efficientnet_lite0'
# Targets and source of each table's small twin.
SMALL_TARGETS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys((*BY_REGIME, 'table4', 'labels'), ('small-digits',)),
    'table5': ('materials', 'cells', 'scenes'),
    'table6': (),
    'table7': ('materials', 'small-digits'),
    'table8': ('photographs', 'materials'),
}
SMALL_SOURCES = {'table4': 'photographs', 'table6': 'materials', 'table7': 'photographs'}


@dataclass(frozen=True)
class Request:
    """A table to run; defaults follow the paper, or with --small what two cores do in about ten minutes."""

    table: tyro.conf.Positional[Table]
    """1 methods and regimes, 2 numbers of new units, 3 scaling, 4 what is left of the source task, 5 several targets,
    6 growing on the source task itself, 7 is it only the size, 8 from task to task; labels: the paper's and rival
    methods by the part of the labels."""
    data_dirs: Annotated[tuple[str, ...], tyro.conf.arg(aliases=['--data-dir'])] = ()
    """The targets: folders as train.py takes them (DIR/train/CLASS/*, DIR/val/CLASS/*), or DATASET=DIR for data sets
    that train.py knows by name: sun397=/data/SUN397. One for tables 1 to 4; for table 8 the task on the way, and then
    the one that counts. With --small, names of sets made of packages' images."""
    source_dir: str | None = None
    """The images of the task that the base was pretrained on, for tables 4, 6 and 7; written as --data-dirs."""
    source_epochs: int | None = None
    """Passes over the source task in tables 4, 6 and 7 (None: as --epochs)."""
    model: str | None = None
    """Base network, any of timm's that can grow (None: alexnet, and tf_efficientnet_lite0 with --small)."""
    pretrained_path: str | None = None
    """File of the base's weights, instead of the published ones."""
    other_models: tuple[str, ...] | None = None
    """Table 8: further base networks (None: vgg16, and none with --small)."""
    other_weights: str | None = None
    """Table 8: file of other weights of the base, such as AlexNet's of Places."""
    methods: tuple[str, ...] = ()
    """Which methods to run (none: all of the table): ft, ft-slow, ft-adamw, norm, skip, hidden, da, wa, dwa, wwa, mwa,
    and with --rivals levels, layer-decay, l2-sp, lora; tables 2, 3 and labels have names of their own, which a wrong
    name lists.
    """
    regimes: tuple[str, ...] = ()
    """Which regimes, by the paper's names, in tables 1 to 3: New FC7-New FC6-New All (none: all; the small twins of
    tables 2 and 3 have New and All)."""
    rivals: bool = False
    """Tables 1 and 5: beside the table's methods also all levels without units (New), and layer decay, L2-SP and LoRA
    with as many parameters as mwa (All)."""
    labels: tuple[int, ...] = ()
    """Table labels: parts of the training images of each class, in % (none: 15 30 50 100, and 15 100 with --small)."""
    seeds: int = 3
    """Runs of each kind: seeds 0, 1, ..."""
    small: bool = False
    """Run the table's small twin: EfficientNet-Lite0 on images that come with packages, about a hundred labels."""
    epochs: int | None = None
    """Passes over the training images, in table labels over all of them (None: 20, and 4 in the small table labels)."""
    img_size: int | None = None
    """Side of the images in pixels (None: what the base was pretrained at, and 64 with --small)."""
    batch_size: int | None = None
    """Images in a batch (None: 32)."""
    lr: float | None = None
    """Rate of pretrained layers (None: 0.01); new ones learn ten times as fast."""
    opt: str | None = None
    """timm's name of the optimizer (None: SGD with momentum)."""
    weight_decay: float | None = None
    """Weight decay (None: 0.0005)."""
    clip_grad: float | None = None
    """Largest L2 norm of the gradient (None: not clipped)."""
    freeze_bn_stats: bool = False
    """Old BatchNorms normalise by the statistics that they came with, where their layers learn too."""
    mixed_precision: Literal['no', 'bf16', 'fp16'] | None = None
    """Precision of the arithmetic (None: fp32)."""
    workers: int | None = None
    """Processes that read images, for each cell (None: as train.py has it)."""
    processes: int | None = None
    """Cells that run at a time, each with its share of the cores, and with a GPU to itself if there are several (None:
    one for each GPU; without one 1, and 2 with --small)."""
    keep_weights: bool = True
    """Keep the weights of cells that no other cell begins with."""
    output: str = 'output/reproduce'
    """Where the folders of tables are made."""
    sets: str = 'output/sets'
    """Where the sets of --small are made."""
    dry_run: bool = False
    """List every cell with an estimate of time and disk, and run nothing."""

    def validate(self) -> None:
        """Refuse what a table does not use.

        Raises:
            ValueError: Names the option.
        """
        refused = {
            'regimes': self.table not in BY_REGIME,
            'rivals': self.table not in WITH_RIVALS,
            'labels': self.table != 'labels',
            'source_dir': self.table not in WITH_SOURCE,
            'source_epochs': self.table not in WITH_SOURCE,
            'other_models': self.table != 'table8',
            'other_weights': self.table != 'table8',
            'data_dirs': self.table == 'table6',
        }
        for name, is_refused in refused.items():
            value = getattr(self, name)
            if is_refused and value not in (None, (), False):
                raise ValueError(f'--{name.replace("_", "-")} {value} has no meaning for {self.table}: leave it out')
        if not 1 <= self.seeds <= MOST_SEEDS:
            raise ValueError(f'--seeds {self.seeds} is out of range: it must be 1 to {MOST_SEEDS}')
        for name in ('processes', 'epochs', 'source_epochs'):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f'--{name.replace("_", "-")} {value} is out of range: it must be at least 1')
        if any(not 1 <= share <= 100 for share in self.labels) or len({*self.labels}) < len(self.labels):
            raise ValueError(f'--labels {self.labels} must be parts in %, each from 1 to 100 and once')
        given, wanted = len(self.data_dirs), {'table8': 2, 'table5': None, 'table7': None}.get(self.table, 1)
        is_default = not given and (self.small or self.table == 'table6')
        if not is_default and given != (wanted or given or 1):
            raise ValueError(f'{self.table} takes {wanted or "one or more"} of --data-dirs: given {given}')

    @property
    def base(self) -> str:
        """Name of the base network."""
        return self.model or (SMALL_BASE if self.small else FULL_BASE)

    @property
    def folder(self) -> Path:
        """Of the table."""
        name = self.table + ('-small' if self.small else '') + (f'-{self.model}' if self.model else '')
        return Path(self.output) / name

    @property
    def process_count(self) -> int:
        """How many cells run at a time."""
        return self.processes or torch.cuda.device_count() or (2 if self.small else 1)

    @property
    def threads(self) -> int | None:
        """CPU threads of each cell; None for what the recipe says."""
        return None if self.small else max(1, cores() // self.process_count)

    def find_targets(self) -> tuple[Target, ...]:
        """Find the tasks to learn."""
        if self.small:
            names = self.data_dirs or SMALL_TARGETS[self.table]
            return tuple(small_target(name, Path(self.sets)) for name in names)
        return tuple(read_target(text) for text in self.data_dirs)

    def find_source(self) -> Target | None:
        """Find the task that was learnt first."""
        if self.table not in WITH_SOURCE:
            return None
        if self.small:
            return small_target(self.source_dir or SMALL_SOURCES[self.table], Path(self.sets))
        return None if self.source_dir is None else read_target(self.source_dir)


def main(request: Request) -> int:
    """Run a table, or go on with it.

    Returns:
        Exit code: 1 if a cell failed, `EXIT_INTERRUPTED` if it was stopped.

    Raises:
        ValueError: The request, the data or the network do not fit, or cells were run with other options.
    """
    request.validate()
    setting, grid = make_grid(request)
    tasks = [*setting.targets, *([setting.source] if setting.source else [])]
    for cell in grid.cells:
        cell.config.validate()
    refuse_changes(grid.cells)
    pace = measure_pace(request.base, setting.recipe.config.img_size, request.threads or setting.recipe.config.threads)
    estimates = estimate(grid, setting.base, tasks, pace, request.keep_weights)
    if request.dry_run:
        print(list_cells(grid, estimates))
    print(describe_estimate(grid, estimates, request.process_count), flush=True)
    if request.dry_run:
        return 0
    facts = describe_table(request, setting)
    with locked(request.folder):
        for name in {task.name for task in tasks if request.small} & {*SETS}:
            make_set(name, Path(request.sets))

        def note() -> None:
            write_table(request.folder, grid, facts, {})

        try:
            pool = Pool(grid.cells, request.process_count, request.threads, request.keep_weights, print_now, note)
            failed = pool.run()
        except Stopped:
            print('stopped and saved; go on with the same command')
            return EXIT_INTERRUPTED
        print(write_table(request.folder, grid, facts, failed))
    print(f'in {request.folder}: table.md, table.csv, table.json, commands.sh')
    for name, error in failed.items():
        print(f'reproduce.py: {name} failed: {error}', file=sys.stderr)
    return int(bool(failed))


def make_grid(request: Request) -> tuple[Setting, Grid]:
    """Find data and network of a table, and list its cells."""
    options: dict[str, Any] = {
        name: getattr(request, name)
        for name in (
            *('epochs', 'img_size', 'batch_size', 'lr', 'opt', 'weight_decay', 'clip_grad'),
            *('mixed_precision', 'workers', 'pretrained_path'),
        )
    }
    options['freeze_bn_stats'] = request.freeze_bn_stats or None
    if request.table == 'labels' and request.small:
        options['epochs'] = request.epochs or SMALL_EPOCHS
    recipe = make_recipe(request.small, str(request.folder), request.source_epochs, options)
    targets, source = request.find_targets(), request.find_source()
    tasks = [task for task in (*targets, source) if task]
    names = [task.name for task in tasks]
    if len({*names}) < len(names):
        raise ValueError(
            f'tasks are told apart by their names, but these are called {", ".join(names)}: rename a folder'
        )
    bases = {task.name: describe_base(request.base, task.classes) for task in tasks}
    if request.freeze_bn_stats and not all(base.has_batch_norm for base in bases.values()):
        raise ValueError(f'--freeze-bn-stats has no meaning for {request.base}, which has no BatchNorm: leave it out')
    setting = Setting(
        bases=bases,
        recipe=recipe,
        targets=targets,
        figures=published(request.table, request.base),
        seeds=request.seeds,
        methods=request.methods,
        regimes=request.regimes,
        rivals=request.rivals,
        shares=request.labels,
        source=source,
        is_small=request.small,
    )
    is_papers = not request.small and request.base.partition('.')[0] in (FULL_BASE, 'vgg16')
    if request.table != 'table8':
        return setting, dataclasses.replace(GRIDS[request.table](setting), is_comparable=is_papers)
    others = request.other_models if request.other_models is not None else () if request.small else ('vgg16',)
    further: dict[str, Base] = {name: describe_base(name, targets[-1].classes) for name in others}
    grid = chains.table8(setting, further, request.other_weights)
    return setting, dataclasses.replace(grid, is_comparable=is_papers)


def describe_table(request: Request, setting: Setting) -> list[str]:
    """Say how a table was made."""
    paper = {'alexnet': 'AlexNet', 'vgg16': 'VGG16'}[network_of(request.base)]
    words = shlex.join(['python', 'reproduce.py', *sys.argv[1:]])
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else f'{cores()} cores ({platform.machine()})'
    today = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
    facts = [
        f'`{words}`, {today}, torch {torch.__version__}, timm {timm.__version__}, {where}.',
        f'{request.base}, {request.seeds} seeds. {describe_recipe(setting.recipe)}',
        describe_adamw(setting.base),
    ]
    if setting.figures:
        facts.append(
            f"Published figures are the paper's, of {paper}"
            + (
                '; with another network and other images only their differences can be compared.'
                if request.small
                else '.'
            )
        )
    return facts


def describe_recipe(recipe: Recipe) -> str:
    """Say how all cells train."""
    config = recipe.config
    size = f'{config.img_size} px' if config.img_size else "the network's own image size"
    views = f', features of {recipe.views} augmented views kept where layers are frozen' if recipe.views else ''
    optimizer = f'SGD with momentum {config.momentum:g}' if config.opt == 'momentum' else config.opt
    clipped = '' if config.clip_grad is None else f', gradients clipped at {config.clip_grad:g}'
    frozen = ', BatchNorm statistics frozen' if config.freeze_bn_stats else ''
    return (
        f'One recipe for all rows that name no other: {config.epochs} epochs, batches of {config.batch_size}, {size}, '
        f'{optimizer}, weight decay {config.weight_decay:g}, rate {config.lr:g} and {config.new_lr_mult:g} times that '
        f'for what is new, {config.sched}{clipped}{frozen}{views}; the accuracy is that of the last epoch.'
    )


def cores() -> int:
    """Count the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def print_now(line: str) -> None:
    """Print a line that one wants to see while it runs."""
    print(line, flush=True)


def cli(argv: list[str] | None = None) -> int:
    """Run from the command line.

    Returns:
        Exit code: 0, 1 if a cell failed, `EXIT_USER_ERROR`, `EXIT_AT_ONCE` or `EXIT_INTERRUPTED`.
    """
    request = tyro.cli(Request, prog='reproduce.py', description=__doc__, args=argv)
    try:
        return main(request)
    except (ValueError, OSError) as error:
        print(f'reproduce.py: error: {" ".join(str(error).split())}', file=sys.stderr)
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        print('reproduce.py: stopped at once; what was saved before remains', file=sys.stderr)
        return EXIT_AT_ONCE


if __name__ == '__main__':
    sys.exit(cli())
