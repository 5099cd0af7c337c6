"""A consolidated network gives the grown network's logits, whatever it grew from and by, from fewer layers."""

import copy
import functools
import io
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.layers import StdConv2d
from torch import Tensor, nn

import timm_devnet
from tests.conftest import SAMPLES, Build
from timm_devnet.reconcile import Reconcile

LITE = 'tf_efficientnet_lite0_wa'
SOME = ('alexnet_wwa', 'vgg11_bn_mwa', 'tf_efficientnet_lite0_wwa')


@pytest.fixture(params=SOME)
def consolidated(request: pytest.FixtureRequest, narrow: None) -> timm_devnet.Consolidated:
    """Consolidate a network of each family."""
    return timm_devnet.consolidate(
        as_trained(timm.create_model(request.param, **SAMPLES[request.param], num_classes=7))
    )


def as_trained(model: Any) -> Any:
    """Give all that could be folded away numbers of its own, and every block a say."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for number in (module.weight, module.running_var):
                nn.init.uniform_(number, 0.5, 1.5)
            for number in (module.bias, module.running_mean):
                nn.init.normal_(number, 0, 0.1)
        elif isinstance(module, Reconcile):
            nn.init.uniform_(module.scale, -5, 15)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, 0, 0.1)
    return model


@torch.no_grad()
def difference(model: nn.Module, consolidated: nn.Module, images: Tensor) -> float:
    """The largest difference of logits as a share of the largest logit."""
    wanted = model.eval()(images)
    return ((consolidated(images) - wanted).abs().max() / wanted.abs().max()).item()


def assert_same_logits(model: nn.Module, images: Tensor) -> None:
    """In float64, where rounding hides nothing."""
    assert difference(model.double(), timm_devnet.consolidate(model), images.double()) < 1e-12


def kinds(model: nn.Module, kind: type[nn.Module]) -> int:
    return sum(isinstance(module, kind) for module in model.modules())


def test_logits_stay(build_grown: Build, images: Tensor) -> None:
    model = as_trained(build_grown(num_classes=7))
    assert_same_logits(model, images)


@pytest.mark.parametrize('size', [(1, 3, 33, 33), (2, 3, 90, 130)])
@pytest.mark.parametrize('name', ['vgg11_bn_mwa', 'alexnet_wwa', 'tf_efficientnet_lite0_mwa'])
def test_logits_stay_at_other_sizes(name: str, size: tuple[int, ...], narrow: None) -> None:
    if name == 'alexnet_wwa' and size[-1] < 64:
        size = (1, 3, 300, 260)
    model = as_trained(timm.create_model(name, growth=name.split('_')[-1] + '32', num_classes=7))
    assert_same_logits(model, torch.rand(size))


@pytest.mark.parametrize('pooling', ['max', 'catavgmax'])
def test_logits_stay_with_other_poolings(pooling: str, images: Tensor) -> None:
    model = as_trained(timm.create_model(LITE, growth='wa32_da16_mwa8', num_classes=7, global_pool=pooling))
    assert_same_logits(model, images)


def test_rounding_stays_small(lite_weights: Path, photographs: Tensor) -> None:
    weights = timm_devnet.convert_lite(timm.models.load_state_dict(str(lite_weights)))
    model = timm.create_model(
        'tf_efficientnet_lite0_mwa512', pretrained=True, pretrained_cfg_overlay={'state_dict': weights}
    )
    nn.init.normal_(model.get_classifier().weight, 0, 0.1)
    assert difference(model, timm_devnet.consolidate(model), photographs[:8]) < 1e-5


@pytest.mark.parametrize('options', [{'scale_init': 0}, {'num_classes': 0}])
def test_what_is_not_there_is_not_folded(options: dict[str, Any], images: Tensor) -> None:
    model = as_trained(timm.create_model(LITE, growth='wa32', **options))
    assert_same_logits(model, images)
    consolidated = timm_devnet.consolidate(model)
    assert not any('scales' in line for line in consolidated.report if line.startswith('folded'))


def test_scale_that_the_output_reads_stays() -> None:
    consolidated = timm_devnet.consolidate(timm.create_model(LITE, growth='wa32', num_classes=0))
    assert kinds(consolidated, Reconcile) == 2
    assert 'stays: the scale of conv_head_1_scaled, since not all that reads it is linear' in consolidated.report


@pytest.mark.parametrize('name', SOME)
def test_norms_scales_and_dropout_are_gone(name: str, narrow: None) -> None:
    consolidated = timm_devnet.consolidate(timm.create_model(name, **SAMPLES[name], num_classes=7, drop_rate=0.5))
    assert [kinds(consolidated, kind) for kind in (nn.BatchNorm2d, Reconcile, nn.Dropout)] == [0, 0, 0]


def test_model_stays_as_it_was() -> None:
    model = as_trained(timm.create_model(LITE, growth='wwa32', num_classes=7)).train()
    before = copy.deepcopy(model.state_dict())
    timm_devnet.consolidate(model)
    assert all(torch.equal(number, before[key]) for key, number in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_units_that_read_the_same_are_one_layer() -> None:
    model = timm.create_model(LITE, growth='mwa32_mwa16_wa8', num_classes=7)
    merged = [line for line in timm_devnet.consolidate(model).report if line.startswith('merged')]
    assert merged == [
        'merged: grown.conv_head_2.conv, grown.conv_head_4.conv into one layer of 24 units',
        'merged: grown.conv_head_1.conv, grown.conv_head_3.conv into one layer of 24 units',
        'merged: conv_head, grown.conv_head_5.conv into one layer of 1288 units',
    ]


def test_units_that_read_otherwise_reconciled_stay_apart(narrow: None) -> None:
    model = timm.create_model('vgg11_wwa', growth='wwa32', num_classes=7)
    merged = [line for line in timm_devnet.consolidate(model).report if line.startswith('merged')]
    assert merged == ['merged: pre_logits.fc1, grown.fc6_1.conv into one layer of 97 units']


def test_fully_connected_units_are_one_layer(narrow: None) -> None:
    model = timm.create_model('alexnet_wa', growth='wa32', num_classes=7)
    consolidated = timm_devnet.consolidate(model)
    assert 'merged: pre_logits.fc2, grown.fc7_1.fc into one layer of 4128 units' in consolidated.report
    assert not any(name.startswith('network.grown.fc7_1.') for name, _ in consolidated.named_parameters())


def test_convolution_that_does_more_keeps_its_norm(images: Tensor) -> None:
    model = timm.create_model(LITE, growth='wa32', num_classes=7)
    model.conv_stem = StdConv2d(3, 32, 3, stride=2, padding=1)
    assert 'folded: 49 of 50 BatchNorms into the convolutions before them' in timm_devnet.consolidate(model).report
    assert_same_logits(as_trained(model), images)


def test_layer_that_runs_twice_keeps_its_weights(monkeypatch: pytest.MonkeyPatch, images: Tensor) -> None:
    model = as_trained(timm.create_model(LITE, growth='wa32', num_classes=7))
    head = type(model).forward_head
    monkeypatch.setattr(
        type(model), 'forward_head', lambda self, x: head(self, x) + self.classifier(head(self, x, True) ** 2)
    )
    assert_same_logits(model, images)


def test_network_that_cannot_be_traced_runs_as_it_is(monkeypatch: pytest.MonkeyPatch, images: Tensor) -> None:
    model = as_trained(timm.create_model(LITE, growth='wa32', num_classes=7, drop_rate=0.5))
    whole = type(model).forward
    monkeypatch.setattr(type(model), 'forward', lambda self, x: whole(self, x if x.sum() > 0 else -x))
    consolidated = timm_devnet.consolidate(model)
    assert len(consolidated.report) == 1
    assert 'torch.fx cannot trace it' in consolidated.report[0]
    assert difference(model, consolidated, images) == 0


def test_gradient_checkpointing_is_no_matter(images: Tensor) -> None:
    model = as_trained(timm.create_model(LITE, growth='wa32', num_classes=7))
    model.set_grad_checkpointing()
    assert_same_logits(model, images)
    assert model.grad_checkpointing


@pytest.mark.parametrize('name', SOME)
def test_saved_weights_load_by_name(name: str, images: Tensor, tmp_path: Path, narrow: None) -> None:
    build = functools.partial(timm.create_model, name, **SAMPLES[name], num_classes=7)
    consolidated = timm_devnet.consolidate(as_trained(build()))
    save_file(consolidated.state_dict(), tmp_path / 'deployed.safetensors')
    torch.manual_seed(1)
    again = timm_devnet.consolidate(build())
    again.load_state_dict(load_file(tmp_path / 'deployed.safetensors'))
    assert torch.equal(again(images), consolidated(images))


def test_copy_gives_the_same(consolidated: timm_devnet.Consolidated, images: Tensor) -> None:
    assert torch.equal(copy.deepcopy(consolidated)(images), consolidated(images))


@pytest.mark.filterwarnings('ignore:.torch.jit')  # not torch's way of today, and still a way
def test_script_gives_the_same(consolidated: timm_devnet.Consolidated, images: Tensor) -> None:
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(consolidated), file)
    file.seek(0)
    assert torch.equal(torch.jit.load(file)(images), consolidated(images))


def test_exported_program_gives_the_same(consolidated: timm_devnet.Consolidated, images: Tensor) -> None:
    assert difference(consolidated, torch.export.export(consolidated, (images,)).module(), images) < 1e-5


def test_compiles_without_graph_breaks(images: Tensor, narrow: None) -> None:
    consolidated = timm_devnet.consolidate(as_trained(timm.create_model('alexnet_wwa', growth='wwa32', num_classes=7)))
    assert difference(consolidated, torch.compile(consolidated, fullgraph=True, backend='eager'), images) < 1e-5


def test_half_precision(consolidated: timm_devnet.Consolidated, images: Tensor) -> None:
    wanted = consolidated(images)
    half = consolidated.bfloat16()(images.bfloat16())
    assert half.dtype == torch.bfloat16
    assert (half - wanted).abs().max() < 0.1 * wanted.abs().max()


def test_asks_for_no_gradients_and_no_training(images: Tensor) -> None:
    consolidated = timm_devnet.consolidate(timm.create_model(LITE, growth='wa32', num_classes=7))
    assert not consolidated(images).requires_grad
    assert consolidated.eval() is consolidated
    with pytest.raises(ValueError, match='train the grown one and consolidate it again'):
        consolidated.train()


def test_report_is_shown(consolidated: timm_devnet.Consolidated) -> None:
    assert all(line in repr(consolidated) for line in consolidated.report)


def test_only_grown_networks() -> None:
    with pytest.raises(ValueError, match='EfficientNet has not grown'):
        timm_devnet.consolidate(timm.create_model('tf_efficientnet_lite0', num_classes=7))
