"""From task to task: whole runs that keep earlier heads, measure by them, and hold them to what they said."""

import csv
import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

import timm_devnet
import train
from tests.conftest import write_labelled
from tests.test_train import assert_same_weights, metrics, stop_after
from training.config import Config
from training.earlier import EarlierTask
from training.interruption import InterruptedRun
from training.sources import load_validation


@pytest.fixture
def first(config: Config) -> Config:
    """Configure a run on the first task, of three colours, without norms that see batches."""
    return dataclasses.replace(
        config, model='test_efficientnet_gn', batch_size=8, epochs=1, report=False, drop=None, experiment='first'
    )


@pytest.fixture
def second(first: Config, image_folder: Path, tmp_path: Path) -> Config:
    """Train on the first task, and configure a run on the second, of two colours under other names."""
    run = train.main(first)['run']
    folder = tmp_path / 'Two Hues'
    for split in ('train', 'val'):
        for old, new in (('green', 'leaf'), ('red', 'rose')):
            shutil.copytree(image_folder / split / old, folder / split / new)
    return dataclasses.replace(
        first, model=run, pretrained=True, grow=('wa16',), data_dir=str(folder), keep_heads=True, experiment='second'
    )


def load(run: str | Path) -> Any:
    return timm.create_model(f'local-dir:{run}/best', pretrained=True)


def recorded(run: str | Path) -> list[EarlierTask]:
    return [EarlierTask.from_dict(task) for task in json.loads(Path(run, 'run.json').read_text())['earlier']]


def test_a_chain_of_tasks_is_kept_measured_and_told(second: Config, image_folder: Path) -> None:
    middle = train.main(second)
    third = dataclasses.replace(
        second, model=middle['run'], grow=('wa8',), data_dir=str(image_folder), experiment='third', report=True
    )
    last = train.main(third)
    network = load(last['run'])
    assert {name: (head.num_classes, head.steps, head.label_names) for name, head in network.kept.items()} == {
        'colours': (3, 0, ('blue', 'green', 'red')),
        'two-hues': (2, 1, ('leaf', 'rose')),
    }
    assert network.pretrained_cfg['label_names'] == ['blue', 'green', 'red']
    assert network.settled == 1
    colours, hues = recorded(last['run'])
    assert colours.history == (recorded(middle['run'])[0].before, recorded(middle['run'])[0].after)
    assert hues.history == (middle['top1'],)
    assert (colours.images, hues.images) == (9, 6)
    assert last['backward_transfer'] == (colours.transfer + hues.transfer) / 2
    assert last['forgetting'] == (colours.forgotten + hues.forgotten) / 2
    [*table] = csv.DictReader((Path(last['run']) / 'earlier.csv').read_text().splitlines())
    assert [(row['task'], float(row['after'])) for row in table] == [
        ('colours', colours.after),
        ('two-hues', hues.after),
    ]
    assert 'Earlier tasks' in (Path(last['run']) / 'report.html').read_text()


def test_kept_heads_stay_as_they_were(second: Config) -> None:
    started, best = load(second.model), load(train.main(second)['run'])
    assert torch.equal(best.heads['colours'].weight, started.get_classifier().weight)
    assert not torch.equal(best.conv_stem.weight, started.conv_stem.weight)


def test_a_stopped_run_goes_on_bit_for_bit_although_its_start_has_changed(
    second: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    second = dataclasses.replace(second, lwf=1.0, epochs=2, block_loss=0.5, drop=0.3)
    unbroken = train.main(dataclasses.replace(second, experiment='unbroken'))
    with monkeypatch.context() as patch:
        stop_after(1, patch)
        with pytest.raises(InterruptedRun):
            train.main(second)
    weights = Path(second.model, 'best', 'model.safetensors')
    save_file({name: 1.5 * tensor for name, tensor in load_file(weights).items()}, weights)
    resumed = train.main(dataclasses.replace(second, resume='auto'))
    assert_same_weights(resumed['run'], unbroken['run'])
    assert metrics(resumed['run']) == metrics(unbroken['run'])
    assert resumed['earlier'] == unbroken['earlier']
    shutil.rmtree(Path(resumed['run'], 'start'))
    with pytest.raises(ValueError, match=r'start is gone, the network that this run started from'):
        train.main(dataclasses.replace(second, resume='auto', epochs=3))


def test_learning_without_forgetting_holds_what_earlier_heads_say(second: Config) -> None:
    second = dataclasses.replace(second, epochs=6, lr=0.05, new_lr_mult=1.0, clip_grad=1.0)
    started = load(second.model).eval()
    runs = [train.main(dataclasses.replace(second, lwf=lwf, experiment=f'lwf-{lwf}'))['run'] for lwf in (0.0, 1000.0)]
    folder = load_validation(second)
    pixels = torch.stack([torch.from_numpy(np.array(folder.read(index))) for index in range(6)])
    images = pixels.movedim(-1, 1)[..., :32, :32] / 255
    with torch.no_grad():
        wanted = started(images).log_softmax(1)
        said = [timm_devnet.recall_head(load(run), 'colours').eval()(images).log_softmax(1) for run in runs]
    far, near = (torch.nn.functional.kl_div(each, wanted, log_target=True, reduction='batchmean') for each in said)
    assert near < 0.8 * far
    weights = [load(run).heads['colours'].weight for run in runs]
    assert not torch.equal(*weights)  # they learn then


def test_images_that_are_gone_end_no_run(second: Config, image_folder: Path) -> None:
    image_folder.rename(image_folder.with_name('moved'))
    result = train.main(second)
    [task] = recorded(result['run'])
    assert task.after is task.before is None
    assert task.remark.startswith('not measured: ')
    assert result['forgetting'] is None
    assert 'colours' in load(result['run']).kept


def test_a_kept_head_is_measured_by_name_on_its_own_images(second: Config) -> None:
    run = train.main(second)
    measured = train.main(Config(model=run['run'], eval_only=True, head='colours', workers=0, threads=1))
    assert measured['top1'] == run['earlier'][0]['after']
    assert measured['outputs'] == measured['data_classes'] == 3
    assert measured['report'] is None
    with pytest.raises(ValueError, match="no head called 'digits'; it keeps colours"):
        train.main(Config(model=run['run'], eval_only=True, head='digits', data_dir=second.data_dir))
    with pytest.raises(ValueError, match='--head digits: where its images are is not recorded'):
        train.main(Config(model=run['run'], eval_only=True, head='digits'))


def test_heads_of_several_labels_are_kept_and_held(second: Config, tmp_path: Path) -> None:
    labelled = write_labelled(tmp_path / 'labelled')
    several = train.main(
        dataclasses.replace(second, data_dir=str(labelled), multi_label=True, keep_heads=False, experiment='several')
    )
    run = train.main(dataclasses.replace(second, model=several['run'], grow=('wa8',), lwf=1.0, experiment='after'))
    network = load(run['run'])
    assert network.kept['labelled'].multi_label
    [task] = recorded(run['run'])
    assert task.measure == 'map'
    assert task.before == several['map']


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'grow': ()}, '--keep-heads: a plain network has no place for heads: let it grow'),
        ({'keep_heads': False, 'lwf': 1.0}, '--lwf 1.0 holds the answers of kept heads: give --keep-heads'),
        ({'lwf': -1.0}, '--lwf -1.0 is out of range'),
        ({'lwf': 1.0, 'regime': 'new'}, '--lwf 1.0: in regime new nothing learns that earlier heads read'),
        ({'lwf': 1.0, 'regime': 'conv_head-new', 'cache_features': 1}, 'leave out --cache-features'),
        ({'pretrained': False}, '--keep-heads keeps what a network has learnt: leave out --no-pretrained'),
        ({'head': 'colours'}, '--head colours says by which head --eval-only measures'),
        ({'eval_only': True, 'grow': ()}, '--eval-only changes no network: leave out --keep-heads'),
        ({'eval_only': True, 'keep_heads': False}, '--eval-only changes no network: leave out --grow wa16'),
    ],
)
def test_options_that_cannot_be_are_refused(first: Config, options: dict[str, Any], message: str) -> None:
    asked = dict(model='test_efficientnet', pretrained=True, grow=('wa16',), keep_heads=True)
    config = dataclasses.replace(first, **{**asked, **options})
    if 'place for heads' in message:
        config = dataclasses.replace(config, model=train.main(first)['run'])
    with pytest.raises(ValueError, match=message):
        train.main(config)
