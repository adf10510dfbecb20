"""The segment: one append-only file of chunks.

A file begins with a header (integers little-endian), then come chunks as `common/experience/chunk.py` draws them:

    magic "DFSG" | JSON bytes u32 | CRC-32 of the JSON u32 | JSON

The JSON is a `SegmentHeader`. Nothing in a file changes once written; a file only grows, until the next one is begun.
`scan` finds the chunks of a file again, around whatever is damaged in it.
"""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from dreamfleet.common.experience import chunk
from dreamfleet.common.experience.blocks import DamagedChunkError
from dreamfleet.common.experience.chunk import ChunkHeader
from dreamfleet.common.experience.steps import StepFormat

MAGIC = b"DFSG"
SUFFIX = ".dfl"
_PREFIX = struct.Struct("<4sII")
_MOST_HEADER_BYTES = 1 << 28
_MOST_CHUNK_HEADER_BYTES = 1 << 20
_GUESS_BYTES = 512
_SEARCH_BYTES = 1 << 20


class DamagedSegmentError(Exception):
    """A file that does not begin with an intact segment header."""


@dataclass(frozen=True)
class SegmentHeader:
    """What a segment says of the replay before it, so that nothing is forgotten when older segments are dropped.

    Attributes:
        step_format: as `StepFormat.to_json` gives it.
        steps_before: unique steps stored before this segment, since the replay began.
        next_incarnation: 1 + the greatest incarnation seen before this segment.
        dropped: (actor, incarnation, stream, number) of the newest chunk dropped of each stream before this segment.
    """

    step_format: dict[str, Any]
    steps_before: int = 0
    next_incarnation: int = 0
    dropped: Sequence[Sequence[int]] = field(default_factory=list)

    def encode(self) -> bytes:
        """Return the bytes that begin a file."""
        text = json.dumps(asdict(self), separators=(",", ":"), allow_nan=False).encode()
        return _PREFIX.pack(MAGIC, len(text), zlib.crc32(text)) + text


class Segment:
    """One file, open for reading and, if it is the newest, for appending.

    `number` is its place in the order of all segments ever written, `size` its bytes, `steps` those of its chunks.
    """

    def __init__(self, path: Path, writable: bool = True) -> None:
        self.path = path
        self.number = segment_number(path)
        self.steps = 0
        self._descriptor = os.open(path, os.O_RDWR if writable else os.O_RDONLY)
        self.size = os.fstat(self._descriptor).st_size
        self._pins = 0
        self._closed = False

    @staticmethod
    def create(directory: Path, number: int, header: SegmentHeader) -> Segment:
        """Begin the file with this number; after a crash it is there with a whole header, or not at all."""
        path = directory / f"segment-{number:08d}{SUFFIX}"
        unfinished = path.with_suffix(".tmp")
        with unfinished.open("wb") as file:
            file.write(header.encode())
            file.flush()
            os.fsync(file.fileno())
        unfinished.rename(path)
        sync_directory(directory)
        return Segment(path)

    def read_header(self) -> tuple[SegmentHeader, int]:
        """Return the header and the offset of the first chunk, or raise `DamagedSegmentError`."""
        prefix = self.read(0, _PREFIX.size)
        if len(prefix) < _PREFIX.size or prefix[:4] != MAGIC:
            raise DamagedSegmentError(f"a segment begins with {MAGIC!r}, not {prefix[:4]!r}")
        _, length, checksum = _PREFIX.unpack(prefix)
        text = self.read(_PREFIX.size, length) if length <= _MOST_HEADER_BYTES else b""
        if len(text) != length or zlib.crc32(text) != checksum:
            raise DamagedSegmentError("the segment header's checksum is wrong")
        try:
            return SegmentHeader(**json.loads(text)), _PREFIX.size + length
        except (TypeError, ValueError) as error:
            raise DamagedSegmentError(f"the segment header cannot be read: {error}") from error

    def append(self, data: bytes | memoryview) -> int:
        """Write a chunk at the end with one system call and return its offset.

        Once this returns, the chunk outlives this process; it outlives the machine after `sync`.
        """
        offset, view = self.size, memoryview(data)
        try:
            written = 0
            while written < len(view):  # a second round only if the disk fills up or a signal came in between
                written += os.pwrite(self._descriptor, view[written:], offset + written)
        except OSError:
            os.ftruncate(self._descriptor, offset)
            raise
        self.size += len(view)
        return offset

    def read(self, offset: int, size: int) -> bytes:
        """Return `size` bytes from `offset` on; fewer at the end of the file."""
        return os.pread(self._descriptor, size, offset)

    def read_into(self, offset: int, target: memoryview) -> int:
        """Fill `target` from `offset` on and return how many bytes there were."""
        return os.preadv(self._descriptor, [target], offset)

    def truncate(self, size: int) -> None:
        """Cut off everything from `size` on: a torn chunk that was never acknowledged."""
        os.ftruncate(self._descriptor, size)
        os.fsync(self._descriptor)
        self.size = size

    def sync(self) -> None:
        """Wait until everything appended is on the disk itself."""
        os.fsync(self._descriptor)

    def pin(self) -> None:
        """Keep the file readable, also if it is closed or dropped meanwhile; the caller holds the replay's lock."""
        self._pins += 1

    def unpin(self) -> None:
        """Take back one `pin`; the caller holds the replay's lock."""
        self._pins -= 1
        self._close_if_unused()

    def close(self) -> None:
        """Close the file once nobody has it pinned."""
        self._closed = True
        self._close_if_unused()

    def drop(self) -> None:
        """Remove the file; whoever has it pinned can still read it."""
        self.path.unlink(missing_ok=True)
        self.close()

    def _close_if_unused(self) -> None:
        if self._closed and self._pins == 0 and self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def segment_paths(directory: Path) -> list[Path]:
    """Return the segment files of a directory, oldest first."""
    return sorted(directory.glob(f"segment-*{SUFFIX}"), key=segment_number)


def open_segments(directory: Path, writable: bool) -> list[Segment]:
    """Open the segments of a directory, oldest first; those that another process drops meanwhile are left out.

    The newest is opened first: the oldest are dropped first, so that none is missing between those that were there.
    """
    segments: list[Segment] = []
    for path in reversed(segment_paths(directory)):
        try:
            segments.append(Segment(path, writable))
        except FileNotFoundError:
            break
    return segments[::-1]


def segment_number(path: Path) -> int:
    """Return the number in a segment file's name."""
    return int(path.stem.removeprefix("segment-"))


def sync_directory(directory: Path) -> None:
    """Wait until the directory's list of files is on the disk."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class StoredChunk(NamedTuple):
    """A chunk's header, and where the chunk begins."""

    header: ChunkHeader
    segment: Segment
    offset: int

    def read(self) -> bytes:
        """Return the whole chunk, encoded."""
        return self.segment.read(self.offset, self.header.chunk_bytes)


class Damage(NamedTuple):
    """Bytes that are no chunk, or a segment header that is damaged (then `offset` and `stop` are 0); as a sentence."""

    segment: Segment
    offset: int
    stop: int
    reason: str

    @property
    def is_at_the_end(self) -> bool:
        """Whether the file ends with it, as with a chunk that is just being written, or was torn."""
        return self.stop > self.offset and self.stop == self.segment.size

    def __str__(self) -> str:
        if self.stop == self.offset:
            return f"{self.segment.path}: {self.reason}."
        size = self.stop - self.offset
        return f"{self.segment.path}: {size} bytes at byte {self.offset} are no chunk: {self.reason}."


def scan(segment: Segment, step_format: StepFormat, start: int, bodies: bool) -> Iterator[StoredChunk | Damage]:
    """Yield every chunk of a segment from offset `start` on in order, and every range of bytes that is none.

    Chunks of any other format count as damaged. With `bodies`, the bodies are read and checked too; the headers alone
    take a thousandth of the reading.
    """
    offset = start
    while offset < segment.size:
        try:
            header = _read_chunk(segment, step_format, offset, bodies)
        except DamagedChunkError as error:
            stop = _next_chunk(segment, step_format, offset + 1)
            yield Damage(segment, offset, stop, str(error))
            offset = stop
        else:
            yield StoredChunk(header, segment, offset)
            offset += header.chunk_bytes


def _read_chunk(segment: Segment, step_format: StepFormat, offset: int, body: bool) -> ChunkHeader:
    """Return the header of the chunk at `offset` after the checks asked for."""
    header = _read_chunk_header(segment, step_format, offset)
    missing = offset + header.chunk_bytes - segment.size
    if missing > 0:
        raise DamagedChunkError(f"the last {missing} bytes of the chunk are missing")
    if body:
        chunk.check_chunk(step_format, segment.read(offset, header.chunk_bytes))
    return header


def _read_chunk_header(segment: Segment, step_format: StepFormat, offset: int) -> ChunkHeader:
    """Return the header of the chunk at `offset`, whatever became of its body."""
    front = segment.read(offset, _GUESS_BYTES)
    header_bytes, _ = chunk.chunk_size(front)
    if header_bytes > _MOST_CHUNK_HEADER_BYTES:
        raise DamagedChunkError(f"a chunk's header cannot have {header_bytes} bytes")
    if chunk.PREFIX.size + header_bytes > len(front):
        front = segment.read(offset, chunk.PREFIX.size + header_bytes)
    header = chunk.parse_header(front)
    chunk.check_header(step_format, header)
    return header


def _next_chunk(segment: Segment, step_format: StepFormat, start: int) -> int:
    """Return the offset of the next intact header from `start` on, or the segment's end."""
    position = start
    while position < segment.size:
        window = segment.read(position, _SEARCH_BYTES)
        at = window.find(chunk.MAGIC)
        while at >= 0:
            try:
                _read_chunk_header(segment, step_format, position + at)
            except DamagedChunkError:
                at = window.find(chunk.MAGIC, at + 1)
            else:
                return position + at
        if len(window) < len(chunk.MAGIC):
            break
        position += len(window) - len(chunk.MAGIC) + 1  # a magic may lie across two windows
    return segment.size
