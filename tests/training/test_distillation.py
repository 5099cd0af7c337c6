import torch
from torch.testing import assert_close

from timm_devnet.heads import Head
from training.distillation import distil

HEADS = {'one': Head(4, 0), 'several': Head(3, 1, multi_label=True)}
ALL = torch.ones(5, dtype=torch.bool)


def logits(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(5, head.num_classes, generator=generator) for name, head in HEADS.items()}


def test_the_same_answers_cost_nothing() -> None:
    answers = logits(0)
    assert_close(distil(answers, answers, HEADS, ALL), torch.zeros(()), rtol=0, atol=1e-6)
    assert distil(answers, logits(1), HEADS, ALL) > 0.1


def test_gradients_are_those_of_the_papers_cross_entropy() -> None:
    ours, theirs = logits(0)['one'].requires_grad_(), logits(1)['one']
    distil({'one': ours}, {'one': theirs}, HEADS, ALL).backward()
    given = ours.grad.clone()
    ours.grad = None
    softened = (theirs / 2).softmax(1)
    (-(softened * (ours / 2).log_softmax(1)).sum(1).mean()).backward()
    assert_close(given, ours.grad)


def test_classes_by_themselves_have_binary_divergences() -> None:
    ours, theirs = logits(0)['several'], logits(1)['several']
    p, q = (theirs / 2).sigmoid(), (ours / 2).sigmoid()
    wanted = (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).mean()
    assert_close(distil({'several': ours}, {'several': theirs}, HEADS, ALL), wanted)


def test_unreadable_images_do_not_count() -> None:
    answers, wanted = logits(0), logits(1)
    readable = torch.tensor([True, False, True, True, False])
    kept = [{name: value[readable] for name, value in each.items()} for each in (answers, wanted)]
    assert_close(distil(answers, wanted, HEADS, readable), distil(kept[0], kept[1], HEADS, ALL[:3]))
    assert distil(answers, wanted, HEADS, ~ALL) == 0
