"""Reports on a replay, of all shards or of one, without Ray and without changing it; a run may be writing meanwhile.

A report is of what was there when it began: all files are opened first, so that none can vanish under it.
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
from dreamfleet.common.experience.chunk import ChunkHeader, decode_chunk
from dreamfleet.common.experience.steps import StepFormat
from dreamfleet.common.formatting import format_bytes
from dreamfleet.common.lock import LOCK_NAME
from dreamfleet.replay.segment import (
    Damage,
    DamagedSegmentError,
    Segment,
    SegmentHeader,
    open_segments,
    scan,
    segment_paths,
)
from dreamfleet.replay.segment_log import read_format
from dreamfleet.replay.shards import shard_directories


class _Shard(NamedTuple):
    """A shard with its open files, oldest first; `newest` is the newest of their headers that is intact."""

    directory: Path
    segments: list[Segment]
    step_format: StepFormat
    newest: SegmentHeader


class _Record(NamedTuple):
    header: ChunkHeader
    segment: Segment
    offset: int


def describe(directory: Path) -> dict[str, Any]:
    """Return what a replay holds, by names to print: steps, episodes and their returns, bytes, versions, shards.

    Raises:
        UserError: if the directory holds no replay, neither in shards nor itself.
    """
    with _opened(directory) as shards:
        step_format = shards[0].step_format
        held = {shard.directory.name: list(_whole_records(shard)) for shard in shards}
        records = [record for stored in held.values() for record in stored]
        returns, lengths = _episodes(records, step_format)
    segments = [segment for shard in shards for segment in shard.segments]
    headers = [record.header for record in records]
    steps = sum(header.steps for header in headers)
    stored = sum(segment.size for segment in segments)
    raw = steps * step_format.step_bytes
    newest = {shard.segments[-1] for shard in shards}
    since = sum(record.header.steps for record in records if record.segment in newest)
    facts: dict[str, Any] = {
        "steps": steps,
        "total_steps": sum(shard.newest.steps_before for shard in shards) + since,
        "chunks": len(records),
        "streams": len({header.key[:3] for header in headers}),
        "actors": len({header.key.actor for header in headers}),
        "segments": len(segments),
        "bytes_stored": stored,
        "bytes_raw": raw,
        "compression": round(raw / max(stored, 1), 2),
        "versions": _span([header.oldest_version for header in headers], [header.newest_version for header in headers]),
        "complete_episodes": len(returns),
    }
    if returns:
        facts["return_mean"] = round(float(np.mean(returns)), 3)
        facts["return_std"] = round(float(np.std(returns)), 3)
        facts["return_min_max"] = f"{min(returns):.3f} to {max(returns):.3f}"
        facts["length_mean"] = round(float(np.mean(lengths)), 1)
    for field in step_format.fields:
        facts[f"field {field.name}"] = f"{field.dtype} {field.shape}"
    return facts | (_shares(shards, held) if len(shards) > 1 else {})


def count_steps(directory: Path) -> int:
    """Return how many steps were ever stored in a replay, those since dropped included; only newest files are read."""
    if not any(segment_paths(shard) for shard in shard_directories(directory)):
        return 0
    with _opened(directory) as shards:
        newest = [shard._replace(segments=shard.segments[-1:]) for shard in shards]
        return sum(
            shard.newest.steps_before + sum(record.header.steps for record in _whole_records(shard)) for shard in newest
        )


def verify(directory: Path) -> list[str]:
    """Read and decompress everything, and return a sentence for each fault; no sentence means that all is well.

    While another process has a shard locked, a torn record at the end of its newest file is no fault: it is just being
    written.

    Raises:
        UserError: if the directory holds no replay, neither in shards nor itself.
    """
    # Asked first: a run that ends meanwhile leaves no tail that looks like a fault.
    written = {shard for shard in _shards_of(directory) if _is_locked(shard)}
    with _opened(directory) as shards:
        faults = [fault for shard in shards for fault in _segment_faults(shard)]
        keys: dict[tuple[int, ...], _Record] = {}
        records: list[_Record] = []
        for shard in shards:
            for piece in _records(shard, bodies=True, unfinished=shard.directory in written):
                if isinstance(piece, str):
                    faults.append(piece)
                    continue
                if piece.header.key in keys:
                    other = keys[piece.header.key]
                    faults.append(f"{_name(piece)} is stored twice, also in {_place(other)}.")
                keys[piece.header.key] = piece
                records.append(piece)
                faults += _contents_faults(piece, shard.step_format)
    for earlier, later in pairwise(sorted(records, key=lambda record: record.header.key)):
        faults += _order_faults(earlier, later)
    return faults


@contextmanager
def _opened(directory: Path) -> Iterator[list[_Shard]]:
    """Give the shards of a replay, all of whose files are open; at least one."""
    with ExitStack() as files:
        yield [_open(path, files) for path in _shards_of(directory)]


def _shards_of(directory: Path) -> list[Path]:
    """Return the shards that hold files; the directory itself if there is none, so that it is what is found at fault.

    One without a file is of a run that was killed as it began: it holds nothing.
    """
    return [path for path in shard_directories(directory) if segment_paths(path)] or [directory]


def _open(directory: Path, files: ExitStack) -> _Shard:
    segments = open_segments(directory, writable=False)
    for segment in segments:
        files.callback(segment.close)
    return _Shard(directory, segments, *_newest_format(directory, segments))


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
    else:
        return False
    finally:
        os.close(descriptor)


def _newest_format(directory: Path, segments: list[Segment]) -> tuple[StepFormat, SegmentHeader]:
    """Return the format of a replay's steps, and the newest segment header that is intact."""
    for segment in reversed(segments):
        try:
            header, _ = segment.read_header()
        except DamagedSegmentError:
            continue
        return read_format(directory, header), header
    raise UserError(f"{directory} holds no replay: there is no intact file 'segment-*.dfl' in it or its shards.")


def _records(shard: _Shard, bodies: bool = False, unfinished: bool = False) -> Iterator[_Record | str]:
    """Yield every record, and a sentence for everything that is none, except for an unfinished one at the very end."""
    for segment in shard.segments:
        try:
            _, start = segment.read_header()
        except DamagedSegmentError as error:
            yield f"{segment.path}: {error}."
            start = 0
        for piece in scan(segment, shard.step_format, start, bodies):
            if not isinstance(piece, Damage):
                yield _Record(piece.header, segment, piece.offset)
            elif not (unfinished and segment is shard.segments[-1] and piece.stop == segment.size):
                size = piece.stop - piece.offset
                yield f"{segment.path}: {size} bytes at byte {piece.offset} are no record: {piece.reason}."


def _whole_records(shard: _Shard) -> Iterator[_Record]:
    return (piece for piece in _records(shard) if isinstance(piece, _Record))


def _shares(shards: list[_Shard], held: dict[str, list[_Record]]) -> dict[str, str]:
    """Return in words what each shard holds, by its name."""
    shares = {}
    for shard in shards:
        records = held[shard.directory.name]
        steps = sum(record.header.steps for record in records)
        actors = len({record.header.key.actor for record in records})
        stored = sum(segment.size for segment in shard.segments)
        shares[shard.directory.name] = f"{steps} steps of {actors} actor{'s' * (actors != 1)} in {format_bytes(stored)}"
    return shares


def _segment_faults(shard: _Shard) -> list[str]:
    """Return what is missing between the files."""
    return [
        f"{shard.directory}: segments {first.number + 1} to {second.number - 1} are missing."
        for first, second in pairwise(shard.segments)
        if second.number != first.number + 1
    ]


def _contents_faults(record: _Record, step_format: StepFormat) -> list[str]:
    """Return what is wrong inside a chunk."""
    header = record.header
    stored = record.segment.read(record.offset, header.record_bytes)
    try:
        arrays = decode_chunk(step_format, stored)
    except DamagedChunkError as error:
        return [f"{_name(record)}: {error}."]
    masks = {"is_first": header.first_mask, "is_last": header.last_mask, "is_terminal": header.terminal_mask}
    told: dict[str, list[int]] = {name: [mask >> t & 1 for t in range(header.steps)] for name, mask in masks.items()}
    told["episode"] = list(accumulate(told["is_first"][1:], initial=header.episode))
    faults = [
        f"{_name(record)}: its header and its steps differ in {name}."
        for name, values in told.items()
        if values != arrays[name].tolist()
    ]
    versions = (int(arrays["version"].min()), int(arrays["version"].max()))
    if versions != (header.oldest_version, header.newest_version):
        faults.append(f"{_name(record)}: its header and its steps differ in version.")
    if not np.array_equal(arrays["is_first"][1:], arrays["is_last"][:-1]):
        faults.append(f"{_name(record)}: an episode ends and no other begins at the next step, or the other way round.")
    return faults


def _order_faults(earlier: _Record, later: _Record) -> list[str]:
    """Return what is wrong between two chunks that follow each other in the order of their keys."""
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


def _episodes(records: list[_Record], step_format: StepFormat) -> tuple[list[float], list[int]]:
    """Return the returns and lengths (in actions) of the episodes that are stored from first to last step."""
    returns: list[float] = []
    lengths: list[int] = []
    ordered = sorted(records, key=lambda record: record.header.key)
    for _, chunks in groupby(ordered, key=lambda record: record.header.key[:3]):
        total, length, expected = 0.0, -1, -1
        for record in chunks:
            small = _small_fields(record, step_format)
            if small is None or record.header.key.number != expected:
                length = -1
            expected = record.header.key.number + 1
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


def _small_fields(record: _Record, step_format: StepFormat) -> dict[str, np.ndarray] | None:
    """Return a chunk's small fields without reading its pictures; None if they are damaged, which `verify` tells."""
    block = record.header.blocks[0]
    stored = record.segment.read(record.offset + block.offset, block.stored_bytes)
    try:
        fields = read_small_fields(step_format, record.header.steps, [(block, stored)])
    except DamagedChunkError:
        return None
    return {name: array[0] for name, array in fields.items()}


def _span(lowest: list[int], highest: list[int]) -> str:
    return f"{min(lowest)} to {max(highest)}" if lowest else "none"


def _name(record: _Record) -> str:
    actor, incarnation, stream, sequence = record.header.key
    return f"{_place(record)}: chunk {sequence} of stream {stream} of actor {actor} in incarnation {incarnation}"


def _place(record: _Record) -> str:
    path = record.segment.path
    return f"{path.parent.name}/{path.name}, byte {record.offset}"
