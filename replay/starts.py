"""Where sequences may start: arithmetic on masks in which bit t stands for step t of some consecutive chunks."""

from __future__ import annotations

from collections.abc import Sequence

from dreamfleet.replay.chunk_table import Row


class StartRules:
    """Tells training and held-out steps apart, and finds the starts of sequences that use one kind alone.

    Args:
        across_episodes: whether a training sequence may run on into the next episode.
        held_out_every: of each stream's episodes every so many is never trained on; 0 holds none out.
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

    def held_out_steps(self, row: Row) -> int:
        """Return which of a chunk's steps belong to held-out episodes.

        Episodes are numbered from 0 in each stream; those with `number % held_out_every == 1` are held out, so that the
        first is not; with `held_out_every` 1 all are.
        """
        if not self._held_out_every:
            return 0
        wanted, held, episode, start = 1 % self._held_out_every, 0, row.episode, 0
        for stop in [*set_bits(row.first_mask & ~1), row.steps]:
            if episode % self._held_out_every == wanted:
                held |= ones(stop) ^ ones(start)
            episode, start = episode + 1, stop
        return held

    def _join(self, rows: Sequence[Row]) -> tuple[int, int, int]:
        """Return how many steps the chunks hold, which of them are `is_first`, and which are held out."""
        steps = first = held = 0
        for row in rows:
            first |= row.first_mask << steps
            held |= self.held_out_steps(row) << steps
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
