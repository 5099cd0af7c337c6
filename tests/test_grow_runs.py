"""Whole runs that grow: saved, loaded, gone on with bit for bit, on one process and on two."""

import dataclasses
import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import timm
from safetensors.torch import load_file

import timm_devnet
import train
from tests.kill import Run, train_in_process
from tests.test_train import assert_same_weights, flags, metrics, places, stop_after
from tests.two_processes import few_units
from training.config import Config
from training.interruption import InterruptedRun


@pytest.fixture
def config(config: Config, narrow: None) -> Config:
    """Configure a run of three epochs of three updates that grows after the first."""
    return dataclasses.replace(
        config, model='alexnet', grow=('wa16@1',), img_size=64, batch_size=8, epochs=3, report=False
    )


RUNS: dict[str, dict[str, Any]] = {
    'momentum, averaged': dict(grow=('wa16@1', 'da8@2'), model_ema=True, model_ema_decay=0.8),
    'from the start, adamw, thawed': dict(
        grow=('wa16', 'wa16@1'), opt='adamw', lr=0.001, regime='new', thaw='fc7-new@1,all@2', block_loss=0.5
    ),
    'compiled, bf16': dict(torchcompile='eager', mixed_precision='bf16', epochs=2),
}


@pytest.mark.parametrize('name', RUNS)
def test_a_stopped_run_goes_on_bit_for_bit(config: Config, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = dataclasses.replace(config, **RUNS[name])
    unbroken = train.main(dataclasses.replace(config, experiment='unbroken'))
    resume, reached = None, []
    for updates in (3, 1):  # just before and just after the growth
        with monkeypatch.context() as patch:
            stop_after(updates, patch)
            with pytest.raises(InterruptedRun):
                train.main(dataclasses.replace(config, resume=resume))
        resume = 'auto'
        reached.append(places(Path(config.output, 'run'))[-1])
    assert reached == ['epoch-00000-step-0000003', 'epoch-00001-step-0000001']
    resumed = train.main(dataclasses.replace(config, resume='auto'))
    assert_same_weights(resumed['run'], unbroken['run'])
    assert metrics(resumed['run']) == metrics(unbroken['run'])


def test_a_run_goes_on_bit_for_bit_from_the_growth_itself(config: Config) -> None:
    config = dataclasses.replace(config, grow=('wa16@2',), model_ema=True, checkpoint_every='epoch')
    run = Path(train.main(dataclasses.replace(config, keep_checkpoints=9))['run'])
    unbroken = shutil.copytree(run, run.with_name('unbroken'))
    shutil.rmtree(run / 'state' / 'epoch-00003-step-0000000')
    weights = [load_file(run / 'state' / place / 'model.safetensors') for place in places(run)]
    assert [any(name.startswith('grown.') for name in held) for held in weights] == [False, True]
    train.main(dataclasses.replace(config, resume='auto'))
    assert_same_weights(run, unbroken)
    assert metrics(run) == metrics(unbroken)


def test_best_and_last_are_saved_with_their_own_growth(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    measure, falling = train.evaluate, itertools.count(99, -1)

    def evaluate(*args: Any) -> dict[str, float]:
        return {**measure(*args), 'top1': float(next(falling))}  # so the first epoch is the best

    monkeypatch.setattr(train, 'evaluate', evaluate)
    run = Path(train.main(dataclasses.replace(config, epochs=2, report=True))['run'])
    best, last = (timm.create_model(f'local-dir:{run / part}', pretrained=True) for part in ('best', 'last'))
    assert timm_devnet.block_names(best) == []
    assert timm_devnet.block_names(last) == ['fc7', 'fc7_1']
    arguments = json.loads((run / 'last' / 'config.json').read_text())['model_args']
    assert arguments['growth'] == 'wa16'
    assert 'settled' not in arguments
    before, after = metrics(run)
    assert before['scale_fc7_1'] == '' != after['scale_fc7_1']
    assert 'fc7_1' in (run / 'report.html').read_text()


def test_until_it_grows_a_run_is_the_one_that_never_does(config: Config) -> None:
    config = dataclasses.replace(config, sched='none', epochs=2)
    grows = metrics(train.main(config)['run'])
    never = metrics(train.main(dataclasses.replace(config, grow=(), experiment='never'))['run'])
    assert {name: grows[0][name] for name in never[0]} == never[0]
    assert grows[1]['train_loss'] != never[1]['train_loss']


def train_narrow(arguments: list[str], environment: dict[str, str], log: Path) -> None:
    few_units()
    train_in_process(arguments, environment, log)


def test_two_processes_grow_alike_and_go_on_bit_for_bit(config: Config) -> None:
    config = dataclasses.replace(config, batch_size=4, model_ema=True, model_ema_decay=0.5, sched='none', drop=0.0)
    one = metrics(train.main(dataclasses.replace(config, batch_size=8, experiment='one'))['run'])
    folders = []
    for name, parts in (('unbroken', (3,)), ('resumed', (2, 3))):
        for epochs in parts:
            part = dataclasses.replace(config, epochs=epochs)
            run = Run(name, Path(config.output), flags(part), 2, train_narrow)
            assert run.finish() is not None
        folders.append(run.folder())
    assert_same_weights(*folders)
    assert metrics(folders[0]) == metrics(folders[1])
    for ours, theirs in zip(metrics(folders[0]), one, strict=True):
        assert [float(value or 0) for value in ours.values()] == pytest.approx(
            [float(value or 0) for value in theirs.values()], rel=1e-3
        )


def test_a_growth_that_cannot_be_leaves_nothing(config: Config) -> None:
    with pytest.raises(ValueError, match="Unknown growth 'wx16'"):
        train.main(dataclasses.replace(config, grow=('wx16@1',)))
    assert not Path(config.output).exists()


@pytest.mark.parametrize('place', ['', 'best'])
def test_a_run_starts_from_another_ones_folder(config: Config, image_folder: Path, place: str) -> None:
    first = Path(train.main(dataclasses.replace(config, grow=('wa16',), epochs=1))['run'])
    for split in ('train', 'val'):
        (image_folder / split / 'red').rename(image_folder / split / 'rot')  # as many classes, others
    second = Path(
        train.main(dataclasses.replace(config, model=str(first / place), pretrained=True, grow=('wa8',), epochs=1))[
            'run'
        ]
    )
    assert json.loads((second / 'run.json').read_text())['config']['model'] == f'local-dir:{first}/best'
    network: Any = timm.create_model(f'local-dir:{second}/best', pretrained=True)
    assert network.growth == 'wa16_wa8'
    assert network.settled == 1
    assert network.pretrained_cfg['label_names'] == ['blue', 'green', 'rot']
