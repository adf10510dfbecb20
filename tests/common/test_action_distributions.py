"""Policies' distributions against densities worked out in float64."""

from __future__ import annotations

import math

import pytest
import torch
from rounding import agree
from torch import Tensor

from dreamfleet.common.acting.action_distributions import (
    BoundedNormal,
    BoxPolicy,
    JointAction,
    OneHotChoice,
    TanhNormal,
    action_distribution,
    draw_action_noise,
    parameter_count,
)
from dreamfleet.common.acting.action_encoding import encode_actions
from dreamfleet.common.experience.spaces import ActionSpec

pytestmark = pytest.mark.numeric

BOX = ActionSpec("box", (2,), (-1.0, -1.0), (1.0, 1.0), (2,))
DISCRETE = ActionSpec("discrete", (4,))
MULTI = ActionSpec("multi_discrete", (2, 3))
MIXED = ActionSpec("mixed", (2, 3), (-1.0, -1.0), (1.0, 1.0))


def normal_density(x: Tensor, mean: float, std: float) -> Tensor:
    """Return a Normal's density, written out."""
    return torch.exp(-((x - mean) ** 2) / (2 * std**2)) / math.sqrt(2 * math.pi * std**2)


def double(*values: float) -> Tensor:
    """Return a float64 tensor."""
    return torch.tensor(values, dtype=torch.float64)


def softmax(values: list[float]) -> list[float]:
    """Return probabilities, by hand."""
    total = sum(math.exp(value) for value in values)
    return [math.exp(value) / total for value in values]


def test_v1s_policy_is_made_as_published() -> None:
    """Mean 5·tanh(m/5), std softplus(s + log(e^5 − 1)) + 1e-4, which begins at 5."""
    policy = action_distribution("tanh_normal", torch.tensor([0.0, 8.0, 0.0, -3.0]), BOX)
    assert isinstance(policy, TanhNormal)
    assert policy.mean.tolist() == pytest.approx([0.0, 5 * math.tanh(8 / 5)])
    inner = -3.0 + math.log(math.e**5 - 1)
    assert policy.std.tolist() == pytest.approx([5.0001, math.log1p(math.exp(inner)) + 1e-4], rel=1e-6)
    assert policy.mode.tolist() == pytest.approx([0.0, math.tanh(5 * math.tanh(8 / 5))])


def test_v3s_policy_is_made_as_published() -> None:
    """Mean tanh(m), std 0.9·σ(s + 2) + 0.1; its samples are not squashed."""
    policy = action_distribution("bounded_normal", torch.tensor([0.5, -2.0, 0.0, -3.0]), BOX)
    assert isinstance(policy, BoundedNormal)
    assert policy.mode.tolist() == pytest.approx([math.tanh(0.5), math.tanh(-2.0)])
    assert policy.std.tolist() == pytest.approx([0.9 / (1 + math.exp(-2)) + 0.1, 0.9 / (1 + math.exp(1)) + 0.1])
    sample = policy.sample(torch.tensor([3.0, -3.0]))
    (left, right), (narrow, wide) = policy.mean.tolist(), policy.std.tolist()
    assert sample.tolist() == pytest.approx([left + 3 * narrow, right - 3 * wide])
    assert sample[1] < -1.0


@pytest.mark.parametrize(("mean", "std"), [(0.3, 0.5), (-1.0, 1.5)])
def test_a_squashed_density_integrates_to_one(mean: float, std: float) -> None:
    """Over (−1, 1), so that the correction is the tanh's slope and not something near it."""
    x = torch.linspace(-12, 12, 200_001, dtype=torch.float64).tanh().unique()
    policy = TanhNormal(double(mean), double(std))
    density = policy.log_prob(x[:, None]).exp()
    assert torch.trapezoid(density, x).item() == pytest.approx(1.0, abs=1e-3)
    by_hand = normal_density(torch.atanh(x), mean, std) / (1 - x**2)
    inside = x.abs() < 0.999
    assert torch.allclose(density[inside], by_hand[inside], rtol=1e-6)


def test_densities_are_summed_over_an_actions_dimensions() -> None:
    """Both kinds of box policy, against the product of one-dimensional densities."""
    mean, std, action = double(0.2, -0.4), double(0.3, 0.7), double(0.5, -0.1)
    product = math.prod(normal_density(action[i], mean[i].item(), std[i].item()).item() for i in (0, 1))
    assert BoundedNormal(mean, std).log_prob(action).item() == pytest.approx(math.log(product))
    inner = torch.atanh(action)
    squashed = math.prod(
        normal_density(inner[i], mean[i].item(), std[i].item()).item() / (1 - action[i].item() ** 2) for i in (0, 1)
    )
    assert TanhNormal(mean, std).log_prob(action).item() == pytest.approx(math.log(squashed))


@pytest.mark.parametrize("kind", ["tanh_normal", "bounded_normal"])
def test_entropies_are_the_integrals_they_stand_for(kind: str) -> None:
    """−∫ p·log p over two dimensions; V1's is an estimate, here from evenly spread quantiles."""
    mean, std = double(0.3, -0.5), double(0.4, 0.8)
    if kind == "bounded_normal":
        expected = sum(0.5 * math.log(2 * math.pi * math.e * s**2) for s in (0.4, 0.8))
        assert BoundedNormal(mean, std).entropy().item() == pytest.approx(expected)
        return
    x = torch.linspace(-9, 9, 100_001, dtype=torch.float64)
    expected = 0.0
    for m, s in ((0.3, 0.4), (-0.5, 0.8)):
        p = normal_density(x, m, s)
        log_q = p.clamp(min=1e-300).log() - torch.log(1 - x.tanh() ** 2 + 1e-300)
        expected -= torch.trapezoid(p * log_q, x).item()
    quantiles = torch.special.ndtri((torch.arange(4000, dtype=torch.float64) + 0.5) / 4000)
    estimate = TanhNormal(mean, std).entropy(quantiles[:, None].expand(-1, 2))
    assert estimate.item() == pytest.approx(expected, abs=1e-3)
    torch.manual_seed(0)
    assert TanhNormal(mean, std).entropy().item() == pytest.approx(expected, abs=0.15)


@pytest.mark.parametrize("kind", ["tanh_normal", "bounded_normal"])
def test_box_samples_are_reparameterised(kind: BoxPolicy) -> None:
    """Samples, densities and entropies have the gradients of finite differences, in float64 and with equal noise."""
    raw = double(0.4, -1.2, -6.0, 0.3).requires_grad_()
    noise = double(0.7, -1.1)
    many = torch.randn(5, 2, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: action_distribution(kind, x, BOX).sample(noise), raw)
    action = double(0.3, -0.6)
    assert torch.autograd.gradcheck(lambda x: action_distribution(kind, x, BOX).log_prob(action), raw)

    def entropy(x: Tensor) -> Tensor:
        policy = action_distribution(kind, x, BOX)
        return policy.entropy(many) if isinstance(policy, TanhNormal) else policy.entropy()

    assert torch.autograd.gradcheck(entropy, raw)


def test_box_samples_have_the_distributions_statistics() -> None:
    """Means and deviations before the squashing, from drawn noise with a fixed seed; all within (−1, 1) after it."""
    torch.manual_seed(1)
    mean, std = torch.tensor([0.2, -0.3]).expand(20_000, 2), torch.tensor([0.5, 0.9]).expand(20_000, 2)
    plain, squashed = BoundedNormal(mean, std).sample(), TanhNormal(mean, std).sample()
    for inner in (plain, torch.atanh(squashed)):
        assert torch.allclose(inner.mean(0), mean[0], atol=0.02)
        assert torch.allclose(inner.std(0), std[0], atol=0.02)
    assert squashed.abs().max() < 1.0


@pytest.mark.parametrize("kind", ["tanh_normal", "bounded_normal"])
def test_extreme_box_policies_stay_finite(kind: BoxPolicy) -> None:
    """Network outputs of ±50 and ±1e4, actions of exactly ±1, gradients included."""
    raw = torch.tensor([[50.0, -50.0, 50.0, -50.0], [-1e4, 1e4, -1e4, 1e4], [0.0, 0.0, 0.0, 0.0]], requires_grad=True)
    policy = action_distribution(kind, raw, BOX)
    sample = policy.sample(torch.tensor([6.0, -6.0]).expand(3, 2))
    log_prob = policy.log_prob(torch.tensor([[1.0, -1.0], [-1.0, 1.0], [1.0, 0.0]]))
    (gradient,) = torch.autograd.grad(policy.log_prob(sample.detach()).sum() + policy.entropy().sum(), raw)
    for tensor in (sample, log_prob, policy.log_prob(sample.detach()), gradient):
        assert torch.isfinite(tensor).all()


def test_choices_are_normalised_within_their_groups() -> None:
    """Log-probabilities and entropies add up over groups, against softmaxes by hand."""
    raw = [0.5, -1.0, 2.0, 0.1, 0.3]
    policy = action_distribution("bounded_normal", torch.tensor([raw]), MULTI)
    assert isinstance(policy, OneHotChoice)
    first, second = softmax(raw[:2]), softmax(raw[2:])
    action = encode_actions(MULTI, torch.tensor([[1, 2]]))
    assert policy.log_prob(action).tolist() == pytest.approx([math.log(first[1]) + math.log(second[2])])
    assert policy.entropy().tolist() == pytest.approx([-sum(p * math.log(p) for p in first + second)])
    assert policy.mode.tolist() == [[1.0, 0.0, 1.0, 0.0, 0.0]]
    mixed = action_distribution("bounded_normal", torch.tensor([raw]), MULTI, unimix=0.1)
    assert isinstance(mixed, OneHotChoice)
    expected = [0.9 * p + 0.1 / 2 for p in first] + [0.9 * p + 0.1 / 3 for p in second]
    assert mixed.probabilities[0].tolist() == pytest.approx(expected)


def test_choices_come_as_often_as_their_probability_says() -> None:
    """Each group by its own number: evenly spread numbers give exact frequencies, and the groups are independent."""
    raw = torch.randn(5, generator=torch.Generator().manual_seed(2))
    policy = action_distribution("tanh_normal", raw.expand(4900, 5), MULTI)
    assert isinstance(policy, OneHotChoice)
    even = (torch.arange(70) + 0.5) / 70
    sample = policy.sample(torch.cartesian_prod(even, even))
    assert set(sample.unique().tolist()) == {0.0, 1.0}
    p = policy.probabilities[0]
    assert torch.allclose(sample.mean(0), p, atol=2 / 70)
    joint = (sample[:, :2, None] * sample[:, None, 2:]).mean(0)
    assert torch.allclose(joint, p[:2, None] * p[None, 2:], atol=3 / 70)
    torch.manual_seed(3)
    assert torch.allclose(policy.sample().mean(0), p, atol=0.03)


def test_choices_are_straight_through() -> None:
    """The gradient of a sample is that of its probabilities; densities and entropies have finite differences'."""
    raw = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(3, 5, dtype=torch.float64)

    def policy(x: Tensor) -> OneHotChoice:
        made = action_distribution("tanh_normal", x, MULTI, unimix=0.05)
        assert isinstance(made, OneHotChoice)
        return made

    sample = policy(raw).sample(torch.rand(3, 2, dtype=torch.float64))
    (straight,) = torch.autograd.grad((sample * weights).sum(), raw)
    (expected,) = torch.autograd.grad((policy(raw).probabilities * weights).sum(), raw)
    assert agree(straight, expected)
    action = sample.detach()
    assert torch.autograd.gradcheck(lambda x: policy(x).log_prob(action), raw)
    assert torch.autograd.gradcheck(lambda x: policy(x).entropy(), raw)
    assert torch.autograd.gradcheck(lambda x: policy(x).probabilities, raw)


def test_extreme_choices_stay_finite() -> None:
    """Logits of ±50 and ±1e4, without unimix, gradients included."""
    raw = torch.tensor([[50.0, -50.0, 0.0, 50.0], [1e4, -1e4, -1e4, 1e4]], requires_grad=True)
    policy = action_distribution("tanh_normal", raw, DISCRETE)
    impossible = torch.tensor([[0.0, 1.0, 0.0, 0.0]] * 2)
    sample = policy.sample(torch.tensor([[0.999], [0.0]]))
    (gradient,) = torch.autograd.grad(policy.log_prob(impossible).sum() + policy.entropy().sum(), raw)
    assert torch.isfinite(policy.log_prob(impossible)).all()
    assert torch.isfinite(gradient).all()
    assert sample.argmax(-1).tolist() == [3, 0]


@pytest.mark.parametrize(("spec", "wanted", "noise"), [(BOX, 4, 2), (DISCRETE, 4, 1), (MULTI, 5, 2), (MIXED, 9, 4)])
def test_every_space_says_what_its_policy_needs(spec: ActionSpec, wanted: int, noise: int) -> None:
    """Outputs, noise and actions fit together for every kind of space, and equal noise gives equal actions."""
    assert parameter_count(spec) == wanted
    numbers = draw_action_noise(spec, 3, 7, generator=torch.Generator().manual_seed(4))
    assert numbers.shape == (3, 7, noise)
    policy = action_distribution("tanh_normal", torch.randn(3, 7, wanted), spec)
    action = policy.sample(numbers)
    assert action.shape == policy.mode.shape == policy.sample().shape == (3, 7, spec.width)
    assert policy.log_prob(action).shape == policy.entropy().shape == (3, 7)
    assert torch.equal(action, policy.sample(numbers))
    assert torch.equal(numbers, draw_action_noise(spec, 3, 7, generator=torch.Generator().manual_seed(4)))
    uniform = numbers[..., : len(spec.choices)]
    assert ((uniform >= 0) & (uniform < 1)).all()


@pytest.mark.parametrize("kind", ["tanh_normal", "bounded_normal"])
def test_a_mixed_policy_is_the_product_of_two(kind: BoxPolicy) -> None:
    """Samples, modes, densities and entropies are those of choices and box apart, from the same outputs and noise."""
    raw = torch.randn(6, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(6))
    noise = draw_action_noise(MIXED, 6, generator=torch.Generator().manual_seed(7)).double()
    joint = action_distribution(kind, raw, MIXED, unimix=0.1)
    choices, reals = action_distribution(kind, raw[:, :5], MULTI, 0.1), action_distribution(kind, raw[:, 5:], BOX)
    assert isinstance(joint, JointAction)
    action = joint.sample(noise)
    assert torch.equal(action, torch.cat([choices.sample(noise[:, :2]), reals.sample(noise[:, 2:])], -1))
    assert torch.equal(joint.mode, torch.cat([choices.mode, reals.mode], -1))
    density = choices.log_prob(action[:, :5]) + reals.log_prob(action[:, 5:])
    assert torch.allclose(joint.log_prob(action), density, atol=1e-12)
    if kind == "bounded_normal":
        assert torch.allclose(joint.entropy(), choices.entropy() + reals.entropy(), atol=1e-12)
    weights = torch.randn(6, 9, dtype=torch.float64)[:, :7]
    leaf = raw.clone().requires_grad_()
    sampled = action_distribution(kind, leaf, MIXED, 0.1).sample(noise)
    (gradient,) = torch.autograd.grad((sampled * weights).sum(), leaf)
    assert (gradient.abs().sum(0) > 0).all(), "each output moves the action, choices by the straight-through gradient"


@pytest.mark.numeric(dtype="float32")
def test_policies_are_float32_also_under_autocast() -> None:
    """A network's bfloat16 output gives float32 actions and densities, equal to those without autocast."""
    for kind, spec in (("tanh_normal", BOX), ("bounded_normal", BOX), ("tanh_normal", MULTI)):
        raw, noise = torch.randn(3, parameter_count(spec)).bfloat16(), draw_action_noise(spec, 3)
        with torch.autocast("cpu", torch.bfloat16):
            policy = action_distribution(kind, raw, spec)
            action = policy.sample(noise)
            log_prob, entropy = policy.log_prob(action), policy.entropy()
        plain = action_distribution(kind, raw.float(), spec)
        assert (action.dtype, log_prob.dtype, entropy.dtype) == (torch.float32,) * 3
        assert torch.equal(log_prob, plain.log_prob(plain.sample(noise)))
