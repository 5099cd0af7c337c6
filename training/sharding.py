"""Networks that FSDP2 or DeepSpeed spread over the processes: what must be set for ours, and their state made whole."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch.distributed.fsdp.wrap import size_based_auto_wrap_policy
from torch.optim import Optimizer

from .config import Config

SPREADING = (DistributedType.FSDP, DistributedType.DEEPSPEED)
# Options of torch's optimizers that change how an update is computed, and not what it is.
KERNELS = ('fused', 'foreach')


def is_spread(accelerator: Accelerator) -> bool:
    """Tell whether parameters, gradients or optimizer state are spread over the processes."""
    return accelerator.distributed_type in SPREADING


def adjust(accelerator: Accelerator, config: Config) -> None:
    """Fit what accelerate was configured with to these networks, before anything is prepared.

    Raises:
        ValueError: The configuration asks for what does not work with them; the message says what does.
    """
    if accelerator.distributed_type == DistributedType.MEGATRON_LM:
        raise ValueError('Megatron-LM is for transformers: take it out of the configuration of accelerate')
    parallel = accelerator.parallelism_config
    if parallel is not None and max(parallel.tp_size, parallel.cp_size, parallel.sp_size) > 1:
        raise ValueError('tensor, context and sequence parallelism are for transformers: leave their sizes at 1')
    whole = ('model_ema', 'cache_features', 'l2_sp', 'lora')
    needs_whole = [f'--{name.replace("_", "-")}' for name in whole if getattr(config, name) not in (None, False)]
    if is_spread(accelerator) and needs_whole:
        raise ValueError(f'{" and ".join(needs_whole)} need the whole network in each process: leave out sharding')
    if accelerator.distributed_type == DistributedType.FSDP:
        adjust_fsdp(accelerator)
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        adjust_deepspeed(accelerator, config)


def adjust_fsdp(accelerator: Accelerator) -> None:
    """Allow FSDP2 in the forms that work.

    Raises:
        ValueError: It is the first FSDP, or its units would be chosen by size.
    """
    plugin: Any = accelerator.state.fsdp_plugin
    if plugin.fsdp_version != 2:
        raise ValueError(
            'FSDP 1 cannot hold frozen and trained parameters side by side: give accelerate --fsdp_version 2 '
            '(fsdp_version: 2 under fsdp_config)'
        )
    if plugin.auto_wrap_policy is size_based_auto_wrap_policy:
        # It would pick modules that are read without being called, such as the one that holds all that has grown.
        raise ValueError(
            'SIZE_BASED_WRAP does not work with these networks: give fsdp_auto_wrap_policy NO_WRAP, or '
            'TRANSFORMER_BASED_WRAP with fsdp_transformer_layer_cls_to_wrap Conv2d'
        )
    # accelerate switches it on by default and then stops at BatchNorm's buffers. Every process has the whole network
    # at this point anyway.
    plugin.cpu_ram_efficient_loading = False
    # The policy would cast BatchNorm's parameters and not its statistics. `autocast` does as is done without FSDP.
    plugin.mixed_precision_policy = None


def adjust_deepspeed(accelerator: Accelerator, config: Config) -> None:
    """Let DeepSpeed accumulate and clip gradients as our flags say.

    Raises:
        ValueError: DeepSpeed's configuration says otherwise, or something is asked for that does not go with it.
    """
    if config.resume is not None:
        raise ValueError(f'--resume {config.resume}: a run under DeepSpeed cannot be resumed, one under FSDP2 can')
    if config.nonfinite == 'skip':
        raise ValueError('--nonfinite skip: DeepSpeed updates the weights before a loss is known; give stop')
    if accelerator.mixed_precision != 'no':
        raise ValueError(
            f"DeepSpeed's {accelerator.mixed_precision} would cast BatchNorm's statistics too: give "
            '--mixed_precision no, or use FSDP2'
        )
    settings = accelerator.deepspeed_plugin.deepspeed_config
    wishes = {'gradient_accumulation_steps': config.grad_accum_steps, 'gradient_clipping': config.clip_grad or 0.0}
    for name, wish in wishes.items():
        # Left at auto, accelerate would clip at 1.
        if settings.get(name, 'auto') == 'auto':
            settings[name] = wish
        if settings[name] != wish:
            flag = '--grad-accum-steps' if name == 'gradient_accumulation_steps' else '--clip-grad'
            raise ValueError(f"DeepSpeed's {name} is {settings[name]}: set it to auto and give {flag} instead")
    settings['zero_optimization']['stage3_gather_16bit_weights_on_model_save'] = True  # whatever bits they have


def can_be_resumed(accelerator: Accelerator) -> bool:
    """Tell whether a checkpoint would hold the whole run.

    DeepSpeed saves its parts of the optimizer state itself, in pickles that it opens with code execution.
    """
    return accelerator.distributed_type != DistributedType.DEEPSPEED


def autocast(accelerator: Accelerator, model: nn.Module) -> nn.Module:
    """Let FSDP2 compute in mixed precision as DDP does: accelerate has this for every other way of training."""
    if accelerator.distributed_type == DistributedType.FSDP and accelerator.native_amp:
        forward = model.forward

        def cast_forward(*args: Any) -> Any:
            with accelerator.autocast():
                return forward(*args)

        model.forward = cast_forward
    return model


def weights_format(accelerator: Accelerator, wish: torch.memory_format) -> torch.memory_format:
    """Choose the layout of the weights: neither FSDP2 nor DeepSpeed takes channels-last ones; images may be so."""
    return torch.contiguous_format if is_spread(accelerator) else wish


def check_prepared(accelerator: Accelerator, network: Any, config: Config) -> None:
    """Refuse units of FSDP2 that would fail in the first step.

    Raises:
        ValueError: The classifier is a unit by itself, and the blocks of the network would read it from outside.
    """
    if accelerator.distributed_type == DistributedType.FSDP and config.block_loss:
        from torch.distributed.fsdp import FSDPModule  # not in the oldest torch, which has no FSDP2

        if isinstance(network.get_classifier(), FSDPModule):
            raise ValueError(
                '--block-loss reads the classifier block by block: leave Linear out of '
                'fsdp_transformer_layer_cls_to_wrap, or give --block-loss 0'
            )


def share_buffers(accelerator: Accelerator, model: nn.Module) -> None:
    """Let every forward pass begin with the main process's BatchNorm statistics, as DDP does and FSDP2 does not.

    Without it processes would evaluate with statistics of their own, and the saved ones would be those of one of them.
    """
    buffers = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
    if not buffers or not is_spread(accelerator) or accelerator.num_processes == 1:
        return

    @torch.no_grad()
    def share(*_: Any) -> None:
        joined = torch.cat([buffer.flatten() for buffer in buffers])
        torch.distributed.broadcast(joined, src=0)
        for buffer, part in zip(buffers, joined.split([buffer.numel() for buffer in buffers]), strict=True):
            buffer.copy_(part.view_as(buffer))

    model.register_forward_pre_hook(share)


def whole_weights(accelerator: Accelerator, model: nn.Module, network: nn.Module) -> dict[str, Tensor]:
    """Put the weights together; every process must call this.

    Args:
        accelerator: Joins the processes.
        model: The network as prepared.
        network: The same as timm made it.

    Returns:
        The network's state dict; empty, where it is spread, on all but the main process.
    """
    if not is_spread(accelerator):
        return network.state_dict()
    weights = accelerator.get_state_dict(model)
    if not accelerator.is_main_process:
        return {}
    # What wraps the network, such as `BlockAnswers`, puts its own name before the keys.
    prefix = next((key for key in weights if key.endswith(first_key(network))), '').removesuffix(first_key(network))
    return {key.removeprefix(prefix): tensor for key, tensor in weights.items()}


def first_key(network: nn.Module) -> str:
    return next(iter(network.state_dict()))


def whole(state: Any) -> Any:
    """Put the spread tensors of a state dict together, on the CPU; every process must call this."""
    if is_spread_tensor(state):
        return state.full_tensor().cpu()
    if isinstance(state, Mapping):
        return {key: whole(value) for key, value in state.items()}
    if isinstance(state, list):
        return [whole(value) for value in state]
    return state


def spread_weights(weights: Mapping[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """Spread whole weights as a network's own are, so that it can load them; every process has all of them."""
    own = network.state_dict()
    return {key: spread_like(own[key], tensor) if key in own else tensor for key, tensor in weights.items()}


def spread_optimizer_state(state: dict[str, Any], optimizer: Optimizer) -> dict[str, Any]:
    """Spread a whole optimizer state as its parameters are, so that the optimizer can load it.

    How the optimizer computes stays its own: a run that begins whole may go on spread, and the other way round.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group['params']]
    spread = {
        index: {
            name: spread_like(parameters[index], value) if isinstance(value, Tensor) else value
            for name, value in values.items()
        }
        for index, values in state['state'].items()
    }
    groups = [
        {**saved, **{name: own[name] for name in KERNELS if name in own}}
        for saved, own in zip(state['param_groups'], optimizer.param_groups, strict=True)
    ]
    return {'state': spread, 'param_groups': groups}


def spread_like(own: Any, tensor: Tensor) -> Tensor:
    """Spread a whole tensor as another of its shape is, if that is spread at all."""
    if not is_spread_tensor(own) or tensor.shape != own.shape:
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor.to(own.device), own.device_mesh, own.placements)


def own_part(tensor: Any) -> Tensor:
    """Take this process's part of a spread tensor; all of any other."""
    return tensor.to_local() if is_spread_tensor(tensor) else tensor


def is_spread_tensor(value: Any) -> bool:
    """Tell a DTensor, whose class the oldest torch does not have in public, from everything else."""
    return hasattr(value, 'full_tensor')
