"""Curves that trackers get, and that go on where a stopped run goes on."""

import csv
import dataclasses
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.scheduler import create_scheduler_v2

import timm_devnet
import train
from training.blocks import BlockNorms, block_scales, describe_blocks
from training.config import Config
from training.interruption import InterruptedRun
from training.trackers import choose_trackers, group_rates

GROWN = 'tf_efficientnet_lite0_mwa512'


@pytest.fixture
def config(config: Config) -> Config:
    """Configure a run of three epochs of twelve updates, so that some updates are looked at inside an epoch."""
    return dataclasses.replace(config, drop=None, batch_size=2, epochs=3, tracker='tensorboard', report=False)


def read_curves(run: Path) -> dict[str, list[tuple[int, float]]]:
    """Read what TensorBoard shows of a run: for each curve its steps and values."""
    accumulator = pytest.importorskip('tensorboard.backend.event_processing.event_accumulator')
    events = accumulator.EventAccumulator(str(run / 'tensorboard' / 'timm_devnet'))
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()['scalars']}


def resume_run(config: Config) -> Path:
    """Go on with a run in the next second.

    TensorBoard reads its files in the order of their names, which tell the second and then count the process's files,
    without leading zeros: the tenth in the same second would come before the ninth.
    """
    time.sleep(1 - time.time() % 1)
    return Path(train.main(dataclasses.replace(config, resume='auto'))['run'])


def read_table(run: Path) -> list[dict[str, str]]:
    with open(run / 'metrics.csv') as file:
        return list(csv.DictReader(file))


def without_clock(curves: dict[str, list[tuple[int, float]]]) -> dict[str, list[tuple[int, float]]]:
    return {name: points for name, points in curves.items() if not name.endswith(('images_per_s', 'elapsed_s'))}


def stop_in_batch(batch: int, patch: pytest.MonkeyPatch, act: Callable[[], None]) -> None:
    compute, calls = train.objective, iter(range(1, 10**6))

    def objective(*args: Any) -> torch.Tensor:
        if next(calls) == batch:
            act()
        return compute(*args)

    patch.setattr(train, 'objective', objective)


def test_tensorboard_shows_every_epoch_and_tenth_update(config: Config) -> None:
    pytest.importorskip('tensorboard')
    run = Path(train.main(config)['run'])
    curves, table = read_curves(run), read_table(run)
    assert {name: [step for step, _ in points] for name, points in curves.items()} == {
        **dict.fromkeys(('step/loss', 'step/top1', 'step/images_per_s'), [10, 12, 22, 24, 34, 36]),
        **dict.fromkeys(('lr/old', 'lr/new'), [10, 12, 22, 24, 34, 36]),
        **dict.fromkeys(('train/loss', 'train/top1', 'val/loss', 'val/top1'), [12, 24, 36]),
        **dict.fromkeys(
            ('epoch/epoch', 'epoch/images_per_s', 'epoch/elapsed_s', 'epoch/skipped_updates'), [12, 24, 36]
        ),
    }
    for name, column in (('train/loss', 'train_loss'), ('val/top1', 'val_top1')):
        assert [value for _, value in curves[name]] == pytest.approx([float(row[column]) for row in table])
    # The first ten updates of an epoch and its last two make up its mean.
    losses = [value for _, value in curves['step/loss']]
    means = [(10 * losses[i] + 2 * losses[i + 1]) / 12 for i in (0, 2, 4)]
    assert means == pytest.approx([float(row['train_loss']) for row in table], rel=1e-4)


@pytest.mark.parametrize('batch', [12, 15])
def test_a_stopped_run_continues_its_curves(config: Config, batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip('tensorboard')
    unbroken = Path(train.main(dataclasses.replace(config, experiment='unbroken'))['run'])
    with monkeypatch.context() as patch:
        stop_in_batch(batch, patch, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(InterruptedRun):
            train.main(config)
    run = resume_run(config)
    ours, theirs = without_clock(read_curves(run)), without_clock(read_curves(unbroken))
    for name in theirs.keys() | ours.keys():
        if name.startswith('step/'):  # the update at which it stopped is one more place to count from
            assert [step for step, _ in ours[name]] == [step for step, _ in theirs[name]]
        else:
            assert ours[name] == theirs[name]


def test_what_was_sent_after_the_checkpoint_is_not_shown_twice(
    config: Config, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip('tensorboard')
    unbroken = Path(train.main(dataclasses.replace(config, experiment='unbroken'))['run'])

    class Killed(BaseException):
        pass

    def die() -> None:
        raise Killed

    with monkeypatch.context() as patch:
        stop_in_batch(23, patch, die)  # update 22 has been sent, the checkpoint is of update 12
        with pytest.raises(Killed):
            train.main(config)
    assert read_curves(Path(config.output, 'run'))['step/loss'][-1][0] == 22
    run = resume_run(config)
    assert without_clock(read_curves(run)) == without_clock(read_curves(unbroken))


def test_trackio_keeps_one_run(config: Config, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    trackio = pytest.importorskip('trackio')
    monkeypatch.setenv('TRACKIO_DIR', str(tmp_path / 'trackio'))
    with monkeypatch.context() as patch:
        stop_in_batch(15, patch, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(InterruptedRun):
            train.main(dataclasses.replace(config, tracker='trackio'))
    train.main(dataclasses.replace(config, tracker='trackio', resume='auto'))
    [run] = trackio.Api().runs('timm_devnet')
    assert run.name == 'run'


def test_no_tracker_leaves_no_trace(config: Config) -> None:
    run = Path(train.main(dataclasses.replace(config, tracker='none', epochs=1))['run'])
    assert not (run / 'tensorboard').exists()
    assert read_table(run)


@pytest.mark.parametrize(
    ('wish', 'message'),
    [
        ('tensorbored', "'tensorbored' is not known; it is none, or of aim, "),
        ('tensorboard,dvclive', 'pip install dvclive'),
    ],
)
def test_wrong_trackers_are_refused(wish: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        choose_trackers(wish)


def test_trackers_are_told_apart_by_commas() -> None:
    pytest.importorskip('tensorboard')
    assert choose_trackers('tensorboard, tensorboard') == choose_trackers(None) == ['tensorboard']
    assert choose_trackers('none') == []


def test_a_wrong_tracker_leaves_no_run(config: Config, capsys: pytest.CaptureFixture[str]) -> None:
    assert train.cli(['--tracker', 'nothing', '--output', config.output]) == train.EXIT_USER_ERROR
    assert "train.py: error: --tracker nothing: 'nothing' is not known" in capsys.readouterr().err
    assert not Path(config.output).exists()


def test_rates_are_those_of_the_last_update() -> None:
    parameter = torch.nn.Parameter(torch.zeros(1))
    groups = [
        {'params': [parameter], 'name': 'new', 'lr_scale': 10.0},
        {'params': [torch.nn.Parameter(torch.zeros(1))], 'name': 'new, not decayed', 'lr_scale': 10.0},
    ]
    optimizer = torch.optim.SGD(groups, lr=0.1)
    schedule, _ = create_scheduler_v2(
        optimizer,
        sched='step',
        num_epochs=2,
        decay_epochs=1,
        warmup_epochs=0,
        step_on_epochs=False,
        updates_per_epoch=5,
    )
    schedule.step_update(5)
    assert group_rates(schedule, 5) == {'new': pytest.approx(1.0)}
    assert optimizer.param_groups[0]['lr'] == pytest.approx(0.1)


@pytest.mark.parametrize('scale_init', [10.0, 0.0])
def test_norms_are_those_of_the_blocks(scale_init: float) -> None:
    model = timm.create_model(GROWN, num_classes=4, scale_init=scale_init).eval()
    images = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), BlockNorms(model) as norms:
        pre_logits = model.forward_head(model.forward_features(images), pre_logits=True)
        model.get_classifier()(pre_logits)
        found = norms.take()
    assert norms.names == timm_devnet.block_names(model)
    if scale_init:  # the norm was divided out, so it shows in the activations before
        pooled = model.pool_map(model.forward_trunk(images, ['conv_head'])['conv_head']).detach()
        torch.testing.assert_close(found[:, 0], pooled.norm(dim=1), rtol=1e-4, atol=1e-5)
        assert block_scales(model) == dict.fromkeys(norms.names, 10.0)
    else:
        widths = [block.units for block in describe_blocks(model)]
        torch.testing.assert_close(found, torch.stack([part.norm(dim=1) for part in pre_logits.split(widths, 1)], 1))
        assert block_scales(model) == {}
    model(images)
    assert norms.take() is None


def test_blocks_are_told_apart_by_age() -> None:
    model = timm_devnet.grow(timm.create_model('tf_efficientnet_lite0', num_classes=4), 'wa64')
    timm_devnet.grow(model, 'wa32')
    assert [(block.units, block.kind) for block in describe_blocks(model)] == [
        *((1280, 'old'), (64, 'grown earlier'), (32, 'new')),
    ]
    assert describe_blocks(timm.create_model('test_efficientnet')) == []


def test_blocks_are_columns_of_metrics_csv(config: Config) -> None:
    config = dataclasses.replace(
        config, model=GROWN, epochs=2, eval_every=2, batch_size=12, tracker='none', report=True
    )
    run = Path(train.main(config)['run'])
    first, last = read_table(run)
    names = timm_devnet.block_names(timm.create_model(GROWN, device='meta'))
    assert all(first[f'scale_{name}'] and last[f'scale_{name}'] for name in names)
    assert all(not first[f'norm_{name}'] and float(last[f'norm_{name}']) > 0 for name in names)
    page = (run / 'report.html').read_text()
    assert all(f'{name} <small>' in page for name in names)
    assert float(first['lr_new']) == pytest.approx(10 * float(first['lr_old']))
