"""Rivals as methods of the tables, and the table by the part of the labels."""

import dataclasses
import json
import shlex
from pathlib import Path

import pytest
import timm
import tyro

import train
from experiments.bases import Base, count_new, describe_base
from experiments.commands import command_of
from experiments.grids import Grid, Setting, table1, table5
from experiments.labels import by_labels
from experiments.recipes import make_recipe
from experiments.rivals import match_lora
from experiments.targets import Target, read_target, small_target
from reproduce import Request
from training.config import Config
from training.lora import count_adapters

NAME = 'tf_efficientnet_lite0'
FULL = Target('x', {'data_dir': 'x'}, 10, 1000, 500)


@pytest.fixture(scope='module')
def base() -> Base:
    return describe_base(NAME, 10)


def make_setting(base: Base, target: Target = FULL, is_small: bool = False, **options: object) -> Setting:
    recipe = make_recipe(is_small, 'out', None, {'epochs': 4 if is_small else None})
    given: dict = dict(figures={}, seeds=2, shares=(15, 30, 100), is_small=is_small)
    return Setting(bases={target.name: base}, recipe=recipe, targets=(target,), **{**given, **options})


@pytest.mark.parametrize('growth', ['mwa512', 'wa512', 'xwa512'])
def test_adapters_have_about_as_many_parameters_as_a_growth(growth: str) -> None:
    wanted = count_new(f'{NAME}_{growth}', 10) - count_new(NAME, 10)
    network = timm.create_model(NAME, device='meta', num_classes=10)
    each = count_adapters(network)
    assert abs(count_adapters(network, match_lora(NAME, growth, 10)) - wanted) <= each / 2


def test_rivals_stand_where_they_have_a_meaning(base: Base) -> None:
    grid = table1(make_setting(base, rivals=True, methods=('ft', 'levels', 'layer-decay', 'l2-sp', 'lora')))
    columns = {row: [c.column for c in grid.cells if c.row == row and c.seed == 0] for row in grid.rows}
    assert columns.pop('fine-tuning') == ['New', 'FC7-New', 'FC6-New', 'All']
    assert columns.pop('all levels, linear') == ['New']
    assert len(columns) == 3
    assert all(found == ['All'] for found in columns.values())
    assert not {*columns} & {*table5(make_setting(base)).rows}
    assert {*columns} < {*table5(make_setting(base, rivals=True)).rows}


def test_rivals_are_told_to_train_py(base: Base) -> None:
    configs = {cell.name: cell.config for cell in table1(make_setting(base, rivals=True, seeds=1)).cells}
    assert configs['levels_new_seed0'].model == f'{NAME}_r1r2r3r4r5r6r7r8u0'
    assert configs['l2-sp_all_seed0'].l2_sp == 0.01
    assert configs['layer-decay_all_seed0'].layer_decay == 0.75
    assert configs['lora_all_seed0'].lora == match_lora(NAME, 'mwa512', 10) > 1


def grid_of(base: Base, is_small: bool) -> Grid:
    return by_labels(make_setting(base, small_target('small-digits', Path('sets')) if is_small else FULL, is_small))


@pytest.mark.parametrize('is_small', [False, True])
def test_cells_by_labels_are_what_a_user_can_type(base: Base, is_small: bool) -> None:
    for cell in grid_of(base, is_small).cells:
        cell.config.resolved().validate()
        assert tyro.cli(Config, args=shlex.split(command_of(cell.config))[3:]) == cell.config


def test_the_table_has_parts_of_its_own_where_none_are_given(base: Base) -> None:
    assert by_labels(make_setting(base, shares=())).columns == ['15 %', '30 %', '50 %', '100 %']
    target = small_target('small-digits', Path('sets'))
    assert by_labels(make_setting(base, target, is_small=True, shares=())).columns == ['15 %', '100 %']


def test_a_part_of_the_labels_is_a_part_of_each_class(base: Base) -> None:
    shares = {cell.column: cell.config.label_share for cell in grid_of(base, is_small=False).cells}
    assert shares == {'15 %': 0.15, '30 %': 0.3, '100 %': 1.0}
    labels = {cell.column: cell.config.labels_per_class for cell in grid_of(base, is_small=True).cells}
    assert labels == {'15 %': 6, '30 %': 12, '100 %': 40}


@pytest.mark.parametrize('is_small', [False, True])
def test_every_part_is_trained_on_for_about_as_many_updates(base: Base, is_small: bool) -> None:
    images = {'15 %': 60, '30 %': 120, '100 %': 400} if is_small else {'15 %': 150, '30 %': 300, '100 %': 1000}
    cells = grid_of(base, is_small).cells
    updates = {cell.column: images[cell.column] // cell.config.batch_size * cell.config.epochs for cell in cells}
    assert max(updates.values()) <= 1.05 * min(updates.values())


def test_the_trunk_is_frozen_where_the_label_says_so(base: Base) -> None:
    grid = grid_of(base, is_small=False)
    frozen = {cell.row for cell in grid.cells if cell.config.regime == 'new'}
    assert {row for row in grid.rows if 'frozen' in row or 'linear' in row} == frozen
    assert {*grid.controls} < {*grid.rows}


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'table': 'table2', 'rivals': True}, '--rivals True has no meaning for table2'),
        ({'table': 'table1', 'labels': (15,)}, r'--labels \(15,\) has no meaning for table1'),
        ({'table': 'labels', 'labels': (0, 15)}, r'--labels \(0, 15\) must be parts in %'),
        ({'table': 'labels', 'labels': (15, 15)}, 'each from 1 to 100 and once'),
    ],
)
def test_requests_without_a_meaning_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Request(small=True, **options).validate()


def test_a_cell_trains_as_many_parameters_as_it_says(tmp_path: Path, image_folder: Path, lite_weights: Path) -> None:
    target = read_target(str(image_folder))
    recipe = make_recipe(False, str(tmp_path), None, dict(epochs=1, img_size=32, batch_size=4, workers=0))
    setting = Setting({target.name: describe_base(NAME, 3)}, recipe, (target,), {}, 1, methods=('lora',), shares=(50,))
    [cell] = by_labels(setting).cells
    run = train.main(dataclasses.replace(cell.config, threads=1))['run']
    facts = json.loads(Path(run, 'run.json').read_text())
    adapters = count_adapters(timm.create_model(NAME, device='meta', num_classes=3), cell.config.lora)
    assert facts['parameters']['learning'] == adapters + count_new(NAME, 3)
    assert facts['data']['train_images'] == 12
