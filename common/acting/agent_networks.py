"""The agent: the world model, and what chooses actions on its states.

Shapes: A action, F feature, P numbers that describe an action's distribution.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from dreamfleet.common.acting.action_distributions import ActionDistribution, action_distribution, policy_outputs
from dreamfleet.common.experience.spaces import Spaces
from dreamfleet.common.model.heads import Head
from dreamfleet.common.model.world_model import WorldModel
from dreamfleet.common.settings.schema import Settings


class AgentNetworks(nn.Module):
    """What is needed to act: the same parts in the learner and in every actor.

    Attributes:
        world_model: what is seen and what happens next.
        actor: an actor–critic's network, features (…, F) to (…, P); None for chance and the planner.
        behaviour: the settings of what chooses.

    Args:
        spaces: what is observed and done.
        settings: the run's, of which `model` and `behaviour` are read.

    Raises:
        UserError: the pictures do not fit the encoder.
    """

    actor: Head | None

    def __init__(self, spaces: Spaces, settings: Settings) -> None:
        super().__init__()
        self.behaviour = settings.behaviour
        self.world_model = WorldModel(spaces, settings.model)
        self.actor = _make_actor(self.world_model, settings) if settings.behaviour.kind == "actor_critic" else None

    def policy(self, feature: Tensor) -> ActionDistribution:
        """Return the distribution of actions (…, A), in the network's units, for features (…, F) of the model."""
        assert self.actor is not None, "a policy needs behaviour.kind actor_critic"
        spec = self.world_model.spaces.action
        return action_distribution(self.behaviour.box_policy, self.actor.raw(feature), spec, self.behaviour.unimix)

    def acting_parameters(self) -> dict[str, Tensor]:
        """Return by name, in an order that never changes, what acting needs.

        Encoder and dynamics, beside them the reward head for the planner, which adds up rewards, and the actor for an
        actor–critic. The tensors are the agent's own, detached: what is written to them changes the agent.
        """
        tensors = self.world_model.acting_parameters()
        if self.behaviour.kind == "planner":
            tensors |= _named("reward", self.world_model.reward)
        if self.actor is not None:
            tensors |= _named("actor", self.actor)
        return tensors


def _make_actor(model: WorldModel, settings: Settings) -> Head:
    behaviour = settings.behaviour
    outputs = policy_outputs(model.spaces.action)
    layers, scale = behaviour.actor_layers, behaviour.actor_output_scale
    return Head(model.feature_width, outputs, layers, behaviour.units, settings.model, scale)


def _named(prefix: str, part: nn.Module) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": tensor.detach() for name, tensor in part.named_parameters()}


def flatten(parameters: Mapping[str, torch.Tensor]) -> np.ndarray:
    """Return all values of the tensors, in the mapping's order, as one float32 array (N,) with memory of its own.

    They are joined on their device first, so that a GPU's parameters come over in one copy.
    """
    joined = torch.cat([tensor.detach().reshape(-1).float() for tensor in parameters.values()])
    return joined.cpu().numpy()


def load_flat(parameters: Mapping[str, torch.Tensor], flat: np.ndarray) -> None:
    """Copy values laid out by `flatten` into the tensors, in place.

    Nothing refers to `flat` afterwards: an array out of Ray's object store would stay there as long as something does.

    Raises:
        ValueError: if the number of values differs; the tensors are unchanged.
    """
    sizes = [tensor.numel() for tensor in parameters.values()]
    if flat.shape != (sum(sizes),):
        raise ValueError(f"the weights have shape {flat.shape}, and the parameters take {(sum(sizes),)}")
    values = torch.tensor(flat, dtype=torch.float32)
    with torch.no_grad():
        for tensor, part in zip(parameters.values(), values.split(sizes), strict=True):
            tensor.copy_(part.view(tensor.shape))
