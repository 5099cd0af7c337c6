"""reproduce.py from outside: what it refuses, and what it leaves alone."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

import reproduce
from reproduce import Request


@pytest.fixture
def small(tmp_path: Path) -> Request:
    """Ask for a small table of a tiny network."""
    return Request(
        'table1',
        small=True,
        model='test_efficientnet',
        output=str(tmp_path / 'tables'),
        sets=str(tmp_path / 'sets'),
    )


def test_a_dry_run_lists_every_cell_and_leaves_nothing(
    small: Request, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert reproduce.main(dataclasses.replace(small, dry_run=True, seeds=2)) == 0
    told = capsys.readouterr().out
    assert sum(line.split()[0].endswith(('seed0', 'seed1')) for line in told.splitlines()) == 2 * (4 * 9 + 1)
    assert 'Methods and regimes on small-digits: 74 cells, 0 of them finished; about' in told
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'table': 'table5', 'regimes': ('New',)}, "--regimes \\('New',\\) has no meaning for table5"),
        ({'source_dir': 'photographs'}, '--source-dir photographs has no meaning for table1'),
        ({'other_weights': 'places.pth'}, '--other-weights places.pth has no meaning for table1'),
        ({'seeds': 11}, '--seeds 11 is out of range: it must be 1 to 10'),
        ({'processes': 0}, '--processes 0 is out of range'),
        ({'data_dirs': ('scenes', 'cells')}, 'table1 takes 1 of --data-dirs: given 2'),
        ({'table': 'table8', 'data_dirs': ('scenes',)}, 'table8 takes 2 of --data-dirs: given 1'),
        ({'table': 'table5', 'small': False}, 'table5 takes one or more of --data-dirs: given 0'),
        ({'lr': -1.0}, '--lr -1.0 is out of range'),
        ({'clip_grad': -1.0}, '--clip-grad -1.0 is out of range'),
        ({'model': 'vgg11', 'freeze_bn_stats': True}, '--freeze-bn-stats has no meaning for vgg11'),
        ({'table': 'table4', 'source_dir': 'small-digits'}, 'but these are called small-digits, small-digits'),
    ],
)
def test_what_makes_no_sense_is_refused(small: Request, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        reproduce.main(dataclasses.replace(small, **changes))
    assert not Path(small.output).exists()


def test_a_table_by_another_recipe_says_so_and_keeps_fine_tunings_own(small: Request) -> None:
    wanted = dict(opt='adamw', lr=0.001, weight_decay=0.1, clip_grad=2.0, freeze_bn_stats=True)
    request = dataclasses.replace(small, methods=('ft-slow', 'ft-adamw', 'wa'), regimes=('All',), seeds=1, **wanted)
    setting, grid = reproduce.make_grid(request)
    slow, adamw, wide = (dataclasses.asdict(cell.config) for cell in grid.cells)
    assert {name: wide[name] for name in wanted} == wanted
    assert {name: slow[name] for name in wanted} == wanted | {'lr': pytest.approx(0.0003)}
    assert (adamw['lr'], adamw['weight_decay']) == (0.0003, 0.05)
    said = 'adamw, weight decay 0.1, rate 0.001 and 10 times that for what is new, cosine, gradients clipped at 2, '
    facts = reproduce.describe_table(request, setting)
    assert said in facts[1]
    assert facts[2].endswith('weight decay 0.05, BatchNorm statistics frozen.')


def test_cells_of_other_options_are_refused_by_name(small: Request) -> None:
    _, grid = reproduce.make_grid(small)
    [cell] = [cell for cell in grid.cells if cell.name == 'wa_all_seed1']
    folder = small.folder / cell.name
    folder.mkdir(parents=True)
    saved = dataclasses.asdict(dataclasses.replace(cell.config, epochs=5, threads=7))
    (folder / 'run.json').write_text(json.dumps({'config': saved}))
    message = r'1 cells in .* such as wa_all_seed1 \(--epochs was 5, is 20\): give the old ones'
    with pytest.raises(ValueError, match=message):
        reproduce.main(small)


def test_errors_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert reproduce.cli(['table1', '--data-dir', '/nowhere']) == reproduce.EXIT_USER_ERROR
    error = capsys.readouterr().err
    assert error.startswith('reproduce.py: error: ') and error.count('\n') == 1
