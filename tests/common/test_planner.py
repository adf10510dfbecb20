"""The planner on problems whose best plan is known, and against one iteration worked out with loops."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
import torch
from rounding import agree
from torch import Tensor

from dreamfleet.common.acting.planner import (
    PROBABILITY_FLOOR,
    BoxPlan,
    ChoicePlan,
    Search,
    candidate_noise,
    cross_entropy_method,
)
from dreamfleet.common.experience.spaces import ActionSpec

pytestmark = pytest.mark.numeric

BOX = ActionSpec("box", (2,), (-1.0, -1.0), (1.0, 1.0), (2,))
DISCRETE = ActionSpec("discrete", (4,))
MULTI = ActionSpec("multi_discrete", (2, 3))
MIXED = ActionSpec("mixed", (2, 3), (-1.0, -1.0), (1.0, 1.0))


class Position(NamedTuple):
    """A state of one tensor, (K, A)."""

    position: Tensor

    def map(self, function: Callable[[Tensor], Tensor], /) -> Position:
        return Position(function(self.position))


def generators(*seeds: int) -> list[torch.Generator]:
    """Return one generator for each environment."""
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def approach(state: Position, actions: Tensor) -> Tensor:
    """Score a point that actions move, four tenths at a time, by its squared distance to the origin after each step."""
    assert not torch.is_grad_enabled()
    path = state.position[:, None] + 0.4 * actions.cumsum(1)
    return -path.square().sum((1, 2))


def match(state: Position, actions: Tensor) -> Tensor:
    """Score choices by how often they are the state's own."""
    return (actions * state.position[:, None]).sum((1, 2))


def test_a_linear_quadratic_plan_is_the_best_one() -> None:
    """The first action moves as far as the bounds allow, or exactly to the origin where that is nearer."""
    start = Position(torch.tensor([[0.2, -0.3], [-5.0, 5.0], [0.0, 0.1]]))
    search = Search(horizon=3, candidates=500, iterations=12, elites=40)
    found = cross_entropy_method(approach, start, 3, BOX, search, candidate_noise(BOX, search, generators(0, 1, 2)))
    expected = torch.tensor([[-0.5, 0.75], [1.0, -1.0], [0.0, -0.25]])
    assert found.first_action().shape == (3, 2)
    assert torch.allclose(found.first_action(), expected, atol=0.03)


@pytest.mark.parametrize("spec", [DISCRETE, MULTI])
def test_a_plan_of_choices_is_the_best_one(spec: ActionSpec) -> None:
    """Each environment finds its own choices in every group, and answers with one-hots."""
    rows = [[0.0, 1.0, 0.0, 0.0, 1.0], [1.0, 0.0, 1.0, 0.0, 0.0]] if spec is MULTI else [[0, 0, 1.0, 0], [0, 1.0, 0, 0]]
    wanted = torch.tensor(rows)
    search = Search(horizon=4, candidates=200, iterations=6, elites=20)
    found = cross_entropy_method(
        match, Position(wanted), 2, spec, search, candidate_noise(spec, search, generators(0, 1))
    )
    assert torch.equal(found.first_action(), wanted)
    assert isinstance(found, ChoicePlan)
    assert found.probabilities[wanted[:, None].expand(2, 4, -1) > 0].min() > 0.9


def test_a_mixed_plan_is_the_best_of_both() -> None:
    """Choices that decide which way the reals have to go, and are worth something themselves."""

    def switch(state: Position, actions: Tensor) -> Tensor:
        chosen, reals = actions[..., :5], actions[..., 5:]
        wanted = 0.5 * chosen[..., :1] - 0.5 * chosen[..., 1:2]  # the first choice says where to
        return match(state, chosen) - (reals - wanted).square().sum((1, 2))

    rows = torch.tensor([[0.0, 1.0, 0.0, 0.0, 1.0], [1.0, 0.0, 1.0, 0.0, 0.0]])
    search = Search(horizon=3, candidates=400, iterations=12, elites=40)
    found = cross_entropy_method(
        switch, Position(rows), 2, MIXED, search, candidate_noise(MIXED, search, generators(0, 1))
    )
    assert torch.equal(found.first_action()[:, :5], rows)
    expected = torch.tensor([[-0.5, -0.5], [0.5, 0.5]])
    assert torch.allclose(found.first_action()[:, 5:], expected, atol=0.05)


def test_choices_that_only_pay_together_are_found() -> None:
    """A reward for one sequence of choices alone, with a hint for each right step: order in time matters."""
    sequence = torch.eye(4)[[3, 0, 2]]

    def follow(_state: Position, actions: Tensor) -> Tensor:
        right = (actions * sequence).sum(-1)
        return right.cumprod(1).sum(1)

    search = Search(horizon=3, candidates=300, iterations=6, elites=30)
    state = Position(torch.zeros(1, 1))
    found = cross_entropy_method(follow, state, 1, DISCRETE, search, candidate_noise(DISCRETE, search, generators(5)))
    assert isinstance(found, ChoicePlan)
    assert found.probabilities[0].argmax(-1).tolist() == [3, 0, 2]
    assert found.first_action().tolist() == [[0.0, 0.0, 0.0, 1.0]]


def test_a_box_iteration_is_clip_score_and_refit() -> None:
    """Two iterations recomputed with loops in float64, from the same noise."""
    search = Search(horizon=2, candidates=6, iterations=2, elites=3)
    noise = [torch.randn(2, 6, 2, 2, generator=torch.Generator().manual_seed(seed)) * 2 for seed in (0, 1)]
    start = torch.tensor([[0.3, 0.1], [-0.6, 0.9]])
    found = cross_entropy_method(approach, Position(start), 2, BOX, search, noise)
    assert isinstance(found, BoxPlan)
    for k in range(2):
        mean, std = np.zeros((2, 2)), np.ones((2, 2))
        for numbers in noise:
            tried = [np.clip(mean + std * numbers[k, n].double().numpy(), -1, 1) for n in range(6)]
            worth = [-((start[k].double().numpy() + 0.4 * np.cumsum(t, 0)) ** 2).sum() for t in tried]
            best = [tried[n] for n in sorted(range(6), key=lambda n: -worth[n])[:3]]
            mean = sum(best) / 3
            std = np.sqrt(sum((b - mean) ** 2 for b in best) / 3)
        assert agree(found.mean[k].numpy(), mean)
        assert agree(found.std[k].numpy(), std)
        assert agree(found.first_action()[k].numpy(), mean[0])


def test_choices_are_refitted_to_the_elites_frequencies_with_a_floor() -> None:
    """By hand from given uniform numbers: equal quarters first, then what the elites chose."""
    search = Search(horizon=1, candidates=4, iterations=1, elites=2)
    noise = torch.tensor([0.1, 0.3, 0.6, 0.9]).reshape(1, 4, 1, 1)  # one candidate of each choice
    found = cross_entropy_method(match, Position(torch.tensor([[0.0, 3.0, 2.0, 1.0]])), 1, DISCRETE, search, [noise])
    assert isinstance(found, ChoicePlan)
    kept, floor = (1 - PROBABILITY_FLOOR) / 2, PROBABILITY_FLOOR / 4
    assert found.probabilities[0, 0].tolist() == pytest.approx([floor, kept + floor, kept + floor, floor])


@pytest.mark.parametrize("spec", [BOX, MULTI, MIXED])
def test_planning_for_many_is_planning_for_each(spec: ActionSpec) -> None:
    """With its own generator an environment's plan does not depend on those beside it."""
    start = torch.rand(3, spec.width, generator=torch.Generator().manual_seed(0)) - 0.5
    score = approach if spec.kind == "box" else match
    search = Search(horizon=3, candidates=30, iterations=3, elites=5)
    together = cross_entropy_method(
        score, Position(start), 3, spec, search, candidate_noise(spec, search, generators(7, 8, 9))
    )
    for k, seed in enumerate((7, 8, 9)):
        alone = cross_entropy_method(
            score, Position(start[k : k + 1]), 1, spec, search, candidate_noise(spec, search, generators(seed))
        )
        if spec.kind != "mixed":  # whose parts are plans themselves
            assert agree(together[0][k], alone[0][0])
        assert agree(together.first_action()[k], alone.first_action()[0])


def test_equal_seeds_give_equal_plans_and_others_do_not() -> None:
    """Nothing comes from torch's global generator."""
    search = Search(horizon=3, candidates=20, iterations=2, elites=4)
    start = Position(torch.tensor([[0.2, 0.4]]))
    before = torch.random.get_rng_state()
    plans = [
        cross_entropy_method(approach, start, 1, BOX, search, candidate_noise(BOX, search, generators(seed)))
        for seed in (1, 1, 2)
    ]
    assert torch.equal(plans[0][0], plans[1][0])
    assert not torch.equal(plans[0][0], plans[2][0])
    assert torch.equal(before, torch.random.get_rng_state())


def test_futures_that_are_not_numbers_are_never_the_plan() -> None:
    """A model that overflows for some actions does not decide what is done."""

    def breaks(state: Position, actions: Tensor) -> Tensor:
        return torch.where(actions[:, 0, 0] > 0.1, torch.nan, approach(state, actions))

    search = Search(horizon=2, candidates=200, iterations=5, elites=20)
    state = Position(torch.tensor([[-2.0, 0.0]]))
    found = cross_entropy_method(breaks, state, 1, BOX, search, candidate_noise(BOX, search, generators(0)))
    assert found.first_action()[0, 0].item() == pytest.approx(0.1, abs=0.05)
