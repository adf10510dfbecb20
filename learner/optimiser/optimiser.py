"""What makes steps of gradients: the optimiser over groups of parameters, and its moments out of a checkpoint."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from dreamfleet.common.errors import UserError
from dreamfleet.common.settings.schema import LearnerSettings
from dreamfleet.learner.optimiser.laprop import LaProp


class ParameterGroup:
    """Parameters that share a learning rate, and are clipped together where clipping is by their norm.

    Attributes:
        metric: name under which their gradient's norm is told.
        parameters: those of the network that are trained.
        learning_rate: after the warm-up.
        clip: greatest norm of their gradient.
    """

    def __init__(self, metric: str, network: nn.Module, learning_rate: float, clip: float) -> None:
        self.metric = metric
        self.parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
        self.learning_rate = learning_rate
        self.clip = clip


def make_optimiser(groups: Sequence[ParameterGroup], settings: LearnerSettings) -> torch.optim.Optimizer:
    """Return the optimiser that the settings name, for parameters on one device."""
    described: list[dict[str, Any]] = [{"params": group.parameters, "lr": group.learning_rate} for group in groups]
    if settings.optimiser == "laprop":
        return LaProp(described, settings.learning_rate, epsilon=settings.epsilon, warmup_steps=settings.warm_up)
    return torch.optim.Adam(described, lr=settings.learning_rate, eps=settings.epsilon, fused=True)


def correct_epsilon(optimiser: torch.optim.Optimizer, epsilon: float, number: int) -> None:
    """Give Adam the epsilon that makes its update of this number TensorFlow's.

    TensorFlow adds ε to √v, torch to √(v/(1 − β₂ᵗ)): so ε counts 1/√(1 − β₂ᵗ) times as much there, 32 times at t = 1.
    """
    for group in optimiser.param_groups:
        group["eps"] = epsilon / math.sqrt(1.0 - group["betas"][1] ** number)


def load_moments(optimiser: torch.optim.Optimizer, state: Mapping[str, Any], origin: str) -> None:
    """Take over saved moments; learning rate, epsilon and their like stay those of the settings.

    Args:
        optimiser: what they are for; it has the parameters that they are of.
        state: what `state_dict` gave.
        origin: where it comes from, for the message.

    Raises:
        UserError: if the moments are another optimiser's.
    """
    check_kind(state, _kind(optimiser.param_groups[0]), origin)
    groups = zip(state["param_groups"], optimiser.param_groups, strict=True)
    kept = [before | {name: value for name, value in now.items() if name != "params"} for before, now in groups]
    optimiser.load_state_dict({"state": state["state"], "param_groups": kept})


def check_kind(state: Mapping[str, Any], wanted: str, origin: str) -> None:
    """Refuse saved moments of another optimiser than the settings name.

    Raises:
        UserError: if they are.
    """
    saved = _kind(state["param_groups"][0])
    if saved != wanted:
        raise UserError(
            f"{origin} was trained with learner.optimiser {saved}, and the settings say {wanted}: "
            f"give --learner.optimiser {saved}."
        )


def _kind(group: Mapping[str, Any]) -> str:
    """Return whose group of parameters this is: LaProp's has its warm-up."""
    return "laprop" if "warmup_steps" in group else "adam"
