"""Finding the chunks of a segment again, around whatever is damaged in it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from dreamfleet.common.experience import chunk
from dreamfleet.common.experience.blocks import DamagedChunkError
from dreamfleet.common.experience.chunk import ChunkHeader
from dreamfleet.common.experience.steps import StepFormat
from dreamfleet.replay.segment import Segment
from dreamfleet.replay.segment_header import DamagedSegmentError

_MOST_CHUNK_HEADER_BYTES = 1 << 20
_GUESS_BYTES = 512
_SEARCH_BYTES = 1 << 20


class StoredChunk(NamedTuple):
    """A chunk's header, and where the chunk begins."""

    header: ChunkHeader
    segment: Segment
    offset: int

    def read(self) -> bytes:
        """Return the whole chunk, encoded."""
        return self.segment.read(self.offset, self.header.chunk_bytes)


class Damage(NamedTuple):
    """Bytes that are no chunk, or a segment header that is damaged (then `offset` and `stop` are 0); as a sentence.

    `header` is of a chunk whose body alone is damaged.
    """

    segment: Segment
    offset: int
    stop: int
    reason: str
    header: ChunkHeader | None = None

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
        whole = None
        try:
            header = whole = _read_whole_header(segment, step_format, offset)
            if bodies:
                chunk.check_chunk(step_format, segment.read(offset, header.chunk_bytes))
        except DamagedChunkError as error:
            stop = _next_chunk(segment, step_format, offset + 1)
            yield Damage(segment, offset, stop, str(error), whole)
            offset = stop
        else:
            yield StoredChunk(header, segment, offset)
            offset += header.chunk_bytes


def _read_whole_header(segment: Segment, step_format: StepFormat, offset: int) -> ChunkHeader:
    """Return the header of the chunk at `offset`, whose body is there, intact or not."""
    header = _read_chunk_header(segment, step_format, offset)
    missing = offset + header.chunk_bytes - segment.size
    if missing > 0:
        raise DamagedChunkError(f"the last {missing} bytes of the chunk are missing")
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
