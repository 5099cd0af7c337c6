"""What is kept of answers about several labels, on a split where every one is known."""

import csv
import io

import numpy as np
import pytest
import torch

from training.blocks import Block
from training.data import UNREADABLE
from training.label_predictions import LabelPredictions
from training.sources import ArraySource

CLASSES = ['a', 'b, with comma', 'c', 'd']
# The first is right, the second misses a and says c, the third says too much, the fourth is right about nothing at all,
# the fifth could not be read, the sixth is right again.
TARGETS = [[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0], [UNREADABLE] * 4, [1, 0, 0, 0]]
LOGITS = [[3.0, -4, -3, -5], [-3, 2, 1, -5], [2, 1, 1, -5], [-2, -2, -2, -5], [9, 9, 9, 9], [2, -1, -1, -5]]


@pytest.fixture
def predictions() -> LabelPredictions:
    targets, logits = torch.tensor(TARGETS, dtype=torch.int8), torch.tensor(LOGITS)
    blocks = [(Block('fc7', 8, 'old'), logits), (Block('fc7_1', 8, 'new'), -logits)]
    return LabelPredictions.of_logits(np.arange(10, 16), targets, logits, CLASSES, blocks)


def test_unreadable_images_are_left_out(predictions: LabelPredictions) -> None:
    assert predictions.indices.tolist() == [10, 11, 12, 13, 15]
    assert predictions.unreadable.tolist() == [14]
    assert predictions.probability.shape == predictions.is_true.shape == (5, 4)


def test_metrics(predictions: LabelPredictions) -> None:
    # a: right, wrong, right, -, right -> 1, 2/3, 3/5; b: 1, 1.
    a = 100 * (1 + 2 / 3 + 3 / 5) / 3
    losses = torch.nn.functional.binary_cross_entropy_with_logits(
        torch.tensor(LOGITS)[[0, 1, 2, 3, 5]], torch.tensor(TARGETS).float()[[0, 1, 2, 3, 5]]
    )
    assert predictions.metrics() == {
        'map': pytest.approx((a + 100) / 2),
        'loss': pytest.approx(losses.item()),
        'images': 5,
    }


def test_classes_are_counted(predictions: LabelPredictions) -> None:
    counts = {CLASSES[c.number]: (c.images, c.hits, c.said) for c in predictions.per_class()}
    assert counts == {'a': (3, 2, 3), 'b, with comma': (2, 2, 2), 'c': (0, 0, 2)}


def test_blocks_answer_alone(predictions: LabelPredictions) -> None:
    (old, whole), (new, opposite) = predictions.block_results()
    assert (old.name, new.name) == ('fc7', 'fc7_1')
    assert whole == predictions.metrics()['map'] > opposite


def test_confusions_are_of_labels_missed_and_said_of_one_image(predictions: LabelPredictions) -> None:
    assert predictions.confusions() == [(0, 2, 1)]


def test_confusions_come_most_often_first() -> None:
    targets = torch.tensor([[1, 0, 0], [0, 0, 1], [0, 0, 1]], dtype=torch.int8)
    logits = torch.tensor([[-1.0, 1, -1], [-1, 1, -1], [-1, 1, -1]])
    predictions = LabelPredictions.of_logits(np.arange(3), targets, logits, ['a', 'b', 'c'], [])
    assert predictions.confusions() == [(2, 1, 2), (0, 1, 1)]


def test_worst_are_not_right_and_of_the_highest_loss(predictions: LabelPredictions) -> None:
    assert predictions.worst(9) == [1, 2]
    assert predictions.worst(1) == [1]


def test_best_are_right_and_have_a_label(predictions: LabelPredictions) -> None:
    assert predictions.best(9) == [0, 4]


def test_best_are_of_many_sets_of_labels() -> None:
    targets = torch.tensor([[1, 0], [1, 0], [0, 1]], dtype=torch.int8)
    logits = torch.where(targets == 1, 1.0, -1.0) * torch.tensor([[9.0], [8.0], [7.0]])
    assert LabelPredictions.of_logits(np.arange(3), targets, logits, ['a', 'b'], []).best(2) == [0, 2]


def test_saturated_scores_are_still_ranked() -> None:
    targets = torch.tensor([[0], [1]], dtype=torch.int8)
    logits = torch.tensor([[90.0], [91.0]])
    assert logits.sigmoid().unique().numel() == 1
    assert LabelPredictions.of_logits(np.arange(2), targets, logits, ['a'], []).metrics()['map'] == 100


def test_nothing_readable() -> None:
    targets = torch.full((2, 2), UNREADABLE, dtype=torch.int8)
    nothing = LabelPredictions.of_logits(np.arange(2), targets, torch.zeros(2, 2), ['a', 'b'], [])
    assert nothing.metrics() == {'map': None, 'loss': None, 'images': 0}


def test_csv_has_every_label_and_its_probability(predictions: LabelPredictions) -> None:
    source = ArraySource(np.zeros((16, 2, 2), np.uint8), [0] * 16, CLASSES)
    rows = list(csv.DictReader(io.StringIO(predictions.to_csv(source), newline='')))
    assert [row['file'] for row in rows] == [f'image {index}' for index in (10, 11, 12, 13, 15)]
    assert [row['labels'] for row in rows] == ['a', 'a,"b, with comma"', '"b, with comma"', '', 'a']
    assert [row['predicted'] for row in rows] == ['a', '"b, with comma",c', 'a,"b, with comma",c', '', 'a']
    assert rows[0]['probability a'] == f'{torch.tensor(3.0).sigmoid():.4f}'
    assert rows[0].keys() == {'file', 'labels', 'predicted', *(f'probability {name}' for name in CLASSES)}
