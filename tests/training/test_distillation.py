from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from timm.models import save_for_hf
from torch.testing import assert_close

import timm_devnet
from timm_devnet.heads import Head
from training.distillation import Teacher, distil
from training.metrics import kept_answers
from training.networks import HeadAnswers

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


@pytest.mark.parametrize('regime', ['all', 'conv_head-new'])
def test_at_the_start_both_networks_say_the_same(tmp_path: Path, regime: str) -> None:
    network: Any = timm.create_model('tf_efficientnet_lite0', num_classes=4)
    save_for_hf(network, tmp_path, safe_serialization=True)
    timm_devnet.grow(network, 'wa8', keep_head='first')
    timm_devnet.parameter_groups(network, regime, 0.1, 0.0, heads_learn=True)
    AcceleratorState._reset_state()
    teacher = Teacher(tmp_path, 'first', network, Accelerator(cpu=True), torch.contiguous_format)
    before = {name: tensor.clone() for name, tensor in teacher.network.state_dict().items() if 'running' in name}
    images = 3 * torch.rand(4, 3, 64, 64)
    answers = kept_answers(HeadAnswers(network.train(), with_blocks=False)(images))
    assert torch.equal(answers['first'], teacher.answer(images)['first'])
    assert all(torch.equal(teacher.network.state_dict()[name], tensor) for name, tensor in before.items())
