"""How many workers a fleet has, and how they are ordered about."""

from __future__ import annotations

from dataclasses import dataclass

from dreamfleet.common.settings.schema import Settings

ORDERS_QUEUED = 2
"""Orders each worker has at most: one that it does, and one so that it need not wait for the next."""


@dataclass(frozen=True)
class Staffing:
    """How many actors, how many environments each, and how long orders may take; taken from the settings.

    Attributes:
        actors: processes; None is as many as there is room for, and 0 trains on what is stored.
        learns: whether there is a learner; without one the fleet collects only.
        evaluate_every: environment steps between two evaluations; 0 has no evaluator.
        evaluation_episodes: of one evaluation, which is one order.
    """

    actors: int | None
    environments: int
    steps_per_order: int
    updates_per_order: int
    checkpoint_every: int
    picture_every: int
    actor_timeout_s: float
    learner_timeout_s: float
    learns: bool = True
    evaluate_every: int = 0
    evaluation_episodes: int = 1

    @property
    def evaluator_timeout_s(self) -> float:
        """How long an evaluation may take: a planner may need for each episode what an order of the learner may."""
        return self.learner_timeout_s * self.evaluation_episodes

    @staticmethod
    def of(settings: Settings, learns: bool = True) -> Staffing:
        """Return what the settings say."""
        count = settings.actors.count
        return Staffing(
            actors=0 if settings.train.dataset else None if count == "auto" else count,
            environments=settings.actors.environments,
            steps_per_order=settings.actors.steps_per_order * settings.actors.environments,
            updates_per_order=settings.learner.updates_per_order,
            checkpoint_every=settings.records.checkpoint_every,
            picture_every=settings.records.picture_every,
            actor_timeout_s=settings.actors.order_timeout_s,
            learner_timeout_s=settings.learner.order_timeout_s,
            learns=learns,
            evaluate_every=settings.records.evaluate_every if learns and not settings.train.dataset else 0,
            evaluation_episodes=settings.records.evaluation_episodes,
        )
