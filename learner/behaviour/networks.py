"""All networks of a learner: the agent's, and those that its actors learn with."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from dreamfleet.common.acting.agent_networks import AgentNetworks
from dreamfleet.common.experience.spaces import Spaces
from dreamfleet.common.settings.schema import Settings
from dreamfleet.learner.behaviour.actor_critic import ActorCritic
from dreamfleet.learner.behaviour.exploration import Exploration


class Networks(NamedTuple):
    """An agent and what it learns with.

    Attributes:
        actor_critic: how its actor learns, or None where nothing but the world model does.
        exploration: how its explorer learns beside the actor, or None.
    """

    agent: AgentNetworks
    actor_critic: ActorCritic | None = None
    exploration: Exploration | None = None

    @property
    def learning(self) -> dict[str, nn.Module]:
        """What learns beside the model, by its name in checkpoints."""
        named = {"behaviour": self.actor_critic, "exploration": self.exploration}
        return {name: network for name, network in named.items() if network is not None}

    @property
    def saved(self) -> dict[str, nn.Module]:
        """What a checkpoint holds, by its name there; the actors are within what they learn with."""
        return {"model": self.agent.world_model} | self.learning

    @property
    def all(self) -> dict[str, nn.Module]:
        """All of them by name; what two of them share is in both."""
        return {"agent": self.agent} | self.learning

    @property
    def actor_critics(self) -> list[ActorCritic]:
        """How each of the actors learns."""
        explores = [self.exploration.actor_critic] if self.exploration is not None else []
        return explores if self.actor_critic is None else [self.actor_critic, *explores]

    @property
    def decisions(self) -> list[str]:
        """A sentence on each actor that learns."""
        return [network.decision for network in (self.actor_critic, self.exploration) if network is not None]

    def to(self, device: torch.device) -> Networks:
        """Move all of them to a device, and return them."""
        for network in self.all.values():
            network.to(device)
        return self


def make_networks(spaces: Spaces, settings: Settings) -> Networks:
    """Return new networks, with weights drawn by torch's generator.

    Raises:
        UserError: if the pictures do not fit the encoder.
    """
    agent = AgentNetworks(spaces, settings)
    actor_critic = ActorCritic(agent, settings) if agent.actor is not None else None
    exploration = Exploration(agent, settings) if agent.explorer is not None else None
    return Networks(agent, actor_critic, exploration)
