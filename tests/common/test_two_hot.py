"""Two-hot numbers against weights worked out bin by bin in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from rounding import agree

from dreamfleet.common.model.distributions import BINS, TwoHot, symexp_bins

pytestmark = pytest.mark.numeric

LARGEST = math.expm1(20.0)


def weights_by_hand(target: float, bins: np.ndarray) -> np.ndarray:
    """Return the two-hot weights of one target, with a loop over the bins."""
    weights = np.zeros(len(bins))
    if target <= bins[0]:
        weights[0] = 1.0
    elif target >= bins[-1]:
        weights[-1] = 1.0
    else:
        for k in range(len(bins) - 1):
            if bins[k] <= target < bins[k + 1]:
                weights[k] = (bins[k + 1] - target) / (bins[k + 1] - bins[k])
                weights[k + 1] = (target - bins[k]) / (bins[k + 1] - bins[k])
    return weights


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Return log-probabilities in float64."""
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def test_the_bins_are_v3s() -> None:
    """255 of them, symexp of even steps from -20 to 20, mirrored bit for bit, with 0 in the middle."""
    bins = symexp_bins()
    assert bins.shape == (BINS,) == (255,)
    assert bins.dtype == torch.float32
    assert torch.equal(bins, -bins.flip(0))
    assert bins[127] == 0.0
    assert bins[-1].item() == pytest.approx(LARGEST, rel=1e-6)
    assert bins[128].item() == pytest.approx(math.expm1(20 / 127), rel=1e-6)
    assert bins[1].item() == pytest.approx(-math.expm1(20 - 20 / 127), rel=1e-6)
    assert (bins.diff() > 0).all()


def test_equal_probabilities_mean_exactly_zero() -> None:
    """Not 1e1, as adding bins of 5e8 from left to right would leave; so a head of zeros predicts zero."""
    bins = symexp_bins()
    assert TwoHot(torch.zeros(3, 255), bins).mean.tolist() == [0.0] * 3
    assert TwoHot(torch.full((2, 255), 7.3), bins).mean.tolist() == [0.0] * 2
    mirrored = torch.randn(4, 128, generator=torch.Generator().manual_seed(0))
    symmetric = torch.cat([mirrored[:, 1:].flip(-1), mirrored], -1)
    assert TwoHot(symmetric, bins).mean.tolist() == [0.0] * 4


def test_the_mean_is_the_expected_bin() -> None:
    """Σ p·bin in float64."""
    logits = torch.randn(6, 255, generator=torch.Generator().manual_seed(1))
    logits[:, 127] += 12.0
    bins = symexp_bins()
    expected = (np.exp(log_softmax(logits.numpy())) * bins.double().numpy()).sum(-1)
    assert np.allclose(TwoHot(logits, bins).mean.numpy(), expected, rtol=1e-4)
    only = torch.full((255,), -1e4)
    only[200] = 0.0
    assert TwoHot(only, bins).mean.item() == pytest.approx(bins[200].item())


def test_the_log_probability_is_minus_the_cross_entropy_to_the_two_hot() -> None:
    """Between bins, on bins, at 0, at and beyond both ends: against a loop over all bins."""
    bins = symexp_bins()
    exact = bins.double().numpy()
    targets = [0.0, 0.1, -0.1, 1.0, -17.3, 1e4, -1e4, 3e8, float(exact[130]), float(exact[40]), LARGEST, 1e12, -1e12]
    logits = torch.randn(len(targets), 255, generator=torch.Generator().manual_seed(2))
    got = TwoHot(logits, bins).log_prob(torch.tensor(targets))
    log_p = log_softmax(logits.numpy())
    for row, target in enumerate(targets):
        expected = float((weights_by_hand(target, exact) * log_p[row]).sum())
        assert got[row].item() == pytest.approx(expected, abs=2e-4), target


def test_weights_keep_the_target_as_their_mean() -> None:
    """Interpolated in raw space: a distribution that is the two-hot itself predicts its target."""
    bins = symexp_bins()
    for target in (0.07, -3.0, 123.4, -9e6):
        logits = torch.tensor(np.log(weights_by_hand(target, bins.double().numpy()) + 1e-30)).float()
        assert TwoHot(logits, bins).mean.item() == pytest.approx(target, rel=1e-3)


def test_batch_axes_are_kept_and_the_last_step_can_be_left_out() -> None:
    """(…, N) logits give (…) numbers, row by row the same."""
    bins = symexp_bins()
    logits = torch.randn(2, 3, 4, 255)
    targets = 10 * torch.randn(2, 3, 4)
    value = TwoHot(logits, bins)
    assert value.mean.shape == value.log_prob(targets).shape == (2, 3, 4)
    assert torch.equal(value.log_prob(targets)[1, 2], TwoHot(logits[1, 2], bins).log_prob(targets[1, 2]))
    assert torch.equal(value.without_last().mean, value.mean[..., :-1])


def test_gradients_are_those_of_finite_differences() -> None:
    """In float64, of mean and log-probability; the target gets none."""
    bins = symexp_bins(7, 3.0).double()
    logits = torch.randn(3, 7, dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([0.4, -2.0, 1e3], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda raw: TwoHot(raw, bins).mean, logits)
    assert torch.autograd.gradcheck(lambda raw: TwoHot(raw, bins).log_prob(targets.detach()), logits)
    TwoHot(logits, bins).log_prob(targets).sum().backward()
    assert targets.grad is None


def test_looking_at_the_mean_without_gradients_takes_none_away() -> None:
    """A mean read within `no_grad` leaves mean and log-probability their whole gradients afterwards."""
    bins, targets = symexp_bins(), torch.tensor([1.0, -40.0])
    logits = torch.randn(2, 255, requires_grad=True)
    looked_at, untouched = TwoHot(logits, bins), TwoHot(logits, bins)
    with torch.no_grad():
        assert not looked_at.mean.requires_grad
    for read in (
        lambda value: value.mean,
        lambda value: value.log_prob(targets),
        lambda value: value.without_last().log_prob(targets[:-1]),
    ):
        (got,), (expected,) = (
            torch.autograd.grad(read(value).sum(), logits, retain_graph=True) for value in (looked_at, untouched)
        )
        assert torch.equal(got, expected)
    alone = TwoHot(logits[:-1], bins).log_prob(targets[:-1]).sum()
    assert agree(got, torch.autograd.grad(alone, logits)[0])


def test_fitting_leads_to_the_target() -> None:
    """Gradient descent on the cross-entropy makes the mean the target, also a target between bins far out."""
    bins = symexp_bins()
    targets = torch.tensor([0.0, 0.5, -250.0, 3e4])
    logits = torch.zeros(4, 255, requires_grad=True)
    optimiser = torch.optim.Adam([logits], 0.3)
    for _ in range(300):
        optimiser.zero_grad()
        (-TwoHot(logits, bins).log_prob(targets).sum()).backward()
        optimiser.step()
    relative = (TwoHot(logits.detach() * 1.0, bins).mean - targets).abs() / (1.0 + targets.abs())
    assert relative.max() < 0.05


def test_extreme_inputs_stay_finite() -> None:
    """Logits of ±50 and ±1e4, targets of ±1e4 and beyond every bin."""
    bins = symexp_bins()
    logits = 50.0 * torch.randn(5, 255).sign()
    logits[0] *= 200.0
    logits.requires_grad_()
    value = TwoHot(logits, bins)
    out = value.log_prob(torch.tensor([1e4, -1e4, 0.0, 1e30, -1e30]))
    (gradient,) = torch.autograd.grad(out.sum(), logits)
    assert torch.isfinite(out).all()
    assert torch.isfinite(value.mean).all()
    assert torch.isfinite(gradient).all()


def test_arithmetic_is_float32_whatever_comes_in() -> None:
    """bfloat16 logits under autocast give what their float32 copies give without."""
    bins, logits = symexp_bins(), torch.randn(3, 255).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        value = TwoHot(logits, bins)
        mean, log_prob = value.mean, value.log_prob(torch.tensor([1.0, -2.0, 1e4]))
    plain = TwoHot(logits.float(), bins)
    assert torch.equal(mean, plain.mean)
    assert torch.equal(log_prob, plain.log_prob(torch.tensor([1.0, -2.0, 1e4])))
