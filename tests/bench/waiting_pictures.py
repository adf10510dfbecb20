"""An environment that shows pictures and takes its time without taking a core, as a simulator elsewhere would."""

from __future__ import annotations

import time
from typing import Any

import gymnasium
import numpy as np


class WaitingPictures(gymnasium.Env[np.ndarray, int]):
    """Pictures 64×64×3, six actions, episodes of 500 steps, each of which sleeps for `seconds`."""

    observation_space = gymnasium.spaces.Box(0, 255, (64, 64, 3), np.uint8)
    action_space = gymnasium.spaces.Discrete(6)

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._steps = 0
        self._pictures = np.random.default_rng(0).integers(0, 256, (8, 64, 64, 3), np.uint8)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed, options=options)
        self._steps = 0
        return self._pictures[0], {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        del action
        time.sleep(self._seconds)
        self._steps += 1
        return self._pictures[self._steps % 8], 0.0, False, self._steps == 500, {}


def make(seconds: float) -> WaitingPictures:
    return WaitingPictures(seconds)
