"""Where the chunks of a replay lie: their headers alone, and followed as the replay grows and drops segments."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dreamfleet.common.errors import UserError
from dreamfleet.common.experience.blocks import DamagedChunkError, block_numbers, read_small_fields, read_steps
from dreamfleet.common.experience.chunk import PREFIX, ChunkHeader, check_header, chunk_size, parse_header
from dreamfleet.common.experience.steps import StepFormat
from dreamfleet.replay.scan import Damage, scan
from dreamfleet.replay.segment import Segment, segment_name, segment_number, segment_paths
from dreamfleet.replay.segment_header import DamagedSegmentError, check_same_format, read_format
from dreamfleet.replay.shards import shard_directories
from dreamfleet.replay.start_rules import StartRules

CHUNK = np.dtype(
    [
        ("actor", "u4"),
        ("incarnation", "u4"),
        ("stream", "u4"),
        ("number", "i8"),
        ("first_step", "i8"),
        ("steps", "i2"),
        ("first", "u8"),
        ("last", "u8"),
        ("held_out", "u8"),
        ("version", "i4"),
        ("shard", "i2"),
        ("segment", "i4"),
        ("offset", "i8"),
        ("stored_at", "i8"),
    ]
)
"""A chunk's key, its masks (bit t for step t), its place, and how many steps its shard had stored before it."""
PIECE = np.dtype([("chunk", "i4"), ("bit", "i1"), ("reward", "f8"), ("version", "i4"), ("known", "?")])
"""Steps of one chunk and one episode, from step `bit` on; rewards and versions are known once they were read."""


@dataclass
class _File:
    """How far a segment has been read: bytes, and steps stored before there."""

    offset: int
    stored: int


class ChunkList:
    """The chunks of all shards of a replay, in the order in which they were found.

    Attributes:
        chunks: rows of `CHUNK`.
        pieces: rows of `PIECE`, of which `chunk` is a row of `chunks`.
        generation: changes when rows were removed, and so numbers of rows mean others.
        step_format: None as long as nothing is stored.
    """

    def __init__(self, directory: Path, held_out_every: int) -> None:
        self._directory = directory
        self._rules = StartRules(across_episodes=False, held_out_every=held_out_every)
        self._shards: list[Path] = []
        self._files: dict[tuple[int, int], _File] = {}
        self.chunks, self.pieces = np.zeros(0, CHUNK), np.zeros(0, PIECE)
        self.generation = 0
        self.step_format: StepFormat | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of memory it takes."""
        return int(self.chunks.nbytes + self.pieces.nbytes)

    @property
    def shards(self) -> int:
        """How many shards there are."""
        return len(self._shards)

    def refresh(self) -> bool:
        """Read the headers of what was stored since, and forget what was dropped; whether anything changed.

        Raises:
            UserError: if a shard cannot be read, or holds steps of another format.
        """
        found: set[tuple[int, int]] = set()
        has_grown = False
        for directory in shard_directories(self._directory):
            if directory not in self._shards:
                self._shards.append(directory)
            shard = self._shards.index(directory)
            for path in segment_paths(directory):
                number = segment_number(path)
                found.add((shard, number))
                has_grown |= self._read(shard, number, path)
        return self._forget(self._files.keys() - found) or has_grown

    def read_small(self, row: Any) -> dict[str, np.ndarray]:
        """Return the small fields of a chunk, each (steps, *shape); see `read`."""
        with self._opened(row) as (segment, header):
            assert self.step_format is not None
            block = header.blocks[0]
            stored = segment.read(int(row["offset"]) + block.offset, block.stored_bytes)
            fields = read_small_fields(self.step_format, header.steps, [(block, stored)])
            return {name: array[0] for name, array in fields.items()}

    def read(self, row: Any, start: int, stop: int) -> dict[str, np.ndarray]:
        """Return all fields of steps `start` to `stop` of a chunk; only the blocks that hold them are read.

        Raises:
            UserError: if it has been dropped meanwhile, or is damaged.
        """
        with self._opened(row) as (segment, header):
            assert self.step_format is not None
            blocks = {}
            for number in block_numbers(self.step_format, header.steps, start, stop):
                block = header.blocks[number]
                blocks[number] = (block, segment.read(int(row["offset"]) + block.offset, block.stored_bytes))
            fields = self.step_format.fields
            out = {field.name: np.empty((stop - start, *field.shape), field.dtype) for field in fields}
            read_steps(self.step_format, header.steps, start, stop, blocks, out)
            return out

    @contextmanager
    def _opened(self, row: Any) -> Iterator[tuple[Segment, ChunkHeader]]:
        path = self._shards[int(row["shard"])] / segment_name(int(row["segment"]))
        offset = int(row["offset"])
        try:
            segment = Segment(path, writable=False)
        except FileNotFoundError:
            raise UserError(f"{path.name} has been dropped meanwhile, with the episodes in it") from None
        try:
            assert self.step_format is not None
            header_bytes, _ = chunk_size(segment.read(offset, PREFIX.size))
            header = parse_header(segment.read(offset, PREFIX.size + header_bytes))
            check_header(self.step_format, header)
            yield segment, header
        except DamagedChunkError as error:
            raise UserError(f"{path.name} is damaged at byte {offset}: {error}") from None
        finally:
            segment.close()

    # Following the files --------------------------------------------------------------------------------------------

    def _read(self, shard: int, number: int, path: Path) -> bool:
        """Add the rows of a segment's chunks that were not known; whether there are any."""
        known = self._files.get((shard, number))
        with suppress(FileNotFoundError):
            if known and path.stat().st_size <= known.offset:
                return False
            segment = Segment(path, writable=False)
            try:
                if known is None:
                    known = self._files[shard, number] = self._begin(shard, segment)
                return self._scan(shard, segment, known)
            finally:
                segment.close()
        return False

    def _begin(self, shard: int, segment: Segment) -> _File:
        """Read a segment's header; behind one that is damaged, chunks are searched for from the file's start."""
        try:
            header, offset = segment.read_header()
        except DamagedSegmentError:
            return _File(0, max((file.stored for (of, _), file in self._files.items() if of == shard), default=0))
        if self.step_format is None:
            self.step_format = read_format(segment.path.parent, header)
        check_same_format(segment.path.parent, header, self.step_format)
        return _File(offset, header.steps_before)

    def _scan(self, shard: int, segment: Segment, file: _File) -> bool:
        if self.step_format is None:
            return False
        rows: list[tuple[int, ...]] = []
        pieces: list[tuple[int, int]] = []
        for found in scan(segment, self.step_format, file.offset, bodies=False):
            if isinstance(found, Damage):
                if found.is_at_the_end:  # most likely it is just being written
                    break
                file.offset = found.stop
                continue
            header = found.header
            pieces += [(len(self.chunks) + len(rows), bit) for bit in _beginnings(header)]
            masks = header.first_mask, header.last_mask, self._rules.held_out_steps(header)
            place = shard, segment.number, found.offset, file.stored
            rows.append((*header.key, header.first_step, header.steps, *masks, header.oldest_version, *place))
            file.offset, file.stored = found.offset + header.chunk_bytes, file.stored + header.steps
        if not rows:
            return False
        self.chunks = np.concatenate([self.chunks, np.array(rows, CHUNK)])
        table = np.zeros(len(pieces), PIECE)
        table["chunk"], table["bit"] = np.array(pieces).T
        self.pieces = np.concatenate([self.pieces, table])
        return True

    def _forget(self, dropped: set[tuple[int, int]]) -> bool:
        """Remove the rows of segments that are gone."""
        for shard, number in dropped:
            del self._files[shard, number]
            kept = (self.chunks["shard"] != shard) | (self.chunks["segment"] != number)
            self.pieces = self.pieces[kept[self.pieces["chunk"]]]
            self.pieces["chunk"] = (np.cumsum(kept) - 1)[self.pieces["chunk"]]
            self.chunks = self.chunks[kept]
        self.generation += bool(dropped)
        return bool(dropped)


def _beginnings(header: ChunkHeader) -> list[int]:
    """Return the steps at which a chunk's episodes begin, and its first."""
    mask = (header.first_mask | header.last_mask << 1 | 1) & ((1 << header.steps) - 1)
    bits = []
    while mask:
        bits.append((mask & -mask).bit_length() - 1)
        mask &= mask - 1
    return bits
