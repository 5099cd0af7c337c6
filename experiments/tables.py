"""From results to tables: Markdown to read, CSV of every cell, JSON of both."""

from __future__ import annotations

import csv
import io
import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from training.files import replace_text

from .commands import command_of
from .grids import Cell, Grid
from .intervals import Difference, difference
from .results import Result, read_result


@dataclass(frozen=True)
class Entry:
    """A row and column of a table, over its seeds."""

    row: str
    column: str
    top1: dict[int, float]
    """By seed, in %."""
    published: float | None
    over: dict[str, Difference]
    """How far it is above each control, by the control's row."""
    trained_parameters: int
    seconds: float
    """Median over the seeds."""
    peak_memory_bytes: int
    """Most of all seeds."""

    @property
    def mean(self) -> float:
        """Over the seeds."""
        return statistics.mean(self.top1.values())

    @property
    def spread(self) -> float | None:
        """Standard deviation over the seeds; None for one seed."""
        return statistics.stdev(self.top1.values()) if len(self.top1) > 1 else None

    @property
    def top1_text(self) -> str:
        """Mean and spread as one reads them."""
        return f'{self.mean:.2f}' + ('' if self.spread is None else f' ± {self.spread:.2f}')


def entries_of(grid: Grid, results: Mapping[str, Result]) -> list[Entry]:
    """Put finished cells together, by row and column.

    Args:
        grid: The table.
        results: Of the finished cells, by name.
    """
    cells: dict[tuple[str, str], list[Cell]] = {}
    for cell in grid.cells:
        if cell.name in results:
            cells.setdefault((cell.row, cell.column), []).append(cell)
    top1 = {place: {cell.seed: results[cell.name].top1 for cell in found} for place, found in cells.items()}
    places = [(row, column) for column in grid.columns for row in grid.rows if (row, column) in cells]
    entries = []
    for row, column in places:
        found = [results[cell.name] for cell in cells[row, column]]
        controls = [control for control in grid.controls if control != row and (control, column) in top1]
        over = {control: difference(top1[row, column], top1[control, column]) for control in controls}
        entries.append(
            Entry(
                row,
                column,
                top1[row, column],
                next((cell.published for cell in cells[row, column]), None),
                {control: found for control, found in over.items() if found is not None},
                max(result.trained_parameters for result in found),
                statistics.median(result.seconds for result in found),
                max(result.peak_memory_bytes for result in found),
            )
        )
    return entries


def write_table(folder: Path, grid: Grid, facts: Sequence[str], failed: Mapping[str, str]) -> str:
    """Write table.md, table.csv and table.json of what is finished, and commands.sh of every cell.

    Args:
        folder: Of the table.
        grid: The table.
        facts: Lines that say how it was made.
        failed: Errors of cells, by name.

    Returns:
        The Markdown.
    """
    results = {cell.name: result for cell in grid.cells if (result := read_result(cell))}
    entries = entries_of(grid, results)
    page = write_page(grid, entries, facts, failed, len(results))
    replace_text(folder / 'table.md', page)
    rows = [describe_cell(cell, results[cell.name]) for cell in grid.cells if cell.name in results]
    replace_text(folder / 'table.csv', to_csv(rows))
    commands = [f'{command_of(cell.config)}\n' for cell in grid.cells]
    replace_text(folder / 'commands.sh', ''.join(commands))
    contents = {
        'title': grid.title,
        'facts': list(facts),
        'notes': list(grid.notes),
        'entries': [describe_entry(entry) for entry in entries],
        'cells': rows,
        'failed': dict(failed),
    }
    replace_text(folder / 'table.json', json.dumps(contents, indent=2) + '\n')
    return page


def write_page(
    grid: Grid, entries: Sequence[Entry], facts: Sequence[str], failed: Mapping[str, str], finished: int
) -> str:
    """Write a table as Markdown: an overview, every column in full and the failed cells."""
    lines = [f'# {grid.title}', '', *facts, '']
    lines += [f'- {note}.' for note in grid.notes]
    state = f'{finished} of {len(grid.cells)} cells are finished'
    lines += ['', f'Top-1 in %, mean ± standard deviation over seeds; in brackets the published figure. {state}.', '']
    lines += [overview(grid, entries)]
    for column in dict.fromkeys(entry.column for entry in entries):
        lines += ['', f'## {column}', '', in_full(grid, [entry for entry in entries if entry.column == column])]
    lines += [
        '',
        "Differences are paired by seed, with the 95 % interval over the seeds by Student's law; bold ones are clear "
        'of zero. The interval knows nothing of other images or tasks.',
    ]
    if failed:
        lines += ['', '## Failed', '', *(f'- {name}: {error}' for name, error in failed.items())]
    lines += ['', 'The command of each cell is in commands.sh and in table.csv.', '']
    return '\n'.join(lines)


def overview(grid: Grid, entries: Sequence[Entry]) -> str:
    """Show all columns beside each other."""
    found = {(entry.row, entry.column): entry for entry in entries}

    def show(row: str, column: str) -> str:
        entry = found.get((row, column))
        if entry is None:
            return ''
        return entry.top1_text + (f' ({entry.published:.2f})' if entry.published is not None else '')

    rows = [[row, *(show(row, column) for column in grid.columns)] for row in grid.rows]
    return markdown(['method', *grid.columns], [row for row in rows if any(row[1:])])


def in_full(grid: Grid, entries: Sequence[Entry]) -> str:
    """Show one column with everything that is known of it."""
    controls = [control for control in grid.controls if any(control in entry.over for entry in entries)]
    paper = {entry.row: entry.published for entry in entries}
    compared = ['difference'] if grid.is_comparable else []
    head = ['method', 'top-1', 'published', *compared, *(f'over {control}' for control in controls)]
    head += ['published over fine-tuning', 'seeds', 'trained parameters', 'seconds', 'peak memory']
    rows = []
    for entry in entries:
        gain = None
        if entry.published is not None and entry.row != 'fine-tuning' and paper.get('fine-tuning') is not None:
            gain = entry.published - paper['fine-tuning']  # type: ignore[operator]
        rows.append(
            [
                entry.row,
                entry.top1_text,
                '' if entry.published is None else f'{entry.published:.2f}',
                *('' if entry.published is None else f'{entry.mean - entry.published:+.2f}' for _ in compared),
                *(show_difference(entry.over.get(control)) for control in controls),
                '' if gain is None else f'{gain:+.2f}',
                str(len(entry.top1)),
                f'{entry.trained_parameters / 1e6:.3f} M',
                f'{entry.seconds:.0f}',
                f'{entry.peak_memory_bytes / 1e9:.2f} GB',
            ]
        )
    return markdown(head, rows)


def show_difference(found: Difference | None) -> str:
    """Write a difference, bold if it is clear of zero."""
    return '' if found is None else f'**{found}**' if found.is_clear else str(found)


def describe_cell(cell: Cell, result: Result) -> dict[str, Any]:
    """Say all of a finished cell."""
    return {
        'row': cell.row,
        'column': cell.column,
        'seed': cell.seed,
        **asdict(result),
        'published': cell.published,
        'command': command_of(cell.config),
    }


def describe_entry(entry: Entry) -> dict[str, Any]:
    """Say all of a row and column."""
    return {**asdict(entry), 'mean': entry.mean, 'spread': entry.spread}


def to_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Write rows of the same columns; nothing for none."""
    text = io.StringIO()
    if rows:
        writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator='\n')
        writer.writeheader()
        writer.writerows(rows)
    return text.getvalue()


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ['---'] * len(header), *rows]
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines)
