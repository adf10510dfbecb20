"""Which policy acts, by the settings."""

from __future__ import annotations

import numpy as np

from dreamfleet.common.acting.policy import Policy, RandomPolicy
from dreamfleet.common.experience.spaces import Spaces
from dreamfleet.common.settings.schema import Settings


def make_policy(
    settings: Settings,
    spaces: Spaces,
    environments: int,
    seed: int,
    explores: bool = True,
    weights: tuple[int, np.ndarray] | None = None,
) -> Policy:
    """Return the policy that the settings name, for a number of environments.

    Args:
        environments: their number K.
        explores: whether it explores; otherwise it takes the best action it knows.
        weights: a version and the flat array to begin with; with None, `adopt` is called later.

    Raises:
        UserError: if it does not fit the spaces.
    """
    actors = settings.actors
    by_chance = RandomPolicy(spaces.action, environments, seed, actors.hold_min, actors.hold_max, actors.action_weights)
    policy: Policy = by_chance
    if settings.behaviour.kind != "random":
        from dreamfleet.common.acting.model_policy import ModelPolicy  # torch, which a random actor does without

        policy = ModelPolicy(settings, spaces, environments, seed, explores, by_chance)
    if weights:
        policy.adopt(*weights)
    return policy
