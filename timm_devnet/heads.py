"""What a network remembers of the classifiers of its earlier tasks, as plain data."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

__all__ = ['MAX_HEADS', 'Head', 'check_name', 'read_heads']

# A configuration is outside input.
MAX_HEADS = 100
MAX_CLASSES = 1_000_000
_NAME = re.compile(r'[A-Za-z0-9][A-Za-z0-9_-]{0,63}')
# What the dict of heads has for itself, so that no name may be it.
_TAKEN = frozenset(dir(nn.ModuleDict()))


@dataclass(frozen=True)
class Head:
    """A classifier that was kept.

    Attributes:
        num_classes: Its outputs.
        steps: How many steps of the network's growth it reads; 0: the old network's top, as it was before it grew.
        label_names: Names of its outputs; empty where they are not known.
        multi_label: Whether images had any number of its classes, each by itself.
    """

    num_classes: int
    steps: int
    label_names: tuple[str, ...] = ()
    multi_label: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Plain data for a configuration; what is not known, and what is usual, is left out."""
        told: dict[str, Any] = {'num_classes': self.num_classes, 'steps': self.steps}
        if self.label_names:
            told['label_names'] = list(self.label_names)
        if self.multi_label:
            told['multi_label'] = True
        return told

    @classmethod
    def from_dict(cls, given: Any, most_steps: int) -> Head:
        """Read what `to_dict` wrote, or anything else.

        Args:
            given: What a configuration says.
            most_steps: Of the network's growth.

        Raises:
            ValueError: It describes no head.

        Example:
            >>> Head.from_dict({'num_classes': 10, 'steps': 0}, 1)
            Head(num_classes=10, steps=0, label_names=(), multi_label=False)
        """
        keys = given.keys() if isinstance(given, Mapping) else set()
        if not {'num_classes', 'steps'} <= keys <= {'num_classes', 'steps', 'label_names', 'multi_label'}:
            raise ValueError(
                f'A kept head is a dict of num_classes and steps, perhaps of label_names and multi_label; given '
                f'{given!r:.200}.'
            )
        for name, least, most in (('num_classes', 1, MAX_CLASSES), ('steps', 0, most_steps)):
            if type(given[name]) is not int or not least <= given[name] <= most:
                raise ValueError(
                    f'The {name} of a kept head is a whole number from {least} to {most}; given {given[name]!r:.100}.'
                )
        names, multi_label = given.get('label_names', ()), given.get('multi_label', False)
        is_list = isinstance(names, list | tuple) and all(type(name) is str for name in names)
        if not is_list or len(names) not in (0, given['num_classes']):
            raise ValueError(
                f'The label_names of a kept head are {given["num_classes"]} texts, as many as it has classes, or none; '
                f'given {names!r:.100}.'
            )
        if type(multi_label) is not bool:
            raise ValueError(f'The multi_label of a kept head is true or false; given {multi_label!r:.100}.')
        return cls(given['num_classes'], given['steps'], tuple(names), multi_label)


def check_name(name: str) -> None:
    """Refuse what cannot be a head's name, which becomes part of the names of its parameters.

    Raises:
        ValueError: Says what can.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name) or name in _TAKEN:
        raise ValueError(
            "The name of a kept head has 1 to 64 letters, digits, '-' and '_', begins with a letter or digit, and is "
            f'no word of torch such as keys or train; given {name!r:.100}.'
        )


def read_heads(given: Any, most_steps: int) -> dict[str, Head]:
    """Read the argument `heads` of grown networks, from configurations that strangers wrote.

    Args:
        given: Heads by name as `Head.to_dict` writes them; None for none.
        most_steps: Of the network's growth.

    Raises:
        ValueError: It is nothing of that kind.
    """
    if given is None:
        return {}
    if not isinstance(given, Mapping) or len(given) > MAX_HEADS:
        raise ValueError(f'heads is a dict of at most {MAX_HEADS} kept heads by name; given {given!r:.200}.')
    for name in given:
        check_name(name)
    return {name: Head.from_dict(told, most_steps) for name, told in given.items()}
