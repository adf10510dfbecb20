"""`dreamfleet replay info` and `verify`: reports on a replay, of all shards or of one, without Ray and read-only.

A run may be writing meanwhile. A report is of what was there when it began: all files are opened first, so that none
can vanish under it.
"""

from __future__ import annotations

import fcntl
import os
import shlex
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dreamfleet.common.errors import UserError
from dreamfleet.common.experience.blocks import DamagedChunkError, read_small_fields
from dreamfleet.common.experience.chunk import ChunkKey
from dreamfleet.common.experience.steps import StepFormat
from dreamfleet.common.formatting import counted, format_bytes
from dreamfleet.common.lock import LOCK_NAME
from dreamfleet.replay.chain import Chain
from dreamfleet.replay.chunk_faults import contents_faults, name, order_faults, place
from dreamfleet.replay.scan import StoredChunk, read_chunks
from dreamfleet.replay.segment import Segment, segment_paths
from dreamfleet.replay.segment_header import read_format
from dreamfleet.replay.shards import SHARD_NAME, manifest_of, missing_shards, shard_directories


def print_info(directory: Path) -> int:
    """Print what the replay of a run, or in a directory, holds; return the exit code."""
    for what, value in describe(replay_in(directory)).items():
        print(f"{what:<22} {value}")
    return 0


def print_faults(directory: Path) -> int:
    """Check every chunk of the replay of a run, or in a directory, and print what is wrong; return 1 if anything is."""
    faults = verify(replay_in(directory))
    for fault in faults:
        print(fault)
    whole = directory.parent if SHARD_NAME.fullmatch(directory.name) else directory
    remedy = f"`{shlex.join(['dreamfleet', 'replay', 'repair', str(whole)])}` makes a consistent replay of what is left"
    print(f"{counted(len(faults), 'fault')} found; {remedy}" if faults else "no fault found")
    return 1 if faults else 0


def replay_in(directory: Path) -> Path:
    """Return the replay in a run's directory, or the directory itself: a replay's, or one shard's."""
    if not directory.is_dir():
        raise UserError(f"{directory} is no directory: give a run's directory, a replay's or a shard's.")
    inner = directory / "replay"
    return inner if inner.is_dir() else directory


def describe(directory: Path) -> dict[str, Any]:
    """Return what a replay holds, by names to print: steps, episodes and their returns, bytes, versions, shards.

    Raises:
        UserError: if the directory holds no replay, neither in shards nor itself.
    """
    with _opened(directory) as shards:
        step_format = shards[0].step_format
        held = {shard.directory.name: list(shard.chunks()) for shard in shards}
        chunks = [chunk for stored in held.values() for chunk in stored]
        returns, lengths = _episodes(chunks, step_format)
        total = sum(shard.chain.steps for shard in shards)
    headers = [chunk.header for chunk in chunks]
    steps = sum(header.steps for header in headers)
    stored = sum(shard.bytes_stored for shard in shards)
    raw = steps * step_format.step_bytes
    versions = [version for header in headers for version in (header.oldest_version, header.newest_version)]
    facts: dict[str, Any] = {
        "steps": steps,
        "total_steps": total,
        "chunks": len(chunks),
        "streams": len({header.key[:3] for header in headers}),
        "actors": len({header.key.actor for header in headers}),
        "segments": sum(len(shard.segments) for shard in shards),
        "bytes_stored": stored,
        "bytes_raw": raw,
        "compression": round(raw / max(stored, 1), 2),
        "versions": f"{min(versions)} to {max(versions)}" if versions else "none",
        "complete_episodes": len(returns),
    }
    if returns:
        facts["return_mean"] = round(float(np.mean(returns)), 3)
        facts["return_std"] = round(float(np.std(returns)), 3)
        facts["return_min_max"] = f"{min(returns):.3f} to {max(returns):.3f}"
        facts["length_mean"] = round(float(np.mean(lengths)), 1)
    facts |= {f"field {field.name}": f"{field.dtype} {field.shape}" for field in step_format.fields}
    for shard in shards if len(shards) > 1 else []:
        headers = [chunk.header for chunk in held[shard.directory.name]]
        actors = len({header.key.actor for header in headers})
        share = f"{sum(header.steps for header in headers)} steps of {actors} actor{'s' * (actors != 1)}"
        facts[shard.directory.name] = f"{share} in {format_bytes(shard.bytes_stored)}"
    return facts


def count_steps(directory: Path) -> int:
    """Return the steps ever stored in a replay, those since dropped included; only the newest files are read."""
    if not any(segment_paths(shard) for shard in shard_directories(directory)):
        return 0
    with _opened(directory) as shards:
        for shard in shards:
            for _ in shard.chunks(since=min(shard.segments[-1].number, max(shard.chain.headers))):
                pass
        return sum(shard.chain.steps for shard in shards)


def verify(directory: Path) -> list[str]:
    """Read and decompress everything, and return a sentence for each fault; no sentence means that all is well.

    While another process has a shard locked, a torn chunk at the end of its newest file is no fault: it is just being
    written.

    Raises:
        UserError: if the directory holds no replay, neither in shards nor itself.
    """
    # Looked at first: a run that ends meanwhile leaves no tail that looks like a fault.
    written = {shard for shard in _shards_of(directory) if _is_locked(shard)}
    chunks: list[StoredChunk] = []
    by_key: dict[ChunkKey, StoredChunk] = {}
    gaps: set[ChunkKey] = set()
    faults = missing_shards(directory)
    for shard_directory in shard_directories(directory):
        manifest = manifest_of(shard_directory)
        if manifest and manifest.newest and not segment_paths(shard_directory):
            faults.append(f"{shard_directory}: all its segments are missing, with {manifest.steps} steps.")
    with _opened(directory) as shards:
        for shard in shards:
            gaps |= {ChunkKey(*key) for key in shard.chain.manifest.gaps}
            faults += _file_faults(shard, shard.directory in written, chunks)
        for chunk in chunks:
            other = by_key.setdefault(chunk.header.key, chunk)
            if other is not chunk:
                faults.append(f"{name(chunk)} is stored twice, also in {place(other)}.")
    for earlier, later in pairwise(sorted(chunks, key=lambda chunk: chunk.header.key)):
        faults += order_faults(earlier, later) if later.header.key not in gaps else []
    return faults


def _file_faults(shard: _Shard, is_written: bool, chunks: list[StoredChunk]) -> list[str]:
    """Return what is wrong with a shard's files, and add their chunks to `chunks`."""
    faults: list[str] = []
    unfinished = shard.segments[-1] if is_written else None
    for found in read_chunks(shard.segments, shard.step_format, bodies=True):
        if isinstance(found, StoredChunk):
            chunks.append(found)
            found.segment.count_at(found.offset, found.header.steps)
            faults += contents_faults(found, shard.step_format)
        elif not (found.segment is unfinished and found.is_at_the_end):
            faults.append(str(found))
            found.segment.is_whole = found.segment.is_whole and found.stop == found.offset
            if found.header:
                found.segment.count_at(found.offset, found.header.steps)
    return faults + shard.chain.faults()


class _Shard(NamedTuple):
    """A shard with its open files."""

    directory: Path
    chain: Chain
    step_format: StepFormat

    @property
    def segments(self) -> list[Segment]:
        return self.chain.segments

    @property
    def bytes_stored(self) -> int:
        return sum(segment.size for segment in self.segments)

    def chunks(self, since: int = 0) -> Iterator[StoredChunk]:
        """Yield and count all chunks of the segments from number `since` on, without what is damaged."""
        segments = [segment for segment in self.segments if segment.number >= since]
        for found in read_chunks(segments, self.step_format):
            if isinstance(found, StoredChunk):
                found.segment.count_at(found.offset, found.header.steps)
                yield found


@contextmanager
def _opened(directory: Path) -> Iterator[list[_Shard]]:
    """Give the shards of a replay, all of whose files are open; at least one."""
    with ExitStack() as files:
        yield [_open(path, files) for path in _shards_of(directory)]


def _shards_of(directory: Path) -> list[Path]:
    """Return the shards that hold files; the directory itself if there is none, so that an error names it.

    One without a file is of a run that was killed as it began: it holds nothing.
    """
    return [path for path in shard_directories(directory) if segment_paths(path)] or [directory]


def _open(directory: Path, files: ExitStack) -> _Shard:
    """Open a shard, whose files are closed with the stack."""
    chain = Chain(directory, writable=False)
    files.callback(chain.close)
    if not chain.headers:
        raise UserError(f"{directory} holds no replay: there is no intact file 'segment-*.dfl' in it or its shards.")
    return _Shard(directory, chain, read_format(directory, chain.headers[max(chain.headers)]))


def _is_locked(directory: Path) -> bool:
    """Whether a process holds the directory's `DirectoryLock`."""
    try:
        descriptor = os.open(directory / LOCK_NAME, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _segment_faults(shard: _Shard) -> list[str]:
    """Return what is missing between the files."""
    return [
        f"{shard.directory}: segments {first.number + 1} to {second.number - 1} are missing."
        for first, second in pairwise(shard.segments)
        if second.number != first.number + 1
    ]


def _episodes(chunks: list[StoredChunk], step_format: StepFormat) -> tuple[list[float], list[int]]:
    """Return the returns and lengths (in actions) of the episodes that are stored from first to last step."""
    returns: list[float] = []
    lengths: list[int] = []
    ordered = sorted(chunks, key=lambda chunk: chunk.header.key)
    for _, stream in groupby(ordered, key=lambda chunk: chunk.header.key[:3]):
        total, length, expected = 0.0, -1, -1
        for chunk in stream:
            small = _small_fields(chunk, step_format)
            if small is None or chunk.header.key.number != expected:
                length = -1
            expected = chunk.header.key.number + 1
            if small is None:
                continue
            for first, last, reward in zip(small["is_first"], small["is_last"], small["reward"], strict=True):
                if first:
                    total, length = 0.0, 0
                elif length >= 0:
                    total, length = total + float(reward), length + 1
                if last and length >= 0:
                    returns.append(total)
                    lengths.append(length)
                    length = -1
    return returns, lengths


def _small_fields(chunk: StoredChunk, step_format: StepFormat) -> dict[str, np.ndarray] | None:
    """Return a chunk's small fields without reading its pictures; None if they are damaged, which `verify` reports."""
    block = chunk.header.blocks[0]
    stored = chunk.segment.read(chunk.offset + block.offset, block.stored_bytes)
    try:
        fields = read_small_fields(step_format, chunk.header.steps, [(block, stored)])
    except DamagedChunkError:
        return None
    return {name: array[0] for name, array in fields.items()}
