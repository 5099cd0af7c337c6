"""What is refused and set before FSDP2 or DeepSpeed prepare anything; tests/test_scale.py runs them."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate.utils import DistributedType
from torch import nn
from torch.distributed.fsdp.wrap import size_based_auto_wrap_policy

from training import sharding
from training.config import Config


def spread_by(kind: DistributedType, **others: Any) -> Any:
    """Stand in for an accelerator on GPUs."""
    return SimpleNamespace(distributed_type=kind, parallelism_config=None, mixed_precision='no', **others)


def with_fsdp(**settings: Any) -> Any:
    plugin = {'fsdp_version': 2, 'auto_wrap_policy': None, 'cpu_ram_efficient_loading': True, **settings}
    return spread_by(DistributedType.FSDP, state=SimpleNamespace(fsdp_plugin=SimpleNamespace(**plugin)))


def with_deepspeed(**settings: Any) -> Any:
    settings = {'gradient_accumulation_steps': 'auto', 'zero_optimization': {'stage': 3}, **settings}
    return spread_by(DistributedType.DEEPSPEED, deepspeed_plugin=SimpleNamespace(deepspeed_config=settings))


@pytest.mark.parametrize(
    ('accelerator', 'config', 'message'),
    [
        (with_fsdp(fsdp_version=1), Config(), 'fsdp_version: 2'),
        (with_fsdp(auto_wrap_policy=size_based_auto_wrap_policy), Config(), 'SIZE_BASED_WRAP does not work'),
        (spread_by(DistributedType.MEGATRON_LM), Config(), 'Megatron-LM is for transformers'),
        (with_fsdp(), Config(model_ema=True), '--model-ema need the whole network'),
        (with_deepspeed(), Config(l2_sp=0.1, cache_features=1), '--cache-features and --l2-sp need the whole network'),
        (with_deepspeed(), Config(resume='auto'), '--resume auto: a run under DeepSpeed cannot be resumed'),
        (with_deepspeed(), Config(nonfinite='skip'), '--nonfinite skip: DeepSpeed updates the weights before'),
        (with_deepspeed(gradient_clipping=1.0), Config(), 'gradient_clipping is 1.0: .* give --clip-grad'),
        (with_deepspeed(gradient_accumulation_steps=4), Config(), 'steps is 4: .* give --grad-accum-steps'),
    ],
)
def test_what_does_not_work_is_refused(accelerator: Any, config: Config, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sharding.adjust(accelerator, config)


def test_deepspeed_does_not_get_to_clip_by_itself() -> None:
    accelerator = with_deepspeed(gradient_clipping='auto')
    sharding.adjust(accelerator, Config(grad_accum_steps=2))
    settings = accelerator.deepspeed_plugin.deepspeed_config
    assert (settings['gradient_clipping'], settings['gradient_accumulation_steps']) == (0.0, 2)


def test_fsdp2_is_spared_what_stops_at_batch_norm() -> None:
    accelerator = with_fsdp()
    sharding.adjust(accelerator, Config())
    assert not accelerator.state.fsdp_plugin.cpu_ram_efficient_loading
    assert accelerator.state.fsdp_plugin.mixed_precision_policy is None


@pytest.mark.parametrize('size', ['tp_size', 'cp_size', 'sp_size'])
def test_splitting_layers_is_refused(size: str) -> None:
    accelerator = spread_by(DistributedType.FSDP)
    accelerator.parallelism_config = SimpleNamespace(**{'tp_size': 1, 'cp_size': 1, 'sp_size': 1, size: 2})
    with pytest.raises(ValueError, match='leave their sizes at 1'):
        sharding.adjust(accelerator, Config())


def test_weights_are_channels_last_only_where_they_are_whole() -> None:
    assert sharding.weights_format(spread_by(DistributedType.NO), torch.channels_last) == torch.channels_last
    assert sharding.weights_format(with_fsdp(), torch.channels_last) == torch.contiguous_format
    assert sharding.weights_format(with_deepspeed(), torch.channels_last) == torch.contiguous_format


def test_names_put_before_the_weights_are_taken_away() -> None:
    network = nn.Sequential(nn.Linear(2, 2))
    wrapped = nn.ModuleDict({'model': network})
    accelerator = with_fsdp()
    accelerator.is_main_process = True
    accelerator.get_state_dict = lambda model: model.state_dict()
    assert [*sharding.whole_weights(accelerator, wrapped, network)] == ['0.weight', '0.bias']
    accelerator.is_main_process = False
    assert sharding.whole_weights(accelerator, wrapped, network) == {}
