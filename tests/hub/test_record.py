from pathlib import Path
from typing import Any

import pytest

from hub.record import Record, without_folders
from training.run_folder import RunFolder

HISTORY: list[dict[str, Any]] = [
    {'epoch': 1.0, 'val_top1': 50.0, 'val_top5': None, 'val_loss': 1.0},
    {'epoch': 2.0, 'val_top1': 70.0, 'val_top5': None, 'val_loss': float('inf')},
    {'epoch': 3.0, 'val_top1': 60.0, 'val_top5': None, 'val_loss': 0.5},
    {'epoch': 4.0, 'val_top1': None, 'val_top5': None, 'val_loss': None},
]


def record(folder: Path, weights: str = 'best', epochs: int = 3, facts: dict[str, Any] | None = None) -> Record:
    facts = {'config': {}, 'data': {'val_images': 9}, **(facts or {})}
    return Record(RunFolder(folder), folder / weights, facts, HISTORY[:epochs])


@pytest.mark.parametrize(('weights', 'epoch'), [('best', 2), ('last', 3)])
def test_metrics_are_those_of_the_weights(tmp_path: Path, weights: str, epoch: int) -> None:
    metrics = record(tmp_path, weights).metrics()
    assert metrics is not None
    assert (metrics['epoch'], metrics['top1']) == (epoch, HISTORY[epoch - 1]['val_top1'])


def test_weights_of_an_epoch_that_was_not_evaluated_have_no_metrics(tmp_path: Path) -> None:
    assert record(tmp_path, 'last', epochs=4).metrics() is None


def test_what_is_not_finite_was_not_measured(tmp_path: Path) -> None:
    metrics = record(tmp_path).metrics()
    assert metrics is not None
    assert metrics['loss'] is None


def test_multi_label_epochs_are_compared_by_their_map(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {'epoch': 1.0, 'val_map': 9.0, 'val_loss': 1.0},
        {'epoch': 2.0, 'val_map': 8.0, 'val_loss': 0.9},
    ]
    facts = {'config': {}, 'data': {'val_images': 9}}
    metrics = Record(RunFolder(tmp_path), tmp_path / 'best', facts, rows).metrics()
    assert metrics == {'map': 9.0, 'loss': 1.0, 'images': 9, 'epoch': 1}


def test_unreadable_images_do_not_count(tmp_path: Path) -> None:
    (tmp_path / 'bad_images.txt').write_text('train/red/1.png\nval/red/1.png\nval/red/2.png\n')
    assert record(tmp_path).val_images == 7


@pytest.mark.parametrize(
    ('value', 'expected'),
    [
        ('/home/me/data/SUN397/', 'SUN397'),
        ('--data-dir=/home/me/data', '--data-dir=data'),
        ('~/data', 'data'),
        (r'C:\Users\me\data', 'data'),
        ('local-dir:/home/me/best', 'local-dir:best'),
        ('hfds//home/me/set', 'hfds/set'),
        ('/home/me:and you/a,b/set', 'set'),
        ('hfds/org/name', 'hfds/org/name'),
        ('hf-hub:org/name', 'hf-hub:org/name'),
        ('data/flowers', 'data/flowers'),
        ('fc7-new@5,all@10', 'fc7-new@5,all@10'),
    ],
)
def test_folders_are_left_out(value: str, expected: str) -> None:
    assert without_folders(value) == expected
