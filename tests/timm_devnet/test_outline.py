"""What is told of a network by running it once."""

import pytest
import timm
import torch
from torch import nn

from timm_devnet.outline import outline_of


def levels(name: str, **kwargs: object) -> list[tuple[str, int]]:
    return [(stage.name, stage.width) for stage in outline_of(timm.create_model(name, device='meta', **kwargs)).stages]


@pytest.mark.parametrize(
    ('name', 'top'),
    [
        ('resnet18', [('layer3', 256), ('layer4', 512)]),
        ('test_vit', [('blocks.4', 64), ('blocks.5', 64)]),
        ('swin_tiny_patch4_window7_224', [('layers.2', 384), ('layers.3', 768)]),
        ('mobilenetv3_small_050', [('blocks.5', 288), ('conv_head', 1024)]),
        ('dm_nfnet_f0', [('stages.2', 1536), ('final_conv', 3072)]),
        ('levit_128s', [('stages.2', 384), ('features', 384)]),
        ('inception_next_atto', [('stages.3', 320), ('head.fc1', 960)]),
    ],
)
def test_the_top_layer_and_what_it_reads(name: str, top: list[tuple[str, int]]) -> None:
    assert levels(name)[-2:] == top


@pytest.mark.parametrize(
    ('name', 'layout'),
    [
        ('resnet18', 'NCHW'),
        ('swin_tiny_patch4_window7_224', 'NHWC'),
        ('mixer_s32_224', 'NLC'),
        ('deit_tiny_distilled_patch16_224', 'NLC'),
    ],
)
def test_the_layout_of_features(name: str, layout: str) -> None:
    assert outline_of(timm.create_model(name, device='meta')).layout == layout


def test_every_parameter_but_the_classifiers_belongs_to_one_stage() -> None:
    model = timm.create_model('resnet18', device='meta')
    modules = [name for stage in outline_of(model).stages for name in stage.modules]
    assert sorted(modules) == sorted({key.rpartition('.')[0] for key, _ in model.named_parameters()} - {'fc'})


def test_the_norm_after_the_last_block_is_the_top_levels() -> None:
    assert 'norm' in outline_of(timm.create_model('test_vit', device='meta')).stages[-1].modules


@pytest.mark.parametrize('name', ['deit_tiny_distilled_patch16_224', 'efficientformer_l1'])
def test_both_classifiers_of_distilled_networks_are_replaced(name: str) -> None:
    assert outline_of(timm.create_model(name, device='meta')).replaced == ('head', 'head_dist')


def test_a_norm_that_is_part_of_the_classifier_goes_with_it() -> None:
    assert outline_of(timm.create_model('efficientvit_m0', device='meta')).classifier == 'head'


def test_the_network_stays_as_it_is() -> None:
    model = timm.create_model('test_resnet').train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    random = torch.get_rng_state()
    outline_of(model)
    assert model.training and torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_modules_that_are_shared_keep_their_parameters() -> None:
    model = timm.create_model('coat_lite_tiny')
    before = [(name, id(parameter)) for name, parameter in model.named_parameters(remove_duplicate=False)]
    outline_of(model)
    assert [(name, id(parameter)) for name, parameter in model.named_parameters(remove_duplicate=False)] == before


def test_of_a_network_whose_features_are_several_tensors_only_the_top_grows() -> None:
    assert levels('crossvit_tiny_240') == [('features', 288)]


def test_a_module_without_timms_interface_is_refused() -> None:
    with pytest.raises(ValueError, match='Linear cannot grow: it lacks forward_features'):
        outline_of(nn.Linear(2, 2))


def test_a_network_that_cannot_be_run_is_refused() -> None:
    class Broken(nn.Module):
        num_features = 3

        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 2)

        def get_classifier(self) -> nn.Module:
            return self.fc

        def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None: ...

        def forward_features(self, x: torch.Tensor) -> torch.Tensor:
            raise RuntimeError('no such image')

        def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
            return x

    with pytest.raises(ValueError, match='could not be run to find its levels: no such image'):
        outline_of(Broken())
