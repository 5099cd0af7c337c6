"""The commands of analyze.py."""

import inspect
from pathlib import Path

import pytest

import analysis
import analyze


@pytest.mark.parametrize('command', analyze.COMMANDS)
def test_every_command_is_a_documented_function_with_the_same_options(command: str) -> None:
    function = getattr(analysis, command)
    offered = inspect.signature(analyze.COMMANDS[command]).parameters
    assert offered.keys() == inspect.signature(function).parameters.keys()
    documented = inspect.getdoc(function) or ''
    assert all(f'\n    {name}: ' in documented for name in offered)


def test_errors_are_one_line_and_exit_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert analyze.main(['compare', str(tmp_path), str(tmp_path)]) == analyze.EXIT_USER_ERROR
    printed = capsys.readouterr()
    assert printed.out == ''
    assert printed.err.startswith('analyze.py: error: ')
    assert printed.err.count('\n') == 1


def test_help_tells_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        analyze.main(['--help'])
    assert stopped.value.code == 0
    printed = capsys.readouterr().out
    assert all(command in printed for command in ('change', 'units', 'embed', 'cooperate', 'retain', 'compare'))
