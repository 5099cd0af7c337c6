"""AlexNet as torchvision has it, in the frame of timm's VGG, and its growths.

The top layer is FC7, `pre_logits.fc2`; it reads FC6, `pre_logits.fc1`. Below are the last pooled map, `pool5`, which
FC6 reads, and the convolutions `conv4` to `conv1`, each as it leaves its activation.

Source:
    One weird trick for parallelizing convolutional neural networks (Krizhevsky, 2014), which torchvision's AlexNet
    follows; Growing a Brain (Wang, Ramanan, Hebert, 2017).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import ClassifierHead
from timm.models import VGG, build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.vgg import ConvMlp
from torch import Tensor, nn

from ..grown import grows
from ..registration import grown_cfgs, register_grown
from .vgg_grown import GROWTHS, GrownVGG

__all__ = ['AlexNet', 'GrownAlexNet']


class AlexNet(VGG):
    """AlexNet: torchvision's architecture, its fully connected layers as convolutions like those of timm's VGG.

    Gives torchvision's output for images of every size: the last map is average-pooled to 6x6, which is its own size at
    224 px. Dropout stands after FC6 and before the classifier, as in timm's VGG, and is off by default.

    Args:
        num_classes: Number of classes, 0 for none.
        in_chans: Number of input channels.
        global_pool: Pooling of FC7's map, which is 1x1.
        drop_rate: Dropout rate.
        device: Where the parameters live.
        dtype: The parameters' type.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = 'avg',
        drop_rate: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        nn.Module.__init__(self)  # timm's VGG would build a VGG's layers
        dd: dict[str, Any] = dict(device=device, dtype=dtype)
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.drop_rate = drop_rate
        self.grad_checkpointing = False
        self.use_norm = False
        self.features = nn.Sequential(
            *(nn.Conv2d(in_chans, 64, 11, stride=4, padding=2, **dd), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2)),
            *(nn.Conv2d(64, 192, 5, padding=2, **dd), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2)),
            *(nn.Conv2d(192, 384, 3, padding=1, **dd), nn.ReLU(inplace=True)),
            *(nn.Conv2d(384, 256, 3, padding=1, **dd), nn.ReLU(inplace=True)),
            *(nn.Conv2d(256, 256, 3, padding=1, **dd), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2)),
        )
        self.feature_ends = [1, 4, 11, 12]  # before each pooling, and after the last
        self.feature_info = [
            dict(num_chs=chs, reduction=reduction, module=f'features.{end}')
            for end, chs, reduction in zip(self.feature_ends, (64, 192, 256, 256), (4, 8, 16, 32), strict=True)
        ]
        self.num_features = 256
        self.resize: nn.Module = nn.AdaptiveAvgPool2d(6)
        self.pre_logits = ConvMlp(256, 4096, 6, drop_rate=drop_rate, **dd)
        self.head = ClassifierHead(4096, num_classes, pool_type=global_pool, drop_rate=drop_rate, **dd)
        self.head_hidden_size = self.head.num_features
        self._initialize_weights()

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """FC6, FC7 and, unless `pre_logits`, the classifier, of a map (N, 256, H, W)."""
        return self.head(self.pre_logits(self.resize(x)), pre_logits=pre_logits)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """As timm's VGG; without FC6 there is nothing to resize for."""
        kept = super().prune_intermediate_layers(indices, prune_norm, prune_head)
        if isinstance(self.pre_logits, nn.Identity):
            self.resize = nn.Identity()
        return kept


@grows(AlexNet)
class GrownAlexNet(GrownVGG, AlexNet):
    """An AlexNet with new units; see `timm_devnet.grow`."""

    @staticmethod
    def trunk_ends(model: VGG) -> dict[str, int]:
        """Where in `model.features` each named value is complete."""
        return dict(conv1=1, conv2=4, conv3=7, conv4=9, conv5=11, pool5=12)

    @staticmethod
    def to_own_layout(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """timm's names, also of torchvision's checkpoints."""
        return checkpoint_filter_fn(state_dict)


def checkpoint_filter_fn(state_dict: Mapping[str, Tensor], model: nn.Module | None = None) -> dict[str, Tensor]:
    """Rename torchvision's checkpoint; one in this module's names passes unchanged."""
    if 'classifier.1.weight' not in state_dict:
        return dict(state_dict)
    names = {'classifier.1': 'pre_logits.fc1', 'classifier.4': 'pre_logits.fc2', 'classifier.6': 'head.fc'}
    renamed = {}
    for key, value in state_dict.items():
        layer, _, kind = key.rpartition('.')
        if key == 'classifier.1.weight':
            value = value.reshape(-1, 256, 6, 6)
        elif key == 'classifier.4.weight':
            value = value[:, :, None, None]
        renamed[f'{names.get(layer, layer)}.{kind}'] = value
    return renamed


def _cfg(url: str = '', **kwargs: Any) -> dict[str, Any]:
    return {
        'url': url,
        'num_classes': 1000,
        'input_size': (3, 224, 224),
        'pool_size': (6, 6),
        'crop_pct': 0.875,
        'interpolation': 'bilinear',
        'mean': IMAGENET_DEFAULT_MEAN,
        'std': IMAGENET_DEFAULT_STD,
        'first_conv': 'features.0',
        'classifier': 'head.fc',
        'license': 'bsd-3-clause',
        **kwargs,
    }


BASES = ('alexnet',)
default_cfgs = generate_default_cfgs(
    {'alexnet.tv_in1k': _cfg(url='https://download.pytorch.org/models/alexnet-owt-7be5be79.pth')}
)


@register_model
def alexnet(pretrained: bool = False, **kwargs: Any) -> AlexNet:
    """AlexNet with torchvision's weights (tag `tv_in1k`)."""
    kwargs.setdefault('out_indices', (0, 1, 2, 3)) if kwargs.get('features_only') else None
    return build_model_with_cfg(
        AlexNet,
        'alexnet',
        pretrained,
        feature_cfg=dict(flatten_sequential=True),
        pretrained_filter_fn=checkpoint_filter_fn,
        **kwargs,
    )


default_cfgs.update(grown_cfgs(BASES, GROWTHS))
register_grown(__name__, BASES, GROWTHS, feature_levels=4, flatten_sequential=True)
