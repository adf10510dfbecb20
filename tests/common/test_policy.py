"""The random policy: its range, its chance, and how long it holds an action."""

from __future__ import annotations

import numpy as np
import pytest

from dreamfleet.common.acting.make_policy import make_policy
from dreamfleet.common.acting.policy import CHANCE, RandomPolicy
from dreamfleet.common.errors import UserError
from dreamfleet.common.experience.spaces import ActionSpec, ObservationSpec, Spaces
from dreamfleet.common.settings.schema import Settings

BOX = ActionSpec("box", (2,), (-2.0, float("-inf")), (3.0, float("inf")), (2,))


def draw(
    spec: ActionSpec, steps: int, seed: int = 0, environments: int = 1, hold: tuple[int, int] = (1, 1)
) -> np.ndarray:
    """Return the actions of this many steps without an episode's beginning, (steps, K, ...)."""
    policy = RandomPolicy(spec, environments, seed, *hold)
    return np.stack([policy.act({}, np.zeros(environments, bool)) for _ in range(steps)])


def test_a_mixed_action_is_drawn_part_by_part() -> None:
    """Whole numbers for its choices, each of them, and reals as in a box; a half-bounded one near its bound."""
    inf = float("inf")
    flat = draw(ActionSpec("mixed", (2, 3), (-2.0, 7.0, -inf), (3.0, inf, inf)), 1000)[:, 0]
    assert flat.dtype == np.float32
    assert [set(flat[:, i]) for i in range(2)] == [{0, 1}, {0, 1, 2}]
    assert -2 <= flat[:, 2].min() < -1.9
    assert flat[:, 3].min() == 7
    assert 7.9 < np.median(flat[:, 3]) < 8.1
    assert 0.85 < flat[:, 4].std() < 1.15


@pytest.mark.parametrize(
    "spec", [ActionSpec("discrete", (4,)), ActionSpec("multi_discrete", (2, 3)), BOX], ids=["discrete", "multi", "box"]
)
def test_actions_are_of_the_stored_type_and_within_their_range(spec: ActionSpec) -> None:
    """Choices take every value of their range; a bounded dimension fills its interval, an unbounded one is normal."""
    actions = draw(spec, 500, environments=2)
    assert actions.shape == (500, 2, *spec.stored_shape)
    assert actions.dtype == spec.stored_dtype
    flat = actions.reshape(1000, -1)
    if spec.kind == "box":
        assert -2 <= flat[:, 0].min() < -1.9
        assert 2.9 < flat[:, 0].max() <= 3
        assert abs(flat[:, 1].mean()) < 0.15
        assert 0.85 < flat[:, 1].std() < 1.15
    else:
        for part, size in enumerate(spec.sizes):
            assert set(flat[:, part]) == set(range(size))


def test_the_same_seed_gives_the_same_actions() -> None:
    """Chance comes from the seed alone."""
    assert np.array_equal(draw(BOX, 20, seed=4), draw(BOX, 20, seed=4))
    assert not np.array_equal(draw(BOX, 20, seed=4), draw(BOX, 20, seed=5))


def test_actions_are_held_for_a_number_of_steps_in_the_range() -> None:
    """Runs of equal actions are 2 to 5 steps long, and every length occurs; environments change at their own times."""
    actions = draw(BOX, 400, environments=2, hold=(2, 5))
    changes = [np.flatnonzero((np.diff(actions[:, k], axis=0) != 0).any(axis=1)) for k in range(2)]
    for moments in changes:
        assert set(np.diff(moments)) == {2, 3, 4, 5}
    assert not np.array_equal(changes[0], changes[1])


def test_an_episode_begins_with_a_new_action() -> None:
    """A held action ends with its episode, in that environment alone."""
    policy = RandomPolicy(BOX, 2, 0, 100, 100)
    before = policy.act({}, np.array([True, True]))
    after = policy.act({}, np.array([False, True]))
    assert np.array_equal(before[0], after[0])
    assert not np.array_equal(before[1], after[1])


def test_the_settings_make_the_policy() -> None:
    """The factory gives the hold of the settings to as many environments as asked for."""
    spaces = Spaces((ObservationSpec("vector", (1,), "float32"),), BOX)
    policy = make_policy(Settings(actors={"hold_min": 3, "hold_max": 3}), spaces, 2, 7)
    actions = np.stack([policy.act({}, np.zeros(2, bool)) for _ in range(6)])
    assert np.array_equal(actions, draw(BOX, 6, 7, 2, (3, 3)))
    policy.adopt(5, np.zeros(1, np.float32))
    assert policy.version == CHANCE


def test_weighted_choices_come_as_often_as_their_weights_say() -> None:
    """A choice of weight 0 never comes, and one of twice the weight twice as often."""
    policy = RandomPolicy(ActionSpec("discrete", (3,)), 1, seed=0, weights=(2.0, 0.0, 1.0))
    counts = np.bincount([int(policy.act({}, np.zeros(1, bool))[0]) for _ in range(3000)], minlength=3)
    assert counts[1] == 0
    assert 1.8 < counts[0] / counts[2] < 2.2


@pytest.mark.parametrize("spec", [ActionSpec("discrete", (4,)), ActionSpec("multi_discrete", (3, 2)), BOX])
def test_weights_that_do_not_fit_the_action_are_refused(spec: ActionSpec) -> None:
    """The sentence names how many were given and what the action is."""
    with pytest.raises(UserError, match=f"has 3 frequencies, but the environment's action is {spec.kind}"):
        RandomPolicy(spec, 1, seed=0, weights=(1.0, 1.0, 1.0))
