"""Who is told of what the fleet loop does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dreamfleet.common.process_log import LogRecord
from dreamfleet.deploy.fleet.worker_slot import Slot

if TYPE_CHECKING:
    from dreamfleet.deploy.fleet.fleet import Fleet


class Watcher:
    """What the loop tells of its doings; this one keeps it all to itself."""

    def restored(self, fleet: Fleet, decisions: list[str]) -> None:
        """The learner is up; these are the choices it made by itself."""

    def trained(self, fleet: Fleet, report: Any) -> None:
        """A train order was done."""

    def collected(self, fleet: Fleet, slot: Slot, report: Any) -> None:
        """A collect order was done."""

    def illustrated(self, fleet: Fleet, pictures: Any) -> None:
        """The learner drew its pictures."""

    def saved(self, fleet: Fleet, facts: dict[str, Any]) -> None:
        """A checkpoint was written."""

    def evaluated(self, fleet: Fleet, env_steps: int, report: Any) -> None:
        """The weights of a checkpoint were evaluated, of when so many environment steps had been collected."""

    def noted(self, notes: list[LogRecord]) -> None:
        """The learner's process logged these."""

    def turned(self, fleet: Fleet) -> None:
        """The loop went round once."""
