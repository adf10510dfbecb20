"""Actor and critic: what they descend against an account of its own, where gradients go, and that they learn."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from rounding import agree
from torch import Tensor, nn

from dreamfleet.common.acting.agent_networks import AgentNetworks
from dreamfleet.common.experience.spaces import ActionSpec, ObservationSpec, Spaces
from dreamfleet.common.model.rssm import State
from dreamfleet.common.settings.schema import Settings
from dreamfleet.learner.behaviour.actor_critic import ActorCritic, BehaviourLosses
from dreamfleet.learner.behaviour.imagination import Imagined, imagine
from dreamfleet.learner.behaviour.networks import Networks
from dreamfleet.learner.hardware import Hardware
from dreamfleet.learner.stopwatch import Stopwatch
from dreamfleet.learner.updater import Updater

pytestmark = pytest.mark.numeric

B, T, H = 2, 3, 4
CHOICE = ActionSpec("discrete", (3,))
MIXED = ActionSpec("mixed", (2, 3), (-1.0, 0.0), (1.0, 2.0))
BOX = ActionSpec("box", (2,), (-1.0, -1.0), (1.0, 1.0), (2,))
MODEL = {
    "deterministic": 8,
    "stochastic": 3,
    "hidden": 8,
    "vector_units": 8,
    "reward_units": 8,
    "activation": "silu",
    "continue_head": True,
}
V3: dict[str, Any] = {"horizon": H, "units": 8}
V2: dict[str, Any] = V3 | {
    "critic_distribution": "unit_normal",
    "gradient": "by_action",
    "normalise_returns": False,
    "slow_critic": "target",
    "slow_critic_every": 3,
    "slow_critic_rate": 1.0,
    "replay_value_scale": 0.0,
}
V1: dict[str, Any] = V2 | {
    "box_policy": "tanh_normal",
    "gradient": "dynamics",
    "entropy": 0.0,
    "slow_critic": "none",
}


class Learning:
    """An agent that learns, with everything of one update at hand.

    Args:
        action: what an action is.
        behaviour: changes to the settings.
        continue_horizon: whether the continue head carries the discount.
        changes: of other sections.
    """

    def __init__(
        self, action: ActionSpec, behaviour: dict[str, Any], continue_horizon: int = 333, **changes: Any
    ) -> None:
        torch.manual_seed(0)
        sections: dict[str, Any] = {
            "model": MODEL,
            "behaviour": {"kind": "actor_critic"} | behaviour,
            "loss": {"continue_horizon": continue_horizon},
        }
        self.settings = Settings.model_validate(sections | changes)
        self.agent = AgentNetworks(Spaces((ObservationSpec("state", (4,), "float32"),), action), self.settings)
        self.actor_critic = ActorCritic(self.agent, self.settings)
        self.action = action

    def batch(self) -> dict[str, Tensor]:
        """Return sequences in the first of which an episode ends truly at t = 1."""
        ends = torch.zeros(B, T, dtype=torch.bool)
        ends[0, 1] = True
        choices = torch.randint(0, 2, (B, T, 2))
        of_kind = {"box": torch.rand(B, T, 2), "mixed": torch.cat([choices, torch.rand(B, T, 2)], -1)}
        return {
            "state": torch.randn(B, T, 4),
            "action": of_kind.get(self.action.kind, torch.randint(0, 3, (B, T))),
            "reward": torch.randn(B, T),
            "is_first": torch.zeros(B, T, dtype=torch.bool),
            "is_last": ends,
            "is_terminal": ends,
        }

    def states(self) -> State:
        """Return states that carry a gradient, as those inferred from a batch do."""
        like = self.agent.world_model.dynamics.initial(B * T)
        return like.map(lambda part: torch.randn(B, T, *part.shape[1:]).requires_grad_())

    def losses(self, states: State) -> tuple[BehaviourLosses, Imagined, dict[str, Tensor]]:
        """Return the losses, what was imagined for them, and the batch."""
        batch = self.batch()
        imagined = imagine(self.agent, states, H, self.actor_critic.through_model)
        return self.actor_critic.losses(self.agent, imagined, states, batch), imagined, batch


def reached(loss: Tensor, network: nn.Module) -> bool:
    """Return whether a loss has a gradient to any of a network's parameters."""
    grads = torch.autograd.grad(loss, list(network.parameters()), allow_unused=True, retain_graph=True)
    return any(grad is not None and bool(grad.any()) for grad in grads)


def unlike_at_first(network: nn.Module) -> None:
    """Change a network's parameters, so that it differs from a copy that was made before."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)


# Against an account of its own ---------------------------------------------------------------------------------------


def returns_by_hand(reward: Tensor, value: Tensor, goes_on: Tensor, lambda_: float) -> Tensor:
    """Return the λ-returns (N, H) by going back from the last state, one state at a time."""
    result = torch.zeros(len(reward), H)
    ahead = value[:, H]
    for t in reversed(range(H)):
        ahead = reward[:, t + 1] + goes_on[:, t + 1] * ((1 - lambda_) * value[:, t + 1] + lambda_ * ahead)
        result[:, t] = ahead
    return result


def test_v3s_losses_are_those_of_the_paper() -> None:
    """Every term, written out on the imagined features once more: returns, normaliser, slow critic, replay."""
    learning = Learning(CHOICE, V3 | {"actor_output_scale": 1.0})
    model, actor_critic = learning.agent.world_model, learning.actor_critic
    unlike_at_first(actor_critic.critic)
    assert actor_critic.normaliser is not None
    actor_critic.normaliser.bounds[1].fill_(5.0)
    states = learning.states()
    losses, (features, actions), batch = learning.losses(states)
    with torch.no_grad():
        assert torch.equal(features[:, 0], states.feature.flatten(0, 1))
        value, slow = actor_critic.critic(features), actor_critic.slow(features)
        goes_on = model.predict_continue(features).mean
        returns = returns_by_hand(model.predict_reward(features).mean, value.mean, goes_on, 0.95)
        low, high = torch.quantile(returns, 0.05), torch.quantile(returns, 0.95)
        scale = max(1.0, 0.99 * 5.0 + 0.01 * high.item() - 0.01 * low.item())
        policy = learning.agent.policy(features)
        log_prob = torch.log_softmax(learning.agent.actor.raw(features), -1)
        of_policy = of_value = 0.0
        for t in range(H):
            weight = goes_on[:, : t + 1].prod(1)
            taken = (log_prob[:, t] * actions[:, t]).sum(-1)
            entropy = -(log_prob[:, t].exp() * log_prob[:, t]).sum(-1)
            advantage = (returns[:, t] - value.mean[:, t]) / scale
            of_policy -= (weight * (taken * advantage + 3e-4 * entropy)).mean() / H
            cross = [actor_critic.critic(features[:, t]).log_prob(aim) for aim in (returns[:, t], slow.mean[:, t])]
            of_value -= (weight * (cross[0] + cross[1])).mean() / H
        ahead = returns[:, 0].view(B, T)
        of_replay = 0.0
        for row in range(B):
            later = ahead[row, T - 1]
            for t in reversed(range(T - 1)):
                alive = (1 - 1 / 333) * (1 - batch["is_terminal"][row, t + 1].float())
                on = 0.95 * (1 - batch["is_last"][row, t + 1].float())
                later = batch["reward"][row, t + 1] + alive * ((1 - on) * ahead[row, t + 1] + on * later)
                here = states.feature[row, t]
                cross = [actor_critic.critic(here).log_prob(aim) for aim in (later, actor_critic.slow(here).mean)]
                of_replay -= (1 - batch["is_last"][row, t].float()) * (cross[0] + cross[1]) / (B * (T - 1))
    assert losses.policy.item() == pytest.approx(of_policy.item())
    assert losses.value.item() == pytest.approx(of_value.item())
    assert losses.replay_value.item() == pytest.approx(0.3 * of_replay.item())
    assert losses.metrics["policy/entropy"].item() == pytest.approx(policy.entropy()[:, :-1].mean().item())
    assert losses.metrics["return/mean"].item() == pytest.approx(returns.mean().item())


@pytest.mark.parametrize(("behaviour", "action"), [(V1, BOX), (V1, CHOICE), (V2, BOX)])
def test_through_the_model_the_loss_is_the_return_itself(behaviour: dict[str, Any], action: ActionSpec) -> None:
    """V1 and V2: minus the weighted return of the online or the slow critic, less V2's entropy."""
    learning = Learning(action, behaviour, continue_horizon=0)
    model, actor_critic = learning.agent.world_model, learning.actor_critic
    unlike_at_first(actor_critic.critic)
    losses, (features, _), _ = learning.losses(learning.states())
    with torch.no_grad():
        critic = actor_critic.critic if behaviour["slow_critic"] == "none" else actor_critic.slow
        goes_on = 0.99 * model.predict_continue(features).mean
        returns = returns_by_hand(model.predict_reward(features).mean, critic(features).mean, goes_on, 0.95)
        weight = torch.stack([goes_on[:, : t + 1].prod(1) for t in range(H)], 1)
        entropy = learning.settings.behaviour.entropy * losses.metrics["policy/entropy"]
        expected = -(weight * returns).mean() - weight.mean() * entropy
        error = actor_critic.critic(features[:, :-1]).mean - returns
        of_value = (weight * (0.5 * error.square() + 0.9189385)).mean()
    # V2's entropy is weighed state by state, here by the mean weight: that is why not exactly.
    assert losses.policy.item() == pytest.approx(expected.item(), abs=1e-4)
    assert losses.value.item() == pytest.approx(of_value.item())
    assert losses.replay_value.item() == 0.0


@pytest.mark.parametrize("action", [CHOICE, MIXED])
def test_v2s_choices_are_reinforced_by_what_the_slow_critic_did_not_expect(action: ActionSpec) -> None:
    """Returns and baseline are the slow critic's; densities and entropies are those of choices and reals together."""
    learning = Learning(action, V2 | {"entropy": 0.1}, continue_horizon=0)
    model, actor_critic, choices = learning.agent.world_model, learning.actor_critic, sum(action.choices)
    unlike_at_first(actor_critic.critic)
    losses, (features, actions), _ = learning.losses(learning.states())
    with torch.no_grad():
        slow, goes_on = actor_critic.slow(features).mean, 0.99 * model.predict_continue(features).mean
        returns = returns_by_hand(model.predict_reward(features).mean, slow, goes_on, 0.95)
        raw = learning.agent.actor.raw(features[:, :-1])
        log_prob = entropy = torch.zeros_like(returns)
        for group in raw[..., :choices].split(action.choices, -1):
            taken, actions = actions.tensor_split([group.shape[-1]], -1)
            log_p = group.log_softmax(-1)
            log_prob = log_prob + (taken * log_p).sum(-1)
            entropy = entropy - (log_p.exp() * log_p).sum(-1)
        if action is MIXED:
            mean, raw_std = raw[..., choices:].chunk(2, -1)
            std = 0.9 / (1 + torch.exp(-raw_std - 2)) + 0.1
            error = (actions - mean.tanh()) / std
            log_prob = log_prob - (0.5 * error.square() + std.log() + 0.5 * math.log(2 * math.pi)).sum(-1)
            entropy = entropy + (std.log() + 0.5 * math.log(2 * math.pi * math.e)).sum(-1)
        weight = goes_on[:, :-1].cumprod(-1)
        expected = -(weight * (log_prob * (returns - slow[:, :-1]) + 0.1 * entropy)).mean()
    assert losses.policy.item() == pytest.approx(expected.item())
    assert losses.metrics["policy/entropy"].item() == pytest.approx(entropy.mean().item())


def test_without_a_continue_head_every_step_has_the_same_discount() -> None:
    """V1 on endless tasks: the weights are γ, γ² and so on, beginning with 1."""
    learning = Learning(BOX, V1, model=MODEL | {"continue_head": False})
    losses, (features, _), _ = learning.losses(learning.states())
    with torch.no_grad():
        value = learning.actor_critic.critic(features).mean
        reward = learning.agent.world_model.predict_reward(features).mean
        returns = returns_by_hand(reward, value, torch.full_like(value, 0.99), 0.95)
        expected = -(returns * 0.99 ** torch.arange(H)).mean()
    assert losses.policy.item() == pytest.approx(expected.item())


# Where gradients go --------------------------------------------------------------------------------------------------


def test_v3s_gradients_stay_where_they_belong() -> None:
    """Policy to actor, value to critic; the replayed value reaches the states too, and so the world model."""
    learning = Learning(CHOICE, V3)
    states = learning.states()
    losses, (features, actions), _ = learning.losses(states)
    agent, critic = learning.agent, learning.actor_critic.critic
    assert not features.requires_grad
    assert not actions.requires_grad
    for loss, reaches in ((losses.policy, (True, False)), (losses.value, (False, True))):
        assert (reached(loss, agent.actor), reached(loss, critic)) == reaches
        assert not reached(loss, agent.world_model)
        assert torch.autograd.grad(loss, states, allow_unused=True, retain_graph=True) == (None, None)
    assert reached(losses.replay_value, critic)
    assert not reached(losses.replay_value, agent.actor)
    assert all(bool(grad.any()) for grad in torch.autograd.grad(losses.replay_value, states))
    assert all(parameter.grad is None for parameter in learning.actor_critic.slow.parameters())


@pytest.mark.parametrize(("behaviour", "action"), [(V1, BOX), (V1, CHOICE), (V1, MIXED), (V2 | {"entropy": 0.1}, BOX)])
def test_the_gradient_through_the_model_is_that_of_finite_differences(
    behaviour: dict[str, Any], action: ActionSpec
) -> None:
    """Of rewards, values and continuations by every action, which is chosen on a feature that is held fast (V1).

    A choice z moves as straight through: by p − sg(p), whatever would be chosen then.
    """
    learning = Learning(action, behaviour, continue_horizon=0)
    agent, model, actor_critic, choices = (
        learning.agent, learning.agent.world_model, learning.actor_critic, sum(action.choices)
    )  # fmt: skip
    critic = actor_critic.slow if actor_critic.slow is not None else actor_critic.critic
    with torch.no_grad():  # rewards and values that differ, and reals that are not all at a bound
        model.reward.output.weight.mul_(9.0)
        critic.output.weight.mul_(9.0)
        agent.actor.output.bias[action.width :] -= 6.0
    states, batch = learning.states(), learning.batch()
    torch.manual_seed(5)
    imagined = imagine(agent, states, H, with_graph=True)
    policy = actor_critic.losses(agent, imagined, states, batch).policy
    parameters = list(agent.actor.parameters())
    gradients = torch.autograd.grad(policy, parameters)
    held, taken = imagined.features.detach(), imagined.actions.detach()
    weight = (0.99 * model.predict_continue(held).mean).detach()[:, :-1].cumprod(-1)
    start = states.map(lambda part: part.detach().flatten(0, 1))

    def probabilities() -> Tensor:
        groups = agent.actor.raw(held[:, :-1])[..., :choices].split(action.choices or 1, -1)
        return torch.cat([group.softmax(-1) for group in groups], -1).detach()

    before = probabilities()

    @torch.no_grad()
    def loss() -> Tensor:
        torch.manual_seed(5)
        noise = model.dynamics.latents.draw_noise(B * T, H)
        acted = torch.stack([agent.policy(held[:, t]).sample() for t in range(H)], 1)
        acted[..., :choices] = taken[..., :choices] + probabilities() - before
        features = torch.cat([held[:, :1], model.dynamics.imagine(start, acted, noise=noise).feature], 1)
        goes_on = 0.99 * model.predict_continue(features).mean
        returns = returns_by_hand(model.predict_reward(features).mean, critic(features).mean, goes_on, 0.95)
        entropy = behaviour["entropy"] * agent.policy(held[:, :-1]).entropy() if behaviour["entropy"] else 0.0
        return -(weight * (returns + entropy)).mean()

    assert loss().item() == pytest.approx(policy.item())
    along = [torch.randn_like(parameter) for parameter in parameters]
    slope = sum((gradient * way).sum().item() for gradient, way in zip(gradients, along, strict=True))
    beside = []
    for step in (1e-5, -2e-5):
        for parameter, way in zip(parameters, along, strict=True):
            parameter.data.add_(way, alpha=step)
        beside.append(loss().item())
    assert abs(slope) > 1e-4, "beside it a tolerance is to be nothing"
    assert (beside[0] - beside[1]) / 2e-5 == pytest.approx(slope, rel=1e-6)


@pytest.mark.numeric(dtype="float32")
@pytest.mark.parametrize(
    ("behaviour", "action"), [(V3, CHOICE), (V2, BOX), (V2, CHOICE), (V1, BOX), (V3, MIXED), (V2, MIXED), (V1, MIXED)]
)
@pytest.mark.parametrize("bfloat16", [False, True])
def test_an_update_leaves_model_and_critic_to_their_own_losses(
    behaviour: dict[str, Any], action: ActionSpec, bfloat16: bool
) -> None:
    """With all weights of the world model's loss at 0 only actor and critic move; in half precision they do too."""
    scales = {"reconstruction_scale": 0.0, "reward_scale": 0.0, "continue_scale": 0.0, "kl_scale": 0.0}
    changes = {"loss": scales, "learner": {"device": "cpu"}}
    learning = Learning(action, behaviour | {"replay_value_scale": 0.0}, **changes)
    unlike_at_first(learning.actor_critic.critic)
    hardware = Hardware(torch.device("cpu"), bfloat16, 1, ())
    updater = Updater(Networks(learning.agent, learning.actor_critic), learning.settings, hardware)
    before = {name: tensor.clone() for name, tensor in learning.agent.state_dict().items()}
    critic = [parameter.clone() for parameter in learning.actor_critic.critic.parameters()]
    update = updater.update(1, learning.batch(), Stopwatch())
    assert update.not_finite == []
    for name, tensor in learning.agent.state_dict().items():
        assert torch.equal(tensor, before[name]) != name.startswith("actor."), name
    pairs = zip(learning.actor_critic.critic.parameters(), critic, strict=True)
    assert all(not torch.equal(parameter, was) for parameter, was in pairs)


# Slow critic, normaliser, updates that are not made -------------------------------------------------------------------


def test_the_slow_critic_moves_by_its_rate() -> None:
    """V3: 0.02 of the way at each update; V2: a copy at every third here, and nothing in between."""
    for behaviour, update, share in ((V3, 1, 0.02), (V3, 2, 0.02), (V2, 1, 0.0), (V2, 2, 0.0), (V2, 3, 1.0)):
        actor_critic = Learning(CHOICE, behaviour).actor_critic
        unlike_at_first(actor_critic.critic)
        before = [parameter.clone() for parameter in actor_critic.slow.parameters()]
        actor_critic.after_update(torch.tensor(update), torch.tensor(True))
        for slow, was, fast in zip(
            actor_critic.slow.parameters(), before, actor_critic.critic.parameters(), strict=True
        ):
            assert agree(slow, was + share * (fast - was))
            assert not slow.requires_grad
            if share == 1.0:
                assert torch.equal(slow, fast)


def test_an_update_that_is_refused_leaves_normaliser_and_slow_critic_as_they_were() -> None:
    """A reward that is no number reaches the returns by way of the replay; nothing of it stays."""
    learning = Learning(CHOICE, V3, learner={"device": "cpu", "optimiser": "laprop", "clipping": "adaptive"})
    actor_critic = learning.actor_critic
    updater = Updater(
        Networks(learning.agent, actor_critic), learning.settings, Hardware(torch.device("cpu"), False, 1, ())
    )
    assert updater.update(1, learning.batch(), Stopwatch()).not_finite == []
    before = {name: tensor.clone() for name, tensor in actor_critic.state_dict().items()}
    assert before["normaliser.bounds"][1] != 0
    broken = learning.batch()
    broken["reward"][0, 1] = torch.nan
    assert "value/replay_loss" in updater.update(2, broken, Stopwatch()).not_finite
    assert all(torch.equal(tensor, before[name]) for name, tensor in actor_critic.state_dict().items())


def test_each_part_has_its_own_learning_rate_and_warm_up() -> None:
    """Adam's first step is the learning rate, of which a warm-up of 4 grants a quarter at the first update."""
    behaviour = V3 | {"actor_learning_rate": 4e-4, "critic_learning_rate": 8e-4}
    learning = Learning(CHOICE, behaviour, learner={"device": "cpu", "learning_rate": 2e-4, "warm_up": 4})
    networks = (learning.agent.world_model.encoder, learning.agent.actor, learning.actor_critic.critic)
    before = [[parameter.clone() for parameter in network.parameters()] for network in networks]
    hardware = Hardware(torch.device("cpu"), False, 1, ())
    updater = Updater(Networks(learning.agent, learning.actor_critic), learning.settings, hardware)
    metrics = updater.update(1, learning.batch(), Stopwatch()).metrics
    assert {"gradient/norm", "gradient/actor_norm", "gradient/critic_norm"} <= metrics.keys()
    for network, was, rate in zip(networks, before, (5e-5, 1e-4, 2e-4), strict=True):
        steps = [(now - then).abs().max().item() for now, then in zip(network.parameters(), was, strict=True)]
        assert max(steps) == pytest.approx(rate, rel=0.01)
