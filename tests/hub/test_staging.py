import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import timm_devnet
from hub import staging
from hub.checks import find_problems
from hub.staging import stage, stage_model
from tests.hub.runs import TAG, train_run
from tests.timm_devnet.hub_cache import put_base
from timm_devnet.delta import base_of, digest
from training import evaluation
from training.config import Config

ROOT = Path(__file__).parent.parent.parent
NAMES = ['README.md', 'config.json', 'curves.png', 'growth.png', 'metrics.csv', 'model.safetensors']
State = dict[str, Tensor]


@pytest.fixture(scope='module')
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train once for all tests; gives the run, which they leave as it is."""
    return train_run(tmp_path_factory.mktemp('trained'))


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """Copy the run, for tests that change it; its images and base stay where they are."""
    return shutil.copytree(trained, tmp_path / 'run')


@pytest.fixture(scope='module')
def grown() -> Any:
    """Build a small grown network with a past: batch norms that have counted, an odd memory format."""
    torch.manual_seed(0)
    model: Any = timm.create_model('tf_efficientnet_lite0_wa', growth='wa16', num_classes=3)
    model.train()(torch.rand(2, 3, 32, 32))
    return model.eval().to(memory_format=torch.channels_last)


def staged_from(run: Path, folder: Path, **options: Any) -> staging.Staged:
    return stage(run, folder, **{'license': 'mit', 'say': lambda line: None, **options})


def model_staged(model: nn.Module, folder: Path, **options: Any) -> staging.Staged:
    return stage_model(model, folder, **{'license': 'mit', 'say': lambda line: None, **options})


def load(folder: Path, **options: Any) -> Any:
    return timm.create_model(f'local-dir:{folder}', pretrained=True, **options)


def assert_same_bits(one: State, other: State) -> None:
    assert one.keys() == other.keys()
    assert digest(one, ()) == digest(other, ())


def change(path: Path, **values: Any) -> None:
    """Change values of a JSON file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.fixture(scope='module')
def staged(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> staging.Staged:
    """Stage the run once, for tests that only look."""
    return staged_from(trained, tmp_path_factory.mktemp('staged') / 'staged')


# What is staged -------------------------------------------------------------------------------------------------------


def test_just_the_files_that_are_published(staged: staging.Staged) -> None:
    assert sorted(path.name for path in staged.path.iterdir()) == NAMES
    assert staged.files == {path.name: path.stat().st_size for path in staged.path.iterdir()}
    assert list(staged.path.parent.iterdir()) == [staged.path]


@pytest.mark.parametrize('name', ['best', 'last'])
def test_the_folder_of_a_runs_weights_stands_for_the_run(trained: Path, tmp_path: Path, name: str) -> None:
    config = staged_from(trained / name, tmp_path / 'staged').config
    assert config['timm_devnet']['metrics']['images'] == 9
    assert_same_bits(load(tmp_path / 'staged').state_dict(), load(trained / name).state_dict())


def test_config_says_what_it_is(staged: staging.Staged, trained: Path) -> None:
    config = json.loads((staged.path / 'config.json').read_text())
    assert config == staged.config
    assert (config['architecture'], config['label_names']) == ('tf_efficientnet_lite0_wa', ['blue', 'green', 'red'])
    assert 'num_classes' not in config['model_args']
    section = config['timm_devnet']
    base = json.loads((trained / 'run.json').read_text())['base']
    assert section.pop('base') == {'model': TAG, 'revision': None, 'tensors': base['tensors']}
    assert section.pop('metrics').keys() == {'top1', 'top5', 'loss', 'images', 'epoch'}
    assert section.pop('sha256').keys() == {*NAMES} - {'config.json', 'README.md'}
    assert section == {
        'format': 1,
        'version': '0.1.0',
        'growth': 'wa16',
        'delta': False,
        'storage': 'float32',
        'license': 'mit',
        'dataset': 'colours',
        'regime': 'new',
    }


def test_checksums_are_those_of_the_files(staged: staging.Staged) -> None:
    for name, checksum in staged.config['timm_devnet']['sha256'].items():
        assert hashlib.sha256((staged.path / name).read_bytes()).hexdigest() == checksum


def test_the_header_says_what_the_weights_are(staged: staging.Staged) -> None:
    with safe_open(staged.path / 'model.safetensors', 'pt') as file:
        metadata = file.metadata()
    assert metadata.keys() == {'format', 'config', 'growth', 'base'}
    assert (metadata['format'], metadata['growth']) == ('pt', 'wa16')
    assert json.loads(metadata['base']) == staged.config['timm_devnet']['base']
    assert Config.from_json(metadata['config']).regime == 'new'


def test_nothing_tells_where_files_lay(staged: staging.Staged, trained: Path) -> None:
    for path in staged.path.iterdir():
        assert str(trained.parent.parent).encode() not in path.read_bytes(), path.name


def test_a_plain_network_is_staged_without_a_drawing(tmp_path: Path) -> None:
    staged = model_staged(timm.create_model('test_efficientnet', num_classes=3), tmp_path / 'staged')
    assert list(staged.files) == ['README.md', 'config.json', 'model.safetensors']
    assert staged.config['timm_devnet']['growth'] is None


def test_a_folder_without_a_run_is_staged_by_itself(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained / 'best', tmp_path / 'weights')
    staged = staged_from(tmp_path / 'weights', tmp_path / 'staged')
    assert list(staged.files) == ['README.md', 'config.json', 'growth.png', 'model.safetensors']
    section = staged.config['timm_devnet']
    assert (section['metrics'], section['base'], section['dataset']) == (None, None, None)


# Networks in memory ---------------------------------------------------------------------------------------------------


def compiled(model: nn.Module) -> nn.Module:
    return torch.compile(model, backend='eager')  # type: ignore[return-value]


@pytest.mark.parametrize('wrap', [nn.Module.eval, compiled, nn.DataParallel], ids=['plain', 'compiled', 'parallel'])
def test_a_network_in_memory_is_staged_bit_for_bit(grown: Any, tmp_path: Path, wrap: Any) -> None:
    model_staged(wrap(grown), tmp_path / 'staged', classes=['a', 'b', 'c'])
    loaded = load(tmp_path / 'staged')
    assert_same_bits(loaded.state_dict(), grown.state_dict())
    assert loaded.pretrained_cfg['label_names'] == ['a', 'b', 'c']


def test_a_network_in_bf16_stays_so(tmp_path: Path) -> None:
    model: Any = timm.create_model('tf_efficientnet_lite0_wa', growth='wa16', num_classes=3).to(torch.bfloat16)
    staged = model_staged(model, tmp_path / 'staged')
    assert staged.config['timm_devnet']['storage'] == 'bfloat16'
    assert_same_bits(load_file(staged.path / 'model.safetensors'), model.state_dict())


def test_a_network_that_grew_by_hand_is_staged(tmp_path: Path) -> None:
    model = timm_devnet.grow(timm.create_model('tf_efficientnet_lite0', num_classes=3), 'wa16')
    timm_devnet.grow(model, 'da8')
    model_staged(model, tmp_path / 'staged')
    assert_same_bits(load(tmp_path / 'staged').state_dict(), model.state_dict())


def under_another_name(model: Any) -> Any:
    model.pretrained_cfg = {**model.pretrained_cfg, 'architecture': 'nobodys_network'}
    return model


@pytest.mark.parametrize(
    ('make', 'message'),
    [
        (lambda: nn.Linear(2, 2), 'Linear is not a network that timm made'),
        (lambda: timm.create_model('test_efficientnet', num_classes=0), 'has no classifier'),
        (lambda: timm.create_model('test_efficientnet').half(), 'float32 or bfloat16.*these are in float16'),
        (lambda: timm.create_model('test_efficientnet', device='meta'), 'has no values'),
        (
            lambda: under_another_name(timm.create_model('test_efficientnet', num_classes=3)),
            'describes no network that timm can build, so nobody could load it',
        ),
    ],
    ids=['not timm', 'no classifier', 'half', 'meta', 'no name'],
)
def test_networks_that_cannot_be_published(make: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        model_staged(make(), tmp_path / 'staged')
    assert list(tmp_path.iterdir()) == []


def test_more_names_than_outputs_are_refused(grown: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match='4 names of classes were given, but the network has 3 outputs'):
        model_staged(grown, tmp_path / 'staged', classes=list('abcd'))


# Deltas ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def cache(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Put the base where timm looks for it."""
    folder = tmp_path_factory.mktemp('cache')
    put_base(folder, TAG, load_file(trained.parent.parent / 'base.safetensors'), 'c0' * 20)
    return folder


def test_a_delta_is_what_changed_and_loads_bit_for_bit(trained: Path, cache: Path, tmp_path: Path) -> None:
    staged = staged_from(trained, tmp_path / 'staged', delta=True)
    kept = load_file(staged.path / 'model.safetensors')
    assert {name for name in kept if not name.startswith(('grown.', 'classifier.'))} == set()
    assert staged.config['model_args']['delta_of'] == staged.config['timm_devnet']['base']
    assert_same_bits(load(staged.path, cache_dir=cache).state_dict(), load(trained / 'best').state_dict())


def test_the_base_of_a_delta_may_be_a_file(run: Path, trained: Path, tmp_path: Path) -> None:
    base = shutil.copy(trained.parent.parent / 'base.safetensors', tmp_path / 'elsewhere.safetensors')
    config = json.loads((run / 'run.json').read_text())['config']
    change(run / 'run.json', config={**config, 'pretrained_path': None})
    staged = staged_from(run, tmp_path / 'staged', delta=True, base_file=base)
    assert staged.config['timm_devnet']['delta']


def another_base(folder: Path) -> Path:
    torch.manual_seed(1)
    save_file(timm.create_model('tf_efficientnet_lite0').state_dict(), folder / 'other.safetensors')
    return folder / 'other.safetensors'


def test_another_base_file_is_refused_by_name(trained: Path, tmp_path: Path) -> None:
    other = another_base(tmp_path)
    message = f'other.safetensors is not the base {TAG} that the network began with: its tensors have checksum'
    with pytest.raises(ValueError, match=message):
        staged_from(trained, tmp_path / 'staged', delta=True, base_file=other)
    assert list(tmp_path.iterdir()) == [other]


def test_another_networks_file_is_no_base(trained: Path, tmp_path: Path) -> None:
    other = tmp_path / 'other.safetensors'
    save_file(timm.create_model('test_efficientnet').state_dict(), other)
    with pytest.raises(ValueError, match='other.safetensors is not the base of tf_efficientnet_lite0_wa'):
        staged_from(trained, tmp_path / 'staged', delta=True, base_file=other)


def test_a_missing_base_is_named(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = json.loads((run / 'run.json').read_text())['config']
    change(run / 'run.json', config={**config, 'pretrained_path': str(tmp_path / 'gone.safetensors')})
    with pytest.raises(ValueError, match=f'The base {TAG} is needed'):
        staged_from(run, tmp_path / 'staged', delta=True)


def test_a_base_file_that_was_replaced_is_not_taken_for_the_base(run: Path, tmp_path: Path) -> None:
    other = another_base(tmp_path)
    config = json.loads((run / 'run.json').read_text())['config']
    change(run / 'run.json', config={**config, 'pretrained_path': str(other)})
    with pytest.raises(ValueError, match=f'The base {TAG} is needed'):
        staged_from(run, tmp_path / 'staged', delta=True)


@pytest.mark.parametrize('base', [None, {'model': None, 'revision': None, 'tensors': '0' * 64, 'license': None}])
def test_no_delta_without_a_base_that_others_can_get(run: Path, tmp_path: Path, base: Any) -> None:
    change(run / 'run.json', base=base)
    with pytest.raises(ValueError, match='a delta stands on a base that others can get, and none is recorded'):
        staged_from(run, tmp_path / 'staged', delta=True)


def test_where_nothing_stayed_the_whole_is_staged(tmp_path: Path, trained: Path) -> None:
    lines: list[str] = []
    base_file = trained.parent.parent / 'base.safetensors'
    overlay = {'file': str(base_file)}
    options: dict[str, Any] = {'growth': 'wa16', 'num_classes': 3, 'pretrained': True}
    model: Any = timm.create_model('tf_efficientnet_lite0_wa', pretrained_cfg_overlay=overlay, **options)
    base = base_of(model, is_local=True)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.add_(1)
    staged = model_staged(model, tmp_path / 'staged', base=base, delta=True, base_file=base_file, say=lines.append)
    assert (staged.config['timm_devnet']['delta'], 'delta_of' in staged.config['model_args']) == (False, False)
    assert lines[0] == f'nothing of {TAG} stayed as it was, so a delta would save nothing: the weights are staged whole'


def test_a_network_loaded_from_a_delta_is_staged_whole(trained: Path, cache: Path, tmp_path: Path) -> None:
    staged_from(trained, tmp_path / 'delta', delta=True)
    whole = model_staged(load(tmp_path / 'delta', cache_dir=cache), tmp_path / 'whole')
    assert 'delta_of' not in whole.config['model_args']
    assert_same_bits(load(tmp_path / 'whole').state_dict(), load(trained / 'best').state_dict())


# bf16 -----------------------------------------------------------------------------------------------------------------


def test_rounded_weights_are_measured_again(trained: Path, tmp_path: Path) -> None:
    staged = staged_from(trained, tmp_path / 'staged', dtype='bf16')
    loaded = load(staged.path).state_dict()
    expected = {
        name: tensor.bfloat16().float() if tensor.is_floating_point() else tensor
        for name, tensor in load(trained / 'best').state_dict().items()
    }
    assert_same_bits(loaded, expected)
    section = staged.config['timm_devnet']
    assert section['storage'] == 'bfloat16'
    assert section['metrics']['top1_stored'] == measured(staged.path, trained)
    assert staged.files['model.safetensors'] < 0.52 * (trained / 'best' / 'model.safetensors').stat().st_size


def measured(folder: Path, run: Path) -> float:
    """Top-1 by timm alone."""
    model = load(folder).eval()
    transform = timm.data.create_transform(**timm.data.resolve_data_config({}, model=model))
    hits = []
    for path in (run.parent.parent / 'colours' / 'val').glob('*/*.png'):
        with Image.open(path) as image, torch.no_grad():
            answer = model(transform(image.convert('RGB'))[None]).argmax().item()
        hits.append(model.pretrained_cfg['label_names'][answer] == path.parent.name)
    return 100 * sum(hits) / len(hits)


def test_a_rounded_delta_is_measured_as_it_will_be_loaded(
    trained: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[State] = []
    evaluate = evaluation.evaluate_only

    def look(config: Config) -> dict[str, Any]:
        seen.append(load(Path(config.model)).state_dict())
        return evaluate(config)

    monkeypatch.setattr(evaluation, 'evaluate_only', look)
    staged = staged_from(trained, tmp_path / 'staged', dtype='bf16', delta=True)
    assert list(staged.files) == NAMES
    assert 'top1_stored' in staged.config['timm_devnet']['metrics']
    [measured] = seen
    assert_same_bits(measured, load(staged.path, cache_dir=cache).state_dict())


@pytest.mark.parametrize(
    ('values', 'message'),
    [
        ({'data_dir': '/nowhere'}, 'which cannot be had: .*nowhere'),
        ({'val_split': 'train'}, 'not the same any more'),
    ],
)
def test_without_its_images_nothing_is_rounded(run: Path, tmp_path: Path, values: dict[str, str], message: str) -> None:
    config = json.loads((run / 'run.json').read_text())['config']
    change(run / 'run.json', config={**config, **values})
    with pytest.raises(ValueError, match=message):
        staged_from(run, tmp_path / 'staged', dtype='bf16')
    assert not (tmp_path / 'staged').exists()


def test_without_a_run_nothing_is_rounded(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained / 'best', tmp_path / 'weights')
    with pytest.raises(ValueError, match='is no run, so there are no images to measure'):
        staged_from(tmp_path / 'weights', tmp_path / 'staged', dtype='bf16')


def test_other_types_are_refused(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="dtype 'fp16' is not known: it must be 'bf16'"):
        staged_from(trained, tmp_path / 'staged', dtype='fp16')


# What cannot be staged ------------------------------------------------------------------------------------------------


def test_the_licence_of_a_file_is_not_known(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f'that of the base {TAG} is not known; give it'):
        staged_from(trained, tmp_path / 'staged', license=None)


def test_the_licence_is_that_of_the_base(run: Path, tmp_path: Path) -> None:
    base = json.loads((run / 'run.json').read_text())['base']
    change(run / 'run.json', base={**base, 'license': 'cc-by-nc-4.0'})
    config = staged_from(run, tmp_path / 'staged', license=None).config
    assert (config['timm_devnet']['license'], config['pretrained_cfg']['license']) == ('cc-by-nc-4.0', 'cc-by-nc-4.0')


def test_a_licence_in_several_lines_is_none(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match='is no name of one'):
        staged_from(trained, tmp_path / 'staged', license='mit\nevil: true')


def test_a_run_without_weights_can_go_on(run: Path, tmp_path: Path) -> None:
    shutil.rmtree(run / 'best')
    with pytest.raises(ValueError, match=r'a run without a finished epoch \(it lacks best/config.json\): go on with'):
        staged_from(run, tmp_path / 'staged')


def test_an_unfinished_run_says_so(run: Path, tmp_path: Path) -> None:
    config = json.loads((run / 'run.json').read_text())['config']
    change(run / 'run.json', config={**config, 'epochs': 7})
    assert 'The run was staged after 1 of 7 epochs.' in staged_from(run, tmp_path / 'staged').card


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / 'x').mkdir()
    (tmp_path / 'x' / 'pytorch_model.bin').touch()
    with pytest.raises(ValueError, match='pytorch_model.bin, which is not read, since opening it could run code'):
        staged_from(tmp_path / 'x', tmp_path / 'staged')


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match='gone is not a folder: give a run folder'):
        staged_from(tmp_path / 'gone', tmp_path / 'staged')


def test_a_staged_folder_is_not_staged_again(staged: staging.Staged, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match='is staged already: publish it as it is'):
        staged_from(staged.path, tmp_path / 'again')


def test_weights_of_another_network_are_refused(run: Path, tmp_path: Path) -> None:
    tensors = load_file(run / 'best' / 'model.safetensors')
    tensors['other'] = tensors.pop('conv_stem.weight')
    save_file(tensors, run / 'best' / 'model.safetensors')
    with pytest.raises(ValueError, match=r"it lacks \['conv_stem.weight'\].*has besides \['other'\]"):
        staged_from(run, tmp_path / 'staged')


def test_weights_of_other_shapes_are_refused(run: Path, tmp_path: Path) -> None:
    tensors = load_file(run / 'best' / 'model.safetensors')
    tensors['conv_stem.weight'] = tensors['conv_stem.weight'][:1].contiguous()
    save_file(tensors, run / 'best' / 'model.safetensors')
    with pytest.raises(ValueError, match=r"has in other shapes \['conv_stem.weight'\]"):
        staged_from(run, tmp_path / 'staged')


def test_broken_weights_are_refused(run: Path, tmp_path: Path) -> None:
    with open(run / 'best' / 'model.safetensors', 'r+b') as file:
        file.truncate(1_000_000)
    with pytest.raises(ValueError, match='model.safetensors cannot be read'):
        staged_from(run, tmp_path / 'staged')


# Whole or not at all --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('kind', ['folder', 'file', 'link'])
def test_nothing_is_overwritten(trained: Path, tmp_path: Path, kind: str) -> None:
    target = tmp_path / 'staged'
    if kind == 'folder':
        target.mkdir()
        (target / 'mine').write_text('mine')
    elif kind == 'file':
        target.write_text('mine')
    else:
        target.symlink_to(trained)
    with pytest.raises(ValueError, match='staged exists and is not an empty folder'):
        staged_from(trained, target)


def test_an_empty_folder_is_filled(trained: Path, tmp_path: Path) -> None:
    (tmp_path / 'staged').mkdir()
    assert sorted(staged_from(trained, tmp_path / 'staged').files) == NAMES


def test_nothing_is_left_after_an_error(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any) -> None:
        assert (tmp_path / '.staged.unfinished' / 'growth.png').exists()
        raise OSError('No space left on device')

    monkeypatch.setattr(staging, 'write_card', fail)
    with pytest.raises(OSError, match='No space left'):
        staged_from(trained, tmp_path / 'staged')
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_is_cleared(trained: Path, tmp_path: Path) -> None:
    (tmp_path / '.staged.unfinished').mkdir()
    (tmp_path / '.staged.unfinished' / 'pytorch_model.bin').touch()
    staged_from(trained, tmp_path / 'staged')
    assert [path.name for path in tmp_path.iterdir()] == ['staged']
    assert sorted(path.name for path in (tmp_path / 'staged').iterdir()) == NAMES


def staged_devnet(folder: Path) -> Path:
    """A network that has no registered name of its own, staged."""
    return model_staged(timm_devnet.grow(timm.create_model('test_resnet', num_classes=3), 'wa8'), folder).path


def test_any_grown_network_is_staged_and_found_right(tmp_path: Path) -> None:
    folder = staged_devnet(tmp_path / 'staged')
    assert find_problems(folder) == []
    assert load(folder).growth == 'wa8'


@pytest.mark.parametrize(
    ('change_to', 'message'),
    [
        ({'model_args': {'source': 'nowhere'}}, "source is one of timm's architectures"),
        ({'model_args': {'source': 'devnet'}}, 'has grown already'),
        ({'pretrained_cfg': {'first_conv': 'conv_stem'}}, 'first_conv of devnet is'),
        ({'pretrained_cfg': {'classifier': 'layer4'}}, 'but the network has fc'),
    ],
)
def test_what_a_staged_one_says_wrongly_is_found(change_to: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = staged_devnet(tmp_path / 'staged') / 'config.json'
    config = json.loads(path.read_text())
    for section, values in change_to.items():
        config[section].update(values)
    path.write_text(json.dumps(config))
    assert any(message in problem for problem in find_problems(path.parent))
