"""Predictions from the model's state beside the observation: its embedding, the reward, whether the episode continues.

Shapes: E embedding, F feature (D + S).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dreamfleet.common.model.distributions import BINS, Bernoulli, Gaussian, TwoHot, bounded_log_variance, symexp_bins
from dreamfleet.common.model.layers import ForkedLinear, dense_stack, initialise
from dreamfleet.common.settings.model import ModelSettings
from dreamfleet.common.torch_state import full_precision

REWARD_OUTPUTS = {"unit_normal": 1, "normal": 2, "two_hot": BINS}
"""How many numbers describe a reward's distribution."""


class Head(nn.Module):
    """Hidden `layers` of `units` with norm and activation, then a linear layer, or one for each of several `outputs`.

    `output_scale` is a factor on the last layer's initial weights and biases.
    """

    def __init__(
        self,
        feature: int,
        outputs: int | Sequence[int],
        layers: int,
        units: int,
        settings: ModelSettings,
        output_scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.hidden = dense_stack(feature, units, layers, settings)
        self.output = ForkedLinear(units, (outputs,) if isinstance(outputs, int) else outputs)
        initialise(self, settings.initialisation)
        if output_scale != 1.0:
            with torch.no_grad():
                self.output.weight.mul_(output_scale)
                self.output.bias.mul_(output_scale)

    def raw(self, feature: Tensor) -> Tensor:
        """Return the last layer's numbers (…, outputs), float32, for features (…, F)."""
        numbers: Tensor = self.output(self.hidden(feature))
        return full_precision(numbers)


class RewardHead(Head):
    """The reward received on arriving at a state.

    `unit_normal` (PlaNet) has deviation 1, `normal` (the article) a learned log-variance, softly kept within
    `LOG_VARIANCE_BOUND`, `two_hot` (V3) has bins.
    """

    bins: Tensor

    def __init__(self, feature: int, settings: ModelSettings) -> None:
        self._kind = settings.reward_distribution
        outputs, scale = REWARD_OUTPUTS[self._kind], settings.reward_output_scale
        super().__init__(feature, outputs, settings.reward_layers, settings.reward_units, settings, scale)
        self.register_buffer("bins", symexp_bins() if self._kind == "two_hot" else torch.empty(0), persistent=False)

    def forward(self, feature: Tensor) -> Gaussian | TwoHot:
        """Return the reward's distribution (…), float32, for features (…, F)."""
        raw = self.raw(feature)
        if self._kind == "two_hot":
            return TwoHot(raw, self.bins)
        mean = raw[..., 0]
        if self._kind == "unit_normal":
            return Gaussian(mean, torch.ones_like(mean))
        return Gaussian(mean, torch.exp(0.5 * bounded_log_variance(raw[..., 1])))


class Projector(nn.Module):
    """The embedding that a state lets expect: one linear layer without bias, as R2-Dreamer's (arXiv 2603.18202)."""

    def __init__(self, feature: int, embedding: int, settings: ModelSettings) -> None:
        super().__init__()
        self.output = nn.Linear(feature, embedding, bias=False)
        initialise(self, settings.initialisation)

    def forward(self, feature: Tensor) -> Tensor:
        """Return embeddings (…, E), float32, for features (…, F)."""
        return full_precision(self.output(feature))


class ContinueHead(Head):
    """Whether the episode continues after a state: it does not where `is_terminal`."""

    def __init__(self, feature: int, settings: ModelSettings) -> None:
        super().__init__(feature, 1, settings.continue_layers, settings.reward_units, settings)

    def forward(self, feature: Tensor) -> Bernoulli:
        """Return the distribution of continuing, float32 logits (…), for features (…, F)."""
        return Bernoulli(self.raw(feature)[..., 0])
