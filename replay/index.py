"""The index: which chunks are stored, and at which of their steps a training sequence may start.

A training sequence is cut from chunks with consecutive numbers of one stream, with the held-out steps left out. A start
is valid if it is not held out, `T` steps can be cut from it on and, unless sequences may continue across episodes, none
after the first is `is_first` or follows held-out steps. So each step that is not held out is in as many sequences as
any other, except the first and last of a stream. For each chunk the valid starts are one 64-bit mask. Masks are updated
when a chunk comes or goes, so that a draw is: any listed chunk, any of 64 bits, again if the bit is not set. Each valid
start is as likely as any other, and a draw costs the same however much is stored.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator

import numpy as np

from dreamfleet.common.experience.chunk import ChunkHeader, ChunkKey
from dreamfleet.replay.chunk_table import ChunkEntry, ChunkTable, ones
from dreamfleet.replay.segment_log import Location
from dreamfleet.replay.slices import Slices, cut
from dreamfleet.replay.start_rules import StartRules

_DICT_ENTRY_BYTES = 72  # two integers outside the dict's own table


class _Stream:
    """The chunks of one stream by number, and the newest number of it that was dropped (-1: none)."""

    def __init__(self) -> None:
        self.chunks: dict[int, int] = {}
        self.dropped = -1


class Index:
    """Which chunks are stored, and where training sequences of T steps may start; for the arguments see `StartRules`.

    Attributes:
        steps: steps stored; `chunks` likewise.
        episodes: episodes whose first step is stored.
        valid_starts: steps at which a training sequence may start.
        next_incarnation: 1 + the greatest incarnation ever seen.
        arrived: steps taken in since the index was made.
    """

    def __init__(self, sequence_length: int, across_episodes: bool, held_out_every: int) -> None:
        self._length = sequence_length
        self._rules = StartRules(across_episodes, held_out_every)
        self._table = ChunkTable()
        self._numbers: dict[tuple[int, int, int], int] = {}
        self._streams: list[_Stream] = []
        self._held_out: set[int] = set()
        self.steps = self.episodes = self.chunks = self.valid_starts = self.next_incarnation = self.arrived = 0

    def knows(self, key: ChunkKey) -> bool:
        """Whether this chunk is stored, or was and has been dropped since."""
        number = self._numbers.get(key[:3])
        if number is None:
            return False
        stream = self._streams[number]
        return key.number in stream.chunks or key.number <= stream.dropped

    def add(self, header: ChunkHeader, location: Location) -> None:
        """Take in a chunk that `knows` did not know."""
        key = header.key
        number = self._stream_number(key[:3])
        held_out = self._rules.held_out_steps(header)
        chunk = self._table.add(ChunkEntry.of(header, number, held_out, location, self.arrived))
        stream = self._streams[number]
        stream.chunks[key.number] = chunk
        self._link(stream, key.number - 1)
        self._link(stream, key.number)
        self.arrived += header.steps
        self.next_incarnation = max(self.next_incarnation, key.incarnation + 1)
        self.chunks += 1
        self.steps += header.steps
        self.episodes += header.first_mask.bit_count()
        if held_out:
            self._held_out.add(chunk)
        self._refresh(number, key.number)

    def holds(self, chunk: int) -> bool:
        """Whether the chunk with this id is still there."""
        return chunk >= self._table.base and self._table[chunk].steps > 0

    def remove(self, chunk: int) -> None:
        """Take out one chunk, if it is still there, because it turned out damaged; its steps become a gap."""
        if self.holds(chunk):
            stream, number = self._forget(chunk)
            self._refresh(stream, number - 1)

    def evict(self, segments: Iterable[int]) -> None:
        """Take out the chunks of the oldest segments, and remember that their keys were stored."""
        newest = max(segments, default=-1)
        stop = self._table.base + int(np.searchsorted(self._table.column("segment"), newest, side="right"))
        edges = []
        for chunk in range(self._table.base, stop):
            if self._table[chunk].steps:
                stream, number = self._forget(chunk)
                self._streams[stream].dropped = max(self._streams[stream].dropped, number)
                edges.append((stream, number - 1))
        for stream, number in edges:
            self._refresh(stream, number)
        self._table.drop_before(stop)

    def dropped(self) -> list[tuple[int, int, int, int]]:
        """Return (actor, incarnation, stream, number) of the newest dropped chunk of every stream that lost one."""
        newest = ((key, self._streams[number].dropped) for key, number in self._numbers.items())
        return [(*key, number) for key, number in newest if number >= 0]

    def remember_dropped(self, dropped: Iterable[Iterable[int]]) -> None:
        """Take over what `dropped` returned before a restart."""
        for actor, incarnation, stream, number in dropped:
            known = self._streams[self._stream_number((actor, incarnation, stream))]
            known.dropped = max(known.dropped, number)

    def entry(self, chunk: int) -> ChunkEntry:
        """Return what is known of a chunk."""
        return self._table[chunk]

    def versions(self) -> tuple[int, int]:
        """Return the oldest and the newest version of weights that chose a stored action; zeros if there is none."""
        held = self._table.column("steps") > 0
        if not held.any():
            return 0, 0
        oldest, newest = self._table.column("oldest_version")[held], self._table.column("newest_version")[held]
        return int(oldest.min()), int(newest.max())

    def longest(self) -> tuple[int, int]:
        """Return the most consecutive steps of a stream, and the most of an episode that are trained on.

        This looks at every step: it is meant for when nothing can be trained on.
        """
        in_stream = in_episode = 0
        for stream in self._streams:
            for entry in (self._table[chunk] for chunk in stream.chunks.values()):
                if any(True for _ in self._beside(stream, entry, -1)):
                    continue  # neither the first chunk of a stream nor the first after a gap
                steps = played = 0
                for follower in [entry, *(beside for _, beside in self._beside(stream, entry, 1))]:
                    steps += follower.steps
                    for t in range(follower.steps):
                        begins = follower.first_mask >> t & 1
                        played = 0 if follower.held_out >> t & 1 else 1 if begins else played + 1
                        in_episode = max(in_episode, played)
                in_stream = max(in_stream, steps)
        return in_stream, in_episode

    @property
    def streams(self) -> int:
        """Streams of which something is stored."""
        return sum(bool(stream.chunks) for stream in self._streams)

    def memory_bytes(self) -> int:
        """Return about how much memory the index takes."""
        dicts = sum(sys.getsizeof(stream.chunks) for stream in self._streams)
        return self._table.nbytes + dicts + _DICT_ENTRY_BYTES * self.chunks

    def draw(self, rng: np.random.Generator, count: int, recent_fraction: float, recent_steps: int) -> np.ndarray:
        """Return (count, 2) pairs, chunk and step, where `count` sequences start, drawn with replacement.

        There must be a valid start. A sequence starts with probability `recent_fraction` among the newest
        `recent_steps` steps, rounded up to whole chunks.
        """
        recent_chunks = -(-recent_steps * self.chunks // self.steps)
        return self._table.draw(rng, count, self.valid_starts, recent_fraction, recent_chunks)

    def cut(self, starts: np.ndarray) -> Slices:
        """Return the slices of the sequences that start at these valid starts, (count, 2) as `draw` returns them.

        Those of many sequences take hardly longer than those of one.
        """
        return cut(self._table, starts, self._length)

    def draw_held_out(self, rng: np.random.Generator, count: int, length: int) -> Slices | None:
        """Return the slices of `count` sequences of `length` held-out steps of one episode; None if none fits.

        This looks at every chunk with held-out steps: it is meant for occasional use.
        """
        masks = {chunk: mask for chunk in sorted(self._held_out) if (mask := self._held_out_starts(chunk, length))}
        if not masks:
            return None
        chunks = list(masks)
        ends = np.cumsum([mask.bit_count() for mask in masks.values()])
        starts = []
        for pick in rng.integers(0, ends[-1], count):
            at = int(np.searchsorted(ends, pick, side="right"))
            nth = int(pick) - (int(ends[at - 1]) if at else 0)
            mask = masks[chunks[at]]
            start = [bit for bit in range(mask.bit_length()) if mask >> bit & 1][nth]
            starts.append((chunks[at], start))
        return cut(self._table, np.array(starts, np.int64), length, held_out=True)

    def _stream_number(self, key: tuple[int, int, int]) -> int:
        number = self._numbers.setdefault(key, len(self._streams))
        if number == len(self._streams):
            self._streams.append(_Stream())
            self.next_incarnation = max(self.next_incarnation, key[1] + 1)
        return number

    def _forget(self, chunk: int) -> tuple[int, int]:
        """Take a chunk out of all but the table, and return its stream's number and its own."""
        entry = self._table[chunk]
        stream = self._streams[entry.stream]
        del stream.chunks[entry.number]
        if not stream.chunks:
            stream.chunks = {}  # an emptied dict keeps its table
        self._link(stream, entry.number - 1)
        self._held_out.discard(chunk)
        self.chunks -= 1
        self.steps -= entry.steps
        self.episodes -= entry.first_mask.bit_count()
        self.valid_starts -= entry.valid.bit_count()
        self._table.set(chunk, "valid", 0)
        self._table.set(chunk, "steps", 0)
        return entry.stream, entry.number

    def _link(self, stream: _Stream, number: int) -> None:
        """Note which chunk follows the one with this number in its stream, if that is stored."""
        chunk, follower = stream.chunks.get(number), stream.chunks.get(number + 1)
        if chunk is None:
            return
        if follower is not None:
            entry = self._table[chunk]
            if entry.first_step + entry.steps != self._table[follower].first_step:
                follower = None
        self._table.set(chunk, "follower", -1 if follower is None else follower)

    def _refresh(self, number: int, chunk_number: int) -> None:
        """Update the valid starts of a chunk that came, or lost its follower, and of those that reach into it."""
        stream = self._streams[number]
        here = stream.chunks.get(chunk_number)
        if here is None:
            return
        entry = self._table[here]
        run = [*self._reached(stream, entry, -1)[::-1], (here, entry)]
        settled = len(run)
        run += self._reached(stream, entry, 1)
        starts = self._rules.training([entry for _, entry in run], self._length)
        for (chunk, entry), valid in zip(run[:settled], starts, strict=False):
            if valid != entry.valid:
                self.valid_starts += valid.bit_count() - entry.valid.bit_count()
                self._table.set(chunk, "valid", valid)
            if valid and not entry.listed:
                self._table.list_for_drawing(chunk)

    def _reached(self, stream: _Stream, entry: ChunkEntry, towards: int) -> list[tuple[int, ChunkEntry]]:
        """Return the chunks beside one, nearest first, until they hold the other training steps of a sequence."""
        run, reach = [], self._length - 1
        for chunk, beside in self._beside(stream, entry, towards):
            if reach <= 0:
                break
            run.append((chunk, beside))
            start, stop = beside.trained_on
            reach -= stop - start
        return run

    def _beside(self, stream: _Stream, entry: ChunkEntry, towards: int) -> Iterator[tuple[int, ChunkEntry]]:
        """Yield the chunks after one (`towards` 1) or before it (-1), nearest first, up to a gap."""
        while (chunk := stream.chunks.get(entry.number + towards)) is not None:
            beside = self._table[chunk]
            earlier, later = (entry, beside) if towards > 0 else (beside, entry)
            if earlier.first_step + earlier.steps != later.first_step:
                return
            yield chunk, beside
            entry = beside

    def _held_out_starts(self, chunk: int, length: int) -> int:
        entry = self._table[chunk]
        run, steps = [entry], entry.steps
        for _, beside in self._beside(self._streams[entry.stream], entry, 1):
            if steps >= entry.steps + length - 1 or not beside.held_out:
                break
            run.append(beside)
            steps += beside.steps
        return self._rules.held_out(run, length) & ones(entry.steps)
