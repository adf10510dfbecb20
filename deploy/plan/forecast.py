"""How long a run will take: from what is left to do and the rates of its parts, each bound worked out by itself."""

from __future__ import annotations

import math
from dataclasses import dataclass

from dreamfleet.deploy.fleet.ledger import TrainRatio


@dataclass(frozen=True)
class Work:
    """What is left of a run.

    Attributes:
        by_chance: environment steps of the prefill.
        acting: environment steps after it.
        updates: of the learner.
    """

    by_chance: int
    acting: int
    updates: int

    @staticmethod
    def left(ratio: TrainRatio, env_steps: int, updates: int) -> Work:
        """Return what is left where so many steps and updates are there already."""
        by_chance = max(0, min(ratio.prefill, ratio.env_steps) - env_steps)
        acting = max(0, ratio.env_steps - max(env_steps, ratio.prefill))
        return Work(by_chance, acting, max(0, ratio.updates - updates))


@dataclass(frozen=True)
class Speeds:
    """What the parts of a run manage.

    Attributes:
        by_chance: environment steps per second of one actor by chance; `acting` on the model.
        acting: see `by_chance`.
        update_s: seconds of an update.
        actors: how many collect beside each other; 0 where nothing is collected.
        cores: CPU cores that all share; 0 where they are not all on this machine.
        threads: cores that an update keeps busy; 0 on a GPU.
    """

    by_chance: float
    acting: float
    update_s: float
    actors: int
    cores: int
    threads: int


@dataclass(frozen=True)
class Forecast:
    """Seconds: of the prefill, of the whole run, and what that is bound by."""

    prefill_s: float
    seconds: float
    bound: str


def forecast(work: Work, speeds: Speeds, inline: bool) -> Forecast:
    """Return how long a run takes at least: inline one thing after the other, else as long as what is slowest.

    Training begins after the prefill, and goes on beside collecting. On one machine all of it shares the cores: the
    seconds of all processes together are no more than the cores have.
    """
    collecting = work.by_chance / speeds.by_chance + work.acting / speeds.acting if speeds.actors else 0.0
    prefill = work.by_chance / speeds.by_chance if speeds.actors else 0.0
    training = work.updates * speeds.update_s
    if inline:
        bound = "updates" if training > collecting else "collecting"
        return Forecast(prefill, collecting + training, f"one after the other in one process, mostly {bound}")
    actors = max(1, speeds.actors)
    within = min(actors, speeds.cores) if speeds.cores else actors
    bounds = {
        "the actors": collecting / within,
        "the learner": prefill / within + training,
        "the cores, which actors and learner share": (collecting + training * speeds.threads) / speeds.cores
        if speeds.cores
        else -math.inf,
    }
    slowest = max(bounds, key=lambda name: bounds[name])
    return Forecast(prefill / within, bounds[slowest], slowest)
