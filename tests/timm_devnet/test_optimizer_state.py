"""Growing in the middle of a run: the optimizer, its schedule and a moving average go on."""

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import timm
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.optim import Optimizer

import timm_devnet
from timm_devnet import grow, parameter_groups

LR, WEIGHT_DECAY = 0.01, 1e-3


def network(growth: str = 'norm') -> Any:
    """A network that is reconciled already, so that further units change nothing of what it computes."""
    torch.manual_seed(0)
    model = timm.create_model('test_efficientnet', num_classes=3)
    return grow(model, growth).train() if growth else model.train()


def optimizer_of(model: nn.Module, opt: str = 'momentum', regime: str = 'all', **options: Any) -> Optimizer:
    return create_optimizer_v2(parameter_groups(model, regime, LR, WEIGHT_DECAY), opt, lr=LR, **options)


def give_gradients(model: nn.Module, seed: int) -> None:
    """Give every parameter a gradient that depends on its name and the seed alone; more columns follow the others."""
    for name, parameter in model.named_parameters():
        generator = torch.Generator().manual_seed(int.from_bytes(name.encode()[-6:], 'little') % 2**31 + seed)
        transposed = torch.randn(parameter.shape[::-1], generator=generator)
        parameter.grad = transposed.permute(*reversed(range(parameter.ndim)))


def learn(model: nn.Module, optimizer: Any, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    optimizer.zero_grad()
    images = torch.rand(4, 3, 32, 32, generator=generator)
    model(images.to(next(model.parameters()).dtype)).square().sum().backward()
    optimizer.step()


def places(optimizer: Any) -> dict[int, list[dict[str, Any]]]:
    """The groups that each parameter is in."""
    found: dict[int, list[dict[str, Any]]] = {}
    for group in optimizer.param_groups:
        for parameter in group['params']:
            found.setdefault(id(parameter), []).append(group)
    return found


def old_part(model: Any, width: int) -> dict[str, Tensor]:
    """What a network without the newest units would have."""
    head = f'{model.classifier_name}.weight'
    return {name: value[:, :width] if name == head else value for name, value in model.state_dict().items()}


def assert_same_old(grown: Any, plain: Any, **tolerance: float) -> None:
    expected = plain.state_dict()
    found = old_part(grown, plain.get_classifier().in_features)
    torch.testing.assert_close(
        {name: found[name] for name in expected}, expected, **tolerance or {'rtol': 0, 'atol': 0}
    )


@pytest.mark.parametrize('opt', ['momentum', 'sgd', 'adamw', 'rmsproptf', 'lookahead_adam'])
def test_with_the_same_gradients_old_parameters_take_the_same_steps(opt: str) -> None:
    plain, grown = network(), network()
    optimizers = [optimizer_of(model, opt) for model in (plain, grown)]
    for seed in range(7):
        if seed == 3:
            grow(grown, 'wa16', optimizer=optimizers[1])
        for model, optimizer in zip((plain, grown), optimizers, strict=True):
            give_gradients(model, seed)
            optimizer.step()
    assert_same_old(grown, plain)


@pytest.mark.parametrize('fused', [False, True])
@pytest.mark.parametrize('opt', ['momentum', 'adamw'])
def test_the_next_step_of_old_parameters_is_the_one_without_growth(opt: str, fused: bool) -> None:
    plain, grown = network().double(), network().double()
    options: dict[str, Any] = {'eps': 1e-3} if opt == 'adamw' else {}  # or it would make much of rounding
    optimizers = [optimizer_of(model, opt, fused=fused, **options) for model in (plain, grown)]
    for seed in range(4):
        if seed == 3:
            grow(grown, 'wa16', optimizer=optimizers[1])
        for model, optimizer in zip((plain, grown), optimizers, strict=True):
            learn(model, optimizer, seed)
    # Sums of more numbers, some of them zero, are added in another order.
    assert_same_old(grown, plain, rtol=1e-9, atol=1e-9)
    assert grown.get_classifier().weight[:, plain.get_classifier().in_features :].all()


@pytest.mark.parametrize('opt', ['momentum', 'adamw'])
def test_new_columns_have_no_past_and_counts_of_steps_are_kept(opt: str) -> None:
    model = network()
    optimizer = optimizer_of(model, opt)
    learn(model, optimizer)
    before = copy.deepcopy({**optimizer.state[model.get_classifier().weight]})
    old = model.get_classifier().weight
    grow(model, 'wa16', optimizer=optimizer)
    after = optimizer.state[model.get_classifier().weight]
    assert old not in optimizer.state
    assert after.keys() == before.keys()
    for name, value in before.items():
        wide = after[name]
        if value.ndim:
            assert torch.equal(wide[:, : value.shape[1]], value)
            assert not wide[:, value.shape[1] :].any()
        else:
            assert wide == value == 1


def test_factored_states_of_the_classifier_start_anew() -> None:
    model = network()
    optimizer = optimizer_of(model, 'adafactorbv')
    model.get_classifier().weight.data = torch.randn(130, model.get_classifier().in_features)  # large enough to factor
    model.get_classifier().bias.data = torch.randn(130)
    model.num_classes = model.get_classifier().out_features = 130
    learn(model, optimizer)
    state = optimizer.state[model.get_classifier().weight]
    assert any(value.ndim and value.shape != model.get_classifier().weight.shape for value in state.values())
    grow(model, 'wa160', optimizer=optimizer)
    assert not optimizer.state.get(model.get_classifier().weight)
    learn(model, optimizer)
    assert model.get_classifier().weight.isfinite().all()


@pytest.mark.parametrize('opt', ['momentum', 'adamw'])
def test_on_top_of_the_network_all_of_the_classifier_is_new(opt: str) -> None:
    model = network()
    optimizer = optimizer_of(model, opt)
    learn(model, optimizer)
    old = [*model.get_classifier().parameters()]
    grow(model, 'da16', optimizer=optimizer)
    assert not any(parameter in optimizer.state for parameter in old)
    for parameter in model.get_classifier().parameters():
        assert not any(value.any() for value in optimizer.state.get(parameter, {}).values())
        assert [group['name'] for group in places(optimizer)[id(parameter)]] == [
            'new' if parameter.ndim > 1 else 'new, not decayed'
        ]
    learn(model, optimizer)  # fused kernels too have a momentum for each
    assert all(parameter in optimizer.state for parameter in model.parameters())


@pytest.mark.parametrize('growth', ['wa16', 'mwa16_da16', 'skip'])
@pytest.mark.parametrize('regime', ['new', 'conv_head-new', 'all'])
@pytest.mark.parametrize('named', [True, False])
def test_what_trains_is_in_one_group_and_what_is_frozen_in_none(growth: str, regime: str, named: bool) -> None:
    model = network()
    groups = parameter_groups(model, regime, LR, WEIGHT_DECAY)
    if not named:
        groups = [{**group, 'name': f'mine {number}'} for number, group in enumerate(groups)]
    optimizer = torch.optim.AdamW(groups, LR)
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    grow(model, growth, optimizer=optimizer)
    found = places(optimizer)
    assert {name for name, parameter in model.named_parameters() if not parameter.requires_grad} == frozen
    for name, parameter in model.named_parameters():
        assert len(found.pop(id(parameter), [])) == (name not in frozen), name
    assert not found


def test_new_parameters_join_the_groups_of_new_ones() -> None:
    model = network()
    optimizer = optimizer_of(model)
    before = [{name: value for name, value in group.items() if name != 'params'} for group in optimizer.param_groups]
    grow(model, 'wa16', optimizer=optimizer)
    after = [{name: value for name, value in group.items() if name != 'params'} for group in optimizer.param_groups]
    assert after == before
    for name, parameter in model.named_parameters():
        if name.startswith('grown.conv_head_1.') or name.startswith(model.classifier_name):
            [group] = places(optimizer)[id(parameter)]
            assert group['name'] == ('new' if parameter.ndim > 1 else 'new, not decayed'), name


@pytest.mark.parametrize('regime', ['all', 'new'])
def test_other_optimizers_get_groups_at_ten_times_the_rate_of_the_top_layer(regime: str) -> None:
    model = network('')
    parameter_groups(model, regime, LR, WEIGHT_DECAY)
    optimizer = create_optimizer_v2(model, 'adamw', lr=LR, weight_decay=WEIGHT_DECAY)
    faster = 10.0 if regime == 'all' else 1.0  # there, only the classifier's rate is known
    grow(model, 'wa16', optimizer=optimizer)
    groups = optimizer.param_groups[-2:]
    found = [(group['name'], group['lr_scale'], group['weight_decay'], group['lr']) for group in groups]
    assert found == [('new', faster, WEIGHT_DECAY, LR), ('new, not decayed', faster, 0.0, LR)]
    count = len(optimizer.param_groups)
    grow(model, 'wa8', optimizer=optimizer)  # joins them
    assert len(optimizer.param_groups) == count


def schedule_of(optimizer: Optimizer) -> Any:
    return create_scheduler_v2(optimizer, 'cosine', num_epochs=10, warmup_epochs=2, warmup_lr=1e-5)[0]


def test_a_schedule_goes_on_where_new_parameters_join() -> None:
    model = network()
    optimizer = optimizer_of(model)
    schedule = schedule_of(optimizer)
    schedule.step(3)
    grow(model, 'wa16', optimizer=optimizer)
    schedule.step(4)
    rates = {group['name']: group['lr'] for group in optimizer.param_groups}
    assert rates['new'] == rates['new, not decayed'] == pytest.approx(10 * rates['old'])
    assert 0 < rates['old'] < LR


def test_a_schedule_made_anew_gives_groups_of_their_own_their_rates() -> None:
    model = network('')
    optimizer = create_optimizer_v2(model, 'adamw', lr=LR, weight_decay=WEIGHT_DECAY)
    schedule = schedule_of(optimizer)
    schedule.step(3)
    grow(model, 'wa16', optimizer=optimizer)
    rates = [group['lr'] for group in optimizer.param_groups]
    assert rates[2:] == pytest.approx([10 * rates[0]] * 2)  # at once
    schedule.step(4)
    assert [group['lr'] for group in optimizer.param_groups][2:] == rates[2:]  # timm's does not see them
    schedule_of(optimizer).step(4)
    after = [group['lr'] for group in optimizer.param_groups]
    assert after[2:] == pytest.approx([10 * after[0]] * 2)
    assert after[0] != rates[0]


def test_optimizers_that_know_names_know_the_new_ones() -> None:
    model = network()
    optimizer = torch.optim.SGD(list(model.named_parameters()), LR)
    if 'param_names' not in optimizer.param_groups[0]:
        pytest.skip('torch keeps names from 2.6 on')
    for growth in ('wa16', 'wa8'):
        grow(model, growth, optimizer=optimizer)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for group in optimizer.param_groups:
        assert [names[id(parameter)] for parameter in group['params']] == group['param_names']


def test_an_average_goes_on_and_takes_new_values_from_the_network() -> None:
    model = network()
    optimizer = optimizer_of(model)
    ema = ModelEmaV3(model, 0.5)
    for seed in range(2):
        learn(model, optimizer, seed)
        ema.update(model)
    twin = copy.deepcopy(ema.module)
    grow(model, 'wa16', new_init='copy', optimizer=optimizer, ema=ema)
    assert_same_old(ema.module, twin)
    own = model.state_dict()
    for name, value in ema.module.state_dict().items():
        if name not in twin.state_dict():
            assert torch.equal(value, own[name]), name
    assert not any(module.training for module in ema.module.modules())
    learn(model, optimizer)
    ema.update(model)
    assert ema.module.get_classifier().weight[:, -16:].any()


def test_under_a_new_top_layer_an_average_takes_the_classifier_from_the_network() -> None:
    model = network()
    ema = ModelEmaV3(model, 0.5)
    with torch.no_grad():
        model.get_classifier().weight += 1
    grow(model, 'da16', ema=ema)
    torch.testing.assert_close(
        ema.module.get_classifier().state_dict(), model.get_classifier().state_dict(), rtol=0, atol=0
    )


def test_new_units_train_beside_earlier_ones_that_are_frozen_as_a_whole() -> None:
    model = network('wa16')
    model.settle(1)
    optimizer = optimizer_of(model, regime='new')
    learn(model, optimizer)
    grow(model, 'wa8', optimizer=optimizer).train()
    assert not model.grown['conv_head_1'].training
    assert all(module.training for module in model.grown['conv_head_2'].modules())


@pytest.mark.parametrize('wrap', ['compiled', 'parallel', 'cast'])
def test_wrapped_networks_are_refused_and_nothing_is_changed(wrap: str) -> None:
    model = network('')
    wrapped: Any = model
    if wrap == 'compiled':
        wrapped = torch.compile(model, backend='eager')
    elif wrap == 'parallel':
        wrapped = nn.DataParallel(model)
    else:
        AcceleratorState._reset_state()
        wrapped = Accelerator(cpu=True, mixed_precision='bf16').prepare(model)
    keys = list(model.state_dict())
    with pytest.raises(ValueError, match=r'take network = accelerator\.unwrap_model\(.*, grow network, and prepare'):
        grow(wrapped, 'wa16')
    assert list(model.state_dict()) == keys


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ({'optimizer': 3}, r'optimizer is a torch\.optim\.Optimizer, .* int is neither'),
        ({'optimizer': torch.optim.SGD([nn.Parameter(torch.zeros(1))])}, 'trains no parameter of this EfficientNet'),
        ({'ema': 3}, r'ema has the averaged network in `\.module`'),
        ({'ema': ModelEmaV3(nn.Linear(2, 2))}, 'averages a Linear that is no copy of this EfficientNet'),
    ],
)
def test_what_belongs_to_another_network_is_refused(arguments: dict[str, Any], message: str) -> None:
    model = network('')
    with pytest.raises(ValueError, match=message):
        grow(model, 'wa16', **arguments)
    assert not timm_devnet.block_names(model)


@pytest.fixture(params=['no', 'bf16'])
def accelerator(request: pytest.FixtureRequest) -> Iterator[Accelerator]:
    AcceleratorState._reset_state()
    yield Accelerator(cpu=True, mixed_precision=request.param)
    AcceleratorState._reset_state()
    PartialState._reset_state()


@pytest.mark.parametrize('growth', ['', 'norm'])
def test_a_prepared_network_grows_when_it_is_unwrapped(accelerator: Accelerator, growth: str) -> None:
    model = network(growth)
    prepared, optimizer = accelerator.prepare(model, optimizer_of(model))
    learn(prepared, optimizer)
    unwrapped = accelerator.unwrap_model(prepared, keep_fp32_wrapper=False, keep_torch_compile=False)
    momentum = optimizer.state[model.conv_stem.weight]['momentum_buffer'].clone()
    grow(unwrapped, 'wa16', optimizer=optimizer)
    accelerator.free_memory()
    prepared, optimizer = accelerator.prepare(unwrapped, optimizer)
    assert torch.equal(optimizer.state[model.conv_stem.weight]['momentum_buffer'], momentum)
    learn(prepared, optimizer, 1)
    assert model.get_classifier().weight[:, -16:].any()
    unwrapped = accelerator.unwrap_model(prepared, keep_fp32_wrapper=False, keep_torch_compile=False)
    grow(unwrapped, 'wa8', optimizer=optimizer)  # and once more
    accelerator.free_memory()
    prepared, optimizer = accelerator.prepare(unwrapped, optimizer)
    learn(prepared, optimizer, 2)
    assert model.get_classifier().weight[:, -8:].any()
    assert prepared(torch.rand(2, 3, 32, 32)).dtype == torch.float32


@pytest.mark.parametrize('name', ['levit_128s', 'efficientformer_l1', 'resnetv2_50x1_bit'])
def test_classifiers_of_other_kinds_leave_nothing_behind(name: str) -> None:
    model: Any = timm.create_model(name, num_classes=3)
    groups = timm_devnet.parameter_groups(model, 'new', lr=0.01, weight_decay=0.0)
    optimizer = timm.optim.create_optimizer_v2(groups, 'momentum', lr=0.01)
    model(torch.rand(2, 3, 224, 224)).square().mean().backward()
    optimizer.step()
    timm_devnet.grow(model, 'wa8', optimizer=optimizer)
    held = [id(parameter) for group in optimizer.param_groups for parameter in group['params']]
    assert sorted(held) == sorted(id(parameter) for parameter in model.parameters() if parameter.requires_grad)
