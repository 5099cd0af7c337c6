"""Networks of every kind grow by one mechanism."""

import copy
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import timm_devnet

GROWTHS = ('da8', 'norm', 'skip', 'wa8', 'mwa8', 'wwa8', 'dwa8')
# Small networks: maps, channels last, tokens with a class token, two classifiers, no norm, a layer after the pooling.
SMALL = (
    *('test_resnet', 'test_convnext', 'test_vit', 'test_nfnet', 'test_byobnet', 'test_mambaout'),
    *('mobilenetv3_small_050', 'convit_tiny', 'mixer_s32_224', 'levit_128s', 'efficientformer_l1'),
)


def plain(name: str, **kwargs: Any) -> Any:
    return timm.create_model(name, **{'num_classes': 5, **kwargs}).eval()


def images_for(model: Any) -> Tensor:
    side = model.pretrained_cfg['input_size'][-1] if model.pretrained_cfg.get('fixed_input_size') else 96
    return torch.rand(2, 3, side, side)


@pytest.mark.parametrize('name', SMALL)
def test_the_old_features_are_the_bases_bit_for_bit(name: str) -> None:
    base = plain(name)
    images = images_for(base)
    with torch.no_grad():
        features = base.forward_features(images)
        grown: Any = timm_devnet.grow(base, 'wa8')
        joined = grown.forward_features(images)
    place = -1 if joined.ndim == 3 or name == 'test_mambaout' else 1
    assert torch.equal(joined.narrow(place, 0, grown.feature_widths[0]), features)


@pytest.mark.parametrize('growth', GROWTHS)
@pytest.mark.parametrize('name', ['test_resnet', 'test_vit', 'test_mambaout', 'mobilenetv3_small_050'])
def test_every_parameter_has_a_gradient(name: str, growth: str) -> None:
    model = timm_devnet.grow(plain(name), growth).train()
    model(images_for(model)).square().mean().backward()
    assert [key for key, parameter in model.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize('name', SMALL)
def test_names_of_the_old_network_stay_and_its_state_is_a_part(name: str) -> None:
    base = plain(name)
    before = set(base.state_dict())
    grown: Any = timm_devnet.grow(base, 'wa8')
    heads = tuple(f'{place}.' for place in grown.replaced)
    lost = {key for key in before - set(grown.state_dict()) if not key.startswith(heads)}
    assert not lost and any(key.startswith('grown.') for key in grown.state_dict())


@pytest.mark.parametrize('name', SMALL)
def test_a_saved_network_is_built_again_by_timm(name: str, tmp_path: Path) -> None:
    grown: Any = timm_devnet.grow(plain(name), 'wa8').eval()
    save_file({key: value.contiguous() for key, value in grown.state_dict().items()}, tmp_path / 'model.safetensors')
    arguments = {**grown._model_args, 'num_classes': 5}
    overlay = dict(file=str(tmp_path / 'model.safetensors'), num_classes=5)
    again = timm.create_model('devnet', pretrained=True, pretrained_cfg_overlay=overlay, **arguments).eval()
    images = images_for(grown)
    with torch.no_grad():
        assert torch.equal(again(images), grown(images))


@pytest.mark.parametrize('name', ['test_resnet', 'test_vit', 'levit_128s', 'resnetv2_50x1_bit'])
def test_a_bases_checkpoint_starts_the_grown_network(name: str, tmp_path: Path) -> None:
    base = plain(name, num_classes=1000)
    save_file({key: value.contiguous() for key, value in base.state_dict().items()}, tmp_path / 'base.safetensors')
    overlay = dict(file=str(tmp_path / 'base.safetensors'))
    grown: Any = timm.create_model(
        'devnet', source=name, growth='wa8', pretrained=True, pretrained_cfg_overlay=overlay
    ).eval()
    images, place = torch.rand(1, 3, *base.pretrained_cfg['input_size'][1:]), 1 if 'resnet' in name else 2
    with torch.no_grad():
        features = base.forward_features(images)
        assert torch.equal(grown.forward_features(images).narrow(place, 0, features.shape[place]), features)


def test_a_bases_positions_are_resized_as_timm_does(tmp_path: Path) -> None:
    base = plain('test_vit', num_classes=1000)
    save_file(base.state_dict(), tmp_path / 'base.safetensors')
    overlay = dict(file=str(tmp_path / 'base.safetensors'))
    arguments: Any = dict(pretrained=True, pretrained_cfg_overlay=overlay, img_size=96, num_classes=3, in_chans=1)
    grown: Any = timm.create_model('devnet', source='test_vit', growth='wa8', **arguments).eval()
    images = torch.rand(1, 1, 96, 96)
    with torch.no_grad():
        features = timm.create_model('test_vit', **arguments).eval().forward_features(images)
        assert torch.equal(grown.forward_features(images)[..., :64], features)


def test_another_layout_of_a_base_is_renamed_as_timm_does(tmp_path: Path) -> None:
    base, original = plain('test_convnext', num_classes=1000), {}
    for key, value in base.state_dict().items():  # as its authors call them
        key = key.replace('head.fc.', 'head.').replace('head.norm.', 'norm.').replace('stem.', 'downsample_layers.0.')
        key = re.sub(r'stages.(\d+).downsample.', r'downsample_layers.\1.', key)
        key = re.sub(r'stages.(\d+).blocks.', r'stages.\1.', key)
        key = key.replace('conv_dw', 'dwconv').replace('mlp.fc', 'pwconv')
        original[key] = value.contiguous()
    save_file(original, tmp_path / 'base.safetensors')
    overlay = dict(file=str(tmp_path / 'base.safetensors'))
    grown: Any = timm.create_model(
        'devnet', source='test_convnext', growth='wa8', pretrained=True, pretrained_cfg_overlay=overlay
    ).eval()
    images = images_for(grown)
    with torch.no_grad():
        assert torch.equal(grown.forward_features(images)[:, :64], base.forward_features(images))


def test_a_checkpoint_of_another_network_is_refused(tmp_path: Path) -> None:
    save_file(plain('test_byobnet').state_dict(), tmp_path / 'other.safetensors')
    overlay = dict(file=str(tmp_path / 'other.safetensors'))
    with pytest.raises(ValueError, match='fits neither GrownResNet'):
        timm.create_model(
            'devnet', source='test_resnet', growth='wa8', num_classes=3, pretrained=True, pretrained_cfg_overlay=overlay
        )


def test_a_classifier_that_is_a_convolution_gives_its_columns() -> None:
    base = plain('resnetv2_50x1_bit')
    weight = base.get_classifier().weight.detach().clone()
    grown: Any = timm_devnet.grow(base, 'wa8')
    assert torch.equal(grown.get_classifier().weight[:, :2048], weight.flatten(1))
    assert not grown.get_classifier().weight[:, 2048:].any()


def test_copies_answer_the_same_and_are_grown() -> None:
    grown: Any = timm_devnet.grow(plain('test_resnet'), 'mwa8').eval()
    images = images_for(grown)
    for other in (copy.deepcopy(grown), pickle.loads(pickle.dumps(grown))):
        assert type(other) is type(grown)
        with torch.no_grad():
            assert torch.equal(other(images), grown(images))


@pytest.mark.filterwarnings('ignore:`torch.jit.script` is deprecated')
@pytest.mark.filterwarnings('ignore:The TorchScript type system')
@pytest.mark.parametrize('name', ['test_resnet', 'test_convnext', 'test_byobnet'])
def test_torchscript_compiles_what_it_compiles_of_the_base(name: str) -> None:
    grown: Any = timm_devnet.grow(plain(name, scriptable=True), 'mwa8').eval()
    images = images_for(grown)
    with torch.no_grad():
        torch.testing.assert_close(torch.jit.script(grown)(images), grown(images))


@pytest.mark.parametrize('name', ['test_resnet', 'test_vit'])
def test_the_network_compiles_as_one_graph(name: str) -> None:
    torch._dynamo.reset()
    grown: Any = timm_devnet.grow(plain(name), 'mwa8').eval()
    images = images_for(grown)
    with torch.no_grad():
        assert torch.equal(torch.compile(grown, fullgraph=True, backend='eager')(images), grown(images))


@pytest.mark.parametrize('name', ['test_resnet', 'test_vit', 'test_convnext'])
def test_computing_activations_again_changes_nothing(name: str) -> None:
    grown: Any = timm_devnet.grow(plain(name), 'mwa8').train()
    images = images_for(grown)
    torch.manual_seed(1)
    before = grown(images)
    grown.set_grad_checkpointing()
    torch.manual_seed(1)
    torch.testing.assert_close(grown(images), before)


@pytest.mark.parametrize(('name', 'expected'), [('test_resnet', 'layer4'), ('test_vit', 'blocks.5')])
def test_regimes_have_the_networks_own_names(name: str, expected: str) -> None:
    grown = timm_devnet.grow(plain(name), 'wa8')
    assert timm_devnet.regimes(grown)[:2] == ['new', f'{expected}-new']
    timm_devnet.parameter_groups(grown, f'{expected}-new', lr=0.1, weight_decay=0.0)
    learning = {key.partition('.')[0] for key, parameter in grown.named_parameters() if parameter.requires_grad}
    assert learning == ({'grown', 'head', 'blocks', 'norm'} if 'vit' in name else {'grown', 'fc', 'layer4'})


def test_dropout_stands_behind_the_reconciled_blocks() -> None:
    grown: Any = timm_devnet.grow(plain('test_vit', drop_rate=0.5), 'norm').train()
    features = grown.forward_features(images_for(grown))
    vector = grown.forward_head(features, pre_logits=True)
    kept = vector[vector != 0]
    with torch.no_grad():
        whole = grown.eval().forward_head(features, pre_logits=True)
    assert 0.3 < len(kept) / vector.numel() < 0.7
    torch.testing.assert_close(kept, 2 * whole[vector != 0])


def test_units_are_in_proportion_to_the_width() -> None:
    bases = [plain(name, device='meta') for name in ('resnet50', 'resnet18', 'test_vit')]
    assert [timm_devnet.grow(base, 'wa').growth for base in bases] == ['wa512', 'wa128', 'wa16']


def test_copied_units_are_refused_where_there_are_none_to_copy() -> None:
    with pytest.raises(ValueError, match="Use new_init='random'"):
        timm_devnet.grow(plain('test_resnet'), 'wa8', new_init='copy')


def test_too_few_levels_are_told_by_name() -> None:
    with pytest.raises(ValueError, match='reads level 4; .* from level 0 down: features, stages.2, stages.1, stages.0'):
        timm_devnet.grow(plain('levit_128s', device='meta'), 'r4u8')


@pytest.mark.parametrize('pool', ['', 'max', 'catavgmax'])
def test_another_pooling_of_every_block(pool: str) -> None:
    grown: Any = timm_devnet.grow(plain('test_resnet', global_pool=pool, num_classes=0), 'mwa8').eval()
    with torch.no_grad():
        out = grown(images_for(grown))
    assert out.shape[1] == grown.head_hidden_size and out.ndim == (2 if pool else 4)


class Own(nn.Module):
    """A network of a user's own, with just enough of timm's interface for a growth on top."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Conv2d(3, 8, 3, 2), nn.Linear(8, 5)
        self.num_features, self.num_classes = 8, 5

    def get_classifier(self) -> nn.Module:
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        self.num_classes = num_classes
        self.head = nn.Linear(8, num_classes) if num_classes else nn.Identity()  # type: ignore[assignment]

    def forward_features(self, x: Tensor) -> Tensor:
        return self.body(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = x.mean((2, 3))
        return x if pre_logits else self.head(x)


@pytest.mark.parametrize('growth', ['da8', 'norm'])
def test_a_class_of_ones_own_without_intermediates_grows_on_top(growth: str) -> None:
    assert timm_devnet.grow(Own(), growth)(torch.rand(2, 3, 32, 32)).shape == (2, 5)
