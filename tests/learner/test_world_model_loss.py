"""Losses and distributions against numbers worked out independently, in float64."""

from __future__ import annotations

import math

import pytest
import torch
from rounding import agree
from torch import Tensor

from dreamfleet.common.experience.spaces import ActionSpec, ObservationSpec, Spaces
from dreamfleet.common.model.distributions import Bernoulli, Gaussian, gaussian_kl, state_gaussian, state_one_hot
from dreamfleet.common.model.rssm import Rollout, State
from dreamfleet.common.model.world_model import WorldModel
from dreamfleet.common.settings.model import LossSettings, ModelSettings
from dreamfleet.learner.representation import reconstruction_loss
from dreamfleet.learner.world_model_loss import (
    continue_target,
    free_nats,
    kl_loss,
    likelihood_loss,
    world_model_loss,
)

pytestmark = pytest.mark.numeric

SPACES = Spaces(
    (ObservationSpec("image", (16, 16, 1), "uint8"), ObservationSpec("speed", (3,), "float32")),
    ActionSpec("discrete", (3,)),
)
B, T = 2, 5


def make_model(**changes: object) -> WorldModel:
    """Return a small model of pictures and vectors, the same at every call."""
    torch.manual_seed(0)
    sizes = {
        "encoder": "strided",
        "depth": 2,
        "embedding": 12,
        "vector_units": 8,
        "deterministic": 10,
        "stochastic": 4,
        "hidden": 12,
        "reward_units": 8,
        "continue_head": True,
    }
    return WorldModel(SPACES, ModelSettings.model_validate({**sizes, **changes}))


def make_batch() -> dict[str, Tensor]:
    """Return a batch with an episode that ends at t = 2 of the first sequence."""
    generator = torch.Generator().manual_seed(1)
    is_first = torch.zeros(B, T, dtype=torch.bool)
    is_first[:, 0] = True
    is_first[0, 3] = True
    is_terminal = torch.zeros(B, T, dtype=torch.bool)
    is_terminal[0, 2] = True
    return {
        "image": torch.randint(0, 256, (B, T, 16, 16, 1), generator=generator).to(torch.uint8),
        "speed": torch.randn(B, T, 3, generator=generator),
        "action": torch.randint(0, 3, (B, T), generator=generator).to(torch.int32),
        "reward": torch.randn(B, T, generator=generator),
        "is_first": is_first,
        "is_terminal": is_terminal,
    }


def density(x: Tensor, mean: float, std: float) -> Tensor:
    """Return a Normal's density, written out."""
    return torch.exp(-((x - mean) ** 2) / (2 * std**2)) / math.sqrt(2 * math.pi * std**2)


@pytest.mark.parametrize(
    ("first", "second"), [((0.0, 1.0), (0.0, 1.0)), ((0.7, 0.3), (-0.4, 1.1)), ((-1.0, 2.0), (1.5, 0.8))]
)
def test_kl_is_the_integral_it_stands_for(first: tuple[float, float], second: tuple[float, float]) -> None:
    """The closed form equals ∫ p·log(p/q) by the trapezoid rule in float64."""
    x = torch.linspace(-25, 25, 400_001, dtype=torch.float64)
    p, q = density(x, *first), density(x, *second)
    log_ratio = torch.where(p > 0, (p.clamp(min=1e-300) / q.clamp(min=1e-300)).log(), 0.0)
    integral = torch.trapezoid(p * log_ratio, x).item()
    pair = [Gaussian(torch.tensor([mean]), torch.tensor([std])) for mean, std in (first, second)]
    assert gaussian_kl(*pair).item() == pytest.approx(integral)


def test_kl_is_summed_over_dimensions() -> None:
    """Independent dimensions add up, and each (b, t) keeps its own."""
    mean, std = torch.randn(B, T, 6), torch.rand(B, T, 6) + 0.2
    kl = gaussian_kl(Gaussian(mean, std), Gaussian(torch.zeros_like(mean), torch.ones_like(std)))
    by_hand = (0.5 * (std.double() ** 2 + mean.double() ** 2 - 1) - std.double().log()).sum(-1)
    assert kl.shape == (B, T)
    assert agree(kl.double(), by_hand)


def test_a_gaussians_log_density_is_whole() -> None:
    """Constant included: its exponential integrates to one, and it equals the formula in float64."""
    x = torch.linspace(-30, 30, 100_001, dtype=torch.float64)
    log_prob = Gaussian(torch.tensor(0.5), torch.tensor(2.0)).log_prob(x)
    assert torch.trapezoid(log_prob.double().exp(), x).item() == pytest.approx(1.0)
    assert agree(log_prob.double(), density(x, 0.5, 2.0).log())


def test_samples_have_the_mean_and_deviation() -> None:
    """Noise is scaled and shifted, and gradients reach both."""
    mean, std = torch.tensor(3.0, requires_grad=True), torch.tensor(0.5, requires_grad=True)
    sample = Gaussian(mean, std).sample(torch.tensor([-2.0, 0.0, 2.0]))
    assert sample.tolist() == [2.0, 3.0, 4.0]
    sample[2].backward()
    assert (mean.grad, std.grad) == (1.0, 2.0)


def test_deviations_are_made_as_the_settings_say() -> None:
    """softplus(x) + min_std, or exp(3·tanh(x / 6)), which is exp(x / 2) for small x, cut off at min_std."""
    raw = torch.tensor([0.3, -0.2, 0.0, 1.5, -9.0, 2.0])
    softplus = state_gaussian(raw, "softplus", 0.1)
    assert softplus.mean.tolist() == raw[:3].tolist()
    assert torch.allclose(softplus.std, torch.tensor([math.log1p(math.exp(x)) + 0.1 for x in (1.5, -9.0, 2.0)]))
    log_variance = state_gaussian(raw, "log_variance", 0.1)
    assert torch.allclose(
        log_variance.std, torch.tensor([math.exp(3 * math.tanh(1.5 / 6)), 0.1, math.exp(3 * math.tanh(2.0 / 6))])
    )


def test_the_reconstruction_is_half_the_squared_error_summed_over_a_picture() -> None:
    """Summed over pixels and channels, averaged over B and T, without the constant: by hand 0.5 · 12 · 0.25."""
    target = torch.zeros(B, T, 2, 2, 3)
    assert reconstruction_loss(target, target).item() == 0.0
    assert reconstruction_loss(target, target + 0.5).item() == pytest.approx(0.5 * 12 * 0.25)
    one_step = target.clone()
    one_step[0, 0] = 2.0
    assert reconstruction_loss(target, one_step).item() == pytest.approx(0.5 * 12 * 4 / (B * T))


def test_the_likelihoods_of_reward_and_continue() -> None:
    """A unit Normal hit exactly costs ½·log 2π, a fair coin log 2."""
    sure = Gaussian(torch.ones(B, T), torch.ones(B, T))
    assert likelihood_loss(sure, torch.ones(B, T)).item() == pytest.approx(0.5 * math.log(2 * math.pi))
    wide = Gaussian(torch.zeros(B, T), torch.full((B, T), 2.0))
    expected = 0.5 * math.log(2 * math.pi) + math.log(2.0) + 0.5 * (3.0 / 2.0) ** 2
    assert likelihood_loss(wide, torch.full((B, T), 3.0)).item() == pytest.approx(expected)
    assert likelihood_loss(Bernoulli(torch.zeros(B, T)), torch.ones(B, T)).item() == pytest.approx(math.log(2.0))


def test_free_nats_per_element_and_on_the_mean() -> None:
    """KLs 0, 2, 4 and 6 with 3 free: per element (0 + 0 + 1 + 3)/4, on the mean 3 - 3 = 0."""
    kl = torch.tensor([[0.0, 2.0], [4.0, 6.0]], requires_grad=True)
    per_element = free_nats(kl, 3.0, "element")
    assert per_element.item() == 1.0
    per_element.backward()
    assert kl.grad is not None
    assert kl.grad.tolist() == [[0.0, 0.0], [0.25, 0.25]]
    assert free_nats(kl, 3.0, "mean").item() == 0.0
    assert free_nats(kl, 2.5, "mean").item() == 0.5
    assert free_nats(kl, 0.0, "element").item() == free_nats(kl, 0.0, "mean").item() == 3.0


def one_hot_rollout() -> tuple[Rollout, Tensor, Tensor]:
    """Return a rollout of categorical states of 2 variables of 3 classes, and the raw posterior and prior logits."""
    generator = torch.Generator().manual_seed(4)
    raw = [torch.randn(B, T, 6, generator=generator).requires_grad_() for _ in range(2)]
    posterior, prior = (state_one_hot(numbers, 3, 0.01) for numbers in raw)
    return Rollout(State(torch.zeros(B, T, 1, 1), torch.zeros(B, T, 6)), prior, posterior), raw[0], raw[1]


def test_a_split_kl_by_hand() -> None:
    """dyn·max(KL - free, 0) + rep·max(KL - free, 0) on each step, the KL summed over variables, unimix included."""
    rollout, posterior, prior = one_hot_rollout()
    settings = LossSettings(kl_split=True, dynamics_scale=1.0, representation_scale=0.1, free_nats=0.6)
    kls = []
    for b in range(B):
        for t in range(T):
            q, p = (0.99 * raw[b, t].detach().double().view(2, 3).softmax(-1) + 0.01 / 3 for raw in (posterior, prior))
            kls.append((q * (q / p).log()).sum().item())
    assert min(kls) < 0.6 < max(kls), "some steps are to be within the free nats, others not"
    loss, metrics = kl_loss(rollout, settings)
    assert metrics["kl/nats"].item() == pytest.approx(sum(kls) / len(kls))
    assert loss.item() == pytest.approx(1.1 * sum(max(kl - 0.6, 0.0) for kl in kls) / len(kls))


@pytest.mark.parametrize(("dynamics", "representation"), [(0.8, 0.2), (1.0, 0.1), (0.0, 1.0)])
def test_a_split_kl_trains_prior_and_posterior_by_their_own_weights(dynamics: float, representation: float) -> None:
    """The gradients are those of the one KL(q || p), times the weight of each side."""
    gradients = []
    for split in (False, True):
        rollout, posterior, prior = one_hot_rollout()
        scales = {"dynamics_scale": dynamics, "representation_scale": representation}
        settings = LossSettings(kl_split=split, free_nats=0.0, **scales)
        kl_loss(rollout, settings)[0].backward()
        gradients.append((posterior.grad, prior.grad))
    (posterior_whole, prior_whole), (posterior_split, prior_split) = gradients
    assert agree(posterior_split, representation * posterior_whole)
    assert agree(prior_split, dynamics * prior_whole)


def test_free_nats_of_a_split_kl_on_the_mean() -> None:
    """V2 with free nats on DMC: beyond the mean KL alone is anything paid."""
    rollout, *_ = one_hot_rollout()
    plain, metrics = kl_loss(rollout, LossSettings(free_nats=0.3, free_nats_per="mean"))
    scales = {"dynamics_scale": 0.8, "representation_scale": 0.2}
    split, _ = kl_loss(rollout, LossSettings(free_nats=0.3, free_nats_per="mean", kl_split=True, **scales))
    assert plain.item() == pytest.approx(metrics["kl/nats"].item() - 0.3)
    assert split.item() == pytest.approx(plain.item())


def test_the_continue_head_can_carry_the_discount() -> None:
    """Its target is (1 - terminal)·(1 - 1/horizon); without a horizon it is whether the episode goes on."""
    terminal = torch.tensor([[False, True]])
    assert continue_target(terminal, 0).tolist() == [[1.0, 0.0]]
    assert continue_target(terminal, 333)[0].tolist() == pytest.approx([1 - 1 / 333, 0.0])
    assert continue_target(terminal, 100)[0, 0].item() == pytest.approx(0.99)
    model, batch = make_model(), make_batch()
    torch.manual_seed(1)
    result = world_model_loss(model, batch, LossSettings(continue_horizon=5))
    chance = model.predict_continue(result.rollout.states.feature).mean.double()
    target = 0.8 * (1 - batch["is_terminal"].double())
    by_hand = -(target * chance.log() + (1 - target) * (1 - chance).log()).mean()
    assert result.metrics["loss/continue"].item() == pytest.approx(by_hand.item())


def test_a_two_hot_reward_costs_the_cross_entropy_of_its_neighbouring_bins() -> None:
    """A reward head that begins at zeros predicts 0 at log 255 nats; its loss by hand from the logits of two bins."""
    model, batch = make_model(reward_distribution="two_hot", reward_output_scale=0.0), make_batch()
    result = world_model_loss(model, batch, LossSettings())
    assert result.metrics["loss/reward"].item() == pytest.approx(math.log(255), rel=1e-6)
    assert model.predict_reward(result.rollout.states.feature).mean.abs().max() == 0.0
    torch.nn.init.normal_(model.reward.output.weight)
    result = world_model_loss(model, batch, LossSettings())
    logits = model.reward.raw(result.rollout.states.feature).double().log_softmax(-1)
    ladder = torch.linspace(-20, 20, 255, dtype=torch.float64)
    bins = ladder.sign() * (ladder.abs().exp() - 1)
    expected = 0.0
    for b in range(B):
        for t in range(T):
            reward = batch["reward"][b, t].item()
            below = int((bins <= reward).sum()) - 1
            share = (reward - bins[below]) / (bins[below + 1] - bins[below])
            expected -= ((1 - share) * logits[b, t, below] + share * logits[b, t, below + 1]).item()
    assert result.metrics["loss/reward"].item() == pytest.approx(expected / (B * T))


def test_the_loss_is_the_weighted_sum_of_its_parts() -> None:
    """Every weight of the settings multiplies its own part, and the parts are reported before their weights."""
    model, batch = make_model(), make_batch()
    settings = LossSettings(
        reconstruction_scale=2.0, reward_scale=3.0, continue_scale=5.0, kl_scale=7.0, free_nats=0.01
    )
    result = world_model_loss(model, batch, settings)
    part = {
        name.removeprefix("loss/"): value.item() for name, value in result.metrics.items() if name.startswith("loss/")
    }
    expected = 2 * part["reconstruction"] + 3 * part["reward"] + 5 * part["continue"] + 7 * part["kl"]
    assert result.total.item() == pytest.approx(expected)
    assert part["total"] == result.total.item()
    assert part["reconstruction"] == pytest.approx(part["reconstruction/image"] + part["reconstruction/speed"])
    assert not any(value.requires_grad for value in result.metrics.values())


def test_the_parts_are_what_the_rollout_says() -> None:
    """Recomputed step by step in float64 from the rollout's states."""
    model, batch = make_model(reward_distribution="normal"), make_batch()
    settings = LossSettings(free_nats=0.05)
    result = world_model_loss(model, batch, settings)
    feature, kls, errors, rewards, ends = result.rollout.states.feature, [], [], [], []
    means, reward, goes_on = model.decode(feature), model.predict_reward(feature), model.predict_continue(feature).mean
    for b in range(B):
        for t in range(T):
            q, p = ([part[b, t].double() for part in d] for d in (result.rollout.posterior, result.rollout.prior))
            kls.append((torch.log(p[1] / q[1]) + (q[1] ** 2 + (q[0] - p[0]) ** 2) / (2 * p[1] ** 2) - 0.5).sum().item())
            target = batch["image"][b, t].double() / 255 - 0.5
            error = (target - means["image"][b, t].double()).square().sum()
            error += (batch["speed"][b, t].double() - means["speed"][b, t].double()).square().sum()
            errors.append(0.5 * error.item())
            rewards.append(
                -density(batch["reward"][b, t].double(), reward.mean[b, t].item(), reward.std[b, t].item()).log().item()
            )
            alive = goes_on[b, t].item()
            ends.append(-math.log(1 - alive if (b, t) == (0, 2) else alive))
    metrics = {name: value.item() for name, value in result.metrics.items()}

    def average(values: list[float]) -> float:
        return sum(values) / len(values)

    assert metrics["kl/nats"] == pytest.approx(average(kls))
    assert metrics["loss/kl"] == pytest.approx(average([max(kl - 0.05, 0.0) for kl in kls]))
    assert metrics["kl/free_fraction"] == pytest.approx(average([float(kl <= 0.05) for kl in kls]))
    assert metrics["loss/reconstruction"] == pytest.approx(average(errors))
    assert metrics["loss/reward"] == pytest.approx(average(rewards))
    assert metrics["loss/continue"] == pytest.approx(average(ends))


def test_without_a_continue_head_there_is_no_continue_loss() -> None:
    """The part is left out, not reported as zero."""
    result = world_model_loss(make_model(continue_head=False), make_batch(), LossSettings())
    assert "loss/continue" not in result.metrics


def test_an_action_changes_only_what_comes_after_it() -> None:
    """The action stored at t first acts on the state at t + 1, and never across the beginning of an episode."""
    model, batch = make_model(), make_batch()

    def states(changed: tuple[int, int] | None) -> Tensor:
        torch.manual_seed(3)
        data = {**batch, "action": batch["action"].clone()}
        if changed is not None:
            data["action"][changed] = (data["action"][changed] + 1) % 3
        return world_model_loss(model, data, LossSettings()).rollout.states.deterministic[..., 0, :]

    before = states(None)
    for b, t, first_to_change in ((1, 1, 2), (0, 1, 2), (0, 2, T), (1, T - 1, T)):
        differs = (states((b, t)) != before).any(-1)
        until = 3 if b == 0 else T
        expected = torch.zeros(B, T, dtype=torch.bool)
        expected[b, first_to_change:until] = True
        assert torch.equal(differs, expected), (b, t)


def test_the_noise_that_is_encoded_is_the_noise_to_be_reconstructed() -> None:
    """With `five_bit` the target is the very picture that was encoded: one draw serves both."""
    model, batch = make_model(image_input="five_bit"), make_batch()
    seen: list[Tensor] = []
    model.encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]["image"]))
    result = world_model_loss(model, batch, LossSettings())
    means = model.decode(result.rollout.states.feature)
    loss = reconstruction_loss(seen[0].unflatten(0, (B, T)), means["image"])
    assert len(seen) == 1
    assert result.metrics["loss/reconstruction/image"].item() == pytest.approx(loss.item())
