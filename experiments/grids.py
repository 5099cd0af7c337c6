"""What the tables are made of: cells, each a run of train.py; tables 1, 2, 3 and 5."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from training.config import Config

from .bases import REGIMES, Base
from .methods import Method, configure, methods_of
from .published import Figures
from .recipes import Recipe
from .rivals import rivals_of
from .targets import Target

CONTROLS = ('fine-tuning', 'fine-tuning, AdamW', 'norm', 'skip')
# Unless it is asked for: a small table should take less than ten minutes, and `ft` and `ft-adamw` are better there.
LEFT_OUT_OF_SMALL = ('ft-slow',)


@dataclass(frozen=True)
class Cell:
    """One run of train.py, for one seed."""

    row: str
    """What the table calls the method."""
    column: str
    """What the table calls the regime or the task."""
    config: Config
    """All its options; `output` and `experiment` say where its run folder is."""
    start: str = ''
    """Name of the cell whose weights it begins with; '' for the base's pretrained ones."""
    published: float | None = None
    """The paper's figure."""

    @property
    def name(self) -> str:
        """Of its run folder."""
        assert self.config.experiment is not None, 'cells name their runs'
        return self.config.experiment

    @property
    def seed(self) -> int:
        """Of everything random."""
        return self.config.seed


@dataclass(frozen=True)
class Grid:
    """A table before it is measured."""

    title: str
    cells: tuple[Cell, ...]
    """In the order in which they run: all cells of a seed before the next seed's."""
    controls: tuple[str, ...] = CONTROLS
    """Rows that every other row is compared with."""
    notes: tuple[str, ...] = ()
    """What a reader must know."""
    is_comparable: bool = True
    """Whether its figures may be subtracted from the paper's: not those of other networks."""

    @property
    def columns(self) -> list[str]:
        """In their order."""
        return list(dict.fromkeys(cell.column for cell in self.cells))

    @property
    def rows(self) -> list[str]:
        """In their order."""
        return list(dict.fromkeys(cell.row for cell in self.cells))


@dataclass(frozen=True)
class Setting:
    """What a grid is made from."""

    bases: Mapping[str, Base]
    """The base network with the classes of each task, by the task's name."""
    recipe: Recipe
    targets: tuple[Target, ...]
    figures: Figures
    """The paper's."""
    seeds: int
    methods: tuple[str, ...] = ()
    """Names of those wanted; all of the table's if empty."""
    regimes: tuple[str, ...] = ()
    """The paper's names of those wanted; all if empty."""
    rivals: bool = False
    """Whether other ways to fine-tune stand beside the table's methods."""
    shares: tuple[int, ...] = ()
    """Parts of the labels, in %, of the table that varies them; its own if empty."""
    source: Target | None = None
    """The task that was learnt first; None for the base's pretrained weights."""
    is_small: bool = False

    @property
    def base(self) -> Base:
        """The base network, with the classes of the first task."""
        return next(iter(self.bases.values()))

    def methods_for(self, task: Target, default: Sequence[str]) -> dict[str, Method]:
        """Take those methods that are wanted, as they are for the classes of a task."""
        base = self.bases[task.name]
        rivals = rivals_of(base, task.classes) if self.rivals else {}
        return self.chosen({**methods_of(base), **rivals}, (*default, *rivals))

    def figure(self, row: str, column: str) -> float | None:
        """The paper's figure, where it has one."""
        return self.figures.get(row, {}).get(column)

    def chosen(
        self, methods: Mapping[str, Method], default: Sequence[str], also_left_out: Sequence[str] = ()
    ) -> dict[str, Method]:
        """Take those methods that are wanted.

        Args:
            methods: Those of the table, by name.
            default: Names of what is wanted if nothing is said.
            also_left_out: Of these in small tables, besides what all small tables leave out.

        Raises:
            ValueError: One of them is unknown.
        """
        left_out = (*LEFT_OUT_OF_SMALL, *also_left_out) if self.is_small else ()
        wanted = self.methods or [name for name in default if name in methods and name not in left_out]
        unknown = [name for name in wanted if name not in methods]
        if unknown:
            raise ValueError(f'--methods {" ".join(unknown)} not known: this table has {", ".join(methods)}')
        return {name: methods[name] for name in methods if name in wanted}

    def chosen_regimes(self, default: Iterable[str] = REGIMES) -> dict[str, str]:
        """Take those regimes that are wanted: the paper's name and the network's own.

        Raises:
            ValueError: One of them is unknown.
        """
        offered = self.base.regimes
        wanted = self.regimes or [name for name in default if name in offered]
        unknown = [name for name in wanted if name not in offered]
        if unknown:
            raise ValueError(f'--regimes {" ".join(unknown)} not known: it is among {", ".join(offered)}')
        return {name: own for name, own in offered.items() if name in wanted}


CONTROL_NAMES = ('ft', 'ft-slow', 'ft-adamw', 'norm', 'skip', 'hidden')
DEFAULT = (*CONTROL_NAMES, 'da', 'wa', 'dwa', 'wwa', 'mwa')
TABLE5 = (*CONTROL_NAMES, 'wa', 'mwa')


def by_regime(setting: Setting, methods: Mapping[str, Method], regimes: Mapping[str, str]) -> tuple[Cell, ...]:
    """Make a cell of every method in every regime, with every seed."""
    [target] = setting.targets
    cells = []
    for seed, (column, regime), (name, method) in itertools.product(
        range(setting.seeds), regimes.items(), methods.items()
    ):
        if column in method.regimes:
            recipe = setting.recipe.at(target, regime, seed, f'{name}_{column.lower()}_seed{seed}')
            figure = setting.figure(method.published, column)
            cells.append(Cell(method.label, column, configure(method, setting.base, recipe), published=figure))
    return tuple(cells)


def note_regimes(setting: Setting) -> str:
    """Say what the paper's names of regimes mean here."""
    return 'Regimes: ' + ', '.join(f'{paper} is `{own}`' for paper, own in setting.base.regimes.items())


def table1(setting: Setting) -> Grid:
    """Methods by what learns."""
    methods = setting.methods_for(setting.targets[0], DEFAULT)
    cells = by_regime(setting, methods, setting.chosen_regimes())
    return Grid(f'Methods and regimes on {setting.targets[0].name}', cells, notes=(note_regimes(setting),))


def sizes_of(base: Base) -> dict[str, Method]:
    """List the sizes of table 2, and the controls."""
    known = methods_of(base)
    sizes = {}
    for kind, units in (
        *(('da', units) for units in (1024, 2048, 4096, 6144)),
        *((kind, units) for kind in ('wa', 'dwa') for units in (1024, 2048)),
        *(('wwa', units) for units in (1024, 2048, 4096)),
    ):
        if kind in base.growths:
            growth = base.scaled(kind, units)
            sizes[f'{kind}{units}'] = Method(growth, growth, published=f'{kind.upper()} {units}')
    controls = {name: known[name] for name in CONTROL_NAMES}
    return {**controls, **sizes, **{name: known[name] for name in ('mwa',) if name in known}}


def table2(setting: Setting) -> Grid:
    """Methods by number of new units."""
    known = sizes_of(setting.base)
    cells = by_regime(
        setting,
        setting.chosen(known, tuple(known)),
        setting.chosen_regimes(('New', 'All') if setting.is_small else REGIMES),
    )
    note = (
        "Sizes are the paper's times the network's usual wa over 2048; published figures stand beside the paper's own"
    )
    return Grid(f'Numbers of new units on {setting.targets[0].name}', cells, notes=(note, note_regimes(setting)))


def scalings_of(base: Base) -> dict[str, Method]:
    """List the methods of table 3, with and without reconciliation, and the controls."""
    known = methods_of(base)
    da, wa = base.scaled('da', 2048), f'wa{base.units["wa"]}'
    without = {'scale_init': 'off'}
    return {
        **{name: known[name] for name in CONTROL_NAMES},
        'da-off': Method(f'{da} without scaling', da, without, published='DA without'),
        'da': Method(da, da, published='DA with'),
        'wa-off': Method(f'{wa} without scaling', wa, without, published='WA without'),
        'wa-off-copy': Method(
            f'{wa} without scaling, copied units plus noise',
            wa,
            {**without, 'new_init': 'copy'},
            published='WA without, copied',
        ),
        'wa': Method(wa, wa, published='WA with'),
        **{name: known[name] for name in ('mwa',) if name in known},
    }


def table3(setting: Setting) -> Grid:
    """Methods with and without normalising and scaling."""
    known = scalings_of(setting.base)
    methods = setting.chosen(known, tuple(known))
    cells = by_regime(setting, methods, setting.chosen_regimes(('New', 'All') if setting.is_small else REGIMES))
    return Grid(f'Normalising and scaling on {setting.targets[0].name}', cells, notes=(note_regimes(setting),))


def table5(setting: Setting) -> Grid:
    """Methods on several targets, all layers learning."""
    cells = []
    tasks = [(task, method) for task in setting.targets for method in setting.methods_for(task, TABLE5).items()]
    for seed, (target, (name, method)) in itertools.product(range(setting.seeds), tasks):
        if 'All' in method.regimes:
            recipe = setting.recipe.at(target, 'all', seed, f'{name}_{target.name}_seed{seed}')
            figure = setting.figure(method.published, target.name)
            cells.append(Cell(method.label, target.name, configure(method, setting.base, recipe), published=figure))
    return Grid('Several targets', tuple(cells))
