"""The folder of one analysis: index.html, which is whole in itself, and beside it pictures and numbers as files."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from training.files import replace_file, replace_text
from training.page import fill_page
from training.report_parts import text

from .figures import for_page, to_png, to_svg
from .subject import Subject

# Of networks that have no run folder to put it in.
ROOT = Path('output/analyze')


class AnalysisFolder:
    """Takes what an analysis finds.

    Args:
        path: Of the folder; files of an earlier analysis of the same name are replaced.
    """

    def __init__(self, path: Path):
        self.path = path
        self.files: list[tuple[str, str]] = []

    @classmethod
    def of(cls, subject: Subject, what: str, output: Path | None) -> AnalysisFolder:
        """Choose the folder: the one given, else analysis/WHAT in the run folder, else one in `ROOT`."""
        if output is not None:
            return cls(output)
        if subject.run is not None:
            return cls(subject.run.path / 'analysis' / what)
        return cls(ROOT / subject.name.replace('/', '_') / what)

    @property
    def page(self) -> Path:
        return self.path / 'index.html'

    def write_table(self, name: str, columns: Sequence[str], rows: Iterable[Sequence[object]], says: str) -> None:
        """Write numbers as CSV.

        Args:
            name: Of the file, without its ending.
            columns: Their names.
            rows: Numbers are written with six digits, None as nothing.
            says: What a row is, for the page.
        """
        table = io.StringIO()
        writer = csv.writer(table, lineterminator='\n')
        writer.writerow(columns)
        writer.writerows([_cell(value) for value in row] for row in rows)
        replace_text(self.path / f'{name}.csv', table.getvalue())
        self.files.append((f'{name}.csv', says))

    def write_figure(self, name: str, figure: Figure, title: str, spoken: str) -> str:
        """Write a picture as PNG and SVG.

        Args:
            name: Of the files, without ending.
            figure: The picture.
            title: Stands above it in the page.
            spoken: What it shows, in words.

        Returns:
            The picture for the page.
        """
        png, svg = to_png(figure), to_svg(figure, name)
        replace_file(self.path / f'{name}.png', lambda path: path.write_bytes(png))
        replace_text(self.path / f'{name}.svg', svg)
        self.files += [(f'{name}.png', text(title)), (f'{name}.svg', text(title))]
        return for_page(svg, title, spoken)

    def write_page(self, title: str, subtitle: str, headline: str, sections: dict[str, str]) -> Path:
        """Write index.html; all but the title is safe already.

        Returns:
            Its path.
        """
        listed = ''.join(f'<li><a href="{name}">{name}</a>: {says}</li>' for name, says in self.files)
        sections = {**sections, 'Files': f'<p>Beside this page:</p><ul>{listed}</ul>'}
        replace_text(self.page, fill_page(title, subtitle, headline, sections, writer='analyze.py'))
        return self.page


def _cell(value: object) -> object:
    if value is None:
        return ''
    return f'{value:.6g}' if isinstance(value, float) else value
