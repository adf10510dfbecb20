"""Imagining: the futures that a policy leads to by the model alone (Dreamer V1, arXiv 1912.01603).

Shapes: B batch, T time, N = B·T states of the batch, H horizon, A action, F feature (D + S).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
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


Follow = Callable[[State, int], tuple[State, Tensor]]
"""Follows a policy by the model, see `RSSM.imagine_with`: from a state and for a horizon to states and actions."""


def imagine(
    agent: AgentNetworks,
    states: State,
    horizon: int,
    with_graph: bool,
    follow: Follow | None = None,
    explores: bool = False,
) -> Imagined:
    """Return the futures that the agent's policy leads to from every state of a batch.

    The states themselves are detached, and so are the features that the policy reads (V1): with a graph, gradients go
    from a feature back through the model to the sampled actions before it, and from these to the actor, not from an
    action to the feature it was chosen on.

    Under autocast this needs a context of its own: the weights' copies of lower precision that it makes without a graph
    would else be used again by what needs one.

    Args:
        states: (B, T, …).
        with_graph: whether gradients are to come through the model; without, nothing is kept for them.
        follow: the loop over the horizon; the RSSM's own if None.
        explores: whether it is the explorer's policy.
    """
    start = states.map(lambda part: part.detach().flatten(0, 1))
    with torch.set_grad_enabled(with_graph):
        if follow is None:
            policy = partial(act, agent, explores=explores)
            following, actions = agent.world_model.dynamics.imagine_with(start, policy, horizon)
        else:
            following, actions = follow(start, horizon)
        features = torch.cat([start.feature[:, None], following.feature], dim=1)
    return Imagined(features, actions)


def act(agent: AgentNetworks, feature: Tensor, explores: bool = False) -> Tensor:
    """Return an action (N, A) of the policy in a feature (N, F), without a gradient to that."""
    return agent.policy(feature.detach(), explores).sample()
