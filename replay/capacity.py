"""The capacity of a replay, and the size of its segments."""

from __future__ import annotations

from dreamfleet.common.errors import UserError
from dreamfleet.common.experience.steps import CHUNK_STEPS, StepFormat
from dreamfleet.common.settings.schema import ReplaySettings

_SEGMENT_BYTES = 64 << 20
_LEAST_SEGMENTS = 16
_MOST_SEGMENTS = 256
_HEADROOM_BYTES = 1 << 16


def segment_size(settings: ReplaySettings, step_format: StepFormat) -> tuple[int, int]:
    """Return at how many bytes and steps a segment is full: a 16th of the capacity, but 64 MiB at most, and 256 files.

    Raises:
        UserError: if the capacity holds too few chunks for dropping the oldest to work.
    """
    capacity = int(settings.capacity_gb * 1e9)
    whole_chunk = CHUNK_STEPS * step_format.step_bytes + _HEADROOM_BYTES
    segment_bytes = max(min(_SEGMENT_BYTES, capacity // _LEAST_SEGMENTS), capacity // _MOST_SEGMENTS, whole_chunk)
    if capacity < 4 * segment_bytes:
        shards = f" for replay.shards {settings.shards}" if settings.shards > 1 else ""
        raise UserError(
            f"replay.capacity_gb {whole_capacity_gb(settings)} is too small{shards}: chunks of {CHUNK_STEPS} steps of "
            f"{step_format.step_bytes} bytes need at least {settings.shards * 4 * whole_chunk / 1e9:.6f}."
        )
    return segment_bytes, max(CHUNK_STEPS, settings.capacity_steps // _LEAST_SEGMENTS)


def whole_capacity_gb(settings: ReplaySettings) -> float:
    """Return the gigabytes that the user gave, of which this may be one shard's share."""
    return float(f"{settings.capacity_gb * settings.shards:.12g}")
