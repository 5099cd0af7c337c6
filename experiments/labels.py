"""The table of methods, the paper's and rivals, by the part of the labels."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

from training.config import Config

from .grids import Cell, Grid, Setting, note_regimes
from .methods import Method, configure, methods_of
from .rivals import rivals_of
from .targets import Target

SHARES = (15, 30, 50, 100)
SMALL_SHARES = (15, 100)
# In the small table all labels are more than in the others, so that a part of them is still some of each class.
SMALL_FACTOR = 4
SMALL_EPOCHS = 4
ALSO_LEFT_OUT_OF_SMALL = ('wa', 'wa-all')
FROZEN, WHOLE = 'New', 'All'
CONTROLS = ('linear probe', 'skip, trunk frozen', 'fine-tuning', 'fine-tuning, AdamW')


def methods_by_labels(setting: Setting) -> dict[str, tuple[Method, str]]:
    """List the methods of this table, each with the regime in which it is a rival to the others."""
    [target] = setting.targets
    known = {**methods_of(setting.base), **rivals_of(setting.base, target.classes)}
    frozen = {name: known[name] for name in ('norm', 'skip', 'wa', 'mwa') if name in known}
    whole = {name: known[name] for name in ('ft', 'ft-slow', 'ft-adamw', 'layer-decay', 'l2-sp', 'lora')}
    grown = {f'{name}-all': known[name] for name in ('wa', 'mwa') if name in known}
    probes: dict[str, Method] = {
        'probe': Method('linear probe'),
        'probe-slow': Method(f'linear probe, {known["ft-slow"].rate} of the rate', rate=known['ft-slow'].rate),
    }
    listed: dict[str, tuple[Method, str]] = {
        **{name: (method, FROZEN) for name, method in {**probes, 'levels': known['levels']}.items()},
        **{name: (relabelled(method, 'trunk frozen'), FROZEN) for name, method in frozen.items()},
        **{name: (method, WHOLE) for name, method in {**whole, **grown}.items()},
    }
    methods = {name: method for name, (method, _) in listed.items()}
    chosen = setting.chosen(methods, tuple(methods), ALSO_LEFT_OUT_OF_SMALL)
    return {name: listed[name] for name in chosen}


def relabelled(method: Method, remark: str) -> Method:
    """Name a method with a remark."""
    return dataclasses.replace(method, label=f'{method.label}, {remark}')


def by_labels(setting: Setting) -> Grid:
    """Methods by the part of the labels; every part is trained on for about as many updates."""
    [target] = setting.targets
    cells = []
    methods, shares = methods_by_labels(setting), setting.shares or (SMALL_SHARES if setting.is_small else SHARES)
    regimes = setting.chosen_regimes((FROZEN, WHOLE))
    for seed, share, (name, (method, regime)) in itertools.product(range(setting.seeds), shares, methods.items()):
        part = part_of(target, share, setting.is_small)
        epochs = count_epochs(setting, part)
        recipe = setting.recipe.at(part, regimes[regime], seed, f'{name}_{share}_seed{seed}', epochs)
        cells.append(Cell(method.label, f'{share} %', configure(method, setting.base, recipe)))
    note = (
        'A part of the labels is that part of the training images of each class, the lesser within the greater; all '
        'are trained on for about as many updates'
    )
    return Grid(
        f'Methods by the part of the labels of {target.name}', tuple(cells), CONTROLS, (note, note_regimes(setting))
    )


def part_of(target: Target, share: int, is_small: bool) -> Target:
    """Take a part of a task's labels, in %; a small task has more of them here than elsewhere."""
    options: dict[str, Any] = dict(target.options)
    if is_small:
        labels = SMALL_FACTOR * options['labels_per_class']
        options['labels_per_class'] = max(1, round(labels * share / 100))
        return dataclasses.replace(target, options=options, train_images=options['labels_per_class'] * target.classes)
    return dataclasses.replace(
        target, options={**options, 'label_share': share / 100}, train_images=round(target.train_images * share / 100)
    )


def count_epochs(setting: Setting, part: Target) -> int:
    """Tell the passes over a part of the labels that make about as many updates as those over all of them."""
    config: Config = setting.recipe.config
    [target] = setting.targets
    whole = part_of(target, 100, setting.is_small)
    updates = [max(1, each.train_images // config.batch_size) for each in (whole, part)]
    return max(1, round(setting.recipe.epochs * updates[0] / updates[1]))
