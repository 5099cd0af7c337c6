"""Settings of tables as the paper has them, without any image or network."""

from typing import Any

from experiments.bases import REGIMES, Base
from experiments.grids import Setting
from experiments.published import published
from experiments.recipes import make_recipe
from experiments.targets import Target

ALEXNET = Base(
    'alexnet',
    dict(zip(REGIMES, ('new', 'fc7-new', 'fc6-new', 'all'), strict=True)),
    {'da': 6144, 'wa': 2048, 'dwa': 2048, 'wwa': 2048, 'mwa': 1024, 'xwa': 1024},
    frozenset({'da', 'wa', 'dwa', 'wwa', 'mwa', 'xwa', 'norm', 'skip'}),
    2411,
)
TARGETS = {
    'table5': ('mit67', 'flowers102', 'cub200', 'stanford40'),
    'table7': ('mit67', 'cub200'),
    'table8': ('sun397', 'mit67'),
}


def task(name: str) -> Target:
    """Describe a data set that is not there."""
    return Target(name, {'dataset': name, 'data_dir': f'/data/{name}'}, 67, 100, 50)


def setting_of(table: str, **changes: Any) -> Setting:
    """Describe a table of the paper, with one seed."""
    targets = tuple(map(task, TARGETS.get(table, ('sun397',))))
    source = task('ImageNet')
    values: dict[str, Any] = dict(
        bases={task.name: ALEXNET for task in (*targets, source)},
        recipe=make_recipe(False, f'output/{table}', None, {}),
        targets=targets,
        figures=published(table, 'alexnet'),
        seeds=1,
        source=source,
    )
    return Setting(**{**values, **changes})
