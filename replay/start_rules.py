"""The start rules: at which steps of some chunks sequences may start, to train on or held out.

In masks, bit t stands for step t of a chunk, or of some consecutive chunks.
"""

from __future__ import annotations

from collections.abc import Sequence

from dreamfleet.common.experience.chunk import ChunkHeader, ChunkKey
from dreamfleet.common.experience.steps import CHUNK_STEPS
from dreamfleet.replay.chunk_table import ChunkEntry, lowest_bit, ones

HELD_OUT_RUN = 128
"""Steps of a stream that are held out together, or trained on together: held-out sequences lie within them."""
_INCARNATION_SHARE, _STREAM_SHARE = 2447445414, 3242174889
"""Shares of a cycle, in units of 2⁻³²: 1/p² and 1/p with p³ = p + 1, whose multiples lie evenly (Roberts's R2)."""
assert CHUNK_STEPS <= HELD_OUT_RUN  # a chunk has at most one border of runs


class StartRules:
    """Tells training and held-out steps apart, and finds the starts of sequences that use one kind alone.

    A stream is divided into runs of `HELD_OUT_RUN` steps. Of every `held_out_every` consecutive runs one is held out:
    in the first stream of incarnation 0 the last of them, in other streams an earlier one, so that about that share of
    all streams together is held out at any time, also early on. A border between runs moves to the next episode's first
    step if that lies in the same chunk. A chunk's header alone decides this: it does not depend on what else is stored,
    nor on restarts.

    A training sequence continues after held-out steps with the steps that follow them; there its state begins anew.

    Args:
        across_episodes: whether a training sequence may continue into the next episode, and over held-out steps.
        held_out_every: one step in this many is never trained on; 0 holds out none, 1 all.
    """

    def __init__(self, across_episodes: bool, held_out_every: int) -> None:
        self._across_episodes = across_episodes
        self._held_out_every = held_out_every

    def training(self, chunks: Sequence[ChunkEntry], length: int) -> list[int]:
        """Return for each of some consecutive chunks where a training sequence of `length` steps may start in it."""
        ranges = [chunk.trained_on for chunk in chunks]
        starts = ones(sum(stop - start for start, stop in ranges) - length + 1)
        if not self._across_episodes:
            starts &= ~_any_within(_beginnings(chunks) >> 1, length - 1)
        masks = []
        for start, stop in ranges:
            masks.append((starts & ones(stop - start)) << start)
            starts >>= stop - start
        return masks

    def held_out(self, chunks: Sequence[ChunkEntry], length: int) -> int:
        """Return where a sequence of `length` held-out steps of one episode may start in consecutive chunks."""
        steps = first = held = 0
        for chunk in chunks:
            first |= chunk.first_mask << steps
            held |= chunk.held_out << steps
            steps += chunk.steps
        blocked = _any_within(held ^ ones(steps), length) | _any_within(first >> 1, length - 1)
        return ones(steps - length + 1) & ~blocked

    def held_out_steps(self, header: ChunkHeader) -> int:
        """Return which of a chunk's steps are held out: none, all, or those on one side of a border."""
        if not self._held_out_every:
            return 0
        run = (header.first_step + header.steps - 1) // HELD_OUT_RUN
        border = run * HELD_OUT_RUN - header.first_step
        if border >= 0:  # else the whole chunk is of one run
            border += lowest_bit(header.first_mask >> border)
        before, after = ones(border), ones(header.steps) ^ ones(border)
        return before * self._holds_out(header.key, run - 1) | after * self._holds_out(header.key, run)

    def _holds_out(self, key: ChunkKey, run: int) -> bool:
        """Whether the stream that a chunk belongs to holds out its run of this number."""
        every = self._held_out_every
        share = (key.incarnation * _INCARNATION_SHARE + key.stream * _STREAM_SHARE) % (1 << 32)
        return (run + (share * every >> 32)) % every == every - 1


def _beginnings(chunks: Sequence[ChunkEntry]) -> int:
    """Return which of the training steps of consecutive chunks begin an episode, or follow held-out ones."""
    steps = beginnings = 0
    follows_held_out = False
    for chunk in chunks:
        start, stop = chunk.trained_on
        if start < stop:
            beginnings |= (chunk.first_mask >> start & ones(stop - start) | (follows_held_out or start > 0)) << steps
        follows_held_out = stop < chunk.steps
        steps += stop - start
    return beginnings


def _any_within(bits: int, width: int) -> int:
    """Return a mask whose bit t is set if any of the bits t to t + width - 1 is."""
    covered = 1
    while covered < width and bits:
        shift = min(covered, width - covered)
        bits |= bits >> shift
        covered += shift
    return bits if width > 0 else 0
