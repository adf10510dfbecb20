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
    """The networks needed to act, the same in the learner and in every actor: the world model and perhaps actors.

    Attributes:
        actor: an actor–critic's network, features (…, F) to (…, P); None for chance and the planner.
        explorer: a second actor, which collects where the first one's task is not to be pursued, or None.

    Raises:
        UserError: the pictures do not fit the encoder.
    """

    def __init__(self, spaces: Spaces, settings: Settings) -> None:
        super().__init__()
        self.behaviour = settings.behaviour
        self.world_model = WorldModel(spaces, settings.model, settings.loss)
        self.actor = self._make_actor(settings) if self.behaviour.learns_actor else None
        self.explorer = self._make_actor(settings) if self.behaviour.kind == "explore" else None

    def _make_actor(self, settings: Settings) -> Head:
        outputs, layers = policy_outputs(self.world_model.spaces.action), self.behaviour.actor_layers
        units, scale = self.behaviour.units, self.behaviour.actor_output_scale
        return Head(self.world_model.feature_width, outputs, layers, units, settings.model, scale)

    def policy(self, feature: Tensor, explores: bool = False) -> ActionDistribution:
        """Return the actor's distribution of actions (…, A), in the network's units, for features (…, F).

        Args:
            explores: whether it is the explorer's, where there is one.
        """
        actor = self.explorer if explores and self.explorer is not None else self.actor
        assert actor is not None, "a policy needs behaviour.kind actor_critic or explore"
        spec = self.world_model.spaces.action
        return action_distribution(self.behaviour.box_policy, actor.raw(feature), spec, self.behaviour.unimix)

    def acting_parameters(self) -> dict[str, Tensor]:
        """Return by name, in an order that never changes, what acting needs.

        That is encoder and RSSM, for the planner also the reward head, for an actor–critic also the actor, and the
        explorer if there is one. The tensors are the agent's own, detached: writing to them changes the agent.
        """
        tensors = self.world_model.acting_parameters()
        if self.behaviour.kind == "planner":
            tensors |= _named("reward", self.world_model.reward)
        if self.actor is not None:
            tensors |= _named("actor", self.actor)
        if self.explorer is not None:
            tensors |= _named("explorer", self.explorer)
        return tensors


def _named(prefix: str, part: nn.Module) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": tensor.detach() for name, tensor in part.named_parameters()}


def join(parameters: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Return all values of the tensors in the mapping's order: one float32 tensor (N,) of its own, where they are."""
    return torch.cat([tensor.detach().reshape(-1).float() for tensor in parameters.values()])


def flatten(parameters: Mapping[str, torch.Tensor]) -> np.ndarray:
    """Return all values of the tensors, in the mapping's order, as one float32 array (N,) with memory of its own."""
    return join(parameters).cpu().numpy()  # joined first, so that a GPU's parameters are copied at once


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
