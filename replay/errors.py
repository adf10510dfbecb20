"""What a replay may fail of, without Ray."""

from __future__ import annotations

from dreamfleet.common.errors import RunFailedError


class NotEnoughExperienceError(Exception):
    """There is no sequence of the wanted length yet."""


class ReplayLostError(RunFailedError):
    """A replay's process does not answer and does not come back, or no shard of a replay is left."""
