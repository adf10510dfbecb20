"""What one start of a run is for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

    from dreamfleet.deploy.fleet.fleet import Fleet
    from dreamfleet.deploy.fleet.train_ratio import TrainRatio
    from dreamfleet.deploy.monitoring.run_callbacks import RunWatcher


@dataclass(frozen=True)
class Goal:
    """What is to be reached, and who says how it went.

    Attributes:
        learns: whether there is a learner.
        ratio: how many steps and updates there are to be.
        sum_up: says how it went, once all is done.
        come_back: the command that goes on with the run, for messages.
        weights: what the actors act with where there is no learner: a version and its flat weights.
    """

    learns: bool
    ratio: TrainRatio
    sum_up: Callable[[Fleet, RunWatcher], None]
    come_back: str
    weights: tuple[int, np.ndarray] | None = None
