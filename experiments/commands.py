"""The command line that does what a cell does."""

from __future__ import annotations

import dataclasses
import shlex

from training.config import Config


def command_of(config: Config) -> str:
    """Write a configuration as one would type it.

    Example:
        >>> command_of(Config(model='alexnet_wa2048', lr=0.02, report=False, grow=('wa64', 'wa32@3')))
        'accelerate launch train.py --model alexnet_wa2048 --grow wa64 wa32@3 --lr 0.02 --no-report'
    """
    return shlex.join(['accelerate', 'launch', 'train.py', *flags_of(config)])


def flags_of(config: Config) -> list[str]:
    """List what differs from the defaults as flags of train.py."""
    flags: list[str] = []
    for field in dataclasses.fields(Config):
        value, flag = getattr(config, field.name), field.name.replace('_', '-')
        if value == field.default:
            continue
        if isinstance(value, bool):
            flags.append(f'--{flag}' if value else f'--no-{flag}')
        elif isinstance(value, tuple):
            flags += [f'--{flag}', *map(str, value)]
        else:
            flags += [f'--{flag}', str(value)]
    return flags
