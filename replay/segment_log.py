"""The segment log: all chunks of a replay, in append-only files of which the oldest are dropped when space runs out."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from dreamfleet.common.errors import UserError
from dreamfleet.common.experience.chunk import ChunkHeader
from dreamfleet.common.experience.spaces import first_difference
from dreamfleet.common.experience.steps import CHUNK_STEPS, StepFormat
from dreamfleet.common.settings.schema import ReplaySettings
from dreamfleet.replay.segment import (
    Damage,
    DamagedSegmentError,
    Segment,
    SegmentHeader,
    StoredChunk,
    open_segments,
    scan,
    sync_directory,
)

_LOG = logging.getLogger(__name__)
_SEGMENT_BYTES = 64 << 20
_LEAST_SEGMENTS = 16
_MOST_SEGMENTS = 256
_HEADROOM_BYTES = 1 << 16


class Location(NamedTuple):
    """Where a chunk lies: the number of its segment, and the byte where it begins."""

    segment: int
    offset: int


class SegmentLog:
    """The chunks of a replay in the order in which they came.

    `recover` must be run through before anything is appended. With `read_only`, no file is changed: a torn chunk at the
    end is ignored, and stays, since another process may be just writing it; nothing may be appended then.

    Attributes:
        newest_header: the header of the newest segment that has an intact one.
        full_segment: at how many bytes and steps a segment is full.
        total_steps: steps ever stored, also those dropped since.
        damaged_bytes: bytes found damaged, and passed over, when the log was opened.
    """

    def __init__(
        self, directory: Path, step_format: StepFormat, segment_bytes: int, segment_steps: int, read_only: bool = False
    ) -> None:
        self._directory = directory
        self._step_format = step_format
        self._read_only = read_only
        for leftover in [] if read_only else directory.glob("segment-*.tmp"):
            leftover.unlink()
        self._segments = {segment.number: segment for segment in open_segments(directory, writable=not read_only)}
        self.newest_header = SegmentHeader(step_format.to_json())
        self.full_segment = (segment_bytes, segment_steps)
        self.total_steps = 0
        self.damaged_bytes = 0

    @property
    def bytes_stored(self) -> int:
        """Bytes of all files."""
        return sum(segment.size for segment in list(self._segments.values()))

    @property
    def count(self) -> int:
        """Number of files."""
        return len(self._segments)

    def segment(self, number: int) -> Segment:
        """Return the live segment with this number."""
        return self._segments[number]

    def recover(self) -> Iterator[tuple[ChunkHeader, Location]]:
        """Yield the header and the place of every stored chunk; repair what a crash left behind.

        The newest segment is read in full, and a torn chunk at its end is cut off, or only passed over if nothing may
        be changed; of the others only headers are read. What is damaged in the middle is passed over, logged, and stays
        as a gap. A file whose own header is damaged keeps its chunks: the header of each is enough to identify it.

        Raises:
            UserError: if the directory holds steps of another format.
        """
        newest = max(self._segments, default=0)
        for number, segment in list(self._segments.items()):
            start = self._open_header(segment)
            for found in scan(segment, self._step_format, start, bodies=number == newest):
                if isinstance(found, Damage):
                    self._handle_damage(found, is_newest=number == newest)
                else:
                    segment.steps += found.header.steps
                    self.total_steps += found.header.steps
                    yield found.header, Location(number, found.offset)
        if not self._segments and not self._read_only:
            self.roll(self.newest_header)

    def is_full(self, chunk_bytes: int, steps: int) -> bool:
        """Whether the next chunk, of this size, must go to a new segment."""
        newest = self._newest
        full_bytes, full_steps = self.full_segment
        return newest.steps > 0 and (newest.size + chunk_bytes > full_bytes or newest.steps + steps > full_steps)

    def append(self, chunk: bytes | memoryview, steps: int) -> Location:
        """Store a chunk of this many steps; once this returns it outlives this process, by SIGKILL too."""
        newest = self._newest
        offset = newest.append(chunk)
        newest.steps += steps
        self.total_steps += steps
        return Location(newest.number, offset)

    def excess(self, capacity_bytes: int, capacity_steps: int, room: tuple[int, int] = (0, 0)) -> list[int]:
        """Return which of the oldest segments must go so that `room` more bytes and steps fit, always leaving one."""
        stored_bytes = self.bytes_stored + room[0]
        steps = sum(segment.steps for segment in self._segments.values()) + room[1]
        too_many = []
        for number in list(self._segments)[:-1]:
            if stored_bytes <= capacity_bytes and steps <= capacity_steps:
                break
            too_many.append(number)
            stored_bytes -= self._segments[number].size
            steps -= self._segments[number].steps
        return too_many

    def roll(self, header: SegmentHeader) -> None:
        """Begin a new segment; the one before it is on the disk when this returns."""
        if self._segments:
            self._newest.sync()
        number = max(self._segments, default=0) + 1
        self._segments[number] = Segment.create(self._directory, number, header)
        self.newest_header = header

    def drop(self, numbers: list[int]) -> None:
        """Remove these segments; readers that have one pinned can read on."""
        for number in numbers:
            self._segments.pop(number).drop()
        if numbers:
            sync_directory(self._directory)

    def sync(self) -> None:
        """Wait until everything appended is on the disk itself."""
        self._newest.sync()

    def close(self) -> None:
        """Sync and close all files."""
        if self._segments and not self._read_only:
            self._newest.sync()
        for segment in self._segments.values():
            segment.close()

    @property
    def _newest(self) -> Segment:
        return self._segments[next(reversed(self._segments))]

    def _open_header(self, segment: Segment) -> int:
        """Take over the segment's header and return where its chunks begin."""
        try:
            header, start = segment.read_header()
        except DamagedSegmentError as error:
            _LOG.error("%s: %s; the chunks in it are searched for one by one", segment.path, error)
            return 0
        check_same_format(self._directory, header, self._step_format)
        self.newest_header = header
        self.total_steps = max(self.total_steps, header.steps_before)
        return start

    def _handle_damage(self, damage: Damage, is_newest: bool) -> None:
        segment = damage.segment
        size = damage.stop - damage.offset
        if is_newest and damage.is_at_the_end:
            if not self._read_only:
                segment.truncate(damage.offset)
                sentence = "%s: %d bytes of a torn chunk at its end were cut off: %s"
                _LOG.warning(sentence, segment.path, size, damage.reason)
            return
        self.damaged_bytes += size
        sentence = "%s: %d bytes at byte %d are damaged and passed over, their steps are lost: %s"
        _LOG.warning(sentence, segment.path, size, damage.offset, damage.reason)


def read_chunks(
    segments: Iterable[Segment], step_format: StepFormat, bodies: bool = False
) -> Iterator[StoredChunk | Damage]:
    """Yield what `scan` finds in all segments, in order; one whose header is damaged is searched from its start."""
    for segment in segments:
        try:
            _, start = segment.read_header()
        except DamagedSegmentError as error:
            yield Damage(segment, 0, 0, str(error))
            start = 0
        yield from scan(segment, step_format, start, bodies)


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


def check_same_format(directory: Path, header: SegmentHeader, wanted: StepFormat) -> None:
    """Refuse a directory whose steps are of another format.

    Raises:
        UserError: naming the first thing that differs.
    """
    stored = read_format(directory, header)
    if stored.identity != wanted.identity:
        raise UserError(
            f"{directory} holds steps of another environment or other wrappers: "
            f"{first_difference(stored.spaces, wanted.spaces)}. Give the settings it was filled with, or another "
            "directory."
        )


def read_format(directory: Path, header: SegmentHeader) -> StepFormat:
    """Return the step format in a segment header.

    Raises:
        UserError: if this version cannot read it.
    """
    try:
        return StepFormat.from_json(header.step_format)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{directory} was written in a format that this version does not read: {error}.") from error
