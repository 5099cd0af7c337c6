"""LoRA: old layers learn through small adapters of low rank beside them, and are themselves frozen.

The adapters are those of the package peft. What a run leaves behind is a plain network all the same: what the adapters
have learnt is added to the weights beside them.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from timm.data import resolve_data_config
from timm.layers import Conv2dSame
from timm.layers import Linear as CastLinear
from torch import Tensor, nn

import timm_devnet
from timm_devnet.outline import run_on_meta

from .config import Config
from .schedule import old_groups

# What computes weight times input and nothing else, so that the sum of two such layers is one with the sum of weights.
CONVOLUTIONS = (nn.Conv2d, Conv2dSame)
LINEAR = (nn.Linear, CastLinear)
ADAPTER = 'default'  # peft's name for the only one


def create_adapters(config: Config, network: nn.Module, groups: list[dict[str, Any]], img_size: int) -> list[dict]:
    """Put adapters beside the old layers that would learn, and freeze all that is old.

    Adapters learn at the rate of the layers that they stand for, and are decayed. BatchNorms and dropout of the old
    layers are in evaluation. Adapters depend on --seed alone and begin at zero, so nothing changes at first.

    Args:
        config: Of the run.
        network: As timm made it, plain or grown. It is changed itself.
        groups: What its regime trains, as `create_groups` gave it.
        img_size: Side of the images.

    Returns:
        The groups of what learns now.

    Raises:
        ValueError: peft is not installed, or no old layer that learns can have an adapter.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ValueError(
            f"--lora {config.lora} needs the package peft: pip install 'timm_devnet[lora]', or leave it out"
        ) from error
    assert config.lora is not None
    layers = adaptable_layers(network, groups, img_size)
    if not layers:
        raise ValueError(
            f'--lora {config.lora}: regime {config.regime} of {config.model} trains no old layer that can have an '
            'adapter (convolutions without groups, linear layers): leave it out, or give another --regime'
        )
    kept = timm_devnet.parameter_groups(network, 'new', config.lr, config.weight_decay, config.new_lr_mult)
    learns = {id(parameter): parameter.requires_grad for parameter in network.parameters()}
    described = LoraConfig(
        r=config.lora,
        lora_alpha=config.lora if config.lora_alpha is None else config.lora_alpha,  # type: ignore[arg-type]
        target_modules='|'.join(map(re.escape, layers)),  # peft takes a word of a list for the end of a name too
    )
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        inject_adapter_in_model(described, network, ADAPTER)
    for parameter in network.parameters():
        parameter.requires_grad_(learns.get(id(parameter), True))
    adapters = [parameter for parameter in network.parameters() if id(parameter) not in learns]
    group = {'params': adapters, 'lr': config.lr, 'lr_scale': 1.0, 'weight_decay': config.weight_decay}
    return [*kept, {**group, 'name': 'adapters'}]


def adaptable_layers(network: nn.Module, groups: list[dict[str, Any]], img_size: int) -> dict[str, Any]:
    """List the old layers that learn and can have an adapter, by name.

    These are convolutions without groups and dilation, and linear layers, that the network calls: some networks read a
    layer's weight and multiply themselves, and would pass an adapter by.

    Args:
        network: As timm made it.
        groups: What its regime trains.
        img_size: Side of images that it takes.
    """
    learning = {id(parameter) for group in old_groups(groups) for parameter in group['params']}
    candidates: dict[str, Any] = {
        name: module
        for name, module in network.named_modules()
        if is_plain_product(module) and id(module.weight) in learning
    }
    called: set[nn.Module] = set()
    hooks = [
        module.register_forward_hook(lambda module, inputs, output: called.add(module))
        for module in candidates.values()
    ]
    modes = [(module, module.training) for module in network.modules()]
    try:
        run_on_meta(network.eval(), torch.empty(2, 3, img_size, img_size, device='meta'))
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in modes:
            module.training = mode
    return {name: module for name, module in candidates.items() if module in called}


def is_plain_product(module: nn.Module) -> bool:
    """Tell a layer whose weight is the sum of two if its outputs are."""
    if type(module) in LINEAR:
        return True
    if not isinstance(module, nn.Conv2d) or type(module) not in CONVOLUTIONS:
        return False
    # peft cannot merge adapters of layers with groups, and makes adapters without dilation and other paddings.
    return module.groups == 1 and module.dilation == (1, 1) and module.padding_mode == 'zeros'


def rank_for_budget(model: nn.Module, parameters: int) -> int:
    """Find the rank at which adapters of all old layers have about so many parameters.

    Args:
        model: A plain or grown network, also on the meta device. All of it is unfrozen.
        parameters: That the adapters may have.

    Returns:
        The rank whose adapters come nearest, at least 1.

    Example:
        >>> import timm
        >>> rank_for_budget(timm.create_model('tf_efficientnet_lite0', device='meta'), 100_000)
        4
    """
    return max(1, round(parameters / count_adapters(model)))


def count_adapters(model: nn.Module, rank: int = 1) -> int:
    """Count the parameters of adapters of all old layers.

    Args:
        model: As for `rank_for_budget`.
        rank: Of the adapters.
    """
    groups = timm_devnet.parameter_groups(model, 'all', lr=1.0, weight_decay=0.0)
    layers = adaptable_layers(model, groups, resolve_data_config({}, model=model)['input_size'][-1])
    # One factor reads what the layer reads, the other gives what it gives.
    return rank * sum(layer.weight[0].numel() + len(layer.weight) for layer in layers.values())


def merged_weights(network: nn.Module) -> dict[str, Tensor]:
    """Give the state dict of the network without adapters: what they have learnt is in the weights beside them.

    The network is not changed: to merge and part again would cost digits, and a run would not go on bit for bit.
    """
    from peft.tuners.lora import LoraLayer

    weights = network.state_dict()
    for name, module in network.named_modules():
        if isinstance(module, LoraLayer):
            for key in [key for key in weights if key.startswith(f'{name}.')]:
                tensor = weights.pop(key)
                if key.startswith(f'{name}.base_layer.'):
                    weights[f'{name}.{key.removeprefix(f"{name}.base_layer.")}'] = tensor
            with torch.no_grad():
                learnt: Any = module
                weights[f'{name}.weight'] = weights[f'{name}.weight'] + learnt.get_delta_weight(ADAPTER)
    return weights
