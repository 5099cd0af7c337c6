"""Deltas: what a fine-tuning changed, checkpoints that hold only that, and the bases that they stand on."""

import copy
import json
import math
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

from tests.timm_devnet.hub_cache import State, put_base, snapshot, write_checkpoint
from timm_devnet import delta, grow, parameter_groups
from timm_devnet.delta import Base, base_of, complete, digest, fetch, first_tensors, subtract

LITE, TAG = 'tf_efficientnet_lite0', 'tf_efficientnet_lite0.in1k'
COMMIT, OTHER_COMMIT = 'c0' * 20, 'd1' * 20
ZEROS = '0' * 64


@pytest.fixture(autouse=True)
def no_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bases are those that a test puts into its cache."""
    monkeypatch.setattr(delta, 'packaged_weights', lambda package: None)


def assert_same_bits(one: State, other: State) -> None:
    assert one.keys() == other.keys()
    assert digest(one, None) == digest(other, None)


def train_a_step(model: nn.Module, regime: str) -> State:
    """Change what a regime changes; gives copies."""
    groups = parameter_groups(model, regime, lr=0.1, weight_decay=1e-4)
    optimizer = torch.optim.SGD(groups)
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    model.train()
    model(images).square().sum().backward()
    optimizer.step()
    return {key: value.clone() for key, value in model.state_dict().items()}


class Tuned:
    """A base in a cache, a network that grew from it and was trained, and its delta."""

    def __init__(
        self, folder: Path, name: str = LITE, tag: str = TAG, growth: str = 'wa16', regime: str = 'new'
    ) -> None:
        self.cache, self.folder = folder / 'cache', folder / 'delta'
        base = timm.create_model(name)
        commit = put_base(self.cache, tag, base.state_dict(), COMMIT)
        kwargs = dict(growth=growth, num_classes=5)
        self.model = timm.create_model(f'{name}_wa', pretrained=True, cache_dir=self.cache, **kwargs)
        self.base = base_of(self.model, cache_dir=self.cache)
        assert self.base is not None
        assert self.base.revision == commit
        self.state = train_a_step(self.model, regime)
        self.classifier = self.model.pretrained_cfg['classifier']
        self.delta = subtract(self.state, fetch(self.base, self.cache), self.classifier)
        write_checkpoint(self.folder, self.model, self.delta, self.base.to_dict())

    def load(self, **kwargs: Any) -> Any:
        return timm.create_model(f'local-dir:{self.folder}', pretrained=True, cache_dir=self.cache, **kwargs)


@pytest.fixture(scope='module')
def original(tmp_path_factory: pytest.TempPathFactory) -> Tuned:
    """Tune an EfficientNet-Lite0 of 1000 classes for five in regime `new`, once for all tests."""
    torch.manual_seed(0)
    return Tuned(tmp_path_factory.mktemp('tuned'))


@pytest.fixture
def tuned(original: Tuned, tmp_path: Path) -> Tuned:
    """Give a test its own copy of that."""
    own = copy.copy(original)
    own.cache, own.folder = tmp_path / 'cache', tmp_path / 'delta'
    shutil.copytree(original.cache, own.cache)
    shutil.copytree(original.folder, own.folder)
    return own


# Checksums ------------------------------------------------------------------------------------------------------------

MAPS = torch.arange(96.0).reshape(2, 3, 4, 4)
KINDS: dict[str, Tensor] = {
    'bf16': torch.arange(6).to(torch.bfloat16),
    'fp16': torch.arange(6).to(torch.float16),
    'int64 without dimensions': torch.tensor(7),
    'bool': torch.tensor([True, False]),
    'none at all': torch.zeros(0, 3),
    'channels last': MAPS.to(memory_format=torch.channels_last),
    'transposed': torch.arange(6.0).reshape(2, 3).t(),
    'every second': torch.arange(6.0)[::2],
    'parameter': nn.Parameter(torch.arange(3.0)),
}


@pytest.mark.parametrize('kind', KINDS)
def test_memory_format_does_not_count(kind: str) -> None:
    tensor = KINDS[kind]
    plain = torch.tensor(tensor.tolist(), dtype=tensor.dtype).reshape(tensor.shape)
    assert digest({'x': tensor}, None) == digest({'x': plain}, None)


def test_order_does_not_count() -> None:
    one = {'a': torch.zeros(2), 'b': torch.ones(2)}
    assert digest(one, None) == digest(dict(reversed(one.items())), None)


@pytest.mark.parametrize(
    'other',
    [
        {'x': torch.tensor([-0.0, 1.0])},
        {'x': torch.tensor([0.0, 1.0], dtype=torch.float64)},
        {'x': torch.tensor([[0.0, 1.0]])},
        {'y': torch.tensor([0.0, 1.0])},
        {'x': torch.tensor([0, 0x3F800000], dtype=torch.int32)},
        {'x': torch.tensor([0.0, 1.0]), 'y': torch.zeros(0)},
    ],
    ids=['sign of zero', 'wider type', 'shape', 'name', 'type of the same bits', 'one more'],
)
def test_everything_else_counts(other: State) -> None:
    assert digest({'x': torch.tensor([0.0, 1.0])}, None) != digest(other, None)


@pytest.mark.parametrize('classifier', ['head', ('head', 'head_dist'), ['head']])
def test_the_classifier_does_not_count(classifier: Any) -> None:
    state = {'body': torch.zeros(2), 'header.bias': torch.zeros(2)}
    assert digest({**state, 'head.weight': torch.ones(3)}, classifier) == digest(state, classifier)


def test_the_checksum_is_what_it_has_been() -> None:
    # Published checkpoints name it: it must never change.
    state = {'b': torch.tensor(3), 'a.weight': torch.tensor([[1.0, -0.5]]), 'fc.bias': torch.zeros(9)}
    assert digest(state, 'fc') == '67338c5636e28c12b92fd16212f909b8350bb1f7fe0a995b17a5453ceaacf3f0'


def test_a_tensor_without_values_has_no_checksum() -> None:
    with pytest.raises(ValueError, match='on the meta device'):
        digest({'x': torch.zeros(2, device='meta')}, None)


# Differences ----------------------------------------------------------------------------------------------------------


def nan(payload: int) -> Tensor:
    return torch.tensor([0x7FC00000 + payload], dtype=torch.int32).view(torch.float32)


@pytest.mark.parametrize(
    ('old', 'new', 'changes'),
    [
        (torch.tensor([0.0]), torch.tensor([-0.0]), True),
        (nan(1), nan(2), True),
        (nan(1), nan(1), False),
        (torch.zeros(2, 3), torch.zeros(3, 2), True),
        (torch.zeros(2), torch.zeros(2, dtype=torch.int32), True),
        (MAPS, MAPS.to(memory_format=torch.channels_last), False),
    ],
    ids=['sign of zero', 'payload of NaN', 'same NaN', 'shape', 'type', 'memory format'],
)
def test_what_counts_as_a_change(old: Tensor, new: Tensor, changes: bool) -> None:
    kept = {'kept': torch.zeros(1)}
    assert ('x' in subtract({**kept, 'x': new}, {**kept, 'x': old}, None)) is changes


def test_a_delta_always_has_its_classifier() -> None:
    state = {'body.weight': torch.zeros(2), 'head.bias': torch.zeros(2)}
    assert subtract(state, copy.deepcopy(state), 'head').keys() == {'head.bias'}


def test_a_base_with_more_than_the_network_is_none_of_it() -> None:
    with pytest.raises(ValueError, match='not the base of the network: it has 1 tensors .* such as blocks.9.weight'):
        subtract({'a': torch.zeros(1)}, {'a': torch.zeros(1), 'blocks.9.weight': torch.zeros(1)}, 'head')


def test_where_all_that_is_old_has_changed_there_is_no_delta() -> None:
    base = {'body': torch.zeros(1), 'grown.a.weight': torch.zeros(1), 'bn.num_batches_tracked': torch.tensor(0)}
    state = {**base, 'body': torch.ones(1)}
    assert subtract(state, base, None).keys() == state.keys()


# There and back through timm ------------------------------------------------------------------------------------------


@pytest.mark.parametrize('regime', ['new', 'all'])
@pytest.mark.parametrize(
    ('name', 'tag', 'growth'),
    [
        ('alexnet', 'alexnet.tv_in1k', 'wa16'),
        ('vgg11_bn', 'vgg11_bn.tv_in1k', 'mwa16'),
        (LITE, TAG, 'wa16'),
        (LITE, TAG, 'mwa16_wa8'),
    ],
)
def test_the_whole_comes_back_bit_for_bit(
    name: str, tag: str, growth: str, regime: str, narrow: None, tmp_path: Path
) -> None:
    tuned = Tuned(tmp_path, name, tag, growth, regime)
    assert_same_bits(tuned.load().state_dict(), tuned.state)


def test_regime_new_leaves_the_old_network_out(tuned: Tuned) -> None:
    changed = {key for key in tuned.delta if not key.startswith(('grown.', 'classifier.'))}
    # BatchNorms learn no weights in this regime, but go on measuring, unless they are frozen.
    assert changed <= {key for key in tuned.state if 'running' in key or 'tracked' in key}


def test_regime_all_changes_the_buffers_of_batchnorms_too(tmp_path: Path) -> None:
    tuned = Tuned(tmp_path, regime='all')
    assert {'bn1.running_mean', 'bn1.num_batches_tracked'} <= tuned.delta.keys()


@pytest.mark.parametrize('regime', ['new', 'conv_head-new'])
def test_a_delta_takes_the_room_of_what_changed(regime: str, tmp_path: Path) -> None:
    tuned = Tuned(tmp_path, growth='wa512', regime=regime)
    base = fetch(tuned.base, tuned.cache)
    changed = [value for key, value in tuned.state.items() if key not in base or not torch.equal(value, base[key])]
    size = sum(value.numel() * value.element_size() for value in changed)
    assert size <= (tuned.folder / 'model.safetensors').stat().st_size <= 1.01 * size


def test_the_delta_of_a_vgg_with_102_classes_is_under_38_mb() -> None:
    model = timm.create_model('vgg16_wa2048', num_classes=102, device='meta')
    groups = parameter_groups(model, 'new', lr=0.1, weight_decay=0.0)
    changed = sum(parameter.numel() * 4 for group in groups for parameter in group['params'])
    assert 30e6 < changed < 37.9e6  # and the header, of some thousand bytes


@pytest.mark.parametrize(
    'kwargs', [{'num_classes': 9}, {'num_classes': 0}, {'in_chans': 1}, {'features_only': True}, {'drop_rate': 0.2}]
)
def test_a_delta_builds_what_the_whole_would(kwargs: dict[str, Any], tuned: Tuned, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / 'whole', tuned.model, tuned.state)
    torch.manual_seed(5)
    whole = timm.create_model(f'local-dir:{tmp_path / "whole"}', pretrained=True, **kwargs)
    torch.manual_seed(5)
    assert_same_bits(tuned.load(**kwargs).state_dict(), whole.state_dict())


def test_a_repository_with_a_delta_gives_the_whole(tuned: Tuned) -> None:
    folder = snapshot(tuned.cache, 'me/net', OTHER_COMMIT)
    write_checkpoint(folder, tuned.model, tuned.delta, tuned.base.to_dict())
    model = timm.create_model('hf-hub:me/net', pretrained=True, cache_dir=tuned.cache)
    assert_same_bits(model.state_dict(), tuned.state)


def grow_again(tuned: Tuned, regime: str = 'new') -> tuple[State, State, Base, Path]:
    """Publish the delta, grow from it, train, and write the delta of that; gives both states, the base and a folder."""
    write_checkpoint(snapshot(tuned.cache, 'me/first', OTHER_COMMIT), tuned.model, tuned.delta, tuned.base.to_dict())
    second = timm.create_model(
        'hf-hub:me/first', pretrained=True, cache_dir=tuned.cache, growth='wa16_wa8', num_classes=3
    )
    base = base_of(second, cache_dir=tuned.cache)
    assert base is not None
    state = train_a_step(second, regime)
    part = subtract(state, fetch(base, tuned.cache), tuned.classifier)
    folder = tuned.folder.with_name('second')
    write_checkpoint(folder, second, part, base.to_dict())
    return state, part, base, folder


@pytest.mark.parametrize('regime', ['new', 'all'])
def test_a_delta_may_stand_on_a_delta(regime: str, tuned: Tuned) -> None:
    state, _, base, folder = grow_again(tuned, regime)
    assert (base.model, base.revision) == ('hf-hub:me/first', OTHER_COMMIT)
    loaded = timm.create_model(f'local-dir:{folder}', pretrained=True, cache_dir=tuned.cache)
    assert_same_bits(loaded.state_dict(), state)


def test_a_delta_on_a_delta_leaves_the_first_growth_out(tuned: Tuned) -> None:
    _, part, _, _ = grow_again(tuned)
    assert 'grown.conv_head_1.conv.weight' not in part
    assert 'grown.conv_head_2.conv.weight' in part


def test_a_delta_stored_narrower_is_loaded_as_timm_loads_it(tuned: Tuned) -> None:
    narrower = {
        key: value.to(torch.bfloat16) if value.is_floating_point() else value for key, value in tuned.delta.items()
    }
    save_file(narrower, tuned.folder / 'model.safetensors')
    loaded = tuned.load().state_dict()
    assert torch.equal(loaded['classifier.weight'], narrower['classifier.weight'].float())


def test_a_base_stored_narrower_is_known_by_what_timm_makes_of_it(tmp_path: Path) -> None:
    base = {
        key: value.half() if value.is_floating_point() else value
        for key, value in timm.create_model(LITE).state_dict().items()
    }
    put_base(tmp_path, TAG, base, COMMIT)
    model = timm.create_model(f'{LITE}_norm', pretrained=True, cache_dir=tmp_path)
    found = base_of(model, cache_dir=tmp_path)
    assert_same_bits(fetch(found, tmp_path), first_tensors(model))


def test_a_base_without_counters_is_known_by_what_timm_makes_of_it(tmp_path: Path) -> None:
    base = {key: value for key, value in timm.create_model(LITE).state_dict().items() if 'tracked' not in key}
    put_base(tmp_path, TAG, base, COMMIT)
    model = timm.create_model(f'{LITE}_norm', pretrained=True, cache_dir=tmp_path)
    found = base_of(model, cache_dir=tmp_path)
    assert_same_bits(fetch(found, tmp_path), first_tensors(model))


def test_a_base_is_read_from_its_package(tuned: Tuned, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    state = fetch(tuned.base, tuned.cache)
    monkeypatch.setattr(delta, 'packaged_weights', lambda package: state)
    assert_same_bits(fetch(Base(TAG, None, tuned.base.tensors), tmp_path / 'empty'), state)


def test_a_package_with_other_weights_is_passed_over(tuned: Tuned, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delta, 'packaged_weights', lambda package: {'conv_stem.weight': torch.zeros(1)})
    assert_same_bits(tuned.load().state_dict(), tuned.state)


# Whole checkpoints ----------------------------------------------------------------------------------------------------


def refuse_to_fetch(*args: Any) -> State:
    raise AssertionError('a whole checkpoint needs no base')


def test_a_whole_checkpoint_needs_no_base(tuned: Tuned, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = tuned.folder.with_name('whole')
    save_for_hf(tuned.load(), whole, safe_serialization=True)  # timm's own writes delta_of all the same
    assert 'delta_of' in (whole / 'config.json').read_text()
    monkeypatch.setattr('timm_devnet.registration.fetch', refuse_to_fetch)
    assert_same_bits(timm.create_model(f'local-dir:{whole}', pretrained=True).state_dict(), tuned.state)


def test_a_whole_checkpoint_that_grows_on_needs_no_base(tuned: Tuned, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = tuned.folder.with_name('whole')
    write_checkpoint(whole, tuned.model, tuned.state, tuned.base.to_dict())
    monkeypatch.setattr('timm_devnet.registration.fetch', refuse_to_fetch)
    longer = timm.create_model(f'local-dir:{whole}', pretrained=True, growth='wa16_wa8')
    assert torch.equal(longer.conv_head.weight, tuned.state['conv_head.weight'])


# Without weights ------------------------------------------------------------------------------------------------------


def test_without_weights_a_delta_is_refused(tuned: Tuned) -> None:
    with pytest.raises(ValueError, match=rf'differs from {TAG} .*delta_of=\{{\}} .*python -m hub pull'):
        timm.create_model(f'local-dir:{tuned.folder}')


@pytest.mark.parametrize('kwargs', [{'delta_of': {}}, {'device': 'meta'}])
def test_a_deltas_network_can_be_had_without_weights(kwargs: dict[str, Any], tuned: Tuned) -> None:
    model = timm.create_model(f'local-dir:{tuned.folder}', **kwargs)
    assert model.state_dict().keys() == tuned.state.keys()


def test_transformers_does_not_run_a_delta_on_random_weights(tuned: Tuned) -> None:
    transformers = pytest.importorskip('transformers')
    with pytest.raises(ValueError, match='python -m hub pull ORG/NAME --local-dir DIR'):
        transformers.AutoModelForImageClassification.from_pretrained(tuned.folder)


# Refusals -------------------------------------------------------------------------------------------------------------


def test_another_base_than_named_is_refused(tuned: Tuned) -> None:
    path = tuned.cache / 'models--timm--tf_efficientnet_lite0.in1k' / 'snapshots' / COMMIT / 'model.safetensors'
    state = load_file(path)
    save_file({**state, 'bn1.bias': state['bn1.bias'] + 1}, path)
    with pytest.raises(
        ValueError, match=rf'{TAG} at revision {COMMIT} .*{tuned.base.tensors}.*other tensors, of checks'
    ):
        tuned.load()


def test_a_missing_base_is_named(tuned: Tuned, tmp_path: Path) -> None:
    message = rf'The base {TAG} at revision {COMMIT} is needed.*LocalEntryNotFoundError.*Connect.*pip install eff'
    with pytest.raises(ValueError, match=message):
        timm.create_model(f'local-dir:{tuned.folder}', pretrained=True, cache_dir=tmp_path / 'empty')


def test_a_missing_base_below_a_base_is_named(tuned: Tuned) -> None:
    folder = grow_again(tuned)[-1]
    (tuned.cache / 'models--timm--tf_efficientnet_lite0.in1k').rename(tuned.cache / 'gone')
    with pytest.raises(ValueError, match=f'The base {TAG} at revision {COMMIT} is needed'):
        timm.create_model(f'local-dir:{folder}', pretrained=True, cache_dir=tuned.cache)


def test_only_safetensors_of_strangers_are_read(tuned: Tuned) -> None:
    folder = snapshot(tuned.cache, 'me/pickle', OTHER_COMMIT)
    write_checkpoint(folder, tuned.model, tuned.state)
    (folder / 'model.safetensors').unlink()
    torch.save(tuned.state, folder / 'pytorch_model.bin')
    with pytest.raises(ValueError, match='LocalEntryNotFoundError'):
        fetch(Base('hf-hub:me/pickle', OTHER_COMMIT, digest(tuned.state, 'classifier')), tuned.cache)


@pytest.mark.parametrize(
    'spoil',
    [
        lambda state: {**state, 'extra.weight': torch.zeros(3)},
        lambda state: {**state, 'conv_head.weight': torch.zeros(7, 320, 1, 1)},
        lambda state: {key: value for key, value in state.items() if not key.startswith('grown.conv_head_1.')},
    ],
    ids=['a name too many', 'another shape', 'new units missing'],
)
def test_a_delta_that_does_not_fit_is_refused(spoil: Callable[[State], State], tuned: Tuned) -> None:
    save_file(spoil(tuned.delta), tuned.folder / 'model.safetensors')
    with pytest.raises(ValueError, match='fits neither .* grown by wa16 .* nor the network before it grew'):
        tuned.load()


HOSTILE: dict[str, Any] = {
    'a list': ['vgg16.tv_in1k'],
    'a text': 'vgg16.tv_in1k',
    'a number': 1,
    'false': False,
    'a key too many': {'model': TAG, 'revision': None, 'tensors': ZEROS, 'url': 'http://x'},
    'no checksum': {'model': TAG, 'revision': None},
    'no model': {'revision': None, 'tensors': ZEROS},
    'an unknown model': {'model': 'nothing.in1k', 'revision': None, 'tensors': ZEROS},
    'an unknown tag': {'model': f'{LITE}.nothing', 'revision': None, 'tensors': ZEROS},
    'no tag': {'model': LITE, 'revision': None, 'tensors': ZEROS},
    'a path': {'model': 'local-dir:/etc', 'revision': None, 'tensors': ZEROS},
    'a path as repository': {'model': 'hf-hub:../../etc', 'revision': COMMIT, 'tensors': ZEROS},
    'a repository in a repository': {'model': 'hf-hub:a/b/c', 'revision': COMMIT, 'tensors': ZEROS},
    'a repository of nobody': {'model': 'hf-hub:gpt2', 'revision': COMMIT, 'tensors': ZEROS},
    'a repository with a revision': {'model': 'hf-hub:a/b@main', 'revision': COMMIT, 'tensors': ZEROS},
    'a repository that moves': {'model': 'hf-hub:a/b', 'revision': None, 'tensors': ZEROS},
    'a branch': {'model': 'hf-hub:a/b', 'revision': 'main', 'tensors': ZEROS},
    'a revision with a line': {'model': 'hf-hub:a/b', 'revision': COMMIT + '\n', 'tensors': ZEROS},
    'a revision of another type': {'model': TAG, 'revision': 7, 'tensors': ZEROS},
    'a model of another type': {'model': ['a'], 'revision': None, 'tensors': ZEROS},
    'a short checksum': {'model': TAG, 'revision': None, 'tensors': '0' * 63},
    'a checksum in capitals': {'model': TAG, 'revision': None, 'tensors': 'A' * 64},
    'a checksum of another type': {'model': TAG, 'revision': None, 'tensors': None},
    'a text of a megabyte': {'model': 'x' * 10**6, 'revision': None, 'tensors': ZEROS},
}


@pytest.mark.parametrize('kind', HOSTILE)
def test_what_is_no_base_is_refused(kind: str) -> None:
    with pytest.raises(ValueError, match=r'[Bb]ase') as caught:
        timm.create_model(f'{LITE}_wa', pretrained=True, delta_of=HOSTILE[kind])
    assert len(str(caught.value)) < 1000


def test_what_is_no_base_is_refused_without_weights_too() -> None:
    with pytest.raises(ValueError, match='A base is a dict'):
        timm.create_model(f'{LITE}_wa', device='meta', delta_of={'model': TAG})


def write_small(cache: Path, repo_id: str, commit: str, delta_of: Any, **changes: Any) -> Base:
    """Write a repository of one small tensor that says it is a delta."""
    folder = snapshot(cache, repo_id, commit)
    config = {'architecture': f'{LITE}_wa', 'model_args': {'delta_of': delta_of}, 'pretrained_cfg': {}, **changes}
    (folder / 'config.json').write_text(json.dumps(config))
    save_file({'x': torch.zeros(1)}, folder / 'model.safetensors')
    return Base(f'hf-hub:{repo_id}', commit, ZEROS)


def test_a_delta_that_stands_on_itself_is_refused(tmp_path: Path) -> None:
    base = write_small(tmp_path, 'me/ring', COMMIT, Base('hf-hub:me/ring', COMMIT, ZEROS).to_dict())
    with pytest.raises(ValueError, match=rf'in no ring .*; given {base}, which stands on {base}\.$'):
        fetch(base, tmp_path)


def test_a_base_with_a_huge_configuration_is_refused(tmp_path: Path) -> None:
    base = write_small(tmp_path, 'me/huge', COMMIT, {})
    [path] = tmp_path.glob('**/config.json')
    path.write_text(path.read_text() + ' ' * 5_000_000)
    with pytest.raises(ValueError, match='config.json has 5,.* bytes, more than the 5,000,000 that any needs'):
        fetch(base, tmp_path)


def test_an_error_is_told_without_what_a_terminal_obeys() -> None:
    with pytest.raises(ValueError) as caught:
        Base('\x1b[31mvgg16', None, ZEROS)
    assert str(caught.value).isprintable() and r'\x1b[31mvgg16' in str(caught.value)


def test_a_tower_of_deltas_is_refused(tmp_path: Path) -> None:
    base = Base(TAG, None, ZEROS)
    for number in range(9):
        base = write_small(tmp_path, f'me/n{number}', COMMIT, base.to_dict())
    with pytest.raises(ValueError, match='at most 8 high'):
        fetch(base, tmp_path)


@pytest.mark.parametrize(
    'changes',
    [{'architecture': 'nothing'}, {'architecture': ['x']}, {'model_args': [1]}, {'pretrained_cfg': 3}],
    ids=['an unknown architecture', 'no name', 'arguments that are none', 'no cfg'],
)
def test_a_base_with_a_broken_configuration_is_refused(changes: dict[str, Any], tmp_path: Path) -> None:
    base = write_small(tmp_path, 'me/broken', COMMIT, None, **changes)
    with pytest.raises(ValueError, match='The base hf-hub:me/broken at revision .* is needed'):
        fetch(base, tmp_path)


def test_a_base_with_a_configuration_that_is_no_json_is_refused(tmp_path: Path) -> None:
    base = write_small(tmp_path, 'me/broken', COMMIT, None)
    (snapshot(tmp_path, 'me/broken', COMMIT) / 'config.json').write_text('[' * 10**5)
    with pytest.raises(ValueError, match='The base hf-hub:me/broken at revision .* is needed'):
        fetch(base, tmp_path)


# Names ----------------------------------------------------------------------------------------------------------------


def test_a_base_comes_back_from_a_dict() -> None:
    base = Base('hf-hub:me/net', COMMIT, ZEROS)
    assert Base.from_dict(json.loads(json.dumps(base.to_dict()))) == base


def test_a_grown_network_stands_on_the_tag_of_its_base(tuned: Tuned) -> None:
    assert (tuned.base.model, tuned.base.revision) == (TAG, COMMIT)


def test_a_plain_network_stands_on_its_own_tag(tuned: Tuned) -> None:
    plain = timm.create_model(LITE, pretrained=True, num_classes=3, cache_dir=tuned.cache)
    assert base_of(plain, cache_dir=tuned.cache) == tuned.base


def test_a_network_with_weights_of_a_url_stands_on_no_revision(narrow: None, tmp_path: Path) -> None:
    tuned = Tuned(tmp_path, 'alexnet', 'alexnet.tv_in1k')
    assert (tuned.base.model, tuned.base.revision) == ('alexnet.tv_in1k', None)


def test_a_local_folder_has_no_name_for_others(tuned: Tuned) -> None:
    assert base_of(tuned.load()) is None


def test_a_file_of_a_base_bears_the_name_of_the_tag(tuned: Tuned) -> None:
    file = tuned.cache / 'models--timm--tf_efficientnet_lite0.in1k' / 'snapshots' / COMMIT / 'model.safetensors'
    model = timm.create_model(f'{LITE}_wa', pretrained=True, pretrained_cfg_overlay={'file': str(file)})
    assert base_of(model, cache_dir=tuned.cache) == Base(TAG, None, tuned.base.tensors)


def test_a_file_of_a_grown_checkpoint_has_no_name_for_others(tuned: Tuned) -> None:
    save_file(tuned.state, tuned.folder / 'whole.safetensors')
    overlay = {'file': str(tuned.folder / 'whole.safetensors')}
    model = timm.create_model(
        f'{LITE}_wa', pretrained=True, growth='wa16', num_classes=5, pretrained_cfg_overlay=overlay
    )
    assert base_of(model, cache_dir=tuned.cache) is None


def test_what_grows_after_loading_is_not_part_of_the_base(tuned: Tuned) -> None:
    model = grow(tuned.load(), 'wa8')
    assert_same_bits(first_tensors(model), {k: v for k, v in tuned.state.items() if not k.startswith('classifier')})


def test_complete_undoes_subtract_for_odd_numbers_too() -> None:
    base = {'kept': torch.tensor([math.nan, -0.0]), 'x': nan(1)}
    state = {**copy.deepcopy(base), 'x': nan(3), 'fc.bias': torch.tensor([-0.0])}
    assert_same_bits(complete(subtract(state, base, 'fc'), base), state)
