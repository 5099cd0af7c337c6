"""What learns, how fast, and what is frozen."""

import copy
import io
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from torch import Tensor, nn

from timm_devnet import grow, parameter_groups, regimes

LITE = 'tf_efficientnet_lite0'
Build = Callable[..., Any]


def frozen(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if not parameter.requires_grad}


def trained(model: nn.Module, regime: str, **kwargs: Any) -> set[str]:
    parameter_groups(model, regime, lr=0.01, weight_decay=5e-4, **kwargs)
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize(
    ('name', 'offered'),
    [
        *((f'alexnet{growth}', ['new', 'fc7-new', 'fc6-new', 'all']) for growth in ('', '_da', '_wa', '_wwa', '_norm')),
        ('vgg16_bn_wa', ['new', 'fc7-new', 'fc6-new', 'all']),
        *((f'{LITE}{growth}', ['new', 'conv_head-new', 'blocks.6-new', 'all']) for growth in ('', '_mwa', '_da')),
    ],
)
def test_the_regimes_on_offer(name: str, offered: list[str], on_meta: Build) -> None:
    assert regimes(on_meta(name)) == offered


def test_a_layer_of_an_earlier_growth_is_a_regime_of_its_own() -> None:
    model = grow(grow(timm.create_model('alexnet', device='meta'), 'da16'), 'wa8')
    assert regimes(model) == ['new', 'fca-new', 'fc7-new', 'fc6-new', 'all']


def test_every_parameter_is_frozen_or_in_one_group(names: list[str], on_meta: Build) -> None:
    for name in names:
        model = on_meta(name)
        for regime in regimes(model):
            groups = parameter_groups(model, regime, lr=0.01, weight_decay=5e-4)
            counts = Counter(id(parameter) for group in groups for parameter in group['params'])
            learns = Counter(id(parameter) for parameter in model.parameters() if parameter.requires_grad)
            assert counts == learns, (name, regime)


def test_each_regime_trains_more_than_the_one_before(names: list[str], on_meta: Build) -> None:
    for name in names:
        model = on_meta(name)
        sets = [trained(model, regime) for regime in regimes(model)]
        assert all(smaller < larger for smaller, larger in zip(sets, sets[1:], strict=False)), name


def test_all_trains_everything(names: list[str], on_meta: Build) -> None:
    for name in names:
        model = on_meta(name)
        parameter_groups(model, 'all', lr=0.01, weight_decay=5e-4)
        assert not frozen(model), name


def test_new_trains_what_was_added_and_the_classifier(grown_names: list[str], on_meta: Build) -> None:
    for name in grown_names:
        model = on_meta(name)
        classifier = model.pretrained_cfg['classifier'] + '.'
        expected = {key for key, _ in model.named_parameters() if key.startswith(('grown.', classifier))}
        assert trained(model, 'new') == expected, name


@pytest.mark.parametrize(
    ('name', 'regime', 'prefixes'),
    [
        ('alexnet_wa', 'fc7-new', ('pre_logits.fc2.',)),
        ('alexnet_wa', 'fc6-new', ('pre_logits.fc1.', 'pre_logits.fc2.')),
        ('vgg11', 'fc7-new', ('pre_logits.fc2.',)),
        (f'{LITE}_wa', 'conv_head-new', ('conv_head.', 'bn2.')),
        (f'{LITE}_wa', 'blocks.6-new', ('conv_head.', 'bn2.', 'blocks.6.')),
        (LITE, 'conv_head-new', ('conv_head.', 'bn2.')),
    ],
)
def test_a_regime_trains_from_its_layer_up(name: str, regime: str, prefixes: tuple[str, ...], on_meta: Build) -> None:
    model = on_meta(name)
    assert trained(model, regime) - trained(model, 'new') == {
        key for key, _ in model.named_parameters() if key.startswith(prefixes)
    }


def test_in_a_plain_network_new_is_the_classifier(on_meta: Build) -> None:
    assert trained(on_meta(LITE), 'new') == {'classifier.weight', 'classifier.bias'}


def test_units_of_an_earlier_growth_are_old() -> None:
    model = grow(grow(timm.create_model(LITE, device='meta'), 'wa16'), 'mwa8')
    assert not any(key.startswith(('grown.conv_head_1.', 'grown.conv_head_scaled.')) for key in trained(model, 'new'))


def test_units_of_an_earlier_growth_learn_with_the_level_they_stand_at() -> None:
    model = grow(grow(timm.create_model(LITE, device='meta'), 'wa16'), 'mwa8')
    assert 'grown.conv_head_1.conv.weight' in trained(model, 'conv_head-new')


def test_a_network_built_at_once_is_all_new() -> None:
    model = timm.create_model(f'{LITE}_wa512_wa256', device='meta')
    assert {key for key, _ in model.named_parameters() if key.startswith('grown.')} < trained(model, 'new')


# Groups ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('mult', [1.0, 10.0, 3.0])
def test_new_groups_have_the_multiple_and_old_ones_do_not(mult: float, on_meta: Build) -> None:
    groups = parameter_groups(on_meta(f'{LITE}_mwa'), 'all', lr=0.01, weight_decay=5e-4, new_lr_mult=mult)
    assert {group['name']: group['lr_scale'] for group in groups} == {
        'new': mult,
        'new, not decayed': mult,
        'old': 1.0,
        'old, not decayed': 1.0,
    }


def test_only_weights_are_decayed(on_meta: Build) -> None:
    groups = parameter_groups(on_meta(f'{LITE}_mwa'), 'all', lr=0.01, weight_decay=5e-4)
    decays = {(parameter.ndim > 1, group['weight_decay']) for group in groups for parameter in group['params']}
    assert decays == {(True, 5e-4), (False, 0.0)}


def test_every_group_has_the_rate_of_old_layers(on_meta: Build) -> None:
    groups = parameter_groups(on_meta(f'{LITE}_mwa'), 'all', lr=0.02, weight_decay=5e-4)
    assert {group['lr'] for group in groups} == {0.02}


@pytest.mark.parametrize('sched', ['step', 'cosine', 'poly'])
def test_timms_schedulers_keep_new_layers_at_the_multiple(sched: str) -> None:
    model = grow(timm.create_model(LITE, num_classes=3), 'wa16')
    groups = parameter_groups(model, 'all', lr=0.02, weight_decay=5e-4, new_lr_mult=10.0)
    optimizer = torch.optim.SGD(groups, momentum=0.9)
    kwargs: dict[str, Any] = dict(decay_epochs=2) if sched == 'step' else {}
    scheduler, _ = create_scheduler_v2(optimizer, sched=sched, num_epochs=6, warmup_epochs=2, warmup_lr=1e-4, **kwargs)
    for epoch in range(6):
        rates = {group['name']: group['lr'] for group in optimizer.param_groups}
        assert rates['new'] == 10.0 * rates['old'] and rates['new, not decayed'] == 10.0 * rates['old, not decayed']
        scheduler.step(epoch + 1)


def test_timms_optimizers_take_the_groups() -> None:
    model = grow(timm.create_model(LITE, num_classes=3), 'wa16')
    groups = parameter_groups(model, 'new', lr=0.02, weight_decay=5e-4)
    optimizer = create_optimizer_v2(groups, opt='momentum', lr=0.02, weight_decay=5e-4, momentum=0.9)
    decays = {group['name']: group['weight_decay'] for group in optimizer.param_groups}
    assert decays == {'new': 5e-4, 'new, not decayed': 0.0}


def step(model: nn.Module, regime: str, images: Tensor, lr: float = 0.01, **kwargs: Any) -> torch.optim.Optimizer:
    """Train a network one step."""
    optimizer = torch.optim.SGD(parameter_groups(model, regime, lr=lr, weight_decay=5e-4, **kwargs), momentum=0.9)
    model.train()
    model(images).square().mean().backward()
    optimizer.step()
    return optimizer


@pytest.mark.parametrize('regime', ['new', 'conv_head-new', 'blocks.6-new'])
def test_frozen_parameters_have_no_optimizer_state(regime: str, images: Tensor) -> None:
    model = grow(timm.create_model(LITE, num_classes=3), 'wa16')
    optimizer = step(model, regime, images)
    assert set(optimizer.state) == {parameter for parameter in model.parameters() if parameter.requires_grad}


@pytest.mark.parametrize('regime', ['new', 'conv_head-new', 'blocks.6-new'])
def test_nothing_frozen_changes_in_training(regime: str, images: Tensor) -> None:
    model = grow(timm.create_model(LITE, num_classes=3), 'mwa16')
    kept = {module for module in model.modules() if isinstance(module, nn.BatchNorm2d)}
    before = copy.deepcopy(model.state_dict())
    step(model, regime, images)
    still = frozen(model)
    still |= {
        f'{name}.{buffer}'
        for name, module in model.named_modules()
        if module in kept and f'{name}.weight' in still
        for buffer in ('running_mean', 'running_var', 'num_batches_tracked')
    }
    assert still and all(torch.equal(model.state_dict()[key], before[key]) for key in still)


def test_what_learns_does_change(images: Tensor) -> None:
    model = grow(timm.create_model(LITE, num_classes=3), 'mwa16')
    before = copy.deepcopy(model.state_dict())
    step(model, 'conv_head-new', images)
    after = model.state_dict()
    learns = {
        key for key, parameter in model.named_parameters() if parameter.requires_grad and parameter.grad.abs().sum() > 0
    }
    assert learns and not any(torch.equal(after[key], before[key]) for key in learns)


def test_frozen_layers_cost_no_backward_pass(images: Tensor) -> None:
    model = grow(timm.create_model(LITE, num_classes=3), 'wa16')
    parameter_groups(model, 'new', lr=0.01, weight_decay=0.0)
    seen: list[bool] = []
    model.blocks.register_forward_hook(lambda module, args, out: seen.append(out.requires_grad))
    for stage in model.blocks:
        stage.register_forward_hook(lambda module, args, out: seen.append(out.requires_grad))
    model.train()(images)
    assert seen and not any(seen)


# Modes ----------------------------------------------------------------------------------------------------------------


def modes(model: nn.Module) -> dict[str, bool]:
    return {name: module.training for name, module in model.named_modules()}


@pytest.mark.parametrize('regime', ['new', 'conv_head-new', 'blocks.6-new', 'all'])
def test_norms_are_in_evaluation_just_where_they_are_frozen(regime: str) -> None:
    model = grow(timm.create_model(LITE, device='meta'), 'mwa16')
    parameter_groups(model, regime, lr=0.01, weight_decay=0.0)
    model.train()
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert all(norm.training is norm.weight.requires_grad for norm in norms)


@pytest.mark.parametrize('regime', ['new', 'conv_head-new', 'all'])
def test_frozen_statistics_stay_while_scales_and_shifts_learn(regime: str, images: Tensor) -> None:
    model = grow(grow(timm.create_model(LITE, num_classes=3), 'wa16'), 'mwa16')
    model.settle(1)
    before = copy.deepcopy(model.state_dict())
    step(model, regime, images, freeze_bn_stats=True)
    after = model.state_dict()
    counted = {key for key in before if 'running_' in key and not torch.equal(after[key], before[key])}
    new = {name for name, added in model.added() if added.step >= model.settled}
    assert counted == {key for key in before if 'running_' in key and key.split('.')[1] in new} != set()
    assert trained(model, regime, freeze_bn_stats=True) == trained(model, regime)


def test_statistics_count_again_once_they_are_not_frozen() -> None:
    model = timm.create_model(LITE, device='meta')
    for freeze in (True, False):
        parameter_groups(model, 'all', lr=0.01, weight_decay=0.0, freeze_bn_stats=freeze)
        norms = [module for module in model.train().modules() if isinstance(module, nn.BatchNorm2d)]
        assert all(norm.training is not freeze for norm in norms)


@pytest.mark.parametrize(
    ('regime', 'on'),
    [('new', {'head.drop', 'grown.fc7_1.drop'}), ('all', {'head.drop', 'grown.fc7_1.drop', 'pre_logits.drop'})],
)
def test_dropout_is_off_where_all_around_it_is_frozen(regime: str, on: set[str]) -> None:
    model = timm.create_model('alexnet_wa', drop_rate=0.5, device='meta')
    parameter_groups(model, regime, lr=0.01, weight_decay=0.0)
    model.train()
    assert {name for name, module in model.named_modules() if isinstance(module, nn.Dropout) and module.training} == on


@pytest.mark.parametrize('regime', ['new', 'conv_head-new', 'all'])
def test_evaluation_puts_everything_in_evaluation(regime: str) -> None:
    model = grow(timm.create_model(LITE, device='meta'), 'mwa16')
    parameter_groups(model, regime, lr=0.01, weight_decay=0.0)
    assert not any(modes(model.train().eval()).values())


def test_all_puts_everything_back_in_training() -> None:
    model = grow(timm.create_model(LITE, device='meta'), 'mwa16')
    for regime in ('new', 'blocks.6-new', 'all'):
        parameter_groups(model, regime, lr=0.01, weight_decay=0.0)
    assert all(modes(model.train()).values())


@pytest.mark.parametrize('back', ['new', 'conv_head-new'])
def test_going_back_freezes_again(back: str) -> None:
    model = grow(timm.create_model(LITE, device='meta'), 'mwa16')
    first = trained(model, back), modes(model.train())
    parameter_groups(model, 'all', lr=0.01, weight_decay=0.0)
    assert (trained(model, back), modes(model.train())) == first


@pytest.mark.parametrize('training', [True, False])
def test_the_mode_of_what_learns_is_left_as_it_was(training: bool) -> None:
    model = grow(timm.create_model(LITE, device='meta'), 'mwa16').train(training)
    parameter_groups(model, 'all', lr=0.01, weight_decay=0.0)
    assert model.grown.conv_head_1.norm.training is training


def copied(model: nn.Module, way: str) -> nn.Module:
    if way == 'deepcopy':
        return copy.deepcopy(model)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)  # what this test has just written


@pytest.mark.parametrize('way', ['deepcopy', 'torch.save'])
def test_copies_stay_frozen(way: str) -> None:
    model = grow(timm.create_model(LITE), 'wa16')
    parameter_groups(model, 'conv_head-new', lr=0.01, weight_decay=0.0)
    other = copied(model, way)
    assert (frozen(other), modes(other.train())) == (frozen(model), modes(model.train()))


@pytest.mark.parametrize('way', ['deepcopy', 'torch.save'])
def test_thawing_a_copy_leaves_the_network_frozen(way: str) -> None:
    model = grow(timm.create_model(LITE), 'wa16')
    parameter_groups(model, 'new', lr=0.01, weight_decay=0.0)
    before = frozen(model), modes(model.train())
    other = copied(model, way)
    parameter_groups(other, 'all', lr=0.01, weight_decay=0.0)
    other.train()
    assert (frozen(model), modes(model.train())) == before


def test_a_network_grown_after_freezing_trains_its_new_units() -> None:
    model = timm.create_model(LITE, num_classes=3)
    parameter_groups(model, 'new', lr=0.01, weight_decay=0.0)
    grow(model, 'wa16').train()
    assert model.grown.conv_head_1.norm.training


def test_a_network_without_classifier_can_be_grown_after_freezing() -> None:
    model = timm.create_model(LITE, num_classes=0)
    parameter_groups(model, 'new', lr=0.01, weight_decay=0.0)
    grow(model, 'wa16').train()
    assert model.grown.conv_head_1.norm.training


@pytest.mark.parametrize('regime', ['New', 'fc8-new', '', 'conv_head', None, 3])
def test_an_unknown_regime_is_told_the_known_ones(regime: str, on_meta: Build) -> None:
    with pytest.raises(ValueError, match='Unknown regime .* it offers new, conv_head-new, blocks.6-new, all'):
        parameter_groups(on_meta(f'{LITE}_wa'), regime, lr=0.01, weight_decay=0.0)


def test_an_unknown_regime_changes_nothing() -> None:
    model = grow(timm.create_model(LITE, device='meta'), 'wa16')
    with pytest.raises(ValueError, match='Unknown regime'):
        parameter_groups(model, 'fc7-new', lr=0.01, weight_decay=0.0)
    assert not frozen(model)


def test_a_network_that_cannot_grow_is_refused() -> None:
    with pytest.raises(ValueError, match="Linear cannot grow: it lacks forward_features.*of timm's interface"):
        regimes(nn.Linear(2, 2))


def test_a_frozen_network_compiles_as_one_graph(images: Tensor, narrow: None) -> None:
    torch._dynamo.reset()
    model = timm.create_model('alexnet_wa', growth='wa16', num_classes=3)
    parameter_groups(model, 'new', lr=0.01, weight_decay=0.0)
    torch.compile(model.train(), fullgraph=True, backend='eager')(images).square().mean().backward()
    assert {key for key, parameter in model.named_parameters() if parameter.grad is None} == frozen(model)
