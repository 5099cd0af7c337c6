"""Loading: base weights and grown checkpoints, by every way that timm has, and what is refused."""

import copy
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.models import save_for_hf
from torch import Tensor, nn

from timm_devnet import convert_lite, grow, parameter_groups

LITE = 'tf_efficientnet_lite0'
Build = Callable[..., Any]
State = dict[str, Tensor]


def differing(one: State, other: State) -> set[str]:
    """Names of what only one of two checkpoints has, or they have with different values."""
    return (one.keys() ^ other.keys()) | {
        key for key in one.keys() & other.keys() if not torch.equal(one[key], other[key])
    }


def load(name: str, file: Path, num_classes_of_file: int | None = None, **kwargs: Any) -> Any:
    overlay: dict[str, Any] = dict(file=str(file))
    if num_classes_of_file is not None:
        overlay['num_classes'] = num_classes_of_file
    return timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **kwargs)


@pytest.fixture(scope='module')
def base() -> Any:
    """Build a base with 1000 classes; leave it as it is."""
    return timm.create_model(LITE)


@pytest.fixture(scope='module')
def base_file(base: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write that base's weights in timm's layout."""
    file = tmp_path_factory.mktemp('base') / 'base.safetensors'
    save_file(base.state_dict(), file)
    return file


def grown_file(
    tmp_path: Path, name: str = f'{LITE}_mwa', growth: str = 'mwa16', num_classes: int = 10
) -> tuple[Path, State]:
    """Write a grown network's weights, none of them as they start; also give them."""
    model = timm.create_model(name, growth=growth, num_classes=num_classes)
    state = {
        key: torch.rand_like(value) if value.is_floating_point() else value for key, value in model.state_dict().items()
    }
    file = tmp_path / 'grown.safetensors'
    save_file(state, file)
    return file, state


def torchvision_file(tmp_path: Path, name: str) -> tuple[Path, State]:
    """Write random numbers under torchvision's names; also give them under timm's."""
    model = timm.create_model(name)
    state = model.state_dict()
    layers = dict(
        zip(('pre_logits.fc1', 'pre_logits.fc2', 'head.fc'), (1, 4, 6) if name == 'alexnet' else (0, 3, 6), strict=True)
    )
    renamed = {}
    for key, value in state.items():
        layer, _, kind = key.rpartition('.')
        renamed[f'classifier.{layers[layer]}.{kind}' if layer in layers else key] = (
            value.flatten(1) if layer in layers and kind == 'weight' else value
        )
    torch.save(renamed, tmp_path / 'tv.pth')
    return tmp_path / 'tv.pth', state


# Base weights ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('way', ['file', 'state_dict', 'checkpoint_path', 'load_state_dict'])
@pytest.mark.parametrize('growth', ['da16', 'wa16', 'wwa16', 'mwa16', 'norm', 'skip', 'wa16_mwa16'])
def test_base_weights_enter_by_every_way(growth: str, way: str, base: Any, base_file: Path) -> None:
    kwargs = dict(growth=growth)
    if way == 'file':
        model = load(f'{LITE}_wa', base_file, **kwargs)
    elif way == 'state_dict':
        overlay = dict(state_dict=base.state_dict())
        model = timm.create_model(f'{LITE}_wa', pretrained=True, pretrained_cfg_overlay=overlay, **kwargs)
    elif way == 'checkpoint_path':
        model = timm.create_model(f'{LITE}_wa', checkpoint_path=str(base_file), **kwargs)
    else:
        model = timm.create_model(f'{LITE}_wa', **kwargs)
        model.load_state_dict(base.state_dict())
    state = model.state_dict()
    assert all(torch.equal(state[key], value) for key, value in base.state_dict().items() if 'classifier' not in key)


@pytest.mark.parametrize('way', ['file', 'state_dict'])
@pytest.mark.parametrize('growth', ['da16', 'wa16', 'dwa16', 'wwa16', 'mwa16', 'norm', 'skip', 'wa16_mwa16'])
@pytest.mark.parametrize('num_classes', [1000, 0])
def test_the_fast_way_gives_what_the_slow_one_gives(
    num_classes: int, growth: str, way: str, base: Any, base_file: Path
) -> None:
    overlay = dict(file=str(base_file)) if way == 'file' else dict(state_dict=base.state_dict())
    kwargs = dict(growth=growth, num_classes=num_classes)
    torch.manual_seed(11)
    fast = timm.create_model(f'{LITE}_wa', pretrained=True, pretrained_cfg_overlay=overlay, **kwargs)
    torch.manual_seed(11)
    slow = timm.create_model(f'{LITE}_wa', **kwargs)
    slow.load_state_dict(base.state_dict())
    assert not differing(fast.state_dict(), slow.state_dict())


@pytest.mark.parametrize('growth', ['wa16', 'wwa16', 'mwa16', 'norm', 'skip', 'wa16_mwa16'])
def test_with_the_bases_classes_old_columns_come_from_the_base_and_new_ones_are_zero(
    growth: str, base: Any, base_file: Path
) -> None:
    columns = load(f'{LITE}_wa', base_file, growth=growth).classifier.weight
    old = base.classifier.weight
    assert torch.equal(columns, nn.functional.pad(old, (0, columns.shape[1] - old.shape[1])))


@pytest.mark.parametrize(
    'kwargs', [{'in_chans': 1}, {'in_chans': 5}, {'num_classes': 0}, {'num_classes': 5}, {'features_only': True}]
)
@pytest.mark.parametrize('growth', ['wwa16', 'mwa16'])
def test_base_weights_enter_a_network_of_another_shape(
    growth: str, kwargs: dict[str, Any], base: Any, base_file: Path
) -> None:
    model = load(f'{LITE}_wa', base_file, growth=growth, **kwargs)
    weight = next(value for key, value in model.state_dict().items() if key.endswith('blocks.3.0.conv_pw.weight'))
    assert torch.equal(weight, base.state_dict()['blocks.3.0.conv_pw.weight'])


def test_fewer_input_channels_sum_the_bases(base: Any, base_file: Path) -> None:
    stem = load(f'{LITE}_wa', base_file, in_chans=1).conv_stem.weight
    torch.testing.assert_close(stem, base.conv_stem.weight.sum(1, keepdim=True))


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float64])
def test_weights_take_the_type_that_was_asked_for(dtype: torch.dtype, base_file: Path) -> None:
    model = load(f'{LITE}_wa', base_file, dtype=dtype)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}


@pytest.mark.parametrize('name', ['alexnet', 'vgg11'])
def test_torchvisions_layout_enters(name: str, tmp_path: Path) -> None:
    file, state = torchvision_file(tmp_path, name)
    loaded = load(f'{name}_wa', file, growth='wa16').state_dict()
    file.unlink()  # half a gigabyte
    assert all(torch.equal(loaded[key], value) for key, value in state.items() if 'head' not in key)


def test_torchvisions_layout_enters_plain_alexnet(tmp_path: Path) -> None:
    file, state = torchvision_file(tmp_path, 'alexnet')
    assert not differing(load('alexnet', file).state_dict(), state)


@pytest.mark.parametrize('kwargs', [{}, {'num_classes': 5}, {'in_chans': 1}, {'features_only': True}])
def test_the_original_lite_layout_enters(kwargs: dict[str, Any], lite_weights: Path) -> None:
    original = torch.load(lite_weights, weights_only=True)
    model = load(f'{LITE}_mwa', lite_weights, **kwargs)
    weight = next(value for key, value in model.state_dict().items() if key.endswith('blocks.1.0.conv_pw.weight'))
    assert torch.equal(weight, original['_blocks.1._expand_conv.weight'])


def test_a_fine_tuned_bases_classifier_is_kept(base_file: Path, tmp_path: Path) -> None:
    tuned = timm.create_model(LITE, num_classes=7)
    save_file(tuned.state_dict(), tmp_path / 'tuned.safetensors')
    columns = load(f'{LITE}_wa', tmp_path / 'tuned.safetensors', num_classes=7).classifier.weight
    assert torch.equal(columns[:, :1280], tuned.classifier.weight)


# Grown checkpoints ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('way', ['file', 'file with its classes', 'state_dict', 'checkpoint_path', 'load_state_dict'])
@pytest.mark.parametrize('growth', ['da16', 'wa16', 'dwa16', 'wwa16', 'mwa16', 'norm', 'skip', 'wa16_mwa16'])
def test_a_grown_checkpoint_enters_unchanged(growth: str, way: str, tmp_path: Path) -> None:
    file, state = grown_file(tmp_path, growth=growth)
    kwargs: dict[str, Any] = dict(growth=growth, num_classes=10)
    if way.startswith('file'):
        model = load(f'{LITE}_mwa', file, 10 if way != 'file' else None, **kwargs)
    elif way == 'state_dict':
        overlay = dict(state_dict=state)
        model = timm.create_model(f'{LITE}_mwa', pretrained=True, pretrained_cfg_overlay=overlay, **kwargs)
    elif way == 'checkpoint_path':
        model = timm.create_model(f'{LITE}_mwa', checkpoint_path=str(file), **kwargs)
    else:
        model = timm.create_model(f'{LITE}_mwa', **kwargs)
        model.load_state_dict(state)
    assert not differing(model.state_dict(), state)


@pytest.mark.parametrize('growth', ['mwa16', 'da16', 'wa16_wa8', 'r2u16', 'r2u8at1+r1u16', 'skip'])
@pytest.mark.parametrize('options', [{}, {'scale_init': 5.0}])
def test_the_local_folder_gives_the_network_back_bit_for_bit(
    growth: str, options: dict[str, Any], tmp_path: Path
) -> None:
    torch.manual_seed(3)
    model = grow(timm.create_model(LITE, num_classes=4), growth, **options)
    save_for_hf(model, tmp_path, safe_serialization=True)
    loaded = timm.create_model(f'local-dir:{tmp_path}', pretrained=True)
    assert not differing(loaded.state_dict(), model.state_dict())


@pytest.mark.parametrize('growth', ['wa16', 'mwa16'])
def test_the_local_folder_remembers_that_nothing_is_reconciled(growth: str, tmp_path: Path) -> None:
    model = grow(timm.create_model(LITE, num_classes=4), growth, scale_init=None)
    save_for_hf(model, tmp_path, safe_serialization=True)
    loaded = timm.create_model(f'local-dir:{tmp_path}', pretrained=True)
    assert not differing(loaded.state_dict(), model.state_dict())


def test_reconciliation_can_be_switched_off_by_create_model() -> None:
    model = timm.create_model(f'{LITE}_wa', scale_init=0, device='meta')  # timm drops an argument that is None
    assert not [key for key in model.state_dict() if 'scale' in key]


def test_the_local_folder_of_a_registered_name_names_it(tmp_path: Path) -> None:
    save_for_hf(timm.create_model(f'{LITE}_mwa512', num_classes=4), tmp_path, safe_serialization=True)
    assert f'"architecture": "{LITE}_mwa512"' in (tmp_path / 'config.json').read_text()


def test_a_local_folder_takes_other_classes(tmp_path: Path) -> None:
    model = grow(timm.create_model(LITE, num_classes=4), 'mwa16')
    save_for_hf(model, tmp_path, safe_serialization=True)
    loaded = timm.create_model(f'local-dir:{tmp_path}', pretrained=True, num_classes=9).state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in model.state_dict().items() if 'classifier' not in key)


def test_the_local_folder_remembers_which_growths_are_old(tmp_path: Path) -> None:
    model = grow(grow(timm.create_model(LITE, num_classes=4), 'wa16'), 'wa8')
    save_for_hf(model, str(tmp_path), safe_serialization=True)
    again = timm.create_model(f'local-dir:{tmp_path}', pretrained=True)
    trained = [
        sum(parameter.numel() for group in parameter_groups(network, 'new', 0.1, 0.0) for parameter in group['params'])
        for network in (model, again)
    ]
    assert trained[0] == trained[1]
    assert not next(again.get_submodule('grown.conv_head_1').parameters()).requires_grad


@pytest.mark.parametrize('settled', [-1, 2, 10**12, 0.5, float('nan'), '1', [1]])
def test_more_old_growths_than_there_are_is_refused(settled: Any) -> None:
    with pytest.raises(ValueError, match='settled is 0 to 1'):
        timm.create_model(f'{LITE}_wa', settled=settled, device='meta')


@pytest.mark.parametrize(
    ('short', 'long'), [('wa16', 'wa16_mwa16'), ('mwa16', 'mwa16_wwa16_wa8'), ('wa16_wa8', 'wa16_wa8_skip')]
)
def test_an_earlier_growths_checkpoint_enters_a_longer_one(short: str, long: str, tmp_path: Path) -> None:
    file, state = grown_file(tmp_path, growth=short)
    loaded = load(f'{LITE}_wa', file, growth=long, num_classes=10).state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in state.items() if key != 'classifier.weight')


def test_an_earlier_growths_columns_are_kept(tmp_path: Path) -> None:
    file, state = grown_file(tmp_path, growth='mwa16')
    columns = load(f'{LITE}_wa', file, growth='mwa16_wa8', num_classes=10).classifier.weight
    assert torch.equal(columns, nn.functional.pad(state['classifier.weight'], (0, 8)))


@pytest.mark.parametrize('way', ['file', 'load_state_dict'])
def test_after_an_earlier_growths_checkpoint_only_the_later_growth_is_new(way: str, tmp_path: Path) -> None:
    file, state = grown_file(tmp_path, growth='wa16')
    if way == 'file':
        model = load(f'{LITE}_wa', file, growth='wa16_wa8', num_classes=10)
    else:
        model = timm.create_model(f'{LITE}_wa', growth='wa16_wa8', num_classes=10)
        model.load_state_dict(state)
    assert model.settled == 1


def test_a_trained_head_is_kept_when_the_classes_are_given(tmp_path: Path) -> None:
    file, state = grown_file(tmp_path, num_classes=10)
    model = load(f'{LITE}_mwa', file, growth='mwa16', num_classes=10)
    assert torch.equal(model.classifier.weight, state['classifier.weight'])


def test_other_classes_get_a_fresh_head(tmp_path: Path) -> None:
    file, _ = grown_file(tmp_path, num_classes=10)
    assert load(f'{LITE}_mwa', file, growth='mwa16', num_classes=6).classifier.out_features == 6


# Refusals -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('way', ['file', 'load_state_dict'])
def test_a_head_for_other_classes_than_anyone_asked_for_is_refused(way: str, tmp_path: Path) -> None:
    file, state = grown_file(tmp_path, num_classes=10)
    with pytest.raises(ValueError, match='10 classes.*1000.*num_classes=10'):
        if way == 'file':
            load(f'{LITE}_mwa', file, growth='mwa16')
        else:
            timm.create_model(f'{LITE}_mwa', growth='mwa16').load_state_dict(state)


def changed(state: State) -> State:
    return {**state, 'blocks.2.0.conv_pw.weight': torch.zeros(7, 24, 1, 1)}


def without_one(state: State) -> State:
    return {key: value for key, value in state.items() if key != 'blocks.2.0.conv_pw.weight'}


STEM = {'_conv_stem.weight': torch.zeros(32, 3, 3, 3)}
JUNK: dict[str, Callable[[State], State]] = {
    'empty': lambda state: {},
    'another network': lambda state: timm.create_model('resnet18').state_dict(),
    'a larger sister': lambda state: timm.create_model('tf_efficientnet_lite1').state_dict(),
    'one key missing': without_one,
    'one key too many': lambda state: {**state, 'extra.weight': torch.zeros(3)},
    'another shape': changed,
    'half grown': lambda state: {**state, 'grown.conv_head_1.conv.weight': torch.zeros(16, 320, 1, 1)},
    'mobilenet_v3 of torchvision': lambda state: {'classifier.0.weight': torch.zeros(1280, 960)},
    'mobilenet_v2 of torchvision': lambda state: {'classifier.1.weight': torch.zeros(1000, 1280)},
    'lite with a gap': lambda state: {**STEM, '_blocks.7.x.weight': torch.zeros(3)},
    'lite without numbers': lambda state: {**STEM, '_blocks': torch.zeros(3)},
    'lite without shapes': lambda state: {**STEM, '_blocks.0._project_conv.weight': torch.tensor(3.0)},
}


@pytest.mark.parametrize('num_classes', [1000, 5])
@pytest.mark.parametrize('name', [f'{LITE}_wa', 'alexnet_wa', 'vgg11_wa'])
@pytest.mark.parametrize('junk', JUNK)
def test_a_file_that_fits_nothing_is_refused(junk: str, name: str, num_classes: int, base: Any, tmp_path: Path) -> None:
    torch.save(JUNK[junk](base.state_dict()), tmp_path / 'junk.pth')
    with pytest.raises(ValueError, match='fits neither .* grown by wa16 .* nor the network before it grew'):
        load(name, tmp_path / 'junk.pth', growth='wa16', num_classes=num_classes)


@pytest.mark.parametrize(
    ('weight', 'bias'), [((), (10,)), ((10,), (10,)), ((10, 1296, 1), (10,)), ((10, 1296), (9,)), ((10, 1296), ())]
)
def test_a_head_of_impossible_shapes_is_refused(weight: tuple, bias: tuple, tmp_path: Path) -> None:
    file, state = grown_file(tmp_path)
    save_file({**state, 'classifier.weight': torch.zeros(weight), 'classifier.bias': torch.zeros(bias)}, file)
    with pytest.raises(ValueError, match='a classifier whose weight and bias are of shapes'):
        load(f'{LITE}_mwa', file, growth='mwa16', num_classes=10)


def test_a_cfg_that_calls_another_layer_the_classifier_is_refused(base_file: Path) -> None:
    overlay = dict(file=str(base_file), classifier='conv_head')
    with pytest.raises(ValueError, match='conv_head.weight got no values: the pretrained_cfg calls something the'):
        timm.create_model(f'{LITE}_wa', pretrained=True, pretrained_cfg_overlay=overlay, num_classes=5)


@pytest.mark.parametrize('growth', ['wa8', 'mwa16', 'wa16_wa8', 'da16'])
def test_another_growths_checkpoint_is_refused(growth: str, tmp_path: Path) -> None:
    file, _ = grown_file(tmp_path, growth=growth)
    with pytest.raises(ValueError, match='fits neither'):
        load(f'{LITE}_wa', file, growth='wa16', num_classes=10)


@pytest.mark.parametrize(('saved', 'asked'), [('catavgmax', 'avg'), ('avg', 'catavgmax')])
def test_a_head_for_another_pooling_is_refused(saved: str, asked: str, tmp_path: Path) -> None:
    model = timm.create_model(f'{LITE}_wa', growth='wa16', num_classes=4, global_pool=saved)
    save_file(model.state_dict(), tmp_path / 'x.safetensors')
    with pytest.raises(ValueError, match='pool'):
        load(f'{LITE}_wa', tmp_path / 'x.safetensors', growth='wa16', num_classes=4, global_pool=asked)


def test_a_refusal_leaves_the_network_as_it_was(base: Any) -> None:
    model = grow(copy.deepcopy(base), 'wa16')
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match='fits neither'):
        model.load_state_dict({'junk': torch.zeros(3)})
    assert not differing(model.state_dict(), before)


class Malice:
    """Code that a pickle would run: it creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.path), 'w')


@pytest.mark.parametrize('way', ['file', 'checkpoint_path'])
def test_a_pickle_with_code_is_not_run(way: str, tmp_path: Path) -> None:
    torch.save({'state_dict': {'conv_stem.weight': Malice(tmp_path / 'was_here')}}, tmp_path / 'malice.pth')
    with pytest.raises((pickle.UnpicklingError, RuntimeError), match='[Ww]eights.only'):
        if way == 'file':
            load(f'{LITE}_wa', tmp_path / 'malice.pth')
        else:
            timm.create_model(f'{LITE}_wa', checkpoint_path=str(tmp_path / 'malice.pth'))
    assert not (tmp_path / 'was_here').exists()


# After loading --------------------------------------------------------------------------------------------------------


def test_overwriting_the_file_does_not_change_the_network(base_file: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(base_file, tmp_path))
    model = load(f'{LITE}_wa', path, growth='wa16')
    before = copy.deepcopy(model.state_dict())
    with path.open('r+b') as file:
        file.write(b'\xff' * path.stat().st_size)
    assert not differing(model.state_dict(), before)


@pytest.mark.parametrize('features_only', [False, True])
def test_no_weights_are_left_in_the_cfg(features_only: bool, base: Any) -> None:
    overlay = dict(state_dict=base.state_dict())
    model = timm.create_model(
        f'{LITE}_wa', pretrained=True, pretrained_cfg_overlay=overlay, features_only=features_only
    )
    cfgs = [
        vars(module)[kind]
        for module in model.modules()
        for kind in ('pretrained_cfg', 'default_cfg')
        if kind in vars(module)
    ]
    assert cfgs and not any(cfg.get('state_dict') for cfg in cfgs)


def test_the_given_weights_are_not_shared(base: Any) -> None:
    overlay = dict(state_dict=base.state_dict())
    model = timm.create_model(f'{LITE}_wa', pretrained=True, pretrained_cfg_overlay=overlay)
    pointers = {value.data_ptr() for value in base.state_dict().values()}
    assert pointers.isdisjoint(value.data_ptr() for value in model.state_dict().values())


def test_no_tensor_is_left_on_the_meta_device(base_file: Path) -> None:
    model = load(f'{LITE}_wa', base_file, growth='wwa16_da8', num_classes=3)
    assert not any(tensor.is_meta for tensor in [*model.parameters(), *model.buffers()])


def test_a_loaded_network_is_in_training_mode_like_a_fresh_one(base_file: Path) -> None:
    assert all(module.training for module in load(f'{LITE}_wa', base_file).modules())


def test_what_was_loaded_saves_as_safetensors(base_file: Path, tmp_path: Path) -> None:
    model = load(f'{LITE}_wa', base_file, growth='mwa16')
    save_file(model.state_dict(), tmp_path / 'again.safetensors')
    assert not differing(load_file(tmp_path / 'again.safetensors'), model.state_dict())


def test_old_checkpoints_without_counters_enter(base: Any) -> None:
    state = {key: value for key, value in base.state_dict().items() if 'num_batches_tracked' not in key}
    model = grow(timm.create_model(LITE), 'wa16')
    model.load_state_dict(state)
    assert torch.equal(model.conv_head.weight, base.conv_head.weight)


@pytest.mark.parametrize('growth', ['wa16', 'norm'])
def test_old_checkpoints_without_counters_enter_through_create_model(growth: str, base: Any) -> None:
    state = {key: value for key, value in base.state_dict().items() if 'num_batches_tracked' not in key}
    overlay = dict(state_dict=state)
    model = timm.create_model(f'{LITE}_wa', growth=growth, pretrained=True, pretrained_cfg_overlay=overlay)
    assert model.bn1.num_batches_tracked == 0


def test_lite_weights_enter_a_plain_lite_after_conversion(lite_weights: Path) -> None:
    model = timm.create_model(LITE)
    missing = model.load_state_dict(convert_lite(torch.load(lite_weights, weights_only=True)))
    assert not missing.missing_keys
