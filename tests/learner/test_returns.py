"""Returns, their weights and their spread, against loops in float64."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from torch import Tensor

from dreamfleet.learner.behaviour.returns import (
    ReturnNormaliser,
    discount_weights,
    lambda_returns,
    percentiles,
    replay_returns,
)

pytestmark = pytest.mark.numeric


def random(*shape: int, seed: int) -> Tensor:
    """Return float64 numbers, the same at every call."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_returns_by_hand() -> None:
    """Two steps, λ ½: R_1 = 3 + 0.5·7 = 6.5 and R_0 = 2 + 0.8·(½·5 + ½·6.5) = 6.6; state 0 adds nothing of its own."""
    reward = torch.tensor([100.0, 2.0, 3.0])
    value = torch.tensor([100.0, 5.0, 7.0])
    continuation = torch.tensor([100.0, 0.8, 0.5])
    assert lambda_returns(reward, value, continuation, 0.5).tolist() == pytest.approx([6.6, 6.5])
    last_value = torch.cat([value[:-1], torch.tensor([10.0])])
    bootstrapped = lambda_returns(reward, last_value, continuation, 1.0)
    assert bootstrapped.tolist() == pytest.approx([2 + 0.8 * (3 + 0.5 * 10), 3 + 0.5 * 10])


@pytest.mark.parametrize("lambda_", [0.0, 0.95, 1.0])
def test_returns_are_the_mixture_of_all_lengths(lambda_: float) -> None:
    """Equal to the λ-weighted sum of n-step returns, each added up on its own, which no recursion is part of."""
    horizon = 6
    reward, value = random(3, horizon + 1, seed=0), random(3, horizon + 1, seed=1)
    continuation = 0.997 * torch.sigmoid(random(3, horizon + 1, seed=2))
    got = lambda_returns(reward, value, continuation, lambda_)
    assert got.shape == (3, horizon)
    for row in range(3):
        r, v, c = (x[row].numpy() for x in (reward, value, continuation))
        for t in range(horizon):
            longest = horizon - t

            def steps(n: int, r: np.ndarray = r, v: np.ndarray = v, c: np.ndarray = c, t: int = t) -> float:
                rewards = sum(np.prod(c[t + 1 : t + k]) * r[t + k] for k in range(1, n + 1))
                return float(rewards + np.prod(c[t + 1 : t + n + 1]) * v[t + n])

            expected = sum((1 - lambda_) * lambda_ ** (n - 1) * steps(n) for n in range(1, longest))
            expected += lambda_ ** (longest - 1) * steps(longest)
            assert got[row, t].item() == pytest.approx(expected), (row, t)


def test_v1s_returns_discount_by_gamma() -> None:
    """With a constant reward of 1, γ in place of c and λ 1: 1 + γ + γ² + … + γ^H·v."""
    reward, value = torch.ones(5, dtype=torch.float64), torch.full((5,), 10.0, dtype=torch.float64)
    got = lambda_returns(reward, value, torch.full_like(reward, 0.99), 1.0)
    for t in range(4):
        expected = sum(0.99**k for k in range(4 - t)) + 0.99 ** (4 - t) * 10.0
        assert got[t].item() == pytest.approx(expected)


def test_returns_gradients_are_those_of_finite_differences() -> None:
    """V1's policy learns through rewards, values and continuations."""
    parts = [random(2, 5, seed=seed).requires_grad_() for seed in range(3)]
    assert torch.autograd.gradcheck(lambda r, v, c: lambda_returns(r, v, c, 0.9), parts)


def test_extreme_rewards_stay_finite() -> None:
    """±1e4 at every step."""
    reward = torch.tensor([1e4, -1e4] * 8)
    assert torch.isfinite(lambda_returns(reward, -reward, torch.ones(16), 0.95)).all()


def test_weights_are_how_probable_it_is_to_get_there() -> None:
    """V3's product begins with the first state's own continuation, V1's with 1; the last state's counts for neither."""
    continuation = torch.tensor([[0.5, 0.8, 0.9, 0.1]], requires_grad=True)
    assert discount_weights(continuation)[0].tolist() == pytest.approx([0.5, 0.4, 0.36])
    assert discount_weights(continuation, with_first=False)[0].tolist() == pytest.approx([1.0, 0.8, 0.72])
    assert not discount_weights(continuation).requires_grad


def replay_return_by_hand(
    t: int, reward: list[float], boot: list[float], last: list[int], terminal: list[int]
) -> float:
    """Return R_t with λ 0.9 and discount 0.95, recursively."""
    if t == len(reward) - 1:
        return boot[t]
    alive = 0.0 if terminal[t + 1] else 0.95
    if last[t + 1]:
        return reward[t + 1] + alive * boot[t + 1]
    return reward[t + 1] + alive * (
        0.1 * boot[t + 1] + 0.9 * replay_return_by_hand(t + 1, reward, boot, last, terminal)
    )


def test_replayed_returns_stop_where_episodes_do() -> None:
    """A true end counts nothing after it, a cut-off episode the bootstrap; neither sees the next episode."""
    reward = [9.0, 1.0, 2.0, 0.0, 3.0, -1.0, 0.0, 4.0]
    boot = [50.0, 10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0]
    last = [0, 0, 1, 0, 0, 1, 0, 0]
    terminal = [0, 0, 1, 0, 0, 0, 0, 0]
    got = replay_returns(
        torch.tensor([reward]).double(),
        torch.tensor([boot]).double(),
        torch.tensor([last]).bool(),
        torch.tensor([terminal]).bool(),
        0.95,
        0.9,
    )[0]
    assert got.shape == (7,)
    assert got[1].item() == 2.0
    assert got[4].item() == pytest.approx(-1.0 + 0.95 * 50.0)
    assert got[6].item() == pytest.approx(4.0 + 0.95 * 70.0)
    for t in range(7):
        assert got[t].item() == pytest.approx(replay_return_by_hand(t, reward, boot, last, terminal)), t


def test_without_ends_replayed_returns_are_lambda_returns() -> None:
    """With the bootstrap as the value and a constant continuation both are one formula."""
    reward, boot = random(2, 6, seed=3), random(2, 6, seed=4)
    never = torch.zeros(2, 6, dtype=torch.bool)
    replayed = replay_returns(reward, boot, never, never, 0.99, 0.95)
    assert torch.allclose(replayed, lambda_returns(reward, boot, torch.full_like(reward, 0.99), 0.95))


@pytest.mark.parametrize("count", [1, 2, 15, 1000])
def test_percentiles_are_torchs(count: int) -> None:
    """Linear interpolation, also of very few numbers and at the ends, against numpy and torch."""
    values = random(count, seed=count)
    shares = (0.0, 0.05, 0.5, 0.95, 1.0)
    got = torch.stack(percentiles(values, shares))
    assert torch.allclose(got, torch.quantile(values, torch.tensor(shares).double()))
    assert np.allclose(got.numpy(), np.percentile(values.numpy(), [0, 5, 50, 95, 100]))


def test_the_spread_follows_slowly_from_zero() -> None:
    """Rate 0.01 from 0, not corrected; the scale is 1 until the averages are further apart."""
    normaliser = ReturnNormaliser()
    assert normaliser.scale.item() == 1.0
    low = high = 0.0
    for step in range(40):
        returns = 100.0 * random(4, 5, seed=step) + 7.0
        normaliser.update(returns)
        low = 0.99 * low + 0.01 * float(np.percentile(returns.numpy(), 5))
        high = 0.99 * high + 0.01 * float(np.percentile(returns.numpy(), 95))
        assert normaliser.bounds.tolist() == pytest.approx([low, high], rel=1e-4)
        assert normaliser.scale.item() == pytest.approx(max(1.0, high - low), rel=1e-4)
    assert normaliser.scale.item() > 50.0


def test_a_few_outliers_do_not_count() -> None:
    """Two in a hundred of ±1e4 leave the spread where it is."""
    normaliser, returns = ReturnNormaliser(), torch.linspace(0, 10, 100)
    outliers = returns.clone()
    outliers[0], outliers[-1] = -1e4, 1e4
    other = ReturnNormaliser()
    for _ in range(200):
        normaliser.update(returns)
        other.update(outliers)
    assert other.scale.item() == pytest.approx(normaliser.scale.item(), rel=1e-3)


def test_the_spread_is_part_of_a_checkpoint() -> None:
    """It is loaded from a file read with `weights_only`."""
    normaliser = ReturnNormaliser()
    normaliser.update(torch.linspace(-1000, 1000, 50))
    file = io.BytesIO()
    torch.save(normaliser.state_dict(), file)
    file.seek(0)
    restored = ReturnNormaliser()
    restored.load_state_dict(torch.load(file, weights_only=True))
    assert restored.scale.item() == normaliser.scale.item() > 1.0
