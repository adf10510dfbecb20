"""Which policy acts, by the settings."""

from __future__ import annotations

import numpy as np

from dreamfleet.common.acting.policy import Policy, RandomPolicy
from dreamfleet.common.experience.spaces import Spaces
from dreamfleet.common.seeds import derive_seed
from dreamfleet.common.settings.schema import Settings


def policy_seed(settings: Settings, actor: int, incarnation: int) -> int:
    """Return the seed of all random numbers with which an incarnation of an actor acts."""
    return derive_seed(settings.seed, "policy", actor, incarnation)


def make_random_policy(settings: Settings, spaces: Spaces, environments: int, seed: int) -> RandomPolicy:
    """Return the policy that acts by chance, as the settings say.

    Raises:
        UserError: if it does not fit the spaces.
    """
    actors = settings.actors
    return RandomPolicy(spaces.action, environments, seed, actors.hold_min, actors.hold_max, actors.action_weights)


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
    by_chance = make_random_policy(settings, spaces, environments, seed)
    policy: Policy = by_chance
    if settings.acts_by_weights:
        from dreamfleet.common.acting.model_policy import ModelPolicy  # torch, which a random actor does without

        policy = ModelPolicy(settings, spaces, environments, seed, explores, by_chance)
    if weights:
        policy.adopt(*weights)
    return policy
