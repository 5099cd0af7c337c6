"""`devnet`, under which timm builds any growth of any of its networks; and short names for networks that are used most.

The short names are of the families that timm's own documentation presents first, in the sizes that fit one GPU; a name
is no more than `devnet` with its source and growth filled in.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from timm.models import PretrainedCfg, generate_default_cfgs, register_model
from torch import nn

from ..grown import Options
from ..published import takes_published_tags
from ..reconcile import SCALE_INIT
from ..registration import create_grown, find_source, grown_cfgs, register_grown, usual_levels

__all__ = ['devnet']

# Base: units of its registered wa, mwa and xwa, in proportion to the width of what its classifier reads.
BASES = {
    'beit_base_patch16_224': 256,
    'caformer_s18': 128,
    'convnext_atto': 128,
    'convnext_tiny': 256,
    'convnext_small': 256,
    'convnext_base': 256,
    'convnextv2_nano': 256,
    'convnextv2_tiny': 256,
    'deit3_small_patch16_224': 128,
    'deit_small_patch16_224': 128,
    'deit_tiny_patch16_224': 64,
    'densenet121': 256,
    'edgenext_small': 64,
    'efficientnet_b0': 512,
    'efficientnet_b2': 512,
    'efficientnet_b3': 512,
    'efficientnetv2_rw_s': 512,
    'eva02_tiny_patch14_224': 64,
    'fastvit_t8': 256,
    'ghostnet_100': 512,
    'hgnetv2_b0': 512,
    'inception_v3': 512,
    'mambaout_tiny': 512,
    'maxvit_tiny_tf_224': 128,
    'mixer_b16_224': 256,
    'mobilenetv2_100': 512,
    'mobilenetv3_large_100': 512,
    'mobilenetv3_small_100': 256,
    'mobilenetv4_conv_medium': 512,
    'mobilenetv4_conv_small': 512,
    'regnety_008': 256,
    'regnety_032': 512,
    'repvit_m1_1': 128,
    'resnet18': 128,
    'resnet34': 128,
    'resnet50': 512,
    'resnet101': 512,
    'resnet50d': 512,
    'resnetv2_50': 512,
    'resnext50_32x4d': 512,
    'seresnext50_32x4d': 512,
    'swin_base_patch4_window7_224': 256,
    'swin_small_patch4_window7_224': 256,
    'swin_tiny_patch4_window7_224': 256,
    'swinv2_tiny_window8_256': 256,
    'tf_efficientnetv2_s': 512,
    'tiny_vit_5m_224': 128,
    'vit_base_patch16_224': 256,
    'vit_base_patch16_clip_224': 256,
    'vit_base_patch14_dinov2': 256,
    'vit_small_patch14_dinov2': 128,
    'vit_small_patch16_224': 128,
    'vit_tiny_patch16_224': 64,
    'wide_resnet50_2': 512,
}
SOURCE, GROWTH = 'tf_efficientnet_lite0', 'mwa'  # what `devnet` is where nothing is said: the README's network


def _growths(units: int) -> tuple[str, ...]:
    return 'wa', f'wa{units}', 'mwa', f'mwa{units}', 'xwa', f'xwa{units}', 'norm', 'skip'


def _all_cfgs() -> Mapping[str, Any]:
    """The cfgs of `devnet` and of all short names."""
    cfgs = dict(generate_default_cfgs({'devnet': _as_devnet(find_source(SOURCE)[1])}))
    for base, units in BASES.items():
        cfgs.update(grown_cfgs([base], _growths(units)))
    return cfgs


def _as_devnet(cfg: PretrainedCfg) -> dict[str, Any]:
    return {**asdict(cfg), 'architecture': None, 'tag': None}


default_cfgs = _all_cfgs()


@register_model
@takes_published_tags
def devnet(
    pretrained: bool = False,
    source: str = SOURCE,
    growth: str = GROWTH,
    scale_init: float | None = SCALE_INIT,
    new_init: str = 'random',
    settled: int = 0,
    delta_of: dict[str, Any] | None = None,
    heads: dict[str, Any] | None = None,
    pretrained_cfg: str | Mapping[str, Any] | PretrainedCfg | None = None,
    **kwargs: Any,
) -> nn.Module:
    """Any network of timm, grown.

    Args:
        pretrained: Whether to load the source's weights, or a grown checkpoint's.
        source: One of timm's architectures, with or without the tag of its weights, such as `resnet50.a1_in1k`.
        growth: What is added, such as `wa512`.
        scale_init: As `timm_devnet.grow` has it.
        new_init: As `timm_devnet.grow` has it.
        settled: What a saved network says of itself; see `create_grown`.
        delta_of: What a saved delta says of itself; see `create_grown`.
        heads: What a saved network says of the heads that it keeps; see `create_grown`.
        pretrained_cfg: A cfg in place of the source's.
        **kwargs: timm's, and those of the source's constructor.

    Raises:
        ValueError: If the source is none of timm's architectures, or cannot grow so.

    Example:
        >>> import timm, timm_devnet
        >>> model = timm.create_model('devnet', source='resnet18', growth='wa64', num_classes=10)
        >>> timm_devnet.block_names(model)
        ['layer4', 'layer4_1']
    """
    base, cfg = find_source(source)
    if pretrained_cfg is None or isinstance(pretrained_cfg, str):
        pretrained_cfg = {**asdict(cfg), 'architecture': 'devnet'}
    if kwargs.get('features_only'):
        kwargs.setdefault('out_indices', usual_levels(base))
    options = Options(scale_init, new_init)
    return create_grown(
        'devnet', base, growth, options, pretrained, settled, delta_of, heads, pretrained_cfg=pretrained_cfg, **kwargs
    )


for _base, _units in BASES.items():
    register_grown(__name__, [_base], _growths(_units))
