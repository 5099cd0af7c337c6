"""How actions are timed beside each other."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any


def interleave(actions: Sequence[Callable[[], Any]], repeats: int, warmup: int = 1) -> list[list[float]]:
    """Time actions in turn, so that whatever slows the machine meets all of them.

    Args:
        actions: What to time.
        repeats: Timed rounds.
        warmup: Rounds before, untimed.

    Returns:
        Seconds of every round, for each action.
    """
    seconds: list[list[float]] = [[] for _ in actions]
    for turn in range(warmup + repeats):
        for action, times in zip(actions, seconds, strict=True):
            start = time.perf_counter()
            result = action()
            elapsed_s = time.perf_counter() - start
            del result  # freeing it is not part of the next action's time
            if turn >= warmup:
                times.append(elapsed_s)
    return seconds
