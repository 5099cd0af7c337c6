"""Tables of known results, exactly."""

import csv
import json
from pathlib import Path

import pytest

from experiments.grids import Cell, Grid
from experiments.intervals import Difference
from experiments.results import Result
from experiments.tables import entries_of, write_table
from experiments.worker import USAGE
from training.config import Config

TOP1 = {'fine-tuning': (50.0, 52.0, 54.0), 'norm': (51.0, 51.0, 54.0), 'wa64': (53.0, 56.0, 59.0)}


def make_cells(output: Path) -> Grid:
    cells = [
        Cell(
            row,
            'All',
            Config(output=str(output), experiment=f'{row}_seed{seed}', seed=seed, epochs=2),
            published={'fine-tuning': 55.93, 'wa64': 58.95}.get(row),
        )
        for row in TOP1
        for seed in range(3)
    ]
    return Grid('A table', tuple(cells), notes=('A note',))


def results_of(grid: Grid) -> dict[str, Result]:
    return {
        cell.name: Result(TOP1[cell.row][cell.seed], 1.0, 2_000_000, 10.0 * cell.seed, 10**9 + cell.seed)
        for cell in grid.cells
    }


def write_runs(grid: Grid) -> None:
    for cell in grid.cells:
        folder = Path(cell.config.output) / cell.name
        folder.mkdir(parents=True)
        row = f'2,{TOP1[cell.row][cell.seed]},1.0,{10.0 * cell.seed}'
        (folder / 'metrics.csv').write_text(f'epoch,val_top1,val_loss,elapsed_s\n1,,,1.0\n{row}\n')
        (folder / 'run.json').write_text(json.dumps({'parameters': {'learning': 2_000_000, 'all': 3_000_000}}))
        (folder / USAGE).write_text(json.dumps({'peak_memory_bytes': 10**9 + cell.seed}))


def test_entries_have_mean_spread_and_paired_differences(tmp_path: Path) -> None:
    grid = make_cells(tmp_path)
    tuned, _, wide = entries_of(grid, results_of(grid))
    assert (tuned.mean, tuned.spread, wide.mean, wide.spread) == (52.0, 2.0, 56.0, 3.0)
    # Differences 3, 4, 5: mean 4, standard deviation 1, and Student's 4.303 / sqrt(3).
    assert wide.over['fine-tuning'] == Difference(4.0, pytest.approx(4.303 / 3**0.5))
    assert (wide.seconds, wide.peak_memory_bytes) == (10.0, 10**9 + 2)
    assert 'fine-tuning' not in tuned.over


def test_only_finished_cells_count(tmp_path: Path) -> None:
    grid = make_cells(tmp_path)
    results = results_of(grid)
    del results['wa64_seed2'], results['norm_seed0'], results['norm_seed1'], results['norm_seed2']
    tuned, wide = entries_of(grid, results)
    assert (wide.top1, list(wide.over)) == ({0: 53.0, 1: 56.0}, ['fine-tuning'])


def test_the_page_is_exact(tmp_path: Path) -> None:
    grid = make_cells(tmp_path)
    write_runs(grid)
    page = write_table(tmp_path, grid, ['How it was made.'], {'other': 'no weights'})
    assert (tmp_path / 'table.md').read_text() == page
    assert '| wa64 | 56.00 ± 3.00 (58.95) |' in page
    row = '| wa64 | 56.00 ± 3.00 | 58.95 | -2.95 | **+4.00 ± 2.48** | +4.00 ± 4.30 | +3.02 | 3 | 2.000 M | 10 |'
    assert row in page
    assert '- other: no weights' in page
    assert '9 of 9 cells are finished' in page


def test_another_network_is_not_measured_against_the_papers(tmp_path: Path) -> None:
    grid = make_cells(tmp_path)
    write_runs(grid)
    page = write_table(tmp_path, Grid(grid.title, grid.cells, is_comparable=False), [], {})
    assert '| wa64 | 56.00 ± 3.00 | 58.95 | **+4.00' in page


def test_csv_has_every_cell_with_its_command(tmp_path: Path) -> None:
    grid = make_cells(tmp_path)
    write_runs(grid)
    write_table(tmp_path, grid, [], {})
    with open(tmp_path / 'table.csv', newline='') as file:
        rows = list(csv.DictReader(file))
    assert [(row['row'], row['seed'], float(row['top1'])) for row in rows][-1] == ('wa64', '2', 59.0)
    assert rows[-1]['command'] in (tmp_path / 'commands.sh').read_text().splitlines()
    assert json.loads((tmp_path / 'table.json').read_text())['entries'][-1]['mean'] == 56.0


def test_a_run_that_stopped_early_is_not_finished(tmp_path: Path) -> None:
    grid = make_cells(tmp_path)
    write_runs(grid)
    (tmp_path / 'wa64_seed0' / 'metrics.csv').write_text('epoch,val_top1,val_loss,elapsed_s\n1,53.0,1.0,1.0\n')
    assert '8 of 9 cells are finished' in write_table(tmp_path, grid, [], {})
