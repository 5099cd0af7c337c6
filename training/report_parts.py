"""Pieces of report.html: safe text, tables, bars, small pictures.

Names of classes, files and options come from outside, so whatever is put into the page goes through `text`.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from html import escape

from PIL import Image

from .predictions import printable
from .sources import Source

# So many classes are shown at once; the others unfold.
SHOWN_CLASSES = 20
EXAMPLES = 12
THUMBNAIL_SIDE = 160
# Of a number in the headline: its name, the number, and a note.
Entry = tuple[str, str, str]


def text(value: object) -> str:
    """Make any value safe to stand in the page, between tags or inside an attribute."""
    return escape(printable(str(value)))


def percent(value: float | None) -> str:
    return 'not measured' if value is None else f'{value:.2f} %'


def table(caption: str, head: Sequence[str], rows: Iterable[Sequence[str]], numeric: Sequence[int] = ()) -> str:
    """Make a table whose cells are safe already; the first of each row is its heading.

    Args:
        caption: Says what it shows.
        head: Headings of the columns.
        rows: Cells.
        numeric: Columns set to the right.
    """
    kinds = [' class="n"' if column in numeric else ' class="v"' for column in range(len(head))]
    heads = ''.join(f'<th scope="col"{kind}>{name}</th>' for name, kind in zip(head, kinds, strict=True))
    body = ''.join(
        f'<tr><th scope="row">{cells[0]}</th>'
        + ''.join(f'<td{kind}>{cell}</td>' for cell, kind in zip(cells[1:], kinds[1:], strict=True))
        + '</tr>'
        for cells in rows
    )
    return scrolling(
        caption, f'<table><caption>{caption}</caption><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>'
    )


def scrolling(label: str, contents: str) -> str:
    """Let wide contents scroll in themselves, by keyboard too, so that the page never does."""
    return f'<div class="scroll" role="region" aria-label="{label}" tabindex="0">{contents}</div>'


def bar(value: float) -> str:
    """A percentage and its bar."""
    number = f'{value:.2f}'
    return f'<meter min="0" max="100" value="{number}" aria-hidden="true"></meter><span class="value">{number} %</span>'


def unfolding(
    captions: Sequence[str],
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    numeric: Sequence[int],
    noun: str = 'classes',
) -> str:
    """Make a table of which only the first rows are shown at once.

    Args:
        captions: Of the table if all of it is shown; of its first rows else.
        head, rows, numeric: As for `table`.
        noun: What the rows are.
    """
    if len(rows) <= SHOWN_CLASSES + 5:
        return table(captions[0], head, rows, numeric) if rows else ''
    rest = table(f'The other {noun}', head, rows[SHOWN_CLASSES:], numeric)
    return (
        table(captions[1], head, rows[:SHOWN_CLASSES], numeric)
        + f'<details><summary>The other {len(rows) - SHOWN_CLASSES} {noun}</summary>{rest}</details>'
    )


def gallery(items: Iterable[tuple[int, str, str]], source: Source) -> str:
    """Make a list of thumbnails.

    Args:
        items: Index of each image, what it shows, and what is said of it, as paragraphs; both safe already.
        source: The images.
    """
    shown = ''.join(
        f'<li>{thumbnail(source, index, described)}{verdict}<p class="soft">{text(source.name(index))}</p></li>'
        for index, described, verdict in items
    )
    return f'<ul class="pictures">{shown}</ul>'


def thumbnail(source: Source, index: int, described: str) -> str:
    """A small picture inside the page; what has become unreadable since leaves its place."""
    try:
        picture = source.read(index)
    except Exception:  # decoders raise errors of every kind on broken files
        return '<div class="lost">cannot be read</div>'
    picture.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    picture.save(file, 'JPEG', quality=80)
    encoded = base64.b64encode(file.getvalue()).decode()
    return f'<img src="data:image/jpeg;base64,{encoded}" alt="an image of {described}">'
