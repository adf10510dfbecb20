"""How many steps the simulators took: by the actors' own count, as far as there is one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

KEYS = ("simulator/counted_env_steps", "simulator/counted_steps")
"""Names of what is counted in state.json, from which the next start of a run goes on."""


@dataclass
class SimulatorCount:
    """Environment steps whose simulator steps the actors counted, and these.

    They are not simply the action repeat's multiple: where an episode begins the simulator takes none (or those of the
    no-op start), and where one ends within a repeat it takes fewer. An actor that was lost may have had steps stored
    that it never counted, and a run that was killed may have counted some that were not written down: these are taken
    to be as many as those counted are on average.

    Attributes:
        env_steps: environment steps that were counted.
        steps: simulator steps that they took.
    """

    env_steps: int = 0
    steps: int = 0

    @staticmethod
    def of_counters(counters: Mapping[str, Any]) -> SimulatorCount:
        """Return what the counters of a run's state.json say, or a new count if they say nothing."""
        env_steps, steps = (counters.get(key) for key in KEYS)
        if not (isinstance(env_steps, int) and isinstance(steps, int) and env_steps >= 0 and steps >= 0):
            return SimulatorCount()
        return SimulatorCount(env_steps, steps)

    def add(self, env_steps: int, steps: int) -> None:
        """Count environment steps, and the simulator steps that they took."""
        self.env_steps += env_steps
        self.steps += steps

    def of(self, env_steps: int) -> int | None:
        """Return the simulator steps of so many environment steps, all that there are; None if none were counted."""
        if not self.env_steps:
            return None if env_steps else 0
        return self.steps + round((env_steps - self.env_steps) * self.steps / self.env_steps)

    def describe(self, env_steps: int) -> str:
        """Return in words, in brackets and after a space, the simulator steps of all environment steps."""
        steps = self.of(env_steps)
        if steps is None:
            return " (simulator steps were not counted)"
        unknown = abs(env_steps - self.env_steps)
        return f" (about {steps:,} simulator steps: {unknown:,} env steps were not counted)" if unknown else (
            f" ({steps:,} simulator steps)"
        )  # fmt: skip

    def to_state(self) -> dict[str, int]:
        """Return what state.json is to say."""
        return dict(zip(KEYS, (self.env_steps, self.steps), strict=True))
