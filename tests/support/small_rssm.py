"""A small RSSM of every kind, with sequences for it."""

from __future__ import annotations

import torch
from rounding import agree
from torch import Tensor, nn

from dreamfleet.common.model.distributions import StateDistribution
from dreamfleet.common.model.loop_layers import JointLinear
from dreamfleet.common.model.rssm import RSSM, Rollout, State
from dreamfleet.common.settings.model import ModelSettings

B, T, A, E, D, S = 3, 7, 4, 9, 10, 5

GAUSSIAN_GRU = [{}, {"gru_layers": 3}, {"prior_sees_action": True, "std": "log_variance"}]

MODERN = {"norm": "rms", "activation": "silu", "prior_layers": 2, "initialisation": "truncated_normal", "blocks": 5}

KINDS = [
    *GAUSSIAN_GRU,
    {"recurrence": "norm_gru", "gru_layers": 2, "activation": "elu"},
    {"recurrence": "block_gru", **MODERN},
    {"latent": "categorical", "norm": "layer"},
    {"latent": "categorical", "recurrence": "norm_gru", "unimix": 0.0, "prior_sees_action": True},
    {"latent": "categorical", "recurrence": "block_gru", **MODERN},
]


def make(**changes: object) -> RSSM:
    """Return small dynamics, the same at every call."""
    torch.manual_seed(1)
    sizes = {"deterministic": D, "stochastic": S, "classes": 3, "hidden": 12}
    return RSSM(A, E, ModelSettings.model_validate({**sizes, **changes}))


class Inputs:
    """Sequences with an episode that begins at t = 4 of the second."""

    def __init__(self, dynamics: RSSM) -> None:
        torch.manual_seed(2)
        self.embedding = torch.randn(B, T, E)
        self.actions = torch.randn(B, T, A)
        self.noise = dynamics.latents.draw_noise(B, T, device=torch.device("cpu"))
        self.is_first = torch.zeros(B, T, dtype=torch.bool)
        self.is_first[:, 0] = True
        self.is_first[1, 4] = True

    def observe(self, dynamics: RSSM) -> Rollout:
        """Return the rollout over the sequences."""
        return dynamics.observe(self.embedding, self.actions, self.is_first, noise=self.noise)


def make_with_inputs(**changes: object) -> tuple[RSSM, Inputs]:
    """Return small dynamics and sequences for them."""
    dynamics = make(**changes)
    return dynamics, Inputs(dynamics)


def parameters(distribution: StateDistribution) -> Tensor:
    """Return the numbers (…) of one time step after the other that describe a distribution (B, T, …)."""
    return torch.cat([part.flatten(2) for part in distribution], -1)


def joint(layer: JointLinear, first: Tensor, second: Tensor) -> Tensor:
    """Return what one linear layer over both inputs side by side gives."""
    assert layer.second is not None
    weight = torch.cat([layer.first.weight, layer.second.weight], 1)
    return nn.functional.linear(torch.cat([first, second], -1), weight, layer.first.bias)


def same(one: State, other: State) -> bool:
    """Whether two states agree but for rounding."""
    return all(agree(x, y) for x, y in zip(one, other, strict=True))
