"""What is faster on this machine: found by measuring once, then remembered."""

from __future__ import annotations

import json
import platform
import time
from contextlib import suppress
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn

from .config import Config, MemoryFormat
from .devices import cache_folder, return_freed_memory
from .files import replace_text
from .metrics import split_output

# Images in a measured batch at most: which layout is faster hardly depends on it, and a step of VGG16 takes seconds.
MEASURED_BATCH = 8
ROUNDS = 3
LAYOUTS: dict[MemoryFormat, torch.memory_format] = {
    'contiguous_format': torch.contiguous_format,
    'channels_last': torch.channels_last,
}


def choose_memory_format(config: Config, learner: nn.Module, img_size: int, accelerator: Accelerator) -> MemoryFormat:
    """Tell how activations shall lie in memory: as the user said, as measured before, or as measured now.

    The layout changes where numbers lie and not what is computed, up to the order of sums.

    Args:
        config: Of the run.
        learner: The network as it will be trained; measuring moves it to the device and leaves it in either layout.
        img_size: Side of its images.
        accelerator: The main process measures, the others follow.
    """
    if config.memory_format is not None or not config.tune:
        return config.memory_format or 'channels_last'
    choice: list[MemoryFormat | None] = [None]
    if accelerator.is_main_process:
        path, key = cache_folder() / 'tuning.json', describe_case(config, img_size, accelerator)
        known = read_choices(path)
        if key not in known:
            seconds = measure(learner, min(config.batch_size, MEASURED_BATCH), img_size, accelerator)
            return_freed_memory()  # what one network left behind in two layouts
            faster, slower = sorted(seconds, key=lambda name: seconds[name])
            known[key] = faster
            with suppress(OSError):  # a read-only home is no reason not to train
                replace_text(path, json.dumps({**read_choices(path), key: faster}, indent=2))
            ratio = seconds[slower] / seconds[faster]
            accelerator.print(f'memory format {faster}, measured here {ratio:.2f} times as fast as {slower}')
        choice = [known[key]]
    chosen = broadcast_object_list(choice)[0]
    assert chosen is not None, 'the main process has chosen'
    return chosen


def read_choices(path: Path) -> dict[str, MemoryFormat]:
    """Read what was measured before; a broken file counts as none."""
    try:
        choices = json.loads(path.read_text())
        return {key: value for key, value in choices.items() if value in LAYOUTS}
    except (OSError, ValueError, AttributeError):
        return {}


def describe_case(config: Config, img_size: int, accelerator: Accelerator) -> str:
    """All that the choice depends on."""
    parts = (
        *(
            ' '.join((config.model, *config.grow)),
            config.regime,
            f'{config.batch_size}x{img_size}',
            f'accumulate {config.grad_accum_steps}',
        ),
        *(
            f'block loss {bool(config.block_loss)}',
            f'lwf {bool(config.lwf)}',
            f'compile {config.torchcompile}',
            accelerator.mixed_precision,
        ),
        *([] if config.lora is None else [f'lora {config.lora}']),
        *(f'{torch.get_num_threads()} threads', device_name(accelerator.device), f'torch {torch.__version__}'),
    )
    return ', '.join(parts)


def device_name(device: torch.device) -> str:
    """The model of the GPU, or of the CPU where the system tells it."""
    if device.type == 'cuda':
        return torch.cuda.get_device_name(device)
    with suppress(OSError):
        for line in Path('/proc/cpuinfo').read_text().splitlines():
            if line.startswith('model name'):
                return line.partition(':')[2].strip()
    return platform.processor() or platform.machine()


class TimedStep(nn.Module):
    """Forward and backward of a network, as one call: with gradient checkpointing the backward runs layers again."""

    def __init__(self, network: nn.Module, accelerator: Accelerator):
        super().__init__()
        self.network, self.accelerator = network, accelerator

    def forward(self, images: Tensor) -> None:
        """Leave gradients in the parameters, of any loss."""
        with self.accelerator.autocast():
            logits, blocks = split_output(self.network(images))
            loss = torch.stack([answer.float().square().mean() for answer in (logits, *blocks)]).sum()
        loss.backward()


def measure(learner: nn.Module, batch_size: int, img_size: int, accelerator: Accelerator) -> dict[MemoryFormat, float]:
    """Time forward and backward of a network, first in one layout, then in the other.

    The network itself is laid out so: a copy, or going to and fro, would decide how much memory a run takes. Afterwards
    it is as it was, but for its device and its layout.

    Returns:
        The shortest time of each, in seconds.
    """
    device = accelerator.device
    modes = [(module, module.training) for module in learner.modules()]
    step = TimedStep(learner.to(device), accelerator).train()
    buffers = {name: buffer.clone() for name, buffer in step.named_buffers()}  # statistics of batch norms change
    images = torch.randn(batch_size, 3, img_size, img_size, generator=torch.Generator().manual_seed(0)).to(device)

    def time_step(layout: torch.memory_format) -> float:
        given = images.to(memory_format=layout)
        wait(device)
        start = time.perf_counter()
        torch.func.functional_call(step, buffers, (given,))
        wait(device)
        seconds = time.perf_counter() - start
        step.zero_grad()
        return seconds

    seconds: dict[MemoryFormat, float] = {}
    try:
        with torch.random.fork_rng():
            for name, layout in LAYOUTS.items():
                step.to(memory_format=layout)
                time_step(layout)  # finds its kernels
                seconds[name] = min(time_step(layout) for _ in range(ROUNDS))
    finally:
        for module, mode in modes:
            module.training = mode
    return seconds


def wait(device: torch.device) -> None:
    """Wait until the device has done what it was told."""
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
