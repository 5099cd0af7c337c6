"""Several processes: real ones on this machine, joined by gloo."""

import csv
import dataclasses
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.utils import set_seed
from safetensors.torch import load_file
from timm.models.vgg import ConvMlp
from torch import Tensor

import train
from tests.conftest import write_colours
from training import networks
from training.config import Config

ROOT = Path(__file__).parent.parent
PROCESSES = 2
# No BatchNorm and no dropout: those see each process's own images.
PLAIN = Config(model='alexnet_mwa16', drop=0.0, img_size=64)
# Block loss and accumulation at once: four batches of two images make the global batch of eight.
JOBS = {
    'new': dataclasses.replace(PLAIN, regime='new', block_loss=1.0, grad_accum_steps=2, batch_size=2),
    'fc7-new': dataclasses.replace(PLAIN, regime='fc7-new', batch_size=4),
    'fc6-new': dataclasses.replace(PLAIN, regime='fc6-new', batch_size=4, clip_grad=0.1),
    'all': dataclasses.replace(PLAIN, regime='all', batch_size=2, grad_accum_steps=2, block_loss=0.5),
}
# With BatchNorm: the same two processes, once whole and once spread.
NORMS = Config(
    model='tf_efficientnet_lite0_mwa32',
    img_size=32,
    batch_size=4,
    regime='conv_head-new',
    block_loss=1.0,
    clip_grad=1.0,
    sched='none',
    memory_format='contiguous_format',
)
SHARDED = {'new-momentum': ('new', 'momentum'), 'fc7-new-adamw': ('fc7-new', 'adamw'), 'all': ('all', 'momentum')}


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp('scale')


@pytest.fixture(scope='module')
def common(folder: Path) -> dict[str, Any]:
    """Options of every run: small, on three colours, from random numbers."""
    return dict(
        data_dir=str(write_colours(folder / 'colours')),
        pretrained=False,
        epochs=1,
        lr=0.001,
        workers=0,
        threads=1,
        tune=False,
        report=False,
        tracker='none',
        output=str(folder / 'runs'),
    )


@pytest.fixture(scope='module')
def runs(folder: Path, common: dict[str, Any]) -> Path:
    """Do all jobs of this file in two processes, started once; gives the folder of their runs."""
    norms = dataclasses.replace(NORMS, **{**common, 'epochs': 2})
    bf16 = dataclasses.replace(JOBS['all'], **common, mixed_precision='bf16', memory_format='contiguous_format')
    configs = [
        *((dataclasses.replace(job, **common, experiment=name), False) for name, job in JOBS.items()),
        (dataclasses.replace(norms, experiment='whole'), False),
        (dataclasses.replace(norms, experiment='spread', report=True), True),
        (dataclasses.replace(norms, experiment='continued', epochs=1), True),
        (dataclasses.replace(norms, experiment='continued', resume='auto'), True),
        (dataclasses.replace(norms, experiment='changed', epochs=1), False),
        (dataclasses.replace(norms, experiment='changed', resume='auto', nonfinite='skip'), True),
        *((dataclasses.replace(bf16, experiment=f'{name}-bf16'), name == 'spread') for name in ('whole', 'spread')),
    ]
    jobs: list[dict[str, Any]] = [
        {'config': dataclasses.asdict(config), 'spread': spread} for config, spread in configs
    ]
    for name, (regime, opt) in SHARDED.items():
        jobs.append({'regime': regime, 'opt': opt, 'output': str(folder / f'{name}.json')})
    (folder / 'jobs.json').write_text(json.dumps(jobs))
    torchrun = (sys.executable, '-m', 'torch.distributed.run', '--nproc_per_node', str(PROCESSES))
    done = run(*torchrun, '--master_port', str(free_port()), 'tests/two_processes.py', str(folder / 'jobs.json'))
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / 'runs'


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """As tests/two_processes.py does it: AlexNet with few units in FC6."""
    whole = ConvMlp.__init__
    monkeypatch.setattr(
        ConvMlp, '__init__', lambda self, *args, **kwargs: whole(self, *args, **{**kwargs, 'mlp_ratio': 0.02})
    )


def run(*command: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(command, cwd=ROOT, env=variables(**environment), capture_output=True, text=True, timeout=280)


def variables(**environment: str) -> dict[str, str]:
    return {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(ROOT), **environment}


def launch(*options: str) -> tuple[str, ...]:
    """Begin a command of accelerate's launcher, for this Python."""
    return (sys.executable, '-m', 'accelerate.commands.accelerate_cli', 'launch', '--dynamo_backend', 'no', *options)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return probe.getsockname()[1]


def metrics(path: Path) -> list[list[float]]:
    """Read metrics.csv without what is measured by the clock."""
    with open(path / 'metrics.csv') as file:
        rows = list(csv.DictReader(file))
    return [
        [float(value or 0) for key, value in row.items() if key not in ('images_per_s', 'elapsed_s')] for row in rows
    ]


def weights(path: Path) -> dict[str, Tensor]:
    return load_file(path / 'last' / 'model.safetensors')


def assert_same_metrics(run: Path, other: Path) -> None:
    for ours, theirs in zip(metrics(run), metrics(other), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)


@pytest.mark.parametrize('name', JOBS)
def test_two_processes_equal_one(runs: Path, common: dict[str, Any], name: str, narrow: None) -> None:
    job = dataclasses.replace(JOBS[name], **common, experiment=f'{name}-alone')
    alone = Path(train.main(dataclasses.replace(job, batch_size=8, grad_accum_steps=1))['run'])
    assert_same_metrics(runs / name, alone)
    torch.testing.assert_close(weights(runs / name), weights(alone), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize('name', JOBS)
def test_frozen_parameters_stay_bit_for_bit(runs: Path, common: dict[str, Any], name: str, narrow: None) -> None:
    job = dataclasses.replace(JOBS[name], **common)
    set_seed(job.seed)
    network, _ = networks.build_network(job, 3)
    ended = weights(runs / name)
    moved = {
        key.partition('.')[0] for key, tensor in network.state_dict().items() if not torch.equal(ended[key], tensor)
    }
    old = {'new': set(), 'fc7-new': {'pre_logits'}, 'fc6-new': {'pre_logits'}, 'all': {'pre_logits', 'features'}}
    assert moved == {'grown', 'head'} | old[name]


def test_fsdp2_of_accelerate_equals_ddp(runs: Path) -> None:
    assert_same_metrics(runs / 'spread', runs / 'whole')
    torch.testing.assert_close(weights(runs / 'spread'), weights(runs / 'whole'), rtol=1e-4, atol=1e-6)
    machine = json.loads((runs / 'spread' / 'run.json').read_text())['machine']
    assert machine.endswith('spread by FSDP2')
    assert (runs / 'spread' / 'report.html').exists()


def test_fsdp2_goes_on_bit_for_bit(runs: Path) -> None:
    assert metrics(runs / 'continued') == metrics(runs / 'spread')
    torch.testing.assert_close(weights(runs / 'continued'), weights(runs / 'spread'), rtol=0, atol=0)


def test_mixed_precision_of_fsdp2_is_that_of_ddp(runs: Path) -> None:
    assert_same_metrics(runs / 'spread-bf16', runs / 'whole-bf16')


def test_a_run_goes_on_spread_that_began_whole(runs: Path) -> None:
    assert_same_metrics(runs / 'changed', runs / 'spread')
    torch.testing.assert_close(weights(runs / 'changed'), weights(runs / 'spread'), rtol=1e-4, atol=1e-6)


def test_a_spread_checkpoint_is_that_of_the_whole_run(runs: Path) -> None:
    states = []
    for name in ('spread', 'whole'):
        checkpoint = max((runs / name / 'state').iterdir())
        optimizer = torch.load(checkpoint / 'optimizer.pt', weights_only=True)['optimizer']['optimizer']
        states.append((load_file(checkpoint / 'model.safetensors'), optimizer['state']))
    torch.testing.assert_close(states[0], states[1], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize('name', SHARDED)
def test_fully_shard_over_our_groups_equals_the_whole_network(runs: Path, folder: Path, name: str) -> None:
    found = json.loads((folder / f'{name}.json').read_text())
    assert found['is_spread']
    assert found['sharded_losses'] == pytest.approx(found['losses'], rel=1e-4)
    assert found['difference'] < 1e-4
    assert 'head.fc.weight' in found['moved']
    assert {*found['moved']} <= {*found['learning']}, 'what is frozen stays bit for bit'
    assert len(set(found['rates'])) == 1, 'the schedule honours lr_scale'


@pytest.fixture(scope='module')
def machines(common: dict[str, Any]) -> Iterator[list[str]]:
    """Start train.py on two machines that are both this one, with FSDP and fp16; gives what each of them printed."""
    options = ['--data-dir', common['data_dir'], '--output', common['output'], '--experiment', 'machines']
    options += ['--model', 'test_efficientnet', '--no-pretrained', '--epochs', '1', '--img-size', '32']
    options += ['--lr', '0.001', '--batch-size', '4', '--no-tune', '--no-report']
    where = ['--num_machines', '2', '--main_process_ip', '127.0.0.1', '--main_process_port', str(free_port())]
    command = launch('--use_fsdp', '--fsdp_version', '2', '--num_processes', '2', '--mixed_precision', 'fp16', *where)
    started = [
        subprocess.Popen(
            [*command, '--machine_rank', str(rank), 'train.py', *options],
            cwd=ROOT,
            env=variables(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=280) for process in started]
        assert [process.returncode for process in started] == [0, 0], outputs
        yield [printed for printed, _ in outputs]
    finally:
        for process in started:
            process.kill()


def test_two_machines_train_together(machines: list[str], common: dict[str, Any]) -> None:
    assert all(printed.startswith('2 processes on ') for printed in machines)
    assert (Path(common['output']) / 'machines' / 'best' / 'model.safetensors').exists()
    assert not (Path(common['output']) / 'machines-2').exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason='about machines without GPU')
def test_fsdp_and_fp16_on_cpus_are_called_what_they_are(machines: list[str]) -> None:
    for printed in machines:
        first = printed.splitlines()[0]
        assert 'fp32 (fp16 was asked for' in first
        assert first.endswith('FSDP was asked for, but without GPUs accelerate runs plain DDP')


def test_a_launch_that_silently_starts_one_process_says_so() -> None:
    options = ('--cpu', '--num_processes', '2', '--mixed_precision', 'no')
    # It stops at the unknown model, after the first line.
    first = run(*launch(*options), 'train.py', '--model', 'none').stdout.splitlines()[0]
    assert first.startswith('1 process on cpu')
    assert 'whatever --num_processes says; use: accelerate launch --multi_gpu --num_processes N' in first
