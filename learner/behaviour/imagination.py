"""Imagined futures: where the actor would go from the states of a batch, by the model alone.

Shapes: N states of the batch (B·T), H horizon, A action, F feature, D deterministic, S stochastic.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dreamfleet.common.acting.agent_networks import AgentNetworks
from dreamfleet.common.model.rssm import State


class Imagined(NamedTuple):
    """Futures from N states.

    Attributes:
        features: (N, H + 1, F), of the states 0 … H, of which 0 is the batch's own.
        actions: (N, H, A), taken in the states 0 … H − 1.
    """

    features: Tensor
    actions: Tensor


def imagine(agent: AgentNetworks, states: State, horizon: int, with_graph: bool) -> Imagined:
    """Return the futures that the agent's policy leads to from every state of a batch.

    The states themselves are detached, and so are the features that the policy reads (V1): with a graph, gradients go
    from a feature back through the model to the sampled actions before it, and from these to the actor, not from an
    action to the feature it was chosen on.

    Under autocast this needs a context of its own: the weights' copies of lower precision that it makes without a graph
    would else be used again by what needs one.

    Args:
        states: (B, T, …).
        with_graph: whether gradients are to come through the model; without, nothing is kept for them.
    """
    start = states.map(lambda part: part.detach().flatten(0, 1))

    def act(feature: Tensor) -> Tensor:
        return agent.policy(feature.detach()).sample()

    with torch.set_grad_enabled(with_graph):
        following, actions = agent.world_model.dynamics.imagine_with(start, act, horizon)
        features = torch.cat([start.feature[:, None], following.feature], dim=1)
    return Imagined(features, actions)
