"""Loss and average precision where an image has any number of labels."""

import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from training.data import UNREADABLE
from training.metrics import objective
from training.multi_label import (
    AveragePrecisions,
    average_precisions,
    binary_cross_entropy,
    image_losses,
    mean_average_precision,
)
from training.tasks import MultiLabel

GENERATOR = torch.Generator().manual_seed(0)
LOGITS = torch.randn(6, 7, generator=GENERATOR)
TRUE = torch.randint(0, 2, (6, 7), generator=GENERATOR).float()
IS_READABLE = torch.tensor([True, True, False, True, True, False])
TARGETS = torch.where(IS_READABLE[:, None], TRUE, UNREADABLE)


def expected_precisions(scores: Tensor, is_true: Tensor) -> np.ndarray:
    """What sklearn says of each class."""
    metrics = pytest.importorskip('sklearn.metrics')
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # sklearn warns of classes without images
        found = [metrics.average_precision_score(is_true[:, i], scores[:, i]) for i in range(scores.shape[1])]
    return np.where(is_true.any(0), 100 * np.array(found), np.nan)


@pytest.mark.parametrize('smoothing', [0.0, 0.1])
def test_loss_is_the_mean_over_classes_and_readable_images(smoothing: float) -> None:
    smooth = TRUE[IS_READABLE] * (1 - smoothing) + smoothing / 2
    expected = F.binary_cross_entropy_with_logits(LOGITS[IS_READABLE], smooth)
    torch.testing.assert_close(binary_cross_entropy(LOGITS, TARGETS, smoothing), expected)


def test_loss_of_no_readable_image_is_zero() -> None:
    assert binary_cross_entropy(LOGITS, torch.full((6, 7), float(UNREADABLE))).item() == 0


def test_loss_of_mixed_images_is_the_mix_of_their_losses() -> None:
    other = TRUE.flip(0)
    expected = 0.3 * binary_cross_entropy(LOGITS, TRUE, 0.1) + 0.7 * binary_cross_entropy(LOGITS, other, 0.1)
    torch.testing.assert_close(binary_cross_entropy(LOGITS, 0.3 * TRUE + 0.7 * other, 0.1), expected)


def test_loss_of_each_image_averages_to_the_whole() -> None:
    torch.testing.assert_close(image_losses(LOGITS, TRUE).mean(), F.binary_cross_entropy_with_logits(LOGITS, TRUE))


def test_block_loss_is_the_mean_over_blocks() -> None:
    blocks = [LOGITS.flip(1), 2 * LOGITS]
    alone = [binary_cross_entropy(block, TARGETS, 0.1) for block in blocks]
    expected = binary_cross_entropy(LOGITS, TARGETS, 0.1) + 0.5 * (alone[0] + alone[1]) / 2
    torch.testing.assert_close(objective((LOGITS, blocks), TARGETS, 0.1, 0.5, MultiLabel(7)), expected)


@pytest.mark.parametrize('levels', [2, 5, 10_000])
@pytest.mark.parametrize('share', [0.02, 0.5])
def test_average_precision_is_that_of_sklearn(levels: int, share: float) -> None:
    """With few levels of scores most images are tied; at the lesser share some classes have no image."""
    generator = torch.Generator().manual_seed(levels)
    scores = torch.randint(0, levels, (60, 12), generator=generator) / levels
    is_true = torch.rand(60, 12, generator=generator) < share
    np.testing.assert_allclose(average_precisions(scores, is_true), expected_precisions(scores, is_true), rtol=1e-12)


def test_classes_without_images_do_not_count() -> None:
    scores = torch.tensor([[0.9, 0.9], [0.1, 0.1]])
    found = average_precisions(scores, torch.tensor([[True, False], [False, False]]))
    assert found[0] == 100
    assert np.isnan(found[1])
    assert mean_average_precision(found) == 100
    assert np.isnan(mean_average_precision(found[1:]))


def test_tally_measures_all_batches_at_once_and_readable_images_only() -> None:
    tally = AveragePrecisions(torch.device('cpu'))
    for part in (slice(0, 3), slice(3, 6)):
        tally.add(binary_cross_entropy(LOGITS[part], TARGETS[part]), LOGITS[part], TARGETS[part])
    expected = expected_precisions(LOGITS[IS_READABLE], TRUE[IS_READABLE] == 1)
    assert tally.read() == {
        'loss': pytest.approx(binary_cross_entropy(LOGITS, TARGETS).item()),
        'map': pytest.approx(np.nanmean(expected)),
    }
