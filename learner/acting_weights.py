"""From a checkpoint to what acts: the flat weights that the learner would have published at that update."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from dreamfleet.common.agent import Agent
from dreamfleet.common.errors import UserError
from dreamfleet.common.settings import Settings
from dreamfleet.common.spaces import Spaces
from dreamfleet.common.weights import flatten
from dreamfleet.learner.actor_critic import ActorCritic
from dreamfleet.learner.checkpoint_facts import DamagedCheckpointError
from dreamfleet.learner.checkpoints import CheckpointStore
from dreamfleet.learner.restoring import load_behaviour, load_parameters


def load_acting_weights(checkpoints: Path, settings: Settings, which: str = "newest") -> tuple[int, np.ndarray]:
    """Return the updates and the acting weights of a run's newest or best whole checkpoint.

    Args:
        checkpoints: the directory of the checkpoints.
        settings: the run's.
        which: "newest" or "best".

    Raises:
        UserError: if there is none, or it is not of a model of these settings.
    """
    store = CheckpointStore(checkpoints, kept=1)
    best = store.best() if which == "best" else None
    try:
        found = store.load_newest() if best is None else store.load(best)
    except DamagedCheckpointError as error:
        raise UserError(f"the best checkpoint cannot be read: {error}; take the newest") from None
    if found is None:
        raise UserError(f"There is no checkpoint in {checkpoints}: the run has not come as far as its first one.")
    state, facts = found
    origin = f"The checkpoint of update {facts['updates']}"
    agent = Agent(Spaces.from_json(facts["spaces"]), settings)
    load_parameters(agent.world_model, state["model"], origin)
    kind = settings.behaviour.kind
    actor_critic = ActorCritic(agent, settings) if kind == "actor_critic" else None
    load_behaviour(actor_critic, state.get("behaviour"), kind, origin)
    with torch.no_grad():
        return int(facts["updates"]), flatten(agent.acting_parameters())
