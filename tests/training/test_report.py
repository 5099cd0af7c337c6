"""The page about a run: true to its numbers, whole in itself, and safe from the names in it."""

import dataclasses
import html.parser
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from training.blocks import Block
from training.config import Config
from training.data import UNREADABLE
from training.label_predictions import LabelPredictions
from training.measures import interval
from training.predictions import Predictions
from training.report import duration, write_report
from training.run_folder import RunFolder
from training.sources import ArraySource

HOSTILE = '<script>alert("x")</script>&amp;\'$body \udcff'
VOID = {'meta', 'img', 'br', 'input', 'link'}


class Page(html.parser.HTMLParser):
    """Reads a page: its elements, its text, and whether every element is closed in its turn."""

    def __init__(self, path: Path):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.source = path.read_text(encoding='utf-8')
        self.text = ''
        self.feed(self.source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        self.text += ' ' if tag in ('td', 'th', 'small') else ''

    def handle_data(self, data: str) -> None:
        self.text += data

    def count(self, tag: str, **attributes: str) -> int:
        return sum(name == tag and attributes.items() <= found.items() for name, found in self.elements)


def make_folder(tmp_path: Path, classes: list[str], **row: float) -> RunFolder:
    folder = RunFolder(tmp_path / 'run')
    facts: dict[str, Any] = {
        'config': dataclasses.asdict(Config(data_dir='photos & more', epochs=2)),
        'data': {'classes': classes, 'train_images': 80, 'val_images': 40, 'fingerprint': '0123'},
        'command': f'train.py --experiment {HOSTILE!r}',
        'versions': {'timm': '1.0.31', 'timm-devnet': None},
        'python': '3.10',
        'machine': 'a machine',
    }
    folder.write_run(facts)
    names = ('train_loss', 'train_top1', 'val_loss', 'val_top1', 'val_top5', 'images_per_s', 'elapsed_s')
    first = {'epoch': 1, **dict.fromkeys(names, 1.0), 'val_top1': None, **row}
    folder.write_metrics([first, {**first, 'epoch': 2, 'val_top1': 50.0}])
    return folder


def make_predictions(classes: list[str], images: int = 40, **changes: Any) -> Predictions:
    random = np.random.default_rng(0)
    targets = np.arange(images) % len(classes)
    predicted = np.where(random.random(images) < 0.6, targets, random.integers(0, len(classes), images))
    given = Predictions(
        classes=classes,
        indices=np.arange(images),
        targets=targets,
        predicted=predicted,
        probability=np.full(images, 0.75),
        true_probability=np.where(targets == predicted, 0.75, 0.05),
        loss=np.ones(images),
        is_in_top5=np.ones(images, dtype=bool),
        blocks=[],
        unreadable=np.array([], dtype=int),
    )
    return dataclasses.replace(given, **changes)


def make_source(predictions: Predictions) -> ArraySource:
    return ArraySource(np.zeros((len(predictions.targets), 8, 8), np.uint8), predictions.targets, predictions.classes)


def make_source_of(images: int, classes: list[str]) -> ArraySource:
    return ArraySource(np.zeros((images, 8, 8), np.uint8), [0] * images, classes)


def make_page(tmp_path: Path, predictions: Predictions, **row: float) -> Page:
    folder = make_folder(tmp_path, predictions.classes, **row)
    write_report(folder, predictions, make_source(predictions))
    return Page(folder.path / 'report.html')


def test_it_shows_what_was_measured(tmp_path: Path) -> None:
    predictions = make_predictions(['ant', 'bee', 'cat', 'dog', 'elk'])
    page = make_page(tmp_path, predictions)
    metrics = predictions.metrics()
    for number in (metrics['top1'], metrics['top5'], metrics['mean_class_top1']):
        assert f'{number:.2f} %' in page.text
    assert '1.0000' in page.text
    for name in ('Curves', 'Classes', 'Confusions', 'Worst examples', 'Best examples', 'How it was made'):
        assert page.count('h2', id=name.lower().replace(' ', '-')) == 1
    assert 'Old and new units' not in page.text
    assert 'photos & more' in page.text


def test_it_needs_no_other_file(tmp_path: Path) -> None:
    page = make_page(tmp_path, make_predictions(['ant', 'bee']))
    places = [found[key] for _, found in page.elements for key in ('src', 'href') if key in found]
    assert places
    assert all(place.startswith(('data:image/jpeg;base64,', '#')) for place in places)
    assert not re.search(r'url\(|@import|https?://', page.source)
    assert not {tag for tag, _ in page.elements} & {'script', 'link', 'iframe', 'object'}


def test_names_cannot_break_it(tmp_path: Path) -> None:
    predictions = make_predictions([HOSTILE, f'"onload=alert(1) {HOSTILE}'])
    folder, source = make_folder(tmp_path, predictions.classes), make_source(predictions)
    source.name = lambda index: f'{HOSTILE}/{index}.png'  # type: ignore[method-assign]
    write_report(folder, predictions, source)
    page = Page(folder.path / 'report.html')
    assert page.count('script') == 0
    assert not [found for _, found in page.elements if 'onload' in found]
    assert '<script>alert("x")</script>&amp;\'$body \\udcff/' in page.text


def test_it_can_be_read_without_seeing(tmp_path: Path) -> None:
    page = make_page(tmp_path, make_predictions(['ant', 'bee']))
    assert page.count('html', lang='en') == page.count('h1') == page.count('main') == page.count('nav') == 1
    assert all(found.get('alt') for tag, found in page.elements if tag == 'img')
    assert all(found.get('aria-label') for tag, found in page.elements if found.get('role') in ('img', 'region'))
    assert all(found.get('scope') in ('row', 'col') for tag, found in page.elements if tag == 'th')
    assert page.count('caption') == page.count('table')
    ids = [found['id'] for _, found in page.elements if 'id' in found]
    assert len({*ids}) == len(ids)
    assert {f'#{name}' for name in ids} == {found['href'] for _, found in page.elements if 'href' in found}


@pytest.mark.parametrize(('count', 'has_matrix'), [(2, True), (20, True), (21, False), (400, False)])
def test_many_classes_have_no_matrix(tmp_path: Path, count: int, has_matrix: bool) -> None:
    page = make_page(tmp_path, make_predictions([f'class {number}' for number in range(count)], images=800))
    assert page.count('table', **{'class': 'confusion'}) == has_matrix
    assert 'Classes taken for one another most often' in page.text
    assert f'class {count - 1}' in page.text
    assert len(page.source) < 600_000


def test_old_and_new_units_stand_beside_the_whole(tmp_path: Path) -> None:
    predictions = make_predictions(['ant', 'bee'])
    blocks = [
        (Block('fc7', 4096, 'old'), predictions.targets),
        (Block('fc7_1', 2048, 'new'), 1 - predictions.targets),
    ]
    page = make_page(
        tmp_path, dataclasses.replace(predictions, blocks=blocks), norm_fc7=12.5, scale_fc7=9.75, lr_old=0.1
    )
    words = ' '.join(page.text.split())
    assert 'whole network 6144 units' in words
    assert 'fc7 4096 old units 100.00 % 12.5 9.75' in words
    assert 'fc7_1 2048 new units 0.00 %' in words
    assert 'Learning rate' in words
    assert 'Norms of blocks' in words


def test_all_right_and_all_wrong(tmp_path: Path) -> None:
    some = make_predictions(['ant', 'bee'])
    assert 'Every image was told right' in make_page(tmp_path, dataclasses.replace(some, predicted=some.targets)).text
    wrong = make_page(tmp_path, dataclasses.replace(some, predicted=1 - some.targets))
    assert '0.00 %' in wrong.text
    assert 'Best examples' not in wrong.text


def test_unreadable_images_are_told_of(tmp_path: Path) -> None:
    some = make_predictions(['ant', 'bee'])
    assert '2 validation images' in make_page(tmp_path, dataclasses.replace(some, unreadable=np.array([1, 2]))).text
    nothing = make_predictions(['ant', 'bee'], images=0, unreadable=np.arange(40))
    assert 'No validation image could be read' in make_page(tmp_path, nothing).text


def test_a_picture_that_has_gone_leaves_its_place(tmp_path: Path) -> None:
    predictions = make_predictions(['ant', 'bee'])
    folder, source = make_folder(tmp_path, predictions.classes), make_source(predictions)
    source.images = source.images[:0]
    write_report(folder, predictions, source)
    assert 'cannot be read' in Page(folder.path / 'report.html').text


def test_a_report_is_current_until_another_epoch(tmp_path: Path) -> None:
    predictions = make_predictions(['ant', 'bee'])
    folder = make_folder(tmp_path, predictions.classes)
    assert not folder.has_current('report.html')
    write_report(folder, predictions, make_source(predictions))
    assert folder.has_current('report.html')
    folder.write_metrics(json.loads(json.dumps(folder.read_metrics())))
    assert not folder.has_current('report.html')


def test_interval_holds_its_share_of_the_truth() -> None:
    hits = np.random.default_rng(0).binomial(200, 0.95, 4000)
    ends = np.array([interval(count / 200, 200) for count in hits])
    assert np.mean((ends[:, 0] <= 95) & (ends[:, 1] >= 95)) == pytest.approx(0.95, abs=0.02)
    assert interval(1.0, 10)[1] == pytest.approx(100)


@pytest.mark.parametrize(
    ('seconds', 'words'), [(0.06, '0.1 s'), (59.2, '59.2 s'), (61, '1 min 1 s'), (3600, '1 h 0 min')]
)
def test_durations(seconds: float, words: str) -> None:
    assert duration(seconds) == words


class TestSeveralLabels:
    """The page about images with any number of labels."""

    @staticmethod
    def predictions(classes: list[str], images: int = 40, certainty: float = 1.0) -> LabelPredictions:
        """Answers of which many are wrong, or none where they are certain enough; the last image is unreadable."""
        generator = torch.Generator().manual_seed(0)
        targets = torch.randint(0, 2, (images, len(classes)), generator=generator, dtype=torch.int8)
        logits = certainty * (2 * targets - 1) + torch.randn(targets.shape, generator=generator)
        targets[-1:] = UNREADABLE
        blocks = [(Block('fc7', 4096, 'old'), logits), (Block('fc7_1', 2048, 'new'), -logits)]
        return LabelPredictions.of_logits(np.arange(images), targets, logits, classes, blocks)

    @staticmethod
    def page(tmp_path: Path, predictions: LabelPredictions) -> Page:
        folder, source = RunFolder(tmp_path / 'run'), make_source_of(len(predictions.indices) + 1, predictions.classes)
        make_folder(tmp_path, predictions.classes)
        row = {'epoch': 1, 'train_loss': 0.7, 'val_loss': 0.6, 'val_map': 50.0, 'images_per_s': 1.0, 'elapsed_s': 1.0}
        folder.write_metrics([row, {**row, 'epoch': 2, 'val_map': 60.0}])
        write_report(folder, predictions, source)
        return Page(folder.path / 'report.html')

    def test_it_shows_what_was_measured(self, tmp_path: Path) -> None:
        predictions = self.predictions(['ant', 'bee', 'cat'])
        page = self.page(tmp_path, predictions)
        words = ' '.join(page.text.split())
        assert f'mAP{predictions.metrics()["map"]:.2f} %mean of 3 classes, 39 images' in words
        assert f'{predictions.metrics()["loss"]:.4f}' in words
        for name, precision in zip(predictions.classes, predictions.average_precision, strict=True):
            assert f'{name} {predictions.is_true[:, predictions.classes.index(name)].sum()} {precision:.2f} %' in words
        for name in ('Curves', 'Old and new units', 'Classes', 'Mistakes', 'Worst examples', 'Best examples'):
            assert page.count('h2', id=name.lower().replace(' ', '-')) == 1
        assert 'Best epoch2of 2' in words
        assert '1 validation images could not be read' in words
        assert 'op-1' not in words

    def test_mistakes_are_counted(self, tmp_path: Path) -> None:
        predictions = self.predictions(['ant', 'bee', 'cat'], certainty=0.2)
        words = ' '.join(self.page(tmp_path, predictions).text.split())
        missed, true = (predictions.is_true & ~predictions.is_said).sum(0), predictions.is_true.sum(0)
        rows = [f'{predictions.classes[i]} {missed[i]} {true[i]}' for i in np.argsort(-missed, kind='stable')]
        assert ' '.join(rows) in words.partition('Labels missed most often')[2].partition('Labels said')[0]
        first, second, count = predictions.confusions()[0]
        assert f'{predictions.classes[first]} {predictions.classes[second]} {count}' in words

    def test_blocks_stand_beside_the_whole(self, tmp_path: Path) -> None:
        predictions = self.predictions(['ant', 'bee'])
        words = ' '.join(self.page(tmp_path, predictions).text.split())
        assert f'whole network 6144 units {predictions.metrics()["map"]:.2f} %' in words
        assert f'fc7_1 2048 new units {predictions.block_results()[1][1]:.2f} %' in words

    def test_names_cannot_break_it(self, tmp_path: Path) -> None:
        page = self.page(tmp_path, self.predictions([HOSTILE, f'"onload=alert(1) {HOSTILE}']))
        assert page.count('script') == 0
        assert not [found for _, found in page.elements if 'onload' in found]

    def test_it_can_be_read_without_seeing(self, tmp_path: Path) -> None:
        page = self.page(tmp_path, self.predictions(['ant', 'bee']))
        assert all(found.get('alt') for tag, found in page.elements if tag == 'img')
        assert page.count('caption') == page.count('table')
        ids = [found['id'] for _, found in page.elements if 'id' in found]
        assert {f'#{name}' for name in ids} == {found['href'] for _, found in page.elements if 'href' in found}

    def test_all_right(self, tmp_path: Path) -> None:
        text = self.page(tmp_path, self.predictions(['ant', 'bee'], certainty=99.0)).text
        assert 'Every label of every image got 50 % or more, and no other did' in text
        assert 'Every image was told right' in text
        assert 'none of the classes' not in text

    def test_many_labels_unfold_and_are_not_all_told(self, tmp_path: Path) -> None:
        page = self.page(tmp_path, self.predictions([f'class {number}' for number in range(400)]))
        assert 'The 20 classes of the lowest average precision, of 400' in page.text
        assert page.count('summary') == 3
        assert re.search(r'and \d+ more', page.text)
        assert page.text.count('✗') <= 1 + 12 * 5

    def test_nothing_readable(self, tmp_path: Path) -> None:
        page = self.page(tmp_path, self.predictions(['ant', 'bee'], images=1))
        assert 'No validation image could be read' in page.text
