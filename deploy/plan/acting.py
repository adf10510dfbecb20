"""Where a learned policy should act: in the actors, or for all of them in one process beside the learner."""

from __future__ import annotations

import time
from statistics import median

import numpy as np

from dreamfleet.common.experience.spaces import Spaces
from dreamfleet.common.formatting import format_bytes, number
from dreamfleet.common.settings.schema import Settings
from dreamfleet.deploy.plan.footprint import Footprint
from dreamfleet.deploy.plan.rates import Known, one_thread

MEASURED_S = 2.0
MOST_CALL_S = 20.0
"""What an action takes is worked out, not measured, where it would take longer than this."""
MOST_MEASURED_BYTES = 400e6
"""So it is with weights that are larger than this: the machine that plans may have no room for them."""
CORE_FLOP_PER_S = 2e10
CORE_BYTES_PER_S = 1e10
"""An ordinary core's arithmetic and what it reads from memory, for what is worked out; assumptions."""
QUESTIONS_PER_S = 1_000
"""Actors' questions that one process takes a second: an assumption, from the 1,400 calls/s that one process of Ray made
and took on two slow cores (docs/scaling.md)."""
WORTH_IT = 0.5
"""Acting that takes more than this share of an actor's time is better done elsewhere."""
NETWORK_BYTES_PER_S = 1.25e9
"""10 Gbit/s into the learner's node."""


def acting_seconds(settings: Settings, spaces: Spaces, weights: int) -> Known | None:
    """Return the seconds in which one core chooses the actions of an actor's environments; None if it is by chance.

    Args:
        weights: bytes of what acting needs.
    """
    behaviour, environments = settings.behaviour, settings.actors.environments
    if not settings.acts_by_weights:
        return None
    futures = behaviour.candidates * behaviour.iterations * behaviour.horizon if behaviour.kind == "planner" else 1
    at_least = max(weights / CORE_BYTES_PER_S, weights / 2 * futures * environments / CORE_FLOP_PER_S)
    if at_least > MOST_CALL_S or weights > MOST_MEASURED_BYTES:
        return Known(at_least, f"at least, worked out for weights of {format_bytes(weights)}")
    return Known(_measure(settings, spaces), "measured here, weights that have learnt nothing")


def advice(settings: Settings, footprint: Footprint, actor_steps: float, env_steps: float, acting: Known) -> list[str]:
    """Return which `actors.inference` to take and why, in sentences.

    Args:
        actor_steps: environment steps/s of an actor by chance.
        env_steps: of all actors together, as many as are wanted.
        acting: seconds of an actor's choice on one core.
    """
    environments = settings.actors.environments
    stepping = environments / actor_steps
    share = acting.value / (acting.value + stepping)
    takes = (
        f"acting on a core of the actor's takes {number(1e3 * acting.value)} ms for its "
        f"{'environment' if environments == 1 else f'{environments} environments'}, which take "
        f"{number(1e3 * stepping)} ms to step: {share:.0%} of its time"
    )
    if share <= WORTH_IT:
        return [f"Take actors.inference local: {takes}."]
    sent, questions = env_steps * footprint.raw_step, env_steps / environments
    sentences = [
        f"Take actors.inference central, if the learner's node has a GPU or cores to spare: {takes}. Of "
        f"{number(env_steps)} env steps/s, {format_bytes(sent)}/s of observations would go to the learner's node, and "
        f"no weights to the others."
    ]
    if sent > NETWORK_BYTES_PER_S:
        sentences.append("That is more than 10 Gbit/s carry: take local after all, or smaller pictures.")
    if questions > QUESTIONS_PER_S:
        sentences.append(
            f"That is {number(questions)} questions/s, and one process takes some {number(QUESTIONS_PER_S)}: raise "
            f"actors.environments to {int(np.ceil(env_steps / QUESTIONS_PER_S))} or more."
        )
    return sentences


def _measure(settings: Settings, spaces: Spaces) -> float:
    """Return the median seconds of a call of an actor's policy."""
    from dreamfleet.common.acting.agent_networks import AgentNetworks, flatten
    from dreamfleet.common.acting.make_policy import make_policy

    environments = settings.actors.environments
    with one_thread():
        weights = flatten(AgentNetworks(spaces, settings).acting_parameters())
        policy = make_policy(settings, spaces, environments, seed=0, weights=(0, weights))
        seen = {spec.name: np.zeros((environments, *spec.shape), spec.dtype) for spec in spaces.observations}
        is_first = np.zeros(environments, bool)
        seconds: list[float] = []
        while len(seconds) < 2 or sum(seconds) < MEASURED_S:
            begun = time.perf_counter()
            policy.act(seen, is_first)
            seconds.append(time.perf_counter() - begun)
    return median(seconds[1:])
