"""The ledger: what was collected and trained, what is ordered, and what therefore may be ordered still."""

from __future__ import annotations

from dataclasses import dataclass, field

from dreamfleet.deploy.fleet.simulator_count import SimulatorCount
from dreamfleet.deploy.fleet.train_ratio import TrainRatio
from dreamfleet.deploy.workers.pool import Counters


@dataclass
class Ledger:
    """The counters from which the fleet decides who may go on.

    Attributes:
        ratio: what allows updates.
        env_steps: S, acknowledged environment steps, by the replay's own count.
        steps_before: those of them that were there when this start of the run began.
        valid_starts: starts of training sequences that the replay holds.
        updates: U, made by the learner.
        ordered_steps: given to actors and not answered.
        uncounted_steps: answered since the replay was last asked for its count.
        ordered_updates: given to the learner and not answered.
        simulator: steps that the simulators took.
    """

    ratio: TrainRatio
    env_steps: int = 0
    steps_before: int = 0
    valid_starts: int = 0
    updates: int = 0
    ordered_steps: int = 0
    uncounted_steps: int = 0
    ordered_updates: int = 0
    simulator: SimulatorCount = field(default_factory=SimulatorCount)

    def count(self, counters: Counters) -> None:
        """Take S from the replay itself: nobody else knows whether a lost actor's last chunks were stored."""
        self.uncounted_steps = 0
        self.env_steps = counters.total_steps
        self.valid_starts = counters.valid_starts

    @property
    def simulator_steps(self) -> int | None:
        """Simulator steps of all environment steps; None if none were counted."""
        return self.simulator.of(self.env_steps)

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
        """Updates that may have been made by now; none before the replay holds a whole sequence."""
        return self.ratio.updates_allowed(self.env_steps) if self.valid_starts else 0

    @property
    def backlog(self) -> int:
        """Updates that are allowed, and neither made nor ordered."""
        return self.updates_allowed - self.updates - self.ordered_updates

    @property
    def steps_left(self) -> int:
        """Environment steps that are neither stored nor ordered."""
        return self.ratio.env_steps - self.env_steps - self.ordered_steps - self.uncounted_steps
