"""Where sequences may start: arithmetic on masks in which bit t stands for step t of some consecutive chunks."""

from __future__ import annotations

from collections.abc import Sequence

from dreamfleet.common.chunk import ChunkHeader
from dreamfleet.replay.chunk_table import Row


class StartRules:
    """Tells training and held-out steps apart, and finds the starts of sequences that use one kind alone.

    Episodes are numbered from 0 in each stream. Episode e of stream s of actor a is held out if

        (e + a + s) % held_out_every == 1

    so that streams hold out at different times, and what is held out is of all ages of the run. With two actors or more
    one is held out at once: stream 0 of actor 0 keeps back its episode 1, stream 0 of actor 1 its episode 0.

    Args:
        across_episodes: whether a training sequence may run on into the next episode.
        held_out_every: of each stream's episodes every so many is never trained on; 0 holds none out, 1 all.
    """

    def __init__(self, across_episodes: bool, held_out_every: int) -> None:
        self._across_episodes = across_episodes
        self._held_out_every = held_out_every

    def training(self, rows: Sequence[Row], length: int) -> int:
        """Return where a training sequence of `length` steps may start in consecutive chunks."""
        steps, first, held = self._join(rows)
        blocked = within(held, length)
        if not self._across_episodes:
            blocked |= within(first >> 1, length - 1)
        return ones(steps - length + 1) & ~blocked

    def held_out(self, rows: Sequence[Row], length: int) -> int:
        """Return where a window of `length` steps of one held-out episode may start in consecutive chunks."""
        steps, first, held = self._join(rows)
        blocked = within(held ^ ones(steps), length) | within(first >> 1, length - 1)
        return ones(steps - length + 1) & ~blocked

    def held_out_steps(self, header: ChunkHeader) -> int:
        """Return which of a chunk's steps belong to held-out episodes."""
        every = self._held_out_every
        if not every:
            return 0
        held, start = 0, 0
        turn = header.episode + header.key.actor + header.key.stream
        for stop in [*set_bits(header.first_mask & ~1), header.steps]:
            if turn % every == 1 % every:
                held |= ones(stop) ^ ones(start)
            turn, start = turn + 1, stop
        return held

    def _join(self, rows: Sequence[Row]) -> tuple[int, int, int]:
        """Return how many steps the chunks hold, which of them are `is_first`, and which are held out."""
        steps = first = held = 0
        for row in rows:
            first |= row.first_mask << steps
            held |= row.held_out << steps
            steps += row.steps
        return steps, first, held


def ones(count: int) -> int:
    """Return a mask whose lowest `count` bits are set; none if `count` is negative."""
    return (1 << max(count, 0)) - 1


def within(bits: int, width: int) -> int:
    """Return a mask whose bit t is set if any of the bits t to t + width - 1 is."""
    covered = 1
    while covered < width and bits:
        shift = min(covered, width - covered)
        bits |= bits >> shift
        covered += shift
    return bits if width > 0 else 0


def set_bits(mask: int) -> list[int]:
    """Return the numbers of the set bits, lowest first."""
    numbers = []
    while mask:
        lowest = mask & -mask
        numbers.append(lowest.bit_length() - 1)
        mask ^= lowest
    return numbers
