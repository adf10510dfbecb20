"""`dreamfleet replay repair`: makes a consistent replay of what is left of a damaged one.

Nothing is destroyed: what does not belong where it is, and the original of a file that damaged chunks were left out of,
goes into a folder beside the shard. A repair that was cut off can be begun again.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

from dreamfleet.common.errors import UserError
from dreamfleet.common.experience.chunk import ChunkKey
from dreamfleet.common.experience.steps import StepFormat
from dreamfleet.common.formatting import counted
from dreamfleet.common.lock import DirectoryLock
from dreamfleet.replay.chain import Chain
from dreamfleet.replay.chunk_faults import contents_faults, order_faults
from dreamfleet.replay.manifest import NAME, DamagedManifestError, Manifest
from dreamfleet.replay.report import replay_in, verify
from dreamfleet.replay.scan import StoredChunk, read_chunks
from dreamfleet.replay.segment import Segment, foreign_paths, segment_name, segment_paths, sync_directory
from dreamfleet.replay.segment_header import DamagedSegmentError, SegmentHeader, read_format
from dreamfleet.replay.segment_log import SegmentLog
from dreamfleet.replay.shards import SHARD_NAME, shard_directories

_MOVED = ".dfl.moved"
_UNLIMITED = 1 << 62


def print_repair(directory: Path, say: Callable[[str], object] = print) -> int:
    """Repair the replay of a run, or in a directory, and say what was done; return 1 if faults are left."""
    replay = replay_in(directory)
    done = repair(replay)
    faults = verify(replay)
    for sentence in [*done, *faults]:
        say(sentence)
    say(counted(len(done), "repair") if done else "there was nothing to repair")
    say("no fault found" if not faults else f"faults that are left: {len(faults)}")
    return 1 if faults else 0


def repair(directory: Path) -> list[str]:
    """Make all shards of a replay consistent, and return a sentence for each thing that was done.

    Raises:
        UserError: if there is no replay, or a process has it open.
    """
    shards = sorted(path for path in directory.iterdir() if SHARD_NAME.fullmatch(path.name) and path.is_dir())
    folders = [directory, *shards] if not shards or any(directory.glob("segment-*")) else shards
    done: list[str] = []
    with ExitStack() as locks:
        for folder in folders:
            locks.enter_context(DirectoryLock(folder))
        for folder in folders:
            done += ShardRepair(folder).put_names_right()
        shards = [path for path in shard_directories(directory) if segment_paths(path) or (path / NAME).exists()]
        if not shards:
            raise UserError(f"{directory} holds no replay: there is no file 'segment-*.dfl' in it or its shards.")
        seen: set[ChunkKey] = set()
        for shard in shards:
            done += ShardRepair(shard).put_files_right(seen)
        done += _accept_gaps(shards)
    return done


class ShardRepair:
    """Puts the files of one shard right; `done` says what was done."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.done: list[str] = []

    def put_names_right(self) -> list[str]:
        """Give every segment the name that its header says, and put aside what is no segment of this replay."""
        for path in sorted(self._directory.glob("segment-*")):
            if path.is_dir():
                self._put_aside(path, "it is a directory")
        numbers = {
            path: _number_in(path) for path in [*segment_paths(self._directory), *foreign_paths(self._directory)]
        }
        right = {number for path, number in numbers.items() if path.name == segment_name(number or 0)}
        moved = []
        for path, number in numbers.items():
            if path.name == segment_name(number or 0) or (number is None and path in segment_paths(self._directory)):
                continue  # right, or without a number to tell
            if number is None or number in right:
                self._put_aside(path, "it is no segment" if number is None else f"it is another segment {number}")
                continue
            right.add(number)
            between = path.with_name(f"segment-{number:08d}{_MOVED}")
            path.rename(between)
            moved.append((path, between))
        for path, between in moved:
            target = between.with_name(between.name.removesuffix(_MOVED) + ".dfl")
            between.rename(target)
            self.done.append(f"{path} was renamed to {target.name}, which it was begun as.")
        sync_directory(self._directory)
        return self.done

    def put_files_right(self, seen: set[ChunkKey]) -> list[str]:
        """Leave out damaged, foreign and doubled chunks, and set down what is missing.

        `seen` are the chunks of the shards before this one; those of this one are added.
        """
        try:
            Manifest.read(self._directory)
        except DamagedManifestError:
            self._put_aside(self._directory / NAME, "it is damaged")
        self._put_foreign_aside()
        chain = Chain(self._directory, writable=False)
        with ExitStack() as files:
            for segment in chain.segments:
                files.callback(segment.close)
            if not chain.headers:
                return self._begin_anew(chain)
            step_format = read_format(self._directory, chain.headers[max(chain.headers)])
            is_faulty = self._is_faulty(chain, step_format, seen)
            if is_faulty or chain.notes:
                self._set_down(chain, step_format)
        return self.done

    def _put_foreign_aside(self) -> None:
        """Put aside segments that do not belong into the chain: of two that do not fit, the one that fits nowhere."""
        while True:
            chain = Chain(self._directory, writable=False)
            chain.close()
            pairs = chain.unfitting()
            if not pairs:
                return
            counts = [segment for pair in pairs for segment in pair]
            link, newest = chain.manifest.link, chain.segments[-1]
            is_newest_foreign = link and link.number == newest.number and link.header != newest.link.header
            worst = newest if is_newest_foreign and newest in counts else max(counts, key=counts.count)
            self._put_aside(worst.path, "it is of another replay, or was copied")

    def _begin_anew(self, chain: Chain) -> list[str]:
        """Leave an empty shard where no segment is left that tells what steps are like."""
        for segment in chain.segments:
            self._put_aside(segment.path, "no segment of this shard has an intact header")
        if chain.manifest.newest:
            self._put_aside(self._directory / NAME, f"the {chain.manifest.steps} steps that it tells of are gone")
        return self.done

    def _is_faulty(self, chain: Chain, step_format: StepFormat, seen: set[ChunkKey]) -> bool:
        """Rewrite segments with chunks to leave out, put changed ones aside; return whether there is more to do."""
        kept: dict[Segment, list[StoredChunk]] = {segment: [] for segment in chain.segments}
        left_out: dict[Segment, list[str]] = {segment: [] for segment in chain.segments}
        keys: dict[Segment, list[ChunkKey]] = {segment: [] for segment in chain.segments}
        for found in read_chunks(chain.segments, step_format, bodies=True):
            segment = found.segment
            if not isinstance(found, StoredChunk):
                segment.is_whole = False
                left_out[segment].append(found.reason)
                if found.header:
                    segment.count_at(found.offset, found.header.steps)
                continue
            segment.count_at(found.offset, found.header.steps)
            faults = contents_faults(found, step_format)
            if found.header.key in seen:
                faults.append("a chunk is stored twice")
            left_out[segment] += faults[:1]
            if not faults:
                seen.add(found.header.key)
                keys[segment].append(found.header.key)
                kept[segment].append(found)
        changed = [segment for segment, _ in chain.changed()]
        for segment in changed:
            seen -= set(keys[segment])
            self._put_aside(segment.path, "it is of another replay, or was changed")
        for segment in chain.segments:
            if left_out[segment] and segment not in changed:
                self._rewrite(chain, segment, kept[segment], step_format, left_out[segment])
                segment.is_whole = False
        return bool(changed or any(left_out.values()) or chain.losses())

    def _rewrite(
        self, chain: Chain, segment: Segment, chunks: list[StoredChunk], step_format: StepFormat, faults: list[str]
    ) -> None:
        """Put a file with these chunks alone in the place of a segment, whose original goes aside."""
        header = chain.headers.get(segment.number) or self._likely_header(chain, segment, step_format)
        unfinished = segment.path.with_suffix(".tmp")
        with unfinished.open("wb") as file:
            file.write(header.encode())
            for each in chunks:
                file.write(each.read())
            file.flush()
            os.fsync(file.fileno())
        target = self._place_for(segment.path)
        os.link(segment.path, target)
        unfinished.rename(segment.path)
        sync_directory(self._directory)
        steps = segment.steps - sum(each.header.steps for each in chunks)
        lost = counted(len(faults), "damaged part") + (f" with {counted(steps, 'step')}" if steps > 0 else "")
        self.done.append(f"{segment.path}: {lost} left out; the original is {target}: {faults[0]}")

    def _likely_header(self, chain: Chain, segment: Segment, step_format: StepFormat) -> SegmentHeader:
        """Return a header in the place of one that is damaged."""
        later = [chain.headers[number] for number in sorted(chain.headers) if number > segment.number]
        before = max(
            (other for other in chain.segments if other.number < segment.number),
            key=lambda other: other.number,
            default=None,
        )
        known = chain.headers.get(before.number) if before else None
        steps = known.steps_before + before.steps if known and before else 0
        if later:
            steps = max(0, min(later[0].steps_before, later[0].steps_before - segment.steps))
        dropped = later[0].dropped if later else known.dropped if known else []
        incarnation = max([0, *(header.next_incarnation for header in chain.headers.values())])
        return SegmentHeader(step_format.to_json(), steps, incarnation, dropped, segment.number, chain.oldest)

    def _set_down(self, chain: Chain, step_format: StepFormat) -> None:
        """Have the manifest take what is there for all there is; begin a new segment if newest steps are gone."""
        self.done += chain.losses()
        newest, steps = chain.newest, chain.steps
        gone = [segment for segment in chain.segments if not segment.path.exists()]
        for segment in gone:
            chain.segments.remove(segment)
        breaks = chain.broken_before() | {*chain.manifest.breaks}
        breaks |= {segment.number for segment in chain.segments if not segment.is_whole}  # its header may be new
        manifest = replace(
            chain.manifest,
            oldest=chain.oldest,
            newest=max(newest, chain.newest),
            steps=max(steps, chain.steps),
            link=None,
            breaks=sorted(breaks),
        )
        manifest.write(self._directory)
        log = SegmentLog(self._directory, step_format, _UNLIMITED, _UNLIMITED, shards=manifest.shards)
        try:
            incarnation = max([0, *(header.key.incarnation + 1 for header, _ in log.recover())])
            header = log.newest_header
            if log.lacks_newest:
                incarnation = max(incarnation, header.next_incarnation)
                log.roll(replace(header, steps_before=log.total_steps, next_incarnation=incarnation))
        finally:
            log.close()
        if not self.done:
            self.done.append(f"{self._directory / NAME} was written anew.")

    def _put_aside(self, path: Path, why: str) -> None:
        target = self._place_for(path)
        path.rename(target)
        self.done.append(f"{path} was moved to {target}: {why}.")

    def _place_for(self, path: Path) -> Path:
        """Return a free name in the folder for what this repair puts aside, which is made when it is first needed."""
        if not hasattr(self, "_folder"):
            beside = (self._directory.with_name(f"{self._directory.name}.aside-{n}") for n in range(1, _UNLIMITED))
            self._folder = next(folder for folder in beside if not folder.exists())
            self._folder.mkdir()
        names = (f"{path.name}{f'.{n}' if n else ''}" for n in range(_UNLIMITED))
        return next(self._folder / name for name in names if not (self._folder / name).exists())


def _accept_gaps(shards: list[Path]) -> list[str]:
    """Set down in each shard's manifest before which of its chunks others are missing."""
    done = []
    for shard in shards:
        chain = Chain(shard, writable=False)
        try:
            if not chain.headers:
                continue
            step_format = read_format(shard, chain.headers[max(chain.headers)])
            chunks = [each for each in read_chunks(chain.segments, step_format) if isinstance(each, StoredChunk)]
            known = {tuple(key) for key in chain.manifest.gaps}
            ordered = sorted(chunks, key=lambda each: each.header.key)
            gaps = {tuple(later.header.key) for earlier, later in pairwise(ordered) if order_faults(earlier, later)}
            if gaps - known or chain.manifest.shards != len(shards):
                replace(chain.manifest, gaps=sorted(gaps), shards=len(shards)).write(shard)
                count = len(gaps - known)
                done.append(
                    f"{shard}: its manifest has {counted(count, 'new place')} where chunks are missing, of a replay of "
                    f"{counted(len(shards), 'shard')}."
                )
        finally:
            chain.close()
    return done


def _number_in(path: Path) -> int | None:
    """Return the number that a file's own header says; None if it has none."""
    try:
        segment = Segment(path, writable=False)
    except (OSError, ValueError):
        return None
    try:
        return segment.read_header()[0].number or None
    except DamagedSegmentError:
        return None
    finally:
        segment.close()
