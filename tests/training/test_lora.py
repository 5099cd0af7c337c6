import sys
from pathlib import Path

import pytest
import timm
import torch
from peft.tuners.lora import LoraLayer
from timm.layers import Conv2dSame, ScaledStdConv2d
from torch import Tensor, nn

import timm_devnet
from training.config import Config
from training.lora import (
    adaptable_layers,
    count_adapters,
    create_adapters,
    is_plain_product,
    merged_weights,
    rank_for_budget,
)
from training.schedule import create_groups

# Convolutions, with groups too; linear layers; a grown network, whose strided convolutions pad as TensorFlow's.
NETWORKS = {
    'test_efficientnet': {},
    'test_resnet': {},
    'test_vit': {'img_size': 64},
    'tf_efficientnet_lite0_mwa512': {'growth': 'mwa16'},
}


def build(name: str) -> nn.Module:
    return timm.create_model(name, num_classes=3, **NETWORKS[name])


def adapt(name: str, regime: str = 'all', learnt: bool = True, **options: int) -> tuple[nn.Module, list[dict]]:
    """Build a network with adapters that have learnt something."""
    network = build(name)
    config = Config(model=name, regime=regime, lora=3, **options)
    groups = create_adapters(config, network, create_groups(config, network, regime), 64)
    with torch.no_grad():
        for parameter in groups[-1]['params'] if learnt else ():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)), alpha=0.05)
    return network, groups


@pytest.fixture
def images() -> Tensor:
    return torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize('name', NETWORKS)
def test_merged_weights_are_those_of_the_plain_network(name: str, images: Tensor) -> None:
    network, _ = adapt(name)
    plain = build(name).eval()
    untouched = plain(images)
    plain.load_state_dict(merged_weights(network))
    answers = network.eval()(images)
    torch.testing.assert_close(plain(images), answers, rtol=1e-5, atol=1e-5)
    assert (untouched - answers).abs().max() > 1e-3


def test_merging_leaves_the_network_as_it_is(images: Tensor) -> None:
    network, _ = adapt('test_efficientnet')
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    merged_weights(network)
    torch.testing.assert_close(network.state_dict(), before, rtol=0, atol=0)


@pytest.mark.parametrize('name', NETWORKS)
def test_adapters_change_nothing_at_first(name: str, images: Tensor) -> None:
    network, _ = adapt(name, learnt=False)
    torch.manual_seed(0)
    torch.testing.assert_close(network.eval()(images), rebuilt(name)(images), rtol=0, atol=0)


def rebuilt(name: str) -> nn.Module:
    """Build again with the same first weights."""
    torch.manual_seed(0)
    return build(name).eval()


@pytest.mark.parametrize('name', NETWORKS)
def test_adapters_and_what_is_new_learn_and_nothing_else(name: str, images: Tensor) -> None:
    network, groups = adapt(name)
    network.train()(images).square().sum().backward()
    learning = {id(parameter) for group in groups for parameter in group['params']}
    assert {id(p) for p in network.parameters() if p.requires_grad} == learning
    assert {id(p) for p in network.parameters() if p.grad is not None} == learning
    names = {
        name.partition('.')[0] for name, p in network.named_parameters() if p.requires_grad and 'lora_' not in name
    }
    assert names <= {'grown', 'classifier', 'fc', 'head'}
    assert groups[-1]['name'] == 'adapters'


def test_statistics_of_the_trunk_stay(images: Tensor) -> None:
    network, _ = adapt('test_efficientnet')
    before = {name: tensor.clone() for name, tensor in network.named_buffers()}
    network.train()(images)
    torch.testing.assert_close(dict(network.named_buffers()), before, rtol=0, atol=0)


def test_a_regime_says_which_layers_have_adapters() -> None:
    network, _ = adapt('test_efficientnet', 'conv_head-new')
    assert [name for name, module in network.named_modules() if isinstance(module, LoraLayer)] == ['conv_head']
    network, _ = adapt('test_efficientnet')
    adapted = [module for module in network.modules() if isinstance(module, LoraLayer)]
    assert len(adapted) > 10
    assert all(module.get_base_layer().groups == 1 for module in adapted)


def test_layers_that_the_network_does_not_call_have_none() -> None:
    network = timm.create_model('beit_base_patch16_224', device='meta')  # multiplies by the weight of qkv itself
    layers = adaptable_layers(network, create_groups(Config(), network, 'all'), 224)
    assert [name for name in layers if name.startswith('blocks.3.')] == [
        *('blocks.3.attn.proj', 'blocks.3.mlp.fc1', 'blocks.3.mlp.fc2')
    ]


@pytest.mark.parametrize(
    ('layer', 'is_one'),
    [
        (nn.Linear(4, 4), True),
        (nn.Conv2d(4, 4, 3), True),
        (Conv2dSame(4, 4, 3), True),
        (nn.Conv2d(4, 4, 3, groups=2), False),
        (nn.Conv2d(4, 4, 3, dilation=2), False),
        (nn.Conv2d(4, 4, 3, padding=1, padding_mode='reflect'), False),
        (ScaledStdConv2d(4, 4, 3), False),
        (nn.Conv1d(4, 4, 3), False),
    ],
)
def test_layers_whose_weights_add_up_as_their_outputs_do(layer: nn.Module, is_one: bool) -> None:
    assert is_plain_product(layer) == is_one


@pytest.mark.parametrize('name', NETWORKS)
def test_the_rank_for_a_budget_comes_nearest_to_it(name: str) -> None:
    _, groups = adapt(name)
    count = sum(parameter.numel() for parameter in groups[-1]['params'])
    assert count == count_adapters(build(name), 3)
    each = count // 3
    assert [rank_for_budget(build(name), budget) for budget in (1, count, count + each // 3, count + each)] == [
        1,
        3,
        3,
        4,
    ]


def test_alpha_weighs_what_adapters_give() -> None:
    weights = {}
    for alpha in (None, 6):
        network, _ = adapt('test_efficientnet', **({} if alpha is None else {'lora_alpha': alpha}))
        torch.manual_seed(0)
        weights[alpha] = merged_weights(network)['conv_head.weight'] - network.conv_head.base_layer.weight
    torch.testing.assert_close(weights[6], 2 * weights[None])


def test_adapters_depend_on_the_seed_alone() -> None:
    torch.manual_seed(0)
    network, groups = adapt('test_efficientnet', learnt=False)
    drawn = torch.rand(3)
    torch.manual_seed(0)
    build('test_efficientnet')
    torch.testing.assert_close(torch.rand(3), drawn, rtol=0, atol=0)
    torch.manual_seed(7)
    _, others = adapt('test_efficientnet', learnt=False)
    torch.testing.assert_close(others[-1]['params'], groups[-1]['params'], rtol=0, atol=0)


def test_a_missing_package_is_told_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, 'peft', None)
    with pytest.raises(ValueError, match=r"--lora 3 needs the package peft: pip install 'timm_devnet\[lora\]'"):
        adapt('test_efficientnet')
    extras = (Path(__file__).parents[2] / 'pyproject.toml').read_text()
    assert 'lora = ["peft"]' in extras


def test_a_regime_without_such_layers_is_refused() -> None:
    network = build('test_efficientnet')
    groups = timm_devnet.parameter_groups(network, 'new', 0.1, 0.0)
    with pytest.raises(ValueError, match='trains no old layer that can have an adapter'):
        create_adapters(Config(lora=3), network, groups, 64)
