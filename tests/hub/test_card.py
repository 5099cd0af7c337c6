import ast
import copy
import os
import re
import subprocess
import sys
from html import unescape
from pathlib import Path
from typing import Any

import pytest
import timm
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

from hub.card import name_repository, write_card
from hub.metadata import Subject, describe
from hub.record import Record
from hub.staging import stage
from tests.hub.runs import train_run
from training.config import Config
from training.run_folder import RunFolder

ROOT = Path(__file__).parent.parent.parent
NASTY = [
    'a: b # c',
    '- dash',
    "it's",
    '"quoted"',
    'two\nlines\n---\nthree',
    'carriage\rreturn',
    '日本語 émoji 🌱',
    '<script>alert(1)</script>',
    '![x](http://evil.example/x.png)',
    '[link](http://evil.example)',
    'http://evil.example',
    'a|b|c',
    '`tick` ``two``',
    '`',
    '*bold* _em_ ~~gone~~',
    '{{ jinja }} {% x %}',
    '%TAG !',
    ' leading and trailing ',
    'right\u202eto left',
    'null\x00 and \x1b[31mred',
    '\udcff not text',
    '&lt;b&gt;',
    '1. item',
    '# heading',
    'yes',
    '1e3',
    '~',
    '',
]
METRICS = {'top1': 90.0, 'top5': 99.0, 'loss': 0.25, 'images': 100, 'epoch': 3}
BASE = {'model': 'tf_efficientnet_lite0.in1k', 'revision': 'c0' * 20, 'tensors': 'ab' * 32}
FACTS: dict[str, Any] = {
    'config': vars(
        Config(data_dir='/home/me/data/SUN397/', model='tf_efficientnet_lite0_wa16', regime='new', epochs=3)
    ),
    'data': {'classes': ['a'], 'train_images': 400, 'val_images': 100, 'fingerprint': '0123456789abcdef'},
    'command': 'train.py --data-dir /home/me/data/SUN397/ --output=/home/me/runs',
    'date': '2026-11-24',
    'versions': {'timm': '1.0.31', 'torch': '2.14.1'},
    'python': '3.11.7',
    'base': {**BASE, 'license': 'apache-2.0', 'origin': 'the Hugging Face Hub'},
}
ROWS = [{'epoch': 3.0, 'val_top1': 90.0, 'val_top5': 99.0, 'val_loss': 0.25}]


@pytest.fixture(scope='module')
def network() -> Any:
    return timm.create_model('tf_efficientnet_lite0_wa', growth='wa16', num_classes=10, device='meta')


@pytest.fixture
def subject(network: Any) -> Subject:
    """Tell of a run of ten classes, from a base on the Hub."""
    return tell_of(network)


def tell_of(network: Any) -> Subject:
    section = {
        'format': 1,
        'version': '0.1.0',
        'growth': 'wa16',
        'base': BASE,
        'delta': False,
        'storage': 'float32',
        'license': 'apache-2.0',
        'dataset': 'SUN397',
        'regime': 'new',
        'metrics': dict(METRICS),
        'sha256': {},
    }
    config = {
        'architecture': 'tf_efficientnet_lite0_wa',
        'num_classes': 10,
        'label_names': [f'class{number}' for number in range(10)],
        'model_args': {'growth': 'wa16', 'in_chans': 3},
        'pretrained_cfg': {'input_size': [3, 64, 64]},
        'timm_devnet': section,
    }
    record = Record(RunFolder(Path('runs/run')), Path('runs/run/best'), copy.deepcopy(FACTS), list(ROWS))
    return Subject(config, network, record, 'apache-2.0')


@pytest.fixture(scope='module')
def card(network: Any) -> str:
    """Write its card once, for tests that only read."""
    return write_card(tell_of(network))


def change(subject: Subject, **values: Any) -> Subject:
    """Change the section timm_devnet."""
    config = {**subject.config, 'timm_devnet': {**subject.section, **values}}
    return Subject(config, subject.network, subject.record, subject.base_license)


def with_config(subject: Subject, **values: Any) -> Subject:
    """Change the run's options."""
    assert subject.record is not None
    subject.record.config.update(values)
    return subject


def metadata(subject: Subject) -> dict[str, Any]:
    """What the Hub reads of it."""
    return ModelCard(f'---\n{describe(subject).to_yaml()}\n---\n').data.to_dict()


def render(card: str) -> str:
    return MarkdownIt('commonmark').enable('table').render(ModelCard(card).text)


def codes(card: str) -> list[str]:
    """What is shown as code inside lines, tables included."""
    return [unescape(text) for text in re.findall('<code>(.*?)</code>', render(card), re.DOTALL)]


# Metadata -------------------------------------------------------------------------------------------------------------


def test_the_hub_learns_what_it_is(subject: Subject) -> None:
    found = metadata(subject)
    assert {name: found[name] for name in found if name != 'model-index'} == {
        'library_name': 'timm',
        'pipeline_tag': 'image-classification',
        'license': 'apache-2.0',
        'base_model': 'timm/tf_efficientnet_lite0.in1k',
        'base_model_relation': 'finetune',
        'tags': ['timm', 'timm_devnet', 'grown', 'developmental-network'],
        'metrics': ['accuracy'],
    }


def test_model_index_has_what_was_measured(subject: Subject) -> None:
    [model] = metadata(subject)['model-index']
    [result] = model['results']
    assert model['name'] == 'run'
    assert result['task'] == {'type': 'image-classification', 'name': 'Image classification'}
    assert result['dataset'] == {'type': 'imagefolder', 'name': 'SUN397', 'split': 'val'}
    assert [(metric['name'], metric['value']) for metric in result['metrics']] == [
        ('Top-1 accuracy', 0.9),
        ('Top-5 accuracy', 0.99),
    ]


def test_what_was_not_measured_is_in_no_index(subject: Subject) -> None:
    found = metadata(change(subject, metrics=None))
    assert not {'model-index', 'metrics'} & found.keys()
    assert 'Nothing was measured' in write_card(change(subject, metrics=None))


def test_multi_label_runs_have_a_mean_average_precision(subject: Subject) -> None:
    several = change(subject, metrics={'map': 71.5, 'loss': 0.1, 'images': 100, 'epoch': 3})
    [metric] = metadata(several)['model-index'][0]['results'][0]['metrics']
    assert (metric['type'], metric['value']) == ('mean_average_precision', 0.715)
    card = write_card(several)
    assert '| mean average precision | 71.50 % |' in card
    assert '.sigmoid()[0]' in card


@pytest.mark.parametrize(
    ('dataset', 'expected'),
    [
        ('hfds/org/flowers', ['org/flowers']),
        ('hfids/org/flowers', ['org/flowers']),
        ('hfds//home/me/flowers', None),
        ('torch/cifar10', None),
        (None, None),
    ],
)
def test_data_sets_are_linked_only_where_the_hub_has_them(subject: Subject, dataset: str, expected: Any) -> None:
    assert metadata(with_config(subject, dataset=dataset)).get('datasets') == expected


@pytest.mark.parametrize(
    ('license', 'expected'),
    [
        ('cc-by-nc-4.0', {'license': 'cc-by-nc-4.0'}),
        (
            'dinov3-license',
            {
                'license': 'other',
                'license_name': 'dinov3-license',
                'license_link': 'https://huggingface.co/timm/tf_efficientnet_lite0.in1k',
            },
        ),
        ('My Own: Licence!', {'license': 'other', 'license_name': 'my-own-licence'}),
    ],
)
def test_licences_are_named_as_the_hub_names_them(subject: Subject, license: str, expected: dict[str, str]) -> None:
    found = metadata(change(subject, license=license))
    assert {name: found[name] for name in expected} == expected


def test_a_base_without_a_repository_is_named_in_words(subject: Subject) -> None:
    other = change(subject, base={**BASE, 'model': 'alexnet.tv_in1k', 'revision': None})
    assert 'base_model' not in metadata(other)
    assert 'The base has no repository on the Hub, so the metadata names no base model.' in write_card(other)


@pytest.mark.parametrize('name', NASTY)
def test_nasty_names_come_back_from_the_metadata(subject: Subject, name: str) -> None:
    nasty = with_config(subject, dataset=name, val_split=name, regime=name)
    assert metadata(nasty) == describe(nasty).to_dict()
    assert nasty.record is not None
    [result] = metadata(nasty)['model-index'][0]['results']
    assert result['dataset']['name'] == nasty.record.dataset
    if not set(name) & {'/', '\udcff'}:
        assert result['dataset']['name'] == (name or 'SUN397')


# Text from outside ----------------------------------------------------------------------------------------------------


def test_nothing_of_a_thousand_nasty_names_is_rendered(subject: Subject) -> None:
    names = [f'{NASTY[number % len(NASTY)]}{number}' for number in range(1000)]
    subject = Subject({**subject.config, 'label_names': names}, subject.network, subject.record, 'mit')
    page = render(write_card(with_config(subject, dataset='<b>*x*</b> |', regime='[a](b)')))
    assert set(re.findall(r'<(\w+)', page)) <= set(
        ['h1', 'h2', 'p', 'a', 'code', 'pre', 'img', 'table', 'thead', 'tbody', 'tr', 'th', 'td']
    )
    base = 'https://huggingface.co/timm/tf_efficientnet_lite0.in1k'
    assert re.findall('href="(.*?)"', page) == [base] * 2
    assert re.findall('src="(.*?)"', page) == ['growth.png', 'curves.png']
    assert page.count('<h1>') == 1
    assert 'and 900 more; all of them are in config.json' in page


def test_names_are_shown_as_they_are(subject: Subject) -> None:
    names = NASTY[:-1]
    subject = Subject({**subject.config, 'label_names': names}, subject.network, subject.record, 'mit')
    assert codes(write_card(subject))[-len(names) :] == [
        ''.join(letter if letter.isprintable() else letter.encode('unicode_escape').decode() for letter in name)
        for name in (name.replace('\udcff', '\\udcff') for name in names)
    ]


def test_the_command_is_shown_without_folders(card: str) -> None:
    assert 'train.py --data-dir SUN397 --output=runs' in card
    assert '/home' not in card


# What it says ---------------------------------------------------------------------------------------------------------


def test_accuracy_has_its_interval_and_its_images(card: str) -> None:
    assert '| top-1 | 90.00 % | 82.6 to 94.5 % |' in card  # Wilson's interval of 90 in 100
    assert 'On the 100 validation images of `SUN397`' in card


def test_a_base_from_a_file_is_told_by_its_checksum_alone(subject: Subject, card: str) -> None:
    sentence = 'whether others get the same by that name, the checksum tells'
    assert sentence not in card
    assert sentence in write_card(with_config(subject, pretrained_path='/home/me/base.safetensors'))


def test_what_was_not_measured_is_said(card: str) -> None:
    assert 'Not measured: the epoch was chosen by these same images' in card
    assert 'It is one run with one seed (42)' in card


def test_rounding_is_told_with_both_numbers(subject: Subject) -> None:
    card = write_card(change(subject, storage='bfloat16', metrics={**METRICS, 'top1_stored': 89.0}))
    assert 'top-1 89.00 % instead of 90.00 %, -1.00 points' in card
    names = {metric['name'] for metric in ModelCard(card).data.to_dict()['model-index'][0]['results'][0]['metrics']}
    assert names == {'Top-1 accuracy', 'Top-1 accuracy as stored', 'Top-5 accuracy'}


def test_size_stands_beside_the_bases(card: str, network: Any) -> None:
    base = timm.create_model('tf_efficientnet_lite0', num_classes=10, device='meta')
    sizes = [sum(parameter.numel() for parameter in model.parameters()) for model in (base, network)]
    rows = re.findall(r'\| `(\S+)` \| (\S+) M \| (\S+) G \| (\S+) \| (\S+) \|', card)
    assert [row[1] for row in rows] == [f'{size / 1e6:.2f}' for size in sizes]
    assert [row[3] for row in rows] == ['1.000', f'{sizes[1] / sizes[0]:.3f}']


@pytest.mark.parametrize(
    ('base', 'text'),
    [
        ({'base': None}, 'The run started from random numbers'),
        ({'base': {'model': None, 'license': None}}, 'The run began with weights that cannot be had by a name'),
        ({}, 'What the weights began with is not recorded'),
    ],
)
def test_why_there_is_no_base(subject: Subject, base: dict[str, Any], text: str) -> None:
    assert subject.record is not None
    del subject.record.facts['base']
    subject.record.facts.update(base)
    assert f'{text}, so no base model is named.' in write_card(change(subject, base=None))


def test_another_licence_than_the_bases_is_told_beside_it(subject: Subject) -> None:
    card = write_card(change(subject, license='mit'))
    assert 'Licence: `mit`, as its publisher says; the base has `apache-2.0`.' in card


def test_a_delta_says_what_it_stands_on_and_how_transformers_gets_a_whole_copy(subject: Subject) -> None:
    card = write_card(change(subject, delta=True))
    assert 'This is a delta checkpoint' in card
    assert 'python -m hub pull ORG/NAME --local-dir whole-copy' in card
    assert f'`{"ab" * 32}`' in card
    assert 'delta' in ModelCard(card).data.to_dict()['tags']


def test_the_repository_is_named_later_or_at_once(subject: Subject, card: str) -> None:
    named = write_card(subject, 'me/mine')
    assert named == name_repository(card, 'me/mine')
    assert 'ORG/NAME' not in named


# Snippets -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def staged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp('card')
    return stage(train_run(root), root / 'staged', license='mit', say=lambda line: None).path


def snippets(folder: Path) -> list[str]:
    """The Python of a card; only the repository's name is replaced, by the folder."""
    card = (folder / 'README.md').read_text().replace('hf-hub:ORG/NAME', f'local-dir:{folder}')
    return re.findall('```python\n(.*?)```', card.replace('ORG/NAME', str(folder)), re.DOTALL)


def test_the_snippet_for_timm_runs(staged: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exec(snippets(staged)[0], {})
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert {name for name, _ in lines} == {'blue', 'green', 'red'}
    assert sum(float(share) for _, share in lines) == pytest.approx(100, abs=0.2)


@pytest.fixture(scope='module')
def answers(staged: Path) -> list[str]:
    """Run timm without the plugin, then transformers with it; in a process that has loaded neither. Gives its lines."""
    pytest.importorskip('transformers')
    script = f"""
import timm, torch
try:
    timm.create_model('local-dir:{staged}', pretrained=True)
except Exception as error:
    print(f'{{type(error).__name__}}: {{error}}')
{snippets(staged)[1]}
theirs, images = classifier.model.eval(), torch.rand(2, 3, 32, 32)
ours = timm.create_model('local-dir:{staged}', pretrained=True).eval()
# transformers computes on the mapped file, whose tensors lie otherwise in memory, and that rounds otherwise.
theirs.load_state_dict({{name: value.clone() for name, value in theirs.state_dict().items()}}, assign=True)
with torch.no_grad():
    print(torch.equal(theirs(images).logits, ours(images)))
print(theirs.config.id2label)
"""
    environment = {**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1'}
    done = subprocess.run([sys.executable, '-c', script], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_the_snippet_for_transformers_gives_timms_logits(answers: list[str]) -> None:
    assert answers[2:] == ['True', "{0: 'blue', 1: 'green', 2: 'red'}"]
    assert {entry['label'] for entry in ast.literal_eval(answers[1])} == {'blue', 'green', 'red'}


def test_without_the_plugin_timm_says_what_the_card_says(staged: Path, answers: list[str]) -> None:
    assert re.findall('timm answers `(.*?)`', (staged / 'README.md').read_text()) == [answers[0]]
