"""What a grown network is: its old network as it was, plus an ordered list of added layers.

The old parameters keep their names and go on reading only each other; all that growth adds lives in `model.grown`, so a
grown state dict is a superset of its base's and what fine-tuning changed is a subtraction. A family of networks says in
a subclass of `Grown` what its levels are and how its old layers run; everything else is told here, once.
"""

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from timm.layers import get_device_dtype
from timm.layers.adaptive_avgmax_pool import adaptive_pool_feat_mult
from timm.models import is_model
from timm.models._features import feature_take_indices
from torch import Tensor, fx, nn

from .checkpoint import adapt
from .growth import MAX_LENGTH, PAPER_UNITS, Growth, parse
from .heads import Head
from .layers import Added, ConvUnits, LinearUnits, Pass, Scaled, copy_units, gather, init_uniform, match_size
from .memory import check_memory, count_bytes
from .plan import Layer, Level, Phase, Plan, plan
from .reconcile import SCALE_INIT

__all__ = [
    'ANY',
    'FAMILIES',
    'Grown',
    'Options',
    'grows',
    'registered_for',
]

# torch.fx would otherwise look inside these wherever a network is part of another module.
fx.wrap('gather')
fx.wrap('match_size')

_LARGEST = torch.finfo(torch.float32).max

ANY = 'devnet'  # the registered name of any growth of any network

FAMILIES: dict[type[nn.Module], 'type[Grown]'] = {}  # class of the old network -> class of the grown one


@dataclass(frozen=True)
class Options:
    """How new units meet old ones.

    Attributes:
        scale_init: Where the learnt scales start; None or 0 switches reconciliation off.
        new_init: 'random' (He's law), or 'copy': copies of the old units beside them plus noise.
    """

    scale_init: float | None = SCALE_INIT
    new_init: str = 'random'

    def __post_init__(self) -> None:
        scale = self.scale_init
        if scale == 0:  # timm's create_model drops arguments that are None, so there must be another word for it
            object.__setattr__(self, 'scale_init', None)
        elif scale is not None and not (isinstance(scale, int | float) and 0 < scale <= _LARGEST):
            raise ValueError(
                f'scale_init is a positive number of 32 bits, or None or 0 for no reconciliation; given {scale!r}.'
            )
        if self.new_init not in ('random', 'copy'):
            raise ValueError(f"new_init is 'random' or 'copy', not {self.new_init!r}.")


def grows(base: type[nn.Module]) -> Callable[['type[Grown]'], 'type[Grown]']:
    """Class decorator: networks of class `base` grow into the decorated class."""

    def enter(family: 'type[Grown]') -> 'type[Grown]':
        FAMILIES[base] = family
        family.base_class = base
        return family

    return enter


def registered_for(base: str, growth: str) -> str | None:
    """The registered name under which timm builds a growth of a base, if need be with the argument `growth`."""
    names = (f'{base}_{name}' for name in (growth, re.split('[0-9_]', growth)[0], 'wa'))
    return next((name for name in names if is_model(name)), None)


class Grown(nn.Module):
    """A network with new units beside its old ones; a family mixes it in before the old network's class.

    The forward pass fills a dict of named values in three phases (`plan.Phase`): the old layers' values come from the
    family, then follow the added layers in the order of the plan. Networks get this class from `grow` or from timm's
    `create_model`, never from a constructor.
    """

    base_class: ClassVar[type[nn.Module]]
    final_level: str  # the level that is the trunk's last map, which the old network's forward_features returns
    classifier_name: str
    replaced: tuple[str, ...] = ()  # other modules of the old network that go with its classifier
    unit_levels: ClassVar[tuple[str, ...]]  # the levels that are one layer of units, which can be copied
    default_units: ClassVar[Mapping[str, int]] = PAPER_UNITS  # of each kind, where a growth name gives none

    if TYPE_CHECKING:  # set by `take` and by the old network's class; TorchScript must not see these
        grown: nn.ModuleDict
        growth: str
        options: Options
        plan: Plan
        settled: int
        held: int
        heads: nn.ModuleDict  # classifiers of earlier tasks; there is none before one is kept
        kept: dict[str, Head]  # what they are
        head_tops: dict[str, list[str]]  # names of the values that they read
        num_classes: int
        drop_rate: float
        pretrained_cfg: dict[str, Any]

        def get_classifier(self) -> nn.Module: ...

    # What a family tells ----------------------------------------------------------------------------------------------

    @classmethod
    def levels_of(cls, model: Any) -> list[Level]:
        """The old network's levels, from the top down; works on the plain network too."""
        raise NotImplementedError

    @classmethod
    def final_of(cls, model: Any) -> str:
        """The level that is the trunk's last map; works on the plain network too."""
        return cls.final_level

    @classmethod
    def units_for(cls, model: Any) -> Mapping[str, int]:
        """How many units each kind of growth has where its name gives none; works on the plain network too."""
        return cls.default_units

    @classmethod
    def takes(cls, model: Any) -> bool:
        """Whether a network of the base class can grow in this family's manner."""
        return True

    def forward_trunk(self, x: Tensor, taps: list[str]) -> dict[str, Tensor]:
        """The trunk's last map and the tapped levels', of images (N, in_chans, H, W)."""
        raise NotImplementedError

    def forward_top(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """Add the values of old layers between the trunk and the pooling, if there are any."""
        return values

    def pool_map(self, x: Tensor) -> Tensor:
        """The old network's global pooling."""
        raise NotImplementedError

    def classify_top(self, x: Tensor, pre_logits: bool) -> Tensor:
        """Dropout and, unless `pre_logits`, the classifier."""
        raise NotImplementedError

    @staticmethod
    def pool_mult(model: Any) -> int:
        """How many statistics of each channel the pooling gives."""
        raise NotImplementedError

    def new_units(self, layer: Layer, dd: dict[str, Any]) -> ConvUnits | LinearUnits:
        """New units on maps, in this family's manner; `dd` says where (device) and what (dtype) they are."""
        raise NotImplementedError

    def old_units(self, level: str) -> tuple[nn.Conv2d, nn.Module | None]:
        """The old layer at a level, whose units can be copied, and its normalisation."""
        raise NotImplementedError

    @staticmethod
    def to_own_layout(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A checkpoint of the old network under timm's names, from whatever layout it is in."""
        return dict(state_dict)

    def feature_levels(self, extra_blocks: bool = False) -> list[str]:
        """Names of the trunk's values behind `feature_info`."""
        raise NotImplementedError

    # Growing ----------------------------------------------------------------------------------------------------------

    @classmethod
    def plan_for(cls, model: Any, growth: Growth, options: Options, pool_mult: int | None = None) -> Plan:
        """How a growth would be wired into a network, which may still be plain."""
        if len(str(growth)) > MAX_LENGTH:
            raise ValueError(
                f'A growth with every number of units written out has at most {MAX_LENGTH} characters, not {growth}.'
            )
        return plan(
            cls.levels_of(model),
            cls.final_of(model),
            growth,
            options.scale_init is not None,
            pool_mult or cls.pool_mult(model),
        )

    @classmethod
    def check_copies(cls, planned: Plan, growth: Growth, options: Options, first_step: int) -> None:
        """Refuse to copy where there is nothing to copy; units on top of the network start at random in any case."""
        for layer in planned.layers if options.new_init == 'copy' else ():
            beside = layer.kind == 'units' and layer.level != layer.name and layer.step >= first_step
            if beside and not cls.copies(layer):
                raise ValueError(
                    f"new_init='copy' copies old units that read the same; {layer.name} of growth {growth} reads "
                    f"{', '.join(layer.reads)}, which no old unit at {layer.level} does. Use new_init='random'."
                )

    @classmethod
    def check_room(cls, model: Any, planned: Plan, first_step: int) -> None:
        """Refuse units, and a classifier on them, that are larger than the memory of the machine."""
        units = [layer for layer in planned.layers if layer.kind == 'units' and layer.step >= first_step]
        numbers = sum(cls.count_weights(model, layer) for layer in units)
        numbers += sum(width for _, width in planned.top) * model.num_classes
        old = list(model.parameters())
        check_memory(count_bytes(old) + numbers * old[0].element_size(), 'The grown network')

    @classmethod
    def count_weights(cls, model: Any, layer: Layer) -> int:
        """How many weights new units would have."""
        return layer.in_width * layer.width * layer.kernel**2

    @classmethod
    def copies(cls, layer: Layer) -> bool:
        """Whether there are old units that new ones can be copies of."""
        return layer.like_old and layer.level in cls.unit_levels

    def take(self, growth: Growth, options: Options, settled: int) -> None:
        """Add what a growth has and the network lacks.

        Args:
            growth: The whole growth, from the old network on.
            options: How new units meet old ones.
            settled: How many of its steps count as old: units that have been trained before.
        """
        old_plan = getattr(self, 'plan', None)
        if old_plan is None:
            self._begin()
            self.grown = nn.ModuleDict()
        self.growth, self.options, self.settled = str(growth), options, settled
        # How many of its steps the weights held that it was given when timm's `create_model` built it.
        self.held = getattr(self, 'held', 0)
        self.kept = getattr(self, 'kept', {})
        self._thaw_container()
        for layer in self.plan_for(self, growth, options).layers:
            if layer.name not in self.grown:
                self.grown[layer.name] = self._build(layer).train(self.training)
        self._wire()
        self.init_new(settled)
        old = self.get_classifier()
        self.reset_classifier(self.num_classes)
        self.init_classifier()
        self.keep_columns(old, old_plan)
        self._label()

    def _begin(self) -> None:
        """Prepare a network that grows for the first time; for families that have something to keep of it."""

    def _thaw_container(self) -> None:
        """Let new layers follow `train()` beside earlier ones that a regime keeps in evaluation as a whole."""
        frozen = vars(self.grown).pop('train', None)  # of regimes.py, which sets it on whatever is frozen as a whole
        self.grown.training = self.training
        for added in self.grown.children() if frozen is not None else ():
            added.train = partial(frozen.func, added)  # type: ignore[method-assign]

    def add_heads(self, kept: Mapping[str, Head]) -> None:
        """Add heads of earlier tasks, whose weights are to be loaded or copied. They are frozen, for now.

        Args:
            kept: What they are, by name.

        Raises:
            ValueError: If there is one of that name, or they are larger than the memory of the machine.
        """
        taken = [name for name in kept if name in self.kept]
        if taken:
            raise ValueError(f'The network has a head called {taken[0]!r} already: give another name.')
        if kept and not self.kept:
            if hasattr(self, 'heads'):
                raise ValueError(f'{type(self).__name__} cannot keep heads: it has other layers called heads.')
            self.heads = nn.ModuleDict()
        widths = {name: sum(width for _, width in self.top_at(head.steps)) for name, head in kept.items()}
        check_memory(sum(4 * head.num_classes * widths[name] for name, head in kept.items()), 'The kept heads')
        dd = get_device_dtype(self)
        for name, head in kept.items():
            layer = nn.Linear(widths[name], head.num_classes, **dd).train(self.training)
            self.heads[name] = layer.requires_grad_(False)
        self.kept = {**self.kept, **kept}
        self._wire()
        self._label()

    def drop_heads(self) -> None:
        """Forget all heads of earlier tasks."""
        if self.kept:
            del self.heads
            self.kept = {}
            self._label()

    def top_at(self, steps: int, pool_mult: int | None = None) -> tuple[tuple[str, int], ...]:
        """Values that the classifier read, with widths, when the growth had so many steps; 0: in the old network."""
        if steps == 0:
            top = self.levels_of(self)[0]
            return ((top.name, top.width * (pool_mult or self.pool_mult(self))),)
        return self.plan_for(self, Growth(parse(self.growth).steps[:steps]), self.options, pool_mult).top

    def _wire(self) -> None:
        """Set the plain lists and numbers that the forward pass reads."""
        self.plan = self.plan_for(self, parse(self.growth), self.options)
        self.final_level = self.final_of(self)
        self.taps = [self.final_level, *self.plan.taps]  # never empty, which TorchScript could not type
        self.feature_names = [name for name, _ in self.plan.features]
        self.feature_widths = [width for _, width in self.plan.features]
        self.pooled = list(self.plan.pooled)
        self.top = [name for name, _ in self.plan.top]
        self.head_tops = {name: [value for value, _ in self.top_at(head.steps)] for name, head in self.kept.items()}
        self.num_features = sum(self.feature_widths)
        self.head_hidden_size = sum(width for _, width in self.plan.top)

    def added(self) -> Iterator[tuple[str, Added]]:
        """The added layers and their names, in order."""
        return ((name, cast(Added, module)) for name, module in self.grown.items())

    def _build(self, layer: Layer) -> nn.Module:
        dd = get_device_dtype(self)
        if layer.kind == 'scaled':
            assert self.options.scale_init is not None
            return Scaled(layer, self.options.scale_init, **dd)
        if layer.kind == 'pass':
            return Pass(layer)
        if layer.phase == Phase.POOLED:
            return LinearUnits(layer, drop_rate=self.drop_rate, **dd)
        return self.new_units(layer, dd)

    def _generator_for(self, module: str, parameter: str) -> torch.Generator:
        """Random numbers that depend on torch's seed and a parameter's name alone, not on what was drawn before."""
        digest = hashlib.sha256(f'{torch.initial_seed()}/{module}.{parameter}'.encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:8], 'little') >> 1)

    def init_new(self, first_step: int) -> None:
        """Give the layers added from a step on their first values (again)."""
        copies = (
            {layer.name for layer in self.plan.layers if self.copies(layer)} if self.options.new_init == 'copy' else ()
        )
        for name, added in self.added():
            if added.step >= first_step:
                added.init_new(partial(self._generator_for, f'grown.{name}'))
                if name in copies:
                    assert isinstance(added, ConvUnits | LinearUnits)
                    copy_units(added, *self.old_units(added.level), self._generator_for(f'grown.{name}', 'copy'))

    def init_classifier(self) -> None:
        """Give the classifier first values: torch's own law for linear layers, from the seed alone."""
        classifier = self.get_classifier()
        if isinstance(classifier, nn.Linear):
            bound = classifier.in_features**-0.5
            for name, parameter in classifier.named_parameters():
                init_uniform(parameter, bound, self._generator_for(self.classifier_name, name))

    def keep_columns(self, old: nn.Module, old_plan: Plan | None) -> None:
        """Let the classifier go on with an earlier one's columns, the new ones at zero, where it still reads the same.

        Args:
            old: The earlier classifier.
            old_plan: The plan of the network that it belonged to, None for the old network.
        """
        new = self.get_classifier()
        if not isinstance(old, nn.Linear | nn.Conv2d) or not isinstance(new, nn.Linear) or old.weight.is_meta:
            return
        weight, bias = old.weight.flatten(1), old.bias
        if self.reads_on(old_plan) and len(weight) == new.out_features:
            with torch.no_grad():
                new.weight.zero_()
                new.weight[:, : weight.shape[1]] = weight
                new.bias.zero_() if bias is None else new.bias.copy_(bias)

    def reads_on(self, old_plan: Plan | None) -> bool:
        """Whether the classifier reads what it read under an earlier plan (None: in the old network), and then more."""
        blocks = old_plan.blocks if old_plan else (self.levels_of(self)[0].name,)
        return self.plan.blocks[: len(blocks)] == blocks

    def settle(self, steps: int) -> None:
        """Say how many steps of the growth count as old; the later ones are new, and learn at the pace of new units."""
        self.settled = steps
        self._label()

    def _label(self) -> None:
        """Record where timm looks for it how the network can be built again."""
        cfg = getattr(self, 'pretrained_cfg', {})
        if not hasattr(self, 'base_name'):
            self.base_name = cfg.get('architecture')
        known = registered_for(str(self.base_name), self.growth)
        self.pretrained_cfg = self.default_cfg = {
            **cfg,
            'architecture': known or ANY,
            'classifier': self.classifier_name,
        }
        self._model_args = {**getattr(self, '_model_args', {}), 'growth': self.growth, **vars(self.options)}
        self._model_args.pop('source', None)
        if not known:
            self._model_args['source'] = '.'.join(filter(None, (self.base_name, cfg.get('tag'))))
        self._model_args.pop('settled', None)
        if self.settled:
            self._model_args['settled'] = self.settled
            self._model_args['new_init'] = 'random'  # what is there already need not be copied again
        self._model_args.pop('heads', None)
        if self.kept:
            self._model_args['heads'] = {name: head.to_dict() for name, head in self.kept.items()}

    def cut(self, growth: Growth) -> None:
        """Become the network that it was when it had grown by the beginning of its growth, without classifier.

        Args:
            growth: That beginning, of at least one step.
        """
        for name, added in list(self.added()):
            if added.step >= len(growth.steps):
                del self.grown[name]
        self.growth = str(growth)
        self.settled = min(self.settled, len(growth.steps))
        self._wire()
        self.reset_classifier(0)
        self._label()

    def shed(self) -> None:
        """Become the old network again, without classifier; for `prune_intermediate_layers`."""
        self.drop_heads()
        self.reset_classifier(0)
        self.num_features = self.feature_widths[0]
        self.__class__ = self.base_class  # type: ignore[assignment]
        del self.grown, self.plan, self.taps, self.feature_names, self.feature_widths, self.pooled, self.top
        del self.head_tops, self.growth, self.options, self.settled, self.held, self.kept

    # timm's model interface -------------------------------------------------------------------------------------------

    def forward_added(self, values: dict[str, Tensor], phase: int) -> dict[str, Tensor]:
        """Add the values of the added layers of one phase."""
        for name, added in self.grown.items():  # as TorchScript can compile it
            if added.phase == phase:
                values[name] = added([values[read] for read in added.reads])  # type: ignore[union-attr]
        return values

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, num_classes) of images (N, in_chans, H, W)."""
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: Tensor) -> Tensor:
        """The trunk's last map, with what the head reads besides appended as channels, average-pooled to its size."""
        return self.join_features(self.forward_trunk(x, self.taps))

    def join_features(self, values: dict[str, Tensor]) -> Tensor:
        """`forward_features` from the trunk's values on."""
        values = self.forward_added(values, 0)
        last = values[self.feature_names[0]]
        if len(self.feature_names) == 1:
            return last
        return torch.cat([last] + [match_size(values[name], last) for name in self.feature_names[1:]], 1)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool every block, reconcile and classify; or give what the classifier reads, (N, head_hidden_size)."""
        values = self.head_values(x)
        return self.classify_top(gather([values[name] for name in self.top]), pre_logits)

    def head_values(self, x: Tensor) -> dict[str, Tensor]:
        """All values of the pass by name, from `forward_features` on; those that classifiers read are pooled."""
        values: dict[str, Tensor] = {}
        parts = x.split(self.feature_widths, 1)
        for i, name in enumerate(self.feature_names):
            values[name] = parts[i]
        values = self.forward_added(self.forward_top(values), 1)
        for name in self.pooled:
            values[name] = self.pool_map(values[name])
        return self.forward_added(values, 2)

    def kept_answers(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """What the heads of earlier tasks say, of `head_values`: logits (N, classes) by name."""
        answers = {}
        for name, head in self.heads.items() if self.kept else ():
            read = gather([values[value] for value in self.head_tops[name]])
            answers[name] = head(self.classify_top(read, pre_logits=True))
        return answers

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Give the network a fresh classifier; what has grown stays.

        Args:
            num_classes: Number of classes, 0 for none.
            global_pool: Another pooling, None to keep the present one.

        Raises:
            ValueError: If added layers read pooled vectors that the other pooling makes wider.
        """
        dd = get_device_dtype(self)
        pool_mult = None if global_pool is None else adaptive_pool_feat_mult(global_pool)
        if self.plan_for(self, parse(self.growth), self.options, pool_mult).layers != self.plan.layers:
            raise ValueError(f'Growth {self.growth} was built for another pooling than {global_pool!r}; grow after it.')
        if any(self.top_at(head.steps, pool_mult) != self.top_at(head.steps) for head in self.kept.values()):
            raise ValueError(f'The kept heads {", ".join(self.kept)} read another pooling than {global_pool!r}.')
        super().reset_classifier(0, global_pool)  # type: ignore[misc]
        self.num_classes = num_classes
        self._wire()
        if num_classes > 0:
            parent, _, name = self.classifier_name.rpartition('.')
            classifier = nn.Linear(self.head_hidden_size, num_classes, **dd)
            setattr(self.get_submodule(parent), name, classifier.train(self.training))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = 'NCHW',
        intermediates_only: bool = False,
        extra_blocks: bool = False,
    ) -> Any:
        """As the old network's, the features being those of `forward_features`; see timm."""
        names = self.feature_levels(extra_blocks)
        take, last = feature_take_indices(len(names), indices)
        if intermediates_only or (stop_early and last < len(names) - 1):
            extra = dict(extra_blocks=True) if extra_blocks else {}
            forward = cast(Any, self.base_class).forward_intermediates
            return forward(self, x, indices, norm, stop_early, output_fmt, intermediates_only, **extra)
        assert output_fmt == 'NCHW', 'Output shape must be NCHW.'
        values = self.forward_trunk(x, [*self.taps, *(names[i] for i in take)])
        return self.join_features(dict(values)), [values[names[i]] for i in sorted(set(take))]

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True, **kwargs: Any
    ) -> list[int]:
        """As the old network's; what has grown goes with the head."""
        base, count = self.base_class, len(self.feature_levels(**kwargs))
        if prune_head or prune_norm or feature_take_indices(count, indices)[1] < count - 1:
            self.shed()
        prune = cast(Any, base).prune_intermediate_layers
        return prune(self, indices, prune_norm, prune_head, **kwargs)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load a checkpoint of this network, of the network before it grew, or of one in between.

        Which of them it is is told from its keys. What the checkpoint lacks because it had not grown yet starts afresh.

        Args:
            state_dict: The checkpoint.
            strict: Refuse a checkpoint that is none of these; otherwise load what fits, as torch does.
            assign: Take the checkpoint's tensors themselves; always done for parameters that are on the meta device.

        Raises:
            ValueError: If `strict` and the checkpoint fits neither the grown network nor what it grew from.
        """
        assign = assign or any(parameter.is_meta for parameter in self.parameters())
        if not strict:
            return super().load_state_dict(state_dict, strict=False, assign=assign)
        adapted, settled = adapt(state_dict, self)
        result = super().load_state_dict(adapted, assign=assign)
        if settled < len(parse(self.growth).steps):
            self.settled = settled
            self.init_new(settled)
        return result
