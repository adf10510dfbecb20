"""The ledger: what a run collected, trained and ordered, and what may therefore be ordered next."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from dreamfleet.common.settings.schema import Settings
from dreamfleet.replay.interface import Counters

SIMULATOR_KEYS = ("simulator/counted_env_steps", "simulator/counted_steps")
"""Names of the simulator counts in state.json, where the next start of a run finds them."""


@dataclass(frozen=True)
class TrainRatio:
    """The environment steps of a run, and how many updates they allow.

    With S acknowledged environment steps, the learner may have made floor(ratio · (S - prefill) / (B · T)) updates.
    The quotient is exact, so neither rounding nor a restart can make it drift.

    Args:
        env_steps: environment steps of the whole run.
        ratio: replayed steps per environment step after the prefill; 0 allows no update, for a run that only collects.
        replayed_per_update: B · T.
        prefill: environment steps collected by chance before training begins.
    """

    env_steps: int
    ratio: float = 0.0
    replayed_per_update: int = 1
    prefill: int = 0

    @staticmethod
    def of(settings: Settings) -> TrainRatio:
        """Return the ratio that the settings ask for."""
        replayed = settings.learner.batch_size * settings.learner.sequence_length
        return TrainRatio(settings.train.env_steps, settings.train.ratio, replayed, settings.train.prefill)

    def updates_allowed(self, env_steps: int) -> int:
        """Return the updates that may have been made once `env_steps` are acknowledged."""
        counted = max(0, min(env_steps, self.env_steps) - self.prefill)
        return int(Fraction(str(self.ratio)) * counted / self.replayed_per_update)

    @property
    def updates(self) -> int:
        """Updates of the whole run."""
        return self.updates_allowed(self.env_steps)

    def reached(self, env_steps: int, updates: int) -> float:
        """Return the ratio so far: replayed steps per step after the prefill."""
        counted = min(env_steps, self.env_steps) - self.prefill  # a dataset may hold fewer than were collected
        return updates * self.replayed_per_update / counted if counted > 0 else 0.0


@dataclass
class SimulatorCount:
    """Simulator steps, as the actors counted them.

    They are not simply a multiple of the action repeat: a reset takes none (or those of the no-op start), and an
    episode that ends within a repeat takes fewer. Steps of a lost actor may be stored without having been counted, and
    a killed run may not have written its last counts: for these the average of the counted ones is assumed.

    Attributes:
        env_steps: environment steps whose simulator steps were counted.
        steps: their simulator steps.
    """

    env_steps: int = 0
    steps: int = 0

    @staticmethod
    def of_counters(counters: Mapping[str, Any]) -> SimulatorCount:
        """Return the counts among the counters of a run's state.json, or zeros if there are none."""
        env_steps, steps = (counters.get(key) for key in SIMULATOR_KEYS)
        if not (isinstance(env_steps, int) and isinstance(steps, int) and env_steps >= 0 and steps >= 0):
            return SimulatorCount()
        return SimulatorCount(env_steps, steps)

    def to_state(self) -> dict[str, int]:
        """Return the entries for state.json."""
        return dict(zip(SIMULATOR_KEYS, (self.env_steps, self.steps), strict=True))

    def add(self, env_steps: int, steps: int) -> None:
        """Count `steps` simulator steps of `env_steps` environment steps."""
        self.env_steps += env_steps
        self.steps += steps

    def of(self, env_steps: int) -> int | None:
        """Return the simulator steps of `env_steps`, all steps of the run; None if none were counted."""
        if not self.env_steps:
            return None if env_steps else 0
        return self.steps + round((env_steps - self.env_steps) * self.steps / self.env_steps)

    def describe(self, env_steps: int) -> str:
        """Return the simulator steps of all environment steps in words, in brackets after a space."""
        steps = self.of(env_steps)
        if steps is None:
            return " (simulator steps were not counted)"
        unknown = abs(env_steps - self.env_steps)
        if unknown:
            return f" (about {steps:,} simulator steps: {unknown:,} env steps were not counted)"
        return f" ({steps:,} simulator steps)"


@dataclass
class Ledger:
    """The counters that decide who may go on.

    Attributes:
        env_steps: S, acknowledged environment steps, as the replay counts them.
        steps_before: S when this start of the run began.
        valid_starts: starts of training sequences in the replay.
        updates: U, made by the learner.
        ordered_steps: ordered from actors, not answered yet.
        uncounted_steps: answered since the replay was last asked for its count.
        ordered_updates: ordered from the learner, not answered yet.
    """

    ratio: TrainRatio
    simulator: SimulatorCount = field(default_factory=SimulatorCount)
    env_steps: int = 0
    steps_before: int = 0
    valid_starts: int = 0
    updates: int = 0
    ordered_steps: int = 0
    uncounted_steps: int = 0
    ordered_updates: int = 0

    def count(self, counters: Counters) -> None:
        """Take S from the replay: only it knows whether the last chunks of a lost actor were stored."""
        self.uncounted_steps = 0
        self.env_steps = counters.total_steps
        self.valid_starts = counters.valid_starts

    @property
    def has_all_steps(self) -> bool:
        """Whether all environment steps are collected."""
        return self.env_steps >= self.ratio.env_steps

    @property
    def has_all(self) -> bool:
        """Whether all environment steps are collected and all updates made that they allow."""
        return (self.updates >= self.ratio.updates or self.valid_starts == 0) and self.has_all_steps

    @property
    def updates_allowed(self) -> int:
        """Updates that may have been made by now; 0 until the replay holds a whole sequence."""
        return self._allowed_by(self.env_steps)

    @property
    def backlog(self) -> int:
        """Updates that are allowed, and neither made nor ordered."""
        return self.updates_allowed - self.updates - self.ordered_updates

    @property
    def coming_backlog(self) -> int:
        """The backlog as it will be once the replay is asked for its count: with what was answered since."""
        allowed = self._allowed_by(self.env_steps + self.uncounted_steps)
        return allowed - self.updates - self.ordered_updates

    @property
    def steps_left(self) -> int:
        """Environment steps that are neither stored nor ordered."""
        return self.ratio.env_steps - self.env_steps - self.ordered_steps - self.uncounted_steps

    def _allowed_by(self, env_steps: int) -> int:
        return self.ratio.updates_allowed(env_steps) if self.valid_starts else 0
