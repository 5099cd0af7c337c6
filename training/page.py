"""The house's HTML page: whole in itself, light and dark, wide and narrow; reports and analyses are put into it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from string import Template

from .report_parts import Entry, text

PAGE = Path(__file__).with_name('report_page.html')


def fill_page(title: str, subtitle: str, headline: str, sections: Mapping[str, str], writer: str) -> str:
    """Put a page together.

    Args:
        title: As it is; made safe here.
        subtitle: A line below it; safe already, as all that follows.
        headline: Stands above the sections, in one of its own.
        sections: Their contents by their headings; empty ones are left out.
        writer: The program that writes the page.

    Returns:
        The whole page.
    """
    filled = {name: body for name, body in sections.items() if body}
    places = {name: name.lower().replace(' ', '-') for name in filled}
    return Template(PAGE.read_text(encoding='utf-8')).substitute(
        title=text(title),
        subtitle=subtitle,
        links=''.join(f'<li><a href="#{places[name]}">{name}</a></li>' for name in filled),
        body=headline
        + ''.join(
            f'<section aria-labelledby="{places[name]}"><h2 id="{places[name]}">{name}</h2>{body}</section>\n'
            for name, body in filled.items()
        ),
        writer=writer,
    )


def show_numbers(label: str, entries: list[Entry]) -> str:
    """The numbers that one looks for first, as large ones; all safe already."""
    cells = ''.join(f'<div><dt>{name}</dt><dd>{value}<small>{note}</small></dd></div>' for name, value, note in entries)
    return f'<section aria-label="{label}"><dl class="numbers">{cells}</dl></section>\n'
