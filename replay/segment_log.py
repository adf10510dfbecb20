"""The segment log: all records of a replay, in append-only files of which the oldest is dropped when space runs out."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from dreamfleet.common.errors import UserError
from dreamfleet.common.experience.chunk import ChunkHeader
from dreamfleet.common.experience.spaces import first_difference
from dreamfleet.common.experience.steps import StepFormat
from dreamfleet.replay.segment import (
    Damage,
    DamagedSegmentError,
    Segment,
    SegmentHeader,
    open_segments,
    scan,
    sync_directory,
)

_LOG = logging.getLogger(__name__)


class Location(NamedTuple):
    """Where a record lies."""

    segment: int
    offset: int


class SegmentLog:
    """The records of a replay in the order in which they came.

    `recover` must be run through before anything is appended.

    Attributes:
        newest_header: the header of the newest segment that has an intact one.
        total_steps: steps ever stored, also those dropped since.
        damaged_bytes: bytes found damaged, and passed over, when the log was opened.

    Args:
        directory: where the files are; unless `read_only`, it must exist.
        step_format: the format of all records.
        segment_bytes: a segment of so many bytes is full.
        segment_steps: a segment of so many steps is full.
        read_only: change no file: a torn record at the end is not seen, and stays, since another process may be just
            writing it. Nothing may be appended then.

    Raises:
        UserError: if the directory holds steps of another format.
    """

    def __init__(
        self,
        directory: Path,
        step_format: StepFormat,
        segment_bytes: int,
        segment_steps: int,
        read_only: bool = False,
    ) -> None:
        self._directory = directory
        self._step_format = step_format
        self._full = (segment_bytes, segment_steps)
        self._read_only = read_only
        for leftover in [] if read_only else directory.glob("segment-*.tmp"):
            leftover.unlink()
        self._segments = {segment.number: segment for segment in open_segments(directory, writable=not read_only)}
        self.newest_header = SegmentHeader(step_format.to_json())
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
        """Yield the header and the place of every stored record; repair what a crash left behind.

        The newest segment is read in full, and a torn record at its end is cut off, or only passed over if nothing may
        be changed; of the others only headers are read. What is damaged in the middle is passed over, logged, and stays
        as a gap. A file whose own header is damaged keeps its records: each says of itself what it is.

        Raises:
            UserError: if the directory holds steps of another format.
        """
        newest = max(self._segments, default=0)
        for number in list(self._segments):
            segment = self._segments[number]
            start = self._open_header(segment)
            for piece in scan(segment, self._step_format, start, bodies=number == newest):
                if isinstance(piece, Damage):
                    self._handle_damage(segment, piece, is_newest=number == newest)
                else:
                    segment.steps += piece.header.steps
                    self.total_steps += piece.header.steps
                    yield piece.header, Location(number, piece.offset)
        if not self._segments and not self._read_only:
            self.roll(self.newest_header)

    def is_full(self, record_bytes: int, steps: int) -> bool:
        """Whether the next record, of this size, must go to a new segment."""
        newest = self._newest()
        return newest.steps > 0 and (newest.size + record_bytes > self._full[0] or newest.steps + steps > self._full[1])

    def append(self, record: bytes | memoryview, steps: int) -> Location:
        """Store a record of so many steps; once this returns it outlives this process, by SIGKILL too."""
        newest = self._newest()
        offset = newest.append(record)
        newest.steps += steps
        self.total_steps += steps
        return Location(newest.number, offset)

    @property
    def full_segment(self) -> tuple[int, int]:
        """At how many bytes and steps a segment is full."""
        return self._full

    def excess(self, capacity_bytes: int, capacity_steps: int, room: tuple[int, int] = (0, 0)) -> list[int]:
        """Return which of the oldest segments must go so that the rest and `room` more fit, always leaving one.

        Args:
            capacity_bytes: most bytes that may be stored.
            capacity_steps: most steps that may be stored.
            room: bytes and steps that are to fit beside what is stored.
        """
        stored_bytes, steps = self.bytes_stored + room[0], self._stored_steps() + room[1]
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
            self._newest().sync()
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
        self._newest().sync()

    def close(self) -> None:
        """Sync and close all files."""
        if self._segments and not self._read_only:
            self._newest().sync()
        for segment in self._segments.values():
            segment.close()

    def _newest(self) -> Segment:
        return self._segments[next(reversed(self._segments))]

    def _stored_steps(self) -> int:
        return sum(segment.steps for segment in self._segments.values())

    def _open_header(self, segment: Segment) -> int:
        """Take over the segment's header and return where its records begin."""
        try:
            header, start = segment.read_header()
        except DamagedSegmentError as error:
            _LOG.error("%s: %s; the records in it are searched for one by one", segment.path, error)
            return 0
        check_same_format(self._directory, header, self._step_format)
        self.newest_header = header
        self.total_steps = max(self.total_steps, header.steps_before)
        return start

    def _handle_damage(self, segment: Segment, damage: Damage, is_newest: bool) -> None:
        size = damage.stop - damage.offset
        if is_newest and damage.stop == segment.size:
            if self._read_only:
                return
            segment.truncate(damage.offset)
            _LOG.warning("%s: %d bytes of a torn record at its end were cut off: %s", segment.path, size, damage.reason)
            return
        self.damaged_bytes += size
        _LOG.warning(
            "%s: %d bytes at byte %d are damaged and passed over, their steps are lost: %s",
            segment.path, size, damage.offset, damage.reason,
        )  # fmt: skip


def check_same_format(directory: Path, header: SegmentHeader, wanted: StepFormat) -> None:
    """Refuse a directory whose steps are of another format.

    Raises:
        UserError: naming the first thing that differs.
    """
    stored = read_format(directory, header)
    if stored.identity == wanted.identity:
        return
    raise UserError(
        f"{directory} holds steps of another environment or other wrappers: "
        f"{first_difference(stored.spaces, wanted.spaces)}. Give the settings it was filled with, or another directory."
    )


def read_format(directory: Path, header: SegmentHeader) -> StepFormat:
    """Return the format a segment header tells.

    Raises:
        UserError: if this version cannot read it.
    """
    try:
        return StepFormat.from_json(header.step_format)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{directory} was written in a format that this version does not read: {error}.") from error
