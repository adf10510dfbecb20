"""Several environments stepped as a batch, each giving the stream of steps that common/experience/steps.py draws."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dreamfleet.actors.environments.make import describe_spaces, make_environment
from dreamfleet.actors.environments.user_code import LARGEST, close_environment, describe, flag_of, reward_of
from dreamfleet.actors.rounds import Rounds
from dreamfleet.actors.spaces.action_spaces import action_converter
from dreamfleet.actors.spaces.vectors import VectorBounds
from dreamfleet.common.experience.steps import StepFormat
from dreamfleet.common.settings.schema import EnvironmentSettings
from dreamfleet.common.stop_sign import StepInterrupted


class EnvironmentFailedError(RuntimeError):
    """An environment raised an error, or gave a number that is none; the sentence says which one and where."""


class EnvironmentBatch:
    """K environments and the step each of them is at.

    Args:
        settings: which environment, and how it is wrapped.
        seeds: for each of the K environments the seed of its first reset; later episodes go on from its generator.
        actor: number of the actor they belong to, for messages.

    Attributes:
        spaces: what they show and take.
        bounds: what they declare of their vectors.
        rounds: where they write what they show; actions and versions are for whoever chooses those.
        is_last: whether the current step of each ends its episode.
        returns: sum of the rewards of each one's episode so far; `lengths` its steps (actions taken).
        lengths: see `returns`.

    Raises:
        UserError: if an environment cannot be made.
    """

    def __init__(self, settings: EnvironmentSettings, seeds: Sequence[int], actor: int = 0) -> None:
        self._settings, self._actor = settings, actor
        self._seeds = list(seeds)
        self.environments = [make_environment(settings) for _ in self._seeds]
        self.spaces = describe_spaces(self.environments[0])
        self.bounds = VectorBounds(self.environments[0].observation_space)
        self._to_environment = action_converter(self.environments[0].action_space)
        self.rounds = Rounds(StepFormat(self.spaces), len(self))
        self._episode = [-1] * len(self)
        self.is_last = [False] * len(self)
        self.returns = [0.0] * len(self)
        self.lengths = [0] * len(self)

    def __len__(self) -> int:
        """Return K."""
        return len(self._seeds)

    def reset(self) -> None:
        """Begin the first episode of every environment, from its seed.

        Raises:
            EnvironmentFailedError: if one of them raises an error.
        """
        self.rounds.advance()
        for k, seed in enumerate(self._seeds):
            self._begin(k, seed)

    def step(self, actions: np.ndarray) -> None:
        """Bring every environment to its next step: one at its episode's last begins the next, its action unused.

        Args:
            actions: stored actions, (K, *stored_shape).

        Raises:
            EnvironmentFailedError: if one of them raises an error, ends the process, or gives a reward or an end that
                is none.
        """
        self.rounds.advance()
        for k, ended in enumerate(self.is_last):
            if ended:
                self._begin(k, None)
            else:
                self._advance(k, actions[k])

    def close(self) -> None:
        """Close all environments; that one fails at it is a warning, and keeps none of the others open."""
        for env in self.environments:
            close_environment(env, self._settings.id)

    def failure(self, k: int, cause: str) -> EnvironmentFailedError:
        """Return the error that says where environment `k` is and what befell it."""
        return EnvironmentFailedError(
            f"environment '{self._settings.id}' (actor {self._actor}, environment {k}) failed in episode "
            f"{max(self._episode[k], 0)} at step {self.lengths[k]}: {cause}"
        )

    def _begin(self, k: int, seed: int | None) -> None:
        self._episode[k] += 1
        self.is_last[k], self.returns[k], self.lengths[k] = False, 0.0, 0
        try:
            observation, _ = self.environments[k].reset(seed=seed)
            self._show(k, observation)
        except StepInterrupted:
            raise
        except BaseException as error:
            raise self.failure(k, f"at its reset: {describe(error)}") from error
        self.rounds.set_from_here("episode", self._episode[k], k)
        self.rounds.current.is_first[k] = True
        self.rounds.current.reward[k] = 0.0

    def _advance(self, k: int, action: np.ndarray) -> None:
        self.lengths[k] += 1
        try:
            observation, reward, terminated, truncated, _ = self.environments[k].step(self._to_environment(action))
            if type(reward) is not float or not -LARGEST <= reward <= LARGEST:
                reward = reward_of(reward)
            if terminated is not False or truncated is not False:
                terminated, truncated = flag_of("terminated", terminated), flag_of("truncated", truncated)
            self._show(k, observation)
        except StepInterrupted:
            raise
        except BaseException as error:
            raise self.failure(k, describe(error)) from error
        self.returns[k] += reward
        current = self.rounds.current
        current.reward[k] = reward
        if terminated or truncated:
            self.is_last[k] = current.is_last[k] = True
            current.is_terminal[k] = terminated

    def _show(self, k: int, observation: dict[str, np.ndarray]) -> None:
        for name, array in self.rounds.current.each[k]:
            array[...] = observation[name]
