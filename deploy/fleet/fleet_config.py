"""The size of a fleet and the size of its orders, taken from the settings."""

from __future__ import annotations

from dataclasses import dataclass

from dreamfleet.common.settings.schema import Settings

ORDERS_QUEUED = 2
"""Orders that a worker has at most: the one it carries out, and the next, so that it need not wait for it."""


@dataclass(frozen=True)
class FleetConfig:
    """How many workers there are, how much one order asks of them, and how long it may take.

    Attributes:
        actors: processes; None for as many as there is room for, 0 to train on what is stored.
        environments: of each actor.
        steps_per_order: environment steps, of all environments of an actor together.
        learns: whether there is a learner; without one the fleet only collects.
        evaluate_every: environment steps between two evaluations; 0 for no evaluator.
        evaluation_episodes: of one evaluation, which is one order.
        give_up_after_s: how long workers of a slot may fail without any progress until it is given up.
        acts_centrally: whether one process acts for all actors.
        acts_at_once: whether a policy acts in the prefill too: the run began with what another has learnt.
        acts_by_weights: whether weights choose actions at all; else actors are sent none.
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
    give_up_after_s: float = 600.0
    acts_centrally: bool = False
    acts_at_once: bool = False
    acts_by_weights: bool = True

    @property
    def evaluator_timeout_s(self) -> float:
        """How long an evaluation may take: with a planner, an episode may take as long as an order of the learner."""
        return self.learner_timeout_s * self.evaluation_episodes

    @staticmethod
    def of(settings: Settings, learns: bool = True, inline: bool = False) -> FleetConfig:
        """Return what the settings ask for; inline, actors act by themselves in any case."""
        count = settings.actors.count
        return FleetConfig(
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
            give_up_after_s=settings.actors.give_up_after_s,
            acts_centrally=settings.acts_centrally and not inline,
            acts_at_once=learns and bool(settings.train.from_run) and settings.acts_by_weights,
            acts_by_weights=settings.acts_by_weights,
        )
