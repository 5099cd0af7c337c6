"""What units look for."""

import csv
import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg

from analysis.activations import Watcher
from analysis.contact_sheet import Sheet, Strip, Thumbnails, draw_sheets, show_sheets
from analysis.figures import to_png
from analysis.subject import Where, find_images, open_subject, show
from analysis.units import choose_units, find_gallery, is_old, read_unit, units
from tests.analysis.conftest import Train
from tests.training.test_report import HOSTILE, Page
from training.sources import ArraySource

WHERE = Where(threads=1, batch_size=4)


def rows(path: Path) -> list[dict[str, str]]:
    with open(path) as file:
        return list(csv.DictReader(file))


def test_the_same_unit_stands_in_every_network(grown_run: Path, plain_run: Path) -> None:
    path = units(str(grown_run), str(plain_run), ('conv_head:3', 'conv_head_1:5'), 4, where=WHERE)
    found = {(row['network'], row['block'], row['unit']) for row in rows(path.with_name('images.csv'))}
    assert found == {
        *((network, 'conv_head', '3') for network in ('base', 'fine-tuned', 'grown')),
        *((network, 'conv_head_1', '5') for network in ('untrained', 'grown')),
    }
    page = Page(path)
    assert page.count('img') == 5 * 4
    assert all(dict(found)['alt'] for tag, found in page.elements if tag == 'img')
    for kind in ('old', 'new'):
        assert path.with_name(f'{kind}_units.png').stat().st_size > 0
        assert path.with_name(f'{kind}_units.svg').stat().st_size > 0


def test_images_are_those_of_the_highest_values(grown_run: Path) -> None:
    subject = open_subject(str(grown_run), WHERE)
    source = find_images(subject, 'val')
    shown = list(show(source, subject.config, subject.input_format, subject.device))
    values = torch.cat([Watcher(subject.network)(images).blocks[1] for images, _, _ in shown])
    path = units(str(grown_run), names=('conv_head_1:2',), count=3, where=WHERE)
    found = [row for row in rows(path.with_name('images.csv')) if row['network'] == 'grown']
    best = values[:, 2].sort(descending=True, stable=True)
    assert [row['file'] for row in found] == [source.name(index) for index in best.indices[:3].tolist()]
    assert [float(row['value']) for row in found] == pytest.approx(best.values[:3].tolist(), rel=1e-4)


def test_units_are_chosen_for_as_many_classes_as_there_are(grown_run: Path) -> None:
    subject = open_subject(str(grown_run), WHERE)
    own = find_gallery('grown', subject, subject.network, find_images(subject, 'val'), 4, 'mean')
    chosen = choose_units(own, 2)
    assert [is_old(unit, own) for unit in chosen] == [True, True, False, False]
    assert own.contributions is not None
    most = own.contributions.per_class.max(0)
    first, second = (own.place(unit) for unit in chosen[:2])
    assert most.values[first] == max(most.values[:-16])
    assert most.indices[first] != most.indices[second]


@pytest.mark.parametrize('name', ['conv_head_1:16', 'nothing:0', 'conv_head'])
def test_a_unit_that_is_not_there_is_refused(grown_run: Path, name: str) -> None:
    subject = open_subject(str(grown_run), WHERE)
    own = find_gallery('grown', subject, subject.network, find_images(subject, 'val'), 4, 'mean')
    with pytest.raises(ValueError, match='conv_head_1:0 to conv_head_1:15'):
        read_unit(name, own)


def test_a_run_on_other_images_cannot_stand_beside(grown_run: Path, train_run: Train, image_folder: Path) -> None:
    (image_folder / 'val' / 'red' / '0.png').unlink()
    other = train_run(model='test_efficientnet', data_dir=str(image_folder))
    with pytest.raises(ValueError, match='8 images, these are 9'):
        units(str(grown_run), str(other), where=WHERE)


def make_sheet() -> tuple[Sheet, Thumbnails]:
    source = ArraySource(np.full((2, 8, 12), 200, np.uint8), [0, 0], ['a'])
    return Sheet('unit', 'note', [Strip('base', [(0, HOSTILE, 1.0), (1, 'b', 0.5)], '50 %')]), Thumbnails(source)


def test_names_cannot_break_a_sheet(tmp_path: Path) -> None:
    sheet, thumbnails = make_sheet()
    path = tmp_path / 'sheet.html'
    path.write_text(show_sheets([sheet], thumbnails))
    page = Page(path)
    assert page.count('script') == 0
    assert page.count('img') == 2


def test_a_sheet_of_one_unit_is_drawn() -> None:
    sheet, thumbnails = make_sheet()
    assert to_png(draw_sheets([sheet], thumbnails, str)).startswith(b'\x89PNG')


@pytest.mark.parametrize('name', ['a', 'hubble_deep_field', 100 * 'long'])
def test_words_of_a_drawn_sheet_stand_before_its_images(name: str) -> None:
    sheet, thumbnails = make_sheet()
    [strip] = sheet.strips
    sheet = dataclasses.replace(sheet, strips=[dataclasses.replace(strip, note=f'100 % are {name}')])
    figure = draw_sheets([sheet, sheet], thumbnails, str)
    renderer = FigureCanvasAgg(figure).get_renderer()
    first = min(axes.get_window_extent(renderer).x0 for axes in figure.axes)
    ends = [words.get_window_extent(renderer).x1 for words in figure.texts if words.get_position()[0] < 0.5]
    assert 0 < max(ends) < first


def test_pictures_that_are_not_square_are_padded_by_their_own_colour() -> None:
    _, thumbnails = make_sheet()
    picture = thumbnails.picture(0)
    assert picture.size == (12, 12)
    assert (np.asarray(picture) == 200).all()
