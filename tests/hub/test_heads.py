"""Networks of several heads: staged, pushed, verified, pulled, loaded by timm and by transformers."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file

import timm_devnet
from hub.checks import check_folder, find_problems
from hub.publishing import describe, pull, push, verify
from hub.staging import stage
from tests.hub.runs import train_run
from tests.hub_server import HubServer


@pytest.fixture(scope='module')
def chain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train on three colours, then on two of them under other names."""
    root = tmp_path_factory.mktemp('chain')
    first = train_run(root)
    for split in ('train', 'val'):
        for old, new in (('green', 'leaf'), ('red', 'rose')):
            shutil.copytree(root / 'colours' / split / old, root / 'hues' / split / new)
    (root / 'second').mkdir()
    return train_run(
        root / 'second',
        model=str(first),
        pretrained_path=None,
        grow=('wa8',),
        keep_heads=True,
        data_dir=str(root / 'hues'),
        experiment='second',
    )


@pytest.fixture(scope='module')
def from_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train from the base, whose own classifier is kept."""
    return train_run(tmp_path_factory.mktemp('base'), model='tf_efficientnet_lite0', grow=('wa16',), keep_heads=True)


def logits(model: Any) -> dict[str | None, torch.Tensor]:
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return timm_devnet.forward_heads(model.eval(), images)


def load(place: object) -> Any:
    return timm.create_model(str(place), pretrained=True)


def test_all_heads_come_back_from_the_hub(hub: HubServer, chain: Path, tmp_path: Path) -> None:
    push(chain, 'me/tasks', license='mit')
    assert verify('me/tasks') == []
    wanted = logits(load(f'local-dir:{chain / "best"}'))
    assert list(wanted) == [None, 'colours']
    pulled = pull('me/tasks', local_dir=tmp_path / 'copy')
    assert pulled.facts.heads == {'colours': 3}
    assert 'heads       colours (3 classes)' in describe(pulled.facts)
    for place in ('hf-hub:me/tasks', f'local-dir:{pulled.path}'):
        found = logits(load(place))
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert load('hf-hub:me/tasks').kept['colours'].label_names == ('blue', 'green', 'red')


def test_the_card_lists_the_heads_and_how_they_are_asked(
    chain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = stage(chain, tmp_path / 'staged', license='mit', say=lambda line: None).path
    card = (folder / 'README.md').read_text()
    section = card.partition('## Earlier tasks')[2].partition('\n## ')[0]
    [task] = json.loads((chain / 'run.json').read_text())['earlier']
    assert '`colours`' in section and '`blue`, `green`, `red`' in section
    assert f'{task["history"][-1]:.2f} %' in section and f'{task["after"]:.2f} %' in section
    [code] = re.findall(r'```python\n(.*?)```', section, re.DOTALL)
    exec(code.replace('hf-hub:ORG/NAME', f'local-dir:{folder}'), {})
    assert capsys.readouterr().out == "{None: (2, 2), 'colours': (2, 3)} GrownEfficientNet\n"


def test_a_delta_holds_the_heads_and_gives_them_back(hub: HubServer, from_base: Path, tmp_path: Path) -> None:
    base = from_base.parent.parent / 'base.safetensors'
    push(from_base, 'me/delta', delta=True, base_file=base, license='mit')
    pulled = pull('me/delta', local_dir=tmp_path / 'copy', base_file=base)
    ours, theirs = (load_file(folder / 'model.safetensors') for folder in (pulled.path, from_base / 'best'))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert torch.equal(ours['heads.in1k.weight'], load_file(base)['classifier.weight'])
    assert pulled.facts.heads == {'in1k': 1000}


def test_a_delta_of_a_chain_has_no_base_for_others(chain: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match='a delta stands on a base that others can get'):
        stage(chain, tmp_path / 'staged', license='mit', delta=True)


def test_transformers_loads_a_network_of_several_heads(chain: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip('transformers')
    folder = stage(chain, tmp_path / 'staged', license='mit', say=lambda line: None).path
    model = transformers.AutoModelForImageClassification.from_pretrained(folder).eval()
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(model(images).logits, logits(load(f'local-dir:{folder}'))[None])
    assert model.timm_model.kept.keys() == {'colours'}


@pytest.mark.parametrize(
    ('heads', 'message'),
    [
        ({'colours': {'num_classes': 3, 'steps': 0, 'file': 'evil'}}, 'model_args.heads is an object of at most 100'),
        ({'a.b': {'num_classes': 3, 'steps': 0}}, 'model_args.heads is an object of at most 100'),
        ({'a': {'num_classes': 1, 'steps': 0, 'label_names': ['\x1b[31m']}}, 'model_args.heads is an object'),
        ({'colours': {'num_classes': 3, 'steps': 9}}, 'describes no network'),
        ({'colours': {'num_classes': 4, 'steps': 1}}, 'in other shapes'),
        ({'hues': {'num_classes': 3, 'steps': 1}}, 'lacks tensors of the network: heads.hues'),
        (None, 'model_args.heads is an object'),
    ],
)
def test_heads_that_are_not_there_are_refused(chain: Path, tmp_path: Path, heads: Any, message: str) -> None:
    folder = shutil.copytree(chain / 'best', tmp_path / 'best')
    assert check_folder(folder).heads == {'colours': 3}
    config = json.loads((folder / 'config.json').read_text())
    config['model_args']['heads'] = heads
    (folder / 'config.json').write_text(json.dumps(config))
    assert any(message in problem for problem in find_problems(folder))
