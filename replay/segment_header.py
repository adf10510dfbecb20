"""The header of a segment: what begins the file, and chains it to the one before it.

    magic "DFSG" | JSON bytes u32 | CRC-32 of the JSON u32 | JSON

Integers are little-endian, the JSON is a `SegmentHeader`.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from dreamfleet.common.errors import UserError
from dreamfleet.common.experience.spaces import first_difference
from dreamfleet.common.experience.steps import StepFormat

MAGIC = b"DFSG"
PREFIX = struct.Struct("<4sII")
MOST_BYTES = 1 << 28


class DamagedSegmentError(Exception):
    """A file that does not begin with an intact segment header."""


class Link(NamedTuple):
    """A segment as it was when the next one was begun, from when on it is never changed.

    Attributes:
        number: of the segment.
        header: CRC-32 of its header's JSON; None if that was damaged by then.
        steps: of all chunks in it.
        chunks: CRC-32 over the prefixes of its chunks in order, which hold their headers' checksums, and these hold
            those of their blocks: so it stands for every byte, and is found by reading the headers alone.
        first: the same over the first chunk alone, 0 if there is none.
    """

    number: int
    header: int | None
    steps: int
    chunks: int
    first: int

    @property
    def counts(self) -> list[Any]:
        """All that must be a count, as far as it is known."""
        return [self.number, self.steps, self.chunks, self.first, 0 if self.header is None else self.header]


@dataclass(frozen=True)
class SegmentHeader:
    """What a segment says of the replay before it, so that nothing is forgotten when older segments are dropped.

    Attributes:
        step_format: as `StepFormat.to_json` gives it.
        steps_before: unique steps stored before this segment, since the replay began.
        next_incarnation: 1 + the greatest incarnation seen before this segment.
        dropped: (actor, incarnation, stream, number) of the newest chunk dropped of each stream before this segment.
        number: of this segment; 0 in files of before there was a chain.
        oldest: number of the oldest segment that was kept when this one was begun.
        previous: the segment before it; None of the first, and in files of before there was a chain.
    """

    step_format: dict[str, Any]
    steps_before: int = 0
    next_incarnation: int = 0
    dropped: Sequence[Sequence[int]] = field(default_factory=list)
    number: int = 0
    oldest: int = 0
    previous: Link | None = None

    def encode(self) -> bytes:
        """Return the bytes that begin a file."""
        text = json.dumps(asdict(self), separators=(",", ":"), allow_nan=False).encode()
        return PREFIX.pack(MAGIC, len(text), zlib.crc32(text)) + text

    @staticmethod
    def parse(text: bytes) -> SegmentHeader:
        """Return the header in a JSON.

        Raises:
            DamagedSegmentError: if there is none in it.
        """
        try:
            values = json.loads(text)
            link = values.get("previous")
            header = SegmentHeader(**(values | {"previous": None if link is None else Link(*link)}))
        except (TypeError, ValueError, AttributeError, RecursionError) as error:
            raise DamagedSegmentError(f"the segment header cannot be read: {error}") from error
        if not header._is_well_formed():
            raise DamagedSegmentError("the segment header cannot be read: its values are not of the right kinds")
        return header

    def _is_well_formed(self) -> bool:
        counts = [self.steps_before, self.next_incarnation, self.number, self.oldest]
        link = self.previous
        if link is not None:
            counts += link.counts
        if not (isinstance(self.step_format, dict) and isinstance(self.dropped, list)):
            return False
        keys = [key for key in self.dropped if isinstance(key, list) and len(key) == 4]
        numbers = [number for key in keys for number in key]
        if len(keys) < len(self.dropped) or not all(type(n) is int and 0 <= n < 1 << 63 for n in counts + numbers):
            return False
        return self.next_incarnation <= 1 << 32  # a chunk's header has 32 bits for it


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
