"""Environments stepped as a batch: what each record of a stream holds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dreamfleet.actors.environment_batch import EnvironmentBatch, EnvironmentFailedError
from dreamfleet.common.settings.environment import EnvironmentSettings

FLAGS = ("reward", "is_first", "is_last", "is_terminal", "episode")


def counting(seeds: list[int], **kwargs: Any) -> EnvironmentBatch:
    settings = EnvironmentSettings(id="counting_environment:make", kwargs=kwargs, image_size=0)
    return EnvironmentBatch(settings, seeds, actor=4)


def walk(batch: EnvironmentBatch, steps: int) -> dict[str, np.ndarray]:
    """Return this many steps of every environment, each array (steps, K, ...)."""
    action = np.zeros((len(batch), *batch.spaces.action.stored_shape), batch.spaces.action.stored_dtype)
    batch.reset()
    rows = []
    for _ in range(steps):
        rows.append(
            {name: batch.buffer.arrays[name][batch.buffer.index].copy() for name in FLAGS}
            | {name: array.copy() for name, array in batch.buffer.current.observations.items()}
        )
        batch.step(action)
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def test_the_stream_is_as_the_step_format_draws_it() -> None:
    """Three steps an episode: the last observation and the next first one are two records; the first has no reward."""
    steps = walk(counting([7], length=3, terminate_every=2), 9)
    assert steps["count"][:, 0, 2].tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 0]
    assert steps["reward"][:, 0].tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 0]
    assert steps["is_first"][:, 0].tolist() == [True, False, False, False] * 2 + [True]
    assert steps["is_last"][:, 0].tolist() == [False, False, False, True] * 2 + [False]
    assert steps["episode"][:, 0].tolist() == [0] * 4 + [1] * 4 + [2]


def test_a_true_end_and_a_cut_are_told_apart() -> None:
    """Episode 0 ends truly, episode 1 is cut short: both are last, only the first is terminal."""
    steps = walk(counting([7], length=3, terminate_every=2), 8)
    assert steps["is_last"][[3, 7], 0].tolist() == [True, True]
    assert np.flatnonzero(steps["is_terminal"][:, 0]).tolist() == [3]


def test_each_environment_is_seeded_once_with_its_own_seed() -> None:
    """The first reset gets the seed; later ones go on from the environment's generator."""
    batch = counting([11, 12, 13], length=2)
    steps = walk(batch, 6)
    assert steps["count"][0, :, 0].tolist() == [11, 12, 13]
    assert steps["count"][-1, :, 0].tolist() == [11, 12, 13]


def test_the_same_seeds_give_the_same_steps() -> None:
    """CartPole from equal seeds shows equal numbers over several episodes, and others from another seed."""

    def play(seed: int) -> np.ndarray:
        return walk(EnvironmentBatch(EnvironmentSettings(id="CartPole-v1"), [seed, seed + 1]), 40)["vector"]

    assert np.array_equal(play(5), play(5))
    assert not np.array_equal(play(5), play(6))


def test_a_failing_environment_is_named_with_its_place() -> None:
    """The sentence holds the id, the actor, the environment, the episode, the step and the cause."""
    with pytest.raises(EnvironmentFailedError) as error:
        walk(counting([1, 2], length=4, fail_at=6), 20)
    words = [
        "'counting_environment:make'",
        "actor 4",
        "environment 0",
        "episode 1",
        "step 2",
        "RuntimeError: told to fail",
    ]
    assert all(word in str(error.value) for word in words), str(error.value)
    assert isinstance(error.value.__cause__, RuntimeError)


def test_a_reward_that_is_no_number_is_refused() -> None:
    """A reward of NaN never reaches a stream."""
    with pytest.raises(EnvironmentFailedError, match=r"episode 0 at step 3: its reward is nan"):
        walk(counting([1], nan_at=3), 20)


def test_closing_closes_every_environment() -> None:
    """Nothing is left open."""
    batch = counting([1, 2])
    batch.close()
    assert [env.unwrapped.closed for env in batch.environments] == [True, True]  # type: ignore[attr-defined]
