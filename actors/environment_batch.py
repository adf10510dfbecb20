"""Several environments stepped as a batch, each giving the stream of steps that common/steps.py draws."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from dreamfleet.actors.actions import action_converter
from dreamfleet.actors.environments import describe_spaces, make_environment
from dreamfleet.common.settings import EnvironmentSettings


class EnvironmentFailedError(RuntimeError):
    """An environment raised an error, or gave a number that is none; the sentence says which one and where."""


class EnvironmentBatch:
    """K environments and the step each of them is at.

    The arrays stay the same objects for the batch's life and are overwritten as it steps: copy what you keep.

    Args:
        settings: which environment, and how it is wrapped.
        seeds: for each of the K environments the seed of its first reset; later episodes go on from its generator.
        actor: number of the actor they belong to, for messages.

    Attributes:
        spaces: what they show and take.
        observations: the current observations, by name (K, *shape).
        reward: the reward received on arriving at them (K,) float32.
        is_first: whether they begin an episode (K,); likewise `is_last` ends one, and `is_terminal` ends one truly.
        episode: number of the current episode of each environment (K,) int32.

    Raises:
        UserError: if an environment cannot be made.
    """

    def __init__(self, settings: EnvironmentSettings, seeds: Sequence[int], actor: int = 0) -> None:
        self._settings, self._actor = settings, actor
        self._seeds = list(seeds)
        self.environments = [make_environment(settings) for _ in self._seeds]
        self.spaces = describe_spaces(self.environments[0])
        self._to_environment = action_converter(self.environments[0].action_space)
        self.observations = {
            spec.name: np.zeros((len(self), *spec.shape), spec.dtype) for spec in self.spaces.observations
        }
        self.reward = np.zeros(len(self), np.float32)
        self.is_first = np.zeros(len(self), bool)
        self.is_last = np.zeros(len(self), bool)
        self.is_terminal = np.zeros(len(self), bool)
        self.episode = np.full(len(self), -1, np.int32)
        self._elapsed = [0] * len(self)

    def __len__(self) -> int:
        """Return K."""
        return len(self._seeds)

    def reset(self) -> None:
        """Begin the first episode of every environment, from its seed.

        Raises:
            EnvironmentFailedError: if one of them raises an error.
        """
        for k, seed in enumerate(self._seeds):
            self._begin(k, seed)

    def step(self, actions: np.ndarray) -> None:
        """Bring every environment to its next step: one at its episode's last begins the next, its action unused.

        Args:
            actions: stored actions, (K, *stored_shape).

        Raises:
            EnvironmentFailedError: if one of them raises an error or gives a reward that is not finite.
        """
        for k in range(len(self)):
            if self.is_last[k]:
                self._begin(k, None)
            else:
                self._advance(k, actions[k])

    def close(self) -> None:
        """Close all environments."""
        for env in self.environments:
            env.close()

    def failure(self, k: int, cause: str) -> EnvironmentFailedError:
        """Return the error that says where environment `k` is and what befell it."""
        return EnvironmentFailedError(
            f"environment '{self._settings.id}' (actor {self._actor}, environment {k}) failed in episode "
            f"{max(self.episode[k], 0)} at step {self._elapsed[k]}: {cause}"
        )

    def _begin(self, k: int, seed: int | None) -> None:
        self.episode[k] += 1
        self._elapsed[k] = 0
        try:
            observation, _ = self.environments[k].reset(seed=seed)
            self._show(k, observation)
        except Exception as error:
            raise self.failure(k, f"{type(error).__name__} at its reset: {error}") from error
        self.reward[k], self.is_first[k], self.is_last[k], self.is_terminal[k] = 0.0, True, False, False

    def _advance(self, k: int, action: np.ndarray) -> None:
        self._elapsed[k] += 1
        try:
            observation, reward, terminated, truncated, _ = self.environments[k].step(self._to_environment(action))
            reward = float(reward)
            self._show(k, observation)
        except Exception as error:
            raise self.failure(k, f"{type(error).__name__}: {error}") from error
        if not math.isfinite(reward):
            raise self.failure(k, f"its reward is {reward}")
        self.reward[k], self.is_first[k] = reward, False
        self.is_last[k], self.is_terminal[k] = terminated or truncated, terminated

    def _show(self, k: int, observation: dict[str, np.ndarray]) -> None:
        for name, current in self.observations.items():
            current[k] = observation[name]
