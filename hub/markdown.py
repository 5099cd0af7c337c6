"""Text from outside in Markdown: it stands there as what it is, and nothing of it is rendered."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from training.predictions import printable

BAR = '\\|'  # a bar inside a cell of a table, also inside code


def one_line(text: object) -> str:
    """Write a text in one line, with escapes for what cannot be seen: line ends, controls, marks of direction.

    Example:
        >>> one_line('two' + chr(10) + 'lines')
        'two\\\\nlines'
    """
    return ''.join(
        character if character.isprintable() else character.encode('unicode_escape').decode()
        for character in printable(str(text))
    )


def code(text: object) -> str:
    """Set a text as code inside a line, so that Markdown, HTML and addresses in it stay what they are.

    Example:
        >>> code('*a* <b>'), code('with `ticks`')
        ('`*a* <b>`', '`` with `ticks` ``')
    """
    line = one_line(text)
    if not line.strip():
        return '(empty)'
    fence = '`' * (longest_run(line) + 1)
    space = ' ' if line[0] in ' `' or line[-1] in ' `' else ''  # one on each side is not shown
    return f'{fence}{space}{line}{space}{fence}'


def code_block(text: str, language: str = '') -> str:
    """Set lines as code, between fences that they do not contain."""
    fence = '`' * max(3, longest_run(text) + 1)
    return f'{fence}{language}\n{text}\n{fence}\n'


def longest_run(text: str) -> int:
    """The length of the longest run of backticks."""
    return max((len(run) for run in re.findall('`+', text)), default=0)


def table(head: Sequence[str], rows: Iterable[Sequence[str]], numeric: bool = True) -> str:
    """Make a table of cells in Markdown; what follows the first column stands to the right if it is numeric."""
    lines = [head, ['---', *['---:' if numeric else '---'] * (len(head) - 1)], *rows]
    return ''.join(f'| {" | ".join(cell.replace("|", BAR) for cell in line)} |\n' for line in lines)
