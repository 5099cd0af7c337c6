"""Who reads whom: from a network's levels and a growth to the ordered list of layers to add. Pure data, no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum

from .growth import ON_TOP, Block, Growth

__all__ = ['MAX_LAYERS', 'Layer', 'Level', 'Phase', 'Plan', 'plan']


# A short name may spell out blocks that multiply from step to step: every one passes on all that stands below it.
MAX_LAYERS = 1000


class Phase(IntEnum):
    """When a value of the forward pass is computed."""

    TRUNK = 0  # in forward_features: maps
    HEAD = 1  # in forward_head before the global pooling: maps
    POOLED = 2  # in forward_head after it: vectors


@dataclass(frozen=True)
class Level:
    """A level of an old network that new units can read or stand beside.

    Attributes:
        name: The old layer's own name, also the name of its value in the forward pass.
        width: Its channels.
        phase: When its value is computed.
        modules: The modules whose parameters belong to it.
    """

    name: str
    width: int
    phase: Phase
    modules: tuple[str, ...]


@dataclass(frozen=True)
class Layer:
    """A layer that a growth adds.

    Attributes:
        name: Its name, also of its value.
        kind: 'units', 'pass' (a lower level handed on) or 'scaled' (a block reconciled).
        reads: Names of the values it reads.
        phase: When it is computed.
        level: The level it stands at, by the name of the first block there.
        step: Which growth adds it, counted from 0.
        in_width: Channels of all that it reads.
        width: Channels of its value.
        like_old: Whether it reads just what the old layer beside it reads, one position at a time.
        kernel: Side of the square of positions that units see at once.
    """

    name: str
    kind: str
    reads: tuple[str, ...]
    phase: Phase
    level: str
    step: int
    in_width: int
    width: int
    like_old: bool = False
    kernel: int = 1


@dataclass(frozen=True)
class Plan:
    """How a grown network is wired.

    Attributes:
        layers: What is added, in the order in which it is computed.
        taps: Old levels of the trunk below its last map whose values are needed.
        features: Values that forward_features hands on as channels of one map, the old last map first; with widths.
        pooled: Maps whose pooled vectors are read.
        top: Values that the classifier reads; with widths.
        blocks: The blocks behind `top`, by name: the same order, before they were reconciled.
    """

    layers: tuple[Layer, ...]
    taps: tuple[str, ...]
    features: tuple[tuple[str, int], ...]
    pooled: tuple[str, ...]
    top: tuple[tuple[str, int], ...]
    blocks: tuple[str, ...]

    @property
    def levels(self) -> tuple[str, ...]:
        """Names of the levels that the growth itself made, from the bottom up."""
        return tuple(layer.name for layer in self.layers if layer.kind == 'units' and layer.level == layer.name)


def plan(levels: Sequence[Level], final: str, growth: Growth, reconciled: bool = True, pool_mult: int = 1) -> Plan:
    """Wire a growth into a network.

    New units that read several blocks, or the network's top, read them reconciled; a single block lower down they read
    as it is, like the old layer there. Whatever the classifier reads is reconciled.

    Args:
        levels: The old network's levels, from the top down.
        final: The level that is the trunk's last map.
        growth: What is added; a longer growth's plan begins with the layers of its beginning.
        reconciled: Whether blocks are reconciled at all.
        pool_mult: How many statistics of each channel the global pooling gives.

    Returns:
        The plan.

    Raises:
        ValueError: If the growth reads a level that the network does not have, or adds too many layers.
    """
    planner = _Planner(levels, final, reconciled, pool_mult)
    for step, blocks in enumerate(growth.steps):
        for block in blocks:
            planner.add(block, step, growth)
        planner.read_top(step)
    return planner.result()


@dataclass
class _Planner:
    levels: Sequence[Level]
    final: str
    reconciled: bool
    pool_mult: int
    layers: dict[str, Layer] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.stack = [[level.name] for level in self.levels]  # blocks side by side at each level, from the top down
        self.width = {level.name: level.width for level in self.levels}
        self.phase = {level.name: level.phase for level in self.levels}
        self.taps: list[str] = []
        self.features = [self.final]
        self.pooled: list[str] = []
        self.deep = 0
        self.top: list[str] = []

    def add(self, block: Block, step: int, growth: Growth) -> None:
        if max(*block.reads, block.level) >= len(self.stack):
            names = ', '.join(blocks[0] for blocks in self.stack)
            raise ValueError(
                f'Growth {growth} reads level {max(block.reads)}; the network has these, from level 0 down: {names}.'
            )
        reads = [name for level in block.reads for name in self.stack[level]]
        if block.level == ON_TOP:
            name = f'fc{chr(ord("a") + self.deep)}'
            self.add_units(name, reads, name, step, block, like_old=False)
            self.stack.insert(0, [name])
            self.deep += 1
            return
        here = self.stack[block.level]
        if block.units:
            like_old = block.reads == (block.level + 1,) and block.kernel == 1
            self.add_units(self.name(here), reads, here[0], step, block, like_old)
        else:
            self.add_passes(reads, here, step)

    def add_units(self, name: str, reads: list[str], level: str, step: int, block: Block, like_old: bool) -> None:
        phase = max(Phase.POOLED if self.is_pooled(read) else self.phase[read] for read in reads)
        if like_old:  # built like the old layer there, so computed where that one is
            phase = max(phase, self.phase[level])
        if block.kernel > 1 and phase != Phase.TRUNK:
            flat = ', '.join(read for read in reads if self.is_pooled(read) or self.phase[read] != Phase.TRUNK)
            raise ValueError(
                f'A kernel of {block.kernel} needs maps of the trunk, and {flat} in this network is none: leave '
                f'k{block.kernel} out, or read lower levels.'
            )
        in_width = sum(self.width_in(read, phase) for read in reads)
        for read in reads:
            self.need(read, phase)
        if len(reads) > 1 or phase == Phase.POOLED:
            reads = [self.scaled(read, phase, step) for read in reads]
        self.enter(
            Layer(name, 'units', tuple(reads), phase, level, step, in_width, block.units, like_old, block.kernel)
        )
        if level != name:
            next(blocks for blocks in self.stack if blocks[0] == level).append(name)

    def add_passes(self, reads: list[str], here: list[str], step: int) -> None:
        for read in reads:
            phase = Phase.POOLED if self.is_pooled(here[0]) else self.phase[read]
            self.need(read, phase)
            width = self.width_in(read, phase)
            self.enter(Layer(self.name(here), 'pass', (read,), phase, here[0], step, width, width))
            here.append(self.name(here))

    def scaled(self, name: str, phase: Phase, step: int) -> str:
        """The name of a block's reconciled value, whose layer is added when first asked for."""
        if not self.reconciled:
            return name
        key = f'{_key(name)}_scaled'
        if key in self.layers and self.layers[key].phase != phase:
            key = f'{key}_{phase.name.lower()}'
        if key not in self.layers:
            width = self.width[name]
            level = next(blocks[0] for blocks in self.stack if name in blocks)
            self.enter(Layer(key, 'scaled', (name,), phase, level, step, width, width))
        return key

    def read_top(self, step: int) -> None:
        """Let the classifier read every block of the top level."""
        for name in self.stack[0]:
            self.need(name, Phase.POOLED)
        self.top = [self.scaled(name, Phase.POOLED, step) for name in self.stack[0]]

    def need(self, name: str, phase: Phase) -> None:
        """Make sure that a value is at hand in a phase."""
        if self.phase[name] == Phase.TRUNK:
            if name not in self.layers and name != self.final and name not in self.taps:
                self.taps.append(name)
            if phase > Phase.TRUNK and name not in self.features:
                self.features.append(name)
        if phase == Phase.POOLED > self.phase[name] and name not in self.pooled:
            self.pooled.append(name)

    def is_pooled(self, name: str) -> bool:
        """Whether a block stands at a level that is read as vectors: the top, and tops that something was put on."""
        return any(name in blocks for blocks in self.stack[: self.deep + 1])

    def width_in(self, name: str, phase: Phase) -> int:
        pools = phase == Phase.POOLED > self.phase[name]
        return self.width[name] * (self.pool_mult if pools else 1)

    def name(self, here: list[str]) -> str:
        return f'{_key(here[0])}_{len(here)}'

    def enter(self, layer: Layer) -> None:
        if len(self.layers) >= MAX_LAYERS:
            raise ValueError(f'A growth adds at most {MAX_LAYERS} layers to a network; this one adds more.')
        self.layers[layer.name] = layer
        self.width[layer.name] = layer.width
        self.phase[layer.name] = layer.phase

    def result(self) -> Plan:
        layers = self.layers.values()
        sources = {layer.name: layer.reads[0] for layer in layers if layer.kind == 'scaled'}
        blocks = [sources.get(name, name) for name in self.top]
        return Plan(
            layers=tuple(layers),
            taps=tuple(self.taps),
            features=tuple((name, self.width[name]) for name in self.features),
            pooled=tuple(self.pooled),
            top=tuple((name, self.width_in(block, Phase.POOLED)) for name, block in zip(self.top, blocks, strict=True)),
            blocks=tuple(blocks),
        )


def _key(name: str) -> str:
    """A name that can be a module's: without dots."""
    return name.replace('.', '_')
