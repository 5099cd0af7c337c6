"""How the cells of a table train: one recipe for all of them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from training.config import Config

from .targets import Target

# The paper's, where it states one: SGD with momentum 0.9, weight decay 5e-4, steps; the others are train.py's defaults.
PAPER = Config(epochs=20)
# Few labels and small images: the recipe of docs/growth.md. With fewer updates or smaller batches batch norms of layers
# that learn have not settled: norm and wa reached 72 and 81 % after 16 epochs, 81 and 89 % after 20 (table 1, seed 0).
SMALL = Config(img_size=64, epochs=20, sched='cosine', threads=1)
SMALL_VIEWS = 4
# The last epoch is what counts: nothing is chosen on the validation images.
ALWAYS: dict[str, Any] = dict(
    report=False, tracker='none', memory_format='channels_last', keep_checkpoints=1, resume='auto'
)


@dataclass(frozen=True)
class Recipe:
    """What all cells of a table share."""

    config: Config
    """Their options; output is the folder of the table."""
    views: int | None = None
    """In regimes that freeze the trunk: augmented views of each image whose features are kept."""
    source_epochs: int = 0
    """Passes over a source task that is learnt first (0: as over the target)."""

    @property
    def epochs(self) -> int:
        """Passes over the target."""
        assert self.config.epochs is not None, 'recipes state their epochs'
        return self.config.epochs

    @property
    def first_epochs(self) -> int:
        """Passes over the source task."""
        return self.source_epochs or self.epochs

    def at(self, target: Target, regime: str, seed: int, name: str, epochs: int | None = None) -> Config:
        """Give the options of one cell, but for its network.

        Args:
            target: Its images.
            regime: What learns, by the network's own name.
            seed: Of everything random.
            name: Of its run folder.
            epochs: Passes over the images (None: as over every target).
        """
        epochs = epochs or self.epochs
        return dataclasses.replace(
            self.config,
            **target.options,
            regime=regime,
            seed=seed,
            experiment=name,
            epochs=epochs,
            eval_every=epochs,
            cache_features=None if regime == 'all' else self.views,
        )


def make_recipe(is_small: bool, output: str, source_epochs: int | None, options: dict[str, Any]) -> Recipe:
    """Make a table's recipe.

    Args:
        is_small: Whether it is the small twin's.
        output: Folder of the table.
        source_epochs: Passes over a source task.
        options: What the user wishes otherwise, by field of `Config`; None for what the recipe says.
    """
    wishes = {name: value for name, value in options.items() if value is not None}
    config = dataclasses.replace(SMALL if is_small else PAPER, **ALWAYS, output=output)
    return Recipe(dataclasses.replace(config, **wishes), SMALL_VIEWS if is_small else None, source_epochs or 0)
