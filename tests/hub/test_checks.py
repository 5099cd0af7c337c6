"""Folders with one thing wrong each: every one is refused, and the message names it."""

import json
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.models import PretrainedCfg, save_for_hf

from hub.checks import check_folder, find_problems
from hub.configuration import PRETRAINED_CFG, SOURCES
from hub.header import read_header
from hub.tensors import check_values
from tests.hub.staged import (
    BASE,
    PNG,
    one_gib_more,
    read_config,
    restate,
    write_alexnet_delta,
    write_config,
    write_staged,
)

WEIGHTS = 'model.safetensors'


@pytest.fixture
def staged(tmp_path: Path) -> Path:
    """Write a whole published folder."""
    write_staged(tmp_path / 'staged')
    return tmp_path / 'staged'


@pytest.fixture
def delta(tmp_path: Path) -> Path:
    """Write a published folder that holds only what differs from the base."""
    write_alexnet_delta(tmp_path / 'delta')
    return tmp_path / 'delta'


def change(folder: Path, path: str, value: Any) -> None:
    """Set a field of config.json, by its names joined with slashes; `...` removes it."""
    config = read_config(folder)
    *outer, name = path.split('/')
    place = config
    for key in outer:
        place = place[key]
    if value is ...:
        del place[name]
    else:
        place[name] = value
    write_config(folder, config)


def change_tensors(folder: Path, edit: Callable[[dict[str, Any]], Any], metadata: dict[str, str] | None = None) -> None:
    """Change the tensors, and state the right checksum."""
    tensors = load_file(folder / WEIGHTS)
    edit(tensors)
    save_file(tensors, folder / WEIGHTS, metadata)
    restate(folder)


# What is right --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('storage', ['float32', 'bfloat16'])
def test_a_staged_folder_is_what_it_says(storage: str, tmp_path: Path) -> None:
    write_staged(tmp_path / 'staged', storage)
    facts = check_folder(tmp_path / 'staged')
    assert (facts.architecture, facts.growth) == ('test_efficientnet_wa', 'wa8')
    assert (facts.num_classes, facts.label_names) == (3, ('cat', 'dog', 'emu'))
    assert facts.bytes == (tmp_path / 'staged' / WEIGHTS).stat().st_size
    assert facts.base is not None and facts.base.to_dict() == BASE
    assert (facts.is_delta, facts.storage, facts.remarks) == (False, storage, ())
    assert (facts.dataset, facts.regime, facts.license) == ('digits', 'all', 'apache-2.0')
    assert facts.metrics is not None and facts.metrics['top1'] == 98.2


def test_a_delta_is_the_whole_network(delta: Path) -> None:
    facts = check_folder(delta)
    assert facts.is_delta
    assert facts.parameters == sum(
        parameter.numel() for parameter in timm.create_model('alexnet_wa', growth='wa8', num_classes=3).parameters()
    )
    assert facts.remarks == ('a delta: what it does not hold comes from alexnet.tv_in1k, which was not looked at',)


@pytest.mark.parametrize('name', ['test_efficientnet_wa', 'test_efficientnet', 'test_vit', 'test_convnext'])
@pytest.mark.parametrize('in_chans', [1, 3])
def test_a_folder_that_timm_writes_is_accepted_with_a_remark(name: str, in_chans: int, tmp_path: Path) -> None:
    model: Any = timm.create_model(name, num_classes=5, in_chans=in_chans)
    save_for_hf(model, str(tmp_path), safe_serialization=True)
    facts = check_folder(tmp_path)
    assert facts.architecture == name
    assert facts.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert facts.growth == getattr(model, 'growth', None)
    assert 'no section timm_devnet' in facts.remarks[0]
    assert facts.remarks[1] == 'the classes have no names'


def test_a_runs_own_weights_are_accepted(tmp_path: Path, staged: Path) -> None:
    change(staged, 'timm_devnet', ...)
    for name in ('README.md', 'metrics.csv', 'curves.png', 'growth.png'):
        (staged / name).unlink()
    assert find_problems(staged) == []


@pytest.mark.parametrize('growth', ['wa8', 'norm', 'skip_wa8', 'mwa8_da4'])
def test_every_growth_is_accepted(growth: str, tmp_path: Path) -> None:
    model: Any = timm.create_model('test_efficientnet_wa', growth=growth, num_classes=2)
    save_for_hf(model, str(tmp_path), safe_serialization=True)
    assert check_folder(tmp_path).growth == growth


def test_old_checkpoints_lack_counters(staged: Path) -> None:
    change_tensors(staged, lambda tensors: tensors.pop('bn1.num_batches_tracked'))
    assert find_problems(staged) == []


def test_all_problems_are_listed_and_the_first_is_raised(staged: Path) -> None:
    (staged / 'weights.bin').write_bytes(b'1')
    change(staged, 'num_classes', -1)
    change(staged, 'pretrained_cfg', None)
    problems = find_problems(staged)
    assert len(problems) == 3
    with pytest.raises(ValueError) as caught:
        check_folder(staged)
    assert str(caught.value) == f'{staged}: {problems[0]}'


# Files ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('name', 'message'),
    [
        ('pytorch_model.bin', "'pytorch_model.bin' is a pickle, which can run code"),
        ('Model.PT', "'Model.PT' is a pickle, which can run code"),
        ('predictions.csv', "'predictions.csv' does not belong here; a published folder holds config.json"),
        ('..\\..\\evil', 'does not belong here'),
        ('a\x1b[31m', r"'a.x1b\[31m' does not belong here"),
    ],
)
def test_other_files_are_refused(name: str, message: str, staged: Path) -> None:
    (staged / name).write_bytes(b'1')
    with pytest.raises(ValueError, match=message):
        check_folder(staged)


@pytest.mark.parametrize('name', ['config.json', WEIGHTS, 'README.md', 'metrics.csv'])
def test_a_missing_file_is_named(name: str, staged: Path) -> None:
    (staged / name).unlink()
    with pytest.raises(ValueError, match=name):
        check_folder(staged)


def test_a_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match='is no folder: give one with config.json'):
        check_folder(tmp_path / 'nowhere')


@pytest.mark.parametrize('name', ['config.json', WEIGHTS, 'README.md', 'curves.png'])
def test_a_link_is_refused(name: str, staged: Path, tmp_path: Path) -> None:
    (staged / name).rename(tmp_path / name)
    (staged / name).symlink_to(tmp_path / name)
    with pytest.raises(ValueError, match=f'{name} is a link: put the file itself there'):
        check_folder(staged)


def cached(staged: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Lay a folder out as the Hub's cache does; give the snapshot and the blobs."""
    repository = tmp_path / 'models--me--grown'
    snapshot, blobs = repository / 'snapshots' / ('c' * 40), repository / 'blobs'
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, file in enumerate(sorted(staged.iterdir())):
        file.rename(blobs / str(number))
        (snapshot / file.name).symlink_to(Path('../../blobs') / str(number))
    return snapshot, blobs


def test_a_snapshot_in_the_cache_consists_of_links(staged: Path, tmp_path: Path) -> None:
    snapshot, _ = cached(staged, tmp_path)
    assert find_problems(snapshot, in_cache=True) == []
    assert len(find_problems(snapshot)) == 6


@pytest.mark.parametrize('target', ['/etc/passwd', '../../../other/blobs/1', '../../blobs/../../x', 'config.json'])
def test_a_link_out_of_the_repository_is_refused_in_the_cache_too(target: str, staged: Path, tmp_path: Path) -> None:
    snapshot, _ = cached(staged, tmp_path)
    (tmp_path / 'other' / 'blobs').mkdir(parents=True)
    (tmp_path / 'other' / 'blobs' / '1').write_text('{}')
    (tmp_path / 'x').write_text('{}')
    (snapshot / 'config.json').unlink()
    (snapshot / 'config.json').symlink_to(target)
    with pytest.raises(ValueError, match='config.json is a link that leads out of the blobs of its repository'):
        check_folder(snapshot, in_cache=True)


@pytest.mark.parametrize('name', ['config.json', WEIGHTS])
def test_what_is_no_plain_file_is_not_opened(name: str, staged: Path) -> None:
    (staged / name).unlink()
    os.mkfifo(staged / name)  # who opens it waits for ever
    with pytest.raises(ValueError, match=f'{name} is no file'):
        check_folder(staged)


@pytest.mark.parametrize(
    ('name', 'size'), [('config.json', 100_000_000), ('README.md', 10_000_001), ('metrics.csv', 100_000_001)]
)
def test_a_file_that_is_too_large_is_refused(name: str, size: int, staged: Path) -> None:
    os.truncate(staged / name, size)
    with pytest.raises(ValueError, match=f'{name} has 1 to .* bytes; found {size:,}'):
        check_folder(staged)


def test_an_empty_file_is_refused(staged: Path) -> None:
    (staged / 'README.md').write_bytes(b'')
    with pytest.raises(ValueError, match='README.md has 1 to 10,000,000 bytes; found 0'):
        check_folder(staged)


def test_a_picture_is_a_picture(staged: Path) -> None:
    (staged / 'curves.png').write_bytes(b'<script>')
    with pytest.raises(ValueError, match='curves.png is no picture in PNG format'):
        check_folder(staged)


@pytest.mark.skipif(os.geteuid() == 0, reason='root may read everything')
def test_a_file_that_may_not_be_read_is_named(staged: Path) -> None:
    (staged / WEIGHTS).chmod(0)
    with pytest.raises(ValueError, match=f'{WEIGHTS} cannot be read'):
        check_folder(staged)


def test_a_changed_file_is_told_from_the_published_one(staged: Path) -> None:
    (staged / 'curves.png').write_bytes(PNG + b'another')
    with pytest.raises(ValueError, match='curves.png is not what was published: its SHA-256 is [0-9a-f]{64}, but'):
        check_folder(staged)


def test_changed_weights_are_told_from_the_published_ones(staged: Path) -> None:
    with open(staged / WEIGHTS, 'r+b') as file:
        file.seek(-2, os.SEEK_END)
        file.write(b'\1')
    with pytest.raises(ValueError, match='model.safetensors is not what was published'):
        check_folder(staged)


def test_every_file_has_a_checksum(staged: Path) -> None:
    change(staged, 'timm_devnet/sha256/metrics.csv', ...)
    with pytest.raises(ValueError, match='timm_devnet.sha256 lacks metrics.csv'):
        check_folder(staged)


@pytest.mark.parametrize('name', ['../../etc/passwd', 'README.md', 'report.html'])
def test_checksums_of_other_files_are_refused(name: str, staged: Path) -> None:
    change(staged, f'timm_devnet/sha256/{name}' if '/' not in name else 'timm_devnet/sha256/x', '0' * 64)
    if '/' in name:
        text = (staged / 'config.json').read_text().replace('"x"', json.dumps(name))
        (staged / 'config.json').write_text(text)
    with pytest.raises(ValueError, match=f"sha256 lists '{name}', no file here that needs one"):
        check_folder(staged)


# config.json ----------------------------------------------------------------------------------------------------------

WRONG_FIELDS: list[tuple[str, Any, str]] = [
    ('architecture', 'vgg16_wa20480', r"'vgg16_wa20480' is no model .*; did you mean vgg16_wa2048"),
    ('architecture', 'xyz' * 30, r'is no model that timm or timm_devnet knows'),
    ('architecture', 'vgg16_wa2048.tv_in1k', r'architecture is a text .* of the form'),
    ('architecture', 'hf-hub:me/x', r'architecture is a text .* of the form'),
    ('architecture', ['vgg16'], r'architecture is a text .*; found a list of 1'),
    ('architecture', ..., 'architecture is missing'),
    ('pretrained_cfg', ..., 'pretrained_cfg is missing'),
    ('auto_map', {'AutoModel': 'evil.py'}, "'auto_map': no field that is known; known are architecture"),
    ('num_classes', -1, 'num_classes is a whole number from 0 to 1,000,000; found -1'),
    ('num_classes', 10**12, 'num_classes is a whole number from 0 to 1,000,000; found 1000000000000'),
    ('num_classes', True, 'num_classes is a whole number .*; found true'),
    ('num_classes', 3.0, 'num_classes is a whole number .*; found 3.0'),
    ('num_classes', '3', "num_classes is a whole number .*; found '3'"),
    ('num_classes', 4, 'num_classes is 4, but pretrained_cfg.num_classes is 3'),
    ('num_features', 7, 'num_features is 7, but the network has'),
    ('label_names', ['cat'], 'num_classes is 3, but label_names has 1 names'),
    ('label_names', ['cat', 'dog', 'a\x1b[31m'], 'label_names is a list of .*; found a list of 3'),
    ('label_names', [1, 2, 3], 'label_names is a list of .*; found a list of 3'),
    ('global_pool', 'max', 'global_pool and model_args.global_pool differ'),
    ('model_args/growth', 'da1000000_da1000000', 'describes a network of 1,0.* numbers, model.safetensors holds 1'),
    ('model_args/growth', 'wa1000000000000', "Unknown growth 'wa1000000000000'"),
    ('model_args/growth', 'r9u5', 'cannot be built .Growth r9u5 reads level 9'),
    ('model_args/growth', 'wa1_' * 50 + 'wa1', 'model_args.growth is a text of 1 to 200'),
    ('model_args/growth', '_'.join(['r1r1r1r1r1r1u0_da1'] * 5), 'A growth adds at most 1000 layers'),
    ('model_args/growth', '_'.join(['wa'] * 66), 'written out has at most 200 characters'),
    ('model_args/growth', 5, 'model_args.growth is a text .*; found 5'),
    ('model_args/scale_init', -1, 'model_args.scale_init is null or a number from 0 to 1e.06; found -1'),
    ('model_args/scale_init', 'inf', 'model_args.scale_init is null or a number'),
    ('model_args/new_init', 'pickle', "model_args.new_init is 'random' or 'copy'; found 'pickle'"),
    ('model_args/settled', 10**9, 'model_args.settled is a whole number from 0 to 200'),
    ('model_args/settled', 2, 'settled is 0 to 1, the steps of growth wa8'),
    ('model_args/in_chans', 10**9, 'model_args.in_chans is a whole number from 1 to 1,024; found 1000000000'),
    ('model_args/in_chans', False, 'model_args.in_chans is a whole number from 1 to 1,024; found false'),
    ('model_args/in_chans', 1, 'the network reads 1 channels, but pretrained_cfg.input_size is'),
    ('model_args/img_size', 10**9, 'model_args.img_size is a whole number from 1 to 2,048 or'),
    ('model_args/img_size', 64, 'cannot be built .*img_size'),
    ('model_args/global_pool', 'no', 'global_pool and model_args.global_pool differ'),
    ('model_args/num_classes', 4, 'num_classes is 3, but model_args.num_classes is 4'),
    ('model_args/delta_of', {'model': 'x'}, 'model_args.delta_of: A base is a dict of model, revision and tensors'),
    *(
        (f'model_args/{name}', 'x', f"model_args.'{name}': no field that is known")
        for name in ('pretrained_cfg', 'checkpoint_path', 'device', 'cache_dir', 'features_only', 'pretrained', 'url')
    ),
    ('model_args', [], 'model_args is an object; found a list of 0'),
    *(
        (f'pretrained_cfg/{name}', 'x', f"pretrained_cfg.{name} is 'x'; the weights are model.safetensors")
        for name in SOURCES
    ),
    ('pretrained_cfg/custom_load', True, 'pretrained_cfg.custom_load is False; found true'),
    ('pretrained_cfg/evil', 1, "pretrained_cfg.'evil': no field that is known"),
    ('pretrained_cfg/input_size', [3, 10**9, 64], r'pretrained_cfg.input_size is \[channels, height, width\]'),
    ('pretrained_cfg/input_size', [3, 64], r'pretrained_cfg.input_size is \[channels, height, width\]'),
    ('pretrained_cfg/input_size', [True, 64, 64], r'pretrained_cfg.input_size is \[channels, height, width\]'),
    ('pretrained_cfg/input_size', [1, 64, 64], 'the network reads 3 channels, but pretrained_cfg.input_size is'),
    ('pretrained_cfg/fixed_input_size', 1, 'pretrained_cfg.fixed_input_size is true or false; found 1'),
    ('pretrained_cfg/interpolation', '../x', "pretrained_cfg.interpolation is 'bicubic' or"),
    ('pretrained_cfg/crop_pct', 0, 'pretrained_cfg.crop_pct is a number from 0.01 to 10; found 0'),
    ('pretrained_cfg/crop_mode', 'x', "pretrained_cfg.crop_mode is 'center' or 'squash' or 'border'"),
    ('pretrained_cfg/mean', [1e9] * 3, 'pretrained_cfg.mean is a list of'),
    ('pretrained_cfg/mean', [0.5, 0.5], 'pretrained_cfg.mean has 2 numbers, not 1 or 3'),
    ('pretrained_cfg/std', [0, 0, 0], 'pretrained_cfg.std is a list of'),
    ('pretrained_cfg/num_classes', 1000, 'num_classes is 3, but pretrained_cfg.num_classes is 1,000'),
    ('pretrained_cfg/label_offset', 1, 'pretrained_cfg.label_offset is null or 0; found 1'),
    ('pretrained_cfg/classifier', 'conv_stem', "pretrained_cfg.classifier of .* is 'classifier', not conv_stem"),
    ('pretrained_cfg/first_conv', 'bn1', "pretrained_cfg.first_conv of .* is 'conv_stem', not bn1"),
    ('pretrained_cfg/architecture', 'vgg16', 'pretrained_cfg.architecture is another than architecture'),
    ('pretrained_cfg/description', 'a\x9b31m', 'pretrained_cfg.description is null or a text'),
    ('timm_devnet/format', 2, 'timm_devnet.format is 1, the format that this version of timm_devnet reads; found 2'),
    ('timm_devnet/format', True, 'timm_devnet.format is 1, .*; found true'),
    ('timm_devnet/version', ..., 'timm_devnet.version is missing'),
    ('timm_devnet/growth', 'wa9', "timm_devnet.growth is 'wa9', but the network has 'wa8'"),
    ('timm_devnet/growth', None, "timm_devnet.growth is null, but the network has 'wa8'"),
    ('timm_devnet/growth', 'pickle', "timm_devnet.growth: Unknown growth 'pickle'"),
    ('timm_devnet/base', {**BASE, 'url': 'http://x'}, 'timm_devnet.base: A base is a dict of model, revision'),
    ('timm_devnet/base', {**BASE, 'tensors': 'x'}, 'timm_devnet.base: The checksum of the tensors'),
    ('timm_devnet/base', {**BASE, 'model': '../x'}, 'timm_devnet.base: The base of a delta checkpoint is a name of'),
    ('timm_devnet/base', None, 'names another base than config.json'),
    ('timm_devnet/delta', 1, 'timm_devnet.delta is true or false; found 1'),
    ('timm_devnet/delta', True, 'timm_devnet.base and model_args.delta_of name the same base'),
    ('timm_devnet/storage', 'float64', "timm_devnet.storage is 'float32' or 'bfloat16'; found 'float64'"),
    ('timm_devnet/storage', 'bfloat16', 'timm_devnet.storage is bfloat16, but the file has float32'),
    ('timm_devnet/license', None, 'timm_devnet.license is a text of 1 to 100 printable characters; found null'),
    ('timm_devnet/dataset', 'a\x1b[2J', 'timm_devnet.dataset is null or a text of 1 to 200 printable characters'),
    ('timm_devnet/metrics', {'top1': 101}, 'timm_devnet.metrics.top1 is a percentage, from 0 to 100; found 101'),
    ('timm_devnet/metrics', {'top1': '98'}, 'timm_devnet.metrics is null or an object'),
    ('timm_devnet/sha256', {WEIGHTS: 'x'}, 'timm_devnet.sha256 is an object'),
    ('timm_devnet/extra', 1, "timm_devnet.'extra': no field that is known"),
    ('timm_devnet', [], 'timm_devnet is an object; found a list of 0'),
]


@pytest.mark.parametrize(
    ('path', 'value', 'message'), WRONG_FIELDS, ids=[f'{path}-{str(value)[:20]}' for path, value, _ in WRONG_FIELDS]
)
def test_a_wrong_field_is_refused(path: str, value: Any, message: str, staged: Path) -> None:
    change(staged, path, value)
    with pytest.raises(ValueError, match=message):
        check_folder(staged)


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        ('[]', 'config.json is an object; found a list of 0'),
        ('{"a": ' * 100_000, 'config.json is nested at most 16 deep'),
        ('{"architecture": "vgg16", "architecture": "alexnet"}', "config.json has the key 'architecture' twice"),
        ('{"num_classes": 1e999}', 'config.json has a number that is too large'),
        ('architecture: vgg16', 'config.json is no JSON'),
    ],
)
def test_a_config_that_is_none_is_refused(content: str, message: str, staged: Path) -> None:
    (staged / 'config.json').write_text(content)
    with pytest.raises(ValueError, match=message):
        check_folder(staged)


def test_every_field_of_timms_pretrained_cfg_is_known() -> None:
    assert {*PRETRAINED_CFG, *SOURCES} == set(PretrainedCfg.__dataclass_fields__)


def test_a_growth_argument_is_none_of_a_plain_networks(tmp_path: Path) -> None:
    save_for_hf(timm.create_model('test_vit', num_classes=2), str(tmp_path), safe_serialization=True)
    change(tmp_path, 'model_args/growth', 'wa8')
    with pytest.raises(ValueError, match="model_args.'growth': no field that is known"):
        check_folder(tmp_path)


# Tensors --------------------------------------------------------------------------------------------------------------

HEAD = 'classifier.weight'
WRONG_TENSORS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    'unknown': (lambda t: t.update(evil=torch.ones(1)), 'has tensors that the network has not: evil'),
    'missing': (lambda t: t.pop('conv_stem.weight'), 'lacks tensors of the network: conv_stem.weight'),
    'unit missing': (
        lambda t: t.pop('grown.conv_head_1.conv.weight'),
        'lacks tensors of the network: grown.conv_head_1',
    ),
    'counter of units': (
        lambda t: t.pop('grown.conv_head_1.norm.num_batches_tracked'),
        'lacks tensors of the network: grown.conv_head_1.norm.num_batches_tracked',
    ),
    'shape': (lambda t: t.update({HEAD: t[HEAD].T.contiguous()}), rf'in other shapes .*: {HEAD} \[\d+, 3\], not \[3, '),
    'classes': (lambda t: t.update({HEAD: torch.ones(4, 9)}), rf'in other shapes .*: {HEAD} \[4, 9\], not \[3, '),
    'whole numbers': (lambda t: t.update({HEAD: t[HEAD].int()}), f'in other types .*: {HEAD} I32'),
    'fractions': (lambda t: t.update({'bn1.num_batches_tracked': torch.tensor(0.0)}), 'in other types .*tracked F32'),
    'nan': (lambda t: t[HEAD][0].fill_(float('nan')), f'infinite or not a number in {HEAD}'),
    'infinite': (lambda t: t[HEAD][2, -1:].fill_(-float('inf')), f'infinite or not a number in {HEAD}'),
    'half': (lambda t: t.update({HEAD: t[HEAD].half()}), 'storage is float32, but the file has float16, float32'),
    'nothing': (lambda t: t.clear(), 'model.safetensors holds 0'),
}


@pytest.mark.parametrize('case', WRONG_TENSORS)
def test_wrong_tensors_are_refused(case: str, staged: Path) -> None:
    edit, message = WRONG_TENSORS[case]
    change_tensors(staged, edit)
    assert re.search(message, '\n'.join(find_problems(staged)))


@pytest.mark.parametrize('place', [0, 2**20 - 1, 2**20, 2**21])
def test_a_number_that_is_none_is_found_wherever_it_stands(place: int, tmp_path: Path) -> None:
    numbers = torch.zeros(2**21 + 1)  # read in three pieces, the last of one number
    numbers[place] = float('nan')
    save_file({'numbers': numbers}, tmp_path / WEIGHTS)
    problems = list(check_values(tmp_path / WEIGHTS, read_header(tmp_path / WEIGHTS)))
    assert problems == ['model.safetensors has numbers that are infinite or not a number in numbers']


def test_errors_of_others_are_quoted_printable(staged: Path) -> None:
    change(staged, 'timm_devnet/base', {**BASE, 'model': 'a\0\x1b[2J'})
    (problem,) = find_problems(staged)
    assert problem.isprintable() and r'\x1b[2J' in problem


def test_the_largest_number_is_one(staged: Path) -> None:
    change_tensors(staged, lambda tensors: tensors[HEAD].fill_(torch.finfo(torch.float32).max))
    assert find_problems(staged) == []


@pytest.mark.parametrize('dtype', ['bfloat16', 'float16'])
def test_numbers_of_16_bits_are_looked_at_too(dtype: str, staged: Path) -> None:
    change(staged, 'timm_devnet', ...)
    tensors = {
        name: tensor.to(getattr(torch, dtype)) if tensor.is_floating_point() else tensor
        for name, tensor in load_file(staged / WEIGHTS).items()
    }
    save_file(tensors, staged / WEIGHTS)
    assert find_problems(staged) == []
    tensors[HEAD][0, 0] = float('nan')
    save_file(tensors, staged / WEIGHTS)
    with pytest.raises(ValueError, match=f'infinite or not a number in {HEAD}'):
        check_folder(staged)


@pytest.mark.parametrize(
    ('name', 'text', 'message'),
    [
        ('growth', 'wa9', "the metadata of model.safetensors tells of another growth, 'wa9'"),
        ('base', json.dumps({**BASE, 'model': 'vgg16'}), 'names another base than config.json'),
        ('base', '[' * 100_000, 'base in the metadata of model.safetensors is nested at most 16 deep'),
    ],
)
def test_the_metadata_tells_the_same(name: str, text: str, message: str, staged: Path) -> None:
    change_tensors(staged, lambda tensors: None, {name: text})
    with pytest.raises(ValueError, match=message):
        check_folder(staged)


@pytest.mark.parametrize(
    ('edit', 'message'),
    [
        (lambda t: t.pop('head.fc.bias'), 'lacks the classifier, which every delta checkpoint holds: head.fc.bias'),
        (
            lambda t: t.pop('grown.fc7_1.fc.weight'),
            'that its base alexnet.tv_in1k does not have either: grown.fc7_1.fc',
        ),
        (lambda t: t.update({'features.0.weight': torch.ones(1, 3, 11, 11)}), 'in other shapes .*features.0.weight'),
        (lambda t: t.update(evil=torch.ones(1)), 'has tensors that the network has not: evil'),
    ],
)
def test_a_delta_is_completed_by_its_base_alone(edit: Callable[[Any], Any], message: str, delta: Path) -> None:
    change_tensors(delta, edit)
    with pytest.raises(ValueError, match=message):
        check_folder(delta)


def set_base(folder: Path, base: dict[str, Any]) -> None:
    change(folder, 'timm_devnet/base', base)
    change(folder, 'model_args/delta_of', base)
    change_tensors(folder, lambda tensors: None)


def test_a_base_of_another_architecture_is_refused(delta: Path) -> None:
    set_base(delta, BASE)
    with pytest.raises(ValueError, match=r'lacks tensors that its base test_efficientnet.r160_in1k does not have'):
        check_folder(delta)


def test_a_base_on_the_hub_may_have_anything_but_the_classifier(delta: Path) -> None:
    set_base(delta, {**BASE, 'model': 'hf-hub:me/grown'})
    change_tensors(delta, lambda tensors: tensors.pop('grown.fc7_1.fc.weight'))
    assert find_problems(delta) == []


def test_a_delta_without_its_section_is_known_by_what_it_lacks(delta: Path) -> None:
    change(delta, 'timm_devnet', ...)
    facts = check_folder(delta)
    assert facts.is_delta and facts.base is not None and facts.base.model == 'alexnet.tv_in1k'


def test_a_whole_checkpoint_may_name_what_it_stood_on(staged: Path) -> None:
    change(staged, 'model_args/delta_of', BASE)
    assert not check_folder(staged).is_delta


# Bounds ---------------------------------------------------------------------------------------------------------------


def test_a_terabyte_is_refused_without_taking_memory(staged: Path) -> None:
    change(staged, 'model_args/growth', 'da1000000_da1000000')
    change(staged, 'timm_devnet/growth', 'da1000000_da1000000')
    change(staged, 'num_features', ...)
    with one_gib_more(), pytest.raises(ValueError, match='a network of 1,000,.* numbers, model.safetensors holds'):
        check_folder(staged)


def test_a_growth_that_multiplies_is_refused_at_once(staged: Path) -> None:
    change(staged, 'model_args/growth', '_'.join(['r1r1r1r1r1r1r1r1u0_da1'] * 8))  # would add 8^8 layers
    started = time.process_time()
    with pytest.raises(ValueError, match='A growth adds at most 1000 layers'):
        check_folder(staged)
    assert time.process_time() - started < 5
