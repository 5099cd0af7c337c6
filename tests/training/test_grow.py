import dataclasses
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from torch import nn

import timm_devnet
from timm_devnet.grown import Grown
from training.config import Config
from training.grow import Growing, check_growths, grow_first
from training.networks import begin_classifier, build_network
from training.schedule import create_groups, create_optimizer

CONFIG = Config(model='tf_efficientnet_lite0', regime='new', grow=('wa16@1', 'wa8@3'), epochs=5)


@pytest.fixture
def network() -> Any:
    return timm.create_model('tf_efficientnet_lite0', num_classes=3).train()


def start(network: nn.Module, config: Config = CONFIG) -> Growing:
    AcceleratorState._reset_state()
    optimizer = Accelerator(cpu=True).prepare(create_optimizer(config, create_groups(config, network, config.regime)))
    return Growing(config, network, optimizer)


def test_growths_come_when_they_are_due_and_stay_new(network: Any) -> None:
    growing = start(network)
    blocks = []
    for epoch in range(5):
        growing.grow(epoch, 'new', torch.contiguous_format)
        blocks.append(len(timm_devnet.block_names(network)))
    assert blocks == [0, 2, 2, 3, 3]
    assert network.growth == 'wa16_wa8'
    assert network.settled == 0
    assert 'settled' not in network._model_args
    assert timm_devnet.regimes(network) == timm_devnet.regimes(timm.create_model(CONFIG.model, device='meta'))
    learning = {id(parameter) for group in growing.optimizer.param_groups for parameter in group['params']}
    assert learning == {id(parameter) for parameter in network.parameters() if parameter.requires_grad}


def test_what_had_grown_before_the_run_stays_old() -> None:
    network = timm.create_model('tf_efficientnet_lite0_wa', growth='wa16', settled=1, num_classes=3)
    growing = start(network)
    growing.grow(3, 'new', torch.contiguous_format)
    assert network.settled == network._model_args['settled'] == 1
    assert not any(parameter.requires_grad for parameter in network.grown['conv_head_1'].parameters())


def test_new_units_depend_on_the_seed_of_the_run_alone(network: Any) -> None:
    torch.manual_seed(7)
    dropout = torch.get_rng_state()
    start(network).grow(1, 'new', torch.contiguous_format)
    assert torch.equal(torch.get_rng_state(), dropout)
    torch.manual_seed(CONFIG.seed)
    direct = timm.create_model('tf_efficientnet_lite0_wa', growth='wa16', num_classes=3)
    assert torch.equal(network.grown['conv_head_1'].conv.weight, direct.grown['conv_head_1'].conv.weight)


class Spread:
    distributed_type = DistributedType.FSDP


@pytest.mark.parametrize(
    ('model', 'growths', 'accelerator', 'message'),
    [
        ('tf_efficientnet_lite0', ('wa16@1', 'wx16@2'), None, "Unknown growth 'wx16'"),
        ('tf_efficientnet_lite0', ('r99u16@1',), None, 'level'),
        ('tf_efficientnet_lite0', ('wa16@1',), Spread(), r'sharded \(FSDP\): leave it out'),
        ('crossvit_tiny_240', ('wa16@1',), None, 'reads level 1; the network has these'),
    ],
)
def test_growths_that_cannot_be_are_refused_before_training(
    model: str, growths: tuple[str, ...], accelerator: Any, message: str
) -> None:
    network = timm.create_model(model, num_classes=3)
    accelerator = accelerator or type('Whole', (), {'distributed_type': DistributedType.NO})
    with pytest.raises(ValueError, match=message):
        check_growths(Config(model=model, grow=growths), network, accelerator)
    assert not timm_devnet.block_names(network)


@pytest.mark.parametrize('pretrained', [True, False])
def test_a_network_grown_first_is_the_one_built_so(pretrained: bool, lite_weights: Path) -> None:
    config = Config(model='tf_efficientnet_lite0', pretrained=pretrained, grow=('mwa16', 'wa8'), epochs=1)
    torch.manual_seed(config.seed)
    grown: Any = build_network(config, 3)[0]
    grow_first(config, grown, begin_classifier(config, grown, ['a', 'b', 'c']))
    torch.manual_seed(config.seed)
    built: Any = build_network(dataclasses.replace(config, model='tf_efficientnet_lite0_mwa16_wa8', grow=()), 3)[0]
    assert grown.settled == built.settled == 0
    assert grown.state_dict().keys() == built.state_dict().keys()
    assert all(torch.equal(value, built.state_dict()[name]) for name, value in grown.state_dict().items())
    assert start(grown, config).due(0) == []


@pytest.mark.parametrize(('num_classes', 'keeps'), [(3, True), (4, False)])
def test_what_a_checkpoint_has_grown_is_old_and_its_classifier_stays(
    tmp_path: Path, num_classes: int, keeps: bool
) -> None:
    earlier = timm.create_model('tf_efficientnet_lite0_wa', growth='wa16', num_classes=3)
    timm.models.save_for_hf(earlier, tmp_path, safe_serialization=True)
    config = Config(model=f'local-dir:{tmp_path}', grow=('wa8',), epochs=1)
    network: Any = timm.create_model(config.model, pretrained=True, num_classes=num_classes)
    grow_first(config, network, begin_classifier(config, network, ['a', 'b', 'c', 'd'][:num_classes]))
    assert network.settled == network._model_args['settled'] == 1
    columns = network.classifier.weight
    assert torch.equal(columns[:, :1296], earlier.classifier.weight) == keeps
    assert bool(columns[:, 1296:].any()) != keeps


def test_units_that_start_afresh_are_new_although_a_growth_follows() -> None:
    config = Config(model='tf_efficientnet_lite0_wa16', pretrained=False, grow=('wa8',), epochs=1)
    network = timm.create_model('tf_efficientnet_lite0_wa', growth='wa16', num_classes=3)
    grow_first(config, network, starts_afresh=True)
    assert network.settled == 0
    assert network.growth == 'wa16_wa8'


def test_options_of_growths_are_theirs_where_the_network_was_plain() -> None:
    config = dataclasses.replace(CONFIG, pretrained=False, grow=('wa16',), scale_init='off', new_init='copy')
    grown, _ = build_network(config, 3)
    grow_first(config, grown, starts_afresh=False)
    assert isinstance(grown, Grown)
    assert (grown.growth, grown.options.scale_init, grown.options.new_init) == ('wa16', None, 'copy')
