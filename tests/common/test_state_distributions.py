"""Distributions of states against numbers worked out in float64, and the squashing of large numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from rounding import agree
from torch import Tensor

from dreamfleet.common.model.distributions import (
    Gaussian,
    OneHot,
    balanced_kl,
    categorical_kl,
    choose,
    gaussian_kl,
    state_kl,
    state_one_hot,
    symexp,
    symlog,
)
from dreamfleet.common.model.rssm import Latents
from dreamfleet.common.settings.model import ModelSettings

pytestmark = pytest.mark.numeric


def mixed(raw: np.ndarray, unimix: float) -> np.ndarray:
    """Return (1 - u)·softmax + u/C of the last axis, written out in float64."""
    exponentials = np.exp(raw.astype(np.float64) - raw.max(-1, keepdims=True))
    return (1 - unimix) * exponentials / exponentials.sum(-1, keepdims=True) + unimix / raw.shape[-1]


def raw_logits(*shape: int, seed: int = 0) -> Tensor:
    """Return logits spread over some nats, the same at every call."""
    return 2.0 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_symlog_and_symexp_are_what_they_are_called() -> None:
    """By hand, odd, each other's inverse, and without a jump or a nan anywhere."""
    assert symlog(torch.tensor([math.e - 1, 0.0, 1 - math.e])).tolist() == pytest.approx([1.0, 0.0, -1.0])
    assert symexp(torch.tensor([1.0, 0.0, -2.0])).tolist() == pytest.approx([math.e - 1, 0.0, 1 - math.e**2])
    x = torch.tensor([-1e4, -3.0, -1e-6, 0.0, 1e-6, 0.5, 1e4], dtype=torch.float64)
    assert torch.allclose(symexp(symlog(x)), x, rtol=1e-10)


@pytest.mark.parametrize("unimix", [0.0, 0.01, 0.3])
def test_probabilities_have_the_uniform_share_mixed_in(unimix: float) -> None:
    """Per variable (1 - u)·softmax + u/C; the raw numbers hold one variable's classes after the other's."""
    raw = raw_logits(2, 3, 12)
    latent = state_one_hot(raw, classes=4, unimix=unimix)
    expected = mixed(raw.numpy().reshape(2, 3, 3, 4), unimix)
    assert agree(latent.probabilities.numpy(), expected)
    assert agree(latent.logits.exp().sum(-1).numpy(), 1.0)
    entropy = -(expected * np.log(expected)).sum((-2, -1))
    assert agree(latent.entropy().numpy(), entropy)


def test_the_kl_is_the_sum_over_variables_of_the_mixed_probabilities() -> None:
    """Recomputed in float64 with loops; not that of the raw logits."""
    first, second = raw_logits(2, 6, seed=1), raw_logits(2, 6, seed=2)
    q, p = mixed(first.numpy().reshape(2, 2, 3), 0.1), mixed(second.numpy().reshape(2, 2, 3), 0.1)
    expected = [sum(q[b, v, c] * math.log(q[b, v, c] / p[b, v, c]) for v in range(2) for c in range(3)) for b in (0, 1)]
    kl = categorical_kl(state_one_hot(first, 3, 0.1), state_one_hot(second, 3, 0.1))
    assert kl.tolist() == pytest.approx(expected)
    assert categorical_kl(state_one_hot(first, 3, 0.1), state_one_hot(first, 3, 0.1)).abs().max() < 1e-6


def test_the_kls_gradient_is_that_of_finite_differences() -> None:
    """In float64, through softmax and unimix, with respect to both distributions."""
    raws = [raw_logits(3, 8, seed=seed).double().requires_grad_() for seed in (1, 2)]
    assert torch.autograd.gradcheck(
        lambda q, p: categorical_kl(state_one_hot(q, 4, 0.01), state_one_hot(p, 4, 0.01)), raws
    )


def test_uniform_numbers_choose_by_the_cumulative_probabilities() -> None:
    """Bounds belong to the class above them, impossible classes are never chosen, and no number falls off the end."""
    probabilities = torch.tensor([0.0, 0.25, 0.0, 0.5, 0.25])
    uniform = torch.tensor([0.0, 0.2499, 0.25, 0.7499, 0.75, 1.0 - 2.0**-24])
    one_hots = choose(probabilities.expand(6, 5), uniform)
    assert one_hots.argmax(-1).tolist() == [1, 1, 3, 3, 4, 4]
    assert one_hots.sum(-1).tolist() == [1.0] * 6
    short = torch.full((10,), 0.0999)  # what rounding leaves of probabilities
    assert choose(short, torch.tensor(1.0 - 2.0**-24)).argmax().item() == 9
    assert choose(torch.full((2, 2), 0.2), torch.tensor([0.49, 0.5])).argmax(-1).tolist() == [0, 1]


def test_samples_come_as_often_as_their_probability_says() -> None:
    """Evenly spaced numbers choose each class in exact proportion; every variable uses its own number."""
    latent = state_one_hot(raw_logits(2 * 5, seed=3), classes=5, unimix=0.01)
    count = 10_000
    even = (torch.arange(count) + 0.5) / count
    noise = torch.stack([even, even.flip(0)], -1)  # (count, 2)
    samples = OneHot(latent.logits.expand(count, 2, 5)).sample(noise)
    assert samples.shape == (count, 10)
    assert torch.allclose(samples.mean(0).reshape(2, 5), latent.probabilities, atol=2.5 / count)
    assert torch.equal(samples, OneHot(latent.logits.expand(count, 2, 5)).sample(noise))


def test_a_sample_is_a_one_hot_with_the_gradient_of_the_probabilities() -> None:
    """Straight-through: the value is z to the last bit, the gradient that of p alone, unimix included."""
    raw = raw_logits(4, 12, seed=4).double().requires_grad_()
    weights = torch.randn(4, 12, dtype=torch.float64)
    sample = state_one_hot(raw, 3, 0.2).sample(torch.rand(4, 4, dtype=torch.float64))
    assert set(sample.unique().tolist()) == {0.0, 1.0}
    (straight,) = torch.autograd.grad((sample * weights).sum(), raw)

    def weighed(logits: Tensor) -> Tensor:
        return (state_one_hot(logits, 3, 0.2).probabilities.flatten(-2) * weights).sum()

    assert torch.autograd.gradcheck(weighed, raw)
    (expected,) = torch.autograd.grad(weighed(raw), raw)
    assert agree(straight, expected)


def test_without_gradients_a_sample_has_none() -> None:
    """Acting builds no graph."""
    with torch.no_grad():
        latent = state_one_hot(raw_logits(2, 6).requires_grad_(), 3, 0.01)
    assert not latent.sample(torch.rand(2, 2)).requires_grad


def test_the_mode_is_the_likeliest_class_of_each_variable() -> None:
    """Flat as samples are."""
    latent = state_one_hot(torch.tensor([[0.0, 3.0, 1.0, 2.0, 0.0, 1.0]]), 3, 0.01)
    assert latent.mode.tolist() == [[0.0, 1.0, 0.0, 1.0, 0.0, 0.0]]


@pytest.mark.parametrize("kind", ["one_hot", "gaussian"])
def test_the_balanced_kl_trains_prior_and_posterior_apart(kind: str) -> None:
    """Both are the KL; `dyn` has only the prior's share of its gradient and `rep` only the posterior's."""
    raws = [raw_logits(2, 6, seed=seed).requires_grad_() for seed in (5, 6)]

    def distribution(raw: Tensor) -> OneHot | Gaussian:
        return state_one_hot(raw, 3, 0.01) if kind == "one_hot" else Gaussian(raw[:, :3], raw[:, 3:].exp())

    posterior, prior = (distribution(raw) for raw in raws)
    dyn, rep = balanced_kl(posterior, prior)
    whole = state_kl(posterior, prior)
    assert torch.equal(dyn, whole)
    assert torch.equal(rep, whole)
    to_posterior, to_prior = torch.autograd.grad(whole.sum(), raws, retain_graph=True)
    from_dyn = torch.autograd.grad(dyn.sum(), raws, allow_unused=True, retain_graph=True)
    from_rep = torch.autograd.grad(rep.sum(), raws, allow_unused=True)
    assert from_dyn[0] is None
    assert from_rep[1] is None
    assert torch.equal(from_dyn[1], to_prior)
    assert torch.equal(from_rep[0], to_posterior)


def test_one_kl_serves_both_kinds_of_state() -> None:
    """It is the closed form of each, and refuses a pair of two kinds."""
    normal = Gaussian(torch.zeros(2, 3), torch.ones(2, 3))
    wide = Gaussian(torch.ones(2, 3), torch.full((2, 3), 2.0))
    assert torch.equal(state_kl(normal, wide), gaussian_kl(normal, wide))
    with pytest.raises(AssertionError, match="two kinds"):
        state_kl(normal, state_one_hot(torch.zeros(2, 6), 3, 0.01))


def test_extreme_logits_stay_finite() -> None:
    """±50 and ±1e4, in both arguments of the KL, with gradients."""
    for size in (50.0, 1e4):
        raw = torch.tensor([[size, -size, 0.0, -size, size, size]], requires_grad=True)
        q, p = state_one_hot(raw, 3, 0.01), state_one_hot(-raw, 3, 0.01)
        loss = categorical_kl(q, p).sum() + q.entropy().sum() + q.sample(torch.tensor([[0.3, 0.9]])).sum()
        (gradient,) = torch.autograd.grad(loss, raw)
        assert torch.isfinite(loss)
        assert torch.isfinite(gradient).all()
        assert categorical_kl(q, p).item() < 2 * math.log(3 / 0.01) + 1e-3  # what unimix bounds it by


def test_arithmetic_is_float32_also_under_autocast() -> None:
    """A network's bfloat16 output gives float32 probabilities, KLs and samples, equal to those without autocast."""
    raw = raw_logits(2, 6).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        latent = state_one_hot(raw, 3, 0.01)
        kl = categorical_kl(latent, state_one_hot(raw.flip(0), 3, 0.01))
        sample = latent.sample(torch.full((2, 2), 0.5))
    assert (latent.logits.dtype, kl.dtype, sample.dtype) == (torch.float32,) * 3
    plain = categorical_kl(state_one_hot(raw.float(), 3, 0.01), state_one_hot(raw.float().flip(0), 3, 0.01))
    assert torch.equal(kl, plain)


LEADING = (3, 4)


def settings(**changes: object) -> ModelSettings:
    """Return settings with a small state."""
    return ModelSettings.model_validate({"stochastic": 5, "classes": 3, **changes})


@pytest.mark.parametrize(("kind", "width", "parameters"), [("gaussian", 5, 10), ("categorical", 15, 15)])
def test_a_state_is_as_wide_as_it_says(kind: str, width: int, parameters: int) -> None:
    """Samples and modes have the announced width, from an output of the announced width and noise of its own shape."""
    latents = Latents(settings(latent=kind))
    assert (latents.width, latents.parameters) == (width, parameters)
    distribution = latents.distribution(torch.randn(*LEADING, parameters))
    noise = latents.draw_noise(*LEADING, device=torch.device("cpu"))
    assert distribution.sample(noise).shape == distribution.mode.shape == (*LEADING, width)


def test_a_categorical_state_is_one_hots_with_unimix() -> None:
    """Each variable has one 1; every class keeps its share of the uniform probability."""
    latents = Latents(settings(latent="categorical", unimix=0.3))
    distribution = latents.distribution(100 * torch.randn(*LEADING, 15))
    assert isinstance(distribution, OneHot)
    sample = distribution.sample(latents.draw_noise(*LEADING, device=torch.device("cpu")))
    assert torch.equal(sample.unflatten(-1, (5, 3)).sum(-1), torch.ones(*LEADING, 5))
    assert distribution.probabilities.min() >= 0.0999
    assert torch.allclose(distribution.probabilities.sum(-1), torch.ones(*LEADING, 5))


def test_noise_has_the_distribution_that_sampling_needs() -> None:
    """A Gaussian's is N(0, 1), a categorical's uniform in [0, 1)."""
    torch.manual_seed(0)
    device = torch.device("cpu")
    normal = Latents(settings()).draw_noise(5000, device=device)
    uniform = Latents(settings(latent="categorical")).draw_noise(5000, device=device)
    assert abs(normal.mean()) < 0.03
    assert abs(normal.std() - 1) < 0.03
    assert 0 <= uniform.min() < 0.01
    assert 0.99 < uniform.max() < 1


def test_a_gaussian_state_is_made_as_the_settings_say() -> None:
    """min_std and the kind of deviation reach the distribution."""
    distribution = Latents(settings(std="log_variance", min_std=0.7)).distribution(torch.zeros(2, 10) - 9)
    assert isinstance(distribution, Gaussian)
    assert torch.equal(distribution.std, torch.full((2, 5), 0.7))
