"""What a network still knows of its source task."""

import csv
from pathlib import Path

import pytest
import torch

from analysis.retain import find_retained, find_task, retain, tuned_base
from analysis.subject import Reading, open_subject, rebuild_base
from tests.analysis.conftest import Train
from tests.training.test_report import Page

THREAD = Reading(threads=1, batch_size=8)


@pytest.fixture
def first_run(train_run: Train) -> Path:
    """A source task that is at hand: three colours, learnt by a plain network."""
    return train_run(model='test_efficientnet', epochs=4, lr=0.05)


@pytest.fixture
def second_run(train_run: Train, first_run: Path, labelled_target: Path) -> Path:
    """Grown from it, on another task; the last weights, since those of before it grew may be the best."""
    model = f'local-dir:{first_run}/best'
    run = train_run(model=model, pretrained=True, grow=('wa16@1',), data_dir=str(labelled_target))
    return run / 'last'


@pytest.fixture(scope='session')
def labelled_target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of the same pictures under other names."""
    from tests.conftest import write_colours

    root = write_colours(tmp_path_factory.mktemp('target') / 'warmth')
    for split in ('train', 'val'):
        (root / split / 'blue').rename(root / split / 'cold')
        (root / split / 'red').rename(root / split / 'warm')
        for path in (root / split / 'green').iterdir():
            path.unlink()
        (root / split / 'green').rmdir()
    return root


def source_of(run: Path) -> str:
    return open_subject(str(run), THREAD).config.data_dir or ''


def test_the_base_keeps_its_head_and_gets_the_tuned_layers(first_run: Path, second_run: Path) -> None:
    subject = open_subject(str(second_run), THREAD)
    before = open_subject(str(first_run), THREAD).network.state_dict()
    after, tuned = tuned_base(rebuild_base(subject), subject).state_dict(), subject.network.state_dict()
    assert after.keys() == before.keys()
    for name in after:
        expected = before[name] if name.startswith('classifier.') else tuned[name]
        torch.testing.assert_close(after[name], expected, rtol=0, atol=0)


def test_the_base_reaches_what_its_own_run_measured(first_run: Path, second_run: Path) -> None:
    subject = open_subject(str(second_run), THREAD)
    base = rebuild_base(subject)
    task = find_task(subject, base, source_of(first_run), None, refit=False, img_size=None)
    first, tuned, whole = find_retained(subject, base, task)
    measured = open_subject(str(first_run), THREAD).run
    assert measured is not None
    assert first.old_head == pytest.approx(max(row['val_top1'] or 0 for row in measured.read_metrics()))
    assert (first.fitted_head, whole.old_head) == (None, None)
    assert whole.units == tuned.units + 16


def test_the_page_says_what_the_table_says(first_run: Path, second_run: Path) -> None:
    path = retain(str(second_run), source_of(first_run), reading=THREAD)
    page = Page(path)
    with open(path.with_name('retained.csv')) as file:
        rows = list(csv.DictReader(file))
    assert [row['reads'] for row in rows] == ['base', 'old units, fine-tuned', 'all units']
    for row in rows:
        assert f'{float(row["top1_fitted_head"]):.2f} %' in page.text


def test_random_numbers_have_no_source_task(grown_run: Path) -> None:
    with pytest.raises(ValueError, match='began with random numbers'):
        retain(str(grown_run), 'anywhere', reading=THREAD)


@pytest.mark.parametrize('given', [(None, None), ('folder', 'digits')])
def test_the_source_task_must_be_named_once(second_run: Path, given: tuple[str | None, str | None]) -> None:
    with pytest.raises(ValueError, match='--source-dir FOLDER or --source-dataset NAME, one of them'):
        retain(str(second_run), *given, reading=THREAD)


def test_classes_that_the_base_does_not_know_are_refused(second_run: Path, labelled_target: Path) -> None:
    with pytest.raises(ValueError, match='are not among the 3'):
        retain(str(second_run), str(labelled_target), reading=THREAD)
