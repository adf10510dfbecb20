"""A Gymnasium environment whose observations count: whoever gets them can tell what is missing, doubled or mixed up.

By id: `counting_environment:make`.
"""

from __future__ import annotations

import time
from typing import Any, ClassVar

import gymnasium
import numpy as np
from gymnasium import spaces

ACTION_SPACES: dict[str, spaces.Space[Any]] = {
    "discrete": spaces.Discrete(3, start=5),
    "box": spaces.Box(np.array([[-2.0, 0.5]]), np.array([[2.0, 3.0]]), dtype=np.float64),
    "multi_discrete": spaces.MultiDiscrete([[2, 3], [4, 5]]),
}


class CountingEnvironment(gymnasium.Env[Any, Any]):
    """Counts its steps.

    The observation is a Dict of "count", a vector of (seed of the first reset, number of the episode, step in the
    episode, steps in all), and, with `image`, "image": pixels that all hold the step in the episode, modulo
    256. The reward of a step is its number in the episode.

    Args:
        length: steps per episode.
        terminate_every: of the episodes, every so many ends truly, and the others are cut short; 0 cuts all short.
        image: side of the image; 0 for none.
        action: a key of `ACTION_SPACES`.
        fail_at: raise an error at this step, counted over all episodes; 0 never.
        nan_at: give a reward that is no number at this step, counted over all episodes; 0 never.
        nan_count_at: give a count that is no number at this step, counted over all episodes; 0 never.
        delay_s: seconds that a step takes.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"], "render_fps": 20}

    def __init__(
        self,
        length: int = 10,
        terminate_every: int = 2,
        image: int = 0,
        action: str = "discrete",
        fail_at: int = 0,
        nan_at: int = 0,
        nan_count_at: int = 0,
        delay_s: float = 0.0,
        render_mode: str | None = None,
    ) -> None:
        self._length, self._terminate_every, self._image = length, terminate_every, image
        self._fail_at, self._nan_at, self._nan_count_at, self._delay_s = fail_at, nan_at, nan_count_at, delay_s
        self.render_mode = render_mode
        parts: dict[str, spaces.Space[Any]] = {"count": spaces.Box(-np.inf, np.inf, (4,), np.float64)}
        if image:
            parts["image"] = spaces.Box(0, 255, (image, image, 3), np.uint8)
        self.observation_space = spaces.Dict(parts)
        self.action_space = ACTION_SPACES[action]
        self.first_seed, self.episode, self.step_number, self.total_steps = -1, -1, 0, 0
        self.actions: list[Any] = []
        self.closed = False

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin the next episode."""
        super().reset(seed=seed)
        if seed is not None:
            self.first_seed = seed
        self.episode += 1
        self.step_number = 0
        return self._observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Count one step, or fail as told."""
        assert not self.closed, "stepped after it was closed"
        assert self.step_number < self._length, "stepped beyond the end of its episode"
        assert self.action_space.contains(action), f"{action!r} is not in {self.action_space}"
        time.sleep(self._delay_s)
        self.step_number += 1
        self.total_steps += 1
        self.actions.append(action)
        if self.total_steps == self._fail_at:
            raise RuntimeError("told to fail")
        ended = self.step_number == self._length
        truly = bool(self._terminate_every) and self.episode % self._terminate_every == 0
        reward = np.nan if self.total_steps == self._nan_at else float(self.step_number)
        return self._observe(), reward, ended and truly, ended and not truly, {}

    def render(self) -> Any:
        """Return a frame whose pixels hold the step in the episode."""
        return np.full((40, 60, 3), self.step_number % 256, np.uint8)

    def close(self) -> None:
        """Note that it was closed."""
        self.closed = True

    def _observe(self) -> dict[str, np.ndarray]:
        numbers = [self.first_seed, self.episode, self.step_number, self.total_steps]
        count = np.array(numbers, np.float64)
        if self._nan_count_at and self.total_steps == self._nan_count_at:
            count[2] = np.nan
        shown: dict[str, np.ndarray] = {"count": count}
        if self._image:
            shown["image"] = np.full((self._image, self._image, 3), self.step_number % 256, np.uint8)
        return shown


def make(**kwargs: Any) -> CountingEnvironment:
    """Return a counting environment."""
    return CountingEnvironment(**kwargs)
