"""Wrappers that Gymnasium lacks: no-op starts, which it has for Atari alone, and a count of simulator steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np

from dreamfleet.actors.environments.user_code import flag_of, reward_of
from dreamfleet.actors.spaces.action_spaces import null_action


class EntriesRead(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Shows observations as pictures and vectors by name, in fewer calls for a step than `TransformObservation` makes.

    Args:
        read: turns the environment's observation into that dictionary.
        space: of the dictionaries.
    """

    def __init__(
        self, env: gymnasium.Env[Any, Any], read: Callable[[Any], dict[str, np.ndarray]], space: gymnasium.spaces.Dict
    ) -> None:
        super().__init__(env)
        self.observation_space = space
        self._read = read

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Reset the environment."""
        observation, info = self.env.reset(seed=seed, options=options)
        return self._read(observation), info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Take one step."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        return self._read(observation), reward, terminated, truncated, info


class SimulatorSteps(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Counts simulator steps, below the wrappers that take several of them for one environment step.

    It also checks rewards and flags before these wrappers sum and join them, where a wrong one could not be named.

    Attributes:
        count: simulator steps, of all episodes.
    """

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        super().__init__(env)
        self.count = 0

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Take one step and count it."""
        self.count += 1
        observation, reward, terminated, truncated, info = self.env.step(action)
        if type(reward) is float and terminated is False and truncated is False:
            return observation, reward, terminated, truncated, info  # the usual case, in the least time
        return observation, reward_of(reward), flag_of("terminated", terminated), flag_of("truncated", truncated), info


def step_counter(env: gymnasium.Env[Any, Any]) -> SimulatorSteps | None:
    """Return the counter among an environment's wrappers; None if each environment step is one of the simulator."""
    while isinstance(env, gymnasium.Wrapper):
        if isinstance(env, SimulatorSteps):
            return env
        env = env.env
    return None


class NoopStart(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Begins each episode with 0 to `noop_max` steps of the action that does nothing, so that episodes differ.

    The number is drawn uniformly from a generator that the first reset seeds. (The environment's own is not always of
    Gymnasium's kind: DM Control has NumPy's older one.) Rewards on the way are dropped. If an episode ends meanwhile,
    the environment is reset, and the remaining steps are taken in the new episode.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], noop_max: int) -> None:
        super().__init__(env)
        self._noop_max = noop_max
        self._action = null_action(env.action_space)
        self._generator = np.random.default_rng()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Reset the environment and do nothing for a random number of steps."""
        if seed is not None:
            self._generator = np.random.default_rng(seed)
        observation, info = self.env.reset(seed=seed, options=options)
        for _ in range(int(self._generator.integers(self._noop_max + 1))):
            observation, _, terminated, truncated, info = self.env.step(self._action)
            if terminated or truncated:
                observation, info = self.env.reset(options=options)
        return observation, info
