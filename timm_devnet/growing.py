"""What one does with a network that grows: let it grow, ask for its levels and for what each of its blocks says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from .any_network import grown_class
from .grown import FAMILIES, Grown, Options
from .growth import Block, Growth, parse
from .keeping import attach_head, copy_head
from .optimizer_state import Before, average_of, carry_average, carry_optimizer, inner_optimizer
from .plan import Level
from .reconcile import SCALE_INIT

__all__ = [
    'all_levels',
    'block_logits',
    'block_names',
    'check_growth',
    'family_of',
    'grow',
    'old_levels',
    'to_own_layout',
]


def family_of(model: nn.Module) -> type[Grown]:
    """The class that a network is, or becomes when it grows.

    Raises:
        ValueError: If it cannot grow.
    """
    if isinstance(model, Grown):
        return type(model)
    family = FAMILIES.get(type(model))
    if family is not None and family.takes(model):
        return family
    return grown_class(type(model))


def old_levels(model: nn.Module) -> list[Level]:
    """The levels of the old network, from the top down, of a plain or a grown one."""
    return family_of(model).levels_of(model)


def all_levels(model: nn.Module) -> str:
    """Name the growth that passes every lower level of the old network, pooled and reconciled, to the classifier.

    Trained in regime `new`, the network is a linear classifier of the features of all levels.

    Args:
        model: A network that can grow, plain or grown.

    Returns:
        A growth without units, for `grow` or a network's name.

    Source:
        Head2Toe (Evci, Dumoulin, Larochelle, Mozer, 2022), without its choice of features by group lasso.

    Example:
        >>> import timm, timm_devnet
        >>> all_levels(timm.create_model('tf_efficientnet_lite0', device='meta'))
        'r1r2r3r4r5r6r7r8u0'
    """
    return str(Growth(((Block(0, tuple(range(1, len(old_levels(model)))), 0),),)))


def to_own_layout(state_dict: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Rename a base's checkpoint to timm's names, from torchvision's or another layout that the family knows.

    Args:
        state_dict: The checkpoint; one in timm's names passes unchanged.
        model: A network that can grow, plain or grown.
    """
    return family_of(model).to_own_layout(state_dict)


def grow(
    model: nn.Module,
    growth: str,
    scale_init: float | None = SCALE_INIT,
    new_init: str = 'random',
    optimizer: Any = None,
    ema: Any = None,
    keep_head: str | None = None,
) -> nn.Module:
    """Let a network grow: add new units, keep everything it has learnt.

    Works on a plain network and on one that has grown before, trained or not; its parameters stay the same objects.
    Where the classifier can go on reading what it read, its columns stay and the new ones start at zero.

    New units depend on torch's seed (`torch.manual_seed`) and on their names alone: the same seed gives the same units,
    however the network was built.

    In the middle of a run the optimizer goes on with what it knows (momenta, moments, counts of steps). The classifier
    takes its old place there; the state of its old columns stays and that of new ones is zero, but where its state has
    other shapes than its weights (Adafactor and others that factor it), or it reads a new layer on top, it starts anew.
    New parameters join the groups `new` and `new, not decayed` of `timm_devnet.parameter_groups`, and a schedule goes
    on. An optimizer without them gets them, with the settings of the old top layer's group and ten times its rate (or
    those of the classifier's, where the top layer is frozen). timm's schedules do not see groups that come later: make
    the schedule anew then, with the same arguments, and give it the present place; the groups carry what it needs.

    What is frozen stays so; new units and the classifier, which reads them, learn. A network that accelerate has
    prepared is unwrapped first: `network = accelerator.unwrap_model(model, keep_fp32_wrapper=False,
    keep_torch_compile=False)`, grow `network`, `accelerator.free_memory()`, and prepare it again, with the optimizer.
    Several processes must grow under the same seed.

    Args:
        model: A timm network of a family that can grow. It is changed itself; copy it first to keep the old one.
        growth: What to add, such as 'wa2048', 'mwa' or 'wa2048_wa1024'; see `timm_devnet.growth`.
        scale_init: Where the learnt scales start; None or 0 switches reconciliation off (through timm's `create_model`
            use 0: it drops arguments that are None).
        new_init: 'random' (He's law), or 'copy': copies of the old units beside them plus noise; units on top, which
            have none beside them, start at random.
        optimizer: That trains the network, also as accelerate has prepared it.
        ema: Moving average of the network, as timm's ModelEmaV3. It grows too: old averages go on, new ones start at
            the network's values.
        keep_head: Name under which the classifier that the network has now is kept beside the new one, for the task
            that it has learnt; see `timm_devnet.keep_head`.

    Returns:
        The same model, grown.

    Raises:
        ValueError: If the growth, the network or an option is none that is known, the network is wrapped, or the
            optimizer or the average is another's. Nothing is changed then.

    Source:
        Growing a Brain (Wang, Ramanan, Hebert, 2017), section 3; `mwa` and `skip` are this project's.

    Example:
        >>> import timm, timm_devnet
        >>> model = timm_devnet.grow(timm.create_model('tf_efficientnet_lite0', num_classes=10), 'mwa512')
        >>> timm_devnet.block_names(model)
        ['conv_head', 'conv_head_1', 'conv_head_2']
        >>> groups = timm_devnet.parameter_groups(model, 'new', lr=0.01, weight_decay=5e-4)
        >>> optimizer = timm.optim.create_optimizer_v2(groups, 'momentum', lr=0.01)
        >>> model = timm_devnet.grow(model, 'wa256', optimizer=optimizer)
        >>> [(group['name'], len(group['params'])) for group in optimizer.param_groups]
        [('new', 4), ('new, not decayed', 11)]
    """
    whole = check_growth(model, growth, scale_init, new_init)
    holder = None if optimizer is None else inner_optimizer(optimizer, model)
    average = None if ema is None else average_of(ema, model)
    keeping = [] if keep_head is None else [network for network in (model, average) if network is not None]
    heads = [copy_head(network, str(keep_head)) for network in keeping]
    before, family, old_plan, steps = Before(model), family_of(model), None, 0
    if isinstance(model, Grown):
        old_plan, steps = model.plan, len(parse(model.growth).steps)
    vars(model).pop('forward', None)  # accelerate leaves one behind: the method of the class that the network was of
    model.__class__ = family  # in place: the same modules, the same parameters
    assert isinstance(model, Grown)
    model.take(whole, Options(scale_init, new_init), settled=steps)
    keeps_columns = model.reads_on(old_plan)
    if holder is not None:
        carry_optimizer(holder, model, before, keeps_columns)
    if average is not None:
        carry_average(grow(average, growth, scale_init, new_init), model, before)
    for network, head in zip(keeping, heads, strict=True):
        attach_head(network, head)
    return model


def check_growth(
    model: nn.Module, growth: str, scale_init: float | None = SCALE_INIT, new_init: str = 'random'
) -> Growth:
    """Refuse a growth that cannot be, before anything is changed.

    Args:
        model, growth, scale_init, new_init: As for `grow`.

    Returns:
        All that the network will have grown by, from the old network on.

    Raises:
        ValueError: As `grow`.
    """
    _check_bare(model)
    options, family = Options(scale_init, new_init), family_of(model)
    added = parse(growth, family.units_for(model))
    before = parse(model.growth).steps if isinstance(model, Grown) else ()
    whole = Growth((*before, *added.steps))
    planned = family.plan_for(model, whole, options)
    family.check_copies(planned, whole, options, len(before))
    if next(model.parameters()).device.type == 'cpu':
        family.check_room(model, planned, len(before))
    if isinstance(model, Grown) and options.scale_init != model.options.scale_init:
        raise ValueError(
            f'The network has grown with scale_init={model.options.scale_init} and goes on with it; '
            f'given scale_init={scale_init}.'
        )
    return whole


def _check_bare(model: nn.Module) -> None:
    """Refuse a network that something goes around, which would not see it grow."""
    forward = vars(model).get('forward')
    is_own = forward is None or getattr(forward, '__func__', None) is type(model).forward
    is_wrapped = isinstance(getattr(model, 'module', getattr(model, '_orig_mod', None)), nn.Module)
    if is_wrapped or not is_own:
        what = f'is inside {type(model).__name__}' if is_wrapped else 'has a forward that is not its own'
        raise ValueError(
            f'The network {what}, which would not see it grow: take network = accelerator.unwrap_model(model, '
            'keep_fp32_wrapper=False, keep_torch_compile=False), grow network, and prepare it again with its optimizer.'
        )
    if any(hasattr(parameter, 'full_tensor') for parameter in model.parameters()):
        raise ValueError(
            "The network's parameters are spread over the processes: grow it before FSDP or DeepSpeed spread them."
        )


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
