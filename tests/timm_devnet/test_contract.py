"""What timm and its users expect of every network: heads, pooling, features, export, copies, types."""

import copy
import io
import pickle
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from timm.models._manipulate import group_parameters, group_with_matcher
from torch import Tensor, nn

Build = Callable[..., Any]
POOLS = ('avg', 'max', 'avgmax', 'catavgmax')


def logits_of(model: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        return model(images)


def skip_unless_base_takes(build: Build, base_of: Callable[[str], str], images: Tensor, **kwargs: Any) -> None:
    """Leave out what the plain network cannot do either."""
    name = base_of(build.args[0])  # type: ignore[attr-defined]
    if not build.args[0].startswith('devnet:'):  # type: ignore[attr-defined]
        return
    try:
        timm.create_model(name, **kwargs)(images)
    except Exception as error:  # of whatever kind timm raises
        pytest.skip(f'the plain {name} does not take {kwargs}: {error}')


# All names, by structure alone ----------------------------------------------------------------------------------------


def test_every_parameter_matches_one_group(names: list[str], on_meta: Build) -> None:
    for name in names:
        model = on_meta(name)
        groups = group_with_matcher(model.named_parameters(), model.group_matcher(coarse=False))
        counts = Counter(key for group in groups.values() for key in group)
        assert counts == Counter(key for key, _ in model.named_parameters()), name


def test_new_units_are_in_the_last_group_beside_the_classifier(grown_names: list[str], on_meta: Build) -> None:
    for name in grown_names:
        model = on_meta(name)
        numbers = group_parameters(model, model.group_matcher(coarse=False), reverse=True)
        last = max(numbers.values())
        assert all(numbers[key] == last for key, _ in model.named_parameters() if key.startswith('grown.')), name


def test_the_classifier_reads_as_many_channels_as_the_head_hides(names: list[str], on_meta: Build) -> None:
    for name in names:
        model = on_meta(name)
        assert model.get_classifier().in_features == model.head_hidden_size, name


@pytest.mark.parametrize('kind', ['classifier', 'first_conv'])
def test_the_cfg_names_layers_that_exist(names: list[str], kind: str, on_meta: Build) -> None:
    for name in names:
        model = on_meta(name)
        assert f'{model.pretrained_cfg[kind]}.weight' in model.state_dict(), name


def test_the_network_is_the_cfgs(names: list[str], on_meta: Build) -> None:
    for name in names:
        model = on_meta(name)
        assert (model.num_classes, model.in_chans) == (model.pretrained_cfg['num_classes'], 3), name


def test_maps_have_the_size_and_channels_that_are_told(shape_name: str, on_meta: Build) -> None:
    model = on_meta(shape_name)
    size = model.pretrained_cfg['input_size']
    features = model.forward_features(torch.empty(1, *size, device='meta'))
    pool_size = model.pretrained_cfg['pool_size']
    assert features.shape == (1, model.num_features, *pool_size)


def test_pre_logits_are_as_wide_as_told(names: list[str], on_meta: Build) -> None:
    for name in names:
        model = on_meta(name)
        features = torch.empty(2, model.num_features, 7, 7, device='meta')
        assert model.forward_head(features, pre_logits=True).shape == (2, model.head_hidden_size), name


# The sample, in numbers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize('num_classes', [0, 1, 7])
def test_the_number_of_classes(build: Build, num_classes: int, images: Tensor) -> None:
    model = build(num_classes=num_classes).eval()
    assert logits_of(model, images).shape == (2, num_classes or model.head_hidden_size)


def test_without_classes_the_network_gives_its_pre_logits(build: Build, images: Tensor) -> None:
    model = build(num_classes=3).eval()
    with torch.no_grad():
        pre_logits = model.forward_head(model.forward_features(images), pre_logits=True)
    model.reset_classifier(0)
    assert torch.equal(logits_of(model, images), pre_logits)


@pytest.mark.parametrize('in_chans', [1, 5])
def test_the_number_of_input_channels(build: Build, in_chans: int) -> None:
    model = build(num_classes=3, in_chans=in_chans).eval()
    assert logits_of(model, torch.rand(2, in_chans, 64, 64)).shape == (2, 3)


@pytest.mark.parametrize('pool', POOLS)
def test_every_global_pooling_fits_its_classifier(
    build: Build, base_of: Callable[[str], str], pool: str, images: Tensor
) -> None:
    skip_unless_base_takes(build, base_of, images, global_pool=pool)
    model = build(num_classes=3, global_pool=pool).eval()
    assert logits_of(model, images).shape == (2, 3)


def test_without_pooling_and_classes_the_network_gives_maps(build: Build, images: Tensor) -> None:
    model = build(num_classes=0, global_pool='').eval()
    maps = logits_of(model, images)
    if maps.ndim == 3:  # tokens
        maps = maps.movedim(-1, 1)[..., None]
    assert maps.shape[:2] == (2, model.head_hidden_size) and maps.ndim == 4


@pytest.mark.parametrize('pool', ['catavgmax', 'max'])
def test_pooling_can_be_changed_with_the_classifier(pool: str, images: Tensor) -> None:
    model = timm.create_model('tf_efficientnet_lite0_mwa', num_classes=3).eval()
    model.reset_classifier(4, pool)
    assert logits_of(model, images).shape == (2, 4)


def test_a_wider_pooling_under_a_layer_that_reads_it_is_refused_and_changes_nothing(images: Tensor) -> None:
    model = timm.create_model('tf_efficientnet_lite0_da512', num_classes=3).eval()
    before = logits_of(model, images)
    with pytest.raises(ValueError, match='another pooling'):
        model.reset_classifier(4, 'catavgmax')
    assert torch.equal(logits_of(model, images), before)


def test_dropout_is_off_in_evaluation(build: Build, images: Tensor) -> None:
    model = build(num_classes=3, drop_rate=0.5).eval()
    assert torch.equal(logits_of(model, images), logits_of(model, images))


def test_dropout_is_on_in_training(build: Build, images: Tensor) -> None:
    model = build(num_classes=3, drop_rate=0.5).train()
    assert not torch.equal(logits_of(model, images), logits_of(model, images))


def test_dropout_does_not_change_the_answers_in_evaluation(build: Build, images: Tensor) -> None:
    torch.manual_seed(2)
    without = build(num_classes=3).eval()
    torch.manual_seed(2)
    model = build(num_classes=3, drop_rate=0.5).eval()
    assert torch.equal(logits_of(model, images), logits_of(without, images))


def test_unknown_arguments_are_refused(build: Build) -> None:
    with pytest.raises(TypeError, match='unexpected keyword argument'):
        build(device='meta', drop_rates=0.5)


def test_every_parameter_has_a_gradient_in_training(build: Build, images: Tensor) -> None:
    model = build(num_classes=3).train()
    model(images).square().mean().backward()
    assert [key for key, parameter in model.named_parameters() if parameter.grad is None] == []


# A fresh classifier ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('num_classes', [0, 5])
def test_growth_survives_a_fresh_classifier(build_grown: Build, num_classes: int) -> None:
    model = build_grown(num_classes=3)
    before = {key for key in model.state_dict() if key.startswith('grown.')}
    model.reset_classifier(num_classes)
    assert {key for key in model.state_dict() if key.startswith('grown.')} == before


def test_a_classifier_comes_back_after_it_was_taken_away(build: Build, images: Tensor) -> None:
    model = build(num_classes=3).eval()
    model.reset_classifier(0)
    model.reset_classifier(4)
    assert logits_of(model, images).shape == (2, 4)


@pytest.mark.parametrize(
    ('device', 'dtype'), [('meta', torch.float32), ('cpu', torch.bfloat16), ('meta', torch.float64)]
)
def test_a_fresh_classifier_is_where_and_what_the_network_is(build: Build, device: str, dtype: torch.dtype) -> None:
    model = build(num_classes=3, device='meta', dtype=dtype).to_empty(device=device)
    model.reset_classifier(4)
    weight = model.get_classifier().weight
    assert (weight.device.type, weight.dtype) == (device, dtype)


@pytest.mark.parametrize('training', [False, True])
def test_a_fresh_classifier_is_in_the_mode_of_the_network(build: Build, training: bool) -> None:
    model = build(num_classes=3, device='meta').train(training)
    model.reset_classifier(4)
    assert model.get_classifier().training is training


def test_frozen_parameters_stay_frozen_under_a_fresh_classifier(build: Build) -> None:
    model = build(num_classes=3, device='meta').requires_grad_(False)
    model.reset_classifier(4)
    assert {key for key, parameter in model.named_parameters() if parameter.requires_grad} == {
        f'{model.pretrained_cfg["classifier"]}.{kind}' for kind in ('weight', 'bias')
    }


# Features -------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_forward_is_head_after_features(build: Build, images: Tensor) -> None:
    model = build(num_classes=3).eval()
    assert torch.equal(model(images), model.forward_head(model.forward_features(images)))


@torch.no_grad()
def test_intermediates_end_in_the_features(build: Build, images: Tensor) -> None:
    model = build(num_classes=3).eval()
    assert torch.equal(model.forward_intermediates(images)[0], model.forward_features(images))


INDICES = [None, [3, 1], [-1]]


def both(build_grown: Build, base_of: Callable[[str], str]) -> tuple[nn.Module, nn.Module]:
    """A sampled network and its base with the same parameters."""
    model = build_grown(num_classes=3).eval()
    base = timm.create_model(base_of(build_grown.args[0]), num_classes=3).eval()  # type: ignore[attr-defined]
    state = base.state_dict()
    state.update(
        {key: value for key, value in model.state_dict().items() if key in state and value.shape == state[key].shape}
    )
    base.load_state_dict(state)
    return model, base


@torch.no_grad()
def test_intermediates_are_the_bases(build_grown: Build, base_of: Callable[[str], str], images: Tensor) -> None:
    model, base = both(build_grown, base_of)
    for indices in INDICES:
        for only in (False, True):
            ours = model.forward_intermediates(images, indices=indices, intermediates_only=only)
            theirs = base.forward_intermediates(images, indices=indices, intermediates_only=only)
            ours, theirs = (ours, theirs) if only else (ours[1], theirs[1])
            assert [x.shape for x in ours] == [x.shape for x in theirs], (indices, only)
            assert all(torch.equal(x, y) for x, y in zip(ours, theirs, strict=True)), (indices, only)


@torch.no_grad()
def test_stopping_early_gives_the_same_intermediates(build: Build, images: Tensor) -> None:
    model = build(num_classes=3).eval()
    stopped = model.forward_intermediates(images, indices=[0, 1], stop_early=True, intermediates_only=True)
    whole = model.forward_intermediates(images, indices=[0, 1], intermediates_only=True)
    assert all(torch.equal(x, y) for x, y in zip(stopped, whole, strict=True))


@pytest.mark.parametrize('feature_cls', ['getter', 'list', None])
@torch.no_grad()
def test_features_have_the_channels_that_are_told(
    build: Build, base_of: Callable[[str], str], feature_cls: str | None, images: Tensor
) -> None:
    skip_unless_base_takes(build, base_of, images, features_only=True, feature_cls=feature_cls)
    model = build(features_only=True, feature_cls=feature_cls).eval()
    assert [x.shape[1] for x in model(images)] == model.feature_info.channels()


def test_features_have_the_size_that_is_told(shape_name: str) -> None:
    model = timm.create_model(shape_name, features_only=True, device='meta')
    sizes = [x.shape[-1] for x in model(torch.empty(1, 3, 224, 224, device='meta'))]
    assert all(
        224 / (2 * r) < size <= 224 / r + 1 for size, r in zip(sizes, model.feature_info.reduction(), strict=True)
    )


@pytest.mark.parametrize('out_indices', [(1, 3), (2,)])
@torch.no_grad()
def test_features_can_be_chosen(build: Build, out_indices: tuple[int, ...], images: Tensor) -> None:
    torch.manual_seed(4)
    every = build(features_only=True, out_indices=(0, 1, 2, 3)).eval()(images)
    torch.manual_seed(4)
    chosen = build(features_only=True, out_indices=out_indices).eval()(images)
    assert all(torch.equal(x, every[i]) for x, i in zip(chosen, out_indices, strict=True))


@pytest.mark.parametrize('indices', [[0], [1, 2], 2, [-1]])
@torch.no_grad()
def test_pruned_networks_give_the_same_intermediates(build: Build, indices: list[int] | int, images: Tensor) -> None:
    model = build(num_classes=3).eval()
    before = model.forward_intermediates(images, indices=indices, intermediates_only=True)
    kept = model.prune_intermediate_layers(indices, prune_norm=False, prune_head=True)
    after = model.forward_intermediates(images, indices=kept, intermediates_only=True)
    assert all(torch.equal(x, y) for x, y in zip(before, after, strict=True))


def test_pruning_sheds_what_has_grown(build_grown: Build) -> None:
    model = build_grown(num_classes=3, device='meta')
    model.prune_intermediate_layers([1])
    assert not [key for key in model.state_dict() if key.startswith('grown.')]


@torch.no_grad()
def test_pruning_nothing_changes_nothing(build: Build, images: Tensor) -> None:
    model = build(num_classes=3).eval()
    before = model(images)
    model.prune_intermediate_layers([-1], prune_norm=False, prune_head=False)
    assert torch.equal(model(images), before)


# Copies, types, export ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('copied', ['deepcopy', 'pickle', 'torch.save'])
def test_copies_answer_the_same(build: Build, copied: str, images: Tensor) -> None:
    model = build(num_classes=3).eval()
    if copied == 'deepcopy':
        other = copy.deepcopy(model)
    elif copied == 'pickle':
        other = pickle.loads(pickle.dumps(model))
    else:
        buffer = io.BytesIO()
        torch.save(model, buffer)
        buffer.seek(0)
        other = torch.load(buffer, weights_only=False)  # what this test has just written
    assert torch.equal(logits_of(other, images), logits_of(model, images))


def test_a_copy_shares_nothing(build: Build) -> None:
    model = build(num_classes=3, device='meta').to_empty(device='cpu')
    pointers = {tensor.data_ptr() for tensor in model.state_dict().values()}
    assert pointers.isdisjoint(tensor.data_ptr() for tensor in copy.deepcopy(model).state_dict().values())


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float64])
def test_answers_have_the_type_of_the_network(build: Build, dtype: torch.dtype, images: Tensor) -> None:
    model = build(num_classes=3).eval().to(dtype)
    assert logits_of(model, images[..., :64, :64].to(dtype)).dtype == dtype


def test_bfloat16_answers_are_near_those_of_float64(build_grown: Build, images: Tensor) -> None:
    model = build_grown(num_classes=3).eval()
    exact = logits_of(model.double(), images[..., :64, :64].double())
    rough = logits_of(model.bfloat16(), images[..., :64, :64].bfloat16()).double()
    assert (rough - exact).abs().max() < 0.05 * exact.abs().max()


def test_autocast_runs_forward_and_backward(build: Build, images: Tensor) -> None:
    model = build(num_classes=3).train()
    with torch.autocast('cpu', dtype=torch.bfloat16):
        loss = model(images[..., :64, :64]).float().square().mean()
    loss.backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())


def test_export_gives_the_same_answers(build: Build) -> None:
    side = 96 if 'vit' in build.args[0] else 97  # type: ignore[attr-defined]
    model, images = build(num_classes=3).eval(), torch.rand(1, 3, side, side)
    exported = torch.export.export(model, (images,)).module()
    torch.testing.assert_close(logits_of(exported, images), logits_of(model, images))


@pytest.mark.parametrize('name', ['alexnet_wwa', 'vgg11_skip', 'vgg11_bn_mwa', 'tf_efficientnet_lite0_dwa'])
def test_the_whole_network_compiles_as_one_graph(name: str, narrow: None, images: Tensor) -> None:
    torch._dynamo.reset()
    model = timm.create_model(name, num_classes=3).eval()
    compiled = torch.compile(model, fullgraph=True, backend='eager')
    assert torch.equal(logits_of(compiled, images), logits_of(model, images))


@pytest.mark.parametrize('growth', ['wwa32', 'mwa32_da8'])
def test_the_compiled_network_trains(growth: str, narrow: None, images: Tensor) -> None:
    torch._dynamo.reset()
    model = timm.create_model('alexnet_wa', growth=growth, num_classes=3).train()
    torch.compile(model, fullgraph=True, backend='aot_eager')(images).square().mean().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_memory_format_does_not_change_the_answers(build: Build, images: Tensor) -> None:
    model = build(num_classes=3).eval()
    before = logits_of(model, images)
    model = model.to(memory_format=torch.channels_last)
    after = logits_of(model, images.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(after, before, rtol=1e-3, atol=1e-4)
