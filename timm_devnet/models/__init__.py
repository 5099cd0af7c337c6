"""The networks that can grow, one file per family; importing them registers their names with timm."""

from . import alexnet, devnet, efficientnet_grown, vgg_grown

__all__ = ['alexnet', 'devnet', 'efficientnet_grown', 'vgg_grown']
