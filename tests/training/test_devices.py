import importlib.util
import os
import platform
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from training import devices
from training.config import Config

LAUNCHER = {'ACCELERATE_MIXED_PRECISION': 'no'}


@pytest.fixture(autouse=True)
def few_threads(monkeypatch: pytest.MonkeyPatch) -> Any:
    for name in ('OMP_NUM_THREADS', 'LOCAL_WORLD_SIZE', 'ACCELERATE_MIXED_PRECISION', 'WORLD_SIZE'):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, 'sched_getaffinity', lambda process: {*range(8)}, raising=False)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ('environment', 'asked', 'expected'),
    [
        ({}, None, 8),
        ({'OMP_NUM_THREADS': '1'}, None, 1),
        ({**LAUNCHER, 'OMP_NUM_THREADS': '1'}, None, 8),
        ({**LAUNCHER, 'OMP_NUM_THREADS': '3'}, None, 3),
        ({**LAUNCHER, 'OMP_NUM_THREADS': '1'}, 1, 1),
        ({'LOCAL_WORLD_SIZE': '4', 'OMP_NUM_THREADS': '1'}, None, 2),
        ({'LOCAL_WORLD_SIZE': '16'}, None, 1),
    ],
)
def test_cores_are_shared(
    environment: dict[str, str], asked: int | None, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert devices.share_cores(asked) == torch.get_num_threads() == expected


def test_processes_that_do_not_see_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    Accelerator(cpu=True)  # this process is alone, whatever the launcher says next
    monkeypatch.setenv('WORLD_SIZE', '2')
    with pytest.raises(
        ValueError, match=r'started 2 processes, but each of them sees 1.*accelerate launch --multi_gpu'
    ):
        devices.create_accelerator(Config(threads=1))


@pytest.mark.skipif(torch.cuda.is_available(), reason='about machines without GPU')
def test_fp16_on_a_cpu_is_called_what_it_is() -> None:
    text = devices.describe(devices.create_accelerator(Config(threads=3, mixed_precision='fp16')))
    assert text.startswith('1 process on cpu, 3 CPU threads each, fp32 (fp16 was asked for')


def test_the_precision_of_an_earlier_run_does_not_stay() -> None:
    assert devices.create_accelerator(Config(threads=1, mixed_precision='bf16')).mixed_precision == 'bf16'
    assert devices.create_accelerator(Config(threads=1, mixed_precision='no')).mixed_precision == 'no'


@pytest.mark.parametrize(
    ('machine', 'capability', 'can'),
    [('x86_64', 'AVX512', True), ('AMD64', 'AVX2', False), ('x86_64', 'DEFAULT', False), ('arm64', 'DEFAULT', True)],
)
def test_bf16_without_instructions_for_it_is_said(
    machine: str, capability: str, can: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, 'machine', lambda: machine)
    monkeypatch.setattr(torch.backends.cpu, 'get_cpu_capability', lambda: capability)
    accelerator: Any = SimpleNamespace(device=torch.device('cpu'), mixed_precision='bf16')
    assert (devices.describe_precision(accelerator) == 'bf16') == can
    accelerator.device = torch.device('cuda')
    assert devices.describe_precision(accelerator) == 'bf16'


def test_fsdp_that_is_none_is_called_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cpu, 'get_cpu_capability', lambda: 'AVX512')
    accelerator: Any = SimpleNamespace(
        num_processes=2, device=torch.device('cpu'), mixed_precision='bf16', distributed_type='MULTI_CPU'
    )
    assert 'FSDP' not in devices.describe(accelerator)
    monkeypatch.setenv('ACCELERATE_USE_FSDP', 'true')
    assert devices.describe(accelerator).endswith(
        'bf16; FSDP was asked for, but without GPUs accelerate runs plain DDP'
    )


def test_deepspeed_that_is_not_installed_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec('deepspeed'):
        pytest.skip('DeepSpeed is installed')
    monkeypatch.setenv('ACCELERATE_USE_DEEPSPEED', 'true')
    with pytest.raises(ValueError, match='accelerate cannot run as it was configured: .*pip install deepspeed'):
        devices.create_accelerator(Config(threads=1))


@pytest.mark.parametrize(
    ('environment', 'expected'),
    [
        ({'ACCELERATE_USE_CPU': 'True', 'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': '29500'}, True),
        ({'ACCELERATE_USE_CPU': 'True'}, False),  # no more than one was asked for
        ({'ACCELERATE_USE_CPU': 'true', 'MASTER_ADDR': 'a', 'MASTER_PORT': '1', 'WORLD_SIZE': '2'}, False),
        ({'MASTER_ADDR': 'a', 'MASTER_PORT': '1'}, False),  # the user's own, and no launcher
    ],
)
def test_a_lone_process_of_several_is_noticed(
    environment: dict[str, str], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ('ACCELERATE_USE_CPU', 'MASTER_ADDR', 'MASTER_PORT', 'WORLD_SIZE'):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert devices.is_lone_process_of_several() == expected


def test_tasks_that_do_not_know_of_each_other_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('SLURM_STEP_NUM_TASKS', '4')
    text = devices.describe(devices.create_accelerator(Config(threads=1)))
    assert 'srun started 4 tasks and each is a run of its own: if they are meant as one, give each its RANK' in text


@pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='only glibc has mallopt')
def test_allocator_is_set_on_glibc() -> None:
    assert devices.keep_freed_memory()


def test_other_allocators_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, 'libc_ver', lambda: ('', ''))
    assert not devices.keep_freed_memory()
