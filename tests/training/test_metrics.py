import pytest
import torch
import torch.nn.functional as F

from training.data import UNREADABLE
from training.metrics import Tally, cross_entropy, objective
from training.tasks import SingleLabel

LOGITS = torch.randn(6, 7, generator=torch.Generator().manual_seed(0))
TARGETS = torch.tensor([0, 1, UNREADABLE, 3, 4, UNREADABLE])
READABLE = TARGETS != UNREADABLE


@pytest.mark.parametrize('smoothing', [0.0, 0.1])
def test_unreadable_images_do_not_enter_the_loss(smoothing: float) -> None:
    expected = F.cross_entropy(LOGITS[READABLE], TARGETS[READABLE], label_smoothing=smoothing)
    torch.testing.assert_close(cross_entropy(LOGITS, TARGETS, smoothing), expected)


@pytest.mark.parametrize('smoothing', [0.0, 0.1])
def test_targets_in_parts_give_the_loss_of_whole_ones(smoothing: float) -> None:
    parts = F.one_hot(TARGETS.clamp(min=0), 7) * READABLE[:, None].float()
    torch.testing.assert_close(cross_entropy(LOGITS, parts, smoothing), cross_entropy(LOGITS, TARGETS, smoothing))


def test_loss_of_mixed_images_is_the_mix_of_their_losses() -> None:
    ours, theirs = torch.tensor([0, 1, 2, 3, 4, 5]), torch.tensor([6, 5, 4, 3, 2, 1])
    parts = 0.3 * F.one_hot(ours, 7) + 0.7 * F.one_hot(theirs, 7)
    expected = 0.3 * F.cross_entropy(LOGITS, ours) + 0.7 * F.cross_entropy(LOGITS, theirs)
    torch.testing.assert_close(cross_entropy(LOGITS, parts), expected)


def test_loss_of_no_readable_image_is_zero() -> None:
    assert cross_entropy(LOGITS, torch.full((6,), UNREADABLE)).item() == 0


def test_block_loss_is_the_mean_over_blocks() -> None:
    blocks = [LOGITS.flip(1), 2 * LOGITS]
    expected = cross_entropy(LOGITS, TARGETS, 0.1)
    expected += 0.5 * (cross_entropy(blocks[0], TARGETS, 0.1) + cross_entropy(blocks[1], TARGETS, 0.1)) / 2
    torch.testing.assert_close(objective((LOGITS, blocks), TARGETS, 0.1, 0.5, SingleLabel()), expected)


def test_tally_averages_over_images_not_batches() -> None:
    tally = Tally(torch.device('cpu'))
    targets = LOGITS.topk(3, dim=1).indices[:, 2]  # right at the third guess
    targets[0] = LOGITS[0].argmax()
    targets[1] = LOGITS[1].argmin()
    for part in (slice(0, 4), slice(4, 6)):
        tally.add(cross_entropy(LOGITS[part], targets[part]), LOGITS[part], targets[part])
    metrics = tally.read()
    assert metrics['top1'] == pytest.approx(100 / 6)
    assert metrics['top5'] == pytest.approx(500 / 6)
    assert metrics['loss'] == pytest.approx(F.cross_entropy(LOGITS, targets).item())


def test_tally_counts_readable_images_only() -> None:
    tally = Tally(torch.device('cpu'))
    tally.add(torch.tensor(1.0), LOGITS, torch.where(READABLE, LOGITS.argmax(1), UNREADABLE))
    assert tally.read() == {'loss': 1.0, 'top1': 100.0, 'top5': 100.0}
