"""Stored streams read back as episodes, or the pieces of episodes that are there, and episodes cut into records again.

Nothing is changed, and a run may be writing meanwhile: seen is what was stored when the directories were opened. Memory
is bounded: of each chunk its place is kept, of the steps those of one episode and one chunk.
"""

from __future__ import annotations

import resource
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import numpy as np

from dreamfleet.common.errors import UserError
from dreamfleet.common.experience.blocks import DamagedChunkError
from dreamfleet.common.experience.chunk import ChunkKey, decode_chunk, encode_chunk
from dreamfleet.common.experience.steps import CHUNK_STEPS, StepFormat
from dreamfleet.replay.segment import Damage, DamagedSegmentError, Segment, open_segments, scan, segment_paths
from dreamfleet.replay.segment_log import check_same_format, read_format

_SPARE_FILES = 256


class StoredEpisode(NamedTuple):
    """Following steps of one episode: all that are stored without a gap.

    A whole episode begins with `is_first` and ends with `is_last`. A piece lacks its beginning or its end where that
    was dropped, was never sent, or is still to come.

    Attributes:
        actor: which actor wrote it; likewise `incarnation` and `stream`.
        incarnation: see `actor`.
        stream: see `actor`.
        first_step: number of its first step in its stream.
        chunks: sequence number of the chunk that each step lies in, (n,).
        arrays: the steps, each field as (n, *shape).
    """

    actor: int
    incarnation: int
    stream: int
    first_step: int
    chunks: np.ndarray
    arrays: Mapping[str, np.ndarray]

    @property
    def place(self) -> tuple[int, int, int, int]:
        """Where it lies among all pieces: they come in the order of their places."""
        return self.actor, self.incarnation, self.stream, self.first_step

    def __len__(self) -> int:
        """Return how many steps it has."""
        return len(self.chunks)


class _Part(NamedTuple):
    """Following steps of one chunk and one episode."""

    key: ChunkKey
    first_step: int
    arrays: Mapping[str, np.ndarray]

    @property
    def stop(self) -> int:
        return self.first_step + len(self.arrays["reward"])

    def between(self, start: int, stop: int) -> _Part:
        """Return its steps from `start` to `stop`, counted from its own first."""
        return _Part(self.key, self.first_step + start, {name: a[start:stop] for name, a in self.arrays.items()})


class _Place(NamedTuple):
    """Where a chunk is stored."""

    key: ChunkKey
    segment: Segment
    offset: int
    size: int
    first_step: int


class StoredStreams:
    """All streams that are stored in some replay directories, the shards of one replay.

    Attributes:
        step_format: the format of all steps.
        steps: how many there are.
        faults: a sentence for everything that was passed over, or stored twice; more come while `pieces` reads.

    Args:
        directories: one or more; each is opened without changing it.

    Raises:
        UserError: if they hold no replay, or replays of different formats.
    """

    def __init__(self, directories: Sequence[Path]) -> None:
        _allow_open_files(sum(len(segment_paths(directory)) for directory in directories))
        self.faults: list[str] = []
        self.steps = 0
        self._opened = [(directory, open_segments(directory, writable=False)) for directory in directories]
        try:
            self.step_format = self._find_format()
            self._places = sorted(self._find_chunks(), key=lambda place: place.key)
        except BaseException:
            self.close()
            raise

    def episodes(self) -> Iterator[StoredEpisode]:
        """Yield all episodes and pieces of episodes, stream by stream, each stream in order."""
        parts: list[_Part] = []
        for chunk in self._read_chunks():
            for part in _split_by_episode(chunk):
                if parts and not _continues(parts[-1], part):
                    yield _join(parts)
                    parts = []
                parts.append(part)
        if parts:
            yield _join(parts)

    def close(self) -> None:
        """Close all files."""
        for _, segments in self._opened:
            for segment in segments:
                segment.close()

    def __enter__(self) -> StoredStreams:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _find_format(self) -> StepFormat:
        """Return the format that all directories share."""
        found: StepFormat | None = None
        for directory, segments in self._opened:
            for segment in segments:
                try:
                    header, _ = segment.read_header()
                except DamagedSegmentError:
                    continue  # `_find_chunks` tells
                found = found or read_format(directory, header)
                check_same_format(directory, header, found)
        if found is None:
            names = ", ".join(str(directory) for directory, _ in self._opened)
            raise UserError(f"{names} holds no replay: there is no intact file 'segment-*.dfl' in it.")
        return found

    def _find_chunks(self) -> list[_Place]:
        """Return where every chunk is; what a crash or a writer left unfinished at the very end is no fault."""
        places: dict[ChunkKey, _Place] = {}
        for segments in (segments for _, segments in self._opened):
            for segment in segments:
                try:
                    _, start = segment.read_header()
                except DamagedSegmentError as error:
                    self.faults.append(f"{segment.path}: {error}; the records in it are taken one by one.")
                    start = 0
                for piece in scan(segment, self.step_format, start, bodies=False):
                    if isinstance(piece, Damage):
                        if segment is not segments[-1] or piece.stop != segment.size:
                            size = piece.stop - piece.offset
                            self.faults.append(f"{segment.path}: {size} bytes at byte {piece.offset}: {piece.reason}.")
                        continue
                    header = piece.header
                    if header.key in places:
                        self.faults.append(f"{segment.path}: {header.key} at byte {piece.offset} is stored twice.")
                        continue
                    self.steps += header.steps
                    places[header.key] = _Place(
                        header.key, segment, piece.offset, header.record_bytes, header.first_step
                    )
        return list(places.values())

    def _read_chunks(self) -> Iterator[_Part]:
        """Yield all chunks in the order of their keys, without those that turn out to be damaged."""
        for place in self._places:
            try:
                arrays = decode_chunk(self.step_format, place.segment.read(place.offset, place.size))
            except DamagedChunkError as error:
                self.faults.append(f"{place.segment.path}: {place.key} at byte {place.offset}: {error}.")
            else:
                yield _Part(place.key, place.first_step, arrays)


def cut_chunks(step_format: StepFormat, pieces: Iterable[StoredEpisode]) -> Iterator[bytes]:
    """Yield the records of the chunks that pieces came from: what `StoredStreams.pieces` takes apart, put together.

    Args:
        step_format: the format of all steps.
        pieces: in the order of their places.

    Raises:
        ValueError: if steps are missing from the middle of a chunk or between two that follow each other, if they are
            not in order, or an array is not as the format wants it.
    """
    parts: list[_Part] = []
    for part in (part for piece in pieces for part in _split_by_chunk(piece)):
        before = parts[-1] if parts else None
        if before:
            _check_order(before, part)
            if part.key != before.key:
                yield _record(step_format, parts)
                parts = []
        parts.append(part)
    if parts:
        yield _record(step_format, parts)


def _split_by_episode(chunk: _Part) -> Iterator[_Part]:
    first, last = chunk.arrays["is_first"], chunk.arrays["is_last"]
    cuts = np.flatnonzero(first[1:] | last[:-1]) + 1
    edges = [0, *cuts.tolist(), len(first)]
    for start, stop in pairwise(edges):
        yield chunk.between(start, stop)


def _split_by_chunk(piece: StoredEpisode) -> Iterator[_Part]:
    edges = [0, *(np.flatnonzero(np.diff(piece.chunks)) + 1).tolist(), len(piece)]
    for start, stop in pairwise(edges):
        key = ChunkKey(*piece.place[:3], int(piece.chunks[start]))
        yield _Part(key, piece.first_step, piece.arrays).between(start, stop)


def _continues(before: _Part, after: _Part) -> bool:
    """Whether a part goes on with the episode of the one before it."""
    follows = before.key[:3] == after.key[:3] and before.stop == after.first_step
    return follows and not (after.arrays["is_first"][0] or before.arrays["is_last"][-1])


def _join(parts: Sequence[_Part]) -> StoredEpisode:
    lengths = [len(part.arrays["reward"]) for part in parts]
    chunks = np.repeat(np.array([part.key.number for part in parts], np.int64), lengths)
    arrays = {name: np.concatenate([part.arrays[name] for part in parts]) for name in parts[0].arrays}
    return StoredEpisode(*parts[0].key[:3], parts[0].first_step, chunks, arrays)


def _check_order(before: _Part, after: _Part) -> None:
    same_stream = before.key[:3] == after.key[:3]
    if same_stream and after.key.number - before.key.number in (0, 1) and before.stop != after.first_step:
        raise ValueError(
            f"step {after.first_step} of chunk {after.key.number} of stream {after.key.stream} of actor "
            f"{after.key.actor} comes after step {before.stop - 1}"
        )
    if after.key < before.key:
        raise ValueError(f"{after.key} comes after {before.key}")


def _record(step_format: StepFormat, parts: Sequence[_Part]) -> bytes:
    steps = sum(len(part.arrays["reward"]) for part in parts)
    if steps > CHUNK_STEPS:
        raise ValueError(f"{parts[0].key} has {steps} steps, more than {CHUNK_STEPS}")
    arrays = {name: np.concatenate([part.arrays[name] for part in parts]) for name in parts[0].arrays}
    return encode_chunk(step_format, parts[0].key, parts[0].first_step, arrays)


def _allow_open_files(count: int) -> None:
    """Raise this process's limit of open files to what is needed, as far as the system lets it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + _SPARE_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
