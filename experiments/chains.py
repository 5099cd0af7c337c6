"""What the tables are made of where one run begins with another's weights: tables 4, 6, 7 and 8."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import timm

from training.config import Config
from training.keep_heads import task_name

from .bases import Base
from .grids import CONTROLS, TABLE5, Cell, Grid, Setting
from .methods import Method, configure, configure_from, methods_of
from .results import folder_of
from .targets import Target

KNOWN = 'the source network'
NOT_TRANSFERRED = 'not transferred'
WIDE_FROM_START = 'wa from the start'
ORI = 'ori: wide before the target'
# Options of the recipe that count where nothing is trained.
MEASURING = ('img_size', 'batch_size', 'mixed_precision', 'memory_format', 'workers', 'threads', 'report', 'output')


class Chains:
    """Makes cells of which some begin with others' weights, for one seed after the other."""

    def __init__(self, setting: Setting):
        self.setting, self.cells = setting, list[Cell]()

    def learn(
        self,
        method: Method,
        name: str,
        task: Target,
        seed: int,
        row: str,
        column: str,
        start: Cell | None = None,
        regime: str = 'all',
        published: float | None = None,
        epochs: int | None = None,
        keeps_heads: bool = False,
    ) -> Cell:
        """Add a cell that trains.

        Args:
            method: What is added and how it trains.
            name: Of the run folder, but for the seed.
            task: Its images.
            seed: Of everything random.
            row: What the table calls it.
            column: What it measures.
            start: Whose weights it begins with; None for the base's.
            regime: What learns, by the network's own name.
            published: The paper's figure.
            epochs: Passes over the images (None: as over every target).
            keeps_heads: Whether the classifier of what it begins with stays beside the new one.
        """
        recipe = self.setting.recipe.at(task, regime, seed, f'{name}_seed{seed}', epochs)
        if start is not None:
            weights = f'local-dir:{folder_of(start) / "best"}'
            config = configure_from(method, weights, dataclasses.replace(recipe, pretrained_path=None))
        elif keeps_heads:
            config = configure_from(method, self.setting.base.name, recipe)
        else:
            config = configure(method, self.setting.base, recipe)
        config = dataclasses.replace(config, keep_heads=keeps_heads)
        cell = Cell(row, column, config, start.name if start else '', published)
        self.cells.append(cell)
        return cell

    def measure(
        self,
        name: str,
        task: Target,
        seed: int,
        row: str,
        column: str,
        start: Cell | None,
        head: str | None = None,
        published: float | None = None,
    ) -> None:
        """Add a cell that only measures another's network, or the base's.

        Args:
            name: Of its folder, but for the seed.
            task: The images.
            seed: Of the other cell.
            row: What the table calls it.
            column: What it measures.
            start: Whose network it is; None for the base's.
            head: By which of its earlier heads; None for its own classifier.
            published: The paper's figure.
        """
        base, recipe = self.setting.base, self.setting.recipe.config
        shared = {option: getattr(recipe, option) for option in MEASURING}
        config = Config(
            **shared,
            **{option: value for option, value in task.options.items() if option in ('data_dir', 'dataset')},
            model=str(folder_of(start)) if start else base.name,
            pretrained_path=None if start else recipe.pretrained_path,
            eval_only=True,
            head=head,
            seed=seed,
            experiment=f'{name}_seed{seed}',
        )
        self.cells.append(Cell(row, column, config, start.name if start else '', published))

    def learn_source(self, seed: int) -> Cell | None:
        """Let the plain network learn the small tables' source task; otherwise its pretrained weights are the source's.

        It learns by AdamW, since the tables' recipe spoils a plain network where images are few (docs/growth.md).

        Returns:
            The cell, None where nothing is to be learnt.
        """
        setting = self.setting
        if not setting.is_small:
            return None
        assert setting.source is not None, 'small tables have a source task'
        column = f'{setting.source.name} (source)'
        epochs = setting.recipe.first_epochs
        method = methods_of(setting.base)['ft-adamw']
        return self.learn(method, 'source', setting.source, seed, KNOWN, column, epochs=epochs)


def note_source(setting: Setting) -> tuple[str, ...]:
    """Say how the network came to know the source task, where a table has taught it."""
    if not setting.is_small:
        return ()
    return (f'{KNOWN} learns as the row "{methods_of(setting.base)["ft-adamw"].label}" does',)


def require_source(setting: Setting) -> Target:
    """Tell the source task.

    Raises:
        ValueError: There is none.
    """
    if setting.source is None:
        raise ValueError('this table trains on the source task again: give its images, --source-dir IMAGENET')
    return setting.source


def table4(setting: Setting) -> Grid:
    """What is left of the source task after a transfer to another one.

    The paper says that the transferred network is trained on the source again, and not what of it is; here it is what
    was added, and a fresh classifier: regime new. The network that was never transferred stands beside. What has grown
    keeps the source's classifier besides, and is measured by it as the transfer has left it.
    """
    source, [target] = require_source(setting), setting.targets
    known = {**methods_of(setting.base), **holding_methods(setting.base)}
    methods = setting.chosen(known, (*TABLE5, 'da', *holding_methods(setting.base)))
    chains, again, own_head = Chains(setting), f'{source.name} again', f'{source.name} by its own head'
    head, refit = source_head(setting), Method('refit')
    for seed in range(setting.seeds):

        def train_again(name: str, row: str, moved: Cell | None, paper: str, seed: int = seed) -> None:
            figure, regime = setting.figure(paper, 'ImageNet'), setting.base.regimes['New']
            epochs = setting.recipe.first_epochs
            chains.learn(refit, f'{name}_again', source, seed, row, again, moved, regime, figure, epochs)

        start = chains.learn_source(seed)
        train_again('source', NOT_TRANSFERRED, start, 'AlexNet')
        chains.measure('source_head', source, seed, NOT_TRANSFERRED, own_head, start)
        for name, method in methods.items():
            keeps, row = bool(method.growth), method.label
            moved = chains.learn(method, f'{name}_transfer', target, seed, row, target.name, start, keeps_heads=keeps)
            is_held = 'lwf' in method.options
            train_again(name, row, moved, '' if is_held else method.published)
            if keeps:
                figure = setting.figure(method.published, 'ImageNet') if is_held else None
                chains.measure(f'{name}_head', source, seed, row, own_head, moved, head, figure)
    notes = (
        f'{again}: after the transfer, what was added and a fresh classifier train on {source.name} (regime new)',
        f'{own_head}: the classifier that knew {source.name}, on what the transfer has left of its features',
        'Learning without forgetting (lwf 1) holds what that classifier says of the new images',
        'Joint training (56.4 in the paper) has no row: it needs one folder with the classes of both tasks',
        *note_source(setting),
    )
    return Grid(f'The source task after {target.name}', tuple(chains.cells), (*CONTROLS, NOT_TRANSFERRED), notes)


def holding_methods(base: Base) -> dict[str, Method]:
    """List what holds a network to its source task: learning without forgetting, and frozen BatchNorm statistics."""
    known = methods_of(base)
    most = next(known[name] for name in ('mwa', 'wa') if name in known)
    # Clipped, since the source's classifier reads features that nothing reconciles: their size knows no bounds where no
    # batch norm goes by the batch, and the loss of its answers then throws the network out (three seeds of three).
    held, still = {'lwf': 1.0}, {'freeze_bn_stats': True, 'clip_grad': 1.0}
    lwf, frozen = 'learning without forgetting', 'BatchNorm statistics frozen, clipped at 1'
    methods = {'lwf': Method(f'norm, {lwf}', 'norm', held, published='LwF')}
    if not base.has_batch_norm:
        return {**methods, 'grown-lwf': Method(f'{most.growth}, {lwf}', most.growth, held)}
    return {
        **methods,
        'ft-still': Method(f'fine-tuning, {frozen}', options=still),
        'still': Method(f'norm, {frozen}', 'norm', still),
        'grown-still': Method(f'{most.growth}, {frozen}', most.growth, still),
        'still-lwf': Method(f'norm, {frozen}, {lwf}', 'norm', held | still),
        'grown-still-lwf': Method(f'{most.growth}, {frozen}, {lwf}', most.growth, held | still),
    }


def source_head(setting: Setting) -> str:
    """Tell the name under which train.py keeps the source's classifier."""
    assert setting.source is not None, 'it was asked for'
    network: Any = timm.create_model(setting.base.name, device='meta')
    config = Config(model=setting.base.name)
    return task_name(config, dict(setting.source.options) if setting.is_small else {}, network)


def table6(setting: Setting) -> Grid:
    """Growing on the source task itself: a grown network, and one that was wide from the start."""
    source, recipe = require_source(setting), setting.recipe
    methods = setting.methods_for(source, TABLE5)
    papers = {'ft': 'AlexNet', 'wa': 'grown'}
    chains = Chains(setting)
    for seed in range(setting.seeds):
        start = chains.learn_source(seed)
        epochs = recipe.first_epochs + (recipe.epochs if setting.is_small else 0)
        figure = setting.figure('wide from scratch', 'ImageNet')
        wide = wide_from_start(setting)
        chains.learn(wide, 'wide', source, seed, WIDE_FROM_START, source.name, published=figure, epochs=epochs)
        for name, method in methods.items():
            figure = setting.figure(papers.get(name, ''), 'ImageNet')
            chains.learn(method, name, source, seed, method.label, source.name, start, published=figure)
    begins = 'ImageNet weights, for as long as both stages' if setting.is_small else 'random numbers'
    notes = (
        f'The network that knows {source.name} is trained on it once more, as it is (fine-tuning) or grown by the row',
        f'{WIDE_FROM_START}: the wide network, from {begins}',
        *note_source(setting),
    )
    return Grid(f'Growing on {source.name} itself', tuple(chains.cells), (*CONTROLS, WIDE_FROM_START), notes)


def wide_from_start(setting: Setting) -> Method:
    """The wide network before it knows the source task: random, or in small tables with ImageNet weights."""
    wide = methods_of(setting.base)['wa']
    return wide if setting.is_small else dataclasses.replace(wide, options={'pretrained': False})


def table7(setting: Setting) -> Grid:
    """Is it only the size? A network that was wide before the target came, against one that grows for it."""
    source, known = require_source(setting), methods_of(setting.base)
    chains = Chains(setting)
    for seed in range(setting.seeds):
        start = chains.learn_source(seed)
        column, epochs = f'{source.name} (source)', setting.recipe.first_epochs
        wide = chains.learn(wide_from_start(setting), 'wide', source, seed, ORI, column, epochs=epochs)
        tasks = [(task, method) for task in setting.targets for method in setting.methods_for(task, TABLE5).items()]
        for target, (name, method) in [*tasks, *((task, ('ori', known['ft'])) for task in setting.targets)]:
            row, begin = (ORI, wide) if name == 'ori' else (method.label, start)
            figure = setting.figure({'ft': 'fine-tuning', 'wa': 'grow'}.get(name, name), target.name)
            chains.learn(method, f'{name}_{target.name}', target, seed, row, target.name, begin, published=figure)
    notes = (
        f'{ORI}: the wide network learns {source.name} first, then all of it is fine-tuned on the target',
        *note_source(setting),
    )
    return Grid('Is it only the size?', tuple(chains.cells), (*CONTROLS, ORI), notes)


def table8(setting: Setting, others: Mapping[str, Base], other_weights: str | None = None) -> Grid:
    """Growing from task to task.

    Args:
        setting: Of its two targets the first is the task on the way, the second the one that counts.
        others: Further base networks for the second target, by name.
        other_weights: File with other weights of the base, such as AlexNet's of Places.
    """
    if len(setting.targets) != 2:
        raise ValueError(f'table8 has two tasks, one on the way to the other: given {len(setting.targets)}')
    first, second = setting.targets
    chains = Chains(setting)
    further = {name: (base, None) for name, base in others.items()}
    for seed in range(setting.seeds):
        for name, method in setting.methods_for(second, TABLE5).items():
            figure = setting.figure('ImageNet' if name == 'wa' else '', second.name)
            chains.learn(method, f'{name}_direct', second, seed, method.label, second.name, published=figure)
        for name, method in setting.methods_for(first, TABLE5).items():
            row = through(first, method)
            figure = setting.figure('ImageNet, SUN-397' if name == 'wa' else '', second.name)
            way = chains.learn(method, f'{name}_first', first, seed, row, first.name)
            is_there = method.growth and name not in setting.base.units  # norms and lower levels do not come twice
            again = dataclasses.replace(method, growth='', options={}) if is_there else method
            chains.learn(again, f'{name}_second', second, seed, row, second.name, way, published=figure)
        for label, (base, path) in {**further, 'other weights': (setting.base, other_weights)}.items():
            for name in ('ft', 'wa') if label in others or path else ():
                method = methods_of(base)[name]
                paper = {'wa': 'Places' if path else 'VGG16'}.get(name, '')
                recipe = setting.recipe.at(second, 'all', seed, f'{name}_{label.replace(" ", "-")}_seed{seed}')
                config = dataclasses.replace(configure(method, base, recipe), pretrained_path=path)
                figure = setting.figure(paper, second.name)
                chains.cells.append(Cell(f'{label}: {method.label}', second.name, config, published=figure))
    notes = (
        f'Rows "through {first.name}" learn {first.name} first and then {second.name}; what has new units grows for '
        'each of them, and what it grew by for the first counts as old for the second',
    )
    known = methods_of(setting.base)
    controls = (*CONTROLS, *(through(first, known[name]) for name in ('ft', 'ft-adamw')))
    return Grid(f'From {first.name} to {second.name}', tuple(chains.cells), controls, notes)


def through(first: Target, method: Method) -> str:
    """Name the row of a method that learns another task on the way."""
    return f'through {first.name}: {method.label}'
