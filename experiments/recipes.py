"""How the cells of a table train: one recipe for all of them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from training.config import Config

from .targets import Target

# The paper's, where it states one: SGD with momentum 0.9, weight decay 5e-4, steps; the others are train.py's defaults.
PAPER = Config(epochs=20)
# Few labels and small images. The rates are those of docs/growth.md.
SMALL = Config(img_size=64, epochs=8, batch_size=16, sched='cosine', warmup_epochs=0.4, threads=1)
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
    source_epochs: int | None = None
    """Passes over a source task that is learnt first (None: as over the target)."""

    def at(self, target: Target, regime: str, seed: int, name: str, is_source: bool = False, times: int = 1) -> Config:
        """Give the options of one cell, but for its network.

        Args:
            target: Its images.
            regime: What learns, by the network's own name.
            seed: Of everything random.
            name: Of its run folder.
            is_source: Whether it learns the source task.
            times: How often the usual number of epochs it trains.
        """
        usual = self.source_epochs if is_source and self.source_epochs else self.config.epochs
        assert usual is not None, 'recipes state their epochs'
        return dataclasses.replace(
            self.config,
            **target.options,
            regime=regime,
            seed=seed,
            experiment=name,
            epochs=usual * times,
            eval_every=usual * times,
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
    return Recipe(dataclasses.replace(config, **wishes), SMALL_VIEWS if is_small else None, source_epochs)
