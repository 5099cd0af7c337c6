"""From the network as it was built to the network that a run begins with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .config import Config
from .grow import grow_first
from .keep_heads import Kept, attach_heads, copy_heads
from .networks import begin_classifier


def begin_network(config: Config, network: Any, classes: Sequence[str], num_classes: int) -> Kept | None:
    """Give a network that was just built a classifier for the data, what grows first, and the heads that it keeps.

    Args:
        config: Of the run.
        network: As `build_network` gave it. It is changed itself.
        classes: Of the data.
        num_classes: Outputs that it must have.

    Returns:
        What it brings along of earlier tasks; None without --keep-heads.

    Raises:
        ValueError: It cannot grow so, or keep its head.
    """
    kept = copy_heads(config, network)
    starts_afresh = begin_classifier(config, network, classes, num_classes)
    grow_first(config, network, starts_afresh)
    attach_heads(kept, network)
    return kept
