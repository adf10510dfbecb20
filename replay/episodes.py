"""Stored streams read back as episodes, or what is stored of them, and episodes cut into chunks again.

Nothing is changed, and a run may be writing meanwhile: seen is what was stored when the directories were opened. Memory
is bounded: of all chunks the headers are kept, of the steps those of one episode and one chunk.
"""

from __future__ import annotations

import resource
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dreamfleet.common.errors import UserError
from dreamfleet.common.experience.blocks import DamagedChunkError
from dreamfleet.common.experience.chunk import ChunkKey, decode_chunk, encode_chunk
from dreamfleet.common.experience.steps import CHUNK_STEPS, StepFormat
from dreamfleet.replay.chain import Chain
from dreamfleet.replay.scan import Damage, StoredChunk, read_chunks
from dreamfleet.replay.segment import segment_paths
from dreamfleet.replay.segment_header import check_same_format, read_format

_SPARE_FILES = 256


class StoredEpisode(NamedTuple):
    """Consecutive steps of one episode: all that are stored without a gap.

    A whole episode begins with `is_first` and ends with `is_last`. Another lacks its beginning or its end, which was
    dropped, was never sent, or is still to come; one with a gap in the middle is two of these.

    Attributes:
        first_step: number of its first step in its stream.
        chunks: number of the chunk that each step lies in, (n,).
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
        """Where it lies among all episodes: they come in the order of their places."""
        return self.actor, self.incarnation, self.stream, self.first_step

    def __len__(self) -> int:
        """Return the number of its steps."""
        return len(self.chunks)


class _Part(NamedTuple):
    """Consecutive steps of one chunk and one episode."""

    key: ChunkKey
    first_step: int
    arrays: Mapping[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.arrays["reward"])

    @property
    def stop(self) -> int:
        return self.first_step + len(self)

    def between(self, start: int, stop: int) -> _Part:
        """Return its steps from `start` to `stop`, counted from its own first."""
        return _Part(self.key, self.first_step + start, {name: a[start:stop] for name, a in self.arrays.items()})


class StoredStreams(AbstractContextManager["StoredStreams"]):
    """All streams that are stored in some replay directories, the shards of one replay.

    `steps` counts what is stored; `faults` has a sentence for everything that was passed over, or stored twice, and
    gets more while `episodes` reads.

    Raises:
        UserError: if they hold no replay, or replays of different formats.
    """

    def __init__(self, directories: Sequence[Path]) -> None:
        _allow_open_files(sum(len(segment_paths(directory)) for directory in directories))
        self.faults: list[str] = []
        self._chains = [Chain(directory, writable=False) for directory in directories]
        try:
            self.step_format = self._find_format()
            self._chunks = self._find_chunks()
        except BaseException:
            self.close()
            raise
        self.steps = sum(chunk.header.steps for chunk in self._chunks)

    def episodes(self) -> Iterator[StoredEpisode]:
        """Yield all episodes, stream by stream, each stream in order."""
        parts: list[_Part] = []
        for chunk in self._chunks:
            for part in self._read_by_episode(chunk):
                if parts and not _continues(parts[-1], part):
                    yield _join(parts)
                    parts = []
                parts.append(part)
        if parts:
            yield _join(parts)

    def close(self) -> None:
        """Close all files."""
        for chain in self._chains:
            chain.close()

    def __exit__(self, *error: object) -> None:
        self.close()

    def _find_format(self) -> StepFormat:
        found: StepFormat | None = None
        for chain in self._chains:
            for header in chain.headers.values():
                found = found or read_format(chain.directory, header)
                check_same_format(chain.directory, header, found)
        if found is None:
            names = ", ".join(str(chain.directory) for chain in self._chains)
            raise UserError(f"{names} holds no replay: there is no intact file 'segment-*.dfl' in it.")
        return found

    def _find_chunks(self) -> list[StoredChunk]:
        """Return all chunks in the order of their keys; what is unfinished at the very end is no fault."""
        chunks: dict[ChunkKey, StoredChunk] = {}
        for chain in self._chains:
            for found in read_chunks(chain.segments, self.step_format):
                if isinstance(found, Damage):
                    if found.segment is not chain.segments[-1] or not found.is_at_the_end:
                        found.segment.is_whole = False
                        self.faults.append(str(found))
                    continue
                found.segment.count_at(found.offset, found.header.steps)
                if found.header.key in chunks:
                    path, key = found.segment.path, found.header.key
                    self.faults.append(f"{path}: {key} at byte {found.offset} is stored twice.")
                else:
                    header = found.header._replace(blocks=())  # most of its memory, and needed by nobody
                    chunks[header.key] = found._replace(header=header)
            self.faults += chain.faults()
        return sorted(chunks.values(), key=lambda chunk: chunk.header.key)

    def _read_by_episode(self, chunk: StoredChunk) -> Iterator[_Part]:
        """Yield a chunk's steps, cut where an episode ends; none if it turns out to be damaged."""
        key = chunk.header.key
        try:
            arrays = decode_chunk(self.step_format, chunk.read())
        except DamagedChunkError as error:
            self.faults.append(f"{chunk.segment.path}: {key} at byte {chunk.offset}: {error}.")
            return
        first, last = arrays["is_first"], arrays["is_last"]
        whole = _Part(key, chunk.header.first_step, arrays)
        cuts = np.flatnonzero(first[1:] | last[:-1]) + 1
        for start, stop in pairwise([0, *cuts.tolist(), len(first)]):
            yield whole.between(start, stop)


def cut_chunks(step_format: StepFormat, episodes: Iterable[StoredEpisode]) -> Iterator[bytes]:
    """Yield the encoded chunks that episodes came from: what `StoredStreams.episodes` takes apart, put together.

    `episodes` come in the order of their places.

    Raises:
        ValueError: if steps are missing from the middle of a chunk or between two consecutive ones, if they are not in
            order, or an array is not as the format wants it.
    """
    parts: list[_Part] = []
    for part in (part for episode in episodes for part in _split_by_chunk(episode)):
        before = parts[-1] if parts else None
        if before:
            _check_order(before, part)
            if part.key != before.key:
                yield _encode(step_format, parts)
                parts = []
        parts.append(part)
    if parts:
        yield _encode(step_format, parts)


def _split_by_chunk(episode: StoredEpisode) -> Iterator[_Part]:
    edges = [0, *(np.flatnonzero(np.diff(episode.chunks)) + 1).tolist(), len(episode)]
    for start, stop in pairwise(edges):
        key = ChunkKey(*episode.place[:3], int(episode.chunks[start]))
        yield _Part(key, episode.first_step, episode.arrays).between(start, stop)


def _continues(before: _Part, after: _Part) -> bool:
    """Whether a part continues the episode of the one before it."""
    follows = before.key[:3] == after.key[:3] and before.stop == after.first_step
    return follows and not (after.arrays["is_first"][0] or before.arrays["is_last"][-1])


def _join(parts: Sequence[_Part]) -> StoredEpisode:
    numbers = np.array([part.key.number for part in parts], np.int64)
    chunks = np.repeat(numbers, [len(part) for part in parts])
    return StoredEpisode(*parts[0].key[:3], parts[0].first_step, chunks, _concatenate(parts))


def _concatenate(parts: Sequence[_Part]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([part.arrays[name] for part in parts]) for name in parts[0].arrays}


def _check_order(before: _Part, after: _Part) -> None:
    same_stream = before.key[:3] == after.key[:3]
    if same_stream and after.key.number - before.key.number in (0, 1) and before.stop != after.first_step:
        raise ValueError(
            f"step {after.first_step} of chunk {after.key.number} of stream {after.key.stream} of actor "
            f"{after.key.actor} comes after step {before.stop - 1}"
        )
    if after.key < before.key:
        raise ValueError(f"{after.key} comes after {before.key}")


def _encode(step_format: StepFormat, parts: Sequence[_Part]) -> bytes:
    steps = sum(len(part) for part in parts)
    if steps > CHUNK_STEPS:
        raise ValueError(f"{parts[0].key} has {steps} steps, more than {CHUNK_STEPS}")
    return encode_chunk(step_format, parts[0].key, parts[0].first_step, _concatenate(parts))


def _allow_open_files(count: int) -> None:
    """Raise this process's limit of open files to what is needed, as far as the system allows it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + _SPARE_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
