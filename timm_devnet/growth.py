"""The growth language: what `wa2048`, `mwa512` or `wa2048_wa1024` adds to a network. Pure data, no torch.

Levels count downwards from the top of the network as it stands: 0 is the top layer (the last one before the classifier:
FC7 of AlexNet and VGG, `conv_head` of EfficientNet), 1 the layer that the top layer reads (FC6, the last stage), 2 and
3 the next ones below. A block of new units stands beside a level, reads levels below it, and is read by new units above
it or, at the top, by the classifier. Every growth is a list of such blocks; each name is a short way to write one.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

__all__ = [
    'CONTROLS',
    'KINDS',
    'MAX_KERNEL',
    'MAX_LENGTH',
    'MAX_UNITS',
    'PAPER_UNITS',
    'Block',
    'Growth',
    'Step',
    'parse',
]

ON_TOP = -1  # the level of a block that is put on top of the network and takes the classifier's place as its reader
MAX_UNITS = 1_000_000  # a name is outside input: no typing error or hostile config may ask for all the memory there is
MAX_LENGTH = 200  # of a name, in characters
MAX_KERNEL = 15  # wider than the maps that blocks read, at the sizes networks are used at

# The paper's best size under its regime "All" (tables 1 and 2); mwa and xwa are this project's.
PAPER_UNITS: Mapping[str, int] = MappingProxyType(
    {'da': 6144, 'wa': 2048, 'dwa': 2048, 'wwa': 2048, 'mwa': 1024, 'xwa': 1024}
)
SHARED = ('wwa', 'mwa', 'xwa')  # kinds that share their units between two blocks


@dataclass(frozen=True)
class Block:
    """A block of new units.

    Attributes:
        level: Where it stands: beside level 0, 1, ..., or -1: on top of the network, as its new top layer.
        reads: The levels it reads, each below its own.
        units: Number of new units; 0 passes what it reads on, pooled, without units of its own.
        kernel: Side of the square of positions that each unit sees at once, odd; above 1 it reads maps.
    """

    level: int
    reads: tuple[int, ...]
    units: int
    kernel: int = 1

    def __post_init__(self) -> None:
        if not self.reads or any(below <= self.level for below in self.reads):
            raise ValueError(f'A block at level {self.level} reads one or more levels below it, not {self.reads}.')
        if self.level < ON_TOP or (self.level == ON_TOP and (self.reads != (0,) or not self.units)):
            raise ValueError(f'A block on top (level -1) has units and reads level 0; given {self}.')
        if not 0 <= self.units <= MAX_UNITS:
            raise ValueError(f'A block has 0 to {MAX_UNITS} units, not {self.units}.')
        if not 1 <= self.kernel <= MAX_KERNEL or self.kernel % 2 == 0:
            raise ValueError(f'A kernel is an odd number from 1 to {MAX_KERNEL}, not {self.kernel}.')
        if self.kernel > 1 and (self.level == ON_TOP or not self.units):
            raise ValueError(
                f'Only units that read maps have a kernel, so none on top and no block of 0; given {self}.'
            )


Step = tuple[Block, ...]


def _half(units: int) -> int:
    if units % 2:
        raise ValueError(f'{", ".join(SHARED)} share their units between two blocks: give an even number, not {units}.')
    return units // 2


KINDS: Mapping[str, Callable[[int], Step]] = MappingProxyType(
    {
        'da': lambda s: (Block(ON_TOP, (0,), s),),
        'wa': lambda s: (Block(0, (1,), s),),
        'dwa': lambda s: (Block(0, (1,), s), Block(ON_TOP, (0,), s)),
        'wwa': lambda s: (Block(1, (2,), _half(s)), Block(0, (1,), s)),
        'mwa': lambda s: (Block(0, (2,), _half(s)), Block(0, (3,), _half(s))),
        'xwa': lambda s: (Block(0, (2,), _half(s), 3), Block(0, (3,), _half(s), 3)),
    }
)
CONTROLS: Mapping[str, Step] = MappingProxyType({'norm': (), 'skip': (Block(0, (2,), 0), Block(0, (3,), 0))})

_GRAMMAR = (
    "one or more of da, wa, dwa, wwa, mwa, xwa (each with or without a number of units) and norm, skip, joined by '_', "
    "such as 'wa2048', 'mwa512', 'wa2048_wa1024'; or blocks spelled out and joined by '+', such as 'r2u256+r3u256' "
    "(256 units reading level 2 and 256 reading level 3), 'r2u512at1+r1u1024' (the first beside level 1) or "
    "'r2u256k3+r3u256k3' (each unit sees 3x3 positions at once)"
)
_NAMED = re.compile(r'([a-z]+)([1-9][0-9]{0,6})?')
_SPELLED = re.compile(r'((?:r[0-9]{1,3})+)u(0|[1-9][0-9]{0,6})(?:k([1-9][0-9]?))?(?:at(-1|[1-9][0-9]{0,2}))?')


@dataclass(frozen=True)
class Growth:
    """What is added to a network: steps taken one after the other, each a tuple of blocks.

    Attributes:
        steps: One entry per growth; an empty step only reconciles (the control `norm`).

    Example:
        >>> parse('wwa2048').steps[0][0]
        Block(level=1, reads=(2,), units=1024, kernel=1)
        >>> str(parse('mwa512_wa'))
        'mwa512_wa2048'
    """

    steps: tuple[Step, ...]

    def __str__(self) -> str:
        return '_'.join(_print_step(step) for step in self.steps)


def parse(text: str, default_units: Mapping[str, int] = PAPER_UNITS) -> Growth:
    """Read a growth name.

    Args:
        text: A name such as `wa2048`, `skip` or `wa2048_wa1024`, or blocks spelled out such as `r2u256+r3u256`.
        default_units: Number of units of each kind where the name gives none; a family of networks has its own.

    Returns:
        The growth, every number of units filled in.

    Raises:
        ValueError: If the text is no growth; the message shows the grammar and the nearest valid name.

    Example:
        >>> parse('wa2048_wa1024') == Growth((parse('wa2048').steps[0], parse('wa1024').steps[0]))
        True
    """
    if not isinstance(text, str) or not 0 < len(text) <= MAX_LENGTH:
        given = f'{text[:MAX_LENGTH]!r} and more' if isinstance(text, str) and text else repr(text)
        raise ValueError(f'A growth is a name of 1 to {MAX_LENGTH} characters: {_GRAMMAR}; given {given:.300}.')
    return Growth(tuple(_parse_step(word, text, default_units) for word in text.split('_')))


def _parse_step(word: str, text: str, default_units: Mapping[str, int]) -> Step:
    named = _NAMED.fullmatch(word)
    if named and named[1] in KINDS:
        units = int(named[2]) if named[2] else default_units[named[1]]
        return KINDS[named[1]](units)
    if word in CONTROLS:
        return CONTROLS[word]
    spelled = [_SPELLED.fullmatch(part) for part in word.split('+')]
    if all(spelled):
        return tuple(
            Block(int(m[4] or 0), tuple(int(level) for level in m[1][1:].split('r')), int(m[2]), int(m[3] or 1))
            for m in spelled
            if m
        )
    raise ValueError(f'Unknown growth {text!r}: {word!r} is none. A growth is {_GRAMMAR}.{_suggest(word)}')


def _suggest(word: str) -> str:
    letters, digits = re.sub(r'[^a-z]', '', word.lower()), re.sub(r'[^0-9]', '', word).lstrip('0')[:6]
    near = difflib.get_close_matches(letters, [*KINDS, *CONTROLS], n=1, cutoff=0.0)
    if not near:
        return ''
    shared = near[0] in SHARED and int(digits or 0) % 2  # an odd number is none of theirs
    return f' Did you mean {near[0] + (digits if near[0] in KINDS and not shared else "")!r}?'


def _print_step(step: Step) -> str:
    for name, blocks in CONTROLS.items():
        if blocks == step:
            return name
    most = max(block.units for block in step)
    for name, write in KINDS.items():
        units = 2 * most if name in ('mwa', 'xwa') else most
        if 0 < units <= MAX_UNITS and (units % 2 == 0 or name not in SHARED) and write(units) == step:
            return f'{name}{units}'
    return '+'.join(_print_block(block) for block in step)


def _print_block(block: Block) -> str:
    reads = ''.join(f'r{level}' for level in block.reads)
    kernel = f'k{block.kernel}' if block.kernel > 1 else ''
    return f'{reads}u{block.units}{kernel}' + (f'at{block.level}' if block.level else '')
