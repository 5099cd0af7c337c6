"""Every Python block of the README runs, every command and link in it leads somewhere, and its tables are current."""

import contextlib
import inspect
import io
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import timm
import tyro

import benchmark
import reproduce
import timm_devnet
from hub import __main__ as hub_commands
from tests.__main__ import CHECKS
from training.config import Config

ROOT = Path(__file__).parent.parent
README = (ROOT / 'README.md').read_text()
PAGES = {str(path.relative_to(ROOT)): path.read_text() for path in (*ROOT.glob('[CR]*.md'), *ROOT.glob('docs/*.md'))}


GROWTHS = README.partition('### Names of growths')[2].partition('### ')[0]


def blocks(text: str, language: str) -> list[str]:
    """The contents of fenced blocks."""
    return re.findall(rf'^```{language}\n(.*?)^```$', text, flags=re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    """Single commands in bash blocks and in the text."""
    lines = [line for page in PAGES.values() for block in blocks(page, 'bash') for line in block.splitlines()]
    lines += [
        code for page in PAGES.values() for code in re.findall(r'`((?:python|accelerate|pip|pytest) [^`]+)`', page)
    ]
    return sorted({part.strip() for line in lines for part in line.split('&&')})


def test_python_blocks_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lite_weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = timm_devnet.convert_lite(timm.models.load_state_dict(str(lite_weights)))
    # Stands in for the Hub, which tests do not ask.
    monkeypatch.setattr('timm.models._builder.load_state_dict_from_hf', lambda *args, **kwargs: dict(weights))
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for block in blocks(README, 'python'):
        exec(compile(block, 'README.md', 'exec'), names)
    printed = capsys.readouterr().out
    assert "['conv_head', 'conv_head_1', 'conv_head_2']" in printed
    assert "'vgg16_wa2048'" in printed
    assert 'wa512_wa256' in printed
    assert "['new', 'conv_head_1-new'" in printed or "['new', 'conv_head-new'" in printed


def test_blocks_about_deploying_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for block in blocks(PAGES['docs/deploying.md'], 'python'):
        exec(compile(block, 'deploying.md', 'exec'), names)
    assert 'merged: conv_head, grown.conv_head_1.conv' in capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} == {'deployed.safetensors', 'deployed.pt2'}


def test_blocks_about_architectures_run(capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {}
    for block in blocks(PAGES['docs/architectures.md'], 'python'):
        exec(compile(block, 'architectures.md', 'exec'), names)
    printed = capsys.readouterr().out
    assert "['stages.3', 'stages_3_1']" in printed  # of ConvNeXt
    assert "['stages.3', 'stages_3_1', 'stages_3_2'] torch.Size([2, 10])" in printed  # of the class on the page
    assert 'ExportedProgram' in printed


@pytest.mark.parametrize('command', commands())
def test_commands_exist(command: str) -> None:
    words = shlex.split(re.sub(r'^([A-Z_]+=\w+ )+', '', command.partition('>')[0]))
    program, arguments = Path(words[0]).name, words[1:]
    if program == 'accelerate' and not any(word.endswith('.py') for word in arguments):  # a word about the launcher
        assert arguments[0] in ('launch', 'config')
    elif program in ('python', 'python3', 'accelerate', 'torchrun'):
        if arguments[0] == 'launch' or program == 'torchrun':  # the launcher's own options, then the script's
            arguments = arguments[next(i for i, word in enumerate(arguments) if word.endswith('.py')) :]
        check_script(arguments)
    elif program == 'hf':
        assert arguments == ['auth', 'login']
    elif program == 'pip':
        assert arguments[0] == 'install'
        extras = re.findall(r'\.\[(.*)\]', command)
        project = (ROOT / 'pyproject.toml').read_text()
        assert all(
            re.search(rf'^{extra} = \[', project, flags=re.MULTILINE) for extra in ','.join(extras).split(',') if extra
        )
    elif program == 'pytest':
        assert all((ROOT / path).exists() for path in arguments)
    else:
        assert command == '. .venv/bin/activate' or program == 'tensorboard'


def check_script(arguments: list[str]) -> None:
    """A script of this project, with options that it knows."""
    script, options = arguments[0], arguments[1:]
    if script == '-m' and options[0] == 'hub':
        command = hub_commands.COMMANDS[options[1]] if options[1:] not in ([], ['--help']) else lambda: 0
        offered = {*inspect.signature(command).parameters, *vars(hub_commands.Storing()), 'help'}
        assert {flag[2:].replace('-', '_') for flag in options if flag.startswith('--')} <= offered
    elif script == '-m':
        assert options[0] == 'venv' or (ROOT / f'{options[0].replace(".", "/")}.py').exists() or options == ['tests']
    elif script == 'train.py':
        with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()) as printed:
            tyro.cli(Config, args=options).resolved().validate()
        assert ('--regime' in printed.getvalue()) == (options == ['--help'])
    elif script == 'reproduce.py':
        if options != ['--help']:
            tyro.cli(reproduce.Request, args=options).validate()
    elif script == 'benchmark.py':
        known = inspect.signature(benchmark.COMMANDS[options[0]]).parameters
        assert {flag[2:].replace('-', '_') for flag in options if flag.startswith('--')} <= known.keys()
    else:
        assert (ROOT / script).exists()
        assert not options


def test_train_options_that_do_not_exist_are_noticed() -> None:
    with pytest.raises(SystemExit), contextlib.redirect_stderr(io.StringIO()):
        tyro.cli(Config, args=['--no-such-option'])


def test_ci_runs_the_test_command() -> None:
    command = next(block.strip() for block in blocks(README, 'bash') if '-m tests' in block)
    assert command in (ROOT / '.ci' / 'run').read_text().splitlines()
    assert command in blocks(PAGES['CONTRIBUTING.md'], 'bash')[0]


def test_contributing_names_every_check() -> None:
    assert all(check.partition(' -')[0] in PAGES['CONTRIBUTING.md'] for check in CHECKS)


def test_models_table_is_current() -> None:
    shown = README.partition('<!-- models: python benchmark.py models -->\n')[2].partition('\n<!-- /models -->')[0]
    assert shown == benchmark.models_table(benchmark.shown_names())


@pytest.mark.parametrize('page', PAGES)
def test_links_lead_somewhere(page: str) -> None:
    targets = re.findall(r'\]\(([^)#]+)\)', PAGES[page])
    folder = (ROOT / page).parent
    assert all((folder / target).exists() for target in targets if not target.startswith('https://'))


@pytest.mark.parametrize('name', re.findall(r'^\| `(\w+)`', GROWTHS, flags=re.MULTILINE))
def test_growths_in_the_table_are_growths(name: str) -> None:
    assert str(timm_devnet.parse_growth(name)) == name


def test_spelled_out_examples_are_mwa_and_xwa() -> None:
    assert 'spelled out: `r2u256+r3u256` is `mwa512`' in README
    assert timm_devnet.parse_growth('r2u256+r3u256') == timm_devnet.parse_growth('mwa512')
    assert '`r2u256k3+r3u256k3` is `xwa512`' in README
    assert timm_devnet.parse_growth('r2u256k3+r3u256k3') == timm_devnet.parse_growth('xwa512')
