"""The critic: what lies ahead of a state, and its slow copy.

Shapes: F feature.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from dreamfleet.common.model.distributions import BINS, Gaussian, TwoHot, symexp_bins
from dreamfleet.common.model.heads import Head
from dreamfleet.common.settings.schema import Settings
from dreamfleet.learner.behaviour.actor_critic_losses import Value


class Critic(Head):
    """The value of a state: the discounted rewards after it, under the policy that is being learnt.

    Args:
        feature: F.
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
    def approach(self, other: Critic, share: float) -> None:
        """Move every parameter a share of the way to another critic's; with 1 this is a copy of it."""
        torch._foreach_lerp_(list(self.parameters()), list(other.parameters()), share)
