"""Exploring on purpose: a second actor and critic, whose reward is what the model does not know (Plan2Explore).

The source is arXiv 2005.05960; which numbers are others' here, docs/deviations.md tells.

Shapes: B batch, T time, N = B·T states of the batch, H horizon, A action, F feature (D + S).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from dreamfleet.common.acting.action_encoding import encode_actions
from dreamfleet.common.acting.agent_networks import AgentNetworks
from dreamfleet.common.model.rssm import State
from dreamfleet.common.settings.schema import Settings
from dreamfleet.learner.behaviour.actor_critic import ActorCritic, BehaviourLosses
from dreamfleet.learner.behaviour.ensemble import Ensemble, disagreement, prediction_loss, relative_to_mean
from dreamfleet.learner.behaviour.imagination import Imagined
from dreamfleet.learner.ranks import ALONE, Ranks

PREFIX = "explore/"
"""Begins the metrics of what explores."""


class Exploration(nn.Module):
    """The ensemble, and the explorer with its critic; as a module it holds all that a checkpoint must.

    The ensemble predicts the next z from a state and an action, on states without gradient: the model learns nothing
    from it. The target is the mean of the next posterior, to which samples average: they are noise for the most part,
    and what members make of noise differs where all is known, too. What they disagree about is the reward of having
    acted there, relative to its mean over all that is imagined (`relative_to_mean`).

    Attributes:
        ranks: whose imagined futures are one batch.
        actor_critic: how the explorer learns; of its critic there is no loss on the replay, which reaches the model.
    """

    ranks: Ranks = ALONE

    def __init__(self, agent: AgentNetworks, settings: Settings) -> None:
        super().__init__()
        model = agent.world_model
        inputs, target = model.feature_width + model.spaces.action.width, model.dynamics.latents.width
        self._members = settings.behaviour.ensemble
        self.ensemble = Ensemble(inputs, target, settings)
        self.actor_critic = ActorCritic(agent, settings, explores=True)

    @property
    def decision(self) -> str:
        """One sentence on what explores."""
        return f"exploring: a second actor collects, rewarded where {self._members} predictors of the next z disagree"

    def losses(
        self,
        agent: AgentNetworks,
        imagined: Imagined,
        states: State,
        expected: Tensor,
        batch: Mapping[str, Tensor],
    ) -> BehaviourLosses:
        """Return the losses of one update, the ensemble's with the critic's.

        Args:
            imagined: the explorer's futures from `states`, see `ActorCritic.losses`.
            states: (B, T, …), inferred from the batch.
            expected: (B, T, S), the mean of their z after each observation, without gradient.
            batch: `action` and `is_first` beside what `ActorCritic.losses` reads, (B, T, …).
        """
        of_ensemble = self._ensemble_loss(agent, states, expected, batch)  # before what has no graph: see `imagine`
        found = self._disagreement(imagined)
        rewards = nn.functional.pad(relative_to_mean(found, self.ranks), (1, 0))  # that of the first is in no return
        losses = self.actor_critic.losses(agent, imagined, states, batch, rewards)
        metrics = {f"{PREFIX}{name}": value for name, value in losses.metrics.items()}
        metrics[f"{PREFIX}ensemble_loss"] = of_ensemble.detach()
        metrics[f"{PREFIX}disagreement"] = found.detach().mean()
        return BehaviourLosses(losses.policy, losses.value + of_ensemble, losses.replay_value, metrics)

    def _ensemble_loss(
        self, agent: AgentNetworks, states: State, expected: Tensor, batch: Mapping[str, Tensor]
    ) -> Tensor:
        """Return the ensemble's loss on the batch, where a next step is of the same episode; a scalar."""
        action = encode_actions(agent.world_model.spaces.action, batch["action"])[:, :-1]
        predicted = self.ensemble(torch.cat([states.feature.detach()[:, :-1], action], dim=-1))
        return prediction_loss(predicted, expected[:, 1:], ~batch["is_first"][:, 1:].bool())

    def _disagreement(self, imagined: Imagined) -> Tensor:
        """Return how uncertain it was where each imagined action led (N, H), with a graph if that is wanted."""
        with torch.set_grad_enabled(self.actor_critic.through_model):
            return disagreement(self.ensemble(torch.cat([imagined.features[:, :-1], imagined.actions], dim=-1)))
