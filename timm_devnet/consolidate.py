"""The form in which a grown network is deployed: the same logits from fewer and wider layers.

Everything is told from the network's graph (`torch.fx`) and its plan, so it is the same for every family: BatchNorms go
into the convolutions before them, scales into the layers that read them, old and new units that read the same become
one layer. No number decides what becomes of a layer, so one architecture always has one form.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Iterator
from copy import deepcopy
from typing import Any, cast

import torch
import torch.nn.functional as F
from timm.layers import BatchNormAct2d, Conv2dSame, SelectAdaptivePool2d
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from .frozen import Tracer
from .grown import Grown
from .layers import ConvUnits, LinearUnits, WeightsFirst, gather, match_size
from .plan import Phase
from .reconcile import Reconcile, UnitLength

__all__ = ['Consolidated', 'consolidate']

# By exact type: others may do more with their weights, such as standardise them.
_CONVOLUTIONS = (nn.Conv2d, Conv2dSame)
_NORMS = (nn.BatchNorm2d, BatchNormAct2d)
_ELEMENTWISE = (nn.ReLU, nn.ReLU6, nn.SiLU, nn.GELU, nn.Hardswish)

Linear = nn.Conv2d | nn.Linear
Node = Any  # fx.Node, whose target and arguments may be anything as torch types them


class Consolidated(nn.Module):
    """A grown network for evaluation alone, as `consolidate` makes it.

    Args:
        network: Images (N, in_chans, H, W) to logits.
        report: What became of the grown network's parts, a line each.
    """

    def __init__(self, network: fx.GraphModule, report: tuple[str, ...]) -> None:
        super().__init__()
        self.network = network
        self.report = report
        super().train(False)
        self.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, num_classes) of images (N, in_chans, H, W)."""
        return self.network(x)

    def train(self, mode: bool = True) -> Consolidated:
        """Stay in evaluation.

        Raises:
            ValueError: If `mode`: what training needs is folded away.
        """
        if mode:
            raise ValueError('A consolidated network is for evaluation: train the grown one and consolidate it again.')
        return super().train(False)

    def extra_repr(self) -> str:
        return '\n'.join(self.report)


class PositionLinear(nn.Module):
    """A linear layer over channels: of vectors (N, C), or at every position of maps (N, C, H, W)."""

    def __init__(self, linear: WeightsFirst) -> None:
        super().__init__()
        self.linear = linear

    def forward(self, x: Tensor) -> Tensor:
        """Outputs (N, units) or (N, units, H, W)."""
        return self.linear(x.movedim(1, -1)).movedim(-1, 1)


def consolidate(model: nn.Module) -> Consolidated:
    """Make the deployment form of a grown network; it is a copy, and `model` stays as it is.

    Its logits are those of `model` in evaluation up to rounding, which docs/deploying.md has in figures. BatchNorms are
    folded into the convolutions before them, scales (gamma) into the layers that read them; old and new units that read
    the same become one layer; dropout goes. The division of each block by its own L2
    norm stays, since it depends on the sample. `report` of the result says what became of what.

    The form depends on the architecture alone, so saved weights load into `consolidate` of a network of the same name.

    Args:
        model: A grown network, trained or not, in any mode.

    Returns:
        A plain module with `forward(images) -> logits`, in evaluation, that asks for no gradients.

    Raises:
        ValueError: If the network has not grown.

    Example:
        >>> import timm, timm_devnet
        >>> model = timm.create_model('tf_efficientnet_lite0_wa256', num_classes=10)
        >>> for line in timm_devnet.consolidate(model).report:
        ...     print(line)
        folded: 50 of 50 BatchNorms into the convolutions before them
        folded: the scales of conv_head_scaled, conv_head_1_scaled into classifier
        merged: conv_head, grown.conv_head_1.conv into one layer of 1536 units
        stays: the L2 norms of conv_head_scaled, conv_head_1_scaled, which differ from sample to sample
    """
    if not isinstance(model, Grown):
        raise ValueError(
            f'{type(model).__name__} has not grown, so it has nothing to consolidate: give the network itself that '
            'timm_devnet.grow or a name such as vgg16_wa2048 made, without a wrapper.'
        )
    whole = deepcopy(model).eval()
    module: Any
    for module in whole.modules():
        if hasattr(module, 'grad_checkpointing'):  # means nothing without gradients, and cannot be traced
            module.grad_checkpointing = False
    try:
        graph = _Tracer().trace(whole)
    except Exception as problem:  # torch.fx and the layers themselves raise errors of every kind
        return Consolidated(_as_it_is(whole), (f'stays: the whole network, since torch.fx cannot trace it: {problem}',))
    network = fx.GraphModule(whole, graph)
    _drop_idle(network)
    _hand_on_features(network, whole.feature_widths)
    _find_positions(network)
    report = [
        *_fold_norms(network),
        *_fold_scales(network, _scaled_widths(whole)),
        *_merge_units(network, _levels(whole)),
    ]
    norms = [_block(node) for node in network.graph.nodes if isinstance(_module(network, node), Reconcile | UnitLength)]
    if norms:
        report.append(f'stays: the L2 norms of {", ".join(norms)}, which differ from sample to sample')
    if model.kept:
        report.append(
            f'left out: the kept heads {", ".join(model.kept)}; for one of them consolidate what recall_head gives'
        )
    _tidy(network)
    return Consolidated(network, tuple(report) or ('stays: everything',))


class _Tracer(Tracer):
    """Looks inside new units too, and keeps poolings whole, which could be one for several blocks."""

    def __init__(self) -> None:
        super().__init__()
        inside = (ConvUnits, LinearUnits)
        self.leaves = (*(leaf for leaf in self.leaves if leaf not in inside), SelectAdaptivePool2d, WeightsFirst)


def _as_it_is(whole: nn.Module) -> fx.GraphModule:
    graph = fx.Graph()
    graph.output(graph.call_module('network', (graph.placeholder('x'),)))
    return fx.GraphModule({'network': whole}, graph)


def _module(network: fx.GraphModule, node: Any) -> nn.Module | None:
    """The module that a node calls, if it calls one."""
    return network.get_submodule(node.target) if node.op == 'call_module' else None


def _set_module(network: fx.GraphModule, target: str, module: nn.Module) -> None:
    parent, _, name = target.rpartition('.')
    setattr(network.get_submodule(parent), name, module)


def _replace(node: Node, value: Node) -> None:
    node.replace_all_uses_with(value)
    node.graph.erase_node(node)


def _tidy(network: fx.GraphModule) -> None:
    network.graph.eliminate_dead_code()
    network.graph.lint()
    network.recompile()
    network.delete_all_unused_submodules()


# What does nothing in evaluation, and how values travel -------------------------------------------------------------


def _drop_idle(network: fx.GraphModule) -> None:
    """Take out dropout and other layers that hand on what they are given."""
    for node in list(network.graph.nodes):
        module = _module(network, node)
        if isinstance(module, nn.Identity | nn.modules.dropout._DropoutNd) or node.target is F.dropout:
            _replace(node, node.args[0])
        elif node.target is gather and len(node.args[0]) == 1:
            _replace(node, node.args[0][0])


def _hand_on_features(network: fx.GraphModule, widths: list[int]) -> None:
    """Hand values from `forward_features` to `forward_head` one by one, not as channels of one map."""
    for node in list(network.graph.nodes):
        if node.op == 'call_method' and node.target == 'split' and list(node.args[1]) == widths:
            joined = node.args[0]
            if len(widths) > 1 and joined.target is not torch.cat:
                continue
            parts = [joined] if len(widths) == 1 else joined.args[0]
            for user in list(node.users):
                _replace(user, parts[user.args[1]])
            network.graph.erase_node(node)


def _find_positions(network: fx.GraphModule) -> None:
    """Let new units of a fully connected layer be one node, with the axes that they move."""
    for node in list(network.graph.nodes):
        module = _module(network, node)
        if isinstance(module, WeightsFirst):
            moved, (back,) = node.args[0], node.users
            assert (moved.target, back.target) == ('movedim', 'movedim')
            node.args = (moved.args[0],)
            _replace(back, node)
            if not moved.users:
                network.graph.erase_node(moved)
            _set_module(network, node.target, PositionLinear(module))


# BatchNorms ---------------------------------------------------------------------------------------------------------


def _fold_norms(network: fx.GraphModule) -> Iterator[str]:
    """Fold every BatchNorm into the convolution before it, if nothing else reads that."""
    calls = Counter(node.target for node in network.graph.nodes if node.op == 'call_module')
    norms = [
        node for node in network.graph.nodes if isinstance(_module(network, node), nn.modules.batchnorm._BatchNorm)
    ]
    folded = 0
    for node in norms:
        norm, before = _module(network, node), node.args[0]
        conv = _module(network, before)
        is_alone = len(before.users) == 1 == calls[before.target] == calls[node.target]
        if is_alone and type(norm) in _NORMS and type(conv) in _CONVOLUTIONS:
            assert isinstance(norm, nn.BatchNorm2d) and isinstance(conv, nn.Conv2d)
            if norm.running_mean is not None:
                _fold_norm(conv, norm)
                _set_module(network, node.target, getattr(norm, 'act', nn.Identity()))
                folded += 1
    _drop_idle(network)
    if norms:
        yield f'folded: {folded} of {len(norms)} BatchNorms into the convolutions before them'


def _fold_norm(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
    numbers = (conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.weight, norm.bias)
    weight, bias, mean, var, scale, shift = (None if number is None else _exact(number) for number in numbers)
    assert weight is not None and mean is not None and var is not None
    weight, bias = fuse_conv_bn_weights(weight, bias, mean, var, norm.eps, scale, shift)
    _set_weights(conv, weight, bias)


def _exact(number: Tensor) -> Tensor:
    """In float64, so that nothing is lost on the way; on the CPU, since not every device has it."""
    return number.detach().to('meta' if number.is_meta else 'cpu', torch.float64)


def _set_weights(layer: Linear, weight: Tensor, bias: Tensor | None) -> None:
    dd: dict[str, Any] = dict(device=layer.weight.device, dtype=layer.weight.dtype)
    layer.weight = nn.Parameter(weight.detach().to(**dd), requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().to(**dd), requires_grad=False)


# Scales -------------------------------------------------------------------------------------------------------------


def _scaled_widths(model: Grown) -> dict[str, int]:
    """How many channels every reconciled block has, by the name of its module: pooling may double them."""
    phases = {level.name: level.phase for level in model.levels_of(model)}
    phases |= {layer.name: layer.phase for layer in model.plan.layers}
    widths = {}
    for layer in model.plan.layers:
        if layer.kind == 'scaled':
            is_pooled = layer.phase == Phase.POOLED > phases[layer.reads[0]]
            widths[f'grown.{layer.name}.reconcile'] = layer.width * (model.pool_mult(model) if is_pooled else 1)
    return widths


def _fold_scales(network: fx.GraphModule, widths: dict[str, int]) -> Iterator[str]:
    """Fold the scale of every reconciled block into its readers, if all of them are linear."""
    folded: dict[str, list[str]] = {}
    for node in list(network.graph.nodes):
        module = _module(network, node)
        if isinstance(module, Reconcile):
            readers = _linear_readers(network, node, widths)
            if readers is None:
                yield f'stays: the scale of {_block(node)}, since not all that reads it is linear'
                continue
            for reader, start in readers:
                layer = _linear(network, reader)
                assert layer is not None
                weight, scale = _exact(layer.weight).clone(), _exact(module.scale)
                columns = weight[:, start : start + widths[node.target]].transpose(0, 1)
                columns *= scale.repeat(len(columns) // len(scale)).view(-1, *[1] * (weight.dim() - 1))
                _set_weights(layer, weight, None)
            _set_module(network, node.target, UnitLength())
            folded.setdefault(' and '.join(reader.target for reader, _ in readers), []).append(_block(node))
    for readers_named, blocks in folded.items():
        yield f'folded: the scales of {", ".join(blocks)} into {readers_named}'


def _linear_readers(network: fx.GraphModule, node: Node, widths: dict[str, int]) -> list[tuple[Node, int]] | None:
    """The layers that read a block and where its channels begin there, None if some reader is none that is linear."""
    readers = []
    for user in node.users:
        blocks = user.args[0] if user.target is gather else [node]
        if not all(block.target in widths for block in blocks):
            return None
        start = sum(widths[block.target] for block in blocks[: blocks.index(node)])
        readers += [(reader, start) for reader in (user.users if user.target is gather else [user])]
    return readers if all(_linear(network, reader) for reader, _ in readers) else None


def _linear(network: fx.GraphModule, node: Node) -> Linear | None:
    """The layer with weights (units, channels, ...) that a node calls, if it calls one, and no other node does."""
    module = _module(network, node)
    if sum(other.op == 'call_module' and other.target == node.target for other in network.graph.nodes) > 1:
        return None
    if isinstance(module, PositionLinear):
        return module.linear
    if type(module) in _CONVOLUTIONS and cast(nn.Conv2d, module).groups == 1:
        return cast(nn.Conv2d, module)
    return module if isinstance(module, nn.Linear) else None


def _block(node: Node) -> str:
    return str(node.target).removeprefix('grown.').removesuffix('.reconcile')


# Units --------------------------------------------------------------------------------------------------------------


def _levels(model: Grown) -> dict[str, str]:
    """The level at which every layer of units stands, by the name of its module."""
    old = {module: level.name for level in model.levels_of(model) for module in level.modules}
    new = {
        f'grown.{name}.{part}': added.level
        for name, added in model.added()
        for part, module in added.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    }
    return old | new


def _merge_units(network: fx.GraphModule, beside: dict[str, str]) -> Iterator[str]:
    """Make one layer of new units that read the same in the same way, and of the old units beside them if they do.

    Args:
        network: Images to logits.
        beside: The level at which every layer of units stands, old or new, by the name of its module. Other old
            layers that read the same, such as the next stage's, gain nothing from being one with new units.
    """
    groups: dict[tuple[Any, ...], list[Node]] = {}
    for node in network.graph.nodes:
        kind = _kind(network, node)
        if kind is not None:
            groups.setdefault((node.args[0], *kind), []).append(node)
    for alike in groups.values():
        new = [node for node in alike if node.target.startswith('grown.')]
        levels = {beside[node.target] for node in new}
        nodes = [node for node in alike if node in new or beside.get(node.target) in levels]
        if new and len(nodes) > 1:
            names = ', '.join(node.target for node in nodes)
            yield f'merged: {names} into one layer of {_merge(network, nodes)} units'


def _kind(network: fx.GraphModule, node: Node) -> tuple[Any, ...] | None:
    """What layers have in common that can be one; None for any that cannot."""
    module = _module(network, node)
    if isinstance(module, PositionLinear):
        return ('positions',)
    if type(module) not in _CONVOLUTIONS or _linear(network, node) is None:
        return None
    assert isinstance(module, nn.Conv2d)
    if module.kernel_size == module.stride == (1, 1) and module.padding in (0, (0, 0)):
        return ('positions',)
    return type(module), module.kernel_size, module.stride, module.padding, module.dilation, module.padding_mode


def _merge(network: fx.GraphModule, nodes: list[Node]) -> int:
    """Put one wide layer in place of several, with one activation and pooling where theirs are the same."""
    layers = [cast(Linear, _linear(network, node)) for node in nodes]
    sizes = [len(layer.weight) for layer in layers]
    _set_module(network, nodes[0].target, _wide(network, nodes, layers))
    ends, steps = nodes, [nodes[0].target]
    for alike in (_activation, _pooling):
        followers = [next(iter(end.users)) if len(end.users) == 1 else end for end in ends]
        kinds = {alike(network, follower) for follower in followers}
        if len(kinds) == 1 and None not in kinds:
            ends, steps = followers, [*steps, followers[0].target]
            _drop_resizing(ends)
    with network.graph.inserting_before(nodes[0]):
        value = nodes[0].args[0]
        for target in steps:
            value = network.graph.call_module(target, (value,))
        parts = network.graph.call_method('split', (value, sizes, 1))
        for index, end in enumerate(ends):
            end.replace_all_uses_with(network.graph.call_function(operator.getitem, (parts, index)))
    network.graph.eliminate_dead_code()
    return sum(sizes)


def _drop_resizing(maps: list[Node]) -> None:
    """Leave maps that one layer computes as they are where they were brought to each other's size."""
    for node in maps:
        for user in list(node.users):
            if user.target is match_size and set(user.args) <= set(maps):
                _replace(user, user.args[0])


def _wide(network: fx.GraphModule, nodes: list[Node], layers: list[Linear]) -> nn.Module:
    positions = next((module for node in nodes if isinstance(module := _module(network, node), PositionLinear)), None)
    wide: Linear = positions.linear if positions else layers[0]
    shape = (-1, wide.in_features) if isinstance(wide, nn.Linear) else (-1, *wide.weight.shape[1:])
    weight = torch.cat([layer.weight.detach().reshape(shape) for layer in layers])
    biases = [layer.weight.new_zeros(len(layer.weight)) if layer.bias is None else layer.bias for layer in layers]
    _set_weights(wide, weight, torch.cat(biases))
    if isinstance(wide, nn.Linear):
        wide.out_features = len(weight)
    else:
        wide.out_channels = len(weight)
    return positions or cast(nn.Module, wide)


def _activation(network: fx.GraphModule, node: Node) -> Any:
    """What tells one activation from another; None for what is none."""
    module = _module(network, node)
    return (type(module), getattr(module, 'approximate', '')) if type(module) in _ELEMENTWISE else None


def _pooling(network: fx.GraphModule, node: Node) -> Any:
    """What tells one global pooling from another; None for what is none, or gives several numbers a channel."""
    module = _module(network, node)
    is_pooling = isinstance(module, SelectAdaptivePool2d) and module.feat_mult() == 1 and not module.is_identity()
    return node.target if is_pooling else None
