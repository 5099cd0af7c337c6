"""What is kept of a network's answers, on a split where every one is known."""

import csv
import io

import numpy as np
import pytest
import torch

from training.predictions import Predictions, answer, name_outputs, printable
from training.sources import ArraySource

# Four classes and no image of the last; the second image of class 0 is taken for class 1, both of class 2 for 0.
TARGETS = np.array([0, 0, 0, 1, 2, 2])
PREDICTED = np.array([0, 1, 0, 1, 0, 0])


@pytest.fixture
def predictions() -> Predictions:
    probability = np.array([0.9, 0.6, 0.95, 0.7, 0.8, 0.9])
    return Predictions(
        classes=['a', 'b', 'c', 'd'],
        indices=np.arange(6),
        targets=TARGETS,
        predicted=PREDICTED,
        probability=probability,
        true_probability=np.where(TARGETS == PREDICTED, probability, 0.9 - probability),
        loss=np.arange(6.0),
        is_in_top5=np.ones(6, dtype=bool),
        blocks=[],
        unreadable=np.array([], dtype=int),
    )


def test_metrics(predictions: Predictions) -> None:
    assert predictions.metrics() == {
        'top1': pytest.approx(50),
        'top5': None,
        'mean_class_top1': pytest.approx((200 / 3 + 100 + 0) / 3),
        'loss': 2.5,
        'images': 6,
    }


def test_classes_without_images_are_left_out(predictions: Predictions) -> None:
    assert predictions.per_class() == [(0, 3, pytest.approx(200 / 3)), (1, 1, 100.0), (2, 2, 0.0)]


def test_confusions_come_most_often_first(predictions: Predictions) -> None:
    assert predictions.confusions() == [(2, 0, 2), (0, 1, 1)]


def test_worst_are_wrong_and_give_the_true_class_least(predictions: Predictions) -> None:
    assert predictions.worst(2) == [5, 4]
    assert predictions.worst(99) == [5, 4, 1]


def test_best_are_of_many_classes(predictions: Predictions) -> None:
    assert predictions.best(2) == [2, 3]
    assert predictions.best(99) == [2, 3, 0]


def test_csv_keeps_odd_names_whole(predictions: Predictions) -> None:
    source = ArraySource(np.zeros((6, 2, 2), np.uint8), TARGETS, predictions.classes)
    source.name = ['plain.png', 'comma, "quote".png', 'line\nbreak.png', '\udcff.png', '=1+1', 'ö.png'].__getitem__  # type: ignore[method-assign, assignment]
    rows = list(csv.DictReader(io.StringIO(predictions.to_csv(source), newline='')))
    assert [row['file'] for row in rows] == [
        *('plain.png', 'comma, "quote".png', 'line\nbreak.png', '\\udcff.png', '=1+1', 'ö.png'),
    ]
    assert rows[4] == {'file': '=1+1', 'target': 'c', 'predicted': 'a', 'probability': '0.8000'}
    predictions.to_csv(source).encode()


def test_answers_of_a_batch() -> None:
    logits = torch.tensor([[0.0, 2.0, 1.0], [3.0, 0.0, 0.0]])
    blocks = [torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])]
    whole, real = answer(logits, blocks, torch.tensor([2, 0]), torch.tensor([7, 8]))
    assert whole.tolist() == [[7, 2, 1, 1, 0], [8, 0, 0, 1, 2]]
    shares = logits.softmax(1)
    torch.testing.assert_close(real[:, 0], torch.stack([shares[0, 1], shares[1, 0]]))
    torch.testing.assert_close(real[:, 1], torch.stack([shares[0, 2], shares[1, 0]]))
    torch.testing.assert_close(real[:, 2], -real[:, 1].log())


def test_outputs_beyond_the_classes_have_names() -> None:
    assert name_outputs(['a', 'b'], 4) == ['a', 'b', 'output 2', 'output 3']


def test_bytes_that_are_no_text_can_be_written() -> None:
    assert printable('\udce9t\u00e9') == '\\udce9t\u00e9'
