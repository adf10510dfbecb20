"""How the run stands: rates, who waits for whom, time left; one status line and the scalars of the fleet."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass

from dreamfleet.common.formatting import format_duration
from dreamfleet.deploy.fleet.fleet import Fleet
from dreamfleet.deploy.state import seconds_left

WINDOW_S = 30.0
"""Rates and waits are taken over the last so many seconds."""


@dataclass(frozen=True)
class Reading:
    """The counters of one moment."""

    time_s: float
    env_steps: int
    updates: int
    actors_idle_s: float
    learner_idle_s: float


class Progress:
    """Reads the fleet now and then and tells rates, waits and time left over a sliding window.

    Attributes:
        batch_wait_s: seconds that the learner waited for batches inside its orders; its caller adds to it.
    """

    def __init__(self, fleet: Fleet) -> None:
        self.batch_wait_s = 0.0
        self.begun = time.monotonic()
        self._fleet = fleet
        self._readings: deque[Reading] = deque()
        self._first: Reading | None = None

    def begin_anew(self) -> None:
        """Forget all readings: the learner goes on from a checkpoint, whose updates were not made since."""
        self._readings.clear()
        self._first = None

    def read(self) -> None:
        """Take a reading and forget those that are older than the window."""
        now, fleet = time.monotonic(), self._fleet
        reading = Reading(
            now, fleet.env_steps, fleet.updates,
            sum(slot.idle_until(now) for slot in fleet.actors) / max(1, len(fleet.actors)),
            fleet.learner.idle_until(now) + self.batch_wait_s,
        )  # fmt: skip
        self._first = self._first or reading
        self._readings.append(reading)
        while len(self._readings) > 2 and now - self._readings[1].time_s > WINDOW_S:
            self._readings.popleft()

    def rates(self) -> dict[str, float]:
        """Return env steps/s, updates/s and the shares of time waited, over the window."""
        if len(self._readings) < 2:
            return {"env_steps_per_s": 0.0, "updates_per_s": 0.0, "actors_wait": 0.0, "learner_waits": 0.0}
        old, new = self._readings[0], self._readings[-1]
        seconds = max(new.time_s - old.time_s, 1e-9)
        return {
            "env_steps_per_s": (new.env_steps - old.env_steps) / seconds,
            "updates_per_s": (new.updates - old.updates) / seconds,
            # The mean over actors jumps when their number changes: hence the bounds.
            "actors_wait": min(1.0, max(0.0, (new.actors_idle_s - old.actors_idle_s) / seconds)),
            "learner_waits": min(1.0, (new.learner_idle_s - old.learner_idle_s) / seconds),
        }

    def overall(self) -> dict[str, float]:
        """Return the seconds and the rates of this start of the run as a whole."""
        self.read()
        assert self._first
        new, seconds = self._readings[-1], max(self._readings[-1].time_s - self._first.time_s, 1e-9)
        return {
            "seconds": new.time_s - self.begun,
            "env_steps_per_s": (new.env_steps - self._first.env_steps) / seconds,
            "updates_per_s": (new.updates - self._first.updates) / seconds,
        }

    def scalars(self) -> dict[str, float]:
        """Return the fleet's figures for TensorBoard."""
        rates, fleet = self.rates(), self._fleet
        versions = [slot.version for slot in fleet.actors if slot.version >= 0]
        simulated = fleet.ledger.simulator_steps
        simulator = {} if simulated is None else {
            "fleet/simulator_steps_per_s": rates["env_steps_per_s"] * simulated / max(1, fleet.env_steps),
            "fleet/simulator_steps": simulated,
        }  # fmt: skip
        return {
            "fleet/env_steps_per_s": rates["env_steps_per_s"],
            "fleet/updates_per_s": rates["updates_per_s"],
            "fleet/actors_wait_fraction": rates["actors_wait"],
            "fleet/learner_wait_fraction": rates["learner_waits"],
            "fleet/ratio": fleet.ratio.reached(fleet.env_steps, fleet.updates),
            "fleet/env_steps": fleet.env_steps,
            **simulator,
            "fleet/actors": fleet.roster.placed,
            "fleet/actors_wanted": len(fleet.actors),
            "fleet/restarts": fleet.restarts,
            "fleet/actor_weights_age_updates": max((fleet.updates - version for version in versions), default=0),
        }

    def counters(self) -> dict[str, float | None]:
        """Return what state.json says of the progress: the scalars, what is wanted, and the seconds left."""
        fleet, ratio = self._fleet, self._fleet.ratio
        wanted = {"wanted/env_steps": ratio.env_steps, "wanted/updates": ratio.updates, "wanted/ratio": ratio.ratio}
        made = {"env_steps": fleet.env_steps, "updates": fleet.updates, **fleet.ledger.simulator.to_state()}
        counters = {**self.scalars(), **wanted, **made}
        return {**counters, "seconds_left": seconds_left(counters)}

    def share(self) -> float:
        """Return how much of the run is done, in [0, 1]: the mean of the shares of steps and updates."""
        fleet = self._fleet
        pairs = [(fleet.env_steps, fleet.ratio.env_steps), (fleet.updates, fleet.ratio.updates)]
        if not fleet.staffing.learns:
            pairs = pairs[:1]
        elif fleet.staffing.actors == 0:  # trained on a dataset, whose steps are all there
            pairs = pairs[1:]
        shares = [min(1.0, done / wanted) for done, wanted in pairs if wanted]
        return sum(shares) / len(shares) if shares else 1.0

    def line(self, loss: float | None, left_first: bool = False) -> str:
        """Return the status line; the time left comes last, or first, where the line may be cut."""
        fleet, figures = self._fleet, self.scalars()
        left = self.counters()["seconds_left"]
        idle = (figures["fleet/actors_wait_fraction"], figures["fleet/learner_wait_fraction"])
        parts = [f"steps {fleet.env_steps:,}/{fleet.ratio.env_steps:,} ({figures['fleet/env_steps_per_s']:.0f}/s)"]
        if fleet.staffing.learns:
            parts += [
                f"updates {fleet.updates:,}/{fleet.ratio.updates:,} ({figures['fleet/updates_per_s']:.1f}/s)",
                f"ratio {figures['fleet/ratio']:.1f}/{fleet.ratio.ratio:g}",
                f"weights {figures['fleet/actor_weights_age_updates']:.0f} updates old",
                f"waiting: actors {idle[0]:.0%}, learner {idle[1]:.0%}",
            ]
        if fleet.staffing.actors is None or fleet.roster.placed < len(fleet.actors):
            parts.append(f"actors {fleet.roster.placed}/{len(fleet.actors)}")
        if loss is not None:
            parts.append(f"loss {loss:.4g}")
        if fleet.staffing.learns and fleet.updates == 0 and fleet.env_steps < fleet.ratio.prefill:
            parts.insert(0, "prefill")
        if left is not None:
            parts.insert(0 if left_first else len(parts), f"{format_duration(left)} left")
        return " | ".join(parts)
