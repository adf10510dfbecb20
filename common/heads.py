"""What is predicted from the model's state beside the observation: the reward and whether the episode goes on."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dreamfleet.common.distributions import Bernoulli, Gaussian, bounded_log_variance
from dreamfleet.common.layers import dense_stack
from dreamfleet.common.settings import ModelSettings


class RewardHead(nn.Module):
    """The reward received on arriving at a state.

    Args:
        feature: width of the model's feature.
        settings: reward_layers, reward_units and reward_distribution: `unit_normal` (PlaNet) has deviation 1, `normal`
            (the seed) learns its log-variance, softly kept within `LOG_VARIANCE_BOUND`.
    """

    def __init__(self, feature: int, settings: ModelSettings) -> None:
        super().__init__()
        self._learned_variance = settings.reward_distribution == "normal"
        self.hidden = dense_stack(feature, settings.reward_units, settings.reward_layers, settings.activation)
        self.output = nn.Linear(settings.reward_units, 2 if self._learned_variance else 1)

    def forward(self, feature: Tensor) -> Gaussian:
        """Return the reward's distribution, mean and std (…), float32, for features (…, D + S)."""
        raw = self.output(self.hidden(feature)).float()
        mean = raw[..., 0]
        if not self._learned_variance:
            return Gaussian(mean, torch.ones_like(mean))
        return Gaussian(mean, torch.exp(0.5 * bounded_log_variance(raw[..., 1])))


class ContinueHead(nn.Module):
    """Whether the episode goes on after a state, which it does not where `is_terminal`; as big as the reward model."""

    def __init__(self, feature: int, settings: ModelSettings) -> None:
        super().__init__()
        self.hidden = dense_stack(feature, settings.reward_units, settings.reward_layers, settings.activation)
        self.output = nn.Linear(settings.reward_units, 1)

    def forward(self, feature: Tensor) -> Bernoulli:
        """Return the distribution of 1 - is_terminal, logits (…), float32, for features (…, D + S)."""
        return Bernoulli(self.output(self.hidden(feature)).float()[..., 0])
