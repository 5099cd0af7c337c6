"""What a network computes from frozen parts alone, told apart from what learns on top of it.

In a regime that freezes the lower layers their outputs never change, so they can be computed once and kept. Where that
part ends is read from the network's own graph: as far up as everything below is frozen and leaves nothing to chance.
"""

from __future__ import annotations

import copy
import inspect
import operator
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import get_notrace_functions, get_notrace_modules
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp, TensorMetadata

from .layers import AtLeast, match_size

__all__ = ['Tracer', 'split_frozen']


class FrozenHead(nn.Module):
    """What learns, on the outputs of the frozen part. Its layers are the network's own, not copies."""

    def __init__(self, when_training: fx.GraphModule, when_evaluating: fx.GraphModule) -> None:
        super().__init__()
        self.when_training, self.when_evaluating = when_training, when_evaluating

    def forward(self, *values: Tensor) -> Any:
        """What the network gives, of the values that the frozen part gives."""
        return (self.when_training if self.training else self.when_evaluating)(*values)


def split_frozen(model: nn.Module, images: Tensor) -> tuple[nn.Module, FrozenHead]:
    """Split a network into its frozen part and the part that learns.

    `head(*trunk(images))` is `model(images)`. Both share the network's layers, so training the head trains the network.
    A layer is frozen if none of its parameters learns and it neither draws random numbers nor counts statistics in
    training, as `timm_devnet.parameter_groups` leaves it.

    Args:
        model: A network that torch.fx can trace, with `requires_grad` set, in whatever mode.
        images: What it reads, such as (2, 3, 224, 224) with at least two samples; only their shape and type matter.

    Returns:
        The trunk, which gives a tuple of tensors (N, ...), and the head.

    Raises:
        ValueError: If nothing or everything is frozen, or the network cannot be traced.

    Example:
        >>> import timm, timm_devnet
        >>> model = timm.create_model('tf_efficientnet_lite0_wa512', num_classes=10)
        >>> groups = timm_devnet.parameter_groups(model, 'new', lr=0.01, weight_decay=5e-4)
        >>> images = torch.rand(2, 3, 64, 64)
        >>> trunk, head = split_frozen(model, images)
        >>> [tuple(value.shape) for value in trunk(images)]  # the last stage's map, and conv_head's, pooled
        [(2, 320, 2, 2), (2, 1280)]
    """
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(f'Nothing of {type(model).__name__} learns: give it a regime, timm_devnet.parameter_groups.')
    modes = {module: module.training for module in model.modules()}
    try:
        model.train()
        learning = _trace(model, images)
        cut = _cut(model, learning, len(images))
        model.eval()
        evaluating = _trace(model, images)
        nodes = {node.name: node for node in evaluating.nodes}
        if any(node.name not in nodes or nodes[node.name].target != node.target for node in cut):
            raise ValueError(f'{type(model).__name__} computes other things in training than in evaluation.')
        trunk = _trunk(model, evaluating, [nodes[node.name] for node in cut])
        head = FrozenHead(_head(model, learning, cut), _head(model, evaluating, [nodes[node.name] for node in cut]))
    finally:
        for module, mode in modes.items():
            module.training = mode
    for part in head.modules():
        part.training = modes.get(part, model.training)
    return trunk, head


class Tracer(fx.Tracer):
    """Looks inside all modules but torch's own and those that timm and this project keep whole."""

    def __init__(self) -> None:
        super().__init__(
            autowrap_functions=tuple(function for function in get_notrace_functions() if callable(function))
        )
        self.leaves = tuple(get_notrace_modules())

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return isinstance(module, self.leaves) or super().is_leaf_module(module, name)


def _trace(model: nn.Module, images: Tensor) -> fx.Graph:
    """The network's graph in its present mode, every node with its shape."""
    try:
        graph = Tracer().trace(model)
        with torch.device('meta'), torch.no_grad():
            ShapeProp(fx.GraphModule(_without_storage(model), graph)).propagate(images.to('meta'))
    except Exception as error:  # torch.fx and the layers themselves raise errors of every kind
        raise ValueError(
            f'{type(model).__name__} cannot be traced, so its frozen part cannot be told: {error}'
        ) from error
    _fix_sizes(graph)
    _undo_cat(graph)
    graph.eliminate_dead_code()
    return graph


def _without_storage(model: nn.Module) -> nn.Module:
    """A copy on the meta device, made without the weights' memory: torch's fake tensors take a second for as much."""
    held = [value for module in model.modules() for value in vars(module).values() if isinstance(value, Tensor)]
    tensors = (*model.parameters(), *model.buffers(), *held)
    return copy.deepcopy(model, {id(tensor): tensor.detach().to('meta') for tensor in tensors})


def _fix_sizes(graph: fx.Graph) -> None:
    """Where a map is brought to another's size, keep the size alone, so that the other map is not needed for it."""
    for node in graph.nodes:
        if node.op == 'call_function' and node.target is match_size:
            given, like = (part.meta['tensor_meta'].shape[-2:] for part in node.args)
            resized = node.args[0]
            if given != like:
                with graph.inserting_after(node):
                    resized = graph.call_function(F.adaptive_avg_pool2d, (node.args[0], tuple(like)))
                resized.meta = {'tensor_meta': node.meta['tensor_meta']}
            node.replace_all_uses_with(resized)


def _undo_cat(graph: fx.Graph) -> None:
    """Read directly what was only concatenated and split again, so that what learns does not taint what is frozen."""
    for node in list(graph.nodes):
        if node.target is not operator.getitem or not isinstance(node.args[1], int):
            continue
        split = node.args[0]
        if split.op != 'call_method' or split.target != 'split':
            continue
        cat, dim = split.args[0], _argument(split, 2, 'dim', 0)
        if cat.target is not torch.cat or _argument(cat, 1, 'dim', 0) != dim:
            continue
        parts = cat.args[0]
        if list(split.args[1]) == [part.meta['tensor_meta'].shape[dim] for part in parts]:
            node.replace_all_uses_with(parts[node.args[1]])


def _cut(model: nn.Module, graph: fx.Graph, samples: int) -> list[fx.Node]:
    """The frozen values that the learning part reads."""
    live: set[fx.Node] = set()
    constants = {node for node in graph.nodes if node.op == 'get_attr'}
    while True:
        for node in graph.nodes:
            if node.op != 'placeholder' and (_learns(model, node) or live & set(node.all_input_nodes)):
                live.add(node)
        border = [
            node
            for node in graph.nodes
            if node not in live and node not in constants and any(user in live for user in node.users)
        ]
        awkward = [node for node in border if node.op != 'placeholder' and not _is_batch(node, samples)]
        if not awkward:  # everything that is handed over is a tensor with a row for each sample
            break
        live.update(awkward)
    if any(node.op == 'placeholder' for node in border):
        raise ValueError(
            f'All of {type(model).__name__} learns, or its first layer: there is no frozen part whose outputs could be '
            'kept. Use a regime that freezes it.'
        )
    return border


def _is_batch(node: fx.Node, samples: int) -> bool:
    meta = node.meta.get('tensor_meta')
    return isinstance(meta, TensorMetadata) and len(meta.shape) > 0 and meta.shape[0] == samples


def _learns(model: nn.Module, node: fx.Node) -> bool:
    """Whether a node's own parameters learn, or it does by chance or from statistics what it does in training."""
    if node.op == 'get_attr':
        owner, _, name = str(node.target).rpartition('.')
        return bool(getattr(getattr(model.get_submodule(owner), name), 'requires_grad', False))
    if node.op == 'call_module':
        module = model.get_submodule(str(node.target))
        if any(parameter.requires_grad for parameter in module.parameters()):
            return True
        return any(part.training and not _is_plain(part) for part in module.modules())
    if node.op == 'call_function':
        try:
            arguments = inspect.signature(node.target).bind(*node.args, **node.kwargs).arguments  # type: ignore[arg-type]
        except (TypeError, ValueError):
            arguments = dict(node.kwargs)
        return bool(arguments.get('training')) or 'rand' in getattr(node.target, '__name__', '')
    return False


# Parts of torch that do the same in training and in evaluation.
_PLAIN = ('activation', 'container', 'conv', 'flatten', 'linear', 'padding', 'pooling', 'upsampling', 'normalization')


def _is_plain(module: nn.Module) -> bool:
    if isinstance(module, AtLeast):
        return True
    package, _, file = type(module).__module__.rpartition('.')
    return package == 'torch.nn.modules' and file in _PLAIN and not isinstance(module, nn.RReLU)


def _argument(node: fx.Node, place: int, name: str, default: Any) -> Any:
    return node.args[place] if len(node.args) > place else node.kwargs.get(name, default)


def _trunk(model: nn.Module, graph: fx.Graph, cut: list[fx.Node]) -> fx.GraphModule:
    """The frozen part, from the images to the cut."""
    wanted = set(cut)
    for node in reversed(graph.nodes):
        if node in wanted:
            wanted.update(node.all_input_nodes)
    trunk = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        if node in wanted or node.op == 'placeholder':
            copies[node] = trunk.node_copy(node, copies.__getitem__)
    trunk.output(tuple(copies[node] for node in cut))
    return fx.GraphModule(model, trunk)


def _head(model: nn.Module, graph: fx.Graph, cut: list[fx.Node]) -> fx.GraphModule:
    """The learning part, from the cut to the output."""
    head = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for index, node in enumerate(cut):
        copies[node] = head.placeholder(f'value_{index}')
    wanted = {node for node in graph.nodes if node.op == 'output'}
    for node in reversed(graph.nodes):
        if node in wanted and node not in copies:
            wanted.update(node.all_input_nodes)
    for node in graph.nodes:
        if node in wanted and node not in copies:
            copies[node] = head.node_copy(node, copies.__getitem__)
    return fx.GraphModule(model, head)
