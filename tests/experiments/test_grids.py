"""The cells of every table: which there are, and what they run."""

import dataclasses
from collections import Counter
from typing import Any

import pytest

from experiments import chains, grids
from experiments.grids import Grid
from experiments.published import TABLE1, published
from experiments.recipes import make_recipe
from experiments.targets import small_target
from reproduce import GRIDS
from tests.experiments.settings import ALEXNET, setting_of
from training.config import Config

TABLES = (*GRIDS, 'table8')
# What a table says it does not run.
NOT_RUN = {'table4': {'joint training'}}


def make_grid(table: str, **changes: Any) -> Grid:
    setting = setting_of(table, **changes)
    return GRIDS[table](setting) if table in GRIDS else chains.table8(setting, {'vgg16': ALEXNET}, 'places.pth')


@pytest.mark.parametrize('table', TABLES)
def test_every_published_figure_has_a_cell(table: str) -> None:
    figures = {row: cells for row, cells in published(table, 'alexnet').items() if row not in NOT_RUN.get(table, set())}
    wanted = Counter(figure for cells in figures.values() for figure in cells.values())
    assert Counter(cell.published for cell in make_grid(table).cells if cell.published is not None) == wanted


def test_figures_of_vgg16_stand_beside_vgg16() -> None:
    base = dataclasses.replace(ALEXNET, name='vgg16')
    grid = make_grid('table1', bases={'sun397': base}, figures=published('table1', 'vgg16'))
    [cell] = [cell for cell in grid.cells if (cell.row, cell.column) == ('wa2048', 'All')]
    assert (cell.published, cell.config.model) == (TABLE1['vgg16']['WA']['All'], 'vgg16_wa2048')


@pytest.mark.parametrize('table', [table for table in TABLES if table != 'labels'])  # whose rows tell regimes too
def test_controls_are_always_there(table: str) -> None:
    grid = make_grid(table)
    rows = {*grid.rows}
    assert {'fine-tuning', 'norm', 'skip', 'hidden layer, parameters as wa', 'mwa1024'} <= rows
    assert {*grid.controls} <= rows


@pytest.mark.parametrize('table', TABLES)
def test_every_cell_has_a_run_folder_of_its_own_and_a_valid_configuration(table: str) -> None:
    cells = make_grid(table, seeds=2).cells
    assert len({cell.name for cell in cells}) == len(cells)
    for cell in cells:
        cell.config.resolved().validate()


@pytest.mark.parametrize('table', TABLES)
def test_a_cell_comes_after_the_one_whose_weights_it_begins_with(table: str) -> None:
    cells = make_grid(table, seeds=2, is_small=table in ('table4', 'table6', 'table7')).cells
    for place, cell in enumerate(cells):
        earlier = {other.name: other for other in cells[:place]}
        if cell.start:
            start = earlier[cell.start]
            folder = f'{start.config.output}/{start.name}'
            assert cell.config.model == (folder if cell.config.eval_only else f'local-dir:{folder}/best')
            assert cell.seed == start.seed
        else:
            assert ':' not in cell.config.model


def test_nothing_is_chosen_on_the_validation_images() -> None:
    for table in TABLES:
        trained = [cell.config for cell in make_grid(table).cells if not cell.config.eval_only]
        assert all(config.eval_every == config.epochs for config in trained)


def test_table3_has_copied_units_without_scaling() -> None:
    cells = {cell.name: cell.config for cell in make_grid('table3').cells}
    copied = cells['wa-off-copy_fc6-new_seed0']
    assert (copied.model, copied.scale_init, copied.new_init) == ('alexnet_wa2048', 'off', 'copy')
    assert copied.regime == 'fc6-new'


def test_table4_trains_what_was_added_on_the_source_again() -> None:
    cells = {cell.name: cell for cell in make_grid('table4').cells}
    moved, again = cells['wa_transfer_seed0'].config, cells['wa_again_seed0'].config
    assert (moved.dataset, moved.model, moved.grow, moved.regime) == ('sun397', 'alexnet', ('wa2048',), 'all')
    assert (again.dataset, again.grow, again.regime) == ('ImageNet', (), 'new')
    assert cells['source_again_seed0'].config.model == 'alexnet'


def test_table4_measures_the_sources_own_head() -> None:
    cells = {cell.name: cell for cell in make_grid('table4').cells}
    measured = {cell.start: cell.config for cell in cells.values() if cell.config.eval_only}
    keeping = {name for name, cell in cells.items() if cell.config.keep_heads}
    assert {*measured} == {'', *keeping}
    assert 'ft_transfer_seed0' not in keeping and 'lwf_transfer_seed0' in keeping
    assert (measured['lwf_transfer_seed0'].dataset, measured['lwf_transfer_seed0'].head) == ('ImageNet', 'tv_in1k')
    assert (measured[''].model, measured[''].head) == ('alexnet', None)


def test_statistics_are_frozen_only_where_there_are_some() -> None:
    assert [*chains.holding_methods(ALEXNET)] == ['lwf', 'grown-lwf']
    methods = chains.holding_methods(dataclasses.replace(ALEXNET, has_batch_norm=True))
    assert [*methods] == ['lwf', 'ft-still', 'still', 'grown-still', 'still-lwf', 'grown-still-lwf']


def test_the_small_source_task_is_learnt_before_the_network_grows() -> None:
    cells = {cell.name: cell for cell in make_grid('table6', is_small=True).cells}
    assert (cells['source_seed0'].config.model, cells['wa_seed0'].start) == ('alexnet', 'source_seed0')
    assert (cells['source_seed0'].config.opt, cells['wa_seed0'].config.opt) == ('adamw', 'momentum')
    assert not [name for name in cells if name.startswith('ft-slow')]  # left out of small tables
    notes = [make_grid('table6', is_small=is_small).notes[-1] for is_small in (True, False)]
    assert [note.startswith('the source network learns as') for note in notes] == [True, False]
    assert cells['wa_seed0'].config.grow == ('wa2048',)
    assert cells['wide_seed0'].config.epochs == 40  # as long as both stages of the others


def test_wide_networks_from_scratch_begin_with_random_numbers() -> None:
    recipe = make_recipe(False, 'output', 90, {})
    for table in ('table6', 'table7'):
        wide = next(cell for cell in make_grid(table, recipe=recipe).cells if cell.name == 'wide_seed0')
        assert (wide.config.pretrained, wide.config.epochs) == (False, 90)


def test_table8_grows_at_each_step() -> None:
    cells = {cell.name: cell.config for cell in make_grid('table8').cells}
    assert cells['wa_first_seed0'].model == 'alexnet_wa2048'
    assert cells['wa_second_seed0'].grow == ('wa2048',)
    assert cells['ft_second_seed0'].grow == cells['norm_second_seed0'].grow == ()
    assert cells['wa_other-weights_seed0'].pretrained_path == 'places.pth'
    assert [cells[f'ft-adamw_{stage}_seed0'].opt for stage in ('direct', 'first', 'second')] == ['adamw'] * 3
    assert cells['hidden_second_seed0'].scale_init == Config().scale_init  # there is nothing new to scale


def test_statistics_are_frozen_beside_adamw_only_where_there_are_some() -> None:
    for has_batch_norm in (False, True):
        base = dataclasses.replace(ALEXNET, has_batch_norm=has_batch_norm)
        cells = [cell for cell in make_grid('table1', bases={'sun397': base}).cells if cell.row == 'fine-tuning, AdamW']
        assert [cell.column for cell in cells] == ['All']
        assert (cells[0].config.opt, cells[0].config.freeze_bn_stats) == ('adamw', has_batch_norm)
        assert cells[0].config.lr == pytest.approx(0.0003)


def test_weights_of_a_chain_are_not_overlaid_by_the_base_file() -> None:
    recipe = make_recipe(False, 'output', None, {'pretrained_path': 'base.pth'})
    cells = {cell.name: cell.config for cell in make_grid('table8', recipe=recipe).cells}
    assert cells['wa_first_seed0'].pretrained_path == 'base.pth'
    assert cells['wa_second_seed0'].pretrained_path is None


def test_the_small_recipe_keeps_features_only_where_layers_are_frozen(tmp_path: Any) -> None:
    target = small_target('small-digits', tmp_path)
    recipe = make_recipe(True, 'output', None, {})
    assert recipe.at(target, 'new', 0, 'a').cache_features == recipe.views
    assert recipe.at(target, 'all', 0, 'b').cache_features is None
    assert recipe.at(target, 'all', 0, 'b').hflip == 0.0


def test_methods_and_regimes_can_be_chosen() -> None:
    grid = make_grid('table1', methods=('wa', 'ft'), regimes=('All', 'New'))
    assert [cell.name for cell in grid.cells] == ['ft_new_seed0', 'wa_new_seed0', 'ft_all_seed0', 'wa_all_seed0']


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'methods': ('wb',)}, '--methods wb not known: this table has ft, ft-slow, ft-adamw, norm'),
        ({'regimes': ('fc7-new',)}, '--regimes fc7-new not known: it is among New, FC7-New, FC6-New, All'),
    ],
)
def test_unknown_choices_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_grid('table1', **changes)


def test_table4_needs_source_images() -> None:
    with pytest.raises(ValueError, match='--source-dir IMAGENET'):
        make_grid('table4', source=None)


def test_sizes_are_the_papers_on_alexnet() -> None:
    assert list(grids.sizes_of(ALEXNET))[len(grids.CONTROL_NAMES) : -1] == [
        *('da1024', 'da2048', 'da4096', 'da6144', 'wa1024', 'wa2048', 'dwa1024', 'dwa2048'),
        *('wwa1024', 'wwa2048', 'wwa4096'),
    ]
    assert all(method.growth == name for name, method in grids.sizes_of(ALEXNET).items() if name[-1].isdigit())
