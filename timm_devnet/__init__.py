"""A timm plugin of networks that grow: `import timm_devnet` registers grown architectures with timm."""

from importlib.resources import as_file, files

from . import models
from .consolidate import Consolidated, consolidate
from .frozen import split_frozen
from .growable import Growable, list_growable
from .growing import all_levels, block_logits, block_names, grow, to_own_layout
from .growth import Growth
from .growth import parse as parse_growth
from .keeping import forward_heads, keep_head, recall_head
from .models.efficientnet_grown import convert_lite
from .published import list_published, register_published
from .reconcile import Reconcile, reconcile
from .regimes import parameter_groups, regimes
from .registration import resolve_name

__all__ = [
    'Consolidated',
    'Growable',
    'Growth',
    'Reconcile',
    'all_levels',
    'block_logits',
    'block_names',
    'consolidate',
    'convert_lite',
    'forward_heads',
    'grow',
    'keep_head',
    'list_growable',
    'list_published',
    'models',
    'parameter_groups',
    'parse_growth',
    'recall_head',
    'reconcile',
    'regimes',
    'register_published',
    'resolve_name',
    'split_frozen',
    'to_own_layout',
]

with as_file(files(__name__) / 'published.json') as _list:
    register_published(_list)
