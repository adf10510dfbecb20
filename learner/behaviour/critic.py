"""The critic: what lies ahead of a state, its slow copy, and its losses.

Shapes: H horizon, T time, F feature. Imagined sequences have the states 0 … H along the last axis (see `returns.py`).
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from dreamfleet.common.model.distributions import BINS, Gaussian, TwoHot, symexp_bins
from dreamfleet.common.model.heads import Head
from dreamfleet.common.settings.schema import Settings

Value = Gaussian | TwoHot
"""A critic's output: V1 and V2's Normal of unit deviation, V3's bins."""


class Critic(Head):
    """The value of a state: the discounted rewards after it, under the policy that is being learnt.

    Args:
        settings: the run's: `behaviour` says layers, units and distribution, `model` the kind of layers.
    """

    bins: Tensor

    def __init__(self, feature: int, settings: Settings) -> None:
        behaviour = settings.behaviour
        self._has_bins = behaviour.critic_distribution == "two_hot"
        outputs, scale = (BINS if self._has_bins else 1), behaviour.critic_output_scale
        super().__init__(feature, outputs, behaviour.critic_layers, behaviour.units, settings.model, scale)
        self.register_buffer("bins", symexp_bins() if self._has_bins else torch.empty(0), persistent=False)

    def forward(self, feature: Tensor) -> Value:
        """Return the value's distribution (…), float32, for features (…, F)."""
        raw = self.raw(feature)
        if self._has_bins:
            return TwoHot(raw, self.bins)
        mean = raw[..., 0]
        return Gaussian(mean, torch.ones_like(mean))

    def slow_copy(self) -> Critic:
        """Return a copy that no gradient changes."""
        return copy.deepcopy(self).requires_grad_(requires_grad=False)

    @torch.no_grad()
    def approach(self, other: Critic, share: float, is_due: Tensor) -> None:
        """Where `is_due`, a flag on the device, move every parameter a share of the way to another critic's."""
        own: list[Tensor] = [*self.parameters()]
        others: list[Tensor] = [*other.parameters()]
        if share == 1.0:
            for parameter, wanted in zip(own, others, strict=True):
                parameter.copy_(torch.where(is_due, wanted, parameter))
            return
        steps = list(torch._foreach_sub(others, own))
        torch._foreach_mul_(steps, is_due.to(own[0].dtype) * share)
        torch._foreach_add_(own, steps)


def value_loss(value: Value, returns: Tensor, weight: Tensor, slow: Tensor | None = None) -> Tensor:
    """Return −mean(sg(weight)·(log p(sg(R)) + log p(sg(slow)))), a scalar.

    With a Normal of unit deviation this is V1's and V2's loss, its constant included; with bins V3's cross-entropy,
    whose second part keeps the critic near its slow copy. The mean is over the states 0 … H − 1 and everything before
    that axis: the lengths are fixed, so it is the mean over the horizon, then over B and T.

    Args:
        value: the critic in the states 0 … H, (…, H + 1).
        returns: R_0 … R_{H−1}, (…, H).
        weight: (…, H).
        slow: means of the slow critic in the states 0 … H, (…, H + 1); left out, the second part is.
    """
    predicted = value.without_last()
    log_prob = predicted.log_prob(returns.detach())
    if slow is not None:
        log_prob = log_prob + predicted.log_prob(slow[..., :-1].detach())
    return -(weight.detach() * log_prob).mean()


def replay_value_loss(value: Value, returns: Tensor, is_last: Tensor, slow: Tensor | None = None) -> Tensor:
    """Return the value loss of replayed sequences, a scalar: `value_loss` with the weight 1 − is_last (V3).

    The mean is over all steps, those without weight included. The gradient reaches whatever the critic read.

    Args:
        value: the critic in the states 0 … T − 1, (…, T).
        returns: of `replay_returns`, (…, T − 1).
        is_last: (…, T).
        slow: means of the slow critic, (…, T).
    """
    return value_loss(value, returns, 1.0 - is_last[..., :-1].to(returns.dtype), slow)
