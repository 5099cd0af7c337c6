"""Heads of earlier tasks: the same answers, saved and loaded, refused where they do not fit."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.models import save_for_hf
from timm.models._manipulate import group_parameters
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.testing import assert_close

import timm_devnet
from tests.conftest import Build
from timm_devnet.heads import Head
from timm_devnet.keeping import forward_heads, keep_head, recall_head

# Every family and layout of features; the second growth puts a layer on top of the network.
BASES = ('alexnet', 'tf_efficientnet_lite0', 'test_resnet', 'test_vit', 'mobilenetv3_small_050')


def create(base: str, **kwargs: Any) -> Any:
    """Build a plain network, with normalisations that have seen something."""
    model = timm.create_model(base, num_classes=3, **kwargs).eval()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model


def learn(model: nn.Module) -> None:
    """Change every weight a little, as training would."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.01)


def grow_twice(base: str) -> Any:
    """Build a network that has learnt three tasks: of three, five and four classes."""
    model = timm_devnet.grow(create(base), 'wa16', keep_head='first')
    model.reset_classifier(5)
    learn(model)
    model = timm_devnet.grow(model, 'dwa8', keep_head='second')
    model.reset_classifier(4)
    learn(model)
    return model.eval()


def size_for(base: str) -> int:
    return 160 if base == 'test_vit' else 96


@pytest.fixture(params=BASES)
def base(request: pytest.FixtureRequest, narrow: None) -> str:
    return request.param


@torch.no_grad()
def test_answers_after_growing_are_those_of_the_network_before(base: str) -> None:
    images = torch.rand(2, 3, size_for(base), size_for(base))
    model = create(base)
    first = model(images)
    model = timm_devnet.grow(model, 'wa16', keep_head='first')
    model.reset_classifier(5)
    second = model(images)
    assert torch.equal(forward_heads(model, images)['first'], first)
    model = timm_devnet.grow(model, 'dwa8', keep_head='second')
    model.reset_classifier(4)
    answers = forward_heads(model, images)
    assert list(answers) == [None, 'first', 'second']
    assert all(
        torch.equal(answers[name], logits)
        for name, logits in {None: model(images), 'first': first, 'second': second}.items()
    )


@torch.no_grad()
def test_a_recalled_head_is_a_network_of_its_own(base: str) -> None:
    images = torch.rand(2, 3, size_for(base), size_for(base))
    model = grow_twice(base)
    answers = forward_heads(model, images)
    first, second = recall_head(model, 'first'), recall_head(model, 'second')
    assert type(first) is type(create(base))
    assert second.growth == 'wa16'
    assert torch.equal(first(images), answers['first'])
    assert torch.equal(second(images), answers['second'])
    assert torch.equal(model(images), answers[None])  # as it was


@torch.no_grad()
def test_what_is_recalled_is_saved_and_built_by_timm(tmp_path: Path, base: str) -> None:
    images = torch.rand(2, 3, size_for(base), size_for(base))
    model = grow_twice(base)
    for name in ('first', 'second'):
        recalled = recall_head(model, name)
        save_for_hf(recalled, tmp_path / name, safe_serialization=True)
        loaded = timm.create_model(f'local-dir:{tmp_path / name}', pretrained=True).eval()
        assert type(loaded) is type(recalled)
        assert torch.equal(loaded(images), recalled(images))


@torch.no_grad()
def test_a_network_of_several_heads_is_saved_and_built_by_timm(tmp_path: Path, base: str) -> None:
    images = torch.rand(2, 3, size_for(base), size_for(base))
    model = grow_twice(base)
    save_for_hf(model, tmp_path, safe_serialization=True)
    loaded: Any = timm.create_model(f'local-dir:{tmp_path}', pretrained=True).eval()
    assert loaded.kept == model.kept == {'first': Head(3, 0), 'second': Head(5, 1)}
    answers = forward_heads(model, images)
    assert all(torch.equal(logits, answers[name]) for name, logits in forward_heads(loaded, images).items())
    other: Any = timm.create_model(f'local-dir:{tmp_path}', pretrained=True, num_classes=9)
    assert torch.equal(other.heads['second'].weight, model.heads['second'].weight)
    assert other.num_classes == 9


@pytest.fixture
def grown() -> Any:
    """Grow a small network that keeps a head of three named classes beside a classifier of two."""
    model: Any = create('test_resnet')
    model.pretrained_cfg['label_names'] = ['a', 'b', 'c']
    model.pretrained_cfg['num_classes'] = 3
    timm_devnet.grow(model, 'wa16', keep_head='first')
    model.reset_classifier(2)
    return model


def test_names_of_classes_travel_with_a_head(grown: Any, tmp_path: Path) -> None:
    save_for_hf(grown, tmp_path, safe_serialization=True)
    loaded: Any = timm.create_model(f'local-dir:{tmp_path}', pretrained=True)
    assert loaded.kept['first'].label_names == ('a', 'b', 'c')
    recalled: Any = recall_head(loaded, 'first')
    assert recalled.pretrained_cfg['label_names'] == ['a', 'b', 'c']
    assert recalled.pretrained_cfg['num_classes'] == recalled.num_classes == 3


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda state: state.pop('heads.first.bias'), 'it lacks heads.first.bias'),
        (lambda state: state.update({'heads.other.bias': torch.zeros(1)}), 'it has besides heads.other.bias'),
        (lambda state: state.update({'heads.first.bias': torch.zeros(4)}), 'in other shapes heads.first.bias'),
        (lambda state: [state.pop(key) for key in list(state) if 'grown' in key or 'heads' in key], 'it lacks heads'),
    ],
)
def test_checkpoints_of_other_heads_are_refused_by_name(grown: Any, change: Any, message: str) -> None:
    state = dict(grown.state_dict())
    change(state)
    with pytest.raises(ValueError, match=message):
        grown.load_state_dict(state)


def test_a_network_without_heads_refuses_a_checkpoint_with_some(grown: Any) -> None:
    plain = timm.create_model('devnet', source='test_resnet', growth='wa16', num_classes=2)
    with pytest.raises(ValueError, match='it has besides heads.first.bias'):
        plain.load_state_dict(grown.state_dict())


def test_a_fresh_classifier_leaves_the_heads(grown: Any) -> None:
    before = grown.heads['first'].weight.clone()
    grown.reset_classifier(7)
    grown.reset_classifier(0)
    assert torch.equal(grown.heads['first'].weight, before)
    with pytest.raises(ValueError, match='Growth wa16 was built|read another pooling'):
        grown.reset_classifier(2, 'catavgmax')


def test_every_parameter_of_a_head_is_in_one_group_of_timm(grown: Any) -> None:
    groups = group_parameters(grown, grown.group_matcher(), reverse=True)
    assert {name for name in groups if name.startswith('heads.')} == {'heads.first.weight', 'heads.first.bias'}


@pytest.mark.parametrize(
    ('regime', 'heads_learn', 'learns'),
    [('new', True, False), ('layer4-new', True, True), ('all', True, True), ('all', False, False)],
)
def test_heads_learn_at_the_old_pace_or_not_at_all(grown: Any, regime: str, heads_learn: bool, learns: bool) -> None:
    groups = timm_devnet.parameter_groups(grown, regime, 0.1, 0.0, heads_learn=heads_learn)
    scales = {id(parameter): group['lr_scale'] for group in groups for parameter in group['params']}
    found = {scales.get(id(parameter)) for parameter in grown.heads.parameters()}
    assert found == ({1.0} if learns else {None})
    assert all(parameter.requires_grad == learns for parameter in grown.heads.parameters())
    assert grown.train().heads['first'].training == learns


def test_optimizer_and_average_go_on_beside_a_head() -> None:
    model: Any = create('test_resnet').train()
    groups = timm_devnet.parameter_groups(model, 'all', lr=0.01, weight_decay=0.0)
    optimizer = torch.optim.AdamW(groups, lr=0.01)
    model(torch.rand(2, 3, 64, 64)).sum().backward()
    optimizer.step()
    ema = ModelEmaV3(model, decay=0.5)
    learn(model)
    averaged = ema.module.fc.weight.clone()
    timm_devnet.grow(model, 'wa16', optimizer=optimizer, ema=ema, keep_head='first')
    assert not any(parameter.requires_grad for parameter in model.heads.parameters())
    held = {id(parameter) for group in optimizer.param_groups for parameter in group['params']}
    assert not held & {id(parameter) for parameter in model.heads.parameters()}
    assert torch.equal(ema.module.heads['first'].weight, averaged)
    assert not torch.equal(model.heads['first'].weight, averaged)
    ema.update(model)


def test_features_and_the_deployment_form_do_without_heads(grown: Any, tmp_path: Path) -> None:
    save_for_hf(grown, tmp_path, safe_serialization=True)
    features: Any = timm.create_model(f'local-dir:{tmp_path}', pretrained=True, features_only=True)
    assert not [key for key in features.state_dict() if 'heads' in key]
    form = timm_devnet.consolidate(grown)
    assert form.report[-1].startswith('left out: the kept heads first;')
    assert not [key for key in form.state_dict() if 'heads' in key]
    images = torch.rand(2, 3, 64, 64)
    recalled = timm_devnet.consolidate(timm_devnet.grow(recall_head(grown, 'first'), 'norm'))
    assert recalled(images).shape == (2, 3)


def test_a_delta_holds_the_heads(grown: Any) -> None:
    base = {name: tensor for name, tensor in create('test_resnet').state_dict().items() if not name.startswith('fc.')}
    base |= {name: tensor for name, tensor in grown.state_dict().items() if name in base}
    delta = timm_devnet.delta.subtract(grown.state_dict(), base, 'fc')
    assert {name.split('.')[0] for name in delta} == {'fc', 'grown', 'heads'}
    assert timm_devnet.delta.complete(delta, base).keys() == grown.state_dict().keys()


def test_a_copy_keeps_heads_of_its_own(grown: Any) -> None:
    copy = deepcopy(grown)
    learn(copy)
    assert not torch.equal(copy.heads['first'].weight, grown.heads['first'].weight)
    assert copy.kept == grown.kept


@pytest.mark.parametrize('name', ['', 'a.b', '-a', 'keys', 'train', 'a' * 65, 'a b', None])
def test_names_that_can_be_no_part_of_a_key_are_refused(grown: Any, name: Any) -> None:
    with pytest.raises(ValueError, match='The name of a kept head has 1 to 64 letters'):
        keep_head(grown, name)


def test_what_cannot_be_kept_is_refused(grown: Any) -> None:
    with pytest.raises(ValueError, match="has a head called 'first' already"):
        keep_head(grown, 'first')
    with pytest.raises(ValueError, match='ResNet has not grown, .* keep_head='):
        keep_head(create('test_resnet'), 'first')
    grown.reset_classifier(0)
    with pytest.raises(ValueError, match=r'is Identity: give the network a classifier \(num_classes above 0\)'):
        keep_head(grown, 'second')
    distilled: Any = timm.create_model('deit_tiny_distilled_patch16_224', num_classes=2)
    with pytest.raises(ValueError, match='is Linear and Linear'):
        timm_devnet.grow(distilled, 'wa16', keep_head='first')
    assert not timm_devnet.block_names(distilled)
    with pytest.raises(ValueError, match="no head called 'third'; it keeps first"):
        recall_head(grown, 'third')


@pytest.mark.parametrize(
    ('heads', 'message'),
    [
        ([], 'heads is a dict of at most 100'),
        ({f'h{number}': {'num_classes': 1, 'steps': 0} for number in range(101)}, 'at most 100'),
        ({'a.b': {'num_classes': 1, 'steps': 0}}, 'The name of a kept head'),
        ({'a': [1, 0]}, 'is a dict of num_classes and steps'),
        ({'a': {'num_classes': 1, 'steps': 0, 'weight': 3}}, 'is a dict of num_classes and steps'),
        ({'a': {'num_classes': True, 'steps': 0}}, 'num_classes of a kept head is a whole number from 1'),
        ({'a': {'num_classes': 1, 'steps': 2}}, 'steps of a kept head is a whole number from 0 to 1'),
        ({'a': {'num_classes': 2, 'steps': 0, 'label_names': ['x']}}, 'label_names of a kept head are 2 texts'),
        ({'a': {'num_classes': 1, 'steps': 0, 'multi_label': 1}}, 'multi_label of a kept head'),
    ],
)
def test_descriptions_that_are_none_are_refused(heads: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        timm.create_model('devnet', source='test_resnet', growth='wa16', heads=heads, device='meta')


def test_a_base_gives_no_heads(tmp_path: Path) -> None:
    torch.save(create('test_resnet').state_dict(), tmp_path / 'base.pth')
    with pytest.raises(ValueError, match='it lacks heads.first.bias'):
        timm.create_model(
            'devnet',
            source='test_resnet',
            growth='wa16',
            heads={'first': {'num_classes': 3, 'steps': 0}},
            num_classes=3,
            pretrained=True,
            pretrained_cfg_overlay=dict(file=str(tmp_path / 'base.pth'), num_classes=3),
        )


def test_heads_of_samples_hold_in_half_precision(build_grown: Build, images: Tensor) -> None:
    model = build_grown(num_classes=3).eval()
    keep_head(model, 'first')
    size = model.pretrained_cfg['input_size'][-1] if model.pretrained_cfg.get('fixed_input_size') else 96
    answers = forward_heads(model.to(torch.bfloat16), torch.rand(2, 3, size, size, dtype=torch.bfloat16))
    assert answers['first'].dtype == torch.bfloat16
    assert_close(answers['first'], answers[None], rtol=0, atol=0)
