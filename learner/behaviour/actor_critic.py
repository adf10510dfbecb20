"""How the actor learns in imagination: Dreamer V1 (arXiv 1912.01603), V2 (2010.02193) and V3 (2301.04104) by settings.

Shapes: B batch, T time, N = B·T states of the batch, H horizon, A action, F feature (D + S).

In the order data passes: imagined features (N, H + 1, F) -> rewards, continuations, values (N, H + 1) -> λ-returns
(N, H) -> the losses of actor and critic; and, on the replayed sequences themselves, the critic's once more.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dreamfleet.common.acting.action_distributions import ActionDistribution, JointAction, TanhNormal
from dreamfleet.common.acting.agent_networks import AgentNetworks
from dreamfleet.common.model.rssm import State
from dreamfleet.common.model.world_model import WorldModel
from dreamfleet.common.settings.schema import Settings
from dreamfleet.learner.behaviour.critic import Critic, Value, replay_value_loss, value_loss
from dreamfleet.learner.behaviour.imagination import Imagined
from dreamfleet.learner.behaviour.returns import ReturnNormaliser, discount_weights, lambda_returns, replay_returns


class BehaviourLosses(NamedTuple):
    """The losses of an update with their metrics; `replay_value` is the critic's on the replay, with its weight.

    Where the gradient comes through the model (`ActorCritic.through_model`), the policy's loss reaches everything: its
    gradient is to be taken for the actor's parameters alone.
    """

    policy: Tensor
    value: Tensor
    replay_value: Tensor
    metrics: dict[str, Tensor]


class Outlook(NamedTuple):
    """What lies ahead of imagined states, by model and critic.

    Attributes:
        reward: (N, H + 1), the model's mean, or what was given in its place.
        continuation: (N, H + 1), as for `lambda_returns`.
        value: (N, H + 1), from which the returns are computed.
        returns: (N, H).
        weight: (N, H), how much each state counts.
    """

    reward: Tensor
    continuation: Tensor
    value: Tensor
    returns: Tensor
    weight: Tensor


class ActorCritic(nn.Module):
    """An actor, its critic, and what they need to learn; as a module it holds all that a checkpoint must.

    Attributes:
        slow: the critic's slow copy, or None.
        through_model: whether the actor's gradient comes through the model (V1; V2 for boxes), else it is REINFORCE.

    Args:
        explores: whether its actor is the explorer.
    """

    def __init__(self, agent: AgentNetworks, settings: Settings, explores: bool = False) -> None:
        super().__init__()
        actor = agent.explorer if explores else agent.actor
        assert actor is not None, "an actor–critic needs behaviour.kind actor_critic or explore"
        behaviour = self._settings = settings.behaviour
        self.actor, self._explores = actor, explores
        self._entropy = behaviour.entropy + (behaviour.explorer_entropy if explores else 0.0)
        self.critic = Critic(agent.world_model.feature_width, settings)
        self.slow = self.critic.slow_copy() if behaviour.slow_critic != "none" else None
        self.normaliser = ReturnNormaliser() if behaviour.normalise_returns else None
        kind = self._action_kind = agent.world_model.spaces.action.kind
        self.through_model = behaviour.gradient == "dynamics" or (behaviour.gradient == "by_action" and kind == "box")
        horizon = settings.loss.continue_horizon
        carried = settings.model.continue_head and horizon > 0
        self._discount = 1.0 if carried else behaviour.discount  # beside the continue head's
        self._whole_discount = 1.0 - 1.0 / horizon if carried else behaviour.discount

    @property
    def decision(self) -> str:
        """One sentence on which gradient the actor gets, and why."""
        gradient = "through the model" if self.through_model else "REINFORCE"
        kind = {"box": "box", "mixed": "choices and reals"}.get(self._action_kind, "choices")
        reason = f"by the kind of action, {kind}" if self._settings.gradient == "by_action" else "as the settings say"
        return f"actor's gradient: {gradient}, {reason}"

    def losses(
        self,
        agent: AgentNetworks,
        imagined: Imagined,
        states: State,
        batch: Mapping[str, Tensor],
        rewards: Tensor | None = None,
    ) -> BehaviourLosses:
        """Return the losses of one update; the return normaliser takes its returns in.

        Args:
            imagined: its futures from `states`, with a graph if the gradient comes through the model.
            states: (B, T, …), inferred from the batch, with their graph: the replayed value loss reaches the model.
            batch: `reward`, `is_last` and `is_terminal`, (B, T).
            rewards: (N, H + 1), in place of the model's, on arriving at the imagined states; then there is no loss on
                the replay, whose rewards are others.
        """
        features = imagined.features.detach()
        value = self.critic(features)  # (N, H + 1)
        slow = self._slow_mean(features)
        outlook = self._look_ahead(agent.world_model, imagined, value, slow, rewards)
        returns = outlook.returns.detach()
        if self.normaliser is not None:
            self.normaliser.update(returns)
        scale = self.normaliser.scale if self.normaliser is not None else 1.0
        advantage = advantages(returns, outlook.value, scale)
        policy, entropy = self._policy_loss(agent, features, imagined.actions, outlook, advantage)
        pull = slow if self._settings.slow_critic == "regulariser" else None
        of_value = value_loss(value, returns, outlook.weight, pull)
        replay_scale = self._settings.replay_value_scale if rewards is None else 0.0
        of_replay = self._replay_value_loss(states, batch, returns[:, 0]) if replay_scale else returns.new_zeros(())
        metrics = {
            "policy/loss": policy,
            "policy/entropy": entropy,
            "policy/advantage_magnitude": advantage.abs().mean(),
            "value/loss": of_value,
            "value/mean": value.mean.mean(),
            "return/mean": returns.mean(),
            "imagined/reward": outlook.reward[:, 1:].mean(),
            "imagined/continue": outlook.continuation[:, 1:].mean(),
        }
        if replay_scale:
            metrics["value/replay_loss"] = of_replay
        if self.normaliser is not None:
            low, high = self.normaliser.bounds.clone().unbind()
            metrics |= {"return/low": low, "return/high": high}
        detached = {name: number.detach() for name, number in metrics.items()}
        return BehaviourLosses(policy, of_value, replay_scale * of_replay, detached)

    def after_update(self, number: Tensor, made: Tensor) -> None:
        """Move the slow critic where it is due after this update, if that was made; both are scalars on the device."""
        if self.slow is not None:
            is_due = made & (number % self._settings.slow_critic_every == 0)
            self.slow.approach(self.critic, self._settings.slow_critic_rate, is_due)

    def _look_ahead(
        self, model: WorldModel, imagined: Imagined, value: Value, slow: Tensor | None, rewards: Tensor | None
    ) -> Outlook:
        """Return rewards, values and returns ahead of what is imagined.

        Args:
            value: the critic on the detached features.
            slow: the slow critic's means on these.
        """
        features = imagined.features
        with torch.set_grad_enabled(self.through_model):
            reward = model.predict_reward(features).mean if rewards is None else rewards
            goes_on = model.predict_continue(features).mean if model.continuation is not None else None
            continuation = torch.full_like(reward, self._discount) if goes_on is None else self._discount * goes_on
            if self._settings.slow_critic == "target":
                expected = self._slow_mean(features) if self.through_model else slow
            else:
                expected = self.critic(features).mean if self.through_model else value.mean.detach()
            assert expected is not None
            returns = lambda_returns(reward, expected, continuation, self._settings.return_lambda)
        weight = discount_weights(continuation, with_first=goes_on is not None)
        return Outlook(reward.detach(), continuation.detach(), expected.detach(), returns, weight)

    def _policy_loss(
        self, agent: AgentNetworks, features: Tensor, actions: Tensor, outlook: Outlook, advantage: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the actor's loss, and the mean entropy of its policy, both scalars."""
        # Through the model the actor's gradient is in the returns: this pass is for the entropy, if that counts.
        with torch.set_grad_enabled(not self.through_model or self._entropy > 0):
            policy = agent.policy(features[:, :-1], self._explores)
            entropy = _entropy(policy)  # (N, H)
        objective = outlook.returns if self.through_model else reinforce_objective(policy.log_prob(actions), advantage)
        loss = policy_loss(objective, outlook.weight, entropy, self._entropy)
        return loss, entropy.mean()

    def _replay_value_loss(self, states: State, batch: Mapping[str, Tensor], ahead: Tensor) -> Tensor:
        """Return the critic's loss on the replayed sequences, a scalar.

        Args:
            states: (B, T, …) with their graph.
            ahead: (N,), the imagined return of each state.
        """
        features, is_last = states.feature, batch["is_last"]
        returns = replay_returns(
            batch["reward"],
            ahead.view(is_last.shape),
            is_last,
            batch["is_terminal"],
            self._whole_discount,
            self._settings.return_lambda,
        )
        pull = self._slow_mean(features.detach()) if self._settings.slow_critic == "regulariser" else None
        return replay_value_loss(self.critic(features), returns, is_last, pull)

    def _slow_mean(self, features: Tensor) -> Tensor | None:
        return self.slow(features).mean if self.slow is not None else None


def advantages(returns: Tensor, value: Tensor, scale: Tensor | float = 1.0) -> Tensor:
    """Return (R_t − v_t)/scale (…, H), without gradient.

    Args:
        returns: R_0 … R_{H−1}, (…, H).
        value: v_0 … v_H of the online critic, (…, H + 1).
    """
    return ((returns - value[..., :-1]) / scale).detach()


def reinforce_objective(log_prob: Tensor, advantage: Tensor) -> Tensor:
    """Return log π(sg(a))·sg(advantage) (…, H), to be maximised (V3; V2 for choices).

    Args:
        log_prob: (…, H), of the actions taken in the states 0 … H − 1, which must not carry a gradient themselves.
        advantage: (…, H).
    """
    return log_prob * advantage.detach()


def policy_loss(objective: Tensor, weight: Tensor, entropy: Tensor, entropy_scale: float) -> Tensor:
    """Return −mean(sg(weight)·(objective + entropy_scale·entropy)), a scalar; see `value_loss` for the mean.

    Args:
        objective: (…, H), of the states 0 … H − 1: `reinforce_objective`, or the returns themselves, whose gradient
            comes through the model and the sampled actions (V1, equation 7; V2 for boxes).
        weight: (…, H), how much each state counts.
        entropy: (…, H), of the policy.
    """
    return -(weight.detach() * (objective + entropy_scale * entropy)).mean()


def _entropy(policy: ActionDistribution) -> Tensor:
    """Return the policy's entropy (…); a squashed Normal's by one draw: a mean over thousands of states follows."""
    if isinstance(policy, JointAction):
        return policy.choices.entropy() + _entropy(policy.reals)
    if isinstance(policy, TanhNormal):
        return policy.entropy(torch.randn_like(policy.mean)[None])
    return policy.entropy()
