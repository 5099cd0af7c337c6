"""The machine: which processes, devices, threads and precision a run really has, and how it says so."""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DataLoaderConfiguration, DistributedType, GradientAccumulationPlugin
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from . import sharding
from .config import Config

# Parameters of glibc's mallopt(3).
M_TRIM_THRESHOLD = -1
M_MMAP_MAX = -4

WORKING_LAUNCH = (
    'accelerate launch --multi_gpu --num_processes N --num_machines 1 --dynamo_backend no --mixed_precision no '
    'train.py (with or without GPUs, for all its name)'
)
# The launcher's word for a way of training, the type accelerate then has, and its name.
ASKED_FOR = {
    'ACCELERATE_USE_FSDP': (DistributedType.FSDP, 'FSDP'),
    'ACCELERATE_USE_DEEPSPEED': (DistributedType.DEEPSPEED, 'DeepSpeed'),
    'ACCELERATE_USE_MEGATRON_LM': (DistributedType.MEGATRON_LM, 'Megatron-LM'),
}


def keep_freed_memory() -> bool:
    """Keep glibc from handing freed memory back to the system after every layer.

    Activations are large blocks that malloc maps and unmaps anew at each step; on a CPU half of the time went into
    the page faults of that. Other C libraries have no mallopt and are left alone.

    Returns:
        Whether the allocator was set.
    """
    if platform.libc_ver()[0] != 'glibc':
        return False
    libc = ctypes.CDLL(None)
    return bool(libc.mallopt(M_MMAP_MAX, 0) and libc.mallopt(M_TRIM_THRESHOLD, -1))


def return_freed_memory() -> None:
    """Hand all freed memory back to the system, once, where `keep_freed_memory` keeps it."""
    if platform.libc_ver()[0] == 'glibc':
        ctypes.CDLL(None).malloc_trim(0)


def cache_folder() -> Path:
    """Where things are kept from run to run."""
    return Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache') / 'timm_devnet'


def share_cores(threads: int | None) -> int:
    """Set the number of CPU threads of this process.

    Launchers set OMP_NUM_THREADS=1 on their own account, so under one of them a 1 is not the user's wish; any other
    number is, and so is every number when there is no launcher.

    Args:
        threads: What the user asked for; None shares the cores this process may use among its machine's processes.

    Returns:
        The number set.
    """
    if threads is None:
        wish = int(os.environ.get('OMP_NUM_THREADS') or 0)
        is_launched = 'ACCELERATE_MIXED_PRECISION' in os.environ or 'LOCAL_WORLD_SIZE' in os.environ
        cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
        shared = max(1, cores // int(os.environ.get('LOCAL_WORLD_SIZE', 1)))
        threads = wish if wish > 1 or (wish == 1 and not is_launched) else shared
    torch.set_num_threads(threads)
    return threads


def create_accelerator(config: Config, trackers: Sequence[str] = ()) -> Accelerator:
    """Join the processes the launcher started, on GPUs if there are any.

    Args:
        config: Of the run.
        trackers: Names of what follows the run.

    Raises:
        ValueError: The launcher started several processes and they do not see each other.
    """
    # The state is a singleton of the process: without this, a second run would keep the first one's precision.
    AcceleratorState._reset_state()
    try:
        accelerator = Accelerator(
            cpu=not torch.cuda.is_available(),
            mixed_precision=config.mixed_precision,
            dynamo_backend=config.torchcompile,
            log_with=list(trackers) or None,
            # Where a tracker writes is set once the run has its folder; accelerate wants to hear of a place now.
            project_dir=config.output,
            dataloader_config=DataLoaderConfiguration(non_blocking=True),
            # An epoch holds whole updates only, so the count of batches never has to restart at its end.
            gradient_accumulation_plugin=GradientAccumulationPlugin(
                config.grad_accum_steps, sync_with_dataloader=False
            ),
        )
    except ImportError as error:  # DeepSpeed and Megatron-LM are packages of their own
        raise ValueError(f'accelerate cannot run as it was configured: {error}') from error
    started = int(os.environ.get('WORLD_SIZE', 1))
    if started != accelerator.num_processes:
        raise ValueError(
            f'the launcher started {started} processes, but each of them sees {accelerator.num_processes}, so they '
            f'would train {started} separate networks; use: {WORKING_LAUNCH}'
        )
    share_cores(config.threads)
    sharding.adjust(accelerator, config)
    return accelerator


def describe_precision(accelerator: Accelerator) -> str:
    """Name the precision that is really used: on a CPU, accelerate runs fp16 as fp32 and does not say so."""
    asked = accelerator.mixed_precision
    if asked == 'fp16' and accelerator.device.type == 'cpu':
        return 'fp32 (fp16 was asked for, which needs a GPU; on a CPU there is bf16)'
    if asked == 'bf16' and accelerator.device.type == 'cpu' and not computes_bf16():
        return 'bf16 (which this CPU has no instructions for: far slower than fp32)'
    return 'fp32' if asked == 'no' else asked


def computes_bf16() -> bool:
    """Tell whether this CPU computes in bf16: an x86 without AVX-512 takes hundreds of times longer than in fp32."""
    is_x86 = platform.machine().lower() in ('x86_64', 'amd64')
    return not is_x86 or torch.backends.cpu.get_cpu_capability().startswith('AVX512')


def describe(accelerator: Accelerator) -> str:
    """Say what the run really has, in one line."""
    count, kind = accelerator.num_processes, accelerator.device.type
    device = torch.cuda.get_device_name(accelerator.device) if kind == 'cuda' else kind
    line = (
        f'{count} process{"es" if count > 1 else ""} on {device}, {torch.get_num_threads()} CPU threads each, '
        f'{describe_precision(accelerator)}'
    )
    return '; '.join([line, *describe_differences(accelerator)])


def describe_differences(accelerator: Accelerator) -> list[str]:
    """Say what the launcher was asked for and accelerate did not do, of which it says nothing itself."""
    found = []
    if accelerator.distributed_type == DistributedType.FSDP:
        found.append('parameters, gradients and optimizer state spread by FSDP2')
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        stage = accelerator.deepspeed_plugin.zero_stage
        found.append(f'DeepSpeed ZeRO-{stage}, under which weights are saved but no run can be resumed')
    for variable, (kind, name) in ASKED_FOR.items():
        if os.environ.get(variable, '').lower() in ('true', '1') and accelerator.distributed_type != kind:
            found.append(f'{name} was asked for, but without GPUs accelerate runs plain DDP')
    tasks = os.environ.get('SLURM_STEP_NUM_TASKS', '1')
    if accelerator.num_processes == 1 and tasks != '1':
        found.append(
            f'srun started {tasks} tasks and each is a run of its own: if they are meant as one, give each its RANK, '
            'LOCAL_RANK, WORLD_SIZE and MASTER_ADDR (docs/clusters.md)'
        )
    if accelerator.num_processes == 1 and is_lone_process_of_several():
        found.append(
            'if several processes were asked for: this way of starting gives one, whatever --num_processes says; use: '
            + WORKING_LAUNCH
        )
    return found


def is_lone_process_of_several() -> bool:
    """Tell a process that `accelerate launch` started alone although several were asked for.

    With --cpu, and without --multi_gpu on a machine without GPUs, it starts one process. It leaves a trace: the
    address at which several would meet, and no number of processes. (Whoever sets MASTER_ADDR for a run of one process
    leaves the same trace, so this is no error.)
    """
    meets = 'MASTER_ADDR' in os.environ and 'MASTER_PORT' in os.environ
    return meets and 'ACCELERATE_USE_CPU' in os.environ and 'WORLD_SIZE' not in os.environ


def settle_gradient_buckets(
    accelerator: Accelerator,
    model: nn.Module,
    inputs_of: Callable[[], tuple[Tensor, ...]],
    loss_of: Callable[[Any], Tensor],
) -> None:
    """Let DDP order its gradients before the first update, by a pass whose results are thrown away.

    DDP sums gradients in buckets, which it orders anew after the first backward pass. Where three or more processes
    add up, rounding depends on the place in a bucket: without this, a run that goes on would round its first update
    otherwise than one that never stopped. Two numbers have the same sum in either order.

    Args:
        accelerator: Joins the processes.
        model: As prepared.
        inputs_of: Makes any inputs of the size that is trained on.
        loss_of: Computes a loss from what the model gives for them.
    """
    if accelerator.num_processes < 3 or not isinstance(model, DistributedDataParallel):
        return
    buffers = [buffer.clone() for buffer in model.buffers()]
    model.train()
    with torch.random.fork_rng(devices=[accelerator.device] if accelerator.device.type == 'cuda' else []):
        accelerator.backward(loss_of(model(*inputs_of())))
    model.zero_grad()
    with torch.no_grad():
        for buffer, kept in zip(model.buffers(), buffers, strict=True):
            buffer.copy_(kept)
