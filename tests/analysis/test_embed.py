"""How classes lie in what the classifier reads."""

import csv
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg

from analysis.embed import Space, draw, draw_all, draw_space, embed, find_features, shown_classes
from analysis.subject import Where, find_images, open_subject
from tests.training.test_report import Page

WHERE = Where(threads=1, split='train')


def test_old_and_new_units_are_the_parts_of_the_whole(grown_run: Path) -> None:
    subject = open_subject(str(grown_run), WHERE)
    found = find_features(subject, subject.network, find_images(subject, 'train'), range(10))
    assert found['whole'].shape == (10, subject.classifier.in_features)
    assert np.array_equal(found['whole'], np.concatenate([found['old units'], found['new units']], 1))


def test_the_base_is_the_plain_network_that_it_grew_from(grown_run: Path) -> None:
    subject = open_subject(str(grown_run), WHERE)
    source = find_images(subject, 'train')
    start = subject.start()
    found = find_features(subject, start, source, range(6), is_start=True)
    start.shed()  # it is the plain network again
    start.reset_classifier(3)
    plain = find_features(subject, start.eval(), source, range(6))
    torch.testing.assert_close(found['base'], plain['whole'], rtol=0, atol=0)


def test_the_page_has_figure_three(grown_run: Path, plain_run: Path) -> None:
    path = embed(str(grown_run), str(plain_run), points=20, where=WHERE)
    page = Page(path)
    with open(path.with_name('spaces.csv')) as file:
        rows = list(csv.DictReader(file))
    assert [row['space'] for row in rows] == ['base', 'fine-tuned', 'grown', 'old units', 'new units']
    for row in rows:
        assert row['images'] == '20'
        assert f'{float(row["neighbour_accuracy"]):.2f} %' in page.text
        assert path.with_name(f'{row["space"].replace(" ", "_")}.png').stat().st_size > 0
    assert page.count('svg', role='img') == 5


def test_no_name_hides_another() -> None:
    targets = np.arange(90) % 9
    points = np.random.default_rng(0).normal(size=(90, 2))  # all classes in one heap
    space = Space('base', points, points, 50.0, None)
    names = [f'a rather long name {number}' for number in range(9)]
    for figure in (draw_space(space, targets, names, list(range(9))), draw_all([space] * 3, targets, names, [0, 4, 8])):
        renderer = FigureCanvasAgg(figure).get_renderer()
        for axes in figure.axes:
            boxes = [name.get_window_extent(renderer) for name in axes.texts]
            assert len(boxes) >= 3
            assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))


def test_of_many_images_some_are_drawn_once_each() -> None:
    drawn = draw(1000, 50, seed=3)
    assert len({*drawn}) == 50
    assert drawn == sorted(drawn) == draw(1000, 50, seed=3) != draw(1000, 50, seed=4)
    assert draw(7, 50, seed=3) == list(range(7))
    with pytest.raises(ValueError, match='--points 4'):
        draw(7, 4, seed=3)


def test_classes_of_the_most_images_have_colours() -> None:
    targets = np.repeat(np.arange(30), np.arange(30))
    assert shown_classes(targets) == list(range(10, 30))
