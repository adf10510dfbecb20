"""`dreamfleet replay info` and `verify`: reports on a replay, of all shards or of one, without Ray and read-only.

A run may be writing meanwhile. A report is of what was there when it began: all files are opened first, so that none
can vanish under it.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import accumulate, groupby, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dreamfleet.common.errors import UserError
from dreamfleet.common.experience.blocks import DamagedChunkError, read_small_fields
from dreamfleet.common.experience.chunk import ChunkKey, decode_chunk
from dreamfleet.common.experience.steps import StepFormat
from dreamfleet.common.formatting import format_bytes
from dreamfleet.common.lock import LOCK_NAME
from dreamfleet.replay.segment import (
    Damage,
    DamagedSegmentError,
    Segment,
    SegmentHeader,
    StoredChunk,
    open_segments,
    segment_paths,
)
from dreamfleet.replay.segment_log import read_chunks, read_format
from dreamfleet.replay.shards import shard_directories


def print_info(directory: Path) -> int:
    """Print what the replay of a run, or in a directory, holds; return the exit code."""
    for name, value in describe(_replay_in(directory)).items():
        print(f"{name:<22} {value}")
    return 0


def print_faults(directory: Path) -> int:
    """Check every chunk of the replay of a run, or in a directory, and print what is wrong; return 1 if anything is."""
    faults = verify(_replay_in(directory))
    for fault in faults:
        print(fault)
    print("no fault found" if not faults else f"{len(faults)} faults found")
    return 1 if faults else 0


def _replay_in(directory: Path) -> Path:
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
    headers = [chunk.header for chunk in chunks]
    steps = sum(header.steps for header in headers)
    stored = sum(shard.bytes_stored for shard in shards)
    raw = steps * step_format.step_bytes
    newest = {shard.segments[-1] for shard in shards}
    since = sum(chunk.header.steps for chunk in chunks if chunk.segment in newest)
    versions = [version for header in headers for version in (header.oldest_version, header.newest_version)]
    facts: dict[str, Any] = {
        "steps": steps,
        "total_steps": sum(shard.newest.steps_before for shard in shards) + since,
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
        newest = [chunk for shard in shards for chunk in shard._replace(segments=shard.segments[-1:]).chunks()]
        return sum(shard.newest.steps_before for shard in shards) + sum(chunk.header.steps for chunk in newest)


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
    with _opened(directory) as shards:
        faults = [fault for shard in shards for fault in _segment_faults(shard)]
        for shard in shards:
            unfinished = shard.segments[-1] if shard.directory in written else None
            for found in read_chunks(shard.segments, shard.step_format, bodies=True):
                if isinstance(found, Damage):
                    if not (found.segment is unfinished and found.is_at_the_end):
                        faults.append(str(found))
                    continue
                other = by_key.setdefault(found.header.key, found)
                if other is not found:
                    faults.append(f"{_name(found)} is stored twice, also in {_place(other)}.")
                chunks.append(found)
                faults += _contents_faults(found, shard.step_format)
    for earlier, later in pairwise(sorted(chunks, key=lambda chunk: chunk.header.key)):
        faults += _order_faults(earlier, later)
    return faults


class _Shard(NamedTuple):
    """A shard with its open files, oldest first; `newest` is the newest of their headers that is intact."""

    directory: Path
    segments: list[Segment]
    step_format: StepFormat
    newest: SegmentHeader

    @property
    def bytes_stored(self) -> int:
        return sum(segment.size for segment in self.segments)

    def chunks(self) -> Iterator[StoredChunk]:
        """Yield all chunks, without what is damaged."""
        return (c for c in read_chunks(self.segments, self.step_format) if isinstance(c, StoredChunk))


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
    segments = open_segments(directory, writable=False)
    for segment in segments:
        files.callback(segment.close)
    for segment in reversed(segments):
        try:
            header, _ = segment.read_header()
        except DamagedSegmentError:
            continue
        return _Shard(directory, segments, read_format(directory, header), header)
    raise UserError(f"{directory} holds no replay: there is no intact file 'segment-*.dfl' in it or its shards.")


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


def _contents_faults(chunk: StoredChunk, step_format: StepFormat) -> list[str]:
    """Return what is wrong inside a chunk."""
    header = chunk.header
    try:
        arrays = decode_chunk(step_format, chunk.read())
    except DamagedChunkError as error:
        return [f"{_name(chunk)}: {error}."]
    masks = {"is_first": header.first_mask, "is_last": header.last_mask, "is_terminal": header.terminal_mask}
    stated: dict[str, list[int]] = {name: [mask >> t & 1 for t in range(header.steps)] for name, mask in masks.items()}
    stated["episode"] = list(accumulate(stated["is_first"][1:], initial=header.episode))
    differ = [name for name, values in stated.items() if values != arrays[name].tolist()]
    if (int(arrays["version"].min()), int(arrays["version"].max())) != (header.oldest_version, header.newest_version):
        differ.append("version")
    faults = [f"{_name(chunk)}: its header and its steps differ in {name}." for name in differ]
    if not np.array_equal(arrays["is_first"][1:], arrays["is_last"][:-1]):
        faults.append(f"{_name(chunk)}: an episode ends and no other begins at the next step, or the other way round.")
    return faults


def _order_faults(earlier: StoredChunk, later: StoredChunk) -> list[str]:
    """Return what is wrong between two consecutive chunks in the order of their keys."""
    before, after = earlier.header, later.header
    if before.key[:3] != after.key[:3] or before.key == after.key:
        return []
    if after.key.number != before.key.number + 1:
        return [f"{_name(later)}: chunks {before.key.number + 1} to {after.key.number - 1} before it are missing."]
    if after.first_step != before.first_step + before.steps:
        return [f"{_name(later)} begins with step {after.first_step}, not {before.first_step + before.steps}."]
    if (before.last_mask >> before.steps - 1) & 1 != after.first_mask & 1:
        return [f"{_name(later)}: an episode ends before it and no other begins, or the other way round."]
    episode = before.episode + (before.first_mask & ~1).bit_count() + (after.first_mask & 1)
    if after.episode != episode:
        return [f"{_name(later)} begins in episode {after.episode}, not {episode}."]
    return []


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


def _name(chunk: StoredChunk) -> str:
    actor, incarnation, stream, number = chunk.header.key
    return f"{_place(chunk)}: chunk {number} of stream {stream} of actor {actor} in incarnation {incarnation}"


def _place(chunk: StoredChunk) -> str:
    path = chunk.segment.path
    return f"{path.parent.name}/{path.name}, byte {chunk.offset}"
