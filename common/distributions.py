"""The distributions of the world model. Their arithmetic is float32, whatever the networks compute in."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

HALF_LOG_TWO_PI = 0.5 * math.log(2.0 * math.pi)
"""The constant of a Normal's log-density, per dimension."""

LOG_VARIANCE_BOUND = 6.0
"""Learned log-variances are softly kept within this on both sides."""


class Gaussian(NamedTuple):
    """A Normal distribution with independent dimensions."""

    mean: Tensor
    std: Tensor

    def sample(self, noise: Tensor) -> Tensor:
        """Return mean + std · noise, with gradients to both (the reparameterisation trick)."""
        return torch.addcmul(self.mean, self.std, noise)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the whole log-density of each dimension, its constant included; not summed."""
        return -0.5 * ((value.float() - self.mean) / self.std).square() - self.std.log() - HALF_LOG_TWO_PI


class Bernoulli(NamedTuple):
    """A yes or no, given as log-odds."""

    logits: Tensor

    @property
    def mean(self) -> Tensor:
        """Probability of yes."""
        return torch.sigmoid(self.logits)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-probability of `value`, which may also lie between 0 and 1 (then: the expected one)."""
        return -F.binary_cross_entropy_with_logits(self.logits, value.float(), reduction="none")


def state_gaussian(raw: Tensor, kind: Literal["softplus", "log_variance"], min_std: float) -> Gaussian:
    """Return the Gaussian of a network's output.

    Args:
        raw: (…, 2·S), of any floating type: S means, then what the S deviations are made of.
        kind: `softplus`: std = softplus(x) + min_std (PlaNet). `log_variance`: std = exp(x / 2) of a
            `bounded_log_variance`, cut off below min_std.
        min_std: smallest deviation.

    Returns:
        mean and std (…, S), float32.
    """
    mean, spread = raw.float().chunk(2, dim=-1)
    if kind == "softplus":
        return Gaussian(mean, F.softplus(spread) + min_std)
    return Gaussian(mean, torch.exp(0.5 * bounded_log_variance(spread)).clamp(min=min_std))


def bounded_log_variance(raw: Tensor) -> Tensor:
    """Return a network's output as a log-variance within ±6, a deviation within 0.05 and 20.

    Unbounded, a first update from pictures of noise made deviations of 1e17. tanh is the identity around 0 and, unlike
    a hard clamp, lets a gradient through everywhere.
    """
    return LOG_VARIANCE_BOUND * torch.tanh(raw / LOG_VARIANCE_BOUND)


def gaussian_kl(first: Gaussian, second: Gaussian) -> Tensor:
    """Return KL(first ‖ second) in nats, summed over the last axis: (…, S) -> (…).

    Per dimension: log(σ₂/σ₁) + (σ₁² + (μ₁ − μ₂)²)/(2σ₂²) − ½.
    """
    ratio = (first.std / second.std).square()
    distance = ((first.mean - second.mean) / second.std).square()
    return 0.5 * (ratio + distance - 1.0 - ratio.log()).sum(dim=-1)
