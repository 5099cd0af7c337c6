"""From task to task: how a network keeps the classifiers of earlier tasks, and is asked by each of them."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from .grown import Grown
from .growth import Growth, parse
from .heads import Head, check_name
from .layers import gather
from .outline import classifiers_of

__all__ = ['CopiedHead', 'attach_head', 'copy_head', 'forward_heads', 'keep_head', 'recall_head']


@dataclass(frozen=True)
class CopiedHead:
    """A copy of a network's classifier, until it is attached.

    Attributes:
        name: What it will be called.
        head: What it is.
        weight: Shape (num_classes, width).
        bias: Shape (num_classes,).
    """

    name: str
    head: Head
    weight: Tensor
    bias: Tensor


def keep_head(model: nn.Module, name: str, multi_label: bool = False) -> None:
    """Keep a copy of the classifier that a grown network has now, for the task that it has learnt.

    The copy goes on reading what the classifier reads today, whatever grows later. It is frozen, unless a regime says
    otherwise; `reset_classifier` and growing leave it. A network that has not grown yet keeps its classifier when it
    does: `timm_devnet.grow(model, 'wa512', keep_head='first')`.

    Args:
        model: A grown network with a classifier. It is changed itself.
        name: What to call the head: letters, digits, '-' and '_'.
        multi_label: Whether images had any number of its classes, each by itself.

    Raises:
        ValueError: If the network has not grown, has no classifier, or has such a head already.

    Example:
        >>> import timm, timm_devnet
        >>> model = timm_devnet.grow(timm.create_model('resnet18', num_classes=3), 'wa16')
        >>> timm_devnet.keep_head(model, 'first')
        >>> model.reset_classifier(5)
        >>> model.heads['first'].out_features, model.get_classifier().out_features
        (3, 5)
    """
    if not isinstance(model, Grown):
        raise ValueError(
            f'{type(model).__name__} has not grown, so it has no place for heads: keep the head when it grows, '
            f'timm_devnet.grow(model, growth, keep_head={name!r}).'
        )
    attach_head(model, copy_head(model, name, multi_label))


def copy_head(model: nn.Module, name: str, multi_label: bool = False) -> CopiedHead:
    """Copy the classifier of a network, plain or grown.

    Args:
        model, name, multi_label: As for `keep_head`.

    Raises:
        ValueError: As for `keep_head`; or the classifier is more than one linear layer.
    """
    check_name(name)
    if isinstance(model, Grown) and name in model.kept:
        raise ValueError(f'The network has a head called {name!r} already: give another name.')
    classifiers = classifiers_of(model)
    classifier: Any = classifiers[0]
    is_linear = isinstance(classifier, nn.Linear) or (
        isinstance(classifier, nn.Conv2d) and classifier.kernel_size == (1, 1)
    )
    if not is_linear or len(classifiers) > 1:
        kinds = ' and '.join(type(each).__name__ for each in classifiers)
        raise ValueError(
            f'A head that can be kept is one linear layer; the classifier of {type(model).__name__} is {kinds}: give '
            'the network a classifier (num_classes above 0), or let it grow first and learn the task grown.'
        )
    weight = classifier.weight.detach().flatten(1).clone()
    bias = weight.new_zeros(len(weight)) if classifier.bias is None else classifier.bias.detach().clone()
    names = cast(Any, model).pretrained_cfg.get('label_names') or ()
    if isinstance(names, dict):
        names = [names[key] for key in sorted(names, key=int)]
    label_names = tuple(map(str, names)) if len(names) == len(weight) else ()
    steps = len(parse(model.growth).steps) if isinstance(model, Grown) else 0
    return CopiedHead(name, Head(len(weight), steps, label_names, multi_label), weight, bias)


def attach_head(model: nn.Module, copied: CopiedHead) -> None:
    """Keep a copied head in a network that has grown since, or has grown already."""
    assert isinstance(model, Grown)
    model.add_heads({copied.name: copied.head})
    layer = cast(nn.Linear, model.heads[copied.name])
    with torch.no_grad():
        layer.weight.copy_(copied.weight)
        layer.bias.copy_(copied.bias)


def forward_heads(model: nn.Module, images: Tensor) -> dict[str | None, Tensor]:
    """Ask a network by its classifier and by every head that it keeps, in one forward pass.

    Right after growing, the answers of a head that was kept then are those of the network before it grew, bit for bit.

    Args:
        model: A grown network with a classifier.
        images: Shape (N, in_chans, H, W).

    Returns:
        Logits (N, classes) by the head's name; None stands for the present classifier.

    Raises:
        ValueError: If the network has not grown, so that it keeps no heads.

    Example:
        >>> import timm, timm_devnet, torch
        >>> model = timm.create_model('resnet18', num_classes=3)
        >>> model = timm_devnet.grow(model, 'wa16', keep_head='first')
        >>> model.reset_classifier(5)
        >>> answers = forward_heads(model.eval(), torch.rand(2, 3, 64, 64))
        >>> {name: tuple(logits.shape) for name, logits in answers.items()}
        {None: (2, 5), 'first': (2, 3)}
    """
    if not isinstance(model, Grown):
        raise ValueError(f'{type(model).__name__} has not grown, so it keeps no heads: call the network itself.')
    values = model.head_values(cast(Any, model).forward_features(images))
    present = model.classify_top(gather([values[name] for name in model.top]), pre_logits=False)
    answers: dict[str | None, Tensor] = {None: present}
    answers.update(model.kept_answers(values))
    return answers


def recall_head(model: nn.Module, name: str) -> nn.Module:
    """Give a network for an earlier task: today's weights, as far as the head kept for that task reads them.

    It is a copy, with that head as its classifier, without what has grown since and without the other heads: a plain
    network if the task came before the first growth. It can be evaluated, saved, published and consolidated like any.

    Args:
        model: A network that keeps the head.
        name: Which.

    Raises:
        ValueError: If it keeps no such head.

    Example:
        >>> import timm, timm_devnet
        >>> model = timm_devnet.grow(timm.create_model('resnet18', num_classes=3), 'wa16', keep_head='first')
        >>> type(recall_head(model, 'first')).__name__
        'ResNet'
    """
    kept = model.kept if isinstance(model, Grown) else {}
    if name not in kept:
        raise ValueError(
            f'The network keeps no head called {name!r}; it keeps {", ".join(kept) or "none"}. Its own classifier is '
            'the network itself.'
        )
    assert isinstance(model, Grown)
    head, layer = kept[name], cast(nn.Linear, model.heads[name])
    earlier: Any = deepcopy(model)
    earlier.drop_heads()
    base_name, args = earlier.base_name, earlier._model_args
    with torch.random.fork_rng():  # of what is overwritten at once
        if head.steps:
            earlier.cut(Growth(parse(model.growth).steps[: head.steps]))
        else:
            earlier.shed()
        earlier.reset_classifier(head.num_classes)
    if not head.steps:
        earlier.head_hidden_size = layer.in_features
        earlier._model_args = {key: value for key, value in args.items() if key not in _OF_GROWTH}
        earlier.pretrained_cfg = {**earlier.pretrained_cfg, 'architecture': base_name}
    names = list(head.label_names) or None
    earlier.pretrained_cfg = earlier.default_cfg = {
        **earlier.pretrained_cfg,
        'num_classes': head.num_classes,
        'label_names': names,
    }
    classifier: Any = classifiers_of(earlier)[0]
    with torch.no_grad():
        classifier.weight.copy_(layer.weight.reshape(classifier.weight.shape))
        if classifier.bias is not None:
            classifier.bias.copy_(layer.bias)
    return earlier.train(model.training)


# Arguments of timm's create_model that plain networks do not take.
_OF_GROWTH = ('source', 'growth', 'scale_init', 'new_init', 'settled', 'delta_of', 'heads', 'num_classes')
