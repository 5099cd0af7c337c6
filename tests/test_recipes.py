"""Whole runs with the recipes of train.py: each goes on bit for bit wherever it was stopped."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

import train
from tests.test_train import assert_same_weights, metrics, run_script, stop_after
from training.config import Config
from training.interruption import InterruptedRun

MIXED: dict[str, Any] = dict(
    mixup=0.4, cutmix=1.0, mixup_prob=0.8, mixup_mode='elem', mixup_off_epoch=2, smoothing=0.1, reprob=0.5, recount=2
)
RECIPES: dict[str, dict[str, Any]] = {
    'mixed': MIXED,
    'augmented': dict(
        aa='rand-m9-mstd0.5', train_crop_mode='rrc', scale=(0.3, 1.0), vflip=0.5, remode='rand', reprob=1.0
    ),
    'jittered': dict(color_jitter=0.4, train_crop_mode='rkrr', mixup=0.2, mixup_mode='pair'),
    'augmix': dict(aa='augmix-m5-w4-d2', cutmix=1.0, grad_accum_steps=2),
    'averaged': dict(model_ema=True, model_ema_decay=0.9, model_ema_warmup=True),
    'thawed': dict(regime='new', thaw='conv_head-new@1,all@2'),
    'thawed, averaged': dict(regime='new', thaw='all@1', model_ema=True, model_ema_decay=0.8, opt='adamw', lr=0.001),
    'pulled': dict(l2_sp=0.5, clip_grad=1.0, grow=('wa16@1',), model_ema=True, model_ema_decay=0.5),
    'pulled, thawed': dict(l2_sp=0.5, regime='new', thaw='conv_head-new@1,all@2', grad_accum_steps=2),
    'still': dict(freeze_bn_stats=True, grow=('wa16@1',), regime='conv_head-new', thaw='all@2', clip_grad=1.0),
    'adapted': dict(lora=2, model_ema=True, model_ema_decay=0.5, lr=0.001, clip_grad=1.0),
    'decayed': dict(layer_decay=0.7, opt='lamb', opt_betas=(0.8, 0.99), opt_eps=1e-5, regime='new', thaw='all@2'),
}


@pytest.fixture
def config(config: Config) -> Config:
    """Configure a run of three epochs of three updates, with dropout."""
    return dataclasses.replace(config, batch_size=8, epochs=3, warmup_epochs=0.4)


def write_weights(path: Path, seed: int) -> str:
    """Write weights to start from."""
    torch.manual_seed(seed)
    save_file(timm.create_model('test_efficientnet').state_dict(), path)
    return str(path)


@pytest.mark.parametrize('recipe', RECIPES)
def test_a_stopped_run_goes_on_bit_for_bit(
    config: Config, recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dataclasses.replace(config, **RECIPES[recipe])
    if config.l2_sp is not None or config.freeze_bn_stats:
        file = write_weights(tmp_path / 'start.safetensors', seed=1)
        config = dataclasses.replace(config, pretrained=True, pretrained_path=file)
    if config.grad_accum_steps > 1:
        config = dataclasses.replace(config, batch_size=4)
    unbroken = train.main(dataclasses.replace(config, experiment='unbroken'))
    resume = None
    for updates in (2, 4, 1):  # inside the first epoch, at the end of the second, inside the third
        with monkeypatch.context() as patch:
            stop_after(updates * config.grad_accum_steps, patch)
            with pytest.raises(InterruptedRun):
                train.main(dataclasses.replace(config, resume=resume))
        resume = 'auto'
        if config.pretrained:  # where a run began is in its checkpoints
            write_weights(tmp_path / 'start.safetensors', seed=2)
    resumed = train.main(dataclasses.replace(config, resume='auto'))
    assert_same_weights(resumed['run'], unbroken['run'])
    assert metrics(resumed['run']) == metrics(unbroken['run'])


def weights(run: str | Path) -> dict[str, torch.Tensor]:
    return load_file(Path(run, 'last', 'model.safetensors'))


def test_what_thaws_begins_to_learn(config: Config) -> None:
    config = dataclasses.replace(config, regime='new', sched='none')
    frozen = train.main(dataclasses.replace(config, epochs=1))['run']
    thawed = train.main(dataclasses.replace(config, thaw='all@1', epochs=2))['run']
    assert {**metrics(frozen)[0], 'lr_old': ''} == metrics(thawed)[0]
    before, after = weights(frozen), weights(thawed)
    assert all(not torch.equal(after[name], before[name]) for name in before if name.endswith('.weight'))


def test_old_layers_stay_near_where_they_are_pulled_to(config: Config, tmp_path: Path) -> None:
    file = write_weights(tmp_path / 'start.safetensors', seed=1)
    config = dataclasses.replace(config, pretrained=True, pretrained_path=file, sched='none', epochs=2)
    free, pulled = (
        weights(train.main(dataclasses.replace(config, l2_sp=weight))['run'])['conv_stem.weight']
        for weight in (0.0, 50.0)
    )
    start = load_file(file)['conv_stem.weight']
    assert 0 < (pulled - start).norm() < 0.3 * (free - start).norm()


def test_old_statistics_stay_while_their_layers_learn(
    config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = load_file(write_weights(tmp_path / 'start.safetensors', seed=1))
    config = dataclasses.replace(config, pretrained=True, pretrained_path=str(tmp_path / 'start.safetensors'))
    after = weights(train.main(dataclasses.replace(config, freeze_bn_stats=True, clip_grad=1.0))['run'])
    old = [name for name in start if 'bn' in name and not name.startswith('classifier')]
    still = {name for name in old if torch.equal(after[name], start[name])}
    assert still == {name for name in old if 'running_' in name or 'num_batches' in name}
    assert '(regime all, statistics of old BatchNorms frozen)' in capsys.readouterr().out


def test_the_average_is_what_is_measured_and_kept(config: Config) -> None:
    plain = train.main(config)['run']
    same = train.main(dataclasses.replace(config, model_ema=True, model_ema_decay=0.0))['run']
    averaged = train.main(dataclasses.replace(config, model_ema=True, model_ema_decay=0.9))['run']
    assert_same_weights(same, plain)
    assert metrics(same) == metrics(plain)
    for ours, theirs in zip(metrics(averaged), metrics(plain), strict=True):
        assert ours['train_loss'] == theirs['train_loss']
        assert ours['val_loss'] != theirs['val_loss']
    assert not torch.equal(weights(averaged)['conv_stem.weight'], weights(plain)['conv_stem.weight'])


def test_adapters_leave_a_plain_network_that_answers_as_they_did(config: Config) -> None:
    config = dataclasses.replace(config, model='tf_efficientnet_lite0_mwa512', lora=2, lr=0.003, regime='all')
    summary = train.main(config)
    last = metrics(summary['run'])[-1]
    loaded = timm.create_model(f'local-dir:{summary["run"]}/last', pretrained=True)
    assert {*loaded.state_dict()} == {*timm.create_model(config.model, num_classes=3).state_dict()}
    measured = train.main(Config(model=str(Path(summary['run'], 'last')), data_dir=config.data_dir, eval_only=True))
    assert measured['loss'] == pytest.approx(float(last['val_loss']), rel=1e-5)


def test_without_augmentation_training_sees_what_evaluation_sees(config: Config, image_folder: Path) -> None:
    # Trained at no rate to speak of, without dropout, and evaluated on the same images.
    config = dataclasses.replace(
        config,
        no_aug=True,
        lr=1e-12,
        weight_decay=0.0,
        drop=0.0,
        val_split='train',
        epochs=1,
        model='test_efficientnet_gn',
    )
    row = metrics(train.main(config)['run'])[0]
    assert float(row['train_loss']) == pytest.approx(float(row['val_loss']), rel=1e-5)


def test_unreadable_images_are_skipped_where_images_are_mixed(config: Config, image_folder: Path) -> None:
    for name in ('red/0.png', 'blue/1.png'):
        (image_folder / 'train' / name).write_bytes(b'no image')
    run = train.main(dataclasses.replace(config, bad_images='skip', **MIXED))['run']
    assert Path(run, 'bad_images.txt').read_text() == 'train/blue/1.png\ntrain/red/0.png\n'
    assert all(np.isfinite(float(row['train_loss'])) for row in metrics(run))


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'thaw': 'fc7-new@1'}, "unknown regime 'fc7-new' for test_efficientnet; it offers new, conv_head-new"),
        ({'regime': 'blocks.4-new', 'thaw': 'conv_head-new@1'}, 'must go upwards in new, conv_head-new'),
        ({'regime': 'new', 'thaw': 'all@3'}, '--thaw all@3 is out of range'),
    ],
)
def test_regimes_that_cannot_follow_leave_nothing(config: Config, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        train.main(dataclasses.replace(config, **options))
    assert not Path(config.output).exists()


def test_two_processes_thaw_as_one_does_and_go_on_bit_for_bit(config: Config, tmp_path: Path) -> None:
    # No batch norm and no dropout: those see each process's own images.
    config = dataclasses.replace(
        config,
        model='test_efficientnet_gn',
        lr=0.001,
        drop=None,
        regime='new',
        thaw='all@1',
        sched='none',
        model_ema=True,
        model_ema_decay=0.5,
        l2_sp=0.5,
        pretrained=True,
        pretrained_path=str(tmp_path / 'start.safetensors'),
    )
    save_file(timm.create_model(config.model).state_dict(), tmp_path / 'start.safetensors')
    one = metrics(train.main(dataclasses.replace(config, experiment='one'))['run'])
    two = dataclasses.replace(config, batch_size=4)
    for experiment, epochs, resume in (('unbroken', 3, None), ('two', 2, None), ('two', 3, 'auto')):
        part = dataclasses.replace(two, experiment=experiment, epochs=epochs, resume=resume)
        done = run_script(part, '-m', 'torch.distributed.run', '--nproc_per_node', '2', ACCELERATE_USE_CPU='true')
        assert done.returncode == 0, done.stderr
    unbroken, resumed = Path(config.output, 'unbroken'), Path(config.output, 'two')
    assert_same_weights(resumed, unbroken)
    for ours, theirs in zip(metrics(unbroken), one, strict=True):
        assert [float(value or 0) for value in ours.values()] == pytest.approx(
            [float(value or 0) for value in theirs.values()], rel=1e-4
        )
