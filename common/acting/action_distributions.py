"""Distributions of actions, in the network's units: choices as one-hots side by side, reals in [−1, 1].

Shapes: A action width, G groups of choices (1 for "discrete"), R reals. Log-probabilities and entropies are summed over
an action's parts, and float32 whatever the networks compute in. All noise can be given, for repeatable actions.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dreamfleet.common.experience.spaces import ActionSpec
from dreamfleet.common.model.distributions import Gaussian, choose, straight_through, unimix_logits
from dreamfleet.common.torch_state import full_precision

BoxPolicy = Literal["tanh_normal", "bounded_normal"]
"""The distribution of reals: Dreamer V1's or V3's. Choices are always one-hots."""

MEAN_BOUND = 5.0
"""V1's means are kept within this before the tanh."""
INITIAL_STD = 5.0
"""Deviation of V1's policy where the network's output is 0, without `MIN_STD`."""
MIN_STD = 1e-4
"""Smallest deviation of V1's policy."""
_RAW_INITIAL_STD = math.log(math.expm1(INITIAL_STD))
_LARGEST_BELOW_ONE = 1.0 - 2.0**-24
"""The largest float32 whose atanh is finite."""
ENTROPY_SAMPLES = 100
"""Draws over which V1's entropy is averaged."""


class TanhNormal(NamedTuple):
    """A Normal squashed by tanh into (−1, 1) (Dreamer V1): action = tanh(mean + std·noise), mean and std (…, A)."""

    mean: Tensor
    std: Tensor

    @property
    def mode(self) -> Tensor:
        """The mean's tanh (…, A), which is the median; V1's release takes the most likely of 100 samples instead."""
        return torch.tanh(self.mean)

    def sample(self, noise: Tensor | None = None) -> Tensor:
        """Return an action (…, A) with gradients to mean and std, from noise (…, A) of N(0, 1), drawn if None."""
        noise = torch.randn_like(self.mean) if noise is None else noise
        return torch.tanh(torch.addcmul(self.mean, self.std, noise))

    def log_prob(self, action: Tensor) -> Tensor:
        """Return the log-density (…) of actions (…, A); ±1 counts as the nearest number within."""
        action = full_precision(action).clamp(-_LARGEST_BELOW_ONE, _LARGEST_BELOW_ONE)
        inner = torch.atanh(action)
        return (Gaussian(self.mean, self.std).log_prob(inner) - _log_tanh_slope(inner)).sum(-1)

    def entropy(self, noise: Tensor | None = None) -> Tensor:
        """Return an estimate of the entropy (…), which has no closed form: H(Normal) + E[log(1 − tanh²)].

        The Normal's part is exact; only the slope's mean is sampled, with noise (N, …, A) of N(0, 1), drawn with
        N = `ENTROPY_SAMPLES` if None. V1's release averages −log_prob over 100 draws instead: the same expectation with
        more variance, and an atanh of numbers that tanh has rounded to 1.
        """
        if noise is None:
            noise = torch.randn((ENTROPY_SAMPLES, *self.mean.shape), dtype=self.mean.dtype, device=self.mean.device)
        slope = _log_tanh_slope(torch.addcmul(self.mean, self.std, noise)).mean(0)
        return _normal_entropy(self.std) + slope.sum(-1)


class BoundedNormal(NamedTuple):
    """A Normal, not squashed, with mean (…, A) in (−1, 1) and std in (0.1, 1) (Dreamer V3); the environment clips."""

    mean: Tensor
    std: Tensor

    @property
    def mode(self) -> Tensor:
        """The mean (…, A)."""
        return self.mean

    def sample(self, noise: Tensor | None = None) -> Tensor:
        """Return an action (…, A) with gradients to mean and std, from noise (…, A) of N(0, 1), drawn if None."""
        noise = torch.randn_like(self.mean) if noise is None else noise
        return torch.addcmul(self.mean, self.std, noise)

    def log_prob(self, action: Tensor) -> Tensor:
        """Return the log-density (…) of actions (…, A) as sampled, before clipping."""
        return Gaussian(self.mean, self.std).log_prob(action).sum(-1)

    def entropy(self) -> Tensor:
        """Return the entropy (…) in nats."""
        return _normal_entropy(self.std)


class OneHotChoice(NamedTuple):
    """One or several choices, each a one-hot, side by side as `encode_actions` makes them.

    `logits` (…, A) are the logarithms of the probabilities, normalised within each of the G groups of `sizes`.
    """

    logits: Tensor
    sizes: tuple[int, ...]

    @property
    def probabilities(self) -> Tensor:
        """(…, A); they add up to 1 within each group."""
        return self.logits.exp()

    @property
    def mode(self) -> Tensor:
        """The likeliest choice of each group (…, A), without gradients."""
        return likeliest(self.logits, self.sizes)

    def sample(self, noise: Tensor | None = None) -> Tensor:
        """Return one-hots (…, A) with the straight-through gradient, from uniform noise (…, G), drawn if None."""
        probabilities = self.probabilities
        if noise is None:
            shape = (*probabilities.shape[:-1], len(self.sizes))
            noise = torch.rand(shape, dtype=probabilities.dtype, device=probabilities.device)
        return straight_through(choose_groups(probabilities.detach(), noise, self.sizes), probabilities)

    def log_prob(self, action: Tensor) -> Tensor:
        """Return the log-probability (…) of one-hots (…, A)."""
        return (action * self.logits).sum(-1)

    def entropy(self) -> Tensor:
        """Return the entropy (…) in nats."""
        return -(self.probabilities * self.logits).sum(-1)


class JointAction(NamedTuple):
    """Choices and reals, independent given the state: densities are multiplied."""

    choices: OneHotChoice
    reals: TanhNormal | BoundedNormal

    @property
    def mode(self) -> Tensor:
        """The likeliest choices beside the reals' mode (…, A)."""
        return torch.cat([self.choices.mode, self.reals.mode], dim=-1)

    def sample(self, noise: Tensor | None = None) -> Tensor:
        """Return an action (…, A) with both kinds' gradients, from noise (…, G + R), drawn if None."""
        groups = len(self.choices.sizes)
        of_choices, of_reals = (None, None) if noise is None else (noise[..., :groups], noise[..., groups:])
        return torch.cat([self.choices.sample(of_choices), self.reals.sample(of_reals)], dim=-1)

    def log_prob(self, action: Tensor) -> Tensor:
        """Return the log-density (…) of actions (…, A)."""
        choices, reals = action.split([self.choices.logits.shape[-1], self.reals.mean.shape[-1]], dim=-1)
        return self.choices.log_prob(choices) + self.reals.log_prob(reals)

    def entropy(self) -> Tensor:
        """Return the entropy (…) in nats, an estimate where the reals' is one."""
        return self.choices.entropy() + self.reals.entropy()


ActionDistribution = TanhNormal | BoundedNormal | OneHotChoice | JointAction
"""All have `mode`, `sample(noise)`, `log_prob(action)` and `entropy()`."""


def parameter_count(spec: ActionSpec) -> int:
    """Return how many numbers a policy outputs: a logit for each option, mean and deviation for each real."""
    return sum(spec.choices) + 2 * spec.reals


def policy_outputs(spec: ActionSpec) -> tuple[int, ...]:
    """Return the widths, in order, of the policy's output layers, together `parameter_count`.

    Each part of a Dict or Tuple, or otherwise the whole action, has one for its choices, one for its reals' means and
    one for their deviations.
    """
    parts = [re.sub(r"\[\d+\]$", "", name) for name in spec.names] or [""] * (len(spec.choices) + spec.reals)
    groups = len(spec.choices)
    choices, reals = _per_part(parts[:groups], spec.choices), _per_part(parts[groups:], (1,) * spec.reals)
    return (*choices, *reals, *reals)


def _per_part(parts: Sequence[str], sizes: Sequence[int]) -> list[int]:
    """Return the sum of the sizes of each part; those of one part are adjacent."""
    pairs = zip(parts, sizes, strict=True)
    return [sum(size for _, size in group) for _, group in itertools.groupby(pairs, key=lambda pair: pair[0])]


def action_distribution(kind: BoxPolicy, raw: Tensor, spec: ActionSpec, unimix: float = 0.0) -> ActionDistribution:
    """Return the distribution of a policy's output (…, `parameter_count(spec)`), of any floating type.

    The output is the logits of all choices, then R means, then R numbers for the deviations. `unimix` is the share of
    uniform probability mixed into each choice; V3's release mixes in none.
    """
    raw = full_precision(raw)
    if not spec.reals:
        return _choices(raw, spec.choices, unimix)
    if not spec.choices:
        return _reals(kind, raw)
    logits, normals = raw.split([sum(spec.choices), 2 * spec.reals], dim=-1)
    return JointAction(_choices(logits, spec.choices, unimix), _reals(kind, normals))


def _choices(raw: Tensor, sizes: tuple[int, ...], unimix: float) -> OneHotChoice:
    groups = [unimix_logits(group, unimix) for group in raw.split(sizes, dim=-1)]
    return OneHotChoice(torch.cat(groups, dim=-1) if len(groups) > 1 else groups[0], sizes)


def _reals(kind: BoxPolicy, raw: Tensor) -> TanhNormal | BoundedNormal:
    mean, spread = raw.chunk(2, dim=-1)
    if kind == "tanh_normal":
        mean = MEAN_BOUND * torch.tanh(mean / MEAN_BOUND)
        return TanhNormal(mean, F.softplus(spread + _RAW_INITIAL_STD) + MIN_STD)
    return BoundedNormal(torch.tanh(mean), 0.9 * torch.sigmoid(spread + 2.0) + 0.1)


def draw_action_noise(
    spec: ActionSpec, *leading: int, generator: torch.Generator | None = None, device: torch.device | str = "cpu"
) -> Tensor:
    """Return the noise of `sample` (*leading, G + R), float32: uniform for choices, then N(0, 1) for reals."""
    parts = []
    if spec.choices:
        parts.append(torch.rand(*leading, len(spec.choices), generator=generator, device=device))
    if spec.reals:
        parts.append(torch.randn(*leading, spec.reals, generator=generator, device=device))
    return torch.cat(parts, dim=-1) if len(parts) > 1 else parts[0]


def choose_groups(probabilities: Tensor, uniform: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """Return one-hots side by side (…, A), drawn with uniform numbers (…, G) in [0, 1); leading axes broadcast.

    The probabilities (…, A) are normalised within each of the G groups of `sizes`.
    """
    groups = zip(probabilities.split(sizes, dim=-1), uniform.unbind(-1), strict=True)
    chosen = [choose(group, numbers) for group, numbers in groups]
    return torch.cat(chosen, dim=-1) if len(chosen) > 1 else chosen[0]


def likeliest(weights: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """Return one-hots side by side (…, A) of the largest of each group's weights (…, A)."""
    groups = weights.split(sizes, -1)
    chosen = [torch.zeros_like(group).scatter_(-1, group.argmax(-1, keepdim=True), 1.0) for group in groups]
    return torch.cat(chosen, dim=-1)


def _log_tanh_slope(inner: Tensor) -> Tensor:
    """Return log(1 − tanh²(x)) = 2·(log 2 − x − softplus(−2x)), which is finite for every x."""
    return 2.0 * (math.log(2.0) - inner - F.softplus(-2.0 * inner))


def _normal_entropy(std: Tensor) -> Tensor:
    """Return the entropy (…) of independent Normals (…, A): Σ ½·log(2πe) + log σ."""
    return (0.5 * math.log(2.0 * math.pi * math.e) + std.log()).sum(-1)
