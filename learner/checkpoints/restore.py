"""From a checkpoint back to a model; the errors name what does not fit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dreamfleet.common.acting.agent_networks import AgentNetworks, flatten
from dreamfleet.common.errors import UserError
from dreamfleet.common.experience.spaces import Spaces, first_difference
from dreamfleet.common.model.world_model import WorldModel
from dreamfleet.common.settings.model import ModelSettings
from dreamfleet.common.settings.schema import Settings
from dreamfleet.learner.behaviour.actor_critic import ActorCritic, make_actor_critic
from dreamfleet.learner.checkpoints.files import DamagedCheckpointError
from dreamfleet.learner.checkpoints.store import CheckpointStore
from dreamfleet.learner.optimiser import check_moments


def load_world_model(
    checkpoints: Path, settings: ModelSettings, device: str | torch.device = "cpu", which: str = "newest"
) -> tuple[WorldModel, dict[str, Any]]:
    """Return the model of a run's newest or best whole checkpoint, in eval mode, and the checkpoint's facts.

    Raises:
        UserError: if there is no checkpoint that is whole, or it is not of a model of these settings.
    """
    state, facts = find_checkpoint(checkpoints, which, device)
    model = WorldModel(Spaces.from_json(facts["spaces"]), settings).to(device)
    _check_parameters(model, state["model"], f"The checkpoint of update {facts['updates']}")
    model.load_state_dict(state["model"])
    return model.eval(), facts


def load_acting_weights(checkpoints: Path, settings: Settings, which: str = "newest") -> tuple[int, np.ndarray]:
    """Return the updates of a run's newest or best whole checkpoint, and its weights as the learner published them.

    Raises:
        UserError: if there is none, or it is not of a model of these settings.
    """
    state, facts = find_checkpoint(checkpoints, which)
    agent = AgentNetworks(Spaces.from_json(facts["spaces"]), settings)
    load_networks(state, agent, make_actor_critic(agent, settings), f"The checkpoint of update {facts['updates']}")
    return int(facts["updates"]), flatten(agent.acting_parameters())


def find_checkpoint(
    checkpoints: Path, which: str = "newest", device: str | torch.device = "cpu"
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the state and the facts of a run's newest or best whole checkpoint.

    Args:
        which: "newest" or "best"; where none was measured the newest is the best.

    Raises:
        UserError: if there is none.
    """
    store = CheckpointStore(checkpoints, kept=1)
    best = store.best() if which == "best" else None
    try:
        found = store.load_newest(device) if best is None else store.load(best, device)
    except DamagedCheckpointError as error:
        raise UserError(f"the best checkpoint cannot be read: {error}; take the newest") from None
    if found is None:
        raise UserError(f"There is no checkpoint in {checkpoints}: the run has not come as far as its first one.")
    return found


def check_fits(checkpoints: Path, settings: Settings, spaces: Spaces) -> None:
    """Refuse settings of another model than that of a run's newest checkpoint, without loading or making either.

    Checkpoints that cannot be read are skipped: the learner reports them.

    Raises:
        UserError: naming what differs.
    """
    found = CheckpointStore(checkpoints, kept=1).newest_outline()
    if found is None:
        return
    state, facts = found
    origin = f"The checkpoint of update {facts['updates']} in {checkpoints}"
    check_spaces(facts, spaces, origin)
    with torch.device("meta"):
        agent = AgentNetworks(spaces, settings)
        actor_critic = make_actor_critic(agent, settings)
    _check_networks(state, agent, actor_critic, origin)
    check_moments(state["optimiser"], settings.learner.optimiser, origin)


def check_spaces(facts: Mapping[str, Any], spaces: Spaces, origin: str) -> None:
    """Refuse a checkpoint of an environment with other spaces.

    Raises:
        UserError: naming the first entry that differs, with both versions of it.
    """
    difference = first_difference(Spaces.from_json(facts["spaces"]), spaces)
    if difference:
        raise UserError(
            f"{origin} is of another environment: {difference}; give the env settings that it was trained with."
        )


def load_networks(
    state: Mapping[str, Any], agent: AgentNetworks, actor_critic: ActorCritic | None, origin: str
) -> None:
    """Load a checkpoint's parameters into the networks of the settings.

    Raises:
        UserError: if a parameter is missing, unknown or of another shape, or there is an actor in only one of both;
            the networks are unchanged.
    """
    _check_networks(state, agent, actor_critic, origin)
    agent.world_model.load_state_dict(state["model"])
    if actor_critic is not None:
        actor_critic.load_state_dict(state["behaviour"])


def _check_networks(
    state: Mapping[str, Any], agent: AgentNetworks, actor_critic: ActorCritic | None, origin: str
) -> None:
    _check_parameters(agent.world_model, state["model"], origin)
    saved = state.get("behaviour")
    if (actor_critic is None) != (saved is None):
        has = "no actor" if saved is None else "an actor"
        raise UserError(
            f"{origin} has {has}, and behaviour.kind is {agent.behaviour.kind}: "
            "give the settings that it was trained with."
        )
    if actor_critic is not None and saved is not None:
        _check_parameters(actor_critic, saved, origin)


def _check_parameters(network: torch.nn.Module, state: Mapping[str, torch.Tensor], origin: str) -> None:
    wanted = network.state_dict()
    for name, tensor in wanted.items():
        if name in state and tensor.shape != state[name].shape:
            raise UserError(
                f"{origin} is of another model: parameter '{name}' has shape {tuple(state[name].shape)} there and "
                f"{tuple(tensor.shape)} by these settings; give the settings that it was trained with."
            )
    if wanted.keys() != state.keys():
        raise UserError(
            f"{origin} is of another kind of model: {_without_counterpart(state, wanted)} there, and "
            f"{_without_counterpart(wanted, state)} by these settings; give the settings that it was trained with."
        )


def _without_counterpart(these: Mapping[str, torch.Tensor], others: Mapping[str, torch.Tensor]) -> str:
    """Return in words the first of these parameters that the others lack."""
    name = min(these.keys() - others.keys(), default=None)
    return f"it has parameter '{name}' of shape {tuple(these[name].shape)}" if name else "no further parameter"
