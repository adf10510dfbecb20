"""How old the experience is that is trained on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

CHANCE = -1
"""Version of an action that no weights chose."""


def staleness(updates: Sequence[int], versions: Sequence[np.ndarray]) -> dict[str, float]:
    """Return how many updates lay between the weights that chose the replayed actions and the updates that replay them.

    Args:
        updates: made before each batch was trained on.
        versions: of each batch's actions, of any shape: the updates of the weights that chose them, or `CHANCE`.

    Returns:
        `staleness/mean`, `staleness/p50`, `staleness/p90` and `staleness/max` in updates, over all batches' actions
        that weights chose, and left out where there is none; `staleness/by_chance`, the share of the others.
    """
    found = np.concatenate([version.ravel() for version in versions])
    now = np.repeat(np.asarray(updates), [version.size for version in versions])
    chosen = found != CHANCE
    metrics = {"staleness/by_chance": 1.0 - float(np.mean(chosen))}
    if chosen.any():
        ages = (now - found)[chosen]
        middle, late = np.percentile(ages, [50, 90])
        metrics |= {
            "staleness/mean": float(np.mean(ages)),
            "staleness/p50": float(middle),
            "staleness/p90": float(late),
            "staleness/max": float(np.max(ages)),
        }
    return metrics
