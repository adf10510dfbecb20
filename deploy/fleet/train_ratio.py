"""The train ratio: from two counters alone, who may go on."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from dreamfleet.common.settings.schema import Settings


@dataclass(frozen=True)
class TrainRatio:
    """How many updates so many acknowledged steps allow.

    With S acknowledged environment steps, the learner may have made floor(ratio · (S - prefill) / (B · T)) updates,
    and no more. The quotient is taken exactly, so that neither rounding nor a restart can make it drift.

    Args:
        ratio: replayed steps per environment step after the prefill.
        replayed_per_update: B · T.
        prefill: environment steps collected before training begins.
        env_steps: environment steps of the whole run.
    """

    ratio: float
    replayed_per_update: int
    prefill: int
    env_steps: int

    @staticmethod
    def of(settings: Settings) -> TrainRatio:
        """Return the ratio that the settings ask for."""
        return TrainRatio(
            settings.train.ratio,
            settings.learner.batch_size * settings.learner.sequence_length,
            settings.train.prefill,
            settings.train.env_steps,
        )

    def updates_allowed(self, env_steps: int) -> int:
        """Return the updates that may have been made when `env_steps` are acknowledged."""
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
