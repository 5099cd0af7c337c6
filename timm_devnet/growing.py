"""What one does with a network that grows: let it grow, ask for its levels and for what each of its blocks says."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from .grown import FAMILIES, Grown, Options
from .growth import Growth, parse
from .plan import Level
from .reconcile import SCALE_INIT

__all__ = ['block_logits', 'block_names', 'family_of', 'grow', 'old_levels', 'to_own_layout']


def family_of(model: nn.Module) -> type[Grown]:
    """The class that a network is, or becomes when it grows.

    Raises:
        ValueError: If it cannot grow.
    """
    family = type(model) if isinstance(model, Grown) else FAMILIES.get(type(model))
    if family is None:
        known = ', '.join(sorted(cls.__name__ for cls in FAMILIES))
        raise ValueError(f'{type(model).__name__} is no network that can grow; these classes can: {known}.')
    return family


def old_levels(model: nn.Module) -> list[Level]:
    """The levels of the old network, from the top down, of a plain or a grown one."""
    return family_of(model).levels(model)


def to_own_layout(state_dict: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Rename a base's checkpoint to timm's names, from torchvision's or another layout that the family knows.

    Args:
        state_dict: The checkpoint; one in timm's names passes unchanged.
        model: A network that can grow, plain or grown.
    """
    return family_of(model).to_own_layout(state_dict)


def grow(model: nn.Module, growth: str, scale_init: float | None = SCALE_INIT, new_init: str = 'random') -> nn.Module:
    """Let a network grow: add new units, keep everything it has learnt.

    Works on a plain network and on one that has grown before, trained or not; its parameters stay the same objects.
    Where the classifier can go on reading what it read, its columns stay and the new ones start at zero.

    New units depend on torch's seed (`torch.manual_seed`) and on their names alone: the same seed gives the same units,
    however the network was built.

    Args:
        model: A timm network of a family that can grow. It is changed itself; copy it first to keep the old one.
        growth: What to add, such as 'wa2048', 'mwa' or 'wa2048_wa1024'; see `timm_devnet.growth`.
        scale_init: Where the learnt scales start; None or 0 switches reconciliation off (through timm's `create_model`
            use 0: it drops arguments that are None).
        new_init: 'random' (He's law), or 'copy': copies of the old units beside them plus noise; units on top, which
            have none beside them, start at random.

    Returns:
        The same model, grown.

    Raises:
        ValueError: If the growth, the network or an option is none that is known.

    Source:
        Growing a Brain (Wang, Ramanan, Hebert, 2017), section 3; `mwa` and `skip` are this project's.

    Example:
        >>> import timm, timm_devnet
        >>> model = timm_devnet.grow(timm.create_model('tf_efficientnet_lite0', num_classes=10), 'mwa512')
        >>> timm_devnet.block_names(model)
        ['conv_head', 'conv_head_1', 'conv_head_2']
    """
    options, family = Options(scale_init, new_init), family_of(model)
    added = parse(growth, family.default_units)
    before = parse(model.growth).steps if isinstance(model, Grown) else ()
    whole = Growth((*before, *added.steps))
    planned = family.plan_for(model, whole, options)  # refuses what cannot be, before anything is changed
    family.check_copies(planned, whole, options, len(before))
    if next(model.parameters()).device.type == 'cpu':
        family.check_room(model, planned, len(before))
    if not isinstance(model, Grown):
        model.__class__ = family  # in place: the same modules, the same parameters
    elif options.scale_init != model.options.scale_init:
        raise ValueError(
            f'The network has grown with scale_init={model.options.scale_init} and goes on with it; '
            f'given scale_init={scale_init}.'
        )
    assert isinstance(model, Grown)
    model.take(whole, options, settled=len(before))
    return model


def block_names(model: nn.Module) -> list[str]:
    """The blocks that the classifier reads, the old one first; empty for a network that has not grown."""
    return list(model.plan.blocks) if isinstance(model, Grown) else []


def block_logits(model: nn.Module, pre_logits: Tensor) -> list[Tensor]:
    """Each block's own answer: its columns of the classifier on its part of the input, plus the bias.

    Args:
        model: A grown network with a classifier.
        pre_logits: Its `forward_head(..., pre_logits=True)`, shape (N, head_hidden_size).

    Returns:
        A tensor (N, num_classes) for each of `block_names(model)`; they sum to the logits plus (blocks - 1) biases.

    Raises:
        ValueError: If the network has no blocks or no classifier.
    """
    if not isinstance(model, Grown):
        raise ValueError(f'{type(model).__name__} has not grown, so it has no blocks that could answer alone.')
    classifier = model.get_classifier()
    if not isinstance(classifier, nn.Linear):
        raise ValueError('The network has no classifier (num_classes=0), so its blocks have no answer.')
    widths = [width for _, width in model.plan.top]
    parts, columns = pre_logits.split(widths, 1), classifier.weight.split(widths, 1)
    # By index, since torch.fx cannot iterate over what it traces.
    return [nn.functional.linear(parts[i], columns[i], classifier.bias) for i in range(len(widths))]
