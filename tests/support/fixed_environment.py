"""A Gymnasium environment of any observation and action space, for tests of what is supported.

By id: `fixed_environment:make`, with the spaces as arguments.
"""

from __future__ import annotations

from typing import Any

import gymnasium
from gymnasium import spaces


class FixedEnvironment(gymnasium.Env[Any, Any]):
    """Shows the same observation for ever, by default one drawn from its space.

    Args:
        observation_space: what it shows.
        action_space: what it takes.
        shown: what it shows instead of something from the space; None for nothing else.
    """

    def __init__(
        self, observation_space: spaces.Space[Any], action_space: spaces.Space[Any], shown: Any = None
    ) -> None:
        self.observation_space, self.action_space = observation_space, action_space
        self.shown = observation_space.sample() if shown is None else shown
        self.closed = False

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Show it."""
        super().reset(seed=seed)
        return self.shown, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Show it again."""
        return self.shown, 0.0, False, False, {}

    def close(self) -> None:
        """Note that it was closed."""
        self.closed = True


def make(
    observation_space: spaces.Space[Any], action_space: spaces.Space[Any] | None = None, shown: Any = None
) -> FixedEnvironment:
    """Return a fixed environment; its actions are a Discrete(2) unless another space is given."""
    return FixedEnvironment(observation_space, action_space or spaces.Discrete(2), shown)
