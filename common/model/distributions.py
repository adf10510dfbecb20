"""The distributions of the world model. Their arithmetic is float32, whatever the networks compute in."""

from __future__ import annotations

import copy
import math
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dreamfleet.common.torch_state import full_precision

HALF_LOG_TWO_PI = 0.5 * math.log(2.0 * math.pi)
"""The constant of a Normal's log-density, per dimension."""

LOG_VARIANCE_BOUND = 6.0
"""Learned log-variances are softly kept within this on both sides."""


class Gaussian(NamedTuple):
    """Normals with independent dimensions."""

    mean: Tensor
    std: Tensor

    def sample(self, noise: Tensor) -> Tensor:
        """Return mean + std · noise, with gradients to both (the reparameterisation trick)."""
        return torch.addcmul(self.mean, self.std, noise)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-density of each dimension, its constant included; not summed."""
        return -0.5 * ((full_precision(value) - self.mean) / self.std).square() - self.std.log() - HALF_LOG_TWO_PI

    @property
    def mode(self) -> Tensor:
        """The likeliest value: the mean."""
        return self.mean

    def detach(self) -> Gaussian:
        """Return the distribution without gradients."""
        return Gaussian(self.mean.detach(), self.std.detach())

    def without_last(self) -> Gaussian:
        """Return the distributions (…, H) of a sequence (…, H + 1) without its last step."""
        return Gaussian(self.mean[..., :-1], self.std[..., :-1])


class OneHot(NamedTuple):
    """Categorical variables, each sampled as a one-hot; side by side they make S = V·C numbers.

    `logits` (…, V variables, C classes) are the logarithms of the probabilities, unimix included (`state_one_hot`).
    """

    logits: Tensor

    @property
    def probabilities(self) -> Tensor:
        """(…, V, C); they add up to 1 over C."""
        return self.logits.exp()

    @property
    def mean(self) -> Tensor:
        """What samples average to: the probabilities, flat (…, V·C)."""
        return self.probabilities.flatten(-2)

    @property
    def mode(self) -> Tensor:
        """The likeliest class of each variable as one-hots, flat (…, V·C), without gradients."""
        return _one_hot(self.logits.argmax(-1), self.logits).flatten(-2)

    def sample(self, noise: Tensor) -> Tensor:
        """Return one-hots, flat (…, V·C), from noise (…, V), uniform in [0, 1).

        The gradient is straight through: that of z + p − sg(p) (Dreamer V2).
        """
        probabilities = self.probabilities
        return straight_through(choose(probabilities.detach(), noise), probabilities).flatten(-2)

    def entropy(self) -> Tensor:
        """Return the entropy in nats, summed over the variables: (…)."""
        return -(self.probabilities * self.logits).sum(dim=(-2, -1))

    def detach(self) -> OneHot:
        """Return the distribution without gradients."""
        return OneHot(self.logits.detach())


class Bernoulli(NamedTuple):
    """A yes or no, with log-odds as `logits`."""

    logits: Tensor

    @property
    def mean(self) -> Tensor:
        """Probability of yes."""
        return torch.sigmoid(self.logits)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-probability of `value`; of one between 0 and 1 the expected log-probability."""
        return -F.binary_cross_entropy_with_logits(self.logits, value.to(self.logits.dtype), reduction="none")


StateDistribution = Gaussian | OneHot
"""What z is drawn from."""


def symlog(x: Tensor) -> Tensor:
    """Return sign(x)·log(1 + |x|) (Dreamer V3): the identity around 0, a logarithm far out."""
    return x.sign() * torch.log1p(x.abs())


def symexp(x: Tensor) -> Tensor:
    """Return sign(x)·(exp(|x|) − 1), which undoes `symlog`."""
    return x.sign() * torch.expm1(x.abs())


def choose(probabilities: Tensor, uniform: Tensor) -> Tensor:
    """Return one-hots (…, C) from probabilities (…, C) and uniform numbers (…) in [0, 1), by inverse sampling.

    A class of probability 0 is never chosen; the probabilities need not add up to exactly 1. Leading axes broadcast.
    """
    cumulative = probabilities.cumsum(-1)
    threshold = uniform[..., None] * cumulative[..., -1:]
    # The last class takes the rest: its own sum is not compared, so that no index can fall off the end.
    index = (cumulative[..., :-1] <= threshold).sum(-1)
    return _one_hot(index, probabilities)


def straight_through(one_hot: Tensor, probabilities: Tensor) -> Tensor:
    """Return exactly `one_hot`, with the gradient of `probabilities`: z + (p − sg(p))."""
    if not probabilities.requires_grad:
        return one_hot
    return one_hot + (probabilities - probabilities.detach())


def unimix_logits(raw: Tensor, unimix: float) -> Tensor:
    """Return the logarithms of (1 − unimix)·softmax(raw) + unimix/C, over the last axis: (…, C) -> (…, C), float32."""
    raw = full_precision(raw)
    if unimix == 0.0:
        return raw.log_softmax(-1)
    return torch.log((1.0 - unimix) * raw.softmax(-1) + unimix / raw.shape[-1])


def state_one_hot(raw: Tensor, classes: int, unimix: float) -> OneHot:
    """Return the categorical variables of a network's output (…, V·C): float32 logits (…, V, C) with C `classes`.

    `unimix` is the share of uniform probability mixed in (V3: 0.01; V2: 0), for sampling and KL alike. It keeps every
    class possible, so that no KL is infinite.
    """
    return OneHot(unimix_logits(raw.unflatten(-1, (-1, classes)), unimix))


def state_gaussian(raw: Tensor, kind: Literal["softplus", "log_variance"], min_std: float) -> Gaussian:
    """Return the Normals (…, S), float32, of a network's output (…, 2·S): means, then numbers for the deviations.

    `softplus`: std = softplus(x) + min_std (PlaNet). `log_variance`: std = exp(x / 2) of a `bounded_log_variance`, but
    at least min_std.
    """
    mean, spread = full_precision(raw).chunk(2, dim=-1)
    if kind == "softplus":
        return Gaussian(mean, F.softplus(spread) + min_std)
    return Gaussian(mean, torch.exp(0.5 * bounded_log_variance(spread)).clamp(min=min_std))


def bounded_log_variance(raw: Tensor) -> Tensor:
    """Return a network's output as a log-variance within ±6: a deviation between 0.05 and 20.

    Unbounded, a first update on pictures of noise made deviations of 1e17. tanh is the identity around 0 and, unlike a
    hard clamp, has a gradient everywhere.
    """
    return LOG_VARIANCE_BOUND * torch.tanh(raw / LOG_VARIANCE_BOUND)


def gaussian_kl(first: Gaussian, second: Gaussian) -> Tensor:
    """Return KL(first ‖ second) in nats, summed over the last axis: (…, S) -> (…).

    Per dimension: log(σ₂/σ₁) + (σ₁² + (μ₁ − μ₂)²)/(2σ₂²) − ½.
    """
    ratio = (first.std / second.std).square()
    distance = ((first.mean - second.mean) / second.std).square()
    return 0.5 * (ratio + distance - 1.0 - ratio.log()).sum(dim=-1)


def categorical_kl(first: OneHot, second: OneHot) -> Tensor:
    """Return KL(first ‖ second) in nats, summed over classes and variables: (…, V, C) -> (…)."""
    return (first.probabilities * (first.logits - second.logits)).sum(dim=(-2, -1))


def state_kl(first: StateDistribution, second: StateDistribution) -> Tensor:
    """Return KL(first ‖ second) in nats (…) of two state distributions of the same kind."""
    if isinstance(first, Gaussian) and isinstance(second, Gaussian):
        return gaussian_kl(first, second)
    assert isinstance(first, OneHot), "two kinds of state distribution in one KL"
    assert isinstance(second, OneHot), "two kinds of state distribution in one KL"
    return categorical_kl(first, second)


def balanced_kl(posterior: StateDistribution, prior: StateDistribution) -> tuple[Tensor, Tensor]:
    """Return the KL (…) twice: KL(sg(q) ‖ p), which trains the prior, and KL(q ‖ sg(p)), which trains the posterior.

    They are `dyn` and `rep` of the papers. V2 weighs them 0.8 and 0.2, V3 1.0 and 0.1, each with its own free nats.
    """
    return state_kl(posterior.detach(), prior), state_kl(posterior, prior.detach())


def _one_hot(index: Tensor, like: Tensor) -> Tensor:
    """Return one-hots (…, C) with `like`'s width and type; F.one_hot would make 64-bit integers first."""
    return (index[..., None] == torch.arange(like.shape[-1], device=like.device)).to(like.dtype)


BINS = 255
"""Bins of V3's reward and value."""


def symexp_bins(count: int = BINS, reach: float = 20.0) -> Tensor:
    """Return symexp(linspace(−reach, reach)) (count,), float32; `count` is odd, so that 0 is a bin.

    One side is computed and negated for the other: neither linspace nor exp keeps the two sides equal bit for bit. The
    default reach is ±4.85e8.
    """
    assert count % 2 == 1, f"{count} bins have no middle one"
    positive = symexp(torch.linspace(0.0, reach, count // 2 + 1, dtype=torch.float64)).float()
    return torch.cat([-positive[1:].flip(0), positive])


class TwoHot:
    """A distribution over bins (Dreamer V3): numbers of any size, such as rewards and values.

    Its mean is the number; it is fitted by cross-entropy to the two bins next to the target.

    Args:
        logits: (…, N bins), of any floating type.
        bins: (N,), ascending, mirrored about 0, on the same device (`symexp_bins`).
    """

    def __init__(self, logits: Tensor, bins: Tensor) -> None:
        # Computed once, for the mean and every target: of a batch's imagined states these are millions of numbers.
        self.log_probabilities = full_precision(logits).log_softmax(-1)
        self.bins = bins.to(self.log_probabilities.dtype)

    @property
    def mean(self) -> Tensor:
        """The expected value (…): Σ (p₊ₖ − p₋ₖ)·binₖ over the bins right of 0.

        In pairs, equal probabilities give exactly 0; summed from left to right, bins of 5e8 would leave a remainder.
        """
        middle = len(self.bins) // 2
        probabilities = self.log_probabilities.exp()
        difference = probabilities[..., middle + 1 :] - probabilities[..., :middle].flip(-1)
        return (difference * self.bins[middle + 1 :]).sum(-1)

    def log_prob(self, target: Tensor) -> Tensor:
        """Return minus the cross-entropy (…) to a target's two-hot weights; the target (…) gets no gradient.

        The weights are on the two bins next to the target, by distance in raw (symexp) space, so that their mean is the
        target. A target beyond the outermost bin counts as that bin.
        """
        target = target.detach().to(self.bins.dtype).contiguous()
        below = (torch.searchsorted(self.bins, target, right=True) - 1).clamp(0, len(self.bins) - 2)
        low, high = self.bins[below], self.bins[below + 1]
        share = ((target - low) / (high - low)).clamp(0.0, 1.0)  # of the bin above
        # Only two numbers of each row are read; weights over all bins would be as large as the logits.
        near = self.log_probabilities.gather(-1, torch.stack([below, below + 1], -1))  # (…, 2)
        return torch.lerp(near[..., 0], near[..., 1], share)

    def without_last(self) -> TwoHot:
        """Return the distributions (…, H, N) of a sequence (…, H + 1, N) without its last step."""
        part = copy.copy(self)
        part.log_probabilities = self.log_probabilities[..., :-1, :]
        return part
