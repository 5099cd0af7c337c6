"""Whole runs of train.py on images with any number of labels."""

import csv
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
from PIL import Image

import train
from tests.kill import Run
from tests.test_train import assert_same_weights, flags, metrics, stop_after
from training.config import Config
from training.image_cache import ImageCache
from training.interruption import InterruptedRun
from training.sources import Source, load_sources


@pytest.fixture
def config(config: Config, labelled_folder: Path) -> Config:
    """Configure a run of two epochs of six updates on images of two labels."""
    return dataclasses.replace(config, data_dir=str(labelled_folder), multi_label=True)


@pytest.fixture
def gentle(config: Config) -> Config:
    """The same without batch norm and dropout, at a rate at which it learns, but not at once."""
    return dataclasses.replace(config, model='test_efficientnet_gn', drop=None, lr=0.0003, new_lr_mult=1.0)


def numbers(run: str | Path) -> list[list[float]]:
    return [[float(value or 0) for value in row.values()] for row in metrics(run)]


def average_precision(run: str, name: str) -> float:
    """What sklearn says of a class by predictions.csv, in percent."""
    score = pytest.importorskip('sklearn.metrics').average_precision_score
    with open(Path(run) / 'predictions.csv', newline='') as file:
        rows = list(csv.DictReader(file))
    return 100 * score(
        [name in row['labels'].split(',') for row in rows], [float(row[f'probability {name}']) for row in rows]
    )


def test_it_learns_and_says_so(gentle: Config, capsys: pytest.CaptureFixture[str]) -> None:
    assert train.cli([*flags(dataclasses.replace(gentle, epochs=8)), '--json']) == 0
    printed = capsys.readouterr()
    summary = json.loads(printed.out)
    assert summary.keys() == {'map', 'loss', 'epoch', 'seconds', 'run', 'report'}
    rows = metrics(summary['run'])
    assert list(rows[0])[:4] == ['epoch', 'train_loss', 'val_loss', 'val_map']
    assert float(rows[0]['val_map']) < 90
    assert summary['map'] > 99
    assert float(rows[-1]['train_loss']) < 0.2 * float(rows[0]['train_loss'])
    best = max(rows, key=lambda row: float(row['val_map']))
    assert (int(best['epoch']), float(best['val_map'])) == (summary['epoch'], summary['map'])
    last = rows[-1]
    assert f'validation loss {float(last["val_loss"]):.4f}, mAP {float(last["val_map"]):.2f} %\n' in printed.err
    assert 'top-1' not in printed.err


def test_the_run_folder_speaks_of_labels(gentle: Config) -> None:
    summary = train.main(gentle)
    run = Path(summary['run'])
    written = json.loads((run / 'best' / 'config.json').read_text())
    assert written['label_names'] == ['blue', 'green']
    assert written['problem_type'] == 'multi_label_classification'
    network: Any = timm.create_model(f'local-dir:{run / "best"}', pretrained=True)
    assert network.num_classes == 2
    page = (run / 'report.html').read_text()
    assert 'mAP' in page
    assert 'op-1' not in page.replace('labelled', '')
    measured = [average_precision(str(run), name) for name in ('blue', 'green')]
    assert np.mean(measured) == pytest.approx(summary['map'], abs=1)  # its probabilities are rounded
    with Image.open(run / 'curves.png') as picture:
        assert picture.size == (1200, 480)
    assert train.describe_result(summary).startswith(f'best mAP {summary["map"]:.2f} % (epoch {summary["epoch"]})')


def test_transformers_knows_of_several_labels(gentle: Config) -> None:
    configuration = pytest.importorskip('transformers.models.timm_wrapper.configuration_timm_wrapper')
    run = train.main(dataclasses.replace(gentle, epochs=1, report=False))['run']
    found = configuration.TimmWrapperConfig.from_pretrained(f'{run}/best')
    assert (found.problem_type, found.id2label) == ('multi_label_classification', {0: 'blue', 1: 'green'})


@pytest.mark.parametrize(
    ('options', 'updates'),
    [
        ({}, 2),
        ({'mixup': 0.5, 'cutmix': 1.0, 'smoothing': 0.1, 'model_ema': True, 'model_ema_decay': 0.9}, 9),
    ],
)
def test_a_stopped_run_goes_on_bit_for_bit(
    config: Config, options: dict[str, Any], updates: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dataclasses.replace(config, **options, report=False)
    unbroken = train.main(dataclasses.replace(config, experiment='unbroken'))
    with monkeypatch.context() as patch:
        stop_after(updates, patch)
        with pytest.raises(InterruptedRun):
            train.main(config)
    resumed = train.main(dataclasses.replace(config, resume='auto'))
    assert_same_weights(resumed['run'], unbroken['run'])
    assert metrics(resumed['run']) == metrics(unbroken['run'])


def test_two_processes_equal_one(gentle: Config, labelled_folder: Path) -> None:
    """With 11 validation images, of which the last of each process's share is filled up by repeating others."""
    path = labelled_folder / 'val' / 'labels.csv'
    path.write_text('\n'.join(line for line in path.read_text().splitlines() if not line.startswith('7.png')))
    (labelled_folder / 'val' / '7.png').unlink()
    one = train.main(dataclasses.replace(gentle, experiment='one'))
    half = dataclasses.replace(gentle, batch_size=2)
    two = Run('two', Path(gentle.output), flags(half), 2)
    assert two.finish() is not None
    for ours, theirs in zip(numbers(two.folder()), numbers(one['run']), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)
    tables = [(Path(run) / 'predictions.csv').read_text().splitlines() for run in (two.folder(), one['run'])]
    assert len(tables[0]) == len(tables[1]) == 12
    assert [line.partition(',')[0] for line in tables[0]] == [line.partition(',')[0] for line in tables[1]]


def test_cached_features_train_the_same_network_and_go_on(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    config = dataclasses.replace(config, regime='new', model='tf_efficientnet_lite0_mwa32', block_loss=0.5)
    plain = train.main(dataclasses.replace(config, experiment='plain'))
    cached = dataclasses.replace(config, cache_features=2)
    with monkeypatch.context() as patch:
        stop_after(9, patch)
        with pytest.raises(InterruptedRun):
            train.main(cached)
    run = train.main(dataclasses.replace(cached, resume='auto'))['run']
    assert_same_weights(run, plain['run'])
    for ours, theirs in zip(numbers(run), numbers(plain['run']), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-6)
    assert 'conv_head_1 <small>16 new units' in Path(plain['run'], 'report.html').read_text()


def test_the_image_cache_changes_nothing(config: Config, tmp_path: Path) -> None:
    plain = train.main(dataclasses.replace(config, experiment='plain'))
    cached = train.main(dataclasses.replace(config, cache_images=True, cache_dir=str(tmp_path / 'cache')))
    assert_same_weights(cached['run'], plain['run'])
    assert metrics(cached['run']) == metrics(plain['run'])


@pytest.mark.parametrize('options', [{}, {'mixup': 0.5, 'nonfinite': 'skip'}])
def test_unreadable_images_are_counted_nowhere(
    gentle: Config, labelled_folder: Path, options: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ('train/1.png', 'val/2.png'):
        (labelled_folder / name).write_bytes(b'no image')
    assert train.cli(flags(gentle)) == train.EXIT_USER_ERROR
    assert 'cannot read train/1.png' in capsys.readouterr().err
    summary = train.main(dataclasses.replace(gentle, bad_images='skip', **options))
    assert Path(summary['run'], 'bad_images.txt').read_text() == 'train/1.png\nval/2.png\n'
    result = train.main(Config(model=summary['run'], eval_only=True, bad_images='skip', workers=0, threads=1))
    assert (result['images'], result['unreadable']) == (11, 1)
    assert result['map'] == summary['map']
    assert result['loss'] == pytest.approx(summary['loss'], rel=1e-5)


@pytest.mark.parametrize('batch_size', [1, 5])
def test_a_run_is_measured_without_training(gentle: Config, batch_size: int) -> None:
    trained = train.main(gentle)
    Path(trained['run'], 'report.html').unlink()
    given = Config(model=trained['run'], eval_only=True, batch_size=batch_size, workers=0, threads=1)
    result = train.main(given)
    assert (result['map'], result['images'], result['outputs']) == (trained['map'], 12, 2)
    assert result['loss'] == pytest.approx(trained['loss'], rel=1e-4)
    assert result['report'] == trained['report']
    assert 'mAP' in Path(result['report']).read_text()
    assert train.describe_result(result).startswith(f'mAP {result["map"]:.2f} %, loss ')


def test_labels_are_matched_by_name(gentle: Config, labelled_folder: Path) -> None:
    """With images of the second label only, which is then the first of theirs."""
    run = train.main(dataclasses.replace(gentle, epochs=1))['run']
    expected = average_precision(run, 'green')
    assert expected != pytest.approx(average_precision(run, 'blue'), abs=1)
    path = labelled_folder / 'val' / 'labels.csv'
    path.write_text(path.read_text().replace(',blue', ''))
    result = train.main(Config(model=run, eval_only=True, workers=0, threads=1))
    assert (result['data_classes'], result['outputs'], result['report']) == (1, 2, None)
    assert result['map'] == pytest.approx(expected, abs=0.1)  # its probabilities were rounded


def test_outputs_beyond_the_labels_are_never_true(gentle: Config, labelled_folder: Path) -> None:
    summary = train.main(dataclasses.replace(gentle, num_classes=5))
    result = train.main(Config(model=summary['run'], eval_only=True, workers=0, threads=1))
    assert (result['map'], result['outputs'], result['data_classes']) == (summary['map'], 5, 2)


def test_validation_images_are_carved_out(gentle: Config, labelled_folder: Path) -> None:
    config = dataclasses.replace(gentle, val_split='0.25', epochs=1)
    run = train.main(config)['run']
    facts = json.loads(Path(run, 'run.json').read_text())['data']
    assert (facts['train_images'], facts['val_images']) == (17, 7)  # 2 of 6 without a label, 2 of 6 green, 3 of 12 blue
    assert train.main(Config(model=run, eval_only=True, workers=0, threads=1))['images'] == 7


def test_a_changed_label_is_changed_data(gentle: Config, labelled_folder: Path) -> None:
    train.main(dataclasses.replace(gentle, epochs=1, sched='none'))
    path = labelled_folder / 'train' / 'labels.csv'
    path.write_text(path.read_text().replace('1.png,blue', '1.png,green', 1))
    with pytest.raises(ValueError, match='the images are not those that'):
        train.main(dataclasses.replace(gentle, sched='none', resume='auto'))


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'balanced': True}, '--multi-label: images belong to no single class, so leave out --balanced'),
        ({'labels_per_class': 3}, 'so leave out --labels-per-class'),
        ({'label_share': 0.5}, 'so leave out --label-share'),
        ({'dataset': 'sun397'}, '--multi-label: --dataset sun397 gives each image one class; give --data-dir FOLDER'),
        ({'dataset': 'digits', 'data_dir': None}, '--multi-label: --dataset digits gives each image one class'),
        ({'data_dir': None}, '--multi-label: --dataset digits gives each image one class'),
        ({'dataset': 'hfds/x', 'labels': 'x.csv'}, '--labels x.csv is the list of labels of a folder'),
        ({'multi_label': False, 'labels': 'x.csv'}, 'give --multi-label and --data-dir, or leave it out'),
        ({'labels': 'x.csv'}, 'x.csv is not a file: --multi-label needs in it a line IMAGE,LABEL'),
    ],
)
def test_errors_are_one_line_and_leave_nothing(
    config: Config, options: dict, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train.cli(flags(dataclasses.replace(config, **options))) == train.EXIT_USER_ERROR
    [error] = capsys.readouterr().err.strip().splitlines()
    assert error.startswith('train.py: error: ')
    assert message in error
    assert not Path(config.output).exists()


class TestHuggingFace:
    """Columns that list labels, in data sets of the library datasets."""

    @pytest.fixture
    def hub_folder(self, labelled_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """The images as parquet files, whose labels are class numbers, names, zeros and ones, or one for each image."""
        datasets = pytest.importorskip('datasets')
        monkeypatch.setattr('datasets.config.HF_DATASETS_CACHE', tmp_path / 'datasets')
        names = ['green', 'blue', 'red']
        features = datasets.Features(
            image=datasets.Image(),
            label=datasets.List(datasets.ClassLabel(names=names)),
            tags=datasets.List(datasets.Value('string')),
            flags=datasets.List(datasets.Value('int64')),
            first=datasets.Value('string'),
        )
        for split, stored in (('train', 'train'), ('val', 'validation')):
            source = load_sources(Config(data_dir=str(labelled_folder), multi_label=True))[split]
            rows: dict[str, list[Any]] = {name: [] for name in features}
            for index, target in enumerate(source.targets):
                tags = [source.classes[label] for label in target]
                path = labelled_folder / split / source.name(index)
                rows['image'].append({'bytes': path.read_bytes(), 'path': path.name})
                rows['label'].append([names.index(tag) for tag in tags])
                rows['tags'].append(tags)
                rows['flags'].append([int(name in tags) for name in names])
                rows['first'].append((tags or ['none'])[0])
            path = tmp_path / 'hub' / f'{stored}-00000-of-00001.parquet'
            path.parent.mkdir(exist_ok=True)
            datasets.Dataset.from_dict(rows, features).to_parquet(path)
        return tmp_path / 'hub'

    @pytest.fixture
    def cache(self, tmp_path: Path) -> ImageCache:
        return ImageCache(tmp_path / 'cache', 36, 'bicubic', say=lambda text: None)

    @pytest.fixture
    def options(self, hub_folder: Path, tmp_path: Path) -> dict[str, Any]:
        return {'data_dir': str(tmp_path / 'datasets'), 'val_split': 'validation', 'multi_label': True}

    @staticmethod
    def shown(source: Source) -> list[list[str]]:
        return [sorted(source.classes[label] for label in target) for target in source.targets]

    @pytest.mark.parametrize('kind', ['hfds', 'hfids'])
    @pytest.mark.parametrize(('key', 'classes'), [(None, ['green', 'blue', 'red']), ('tags', ['blue', 'green'])])
    def test_lists_of_labels(
        self, hub_folder: Path, options: dict, cache: ImageCache, kind: str, key: str | None, classes: list[str]
    ) -> None:
        config = Config(dataset=f'{kind}/{hub_folder}', target_key=key, **options)
        for _ in range(2):  # the second time the stream comes from the cache
            sources = load_sources(config, cache)
        assert sources['train'].classes == sources['val'].classes == classes
        for source in sources.values():
            for index, labels in enumerate(self.shown(source)):
                pixel = np.asarray(source.read(index)).mean((0, 1)) > 120
                assert labels == [
                    name for name, is_bright in zip(('blue', 'green'), pixel[[2, 1]], strict=True) if is_bright
                ]

    @pytest.mark.parametrize('kind', ['hfds', 'hfids'])
    @pytest.mark.parametrize(
        ('key', 'multi_label', 'message'),
        [
            ('flags', True, r'seems to tell 0 or 1 for every class, as in \['),
            (
                'first',
                True,
                'has no list of labels an image, of numbers or names, but .*: leave out --multi-label',
            ),
            ('label', False, r'has not one label an image but \[.*\]: give --multi-label|with --multi-label a list'),
        ],
    )
    def test_columns_of_another_kind(
        self, hub_folder: Path, options: dict, cache: ImageCache, kind: str, key: str, multi_label: bool, message: str
    ) -> None:
        options = {**options, 'multi_label': multi_label}
        with pytest.raises(ValueError, match=message):
            load_sources(Config(dataset=f'{kind}/{hub_folder}', target_key=key, **options), cache)

    @pytest.mark.parametrize('kind', ['hfds', 'hfids'])
    def test_it_trains(self, gentle: Config, hub_folder: Path, options: dict, kind: str, tmp_path: Path) -> None:
        gentle = dataclasses.replace(
            gentle, dataset=f'{kind}/{hub_folder}', cache_dir=str(tmp_path / 'cache'), epochs=4, lr=0.005, **options
        )
        assert train.main(gentle)['map'] > 95
