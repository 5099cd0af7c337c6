"""Thousands of broken folders: each is refused with a ValueError in bounded time and memory, or loads as what it says.

`FUZZ_PAIRS=50000 pytest tests/hub/test_fuzz.py` tries more of them.
"""

import datetime
import hashlib
import json
import os
import struct
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from hub.checks import Facts, check_folder
from tests.hub.staged import one_gib_more, write_alexnet_delta, write_staged

PAIRS = int(os.environ.get('FUZZ_PAIRS', '2000'))

# Values as they are written in JSON, so that they need not be ones that Python would write.
TEXTS = [
    *('', 'pickle', '../../etc/passwd', '/etc/passwd', 'file:///etc/passwd', 'http://127.0.0.1:9/weights.bin'),
    *('hf-hub:evil/weights', 'local-dir:/tmp', 'vgg16', 'vit_7b_patch16_dinov3', 'alexnet_wa2048', 'no_such_model'),
    *('wa1000000', 'wa1000000000000', 'wa16', 'norm', 'skip', 'da1000000' + '_da1000000' * 18, 'wa_' * 60 + 'wa'),
    *('r1r1r1r1r1r1r1r1u0_da1_' * 8 + 'wa1', 'r999u5', 'r-1u5', 'wa' * 90, 'random', 'copy', 'avg', 'catavgmax', 'max'),
    *(
        '\x1b[31mred',
        'a\0b',
        '\x9b1m',
        '\u202egnp.exe',
        'é' * 50,
        'a' * 150,
        'a' * 3_000,
        '0' * 64,
        '0' * 40,
        '1',
        'nan',
    ),
    *(
        'F32',
        'F64',
        'BF16',
        'I64',
        'F4',
        'C64',
        'float32',
        'features.0',
        'classifier.weight',
        '__metadata__',
        '__class__',
    ),
    *('grown.conv_head_1.conv.weight', 'head.fc.weight', 'bilinear', 'center', 'apache-2.0', 'test_efficientnet'),
]
NUMBERS = [
    *('0', '1', '-1', '2', '3', '8', '8.0', '1.5', '-0.0', '1e-300', '1e300', '1e999', '-1e999', 'NaN', 'Infinity'),
    *(
        '-Infinity',
        '255',
        '256',
        '2047',
        '2147483648',
        '4294967297',
        '1000000000',
        '1000000000000',
        '9223372036854775807',
    ),
    *('18446744073709551616', '1' + '0' * 400, '1' * 5_000, '0.' + '1' * 5_000, '007', '0x10', '1e', '+1'),
]
CONTAINERS = [
    *(
        '[]',
        '{}',
        '[[]]',
        '[0]',
        '[-1]',
        '[1, 2]',
        '[3, 64, 64]',
        '[1000000000, 1000000000]',
        '[4294967296, 4294967296]',
    ),
    *('[0, 9223372036854775807]', '[0, 0]', '[8, 4]', '[NaN]', '[null]', '["a"]', '["cat", "dog", "emu"]', '[true]'),
    *('{"a": 1, "a": 2}', '{"url": "http://127.0.0.1:9/"}', '{"__metadata__": {}}', '{"": ""}', '{"top1": 1e6}'),
    *('[' * 100_000 + ']' * 100_000, '{"a":' * 100_000 + '1' + '}' * 100_000, '[' * 50_000, '[[[[[[[[[[[[[[[[[[[[]]]]'),
    *(
        '[' + '0,' * 20_000 + '0]',
        '"\\ud800"',
        '"\\ud83d\\ude00"',
        '"\\u0000"',
        '"unended',
        'null',
        'true',
        'false',
        '?',
    ),
]
HOSTILE = [*map(json.dumps, TEXTS), *NUMBERS, *CONTAINERS]
KEYS = [
    *('url', 'file', 'state_dict', 'hf_hub_id', 'hf_hub_filename', 'source', 'custom_load', 'pretrained_cfg', 'device'),
    *('checkpoint_path', 'cache_dir', 'pretrained', 'features_only', 'scriptable', 'act_layer', 'auto_map', 'growth'),
    *(
        'in_chans',
        'img_size',
        'num_classes',
        'global_pool',
        'delta_of',
        'settled',
        'scale_init',
        'label_offset',
        'dtype',
    ),
    *('__metadata__', 'grown.x', '', 'a' * 1_000, 'shape', 'fixed_input_size', 'kwargs', 'drop_rate', 'first_conv'),
]
PLACEHOLDER = '@hostile@'


@dataclass(frozen=True)
class Pair:
    """A config.json and a model.safetensors in parts."""

    config: bytes = field(repr=False)  # the folder of a failed test is kept
    length: int
    header: bytes = field(repr=False)
    data: bytes = field(repr=False)

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:  # hypothesis would print it all, megabytes
        printer.text(repr(self))

    def write(self, folder: Path, stated: str | None) -> None:
        """Write both; replace the checksum that config.json stated by the right one, if told which that was."""
        weights = struct.pack('<Q', self.length) + self.header + self.data
        config = self.config
        if stated:
            config = config.replace(stated.encode(), hashlib.sha256(weights).hexdigest().encode())
        (folder / 'config.json').write_bytes(config)
        (folder / 'model.safetensors').write_bytes(weights)


def read_pair(folder: Path) -> Pair:
    weights = (folder / 'model.safetensors').read_bytes()
    length = int.from_bytes(weights[:8], 'little')
    return Pair((folder / 'config.json').read_bytes(), length, weights[8 : 8 + length], weights[8 + length :])


@st.composite
def bytes_changed(draw: st.DrawFn, content: bytes) -> bytes:
    """Bytes flipped, inserted, left out or cut off."""
    place = draw(st.integers(0, len(content)))
    kind = draw(st.sampled_from(['flip', 'insert', 'leave out', 'cut off', 'repeat']))
    if kind == 'flip':
        some = draw(st.binary(min_size=1, max_size=3))
        return content[:place] + some + content[place + len(some) :]
    if kind == 'insert':
        return (
            content[:place]
            + draw(st.sampled_from([b'\0', b'"', b'{', b'[', b',', b'\\', b'\xff', b' ', b'9']))
            + content[place:]
        )
    if kind == 'leave out':
        return content[:place] + content[place + draw(st.integers(1, 8)) :]
    if kind == 'cut off':
        return content[:place]
    return content[:place] + content[max(0, place - draw(st.integers(1, 300))) :]


@st.composite
def json_changed(draw: st.DrawFn, content: bytes) -> bytes:
    """A value at some path replaced by a hostile one, a key added, left out, renamed or there twice."""
    try:
        tree = json.loads(content)
    except (ValueError, RecursionError):  # changed before
        return draw(bytes_changed(content))
    places = list(_containers(tree))
    if not places:
        return draw(bytes_changed(content))
    place = places[draw(st.integers(0, len(places) - 1))]
    kind = draw(st.sampled_from(['replace', 'replace', 'replace', 'add', 'leave out', 'rename', 'twice']))
    hostile = draw(st.sampled_from(HOSTILE))
    keys = list(place) if isinstance(place, dict) else list(range(len(place)))
    if kind == 'add' or not keys:
        if isinstance(place, dict):
            place[draw(st.sampled_from(KEYS))] = PLACEHOLDER
        else:
            place.append(PLACEHOLDER)
    else:
        key = keys[draw(st.integers(0, len(keys) - 1))]
        if kind == 'replace':
            place[key] = PLACEHOLDER
        elif kind == 'twice' and isinstance(place, dict):
            place[PLACEHOLDER] = place[key]
            return json.dumps(tree).replace(json.dumps(PLACEHOLDER), json.dumps(key)).encode()
        else:
            value = place.pop(key)
            if kind == 'rename' and isinstance(place, dict):
                place[draw(st.sampled_from(KEYS))] = value
    return json.dumps(tree).replace(json.dumps(PLACEHOLDER), hostile).encode()


def _containers(tree: Any) -> Iterator[Any]:
    if isinstance(tree, dict | list):
        yield tree
        for value in tree.values() if isinstance(tree, dict) else tree:
            yield from _containers(value)


@st.composite
def tensors_changed(draw: st.DrawFn, header: bytes) -> bytes:
    """Entries of a header changed as one who knows the format would: offsets, shapes, types and names."""
    try:
        tree = json.loads(header)
        names = [name for name in tree if name != '__metadata__']
        one, other = (names[draw(st.integers(0, len(names) - 1))] for _ in range(2))
        entry, kind = tree[one], draw(st.integers(0, 6))
        if kind == 0:
            tree[one], tree[other] = tree[other], tree[one]
        elif kind == 1:
            entry['data_offsets'] = tree[other]['data_offsets']
        elif kind == 2:
            entry['shape'] = draw(st.permutations(entry['shape'])) + draw(st.sampled_from([[], [1], [0], [1, 1, 1]]))
        elif kind == 3:
            entry['dtype'] = draw(st.sampled_from(['F32', 'I32', 'F16', 'BF16', 'U8', 'F64', 'BOOL', 'F8_E4M3']))
        elif kind == 4:
            entry['data_offsets'] = [value + draw(st.integers(-8, 8)) for value in entry['data_offsets']]
        elif kind == 5:
            tree[f'{other}{draw(st.sampled_from(["x", ".y", "/../z", chr(27)]))}'] = tree.pop(one)
        else:
            size = draw(st.sampled_from([1, 2**31, 2**33, 2**62]))
            entry['shape'] = [size, *entry['shape']]
    except (ValueError, RecursionError, TypeError, KeyError, IndexError, AttributeError):  # changed before
        return draw(bytes_changed(header))
    return json.dumps(tree).encode()


@st.composite
def changed(draw: st.DrawFn, pair: Pair) -> Pair:
    """One to three changes."""
    config, length, header, data = pair.config, pair.length, pair.header, pair.data
    for _ in range(draw(st.sampled_from([1, 1, 1, 2, 3]))):
        kind = draw(st.integers(0, 9))
        if kind < 4:
            config = draw(json_changed(config) if kind else bytes_changed(config))
        elif kind < 8:
            header = draw((bytes_changed, json_changed, tensors_changed, tensors_changed)[kind - 4](header))
            header += b' ' * draw(st.sampled_from([0, -len(header) % 8]))
            length = len(header)
        elif kind == 8:
            data = draw(bytes_changed(data))
        else:
            sizes = [0, 1, 8, abs(length - 1), length + 1, len(header) + len(data), 10**8, 2**40, 2**63, 2**64 - 1]
            length = draw(st.sampled_from(sizes))
    return Pair(config, length, header, data)


# What config.json may leave out, but never say otherwise than it is.
FIXED = [
    ('num_classes',),
    *(('model_args', name) for name in ('growth', 'in_chans', 'num_classes', 'img_size', 'delta_of')),
    *(('pretrained_cfg', name) for name in ('num_classes', 'custom_load', 'classifier')),
    *(('timm_devnet', name) for name in ('format', 'delta', 'storage')),
]


def assert_harmless(folder: Path, facts: Facts, was: Pair, now: Pair, truth: Facts) -> None:
    """What was not refused describes the same network, holds its tensors and nothing else, and loads as it stands."""
    config, original = json.loads(now.config), json.loads(was.config)
    for *outer, name in FIXED:
        place = config if not outer else config.get(outer[0], {})
        if place.get(name) is not None:
            assert place[name] == (original if not outer else original[outer[0]])[name], name
    # The argument `growth` decides, so another growth's name of the same old network means the same.
    assert facts.architecture.rpartition('_')[0] == truth.architecture.rpartition('_')[0]
    assert not any(config['pretrained_cfg'].get(name) for name in ('url', 'file', 'hf_hub_id', 'hf_hub_filename'))
    assert (facts.growth, facts.num_classes, facts.parameters) == (truth.growth, truth.num_classes, truth.parameters)
    tensors = load_file(folder / 'model.safetensors')
    assert all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values())
    if facts.is_delta:
        return
    model = timm.create_model(f'local-dir:{folder}', pretrained=True)
    assert type(model).__name__ == 'GrownEfficientNet'
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, tensors.get(name, torch.tensor(0)), rtol=0, atol=0, check_dtype=False)


@pytest.mark.parametrize('restated', [False, True], ids=['as-stated', 'checksum-made-anew'])
@pytest.mark.parametrize('write', [write_staged, write_alexnet_delta], ids=['whole', 'delta'])
def test_a_broken_folder_is_refused(write: Any, restated: bool, tmp_path: Path) -> None:
    folder = tmp_path / 'staged'
    write(folder)
    truth, pair = check_folder(folder), read_pair(folder)
    stated = json.loads(pair.config)['timm_devnet']['sha256']['model.safetensors'] if restated else None
    count: Counter[str] = Counter()

    @settings(
        max_examples=-(-PAIRS // 4),
        derandomize=True,
        database=None,
        deadline=datetime.timedelta(seconds=5),
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(changed(pair))
    def refuse_or_load(now: Pair) -> None:
        now.write(folder, stated)
        try:
            facts = check_folder(folder)
        except ValueError as error:
            count['refused'] += 1
            assert str(error).startswith(f'{folder}: ') and len(str(error)) < 3_000, error
            assert str(error).isprintable(), error
        else:
            count['harmless'] += 1
            assert_harmless(folder, facts, pair, now, truth)

    with one_gib_more():
        refuse_or_load()
    assert count.total() >= PAIRS // 4, count
    assert count['refused'] > count['harmless'] > 0, count
    print(f'{count.total()} pairs: {count["refused"]} refused, {count["harmless"]} load as what they say')
