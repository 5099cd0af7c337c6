"""A grown network: the method by hand, the old network inside it, and growing one that exists."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from timm_devnet import all_levels, block_logits, block_names, convert_lite, grow
from timm_devnet.growing import old_levels

LITE = 'tf_efficientnet_lite0'
Build = Callable[..., Any]


def plain(num_classes: int = 5) -> Any:
    """Build an old network whose running means and variances are not those of the start."""
    model = timm.create_model(LITE, num_classes=num_classes)
    for key, tensor in model.state_dict().items():
        if key.endswith(('running_mean', 'running_var')):
            tensor.uniform_(0.5, 1.5)
    return model.eval()


def stir(model: nn.Module) -> nn.Module:
    """Give all but the largest parameters another value, as training does."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.numel() < 1_000_000:
                parameter.add_(torch.randn_like(parameter), alpha=0.01)
    return model


def norm_and_scale(block: Tensor, scale: Tensor) -> Tensor:
    return scale * block / block.norm(dim=1, keepdim=True)


@contextmanager
def watched(model: nn.Module, names: list[str]) -> Iterator[dict[str, Tensor]]:
    """Record the outputs of modules, as they are when they leave them."""
    seen: dict[str, Tensor] = {}

    def record(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        return lambda module, args, out: seen.update({name: out.clone()})

    hooks = [model.get_submodule(name).register_forward_hook(record(name)) for name in names]
    yield seen
    for hook in hooks:
        hook.remove()


# The method by hand ---------------------------------------------------------------------------------------------------


@pytest.fixture
def alexnet(narrow: None) -> Any:
    """Build an AlexNet whose FC6 is narrow."""
    return timm.create_model('alexnet', num_classes=5).eval()


@pytest.fixture
def grown_alexnet(alexnet: nn.Module) -> Build:
    """Grow that AlexNet, with its parameters stirred."""
    return lambda growth, **kwargs: stir(grow(alexnet, growth, **kwargs)).eval()


def fc6_of(model: Any, images: Tensor) -> tuple[Tensor, Tensor]:
    """The last pooled map at 6x6 and FC6, by hand, as vectors."""
    state = model.state_dict()
    pool5 = F.adaptive_avg_pool2d(model.features(images), 6)
    return pool5, F.linear(
        pool5.flatten(1), state['pre_logits.fc1.weight'].flatten(1), state['pre_logits.fc1.bias']
    ).relu()


def fc7_of(model: nn.Module, fc6: Tensor) -> Tensor:
    state = model.state_dict()
    return F.linear(fc6, state['pre_logits.fc2.weight'][..., 0, 0], state['pre_logits.fc2.bias']).relu()


def units_of(model: nn.Module, name: str, read: Tensor) -> Tensor:
    state = {
        key.rpartition('.')[2]: value for key, value in model.state_dict().items() if key.startswith(f'grown.{name}.')
    }
    return F.linear(read, state['weight'].flatten(1), state['bias']).relu()


def scale_of(model: nn.Module, block: str) -> Tensor:
    return model.state_dict()[f'grown.{block}_scaled.reconcile.scale']


def classified(model: nn.Module, blocks: list[Tensor]) -> Tensor:
    return F.linear(torch.cat(blocks, 1), model.state_dict()['head.fc.weight'], model.state_dict()['head.fc.bias'])


@torch.no_grad()
def test_wa_by_hand(grown_alexnet: Build, images: Tensor) -> None:
    model = grown_alexnet('wa16')
    _, fc6 = fc6_of(model, images)
    old = norm_and_scale(fc7_of(model, fc6), scale_of(model, 'fc7'))
    new = norm_and_scale(units_of(model, 'fc7_1', fc6), scale_of(model, 'fc7_1'))
    torch.testing.assert_close(model(images), classified(model, [old, new]))


@torch.no_grad()
def test_wwa_by_hand(grown_alexnet: Build, images: Tensor) -> None:
    model = grown_alexnet('wwa16')
    pool5, fc6 = fc6_of(model, images)
    fc6_new = units_of(model, 'fc6_1', pool5.flatten(1))
    both = [norm_and_scale(fc6, scale_of(model, 'fc6')), norm_and_scale(fc6_new, scale_of(model, 'fc6_1'))]
    old = norm_and_scale(fc7_of(model, fc6), scale_of(model, 'fc7'))  # reads FC6 alone
    new = norm_and_scale(units_of(model, 'fc7_1', torch.cat(both, 1)), scale_of(model, 'fc7_1'))
    torch.testing.assert_close(model(images), classified(model, [old, new]))


@torch.no_grad()
def test_da_by_hand(grown_alexnet: Build, images: Tensor) -> None:
    model = grown_alexnet('da16')
    fc7 = norm_and_scale(fc7_of(model, fc6_of(model, images)[1]), scale_of(model, 'fc7'))
    fca = norm_and_scale(units_of(model, 'fca', fc7), scale_of(model, 'fca'))
    torch.testing.assert_close(model(images), classified(model, [fca]))


@torch.no_grad()
def test_dwa_by_hand(grown_alexnet: Build, images: Tensor) -> None:
    model = grown_alexnet('dwa16')
    _, fc6 = fc6_of(model, images)
    old = norm_and_scale(fc7_of(model, fc6), scale_of(model, 'fc7'))
    new = norm_and_scale(units_of(model, 'fc7_1', fc6), scale_of(model, 'fc7_1'))
    fca = norm_and_scale(units_of(model, 'fca', torch.cat([old, new], 1)), scale_of(model, 'fca'))
    torch.testing.assert_close(model(images), classified(model, [fca]))


@torch.no_grad()
def test_norm_by_hand(grown_alexnet: Build, images: Tensor) -> None:
    model = grown_alexnet('norm')
    fc7 = norm_and_scale(fc7_of(model, fc6_of(model, images)[1]), scale_of(model, 'fc7'))
    torch.testing.assert_close(model(images), classified(model, [fc7]))


@torch.no_grad()
def test_skip_by_hand(grown_alexnet: Build, images: Tensor) -> None:
    model = grown_alexnet('skip')
    pool5, fc6 = fc6_of(model, images)
    conv4 = model.features[:10](images)
    conv4 = F.adaptive_avg_pool2d(conv4, 2)  # the size of the last map, of which it becomes channels
    blocks = [fc7_of(model, fc6), pool5.mean((2, 3)), conv4.mean((2, 3))]
    names = ['fc7', 'fc7_1', 'fc7_2']
    scaled = [norm_and_scale(block, scale_of(model, name)) for name, block in zip(names, blocks, strict=True)]
    torch.testing.assert_close(model(images), classified(model, scaled), rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize('growth', ['wa16', 'wwa16', 'dwa16'])
def test_without_reconciliation_blocks_are_concatenated_as_they_are(
    grown_alexnet: Build, images: Tensor, growth: str
) -> None:
    model = grown_alexnet(growth, scale_init=None)
    pool5, fc6 = fc6_of(model, images)
    fc7 = fc7_of(model, fc6)
    read = torch.cat([fc6, units_of(model, 'fc6_1', pool5.flatten(1))], 1) if growth == 'wwa16' else fc6
    blocks = [fc7, units_of(model, 'fc7_1', read)]
    if growth == 'dwa16':
        blocks = [units_of(model, 'fca', torch.cat(blocks, 1))]
    torch.testing.assert_close(model(images), classified(model, blocks))


@pytest.mark.parametrize('growth', ['da16', 'wa16', 'dwa16', 'wwa16', 'mwa16', 'norm', 'skip'])
def test_without_reconciliation_there_are_no_scales(growth: str) -> None:
    model = grow(timm.create_model(LITE, device='meta'), growth, scale_init=None)
    assert not [name for name, _ in model.named_parameters() if 'scale' in name]


@pytest.mark.parametrize(('growth', 'padding'), [('mwa16', 0), ('xwa16', 1)])
@torch.no_grad()
def test_lite_mwa_and_xwa_by_hand(growth: str, padding: int, images: Tensor) -> None:
    model = stir(grow(plain(), growth)).eval()
    with watched(model, ['blocks.4', 'blocks.5', 'bn2']) as seen:
        logits = model(images)
    blocks = {'conv_head': seen['bn2']}
    for name, read in (('conv_head_1', 'blocks.5'), ('conv_head_2', 'blocks.4')):
        state, prefix = model.state_dict(), f'grown.{name}'
        mean, var = state[f'{prefix}.norm.running_mean'], state[f'{prefix}.norm.running_var']
        x = F.conv2d(seen[read], state[f'{prefix}.conv.weight'], padding=padding)
        x = F.batch_norm(x, mean, var, state[f'{prefix}.norm.weight'], state[f'{prefix}.norm.bias'], eps=1e-3)
        blocks[name] = x.clamp(0, 6)
    scaled = [norm_and_scale(block.mean((2, 3)), scale_of(model, name)) for name, block in blocks.items()]
    state = model.state_dict()
    by_hand = F.linear(torch.cat(scaled, 1), state['classifier.weight'], state['classifier.bias'])
    torch.testing.assert_close(logits, by_hand, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_network_whose_new_units_are_all_silent_gives_numbers(images: Tensor) -> None:
    model = grow(plain(), 'wa16').eval()
    nn.init.constant_(model.get_parameter('grown.conv_head_1.norm.bias'), -100.0)
    assert model(images).isfinite().all()


# Blocks -------------------------------------------------------------------------------------------------------------


def test_block_names_of_a_plain_network() -> None:
    assert block_names(timm.create_model(LITE, device='meta')) == []


@torch.no_grad()
def test_blocks_answers_sum_to_the_logits(build_grown: Build, images: Tensor) -> None:
    model = build_grown(num_classes=7).eval()
    pre_logits = model.forward_head(model.forward_features(images), pre_logits=True)
    bias = model.get_classifier().bias
    answers = block_logits(model, pre_logits)
    torch.testing.assert_close(sum(answers) - (len(answers) - 1) * bias, model(images), rtol=1e-4, atol=1e-5)


def test_every_block_has_its_answer(build_grown: Build) -> None:
    model = build_grown(num_classes=7).eval()
    answers = block_logits(model, torch.rand(2, model.head_hidden_size))
    assert [answer.shape for answer in answers] == [(2, 7)] * len(block_names(model))


def test_a_plain_network_has_no_blocks_that_answer() -> None:
    with pytest.raises(ValueError, match='EfficientNet has not grown'):
        block_logits(timm.create_model(LITE, device='meta'), torch.rand(2, 1280))


def test_without_classifier_blocks_have_no_answer() -> None:
    with pytest.raises(ValueError, match='no classifier'):
        block_logits(timm.create_model(f'{LITE}_wa', num_classes=0, device='meta'), torch.rand(2, 1792))


# The old network stays whole ------------------------------------------------------------------------------------------


def test_state_dict_holds_the_bases_own_names(
    grown_names: list[str], on_meta: Build, base_of: Callable[[str], str]
) -> None:
    for name in grown_names:
        old, own = on_meta(base_of(name)).state_dict(), on_meta(name).state_dict()
        assert old.keys() == {key for key in own if not key.startswith('grown.')}, name


def old_top(model: nn.Module) -> str:
    return 'bn2' if hasattr(model, 'bn2') else 'pre_logits.act2'


@pytest.mark.parametrize('training', [False, True], ids=['eval', 'train'])
@pytest.mark.parametrize('growth', ['wa16', 'dwa16', 'wwa16', 'skip', 'mwa16_wwa16_da8'])
@pytest.mark.parametrize('name', ['alexnet', 'vgg11', 'vgg11_bn', LITE])
def test_old_activations_are_the_bases_bit_for_bit(
    name: str, growth: str, training: bool, narrow: None, lite_weights: Path, images: Tensor
) -> None:
    images = images[..., :64, :64]
    base = timm.create_model(name)
    if name == LITE:
        base.load_state_dict(convert_lite(torch.load(lite_weights, weights_only=True)))
    model = grow(copy.deepcopy(base), growth)
    place = old_top(base)
    with (
        torch.no_grad(),
        watched(base.train(training), [place]) as of_base,
        watched(model.train(training), [place]) as seen,
    ):
        base(images), model(images)
    assert torch.equal(seen[place], of_base[place])


@pytest.mark.parametrize('growth', ['wa16', 'dwa16', 'wwa16', 'skip'])
@torch.no_grad()
def test_old_activations_are_the_bases_under_dropout_too(growth: str, narrow: None, images: Tensor) -> None:
    base = timm.create_model('alexnet', drop_rate=0.5).train()
    model = grow(copy.deepcopy(base), growth)
    with watched(base, ['pre_logits.act2']) as of_base, watched(model, ['pre_logits.act2']) as seen:
        for network in (base, model):
            torch.manual_seed(5)
            network(images)
    assert torch.equal(seen['pre_logits.act2'], of_base['pre_logits.act2'])


# Growing a network that exists ----------------------------------------------------------------------------------------


def test_old_parameters_stay_the_same_objects() -> None:
    model = plain()
    before = {name: parameter for name, parameter in model.named_parameters() if 'classifier' not in name}
    grown = dict(grow(model, 'mwa16').named_parameters())
    assert all(grown[name] is parameter for name, parameter in before.items())


def test_parameters_of_earlier_growths_stay_the_same_objects() -> None:
    model = grow(plain(), 'wwa16')
    before = {name: parameter for name, parameter in model.named_parameters() if 'classifier' not in name}
    again = dict(grow(model, 'mwa16').named_parameters())
    assert all(again[name] is parameter for name, parameter in before.items())


@pytest.mark.parametrize('growths', [('wa16',), ('wa16', 'mwa16'), ('mwa16', 'da8', 'wa4')])
def test_what_was_learnt_stays(growths: tuple[str, ...]) -> None:
    model = plain()
    for growth in growths:
        before = {key: value.clone() for key, value in stir(model).state_dict().items() if 'classifier' not in key}
        after = grow(model, growth).state_dict()
        assert all(torch.equal(after[key], value) for key, value in before.items())


def test_grow_gives_the_same_network_back() -> None:
    model = plain()
    assert grow(model, 'wa16') is model


@pytest.mark.parametrize('first', ['wa16', 'mwa16', 'skip', 'norm'])
@pytest.mark.parametrize('second', ['wa8', 'mwa8', 'wwa8', 'skip', 'norm'])
@torch.no_grad()
def test_a_grown_network_grows_on_without_changing_its_answers(first: str, second: str, images: Tensor) -> None:
    model = stir(grow(plain(), first)).eval()
    before = model(images)
    torch.testing.assert_close(grow(model, second)(images), before, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('growth', ['wa8', 'mwa8', 'wwa8', 'norm', 'skip'])
def test_old_columns_stay_and_new_ones_start_at_zero(growth: str) -> None:
    model = plain()
    old = model.get_classifier().weight.clone()
    columns = grow(model, growth).get_classifier().weight
    assert torch.equal(columns, F.pad(old, (0, columns.shape[1] - old.shape[1])))


@pytest.mark.parametrize('growth', ['da8', 'dwa8'])
def test_a_classifier_on_a_new_layer_starts_afresh(growth: str) -> None:
    classifier = grow(plain(), growth).get_classifier()
    assert classifier.weight.abs().max() > 0


@pytest.mark.parametrize(('name', 'first', 'second'), [('alexnet', 'wa2048', 'wa1024'), (LITE, 'wa512', 'wa256')])
def test_a_repeated_name_equals_growing_twice(name: str, first: str, second: str) -> None:
    torch.manual_seed(5)
    at_once = timm.create_model(f'{name}_{first}_{second}', num_classes=3).state_dict()
    torch.manual_seed(5)
    twice = grow(grow(timm.create_model(name, num_classes=3), first), second).state_dict()
    assert at_once.keys() == twice.keys() and all(torch.equal(at_once[key], twice[key]) for key in twice)


@pytest.mark.parametrize('growth', ['wa8', 'da8', 'wwa8', 'mwa8', 'skip'])
@torch.no_grad()
def test_create_model_equals_growing_the_base(growth: str, images: Tensor) -> None:
    torch.manual_seed(5)
    created = timm.create_model(f'{LITE}_wa', growth=growth, num_classes=3).eval()
    torch.manual_seed(5)
    grown = grow(timm.create_model(LITE, num_classes=3), growth).eval()
    assert torch.equal(created(images), grown(images))


@pytest.mark.parametrize('draws', [0, 1, 1000])
def test_new_units_depend_on_the_seed_alone(draws: int) -> None:
    torch.manual_seed(7)
    one = grow(plain(), 'mwa16').state_dict()
    torch.manual_seed(7)
    base = plain()
    torch.rand(draws)
    other = grow(base, 'mwa16').state_dict()
    assert all(torch.equal(one[key], other[key]) for key in one if key.startswith('grown.'))


def test_another_seed_gives_other_units() -> None:
    base = plain()
    one, other = (grow(copy.deepcopy(base), 'wa16').state_dict() for seed in (1, 2) if torch.manual_seed(seed))
    assert not torch.equal(one['grown.conv_head_1.conv.weight'], other['grown.conv_head_1.conv.weight'])


def test_two_blocks_alike_get_different_units() -> None:
    state = grow(plain(), 'wa16_wa16').state_dict()
    assert not torch.equal(state['grown.conv_head_1.conv.weight'], state['grown.conv_head_2.conv.weight'])


@pytest.mark.parametrize('growth', ['wa16', 'mwa16', 'da16'])
def test_new_units_are_in_the_mode_of_the_network(growth: str) -> None:
    assert not any(module.training for module in grow(plain().eval(), growth).modules())


@pytest.mark.parametrize('dtype', [torch.float64, torch.bfloat16])
def test_new_units_have_the_type_of_the_network(dtype: torch.dtype) -> None:
    assert {parameter.dtype for parameter in grow(plain().to(dtype), 'mwa16_da8').parameters()} == {dtype}


def test_growing_without_classifier_leaves_none() -> None:
    assert isinstance(grow(plain(num_classes=0), 'wa16').get_classifier(), nn.Identity)


def test_a_network_of_another_class_is_refused() -> None:
    with pytest.raises(ValueError, match="Linear cannot grow: it lacks forward_features.*of timm's interface"):
        grow(nn.Linear(2, 2), 'wa16')


def test_an_efficientnet_without_batch_norm_grows_units_with_a_norm_of_its_kind() -> None:
    grown: Any = grow(timm.create_model('test_efficientnet_gn', device='meta'), 'wa16')
    assert isinstance(grown.grown['conv_head_1'].norm, nn.LayerNorm)


def test_another_scale_than_before_is_refused() -> None:
    with pytest.raises(ValueError, match='has grown with scale_init=5.0.*given scale_init=7.0'):
        grow(grow(plain(), 'wa16'), 'wa16', scale_init=7.0)


@pytest.mark.parametrize('scale_init', [-1.0, float('nan'), float('inf'), '10', [10.0]])
def test_a_scale_that_is_no_positive_number_is_refused(scale_init: float) -> None:
    with pytest.raises(ValueError, match='scale_init is a positive number'):
        grow(timm.create_model(LITE, device='meta'), 'wa16', scale_init=scale_init)


@pytest.mark.parametrize('new_init', ['copied', '', 'Random', None, 3])
def test_an_unknown_start_of_new_units_is_refused(new_init: str) -> None:
    with pytest.raises(ValueError, match="new_init is 'random' or 'copy'"):
        grow(timm.create_model(LITE, device='meta'), 'wa16', new_init=new_init)


@pytest.mark.parametrize('growth', ['wb16', 'r12u4', 'wa16_r12u4'])
def test_a_refused_growth_changes_nothing(growth: str) -> None:
    model = grow(plain(), 'wa16')
    before = copy.deepcopy(model)
    with pytest.raises(ValueError, match='growth|Growth'):
        grow(model, growth)
    assert model.growth == before.growth and model.state_dict().keys() == before.state_dict().keys()


def test_a_refused_growth_leaves_a_plain_network_plain() -> None:
    model = plain()
    with pytest.raises(ValueError, match='reads level'):
        grow(model, 'r12u4')
    assert type(model) is timm.models.EfficientNet


# Copied units ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('growth', 'new', 'old'),
    [
        ('wa16', 'fc7_1', 'pre_logits.fc2'),
        ('wwa16', 'fc7_1', 'pre_logits.fc2'),
        ('wwa16', 'fc6_1', 'pre_logits.fc1'),
        ('dwa16', 'fc7_1', 'pre_logits.fc2'),
        ('wa8_wa16', 'fc7_2', 'pre_logits.fc2'),
    ],
)
def test_copied_units_are_old_units_with_a_tenth_of_noise(growth: str, new: str, old: str, alexnet: nn.Module) -> None:
    model = grow(copy.deepcopy(alexnet), growth, new_init='copy')
    weights = next(p for n, p in model.named_parameters() if n.startswith(f'grown.{new}.') and p.ndim > 1).flatten(1)
    old_weights = model.get_submodule(old).weight.flatten(1)
    weights = weights[:, : old_weights.shape[1]]
    nearest = torch.cdist(weights, old_weights).min(1).values / weights.shape[1] ** 0.5  # per weight
    assert (nearest / old_weights.std()).mean().item() == pytest.approx(0.1, rel=0.05)


@torch.no_grad()
def test_copied_lite_units_answer_like_old_ones(images: Tensor) -> None:
    model = grow(plain(), 'wa1280', new_init='copy').eval()
    with watched(model, ['bn2', 'grown.conv_head_1']) as seen:
        model(images)
    old, new = (seen[name].mean((0, 2, 3)).sort().values for name in ('bn2', 'grown.conv_head_1'))
    assert torch.corrcoef(torch.stack([old, new]))[0, 1] > 0.95


@pytest.mark.parametrize('growth', ['mwa16', 'r2u8', 'r1r2u8', 'wa16_mwa16'])
@pytest.mark.parametrize('name', ['alexnet', LITE])
def test_copying_is_refused_where_no_old_unit_reads_the_same(name: str, growth: str) -> None:
    with pytest.raises(ValueError, match="new_init='copy' copies old units that read the same"):
        grow(timm.create_model(name, device='meta'), growth, new_init='copy')


@pytest.mark.parametrize('growth', ['wwa16', 'da16_wa8'])
def test_copying_is_refused_where_a_level_has_no_layer_of_units_to_copy(growth: str) -> None:
    with pytest.raises(ValueError, match="new_init='copy' copies"):
        grow(timm.create_model(LITE, device='meta'), growth, new_init='copy')


def test_units_that_are_there_already_need_not_be_copied() -> None:
    model = grow(grow(plain(), 'mwa16'), 'wa8', new_init='copy')
    assert block_names(model)[-1] == 'conv_head_3'


def test_copies_depend_on_the_seed_alone(alexnet: nn.Module) -> None:
    one = grow(copy.deepcopy(alexnet), 'wa16', new_init='copy').state_dict()
    torch.rand(5)
    other = grow(copy.deepcopy(alexnet), 'wa16', new_init='copy').state_dict()
    assert torch.equal(one['grown.fc7_1.fc.weight'], other['grown.fc7_1.fc.weight'])


@pytest.mark.parametrize('name', ['tf_efficientnet_lite0', 'vgg11_bn', 'alexnet', 'test_resnet', 'test_vit'])
def test_all_levels_reach_the_classifier(name: str, narrow: None) -> None:
    model = timm.create_model(name, num_classes=3)
    levels = old_levels(model)
    grow(model, all_levels(model))
    assert len(block_names(model)) == len(levels)
    added = {layer.reads[0] for layer in model.plan.layers if layer.kind == 'pass'}
    assert added == {level.name for level in levels[1:]}
    assert all(layer.kind in ('pass', 'scaled') for layer in model.plan.layers)
