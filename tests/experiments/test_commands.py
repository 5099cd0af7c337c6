"""Commands of cells: whoever types them runs the same."""

import shlex

import pytest
import tyro

from experiments.commands import command_of
from tests.experiments.test_grids import TABLES, make_grid
from training.config import Config


@pytest.mark.parametrize('table', TABLES)
def test_the_command_of_every_cell_parses_back_to_its_configuration(table: str) -> None:
    configs = {command_of(cell.config): cell.config for cell in make_grid(table, is_small=table == 'table6').cells}
    for command, config in list(configs.items())[:: max(1, len(configs) // 6)]:
        launcher, launch, script, *flags = shlex.split(command)
        assert (launcher, launch, script) == ('accelerate', 'launch', 'train.py')
        assert tyro.cli(Config, args=flags) == config


def test_every_kind_of_option_is_written() -> None:
    config = Config(
        data_dir="it's here", scale=(0.3, 1.0), grow=('wa8', 'wa4@2'), hflip=0.0, balanced=True, tune=False, lr=1e-5
    )
    assert tyro.cli(Config, args=shlex.split(command_of(config))[3:]) == config
