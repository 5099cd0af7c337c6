"""Every figure of the paper's tables: top-1 accuracy in %.

Source:
    Growing a Brain (Wang, Ramanan, Hebert, 2017), tables 1 to 8.
"""

from __future__ import annotations

from collections.abc import Mapping

Figures = Mapping[str, Mapping[str, float]]
"""Row, column and figure."""

COLUMNS = ('New', 'FC7-New', 'FC6-New', 'All')


def _by_regime(rows: Mapping[str, tuple[float, float, float, float]]) -> Figures:
    return {row: dict(zip(COLUMNS, figures, strict=True)) for row, figures in rows.items()}


TABLE1: Mapping[str, Figures] = {
    'alexnet': _by_regime(
        {
            'fine-tuning': (53.63, 54.75, 54.29, 55.93),
            'DA': (54.24, 56.48, 57.42, 58.54),
            'WA': (56.81, 56.99, 57.84, 58.95),
            'DWA': (56.07, 56.41, 56.97, 57.75),
            'WWA': (56.65, 57.10, 58.16, 59.05),
        }
    ),
    'vgg16': _by_regime(
        {
            'fine-tuning': (60.77, 59.09, 50.54, 62.80),
            'DA': (61.21, 62.85, 63.07, 65.55),
            'WA': (63.61, 64.00, 64.15, 66.54),
        }
    ),
}
"""SUN-397, the best size of each growth and column."""

TABLE2 = _by_regime(
    {
        'DA 1024': (53.36, 56.31, 57.22, 57.98),
        'DA 2048': (53.82, 56.47, 57.14, 58.07),
        'DA 4096': (54.02, 56.46, 57.41, 58.32),
        'DA 6144': (54.24, 56.48, 57.42, 58.54),
        'WA 1024': (56.46, 56.71, 57.55, 58.90),
        'WA 2048': (56.81, 56.99, 57.84, 58.95),
        'DWA 1024': (55.44, 55.77, 56.71, 57.49),
        'DWA 2048': (56.07, 56.41, 56.97, 57.75),
        'WWA 1024': (56.13, 57.10, 57.65, 58.80),
        'WWA 2048': (56.49, 57.10, 57.98, 59.05),
        'WWA 4096': (56.65, 57.03, 58.16, 58.98),
    }
)
"""SUN-397, AlexNet, by the number of new units beside or on top of FC7; WWA has half of it beside FC6 besides."""

TABLE3 = _by_regime(
    {
        'DA without': (53.82, 56.47, 56.25, 57.21),
        'DA with': (53.51, 56.15, 57.14, 58.07),
        'WA without': (53.78, 54.66, 49.72, 51.34),
        'WA without, copied': (53.62, 54.35, 53.70, 55.31),
        'WA with': (56.81, 56.99, 57.84, 58.95),
    }
)
"""SUN-397, AlexNet, 2048 new units, with and without normalisation and scaling; random or copies plus noise."""

TABLE4: Figures = {
    'AlexNet': {'ImageNet': 56.9},
    'LwF': {'ImageNet': 55.9},
    'joint training': {'ImageNet': 56.4},
    'DA': {'ImageNet': 55.3},
    'WA': {'ImageNet': 51.5},
}
"""ImageNet validation of networks that were transferred to SUN-397 and trained on ImageNet again."""

TABLE5: Figures = {
    'fine-tuning': {'mit67': 61.2, 'flowers102': 75.3, 'cub200': 62.9, 'stanford40': 57.7},
    'WA': {'mit67': 66.3, 'flowers102': 92.8, 'cub200': 69.0, 'stanford40': 67.5},
}
"""Other targets, AlexNet."""

TABLE6: Figures = {
    'AlexNet': {'ImageNet': 56.9},
    'wide from scratch': {'ImageNet': 57.6},
    'grown': {'ImageNet': 57.8},
}
"""Growing on the source task itself."""

TABLE7: Figures = {
    'fine-tuning': {'mit67': 61.2, 'cub200': 62.9},
    'ori': {'mit67': 62.3, 'cub200': 63.2},
    'grow': {'mit67': 66.3, 'cub200': 69.0},
}
"""Is it only the size? `ori`: a wide network trained on ImageNet and fine-tuned; `grow`: grown for the target."""

TABLE8: Figures = {
    'ImageNet': {'mit67': 66.3},
    'ImageNet, SUN-397': {'mit67': 79.3},
    'Places': {'mit67': 68.2},
    'VGG16': {'mit67': 74.0},
}
"""Growing from task to task up to MIT-67; Places and VGG16 are other base weights."""


def network_of(model: str) -> str:
    """Tell whose figures stand beside a network's: AlexNet's, which the paper has for every table, unless it is VGG16.

    Example:
        >>> network_of('vgg16_bn'), network_of('vgg16.tv_in1k'), network_of('resnet50')
        ('alexnet', 'vgg16', 'alexnet')
    """
    return 'vgg16' if model.partition('.')[0] == 'vgg16' else 'alexnet'


def published(table: str, model: str) -> Figures:
    """Give the figures of a table.

    Args:
        table: table1 to table8, or labels, of which the paper has none.
        model: Name of the base network.
    """
    others = {'table2': TABLE2, 'table3': TABLE3, 'table4': TABLE4, 'table5': TABLE5, 'table6': TABLE6}
    return {'table1': TABLE1[network_of(model)], **others, 'table7': TABLE7, 'table8': TABLE8, 'labels': {}}[table]
