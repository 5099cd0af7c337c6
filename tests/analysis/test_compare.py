"""Runs side by side."""

import csv
import shutil
from pathlib import Path

import pytest

from analysis.compare import compare, contested, in_common, per_class, read_answers, sign_test, unique_names
from tests.training.test_report import HOSTILE, Page

COLUMNS = 'file,target,predicted,probability\n'


def copy(run: Path, folder: Path, predictions: str) -> Path:
    """A run that answers otherwise."""
    shutil.copytree(run, folder)
    (folder / 'predictions.csv').write_text(COLUMNS + predictions)
    return folder


@pytest.fixture
def pair(grown_run: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Two runs that differ about two of the three images that both have answered about."""
    first = copy(grown_run, tmp_path / 'a', 'red/0.png,red,red,0.9\nred/1.png,red,blue,0.6\nblue/0.png,blue,red,0.7\n')
    other = copy(
        grown_run,
        tmp_path / 'b',
        'red/1.png,red,red,0.8\nred/0.png,red,green,0.5\nblue/0.png,blue,green,0.7\nblue/1.png,blue,blue,1.0\n',
    )
    return first, other


def test_images_won_and_lost(pair: tuple[Path, Path]) -> None:
    first, other = in_common([read_answers(str(run)) for run in pair])
    assert contested(first, other) == (['red/1.png'], ['red/0.png'])
    assert per_class([first, other]) == [('blue', 1, 0.0, 0.0), ('red', 2, 50.0, 50.0)]


def test_the_page_shows_the_images(pair: tuple[Path, Path]) -> None:
    path = compare([str(run) for run in pair])
    assert path == pair[0] / 'analysis' / 'compare-with-b' / 'index.html'
    page = Page(path)
    assert page.count('img') == 2
    assert 'Won: 1 images that only b tells right.' in page.text
    with open(path.with_name('images.csv')) as file:
        rows = {row['file']: (row['a'], row['b']) for row in csv.DictReader(file)}
    assert rows == {'red/0.png': ('red', 'green'), 'red/1.png': ('blue', 'red'), 'blue/0.png': ('red', 'green')}


def test_names_cannot_break_the_page(grown_run: Path, tmp_path: Path) -> None:
    name = HOSTILE.encode('utf-8', 'backslashreplace').decode().replace('"', "'").replace('\n', '')
    runs = [
        copy(grown_run, tmp_path / folder, f'red/0.png,red,{said},0.9\nblue/0.png,blue,blue,1\n')
        for folder, said in (('a', 'red'), ('b', f'"{name}"'))
    ]
    assert Page(compare([str(run) for run in runs])).count('script') == 0


@pytest.mark.parametrize(
    ('predictions', 'message'),
    [
        ('x/1.png,red,red,1\n', 'no validation image in common'),
        ('red/0.png,blue,red,1\n', 'of class blue, a that it is of red'),
    ],
)
def test_runs_on_other_data_are_refused(
    pair: tuple[Path, Path], tmp_path: Path, predictions: str, message: str
) -> None:
    other = copy(pair[0], tmp_path / 'c', predictions)
    with pytest.raises(ValueError, match=message):
        compare([str(pair[0]), str(other)])


def test_what_cannot_be_compared_is_told(pair: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match='at least two runs, given 1'):
        compare([str(pair[0])])
    with pytest.raises(ValueError, match='not a run folder'):
        compare([str(pair[0]), str(tmp_path)])
    (pair[1] / 'predictions.csv').unlink()
    with pytest.raises(ValueError, match='--eval-only --model'):
        compare([str(run) for run in pair])


def test_a_data_set_that_all_name_is_left_out(pair: tuple[Path, Path]) -> None:
    shutil.move(pair[0], pair[0].with_name('plain-digits'))
    shutil.move(pair[1], pair[1].with_name('grown-digits'))
    answers = [read_answers(str(pair[0].with_name(name))) for name in ('plain-digits', 'grown-digits')]
    assert unique_names(answers) == ['plain', 'grown']
    assert len({*unique_names([answers[0], answers[0]])}) == 1  # of one folder


@pytest.mark.parametrize(('won', 'lost', 'chance'), [(0, 0, 1.0), (3, 3, 1.0), (5, 0, 2 / 32), (1, 9, 22 / 1024)])
def test_the_sign_test_is_exact(won: int, lost: int, chance: float) -> None:
    assert sign_test(won, lost) == sign_test(lost, won) == chance
