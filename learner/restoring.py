"""From a checkpoint back to a model: whatever does not fit is named."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from dreamfleet.common.errors import UserError
from dreamfleet.common.settings import ModelSettings
from dreamfleet.common.spaces import Spaces
from dreamfleet.common.world_model import WorldModel
from dreamfleet.learner.checkpoints import CheckpointStore


def load_world_model(
    checkpoints: Path, settings: ModelSettings, device: str | torch.device = "cpu"
) -> tuple[WorldModel, dict[str, Any]]:
    """Return the model of a run's newest whole checkpoint, in eval mode, and the checkpoint's facts.

    Args:
        checkpoints: the directory of the checkpoints.
        settings: those that it was trained with; the spaces are in the facts.
        device: where to put it.

    Raises:
        UserError: if there is no checkpoint that is whole, or it is not of a model of these settings.
    """
    found = CheckpointStore(checkpoints, kept=1).load_newest(device)
    if found is None:
        raise UserError(f"There is no checkpoint in {checkpoints}: the run has not come as far as its first one.")
    state, facts = found
    model = WorldModel(Spaces.from_json(facts["spaces"]), settings).to(device)
    load_parameters(model, state["model"], f"The checkpoint of update {facts['updates']}")
    return model.eval(), facts


def load_parameters(model: torch.nn.Module, state: Mapping[str, torch.Tensor], origin: str) -> None:
    """Put saved parameters into a model, or say which one does not fit.

    Args:
        model: what they are for.
        state: parameters and buffers by name.
        origin: where they come from, for the message.

    Raises:
        UserError: if a parameter is missing, unknown or of another shape; the model is unchanged.
    """
    wanted = model.state_dict()
    for name, tensor in wanted.items():
        if name in state and tensor.shape != state[name].shape:
            raise UserError(
                f"{origin} is of another model: parameter '{name}' has shape {tuple(state[name].shape)} there and "
                f"{tuple(tensor.shape)} by these settings; give the settings that it was trained with."
            )
    _refuse(wanted.keys() - state.keys(), f"{origin} has no parameter", "which the model of these settings needs")
    _refuse(state.keys() - wanted.keys(), f"{origin} has a parameter", "which the model of these settings lacks")
    model.load_state_dict(dict(state))


def check_spaces(facts: Mapping[str, Any], spaces: Spaces, origin: str) -> None:
    """Refuse a checkpoint of an environment with other spaces.

    Raises:
        UserError: naming the first entry that differs, with both versions of it.
    """
    then, now = _entries(Spaces.from_json(facts["spaces"])), _entries(spaces)
    for name in sorted(then.keys() | now.keys()):
        if then.get(name) != now.get(name):
            raise UserError(
                f"{origin} is of another environment: its {name} was {then.get(name, 'not there')} and is now "
                f"{now.get(name, 'not there')}; give the env settings that it was trained with."
            )


def _entries(spaces: Spaces) -> dict[str, str]:
    """Return by name what each entry of the spaces is, in words."""
    action = spaces.action
    entries = {f"observation '{spec.name}'": f"{spec.dtype} {spec.shape}" for spec in spaces.observations}
    bounds = f" from {action.low} to {action.high}" if action.kind == "box" else ""
    return entries | {"action": f"{action.kind} {action.sizes}{bounds}"}


def _refuse(names: Iterable[str], before: str, after: str) -> None:
    """Raise for the first of the names, if any."""
    first = min(names, default=None)
    if first is not None:
        raise UserError(f"{before} '{first}', {after}; give the settings that it was trained with.")
