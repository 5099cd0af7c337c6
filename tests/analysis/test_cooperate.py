"""How old and new units work together."""

import csv
from pathlib import Path

import pytest
import torch

from analysis.contributions import Contributions
from analysis.cooperate import cooperate, curves_of, favourite_classes, find_cooperation
from analysis.subject import Where, find_images, open_subject, show
from tests.training.test_report import Page
from training.run_folder import RunFolder

THREAD = Where(threads=1)


def test_blocks_alone_reach_what_the_run_measured(grown_run: Path) -> None:
    subject = open_subject(str(grown_run / 'last'), THREAD)
    found = find_cooperation(subject, find_images(subject, 'val'))
    row = RunFolder(grown_run).read_metrics()[-1]
    assert found.whole == pytest.approx(row['val_top1'])
    assert found.alone == pytest.approx([row['top1_conv_head'], row['top1_conv_head_1']])


def test_of_two_blocks_the_one_without_the_other_is_alone(grown_run: Path) -> None:
    subject = open_subject(str(grown_run), THREAD)
    found = find_cooperation(subject, find_images(subject, 'val'))
    assert found.without == found.alone[::-1]


def test_the_bias_speaks_with_every_block(grown_run: Path) -> None:
    subject = open_subject(str(grown_run), THREAD)
    with torch.no_grad():
        subject.classifier.bias[1] += 1000  # so that whoever hears it says the second class, a third of the images
    found = find_cooperation(subject, find_images(subject, 'val'))
    assert [found.whole, *found.alone, *found.without] == pytest.approx([100 / 3] * 5)


def test_contributions_sum_to_the_logits(grown_run: Path) -> None:
    subject = open_subject(str(grown_run), THREAD)
    source = find_images(subject, 'val')
    found = find_cooperation(subject, source).contributions
    [(images, targets, _)] = show(source, subject.config, subject.input_format, subject.device)
    with torch.no_grad():
        logits = subject.network(images)
    expected = (logits - subject.classifier.bias).gather(1, targets[:, None]).mean()
    assert found.to_true.sum().item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_plain_network_has_one_block_and_no_curves(plain_run: Path) -> None:
    subject = open_subject(str(plain_run), THREAD)
    found = find_cooperation(subject, find_images(subject, 'val'))
    assert found.alone == [found.whole]
    assert curves_of(subject) == {}


def test_classes_without_images_are_no_favourites() -> None:
    per_class = torch.tensor([[float('nan')] * 2, [-1.0, 3.0], [-2.0, 4.0]])
    given = Contributions(torch.zeros(2), torch.zeros(2), per_class, torch.zeros(2))
    assert favourite_classes(given) == ([-1.0, 4.0], [1, 2])


def test_the_page_has_figure_six(grown_run: Path) -> None:
    path = cooperate(str(grown_run), THREAD)
    page = Page(path)
    with open(path.with_name('curves.csv')) as file:
        rows = list(csv.DictReader(file))
    assert [row['epoch'] for row in rows] == ['1', '2']
    assert list(rows[0]) == ['epoch', 'whole network', 'conv_head alone', 'conv_head_1 alone']
    assert 'Top-1 of each block alone, and of the whole' in page.text
    with open(path.with_name('units.csv')) as file:
        assert len(list(csv.DictReader(file))) == find_units(grown_run)


def find_units(run: Path) -> int:
    return open_subject(str(run), THREAD).classifier.in_features
