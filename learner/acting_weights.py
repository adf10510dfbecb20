"""From a checkpoint to what acts: the flat weights that the learner would have published at that update."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from dreamfleet.common.acting.agent_networks import AgentNetworks, flatten
from dreamfleet.common.experience.spaces import Spaces
from dreamfleet.common.settings.schema import Settings
from dreamfleet.learner.behaviour.actor_critic import ActorCritic
from dreamfleet.learner.checkpoints.restore import find_checkpoint, load_behaviour, load_parameters


def load_acting_weights(checkpoints: Path, settings: Settings, which: str = "newest") -> tuple[int, np.ndarray]:
    """Return the updates and the acting weights of a run's newest or best whole checkpoint.

    Args:
        checkpoints: the directory of the checkpoints.
        settings: the run's.
        which: "newest" or "best".

    Raises:
        UserError: if there is none, or it is not of a model of these settings.
    """
    state, facts = find_checkpoint(checkpoints, which)
    origin = f"The checkpoint of update {facts['updates']}"
    agent = AgentNetworks(Spaces.from_json(facts["spaces"]), settings)
    load_parameters(agent.world_model, state["model"], origin)
    kind = settings.behaviour.kind
    actor_critic = ActorCritic(agent, settings) if kind == "actor_critic" else None
    load_behaviour(actor_critic, state.get("behaviour"), kind, origin)
    with torch.no_grad():
        return int(facts["updates"]), flatten(agent.acting_parameters())
