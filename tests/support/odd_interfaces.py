"""Environments of other interfaces than Gymnasium's, each as small as it can be: `odd_interfaces:old_step`."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.experimental.functional import FuncEnv
from gymnasium.vector import SyncVectorEnv

BOX = spaces.Box(-1, 1, (2,), np.float32)  # of two numbers, which can be mistaken for an observation and its info


class New(gymnasium.Env[Any, Any]):
    """An environment as it should be."""

    observation_space, action_space = BOX, spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}

    def step(self, action: Any) -> Any:
        return np.zeros(2, np.float32), 1.0, False, False, {}


class Undrawn(New):
    """Says that it draws pictures, and takes no render mode."""

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012 (as Gymnasium has it)

    def __init__(self) -> None:
        super().__init__()


class OldReset(New):
    """Its reset returns the observation alone; both Gym's and the seed it takes are of before 0.26."""

    def reset(self, **kwargs: Any) -> Any:
        return super().reset(**kwargs)[0]


class OldStep(New):
    """Its step returns four values."""

    def step(self, action: Any) -> Any:
        observation, reward, *_ = super().step(action)
        return observation, reward, False, {}


class NoSeed(New):
    """Its reset takes nothing."""

    def reset(self) -> Any:  # type: ignore[override]
        return super().reset()


class OldWrapper(gymnasium.Wrapper[Any, Any, Any, Any]):
    """A wrapper written for the old Gym."""

    def step(self, action: Any) -> Any:
        observation, reward, *_ = self.env.step(action)
        return observation, reward, False, {}


class Stepped:
    """No `gymnasium.Env`, but has its methods."""

    reset, step = New.reset, New.step


class OfOldGym:
    """As if it derived from the old package's `gym.Env`."""

    __module__ = "gym.core"
    reset, step = New.reset, New.step


class OfDmEnv:
    """An environment of dm_env."""

    def observation_spec(self) -> None: ...
    def action_spec(self) -> None: ...
    def reset(self) -> None: ...
    def step(self, action: Any) -> None: ...


class Turns:
    """PettingZoo's AEC interface."""

    possible_agents = ("white", "black")

    def agent_iter(self) -> None: ...
    def reset(self, seed: int | None = None) -> None: ...
    def step(self, action: Any) -> None: ...


class AtOnce:
    """PettingZoo's parallel interface."""

    possible_agents = ("white", "black")

    def reset(self, seed: int | None = None) -> None: ...
    def step(self, actions: Any) -> None: ...


class Pure:
    """As gymnax and Brax have it."""

    def reset(self, key: Any, params: Any = None) -> None: ...
    def step(self, key: Any, state: Any, action: Any) -> None: ...


def vector() -> Any:
    return SyncVectorEnv([New, New, New])


def several() -> Any:
    return [New(), New()]


def functional() -> Any:
    return FuncEnv()


def pure_and_parameters() -> Any:
    return Pure(), SimpleNamespace()


def a_class() -> Any:
    return New


def nothing() -> None: ...


# wrappers
def add_one(env: gymnasium.Env[Any, Any], reward: float = 1.0) -> gymnasium.Env[Any, Any]:
    """Add to each reward."""
    return gymnasium.wrappers.TransformReward(env, lambda given: given + reward)


def double(env: gymnasium.Env[Any, Any]) -> gymnasium.Env[Any, Any]:
    """Double each reward."""
    return gymnasium.wrappers.TransformReward(env, lambda given: 2 * given)


def lose(env: gymnasium.Env[Any, Any]) -> None:
    """Return nothing."""


def fail(env: gymnasium.Env[Any, Any]) -> None:
    """Raise."""
    message = "told to fail"
    raise ValueError(message)


not_callable = 3
