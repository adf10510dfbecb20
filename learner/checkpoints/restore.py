"""From a checkpoint back to a model; the errors name what does not fit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dreamfleet.common.acting.agent_networks import flatten
from dreamfleet.common.errors import UserError
from dreamfleet.common.experience.spaces import Spaces, first_difference
from dreamfleet.common.model.world_model import WorldModel
from dreamfleet.common.settings.schema import Settings
from dreamfleet.learner.behaviour.networks import Networks, make_networks
from dreamfleet.learner.checkpoints.files import DamagedCheckpointError
from dreamfleet.learner.checkpoints.store import CheckpointStore
from dreamfleet.learner.optimiser import check_moments


def load_world_model(
    checkpoints: Path, settings: Settings, device: str | torch.device = "cpu", which: str | int = "newest"
) -> tuple[WorldModel, dict[str, Any]]:
    """Return the model of one of a run's whole checkpoints, in eval mode, and the checkpoint's facts.

    Raises:
        UserError: if there is no checkpoint that is whole, or it is not of a model of these settings.
    """
    state, facts = find_checkpoint(checkpoints, which, device)
    origin = f"The checkpoint of update {facts['updates']}"
    model = WorldModel(_spaces_in(facts, origin), settings.model, settings.loss).to(device)
    check_parameters(model, state.get("model"), origin)
    model.load_state_dict(state["model"])
    return model.eval(), facts


def load_acting_weights(checkpoints: Path, settings: Settings, which: str | int = "newest") -> tuple[int, np.ndarray]:
    """Return the updates of one of a run's whole checkpoints, and its weights as the learner published them.

    Raises:
        UserError: if there is none, or it is not of a model of these settings.
    """
    state, facts = find_checkpoint(checkpoints, which)
    origin = f"The checkpoint of update {facts['updates']}"
    networks = make_networks(_spaces_in(facts, origin), settings)
    load_networks(state, networks, origin)
    return int(facts["updates"]), flatten(networks.agent.acting_parameters())


def find_checkpoint(
    checkpoints: Path, which: str | int = "newest", device: str | torch.device = "cpu"
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the state and the facts of one whole checkpoint of a run.

    Args:
        which: "newest", "best" or a number of updates; where none was measured the newest is the best.

    Raises:
        UserError: if there is none.
    """
    store = CheckpointStore(checkpoints, kept=1)
    number = store.best() if which == "best" else None
    if which not in {"newest", "best"}:
        numbers = store.numbers()
        if not str(which).isdecimal() or int(which) not in numbers:
            there = ", ".join(map(str, numbers)) or "none"
            raise UserError(f"there is no checkpoint '{which}': there are {there}; newest and best are names too")
        number = int(which)
    try:
        found = store.load_newest(device) if number is None else store.load(number, device)
    except DamagedCheckpointError as error:
        raise UserError(f"the checkpoint of update {number} cannot be read: {error}; take the newest") from None
    if found is None:
        raise UserError(
            f"There is no checkpoint in {checkpoints}: this is a dataset, or a run that has not come as far as its "
            "first one."
        )
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
        networks = make_networks(spaces, settings)
    _check_networks(state, networks, origin)
    check_moments(state.get("optimiser", {}), settings.learner.optimiser, origin)


def check_spaces(facts: Mapping[str, Any], spaces: Spaces, origin: str) -> None:
    """Refuse a checkpoint of an environment with other spaces.

    Raises:
        UserError: naming the first entry that differs, with both versions of it.
    """
    difference = first_difference(_spaces_in(facts, origin), spaces)
    if difference:
        raise UserError(
            f"{origin} is of another environment: {difference}; give the env settings that it was trained with."
        )


def _spaces_in(facts: Mapping[str, Any], origin: str) -> Spaces:
    try:
        return Spaces.from_json(facts["spaces"])
    except (KeyError, ValueError) as error:
        raise UserError(f"{origin}: the spaces in its facts cannot be read: {error}.") from None


def load_networks(state: Mapping[str, Any], networks: Networks, origin: str) -> None:
    """Load a checkpoint's parameters into the networks of the settings.

    Raises:
        UserError: if a parameter is missing, unknown or of another shape, or there is an actor or an explorer in only
            one of both; the networks are unchanged.
    """
    _check_networks(state, networks, origin)
    for name, network in networks.saved.items():
        network.load_state_dict(state[name])


def _check_networks(state: Mapping[str, Any], networks: Networks, origin: str) -> None:
    agent, saved = networks.agent, networks.saved
    check_parameters(agent.world_model, state.get("model"), origin)
    for what, name in (("actor", "behaviour"), ("explorer", "exploration")):
        if (name in saved) != (name in state):
            has = f"an {what}" if name in state else f"no {what}"
            raise UserError(
                f"{origin} has {has}, and behaviour.kind is {agent.behaviour.kind}: "
                "give the settings that it was trained with."
            )
        if name in saved:
            check_parameters(saved[name], state[name], origin)


def check_parameters(network: torch.nn.Module, state: Any, origin: str) -> None:
    """Refuse a network's parameters out of a checkpoint if they are not those of the network.

    Raises:
        UserError: naming the first that is missing, unknown or of another shape.
    """
    if not isinstance(state, Mapping) or not all(isinstance(tensor, torch.Tensor) for tensor in state.values()):
        raise UserError(f"{origin} holds no parameters where they belong: it is damaged, or of another program.")
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
