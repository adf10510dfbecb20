"""All networks of an agent, and their weights as they travel from the learner to the actors: one flat float32 array.

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
    """The networks needed to act, the same in the learner and in every actor: the world model and perhaps an actor.

    Attributes:
        actor: an actor–critic's network, features (…, F) to (…, P); None for chance and the planner.

    Raises:
        UserError: the pictures do not fit the encoder.
    """

    def __init__(self, spaces: Spaces, settings: Settings) -> None:
        super().__init__()
        self.behaviour = settings.behaviour
        self.world_model = WorldModel(spaces, settings.model)
        self.actor: Head | None = None
        if self.behaviour.kind == "actor_critic":
            outputs, layers, units = policy_outputs(spaces.action), self.behaviour.actor_layers, self.behaviour.units
            scale = self.behaviour.actor_output_scale
            self.actor = Head(self.world_model.feature_width, outputs, layers, units, settings.model, scale)

    def policy(self, feature: Tensor) -> ActionDistribution:
        """Return the actor's distribution of actions (…, A), in the network's units, for features (…, F)."""
        assert self.actor is not None, "a policy needs behaviour.kind actor_critic"
        spec = self.world_model.spaces.action
        return action_distribution(self.behaviour.box_policy, self.actor.raw(feature), spec, self.behaviour.unimix)

    def acting_parameters(self) -> dict[str, Tensor]:
        """Return by name, in an order that never changes, what acting needs.

        That is encoder and RSSM, for the planner also the reward head, for an actor–critic also the actor. The tensors
        are the agent's own, detached: writing to them changes the agent.
        """
        tensors = self.world_model.acting_parameters()
        if self.behaviour.kind == "planner":
            tensors |= _named("reward", self.world_model.reward)
        if self.actor is not None:
            tensors |= _named("actor", self.actor)
        return tensors


def _named(prefix: str, part: nn.Module) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": tensor.detach() for name, tensor in part.named_parameters()}


def flatten(parameters: Mapping[str, torch.Tensor]) -> np.ndarray:
    """Return all values of the tensors, in the mapping's order, as one float32 array (N,) with memory of its own."""
    # Joined on their device first, so that a GPU's parameters are copied at once.
    joined = torch.cat([tensor.detach().reshape(-1).float() for tensor in parameters.values()])
    return joined.cpu().numpy()


def load_flat(parameters: Mapping[str, torch.Tensor], flat: np.ndarray) -> None:
    """Copy values laid out by `flatten` into the tensors, in place.

    Nothing refers to `flat` afterwards: Ray's object store keeps an array as long as something does.

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
