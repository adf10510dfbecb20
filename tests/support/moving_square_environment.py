"""The world of moving_square.py as an environment: `moving_square_environment:make`."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from moving_square import MOVES, PACE, SIDE, SQUARE

LENGTH = 40


class MovingSquare(gymnasium.Env[np.ndarray, int]):
    """A bright square that goes where the action says and bounces off the walls; the reward is 1 in the left half."""

    observation_space = spaces.Box(0, 255, (SIDE, SIDE, 1), np.uint8)
    action_space = spaces.Discrete(4)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self._place = self.np_random.integers(0, (SIDE - SQUARE) // PACE + 1, 2) * PACE
        self._steps = 0
        return self._picture(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        self._steps += 1
        place = self._place + MOVES[action]
        place = np.where(place < 0, PACE, place)
        self._place = np.where(place > SIDE - SQUARE, SIDE - SQUARE - PACE, place)
        reward = float(self._place[1] < (SIDE - SQUARE) / 2)
        return self._picture(), reward, False, self._steps == LENGTH, {}

    def _picture(self) -> np.ndarray:
        picture = np.full((SIDE, SIDE, 1), 40, np.uint8)
        row, column = self._place
        picture[row : row + SQUARE, column : column + SQUARE] = 220
        return picture


def make() -> MovingSquare:
    return MovingSquare()
