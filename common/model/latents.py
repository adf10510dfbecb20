"""The kinds of stochastic state z: what the network gives out for one, and how it is drawn.

Shapes: S width of z.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from dreamfleet.common.model.distributions import StateDistribution, state_gaussian, state_one_hot
from dreamfleet.common.settings.model import ModelSettings


class Latents(Protocol):
    """A kind of stochastic state.

    Attributes:
        width: S, of z.
        parameters: numbers that describe its distribution.
    """

    width: int
    parameters: int

    def distribution(self, raw: Tensor) -> StateDistribution:
        """Return the distribution that a network's output (…, parameters) stands for, float32."""
        ...

    def draw_noise(
        self, *leading: int, device: torch.device | str = "cpu", generator: torch.Generator | None = None
    ) -> Tensor:
        """Return (*leading, …) random numbers with which the distribution's `sample` draws a z."""
        ...


class GaussianLatents:
    """Independent Normals (PlaNet, Dreamer V1)."""

    def __init__(self, settings: ModelSettings) -> None:
        self.width = settings.stochastic
        self.parameters = 2 * settings.stochastic
        self._settings = settings

    def distribution(self, raw: Tensor) -> StateDistribution:
        """Return Normals (…, S) for (…, 2·S); see `state_gaussian`."""
        return state_gaussian(raw, self._settings.std, self._settings.min_std)

    def draw_noise(
        self, *leading: int, device: torch.device | str = "cpu", generator: torch.Generator | None = None
    ) -> Tensor:
        """Return (*leading, S) of N(0, 1)."""
        return torch.randn(*leading, self.width, device=device, generator=generator)


class CategoricalLatents:
    """Independent categorical variables, their one-hots side by side (Dreamer V2, V3)."""

    def __init__(self, settings: ModelSettings) -> None:
        self.width = self.parameters = settings.stochastic * settings.classes
        self._settings = settings

    def distribution(self, raw: Tensor) -> StateDistribution:
        """Return one-hots (…, V variables, C classes) for (…, V·C); see `state_one_hot`."""
        return state_one_hot(raw, self._settings.classes, self._settings.unimix)

    def draw_noise(
        self, *leading: int, device: torch.device | str = "cpu", generator: torch.Generator | None = None
    ) -> Tensor:
        """Return (*leading, V), uniform in [0, 1)."""
        return torch.rand(*leading, self._settings.stochastic, device=device, generator=generator)


def make_latents(settings: ModelSettings) -> Latents:
    """Return the kind of stochastic state that the settings name."""
    return GaussianLatents(settings) if settings.latent == "gaussian" else CategoricalLatents(settings)
