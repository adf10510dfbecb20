"""The kinds of stochastic state."""

from __future__ import annotations

import pytest
import torch

from dreamfleet.common.model.distributions import Gaussian, OneHot
from dreamfleet.common.model.rssm import Latents
from dreamfleet.common.settings.model import ModelSettings

pytestmark = pytest.mark.numeric

LEADING = (3, 4)


def settings(**changes: object) -> ModelSettings:
    """Return settings with a small state."""
    return ModelSettings.model_validate({"stochastic": 5, "classes": 3, **changes})


@pytest.mark.parametrize(("kind", "width", "parameters"), [("gaussian", 5, 10), ("categorical", 15, 15)])
def test_a_state_is_as_wide_as_it_says(kind: str, width: int, parameters: int) -> None:
    """Samples and modes have the announced width, from an output of the announced width and noise of its own shape."""
    latents = Latents(settings(latent=kind))
    assert (latents.width, latents.parameters) == (width, parameters)
    distribution = latents.distribution(torch.randn(*LEADING, parameters))
    noise = latents.draw_noise(*LEADING, device=torch.device("cpu"))
    assert distribution.sample(noise).shape == distribution.mode.shape == (*LEADING, width)


def test_a_categorical_state_is_one_hots_with_unimix() -> None:
    """Each variable has one 1; every class keeps its share of the uniform probability."""
    latents = Latents(settings(latent="categorical", unimix=0.3))
    distribution = latents.distribution(100 * torch.randn(*LEADING, 15))
    assert isinstance(distribution, OneHot)
    sample = distribution.sample(latents.draw_noise(*LEADING, device=torch.device("cpu")))
    assert torch.equal(sample.unflatten(-1, (5, 3)).sum(-1), torch.ones(*LEADING, 5))
    assert distribution.probabilities.min() >= 0.0999
    assert torch.allclose(distribution.probabilities.sum(-1), torch.ones(*LEADING, 5))


def test_noise_has_the_distribution_that_sampling_needs() -> None:
    """A Gaussian's is N(0, 1), a categorical's uniform in [0, 1)."""
    torch.manual_seed(0)
    device = torch.device("cpu")
    normal = Latents(settings()).draw_noise(5000, device=device)
    uniform = Latents(settings(latent="categorical")).draw_noise(5000, device=device)
    assert abs(normal.mean()) < 0.03
    assert abs(normal.std() - 1) < 0.03
    assert 0 <= uniform.min() < 0.01
    assert 0.99 < uniform.max() < 1


def test_a_gaussian_state_is_made_as_the_settings_say() -> None:
    """min_std and the kind of deviation reach the distribution."""
    distribution = Latents(settings(std="log_variance", min_std=0.7)).distribution(torch.zeros(2, 10) - 9)
    assert isinstance(distribution, Gaussian)
    assert torch.equal(distribution.std, torch.full((2, 5), 0.7))
