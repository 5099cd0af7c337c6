"""What tests/test_scale.py starts in two processes at once, since starting them costs more than what they do.

It runs a list of jobs from a file: whole runs of train.py, and networks that torch's own `fully_shard` spreads.
"""

import json
import sys
from pathlib import Path
from typing import Any

import timm
import torch
from accelerate import Accelerator
from accelerate.state import PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from timm.models.vgg import ConvMlp
from torch import nn

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import timm_devnet  # noqa: E402
import train  # noqa: E402
from training import devices  # noqa: E402
from training.config import Config  # noqa: E402
from training.schedule import create_optimizer, create_schedule  # noqa: E402

STEPS = 4


def few_units(whole: Any = ConvMlp.__init__) -> None:
    """Let AlexNet have only 81 units in FC6; it has no BatchNorm, which sees each process's own images."""
    ConvMlp.__init__ = lambda self, *args, **kwargs: whole(self, *args, **{**kwargs, 'mlp_ratio': 0.02})  # type: ignore


def spreading_accelerator(**options: Any) -> Accelerator:
    """Make accelerate run its own FSDP2 on CPUs, which it otherwise does on GPUs only."""
    accelerator = Accelerator(**options)
    accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin(fsdp_version=2, cpu_ram_efficient_loading=True)
    accelerator.state.distributed_type = PartialState._shared_state['distributed_type'] = DistributedType.FSDP
    return accelerator


def run_training(job: dict[str, Any]) -> None:
    """Run train.py; `spread` says whether under FSDP2."""
    devices.Accelerator = spreading_accelerator if job['spread'] else Accelerator
    train.main(Config(**job['config']))
    PartialState._shared_state['distributed_type'] = DistributedType.MULTI_CPU


def compare_sharded(job: dict[str, Any]) -> None:
    """Train a grown network spread by `fully_shard` beside the same network whole, on the same global batch."""
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor

    config = Config(lr=0.01, regime=job['regime'], epochs=1, opt=job['opt'])
    networks, losses = [], []
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(STEPS, 8, 3, 64, 64, generator=generator)
    targets = torch.randint(0, 3, (STEPS, 8), generator=generator)
    for spread in (False, True):
        torch.manual_seed(0)
        network: Any = timm.create_model('alexnet_mwa', num_classes=3, growth='mwa16', drop_rate=0.0)
        start = {name: tensor.clone() for name, tensor in network.state_dict().items()}
        if spread:
            fully_shard(network)
        groups = timm_devnet.parameter_groups(network, config.regime, config.lr, config.weight_decay)
        optimizer = create_optimizer(config, groups, spread)
        schedule = create_schedule(config, optimizer, STEPS)
        mine = slice(torch.distributed.get_rank(), 8, 2) if spread else slice(None)
        for step in range(STEPS):
            loss = nn.functional.cross_entropy(network.train()(images[step, mine]), targets[step, mine])
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step_update(step + 1)
            if spread:
                parts: list[Any] = [None, None]
                torch.distributed.all_gather_object(parts, loss.item())
                losses.append(sum(parts) / 2)
            else:
                losses.append(loss.item())
        networks.append(network)
    whole, sharded = networks
    ended = {name: tensor.full_tensor() for name, tensor in sharded.state_dict().items()}
    found = {
        'losses': losses[:STEPS],
        'sharded_losses': losses[STEPS:],
        'difference': max((ended[name] - tensor).abs().max().item() for name, tensor in whole.state_dict().items()),
        'learning': [name for name, parameter in sharded.named_parameters() if parameter.requires_grad],
        'moved': [name for name in start if not torch.equal(ended[name], start[name])],
        'is_spread': all(isinstance(parameter, DTensor) for parameter in sharded.parameters()),
        'rates': [group['lr'] / group['lr_scale'] for group in optimizer.param_groups],
    }
    if torch.distributed.get_rank() == 0:
        Path(job['output']).write_text(json.dumps(found))


if __name__ == '__main__':
    few_units()
    for job in json.loads(Path(sys.argv[1]).read_text()):
        run_training(job) if 'config' in job else compare_sharded(job)
    torch.distributed.destroy_process_group()
