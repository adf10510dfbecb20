"""The segment log: all chunks of a replay, in append-only files of which the oldest are dropped when space runs out."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from dreamfleet.common.errors import UserError
from dreamfleet.common.experience.chunk import ChunkHeader
from dreamfleet.common.experience.steps import CHUNK_STEPS, StepFormat
from dreamfleet.common.settings.schema import ReplaySettings
from dreamfleet.replay.chain import Chain
from dreamfleet.replay.manifest import Manifest
from dreamfleet.replay.scan import Damage, StoredChunk, scan
from dreamfleet.replay.segment import Segment, sync_directory
from dreamfleet.replay.segment_header import DamagedSegmentError, SegmentHeader, check_same_format

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
        lacks_newest: whether newest steps are missing, so that a new segment must be begun before anything is appended.

    Args:
        shards: how many shards the replay has of which this is one.

    Raises:
        UserError: if a file cannot be opened.
    """

    def __init__(
        self,
        directory: Path,
        step_format: StepFormat,
        segment_bytes: int,
        segment_steps: int,
        read_only: bool = False,
        shards: int = 1,
    ) -> None:
        self._directory = directory
        self._step_format = step_format
        self._read_only = read_only
        self._shards = shards
        for leftover in [] if read_only else directory.glob("segment-*.tmp"):
            _remove(leftover)
        self._chain = Chain(directory, writable=not read_only)
        self._segments = {segment.number: segment for segment in self._chain.segments}
        self.newest_header = SegmentHeader(step_format.to_json())
        self.full_segment = (segment_bytes, segment_steps)
        self.total_steps = 0
        self.damaged_bytes = 0
        self.lacks_newest = False
        self._headers = dict(self._chain.headers)
        self._oldest = self._chain.oldest
        self._is_recovered = False
        self._written: Manifest | None = None

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

        Segments that are missing are logged, and their steps still count; a file that is not where it belongs is
        refused, since steps would be counted twice or mixed up.

        Raises:
            UserError: if the directory holds steps of another format, or a segment that was renamed, copied or changed,
                or is of another replay.
        """
        chain = self._chain
        for note in chain.notes:
            _LOG.warning("%s", note)
        chain.refuse(list(chain.misplaced().values()))
        newest = max(self._segments, default=0)
        for number, segment in list(self._segments.items()):
            yield from self._recover_segment(segment, is_newest=number == newest)
        for loss in chain.losses():
            _LOG.warning("%s", loss)
        self.lacks_newest = chain.lacks_newest
        self.total_steps = chain.steps
        if not self._segments and not self._read_only:
            self._write_manifest()  # so that it is there before the first segment
            self.roll(replace(self.newest_header, steps_before=self.total_steps))
        self._is_recovered = True

    def _recover_segment(self, segment: Segment, is_newest: bool) -> Iterator[tuple[ChunkHeader, Location]]:
        torn = None
        start = self._open_header(segment)
        for found in scan(segment, self._step_format, start, bodies=is_newest):
            if isinstance(found, StoredChunk):
                segment.count_at(found.offset, found.header.steps)
                yield found.header, Location(segment.number, found.offset)
            elif is_newest and found.is_at_the_end:
                torn = found
            else:
                self._pass_over(found)
        if is_newest:
            self._chain.refuse([sentence for _, sentence in self._chain.changed()])
        if torn and not self._read_only:
            segment.truncate(torn.offset)
            sentence = "%s: %d bytes of a torn chunk at its end were cut off: %s"
            _LOG.warning(sentence, segment.path, torn.stop - torn.offset, torn.reason)

    def is_full(self, chunk_bytes: int, steps: int) -> bool:
        """Whether the next chunk, of this size, must go to a new segment."""
        newest = self._newest
        full_bytes, full_steps = self.full_segment
        return newest.steps > 0 and (newest.size + chunk_bytes > full_bytes or newest.steps + steps > full_steps)

    def append(self, chunk: bytes | memoryview, steps: int) -> Location:
        """Store a chunk of this many steps; once this returns it outlives this process, by SIGKILL too."""
        newest = self._newest
        offset = newest.append(chunk)
        newest.count(steps, chunk)
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

    def roll(self, header: SegmentHeader, too_many: Sequence[int] = ()) -> None:
        """Begin a new segment; the one before it is on the disk when this returns.

        `header` says what was stored and dropped; the log chains it. `too_many` are segments to be dropped next: the
        new segment and the manifest say so first, so that a crash in between forgets nothing.
        """
        link = None
        if self._segments:
            self._newest.sync()
            link = self._newest.link
        number = max(self._chain.newest, *self._segments, 0) + 1
        self._oldest = min(self._segments.keys() - set(too_many), default=number)
        header = replace(header, number=number, oldest=self._oldest, previous=link)
        self._segments[number] = Segment.create(self._directory, header)
        self._headers[number] = self.newest_header = header
        self.lacks_newest = False
        self._write_manifest()

    def drop(self, numbers: list[int]) -> None:
        """Remove these segments; readers that have one pinned can read on."""
        for number in numbers:
            self._segments.pop(number).drop()
            self._headers.pop(number, None)
        if numbers:
            sync_directory(self._directory)

    def sync(self) -> None:
        """Wait until everything appended is on the disk itself, and set down how much it is."""
        self._newest.sync()
        self._write_manifest()

    def close(self) -> None:
        """Sync and close all files."""
        if self._is_recovered and not self._read_only:
            self.sync()
        self.abandon()

    def abandon(self) -> None:
        """Close all files as they are."""
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
        return start

    def _pass_over(self, damage: Damage) -> None:
        """Say what is damaged; the steps that its header tells of were stored and still count."""
        damage.segment.is_whole = False
        if damage.header:
            damage.segment.count_at(damage.offset, damage.header.steps)
        size = damage.stop - damage.offset
        self.damaged_bytes += size
        sentence = "%s: %d bytes at byte %d are damaged and passed over, their steps are lost: %s"
        _LOG.warning(sentence, damage.segment.path, size, damage.offset, damage.reason)

    def _write_manifest(self) -> None:
        """Set down what should be here; without it the replay is as good, but for finding what is missing."""
        known, oldest = self._chain.manifest, self._headers.get(self._oldest)
        manifest = Manifest(
            self._oldest,
            max(self._chain.newest, *self._segments, 0),
            self.total_steps,
            oldest.steps_before if oldest else known.dropped,
            self._newest.link if self._segments else None,
            self._shards,
            [number for number in known.breaks if number >= self._oldest],
            known.gaps,
        )
        if manifest == self._written:
            return
        try:
            manifest.write(self._directory)
            self._written = manifest
        except OSError as error:
            _LOG.warning("%s: its manifest could not be written: %s", self._directory, error.strerror)


def _remove(unfinished: Path) -> None:
    """Remove a file that a crash left."""
    try:
        unfinished.unlink()
    except OSError as error:
        raise UserError(f"{unfinished} cannot be removed: {error.strerror}. Move it elsewhere.") from None


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
