"""Contact sheets: a unit's images side by side, one row for each network that has the unit."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextPath
from PIL import Image

from training.report_parts import text
from training.sources import Source

from .figures import INK, SOFT, house_style

THUMBNAIL_SIDE = 96
# Inches of the drawn sheets: an image, from one row to the next, least that stands before the images.
CELL, PITCH, LABEL = 0.42, 0.46, 0.8
# Points of what stands there, and characters after which it is cut.
NETWORK_SIZE, NOTE_SIZE, LONGEST = 7.5, 6.5, 40


@dataclass(frozen=True)
class Strip:
    """One unit's images in one network."""

    network: str
    """What the row is called: base, fine-tuned or grown."""
    images: list[tuple[int, str, float]]
    """Index of each, the name of its class, and what the unit says of it."""
    note: str
    """Of what class the images are, in words."""


@dataclass(frozen=True)
class Sheet:
    """One unit, in every network that has it."""

    title: str
    note: str
    strips: list[Strip]


class Thumbnails:
    """Small pictures of a source, each read and encoded once."""

    def __init__(self, source: Source):
        self.source = source
        self.pictures: dict[int, Image.Image] = {}
        self.encoded: dict[int, str] = {}

    def picture(self, index: int) -> Image.Image:
        """A square picture; what is longer one way is padded with its own mean colour."""
        if index not in self.pictures:
            picture = self.source.read(index)
            picture.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.BICUBIC)
            side = max(picture.size)
            red, green, blue = np.asarray(picture).reshape(-1, 3).mean(0).astype(int).tolist()
            square = Image.new('RGB', (side, side), (red, green, blue))
            square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
            self.pictures[index] = square
        return self.pictures[index]

    def address(self, index: int) -> str:
        """The picture as an address inside a page."""
        if index not in self.encoded:
            file = io.BytesIO()
            self.picture(index).save(file, 'JPEG', quality=82)
            self.encoded[index] = f'data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}'
        return self.encoded[index]


def show_sheets(sheets: Sequence[Sheet], thumbnails: Thumbnails) -> str:
    """Put contact sheets into a page, a card each."""
    return f'<div class="sheets">{"".join(_show_sheet(sheet, thumbnails) for sheet in sheets)}</div>'


def _show_sheet(sheet: Sheet, thumbnails: Thumbnails) -> str:
    def picture(index: int, name: str, value: float) -> str:
        described = f'an image of {text(name)}'
        tip = f'{text(name)}, {value:.3g}: {text(thumbnails.source.name(index))}'
        return f'<img src="{thumbnails.address(index)}" alt="{described}" title="{tip}">'

    rows = ''.join(
        f'<div class="strip"><p>{strip.network} <span class="soft">{strip.note}</span></p>'
        f'<div>{"".join(picture(*image) for image in strip.images)}</div></div>'
        for strip in sheet.strips
    )
    return f'<article class="sheet"><h3>{sheet.title}</h3><p class="soft">{sheet.note}</p>{rows}</article>'


def draw_sheets(sheets: Sequence[Sheet], thumbnails: Thumbnails, plain: Callable[[str], str]) -> Figure:
    """Draw contact sheets as one picture, sheets below each other in columns of two.

    Args:
        sheets: At least one, all of as many strips and images.
        thumbnails: Of their images.
        plain: Turns what is safe in a page into plain text.
    """

    def fit(words: str) -> str:
        words = plain(words)
        return words if len(words) <= LONGEST else f'{words[: LONGEST - 1]}…'

    across = max(len(strip.images) for sheet in sheets for strip in sheet.strips)
    rows = max(len(sheet.strips) for sheet in sheets)
    columns = min(2, len(sheets))
    lines = -(-len(sheets) // columns)
    with house_style():
        strips = [strip for sheet in sheets for strip in sheet.strips]
        named = [_inches(fit(strip.network), NETWORK_SIZE) for strip in strips]
        noted = [_inches(fit(strip.note), NOTE_SIZE) for strip in strips]
        label = max(LABEL, *named, *noted) + 0.05
        width, height = columns * (across * CELL + label + 0.15), lines * (rows * PITCH + 0.42)
        figure = Figure(figsize=(width, height))
        for number, sheet in enumerate(sheets):
            left, top = (number % columns) * width / columns + 0.05, height * (1 - (number // columns) / lines)
            _write(figure, left, top - 0.2, plain(sheet.title), INK, 8.5, 'bold')
            for row, strip in enumerate(sheet.strips):
                bottom = top - 0.28 - (row + 1) * PITCH
                _write(figure, left, bottom + 0.26, fit(strip.network), INK, NETWORK_SIZE)
                _write(figure, left, bottom + 0.1, fit(strip.note), SOFT, NOTE_SIZE)
                for place, (index, _, _) in enumerate(strip.images):
                    corner = ((left + label + place * CELL) / width, bottom / height)
                    axes = figure.add_axes((*corner, (CELL - 0.03) / width, (CELL - 0.03) / height))
                    axes.imshow(np.asarray(thumbnails.picture(index)), interpolation='antialiased')
                    axes.set_axis_off()
    return figure


def _inches(words: str, size: float) -> float:
    """Tell how wide words are drawn, with a little more for fonts that are fitted to pixels, or are others."""
    width = TextPath((0, 0), words, prop=FontProperties(size=size)).get_extents().width if words else 0.0
    return 1.15 * float(width) / 72


def _write(
    figure: Figure, left: float, bottom: float, words: str, color: str, size: float, weight: str = 'normal'
) -> None:
    """Write words at a place given in inches."""
    width, height = figure.get_size_inches()
    figure.text(left / width, bottom / height, words, color=color, fontsize=size, weight=weight)
