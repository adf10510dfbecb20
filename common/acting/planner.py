"""The planner: the cross-entropy method on imagined futures (PlaNet, arXiv 1811.04551, algorithm 2).

Every step is planned from scratch, for several environments at once, independently of each other. One iteration:

    noise -> candidates (K, N, H, A) -> scores (K, N) -> the elites of each environment -> the next distribution

Shapes: K environments, N candidates, E elites, H horizon, A action width, G groups of choices, R reals.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol, Self, TypeVar

import torch
from torch import Tensor

from dreamfleet.common.acting.action_distributions import choose_groups, draw_action_noise, likeliest
from dreamfleet.common.experience.spaces import ActionSpec
from dreamfleet.common.torch_state import full_precision

PROBABILITY_FLOOR = 0.01
"""Share of uniform probability in every refitted choice, so that few candidates cannot rule one out for good."""


class Search(NamedTuple):
    """The size of a search: N `candidates` of H steps in each iteration, of which the `elites` shape the next."""

    horizon: int = 12
    candidates: int = 1000
    iterations: int = 10
    elites: int = 100


class Mappable(Protocol):
    """Tensors with environments along their first axis, such as the model's state."""

    def map(self, function: Callable[[Tensor], Tensor], /) -> Self:
        """Return it with `function` applied to every tensor."""


StateT = TypeVar("StateT", bound=Mappable)
Score = Callable[[StateT, Tensor], Tensor]
"""Returns the scores (K·N,) of futures: states (K·N, …) and the actions (K·N, H, A) taken from there."""


class BoxPlan(NamedTuple):
    """Independent Normals over plans of reals, as published: mean (K, H, A) in [−1, 1], std (K, H, A)."""

    mean: Tensor
    std: Tensor

    def candidates(self, noise: Tensor) -> Tensor:
        """Return clip(mean + std·noise, −1, 1) for noise (K, N, H, A) of N(0, 1)."""
        return torch.addcmul(self.mean[:, None], self.std[:, None], noise).clamp(-1.0, 1.0)

    def refit(self, elites: Tensor) -> BoxPlan:
        """Return mean and (biased) deviation of the elites (K, E, H, A)."""
        return BoxPlan(elites.mean(1), elites.std(1, correction=0))

    def first_action(self) -> Tensor:
        """Return the first step's mean (K, A)."""
        return self.mean[:, 0]


class ChoicePlan(NamedTuple):
    """Independent categoricals over plans of choices, which the paper does not have: it plans for boxes only.

    The refit is the elites' frequencies (the maximum-likelihood fit, as mean and deviation are for a Normal) with
    `PROBABILITY_FLOOR` mixed in. `probabilities` (K, H, A) are normalised within each group of `sizes`.
    """

    probabilities: Tensor
    sizes: tuple[int, ...]

    def candidates(self, noise: Tensor) -> Tensor:
        """Return one-hots side by side (K, N, H, A) for uniform noise (K, N, H, G)."""
        return choose_groups(self.probabilities[:, None], noise, self.sizes)

    def refit(self, elites: Tensor) -> ChoicePlan:
        """Return the frequencies of the choices of the elites (K, E, H, A), with the floor."""
        kept = (1.0 - PROBABILITY_FLOOR) * elites.mean(1)
        return ChoicePlan(kept + PROBABILITY_FLOOR * _uniform(self.sizes, kept.device), self.sizes)

    def first_action(self) -> Tensor:
        """Return the first step's most probable choices (K, A), one-hots side by side."""
        return likeliest(self.probabilities[:, 0], self.sizes)


class MixedPlan(NamedTuple):
    """Plans of choices and reals, refitted to the same elites, each kind by its own rule."""

    choices: ChoicePlan
    reals: BoxPlan

    def candidates(self, noise: Tensor) -> Tensor:
        """Return one-hots and reals side by side (K, N, H, A) for noise (K, N, H, G + R)."""
        groups = len(self.choices.sizes)
        parts = [self.choices.candidates(noise[..., :groups]), self.reals.candidates(noise[..., groups:])]
        return torch.cat(parts, dim=-1)

    def refit(self, elites: Tensor) -> MixedPlan:
        """Return both kinds' fits to the elites (K, E, H, A)."""
        width = sum(self.choices.sizes)
        return MixedPlan(self.choices.refit(elites[..., :width]), self.reals.refit(elites[..., width:]))

    def first_action(self) -> Tensor:
        """Return the first step's most probable choices and mean reals (K, A)."""
        return torch.cat([self.choices.first_action(), self.reals.first_action()], dim=-1)


Plan = BoxPlan | ChoicePlan | MixedPlan


@torch.no_grad()
def cross_entropy_method(
    score: Score[StateT], state: StateT, count: int, spec: ActionSpec, search: Search, noise: Iterable[Tensor]
) -> Plan:
    """Return the distribution over plans after the last refit; `first_action()` of it is the action to take.

    Candidates whose score is not a number become elites only when there are too few others.

    Args:
        score: for PlaNet the sum of predicted mean rewards of the states that the actions lead to through the sampled
            prior, without value or discount.
        state: where the plans begin, (K, …): for PlaNet one sample of the posterior.
        count: K.
        noise: for each iteration the candidates' noise on the state's device (`candidate_noise`), read lazily.
    """
    numbers = iter(noise)
    drawn = next(numbers)
    proposal = _first_proposal(spec, count, search.horizon, drawn.device)
    owners = torch.arange(count, device=drawn.device).repeat_interleave(search.candidates)
    states = state.map(lambda tensor: tensor[owners])  # (K·N, …)
    for iteration in range(search.iterations):
        drawn = drawn if iteration == 0 else next(numbers)
        candidates = proposal.candidates(drawn)  # (K, N, H, A)
        worth = score(states, candidates.flatten(0, 1))
        assert worth.shape == owners.shape, f"scores of shape {tuple(worth.shape)} for {len(owners)} futures"
        # topk counts NaN as the largest number: a future that overflowed would become the plan.
        worth = full_precision(worth).masked_fill(worth.isnan(), -torch.inf).unflatten(0, (count, search.candidates))
        best = worth.topk(search.elites, dim=1, sorted=False).indices  # (K, E)
        proposal = proposal.refit(candidates.gather(1, best[..., None, None].expand(-1, -1, *candidates.shape[2:])))
    return proposal


def candidate_noise(
    spec: ActionSpec, search: Search, generators: Sequence[torch.Generator], draw_each: Callable[..., Any] = map
) -> Iterator[Tensor]:
    """Yield each iteration's noise (K, N, H, G + R), uniform for choices and then of N(0, 1) for reals.

    Each environment has its own generator, so that its plan does not depend on how many others there are. `draw_each`
    maps the drawing over the generators, perhaps on several threads.
    """

    def draw(generator: torch.Generator) -> Tensor:
        return draw_action_noise(spec, search.candidates, search.horizon, generator=generator)

    for _ in range(search.iterations):
        yield torch.stack(list(draw_each(draw, generators)))


def _first_proposal(spec: ActionSpec, count: int, horizon: int, device: torch.device) -> Plan:
    mean = torch.zeros(count, horizon, spec.reals, device=device)
    reals = BoxPlan(mean, torch.ones_like(mean))
    if not spec.choices:
        return reals
    choices = ChoicePlan(_uniform(spec.choices, device).expand(count, horizon, -1), spec.choices)
    return MixedPlan(choices, reals) if spec.reals else choices


def _uniform(sizes: tuple[int, ...], device: torch.device) -> Tensor:
    """Return equal probabilities within each group, (A,)."""
    return torch.cat([torch.full((size,), 1.0 / size, device=device) for size in sizes])
