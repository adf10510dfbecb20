"""Crafter (https://github.com/danijar/crafter), whose interface is the old Gym's, as a Gymnasium environment."""

from __future__ import annotations

from typing import Any

import crafter
import gymnasium
import numpy as np
from gymnasium import spaces

IDS = {"CrafterReward-v1": True, "CrafterNoReward-v1": False}
"""The ids under which the old Gym had it, and whether they give rewards."""
_FRAME_SIDE = 288
"""Side of a rendered frame: 32 pixels for each of the 9 by 9 fields that the player sees."""


class CrafterEnvironment(gymnasium.Env[Any, Any]):
    """A sequence of Crafter worlds: pictures (64, 64, 3) in uint8, 17 actions, up to 10,000 steps.

    The player's death terminates an episode, the step limit truncates it. A seeded reset restarts the sequence of
    worlds; each further reset takes the next one. `kwargs` are those of `crafter.Env`: `area`, `view`, `size`,
    `reward`, `length`.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012 (Gymnasium's form)

    def __init__(self, render_mode: str | None = None, **kwargs: Any) -> None:
        self.render_mode = render_mode
        self._kwargs = kwargs
        self._crafter = _OrderedCrafter(seed=0, **kwargs)
        observation, action = self._crafter.observation_space, self._crafter.action_space
        self.observation_space = spaces.Box(0, 255, tuple(map(int, observation.shape)), np.uint8)
        self.action_space = spaces.Discrete(int(action.n))

    def reset(
        self,
        *,
        seed: int | None = None,
        options: dict[str, Any] | None = None,  # noqa: ARG002 (Gymnasium's form)
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin the next world, or with a seed the first one of its sequence."""
        super().reset(seed=seed)
        if seed is not None:
            self._crafter = _OrderedCrafter(seed=seed, **self._kwargs)
        return self._crafter.reset(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Take one step; `info` is Crafter's own, with the inventory and the achievements."""
        observation, reward, done, info = self._crafter.step(int(action))
        died = info["discount"] == 0
        return observation, float(reward), bool(done and died), bool(done and not died), info

    def render(self) -> np.ndarray | None:
        """Return the view as a picture (288, 288, 3), if the mode is `rgb_array`."""
        return self._crafter.render((_FRAME_SIDE, _FRAME_SIDE)) if self.render_mode == "rgb_array" else None


class _OrderedCrafter(crafter.Env):
    """Crafter with its creatures in an order that depends on the seed alone.

    Crafter keeps the creatures of a region in a set, whose order follows their addresses in memory, and draws one of
    them by its index: two runs with one seed differ after some ten steps. Sorted by position they stay equal.
    """

    def _balance_chunk(self, chunk: Any, objs: Any) -> None:
        super()._balance_chunk(chunk, sorted(objs, key=lambda creature: tuple(creature.pos)))


def register() -> None:
    """Register Crafter's ids with Gymnasium."""
    for name, reward in IDS.items():
        if name not in gymnasium.registry:
            gymnasium.register(name, f"{__name__}:CrafterEnvironment", kwargs={"reward": reward})
