"""What really follows a dream's start, under the actions that were dreamed: recorded, or played by the environment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from dreamfleet.actors.environments.make import Environment, make_environment
from dreamfleet.actors.spaces.action_spaces import action_converter
from dreamfleet.common.experience.spaces import Spaces
from dreamfleet.common.settings.environment import EnvironmentSettings

CONTEXT_STEPS = 64
"""Steps before the start that the posterior has seen, at most."""


class TrueStep(NamedTuple):
    """A real step: the observation by entry, the reward on arriving, and whether the episode ended there."""

    observation: Mapping[str, np.ndarray]
    reward: float
    is_over: bool


class Truth(Protocol):
    """What really happened before and after the start of a dream."""

    @property
    def context(self) -> Mapping[str, np.ndarray]:
        """The steps up to the start, fields of the step format (T, …), of one episode."""

    def after(self, actions: Sequence[np.ndarray]) -> TrueStep | None:
        """Return the step after these actions from the start on; None if nobody knows."""

    def recorded_action(self, actions: Sequence[np.ndarray]) -> np.ndarray | None:
        """Return the action that was taken after these; None if none was recorded."""

    def mean_of(self, name: str) -> np.ndarray:
        """Return the mean of an entry over all that is known, in float64."""

    def close(self) -> None:
        """Free what it holds."""


class RecordedTruth:
    """A recorded episode: it is known for as long as the recorded actions are dreamed.

    Args:
        episode: fields of the step format (n, …).
        at: the step at which the dream starts.
    """

    def __init__(self, episode: Mapping[str, np.ndarray], at: int) -> None:
        self._episode, self._at = episode, at
        first = max(0, at + 1 - CONTEXT_STEPS)
        self.context = {name: array[first : at + 1] for name, array in episode.items()}
        self._means: dict[str, np.ndarray] = {}

    def after(self, actions: Sequence[np.ndarray]) -> TrueStep | None:
        """See `Truth.after`."""
        at = self._at + len(actions)
        if at >= len(self._episode["reward"]):
            return None
        if actions and not np.array_equal(np.stack(actions), self._episode["action"][self._at : at]):
            return None
        names = [name for name in self._episode if name not in {"action", "episode", "version"}]
        step = {name: self._episode[name][at] for name in names}
        return TrueStep(step, float(step["reward"]), bool(step["is_last"]))

    def recorded_action(self, actions: Sequence[np.ndarray]) -> np.ndarray | None:
        """See `Truth.recorded_action`; the last step's action was never taken."""
        at = self._at + len(actions)
        if at >= len(self._episode["reward"]) or self._episode["is_last"][at] or self.after(actions) is None:
            return None
        return np.asarray(self._episode["action"][at])

    def mean_of(self, name: str) -> np.ndarray:
        """See `Truth.mean_of`: over the whole episode, the best that any one frame can do."""
        if name not in self._means:
            self._means[name] = self._episode[name].mean(axis=0, dtype=np.float64)
        return self._means[name]

    def close(self) -> None:
        """See `Truth.close`."""


class PlayedTruth:
    """The environment, reset with a seed and stepped as the dream is; another branch is played from the start."""

    def __init__(self, settings: EnvironmentSettings, spaces: Spaces, seed: int) -> None:
        self._environment: Environment = make_environment(settings)
        self._to_environment = action_converter(self._environment.action_space)
        self._entries, self._seed = [spec.name for spec in spaces.observations], seed
        self._played: list[np.ndarray] = []
        self._steps: list[TrueStep] = []
        self._sums: dict[str, np.ndarray] = {}
        first = self._reset()
        flags = {"is_first": np.ones(1, bool), "is_last": np.zeros(1, bool), "reward": np.zeros(1, np.float32)}
        action = {"action": np.zeros((1, *spaces.action.stored_shape), spaces.action.stored_dtype)}
        self.context = {**{name: value[None] for name, value in first.observation.items()}, **flags, **action}

    def after(self, actions: Sequence[np.ndarray]) -> TrueStep | None:
        """See `Truth.after`."""
        same = 0
        shorter = min(len(actions), len(self._played))
        while same < shorter and (
            actions[same] is self._played[same] or np.array_equal(actions[same], self._played[same])
        ):
            same += 1
        if same < shorter:
            self._reset()
        while len(self._played) < len(actions):
            if self._steps[-1].is_over:
                return None
            self._play(actions[len(self._played)])
        return self._steps[len(actions)]

    def recorded_action(self, actions: Sequence[np.ndarray]) -> np.ndarray | None:
        """See `Truth.recorded_action`: there is none."""
        del actions
        return None

    def mean_of(self, name: str) -> np.ndarray:
        """See `Truth.mean_of`: over what was played."""
        return self._sums[name] / len(self._steps)

    def close(self) -> None:
        """Close the environment."""
        self._environment.close()

    def _reset(self) -> TrueStep:
        observation, _ = self._environment.reset(seed=self._seed)
        self._played = []
        self._steps, self._sums = [], {}
        return self._keep(observation, 0.0, is_over=False)

    def _play(self, action: np.ndarray) -> None:
        observation, reward, terminated, truncated, _ = self._environment.step(self._to_environment(action))
        self._played.append(np.asarray(action))
        self._keep(observation, float(reward), bool(terminated or truncated))

    def _keep(self, observation: Any, reward: float, is_over: bool) -> TrueStep:
        step = TrueStep({name: np.array(observation[name]) for name in self._entries}, reward, is_over)
        self._steps.append(step)
        for name, value in step.observation.items():
            self._sums[name] = self._sums.get(name, 0.0) + value.astype(np.float64)
        return step
