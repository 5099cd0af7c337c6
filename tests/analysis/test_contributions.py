"""What units add to the logits: exactly what the logits are made of."""

import pytest
import torch
from torch import nn

from analysis.activations import Activations
from analysis.contributions import Contributions, ContributionTally

CLASSES, UNITS = 4, 6


def make(images: int = 50) -> tuple[nn.Linear, torch.Tensor, torch.Tensor]:
    classifier = nn.Linear(UNITS, CLASSES)
    read = torch.rand(images, UNITS)
    read[:, 2] = 0
    return classifier, read, torch.arange(images) % 3  # the fourth class has no image


def tally(classifier: nn.Linear, read: torch.Tensor, targets: torch.Tensor, batch: int) -> Contributions:
    found = ContributionTally(classifier)
    for part, true in zip(read.split(batch), targets.split(batch), strict=True):
        found.add(Activations([part[:, :4], part[:, 4:]], part, classifier(part)), true)
    return found.read()


def test_contributions_and_bias_sum_to_the_true_logit() -> None:
    classifier, read, targets = make()
    found = tally(classifier, read, targets, 7)
    logits = classifier.double()(read.double())
    expected = logits.gather(1, targets[:, None]).mean() - classifier.bias[targets].mean()
    torch.testing.assert_close(found.to_true.sum(), expected.detach())


def test_they_equal_what_is_computed_image_by_image() -> None:
    classifier, read, targets = make()
    found = tally(classifier, read, targets, 7)
    given = (classifier.weight.detach()[None] * read[:, None]).double()  # images, classes, units
    torch.testing.assert_close(found.size, given.abs().mean((0, 1)))
    torch.testing.assert_close(found.to_true, given[range(50), targets].mean(0))
    for number in range(3):
        torch.testing.assert_close(found.per_class[number], given[targets == number, number].mean(0))
    assert found.per_class[3].isnan().all()


def test_batches_do_not_matter() -> None:
    whole, split = (tally(*make_seeded(), batch) for batch in (50, 3))
    torch.testing.assert_close(vars(whole), vars(split), equal_nan=True)


def make_seeded() -> tuple[nn.Linear, torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    return make()


def test_a_unit_that_never_differs_is_dead() -> None:
    classifier, read, targets = make()
    assert tally(classifier, read, targets, 7).is_dead.tolist() == [False, False, True, False, False, False]
    read[-1, 2] = 1e-6
    assert not tally(classifier, read, targets, 7).is_dead.any()


def test_no_image_is_refused() -> None:
    with pytest.raises(ValueError, match='no image could be read'):
        ContributionTally(nn.Linear(UNITS, CLASSES)).read()
