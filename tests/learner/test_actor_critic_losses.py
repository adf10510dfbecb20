"""Losses of policy and critic against loops in float64, and their gradients against what they should and not reach."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from dreamfleet.common.acting.action_distributions import action_distribution
from dreamfleet.common.experience.spaces import ActionSpec
from dreamfleet.common.model.distributions import Gaussian, TwoHot, symexp_bins
from dreamfleet.learner.behaviour.actor_critic import advantages, policy_loss, reinforce_objective
from dreamfleet.learner.behaviour.critic import replay_value_loss, value_loss
from dreamfleet.learner.behaviour.returns import discount_weights, lambda_returns

pytestmark = pytest.mark.numeric

N, H = 3, 4


def random(*shape: int, seed: int) -> Tensor:
    """Return float64 numbers, the same at every call."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_advantages_belong_to_the_state_before_the_return() -> None:
    """(R_t − v_t)/scale: the value of the same t, the last one unused, and no gradient."""
    returns = torch.tensor([[10.0, 20.0]], requires_grad=True)
    value = torch.tensor([[1.0, 2.0, 100.0]], requires_grad=True)
    got = advantages(returns, value, torch.tensor(4.0))
    assert got.tolist() == [[9 / 4, 18 / 4]]
    assert not got.requires_grad


def test_v3s_policy_loss_is_reinforce_with_entropy() -> None:
    """Minus the mean of weight·(log π·advantage + 3e-4·entropy), added up element by element."""
    weight, log_prob, advantage, entropy = (random(N, H, seed=seed) for seed in range(4))
    loss = policy_loss(reinforce_objective(log_prob, advantage), weight, entropy, 3e-4)
    total = sum(
        weight[n, t].item() * (log_prob[n, t].item() * advantage[n, t].item() + 3e-4 * entropy[n, t].item())
        for n in range(N)
        for t in range(H)
    )
    assert loss.item() == pytest.approx(-total / (N * H))


def test_reinforce_reaches_the_policy_alone() -> None:
    """Through log π and the entropy; neither weight nor advantage passes a gradient on."""
    parts = [random(N, H, seed=seed).requires_grad_() for seed in range(4)]
    weight, log_prob, advantage, entropy = parts
    loss = policy_loss(reinforce_objective(log_prob, advantage), weight, entropy, 0.5)
    gradients = torch.autograd.grad(loss, parts, allow_unused=True)
    assert gradients[0] is None
    assert gradients[2] is None
    assert torch.allclose(gradients[1], -weight * advantage / (N * H))
    assert torch.allclose(gradients[3], -0.5 * weight / (N * H))


def test_v1s_policy_loss_is_minus_the_weighted_return() -> None:
    """The gradient goes through the returns; the weights pass none on."""
    weight, returns = random(N, H, seed=0).requires_grad_(), random(N, H, seed=1).requires_grad_()
    loss = policy_loss(returns, weight, torch.zeros(N, H), 0.0)
    assert loss.item() == pytest.approx(-(weight * returns).mean().item())
    (gradient,) = torch.autograd.grad(loss, returns, retain_graph=True)
    assert torch.allclose(gradient, -weight / (N * H))
    assert torch.autograd.grad(loss, weight, allow_unused=True) == (None,)


def test_v1s_gradient_through_the_dynamics_is_that_of_finite_differences() -> None:
    """A policy's output, sampled, through a small model, rewards, λ-returns and weights, in float64."""
    spec = ActionSpec("box", (1,), (-1.0,), (1.0,), (1,))
    noise = random(N, H, 1, seed=0)

    def loss(policy: Tensor) -> Tensor:
        state, rewards, values = torch.zeros(N, 1, dtype=torch.float64), [], []
        for t in range(H):
            state = torch.tanh(state + action_distribution("tanh_normal", policy[:, t], spec).sample(noise[:, t]))
            rewards.append(state[:, 0].sin())
            values.append(state[:, 0].square())
        reward = torch.stack([torch.zeros_like(rewards[0]), *rewards], -1)
        value = torch.stack([torch.zeros_like(values[0]), *values], -1)
        continuation = torch.full_like(reward, 0.99)
        weight = discount_weights(continuation, with_first=False)
        returns = lambda_returns(reward, value, continuation, 0.95)
        return policy_loss(returns, weight, torch.zeros_like(returns), 0.0)

    policy = torch.cat([random(N, H, 1, seed=1), random(N, H, 1, seed=2) - 5.0], -1).requires_grad_()
    assert torch.autograd.gradcheck(loss, policy)


def test_reinforce_estimates_the_gradient_of_the_expected_return() -> None:
    """Summed over all actions with their probabilities it is that gradient exactly, whatever the baseline."""
    spec = ActionSpec("discrete", (3,))
    raw = random(3, seed=3).requires_grad_()
    gains = torch.tensor([1.0, -2.0, 5.0], dtype=torch.float64)
    probabilities = raw.softmax(-1)
    (expected,) = torch.autograd.grad(-(probabilities * gains).sum(), raw)
    losses = []
    for choice in range(3):
        log_prob = action_distribution("tanh_normal", raw, spec).log_prob(torch.eye(3, dtype=torch.float64)[choice])
        advantage = advantages(gains[choice][None], torch.tensor([0.7, 9.0], dtype=torch.float64))
        objective = reinforce_objective(log_prob[None], advantage)
        losses.append(policy_loss(objective, torch.ones_like(advantage), torch.zeros_like(advantage), 0.0))
    mean = (raw.detach().softmax(-1) * torch.stack(losses)).sum()
    assert torch.allclose(torch.autograd.grad(mean, raw)[0], expected)


def test_v1s_value_loss_is_a_unit_normals() -> None:
    """Constant included, weighted, with the value of the same t; the target and the weight get no gradient."""
    value, returns, weight = random(N, H + 1, seed=0), random(N, H, seed=1), random(N, H, seed=2).abs()
    for tensor in (value, returns, weight):
        tensor.requires_grad_()
    loss = value_loss(Gaussian(value, torch.ones_like(value)), returns, weight)
    total = sum(
        weight[n, t].item() * (0.5 * (value[n, t].item() - returns[n, t].item()) ** 2 + 0.5 * math.log(2 * math.pi))
        for n in range(N)
        for t in range(H)
    )
    assert loss.item() == pytest.approx(total / (N * H))
    to_value, *others = torch.autograd.grad(loss, [value, returns, weight], allow_unused=True)
    assert others == [None, None]
    expected = torch.cat([weight * (value[:, :-1] - returns), torch.zeros(N, 1)], -1) / (N * H)
    assert torch.allclose(to_value, expected)


def cross_entropy(logits: Tensor, target: float, bins: Tensor) -> float:
    """Return the cross-entropy to a target's two-hot weights, with all bins' weights written out."""
    above = next(k for k in range(len(bins)) if bins[k] > target)
    share = (target - bins[above - 1].item()) / (bins[above] - bins[above - 1]).item()
    log_p = logits.log_softmax(-1)
    return -((1 - share) * log_p[above - 1] + share * log_p[above]).item()


@pytest.mark.parametrize("has_slow", [False, True])
def test_v3s_value_loss_is_a_cross_entropy_with_the_slow_critic(has_slow: bool) -> None:
    """weight·(CE to the return + CE to the slow critic's mean), element by element in float64."""
    bins = symexp_bins().double()
    logits, returns, slow = random(N, H + 1, 255, seed=0), 30 * random(N, H, seed=1), 5 * random(N, H + 1, seed=2)
    weight = random(N, H, seed=3).sigmoid()
    for tensor in (logits, returns, slow, weight):
        tensor.requires_grad_()
    critic = TwoHot(logits, bins)
    loss = value_loss(critic, returns, weight, slow if has_slow else None)
    total = 0.0
    for n in range(N):
        for t in range(H):
            part = cross_entropy(logits[n, t], returns[n, t].item(), bins)
            if has_slow:
                part += cross_entropy(logits[n, t], slow[n, t].item(), bins)
            total += weight[n, t].item() * part
    assert loss.item() == pytest.approx(total / (N * H))
    to_logits, *others = torch.autograd.grad(loss, [logits, returns, slow, weight], allow_unused=True)
    assert others == [None, None, None]
    assert (to_logits[:, :-1] != 0).all()
    assert (to_logits[:, -1] == 0).all()


def test_replayed_values_are_learnt_where_the_episode_goes_on() -> None:
    """Weight 1 − is_last of the same t; the mean counts the others as zeros, and the last step is left out."""
    bins = symexp_bins().double()
    logits, returns = random(1, 4, 255, seed=0).requires_grad_(), random(1, 3, seed=1)
    slow = random(1, 4, seed=2)
    is_last = torch.tensor([[False, True, False, False]])
    loss = replay_value_loss(TwoHot(logits, bins), returns, is_last, slow)
    total = sum(
        cross_entropy(logits[0, t], returns[0, t].item(), bins) + cross_entropy(logits[0, t], slow[0, t].item(), bins)
        for t in (0, 2)
    )
    assert loss.item() == pytest.approx(total / 3)
    loss.backward()
    assert logits.grad is not None
    assert (logits.grad[0].abs().sum(-1) > 0).tolist() == [True, False, True, False]


def test_extreme_returns_stay_finite() -> None:
    """±1e4 in every loss, with gradients."""
    returns = torch.tensor([[1e4, -1e4, 0.0, 1e4]])
    logits = torch.full((1, 5, 255), 50.0)
    logits[..., ::2] = -50.0
    logits.requires_grad_()
    mean = torch.zeros(1, 5, requires_grad=True)
    weight = torch.ones(1, 4)
    losses = [
        value_loss(TwoHot(logits, symexp_bins()), returns, weight, returns.new_full((1, 5), 1e4)),
        value_loss(Gaussian(mean, torch.ones(1, 5)), returns, weight),
    ]
    for loss, parameter in zip(losses, (logits, mean), strict=True):
        assert torch.isfinite(loss)
        assert torch.isfinite(torch.autograd.grad(loss, parameter)[0]).all()
