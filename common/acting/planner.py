"""The planner: the cross-entropy method on imagined futures (PlaNet, arXiv 1811.04551, algorithm 2).

Every step is planned from scratch, for several environments at once.

Shapes: K environments, N candidates, H horizon, A action width, G groups of choices, R reals, F futures of the K·N
that are scored together.

One iteration, in the order data passes: noise -> candidates (K, N, H, A) -> scores (K, N) -> the best of each
environment -> the next iteration's distribution. Nothing of one environment reaches another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol, Self, TypeVar

import torch
from torch import Tensor

from dreamfleet.common.acting.action_distributions import choose_groups, draw_action_noise, likeliest
from dreamfleet.common.experience.spaces import ActionSpec
from dreamfleet.common.torch_state import full_precision

PROBABILITY_FLOOR = 0.01
"""Share of uniform probability that every refitted choice keeps, so that none is lost for good by few candidates."""


class Search(NamedTuple):
    """How much is searched.

    Attributes:
        horizon: H, steps of a plan.
        candidates: N, plans tried per iteration.
        iterations: refits, at least 1.
        elites: candidates that the distribution is refitted to, at most N.
        rows: most futures that are scored in one call, which bounds the memory; 0 for all K·N.
    """

    horizon: int = 12
    candidates: int = 1000
    iterations: int = 10
    elites: int = 100
    rows: int = 0


class Mappable(Protocol):
    """Anything made of tensors with environments along their first axis, such as the model's state."""

    def map(self, function: Callable[[Tensor], Tensor], /) -> Self:
        """Return it with `function` applied to every tensor."""
        ...


StateT = TypeVar("StateT", bound=Mappable)
Score = Callable[[StateT, Tensor], Tensor]
"""What futures are worth, (F,), from states (F, …) and the actions (F, H, A) taken from them on."""


class BoxPlan(NamedTuple):
    """Independent Normals over a box's plans, as published.

    Attributes:
        mean: (K, H, A), in [−1, 1].
        std: (K, H, A), the biased deviation of the elites.
    """

    mean: Tensor
    std: Tensor

    def candidates(self, noise: Tensor) -> Tensor:
        """Return clip(mean + std·noise, −1, 1) for noise (K, N, H, A) of N(0, 1)."""
        return torch.addcmul(self.mean[:, None], self.std[:, None], noise).clamp(-1.0, 1.0)

    def refit(self, elites: Tensor) -> BoxPlan:
        """Return mean and deviation of the elites (K, E, H, A)."""
        return BoxPlan(elites.mean(1), elites.std(1, correction=0))

    def first_action(self) -> Tensor:
        """Return the first step's mean (K, A)."""
        return self.mean[:, 0]


class ChoicePlan(NamedTuple):
    """Independent categoricals over the plans of choices; this is not in the paper, which plans for boxes only.

    The same search with the distribution that fits: candidates are sampled, the probabilities become the elites'
    frequencies (the maximum-likelihood fit, as mean and deviation are for a Normal) with `PROBABILITY_FLOOR` mixed in,
    and the most probable first choice is taken.

    Attributes:
        probabilities: (K, H, A), normalised within each group.
        sizes: of the groups.
    """

    probabilities: Tensor
    sizes: tuple[int, ...]

    def candidates(self, noise: Tensor) -> Tensor:
        """Return one-hots side by side (K, N, H, A) for uniform noise (K, N, H, G)."""
        return choose_groups(self.probabilities[:, None], noise, self.sizes)

    def refit(self, elites: Tensor) -> ChoicePlan:
        """Return how often the elites (K, E, H, A) made each choice, with the floor."""
        kept = (1.0 - PROBABILITY_FLOOR) * elites.mean(1)
        return ChoicePlan(kept + PROBABILITY_FLOOR * _uniform(self.sizes, kept.device), self.sizes)

    def first_action(self) -> Tensor:
        """Return the first step's most probable choices (K, A), one-hots side by side."""
        return likeliest(self.probabilities[:, 0], self.sizes)


class MixedPlan(NamedTuple):
    """Plans of choices and reals, refitted to the same elites: each kind by its own rule.

    Attributes:
        choices: of the groups.
        reals: of what comes after them.
    """

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
    """Return the distribution over plans after the last refit; its `first_action()` is what to do now.

    A candidate whose score is not a number is never among the elites before one whose score is.

    Args:
        score: what futures are worth: for PlaNet the sum of predicted mean rewards of the states that the actions lead
            to through the sampled prior, without value or discount.
        state: where the plans begin, (K, …): for PlaNet one sample of the posterior.
        count: K.
        spec: what an action is.
        search: how much is searched.
        noise: for each iteration the candidates' noise on the state's device, (K, N, H, G + R), uniform for choices and
            then of N(0, 1) for reals (`candidate_noise`); taken one by one, so it may be drawn when asked for.
    """
    numbers = iter(noise)
    drawn = next(numbers)
    proposal = _first_proposal(spec, count, search.horizon, drawn.device)
    owners = torch.arange(count, device=drawn.device).repeat_interleave(search.candidates)
    pieces = owners.split(search.rows or len(owners))
    states = [state.map(lambda part, rows=rows: part[rows]) for rows in pieces]  # type: ignore[misc]
    for iteration in range(search.iterations):
        drawn = drawn if iteration == 0 else next(numbers)
        candidates = proposal.candidates(drawn)  # (K, N, H, A)
        futures = candidates.flatten(0, 1).split([len(rows) for rows in pieces])
        worth = torch.cat([score(start, actions) for start, actions in zip(states, futures, strict=True)])
        assert worth.shape == owners.shape, f"scores of shape {tuple(worth.shape)} for {len(owners)} futures"
        # topk takes a NaN for the largest number: a future that overflowed would be the plan.
        worth = full_precision(worth).masked_fill(worth.isnan(), -torch.inf).unflatten(0, (count, search.candidates))
        best = worth.topk(search.elites, dim=1, sorted=False).indices  # (K, E)
        proposal = proposal.refit(candidates.gather(1, best[..., None, None].expand(-1, -1, *candidates.shape[2:])))
    return proposal


def candidate_noise(
    spec: ActionSpec, search: Search, generators: Sequence[torch.Generator], device: torch.device | str = "cpu"
) -> Iterator[Tensor]:
    """Give the noise of every iteration, for each environment from its own generator.

    An environment's plan then depends on its own generator alone, not on how many others are planned for beside it.

    Args:
        spec: what an action is.
        search: how much is searched.
        generators: K, on the device.
        device: of the noise.

    Yields:
        (K, N, H, G + R), uniform for choices and then of N(0, 1) for reals.
    """
    shape = (search.candidates, search.horizon)
    for _ in range(search.iterations):
        yield torch.stack([draw_action_noise(spec, *shape, generator=own, device=device) for own in generators])


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
