"""A timm plugin of networks that grow: `import timm_devnet` registers grown architectures with timm."""

from . import models
from .frozen import split_frozen
from .growing import block_logits, block_names, grow, to_own_layout
from .growth import Growth
from .growth import parse as parse_growth
from .models.efficientnet_grown import convert_lite
from .reconcile import Reconcile, reconcile
from .regimes import parameter_groups, regimes
from .registration import resolve_name

__all__ = [
    'Growth',
    'Reconcile',
    'block_logits',
    'block_names',
    'convert_lite',
    'grow',
    'models',
    'parameter_groups',
    'parse_growth',
    'reconcile',
    'regimes',
    'resolve_name',
    'split_frozen',
    'to_own_layout',
]
