"""A point that actions move about on a plane, seen as a picture and as a vector: `steered_world:make`."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

ACTIONS: dict[str, spaces.Space[Any]] = {
    "discrete": spaces.Discrete(4),
    "box": spaces.Box(np.array([-1, -2, 0], np.float32), np.array([1, 2, 1], np.float32)),
    "nested": spaces.Box(-1, 1, (2, 2)),
    "unbounded": spaces.Box(np.array([-np.inf, 3.0]), np.array([-5.0, np.inf]), dtype=np.float64),
    "multi": spaces.MultiDiscrete([3, 4]),
    "square": spaces.MultiDiscrete([[3, 4], [2, 5]]),
    "binary": spaces.MultiBinary(3),
    "mixed": spaces.Dict({"gear": spaces.Discrete(3), "steer": spaces.Box(-1, 1, (2, 2))}),
}
_SIDE = 16
_STEPS = 20


class SteeredWorld(gymnasium.Env[Any, Any]):
    """Episodes of 20 steps.

    Args:
        actions: the kind of action, one of `ACTIONS`; their numbers' sum moves the point.
        shows: of "picture" and "place", with commas, what is observed; by default both.
    """

    def __init__(self, actions: str = "discrete", shows: str = "picture,place") -> None:
        self.action_space = ACTIONS[actions]
        seen = {"picture": spaces.Box(0, 255, (_SIDE, _SIDE, 3), np.uint8), "place": spaces.Box(-20, 20, (2,))}
        self.observation_space = spaces.Dict({name: seen[name] for name in shows.split(",")})
        self._place, self._step = np.zeros(2, np.float32), 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin somewhere."""
        super().reset(seed=seed)
        self._place, self._step = self.np_random.uniform(-5, 5, 2).astype(np.float32), 0
        return self._seen(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Move by the action."""
        assert self.action_space.contains(action), action
        moved = sum(float(np.sum(part)) for part in (action.values() if isinstance(action, dict) else [action]))
        self._step += 1
        self._place = np.clip(self._place + np.array([moved, self._step % 3 - 1]), -20, 20).astype(np.float32)
        return self._seen(), float(self._place[0]), False, self._step == _STEPS, {}

    def _seen(self) -> dict[str, np.ndarray]:
        picture = np.zeros((_SIDE, _SIDE, 3), np.uint8)
        picture[tuple(self._place.astype(int) % _SIDE)] = 255
        return {name: {"picture": picture, "place": self._place}[name] for name in self.observation_space.spaces}


def make(**kwargs: Any) -> SteeredWorld:
    """Return one."""
    return SteeredWorld(**kwargs)
