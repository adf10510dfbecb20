"""The one wrapper that Gymnasium has for Atari alone: starting episodes with a few actions that do nothing."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np

from dreamfleet.actors.actions import null_action


class NoopStart(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Begins each episode with 0 to `noop_max` steps of the action that does nothing, so that they differ.

    The number is drawn uniformly from a generator that the first reset seeds. (The environment's own is not always of
    Gymnasium's kind: DM Control has NumPy's older one.) Rewards on the way are dropped. An episode that ends meanwhile
    is begun again, and the remaining steps are taken in the new one.

    Args:
        env: the environment.
        noop_max: most steps.
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
