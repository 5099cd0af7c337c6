"""Published checkpoints: as tags of timm's, pinned, checked, and what is refused in a list of them."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.models import get_pretrained_cfg, model_entrypoint, register_model

import timm_devnet
from tests.timm_devnet.hub_cache import State, put_base, snapshot, write_checkpoint
from timm_devnet import delta, list_published, published, register_published, resolve_name
from timm_devnet.delta import base_of, digest, fetch, subtract

LITE, NAME = 'tf_efficientnet_lite0', 'tf_efficientnet_lite0_wa'
COMMIT, OTHER_COMMIT = 'c0' * 20, 'd1' * 20


@pytest.fixture(autouse=True)
def own_registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Take out of timm's registry what a test has put there."""
    monkeypatch.setattr(delta, 'packaged_weights', lambda package: None)
    before = dict(published._entries)
    yield
    added = published._entries.keys() - before.keys()
    for architecture, tag in added:
        known = published._default_cfgs(architecture)[architecture]
        known.tags.remove(tag)
        del known.cfgs[tag], published._entries[architecture, tag]
    with pytest.warns(UserWarning, match='Overwriting') if added else pytest.MonkeyPatch.context():
        for architecture in {architecture for architecture, _ in added}:
            register_model(model_entrypoint(architecture))


class Listed:
    """A published checkpoint in a cache, and the list that names it."""

    def __init__(self, folder: Path, as_delta: bool) -> None:
        self.cache, self.file = folder / 'cache', folder / 'list.json'
        put_base(self.cache, f'{LITE}.in1k', timm.create_model(LITE).state_dict(), OTHER_COMMIT)
        kwargs: dict[str, Any] = dict(growth='mwa16', num_classes=3, cache_dir=self.cache)
        self.model = timm.create_model(NAME, pretrained=True, **kwargs)
        base = base_of(self.model, cache_dir=self.cache)
        assert base is not None
        for parameter in self.model.get_submodule('grown').parameters():
            torch.nn.init.normal_(parameter)
        self.state: State = self.model.state_dict()
        tensors = subtract(self.state, fetch(base, self.cache), 'classifier') if as_delta else self.state
        self.weights = snapshot(self.cache, 'me/sun', COMMIT) / 'model.safetensors'
        write_checkpoint(self.weights.parent, self.model, tensors, base.to_dict() if as_delta else None)
        config = json.loads((self.weights.parent / 'config.json').read_text())
        self.entry: dict[str, Any] = {
            'architecture': NAME,
            'tag': 'sun397',
            'hub_id': 'me/sun',
            'revision': COMMIT,
            'sha256': digest(tensors, None),
            'num_classes': 3,
            'license': 'apache-2.0',
            'pretrained_cfg': {'input_size': [3, 64, 64], 'mean': [0.4, 0.4, 0.4], 'crop_pct': 0.9},
            'model_args': {
                key: config['model_args'][key] for key in ('growth', 'delta_of') if key in config['model_args']
            },
            'metrics': {'top1': 71.5, 'images': 1000, 'top5': None},
            'label_names': ['bay', 'bus', 'zoo'],
        }
        self.write()

    def write(self, *further: Any, **changes: Any) -> Path:
        self.file.write_text(json.dumps([{**self.entry, **changes}, *further]))
        return self.file

    def load(self, name: str = f'{NAME}.sun397', **kwargs: Any) -> Any:
        return timm.create_model(name, pretrained=True, cache_dir=self.cache, **kwargs)


@pytest.fixture(scope='module')
def originals(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Listed]:
    """Publish a delta and a whole checkpoint, once for all tests."""
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(delta, 'packaged_weights', lambda package: None)
        return {as_delta: Listed(tmp_path_factory.mktemp('listed'), as_delta) for as_delta in (False, True)}


@pytest.fixture(params=[False, True], ids=['whole', 'delta'])
def listed(request: pytest.FixtureRequest, originals: dict[bool, Listed]) -> Listed:
    """Give a list with a checkpoint of either kind, as it was written."""
    originals[request.param].write()
    return originals[request.param]


@pytest.fixture
def one(originals: dict[bool, Listed]) -> Listed:
    """Give the list with the whole checkpoint."""
    originals[False].write()
    return originals[False]


def test_nothing_is_listed_that_is_not_published() -> None:
    assert list_published() == []


def test_a_tag_gives_the_checkpoint(listed: Listed) -> None:
    register_published(listed.file)
    model = listed.load()
    assert digest(model.state_dict(), None) == digest(listed.state, None)


def test_a_tag_says_what_images_and_classes_it_wants(one: Listed) -> None:
    register_published(one.file)
    cfg = get_pretrained_cfg(f'{NAME}.sun397')
    assert cfg is not None
    assert (cfg.num_classes, cfg.label_names, cfg.input_size) == (3, ('bay', 'bus', 'zoo'), (3, 64, 64))
    assert (cfg.mean, cfg.crop_pct, cfg.license) == ((0.4, 0.4, 0.4), 0.9, 'apache-2.0')


def test_a_tag_is_pinned_to_safetensors_of_a_commit(one: Listed) -> None:
    register_published(one.file)
    cfg = get_pretrained_cfg(f'{NAME}.sun397')
    assert cfg is not None
    assert (cfg.hf_hub_id, cfg.hf_hub_filename, cfg.url) == (f'me/sun@{COMMIT}', 'model.safetensors', None)


def test_the_bases_tag_stays_the_default(one: Listed) -> None:
    register_published(one.file)
    cfg = get_pretrained_cfg(NAME)
    assert cfg is not None and cfg.tag == 'in1k'
    assert timm.create_model(NAME, device='meta').growth == 'wa512'


def test_timm_lists_the_tag(one: Listed) -> None:
    register_published(one.file)
    assert f'{NAME}.sun397' in timm.list_models(pretrained=True)


def test_the_caller_goes_first(listed: Listed) -> None:
    register_published(listed.file)
    model = listed.load(growth='mwa16_wa8', num_classes=7)
    assert (model.growth, model.num_classes) == ('mwa16_wa8', 7)


def test_a_tag_can_be_built_without_weights(listed: Listed) -> None:
    register_published(listed.file)
    assert timm.create_model(f'{NAME}.sun397').growth == 'mwa16'


def test_the_tag_of_a_growth_that_is_not_registered_is_found(one: Listed) -> None:
    register_published(one.file)
    name, arguments = resolve_name(f'{LITE}_wa16_wa16.sun397')
    assert timm.create_model(name, device='meta', **arguments).growth == 'wa16_wa16'
    assert name == f'{NAME}.sun397'


def test_what_a_tag_gave_can_be_the_base_of_another(one: Listed) -> None:
    register_published(one.file)
    base = base_of(one.load(), cache_dir=one.cache)
    assert base is not None
    assert (base.model, base.revision) == ('hf-hub:me/sun', COMMIT)
    assert digest(fetch(base, one.cache), None) == base.tensors


@pytest.mark.parametrize('way', ['tag', 'hf-hub'])
def test_other_tensors_than_those_published_are_refused(way: str, one: Listed, tmp_path: Path) -> None:
    register_published(one.file)
    cache = Path(shutil.copytree(one.cache, tmp_path / 'cache'))
    file = cache / one.weights.relative_to(one.cache)
    state = load_file(file)
    save_file({**state, 'classifier.bias': state['classifier.bias'] + 1}, file)
    name = f'{NAME}.sun397' if way == 'tag' else f'hf-hub:me/sun@{COMMIT}'
    with pytest.raises(ValueError, match=rf'me/sun@{COMMIT} should hold the published {NAME}.sun397'):
        timm.create_model(name, pretrained=True, cache_dir=cache)


def test_a_users_own_file_is_not_compared(one: Listed, tmp_path: Path) -> None:
    register_published(one.file)
    save_file({**one.state, 'classifier.bias': torch.ones(3)}, tmp_path / 'own.safetensors')
    model = one.load(pretrained_cfg_overlay={'file': str(tmp_path / 'own.safetensors')})
    assert (model.classifier.bias == 1).all()


def test_a_list_can_be_registered_twice(one: Listed) -> None:
    assert register_published(one.file) == register_published(one.file) == list_published()


def test_what_is_listed_can_be_looked_at(one: Listed) -> None:
    register_published(one.file)
    assert list_published()[0].metrics == {'top1': 71.5, 'images': 1000, 'top5': None}


@pytest.mark.parametrize('changes', [{'revision': OTHER_COMMIT}, {'tag': 'in1k'}])
def test_a_tag_that_means_something_else_is_refused(changes: dict[str, Any], one: Listed) -> None:
    register_published(one.file)
    with pytest.raises(ValueError, match='means something else already'):
        register_published(one.write(**changes))


def test_a_tag_twice_in_a_list_is_refused(one: Listed) -> None:
    with pytest.raises(ValueError, match='entry 2 of .* means something else already'):
        register_published(one.write({**one.entry, 'num_classes': 0, 'label_names': None}))


BAD: dict[str, tuple[dict[str, Any], str]] = {
    'a field too many': ({'sha': 1}, "has 'sha'; allowed are architecture"),
    'an unknown architecture': ({'architecture': 'vgg99_wa'}, 'no registered name of a grown network'),
    'a plain architecture': ({'architecture': LITE}, 'no registered name of a grown network'),
    'a tag with a path': ({'tag': '../x'}, 'tag'),
    'no tag': ({'tag': ''}, 'tag is a text'),
    'a repository of nobody': ({'hub_id': 'net'}, 'hub_id'),
    'a repository that is a path': ({'hub_id': '../../x'}, 'hub_id'),
    'a branch': ({'revision': 'main'}, 'revision is 40 hex digits'),
    'a checksum of something else': ({'sha256': 'x' * 64}, 'sha256 is 64 hex digits'),
    'half a class': ({'num_classes': 2.5}, 'num_classes'),
    'true classes': ({'num_classes': True}, 'num_classes'),
    'fewer names than classes': ({'label_names': ['a']}, 'label_names is a list of 3'),
    'names that are none': ({'label_names': [1, 2, 3]}, 'label_names is a list of 3'),
    'no licence': ({'license': None}, 'license is a text'),
    'a source': ({'pretrained_cfg': {'url': 'http://x'}}, "pretrained_cfg has 'url'"),
    'a size that is no number': ({'pretrained_cfg': {'input_size': ['a']}}, 'pretrained_cfg has input_size'),
    'a file': ({'model_args': {'checkpoint_path': '/x'}}, "model_args has 'checkpoint_path'"),
    'no growth': ({'model_args': {'growth': 'xa16'}}, 'Unknown growth'),
    'a start of nothing': ({'model_args': {'new_init': 'x'}}, 'new_init'),
    'no base': ({'model_args': {'delta_of': {'model': 'x'}}}, 'A base is a dict'),
    'channels in words': ({'model_args': {'in_chans': 'x'}}, 'model_args has in_chans'),
    'arguments that are none': ({'model_args': [1]}, 'model_args is a dict'),
    'a metric in words': ({'metrics': {'top1': 'good'}}, 'metrics is a dict of numbers'),
}


@pytest.mark.parametrize('kind', BAD)
def test_a_bad_entry_is_an_error_that_names_it(kind: str, one: Listed) -> None:
    changes, message = BAD[kind]
    with pytest.raises(ValueError, match=rf'entry 1 of .*list.json \(.*\) is no published checkpoint: .*{message}'):
        register_published(one.write(**changes))


def test_of_a_list_with_an_error_nothing_is_registered(one: Listed) -> None:
    with pytest.raises(ValueError, match='entry 2'):
        register_published(one.write({**one.entry, 'tag': ''}))
    assert list_published() == []


def test_an_entry_that_lacks_a_field_is_refused(one: Listed) -> None:
    one.file.write_text(json.dumps([{key: value for key, value in one.entry.items() if key != 'revision'}]))
    with pytest.raises(ValueError, match='it lacks revision'):
        register_published(one.file)


@pytest.mark.parametrize('text', ['{', '{"a": 1}', '[' * 10**5, '[1]', 'null'])
def test_what_is_no_list_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / 'list.json').write_text(text)
    with pytest.raises(ValueError, match='list.json'):
        register_published(tmp_path / 'list.json')


def test_a_missing_list_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match='nowhere.json is no file'):
        register_published(tmp_path / 'nowhere.json')


def test_the_list_of_the_package_is_a_list() -> None:
    assert json.loads((Path(timm_devnet.__file__).parent / 'published.json').read_text()) == []
