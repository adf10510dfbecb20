"""The chain of a shard's segments: each names its number and the one before it, and the manifest names the newest.

So a segment that is missing, was renamed, swapped or copied, or is of another replay, is found by the headers of
segments and chunks alone, which are read whenever a replay is opened.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

from dreamfleet.common.errors import UserError
from dreamfleet.replay.manifest import NAME, DamagedManifestError, Manifest
from dreamfleet.replay.segment import Segment, foreign_paths, open_segments
from dreamfleet.replay.segment_header import DamagedSegmentError, Link, SegmentHeader

CONSEQUENCE = (
    "They still count as collected, so that the train ratio stays what it was; none of them can be sampled any more."
)
"""What it means for a run that steps are lost."""


class Chain:
    """The open segments of a directory, and what should be there.

    Attributes:
        segments: oldest first.
        headers: those that are intact, by segment number.
        manifest: what it says; if there is none, what is known without.
        oldest: number of the oldest segment that was not dropped for space.
        notes: sentences on what is passed over and costs nothing.
    """

    def __init__(self, directory: Path, writable: bool) -> None:
        self.directory = directory
        self.notes = [f"{path} is no segment of this replay, and is passed over." for path in foreign_paths(directory)]
        # A writer begins a segment, then writes the manifest, then drops old ones. So what the manifest named before
        # the opening must be there, unless the one of after it says that it was dropped.
        self._manifest_note: str | None = None
        before = self._read_manifest()
        self.segments = open_segments(directory, writable)
        after = self._read_manifest() if before and not writable else None
        self.headers = {segment.number: header for segment in self.segments if (header := _header_of(segment))}
        self.manifest = before or Manifest(oldest=0)
        for segment in self.segments:
            if self.manifest.link and self.manifest.link.number == segment.number:
                segment.await_link(self.manifest.link)
        oldest = [self.manifest.oldest, *(header.oldest for header in self.headers.values())]
        self.oldest = max(oldest + ([after.oldest] if after else []))
        if before is None and not self._manifest_note and any(header.number for header in self.headers.values()):
            self._manifest_note = f"{directory / NAME} is missing"
        self.notes += [f"{self._manifest_note}{_UNKNOWN}"] if self._manifest_note else []

    @property
    def newest(self) -> int:
        """Number of the newest segment that was ever begun, as far as is known."""
        return max([self.manifest.newest, *(segment.number for segment in self.segments)])

    @property
    def steps(self) -> int:
        """Unique steps ever stored, lost and dropped ones included, once all chunks of the newest were counted."""
        return max(self._steps_in_segments, self.manifest.steps)

    @property
    def _steps_in_segments(self) -> int:
        steps = 0
        for segment in self.segments:
            header = self.headers.get(segment.number)
            steps = max(steps, header.steps_before if header else 0) + segment.steps
        return steps

    @property
    def lacks_newest(self) -> bool:
        """Whether newest steps are missing, once all chunks were counted."""
        newest = max((segment.number for segment in self.segments), default=0)
        return self._steps_in_segments < self.manifest.steps or newest < self.manifest.newest

    def close(self) -> None:
        """Close all files."""
        for segment in self.segments:
            segment.close()

    def faults(self) -> list[str]:
        """Return all that is wrong, apart from damaged bytes, in sentences; all chunks must have been counted."""
        misplaced = list(self.misplaced().values())
        if misplaced:  # what follows from it is not worth saying
            return self.notes + misplaced
        return [*self.notes, *(sentence for _, sentence in self.changed()), *self.losses()]

    def misplaced(self) -> dict[int, str]:
        """Return a sentence for each segment that is not where it belongs, by its number."""
        found = {}
        for segment in self.segments:
            header = self.headers.get(segment.number)
            if header and header.number not in (0, segment.number):
                found[segment.number] = (
                    f"{segment.path} was begun as segment {header.number}: it was renamed or copied."
                )
        for earlier, later in self.unfitting():
            if earlier.number not in found and later.number not in found:
                found[earlier.number] = (
                    f"{earlier.path} is not the file that {later.path.name} was begun after: one of them is of another "
                    "replay, or was copied."
                )
        return found

    def unfitting(self) -> list[tuple[Segment, Segment]]:
        """Return the neighbours of which one does not belong here."""
        return [pair for pair in pairwise(self.segments) if not self._fits(*pair)]

    def changed(self) -> list[tuple[Segment, str]]:
        """Return segments that do not hold what was written to them, with a sentence; all chunks must be counted."""
        sentence = "%s holds %d steps that are not the %d written to it: it is of another replay, or was changed."
        return [
            (segment, sentence % (segment.path, segment.steps, wanted.steps))
            for segment, wanted in self._unlike()
            if not _is_cut(segment, wanted)
        ]

    def broken_before(self) -> set[int]:
        """Return the numbers of the segments before which steps are missing; all chunks must be counted."""
        broken = {self.segments[0].number} if list(self._lost_first()) else set()
        unlike = {segment for segment, _ in self._unlike()}
        for earlier, later in pairwise(self.segments):
            if not earlier.is_whole or earlier in unlike or self._number_before(later) != earlier.number:
                broken.add(later.number)
        return broken

    def losses(self) -> list[str]:
        """Return a sentence for each place where experience is missing, and was not dropped for space.

        All chunks must have been counted.
        """
        if not self.segments:
            return (
                [self._missing(self.oldest, self.manifest.newest, self.manifest.steps)] if self.manifest.newest else []
            )
        return [*self._lost_first(), *self._lost_between(), *self._lost_inside(), *self._lost_last()]

    def refuse(self, sentences: list[str]) -> None:
        """Raise `UserError` if there are any of these sentences."""
        if sentences:
            more = f" ({len(sentences) - 1} more like it.)" if len(sentences) > 1 else ""
            repair = f"dreamfleet replay repair {shlex.quote(str(self.directory))}"
            raise UserError(
                f"{sentences[0]}{more} Nothing was changed; `{repair}` makes a consistent replay of what is left."
            )

    def _lost_first(self) -> Iterator[str]:
        first = self.segments[0]
        if first.number > self.oldest > 0 and first.number not in self.manifest.breaks:
            header = self.headers.get(first.number)
            yield self._missing(
                self.oldest, first.number - 1, header.steps_before - self.manifest.dropped if header else 0
            )

    def _lost_between(self) -> Iterator[str]:
        for earlier, later in pairwise(self.segments):
            before = self._number_before(later)
            if before > earlier.number and before >= self.oldest and later.number not in self.manifest.breaks:
                start, stop = self.headers.get(earlier.number), self.headers.get(later.number)
                lost = stop.steps_before - start.steps_before - earlier.steps if start and stop else 0
                yield self._missing(max(self.oldest, earlier.number + 1), before, lost)

    def _lost_inside(self) -> Iterator[str]:
        for segment, wanted in self._unlike():
            if _is_cut(segment, wanted) and segment is not self.segments[-1]:
                yield f"{segment.path}: the last {wanted.steps - segment.steps} steps of it are missing. {CONSEQUENCE}"

    def _unlike(self) -> Iterator[tuple[Segment, Link]]:
        """Yield the undamaged segments that are not as they were left, and how they were left."""
        links = {link.number: link for link in self._links()}
        for segment in self.segments:
            wanted, newest = links.get(segment.number), self.manifest.link
            if not segment.is_whole:
                continue
            if wanted and wanted[2:] != segment.link[2:]:
                yield segment, wanted
            elif not wanted and newest and newest.number == segment.number and not segment.has_passed:
                yield segment, newest  # which may have grown since

    def _lost_last(self) -> Iterator[str]:
        last, lost = self.segments[-1], self.manifest.steps - self._steps_in_segments
        if last.number < self.manifest.newest:
            yield self._missing(last.number + 1, self.manifest.newest, lost)
        elif lost > 0:
            yield f"{last.path}: {lost} steps at its end, or damaged ones in it, are missing. {CONSEQUENCE}"

    def _missing(self, first: int, last: int, steps: int) -> str:
        which = f"segment {first} is" if first == last else f"segments {first} to {last} are"
        count = f", with {steps} steps" if steps > 0 else ""
        return f"{self.directory}: {which} missing{count}, and not because of the capacity. {CONSEQUENCE}"

    def _number_before(self, segment: Segment) -> int:
        """Return the number of the segment that should be before this one."""
        header = self.headers.get(segment.number)
        return header.previous.number if header and header.previous else segment.number - 1

    def _fits(self, earlier: Segment, later: Segment) -> bool:
        """Whether two neighbours may follow each other, others between them being missing or not."""
        before, after = self.headers.get(earlier.number), self.headers.get(later.number)
        if after is None or later.number in self.manifest.breaks:
            return True
        if before and after.steps_before < before.steps_before:
            return False
        if after.number == 0:  # of before there was a chain
            return True
        link = after.previous
        if link is None or link.number < earlier.number:
            return False
        is_known = link.number == earlier.number and before is not None and link.header is not None
        return not is_known or link.header == earlier.link.header

    def _links(self) -> Iterator[Link]:
        for segment in self.segments:
            header = self.headers.get(segment.number)
            if header and header.previous and segment.number not in self.manifest.breaks:
                yield header.previous

    def _read_manifest(self) -> Manifest | None:
        try:
            return Manifest.read(self.directory)
        except DamagedManifestError as error:
            self._manifest_note = str(error)
            return None


_UNKNOWN = ": whether the newest segments are all there cannot be known, and what was repaired before is forgotten."


def _is_cut(segment: Segment, wanted: Link) -> bool:
    """Whether an undamaged segment that is not as it was left may have lost its last chunks, and no more."""
    return segment.steps == 0 or (segment.steps < wanted.steps and segment.link.first == wanted.first)


def _header_of(segment: Segment) -> SegmentHeader | None:
    try:
        return segment.read_header()[0]
    except DamagedSegmentError:
        return None
