"""Recovery: finds the records of a segment again, around whatever is damaged in it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from dreamfleet.common.experience.blocks import DamagedChunkError
from dreamfleet.common.experience.chunk import (
    MAGIC,
    PREFIX,
    ChunkHeader,
    check_header,
    check_record,
    parse_header,
    record_size,
)
from dreamfleet.common.experience.steps import StepFormat
from dreamfleet.replay.segment import Segment

_GUESS_BYTES = 512
_SEARCH_BYTES = 1 << 20
_MOST_HEADER_BYTES = 1 << 20


class Found(NamedTuple):
    """A record: where it begins, and its header."""

    offset: int
    header: ChunkHeader


class Damage(NamedTuple):
    """Bytes that are no record: where they begin, where they end, and what is wrong with them."""

    offset: int
    stop: int
    reason: str


def scan(segment: Segment, step_format: StepFormat, start: int, bodies: bool) -> Iterator[Found | Damage]:
    """Yield every record of a segment in order, and every stretch of bytes that is none.

    Args:
        segment: where to look.
        step_format: records of any other format count as damaged.
        start: offset of the first record.
        bodies: whether to read and check the bodies too; headers alone take a thousandth of the reading.
    """
    offset = start
    while offset < segment.size:
        try:
            header = _read_record(segment, step_format, offset, bodies)
        except DamagedChunkError as error:
            stop = _next_record(segment, step_format, offset + 1)
            yield Damage(offset, stop, str(error))
            offset = stop
        else:
            yield Found(offset, header)
            offset += header.record_bytes


def _read_record(segment: Segment, step_format: StepFormat, offset: int, body: bool) -> ChunkHeader:
    """Return the header of the record at `offset` after the checks asked for."""
    header = _read_header(segment, step_format, offset)
    if offset + header.record_bytes > segment.size:
        missing = offset + header.record_bytes - segment.size
        raise DamagedChunkError(f"the last {missing} bytes of the record are missing")
    if body:
        check_record(step_format, segment.read(offset, header.record_bytes))
    return header


def _read_header(segment: Segment, step_format: StepFormat, offset: int) -> ChunkHeader:
    """Return the header of the record at `offset`, whatever became of its body."""
    front = segment.read(offset, _GUESS_BYTES)
    header_bytes, _ = record_size(front)
    if header_bytes > _MOST_HEADER_BYTES:
        raise DamagedChunkError(f"a record's header cannot have {header_bytes} bytes")
    if PREFIX.size + header_bytes > len(front):
        front = segment.read(offset, PREFIX.size + header_bytes)
    header = parse_header(front)
    check_header(step_format, header)
    return header


def _next_record(segment: Segment, step_format: StepFormat, start: int) -> int:
    """Return the offset of the next intact header from `start` on, or the segment's end."""
    position = start
    while position < segment.size:
        window = segment.read(position, _SEARCH_BYTES)
        at = window.find(MAGIC)
        while at >= 0:
            try:
                _read_header(segment, step_format, position + at)
            except DamagedChunkError:
                at = window.find(MAGIC, at + 1)
            else:
                return position + at
        if len(window) < len(MAGIC):
            break
        position += len(window) - len(MAGIC) + 1  # a magic may lie across two windows
    return segment.size
