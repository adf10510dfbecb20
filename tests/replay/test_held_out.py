"""What is held out takes no training data away: every other step is drawn equally often, however long episodes are."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest

from dreamfleet.common.experience.blocks import Block
from dreamfleet.common.experience.chunk import ChunkHeader, ChunkKey
from dreamfleet.replay.index import Index
from dreamfleet.replay.segment_log import Location
from dreamfleet.replay.slices import ChunkSlice, Slices, cut, one_by_one

T = 64
STEPS = 2 * 1280 + 77
"""Of each stream: two cycles of runs, and some."""
EPISODES = {
    "1": [1],
    "5": [5],
    "10": [10],
    "20": [20],
    "50": [50],
    "1000": [1000],
    "growing": [5 + n // 3 for n in range(200)],
    "shrinking": [max(5, 40 - n // 4) for n in range(500)],
    "mixed": [1, 1000, 5, 300, 2, 2, 80, 40, 640, 7],
    "endless": [10**9],
}
"""Actions of the episodes, over and over; an episode has a step more than actions."""


class Streams:
    """An index with four streams of two incarnations, and what is known of their steps, laid end to end.

    Args:
        episodes: a key of `EPISODES`.
        across_episodes: as the index's.
    """

    def __init__(self, episodes: str, across_episodes: bool = True) -> None:
        rng = np.random.default_rng(len(episodes))
        self.index = Index(T, across_episodes, 10)
        self.offsets: list[int] = []
        self.first = np.zeros(4 * STEPS, bool)
        self.held_out = np.zeros(4 * STEPS, bool)
        for number in range(4):
            first = np.zeros(STEPS, bool)
            ends = np.cumsum(1 + np.resize(EPISODES[episodes], STEPS).astype(np.int64))
            first[[0, *ends[ends < STEPS]]] = True
            self.first[number * STEPS : (number + 1) * STEPS] = first
            for header in chunks_of(first, (0, number // 2, number % 2), rng):
                chunk = self.index._table.stop
                self.index.add(header, Location(1, 0))
                self.offsets.append(number * STEPS + header.first_step)
                mask = self.index.entry(chunk).held_out
                held = [bool(mask >> t & 1) for t in range(header.steps)]
                self.held_out[self.offsets[-1] : self.offsets[-1] + header.steps] = held

    def starts(self) -> list[tuple[int, int]]:
        """Return all valid starts, as chunk and step."""
        chunks = range(len(self.offsets))
        return [(c, t) for c in chunks for t in range(64) if self.index.entry(c).valid >> t & 1]

    def steps(self, slices: list[ChunkSlice]) -> np.ndarray:
        """Return the numbers of the steps that the slices of one row hold."""
        return np.concatenate([self.offsets[p.chunk] + np.arange(p.start, p.stop) for p in slices])

    def rows(self, slices: Slices) -> Iterator[tuple[list[ChunkSlice], np.ndarray]]:
        """Yield the slices of each row and the numbers of its steps."""
        for row in range(slices[-1, 0] + 1):
            own = one_by_one(slices[slices[:, 0] == row])
            yield own, self.steps(own)


def chunks_of(first: np.ndarray, key: tuple[int, int, int], rng: np.random.Generator) -> Iterator[ChunkHeader]:
    """Yield the headers of a stream's chunks: whole ones; the second stream of an incarnation is cut anywhere."""
    start = number = 0
    while start < len(first):
        steps = min(64 if not key[2] else int(rng.integers(1, 65)), len(first) - start)
        mask = sum(1 << t for t in range(steps) if first[start + t])
        episode = int(first[: start + 1].sum()) - 1
        blocks = (Block(0, 0, False, 0),)
        yield ChunkHeader(ChunkKey(*key, number), 0, start, episode, steps, mask, 0, 0, 0, 0, blocks, 0)
        start, number = start + steps, number + 1


@pytest.mark.parametrize("episodes", EPISODES)
def test_every_step_that_is_not_held_out_is_in_t_sequences(episodes: str) -> None:
    """All training steps but the last of a stream are starts, and all but its ends are in exactly T sequences."""
    streams = Streams(episodes)
    trained = ~streams.held_out.reshape(4, STEPS)
    assert streams.index.valid_starts == trained.sum() - 4 * (T - 1)
    assert streams.index.valid_starts >= 0.85 * trained.size
    assert 0.08 < streams.held_out.mean() < 0.12
    times = np.zeros(4 * STEPS, int)
    for part in one_by_one(cut(streams.index._table, np.array(streams.starts()), T)):
        at = streams.offsets[part.chunk]
        times[at + part.start : at + part.stop] += 1
    assert not times[streams.held_out].any()
    for counts, kind in zip(times.reshape(4, STEPS), trained, strict=True):
        assert (counts[kind][T - 1 : 1 - T] == T).all()


@pytest.mark.parametrize("across_episodes", [True, False])
@pytest.mark.parametrize("episodes", ["5", "50", "1000", "mixed", "endless"])
def test_sequences_begin_anew_where_they_leave_held_out_steps_out(episodes: str, across_episodes: bool) -> None:
    """Drawn rows hold T training steps, in order; left out are held-out runs alone, and there the next part begins."""
    streams = Streams(episodes, across_episodes)
    if not streams.index.valid_starts:
        assert episodes in {"5", "50"}  # of fewer steps than a sequence
        return
    joints = 0
    for own, steps in streams.rows(streams.index.cut(streams.index.draw(np.random.default_rng(0), 400, 0.0, 1))):
        assert len(steps) == T
        assert not streams.held_out[steps].any()
        assert [part.at for part in own] == [0, *np.cumsum([p.stop - p.start for p in own])[:-1]]
        assert own[0].begins
        for before, after in pairwise(own):
            skipped = np.arange(*streams.steps([before, after])[[before.stop - before.start - 1, -1]])[1:]
            skipped = skipped[: len(skipped) - (after.stop - after.start) + 1]
            assert streams.held_out[skipped].all()
            assert after.begins == (len(skipped) > 0)
            joints += after.begins
        if not across_episodes:
            assert not streams.first[steps[1:]].any()
            assert (np.diff(steps) == 1).all()
    assert (joints > 3) == across_episodes


@pytest.mark.parametrize("episodes", EPISODES)
def test_held_out_windows_hold_nothing_that_is_trained_on(episodes: str) -> None:
    """Windows of what is held out follow each other in one episode; where none has T steps, shorter ones are found."""
    streams, length = Streams(episodes), T
    while (slices := streams.index.draw_held_out(np.random.default_rng(1), 200, length)) is None:
        length //= 2
    assert length >= min(T, 1 + EPISODES[episodes][0]) // 2
    for own, steps in streams.rows(slices):
        assert streams.held_out[steps].all()
        assert (np.diff(steps) == 1).all()
        assert not streams.first[steps[1:]].any()
        assert [part.begins for part in own] == [1] + [0] * (len(own) - 1)


@pytest.mark.parametrize("episodes", ["5", "shrinking", "mixed", "endless"])
def test_steps_are_drawn_equally_often(episodes: str) -> None:
    """Over 10,000 drawn starts, the counts of thirds of runs fit what their numbers of valid starts let expect."""
    streams = Streams(episodes)
    slices = streams.index.cut(streams.index.draw(np.random.default_rng(2), 10_000, 0.0, 1))
    drawn = np.array([streams.offsets[p.chunk] + p.start for p in one_by_one(slices) if p.at == 0])
    valid = np.array([streams.offsets[chunk] + start for chunk, start in streams.starts()])
    bins = np.arange(0, 4 * STEPS + 43, 43)
    counts, expected = (np.histogram(numbers, bins)[0].astype(float) for numbers in (drawn, valid))
    assert not counts[expected == 0].any()
    counts, expected = counts[expected > 0], expected[expected > 0] * 10_000 / len(valid)
    degrees = len(counts) - 1
    assert abs(((counts - expected) ** 2 / expected).sum() - degrees) < 4 * (2 * degrees) ** 0.5


@pytest.mark.parametrize(("incarnations", "streams"), [(1, 1), (2, 1), (1, 4), (2, 4), (4, 1), (16, 4), (3, 7)])
@pytest.mark.parametrize("every", [2, 8, 10])
def test_at_any_time_the_configured_share_of_steps_is_held_out(incarnations: int, streams: int, every: int) -> None:
    """While all streams grow alike, held out are at most that share and a run of one stream more."""
    index = Index(2, True, every)
    whole = np.zeros(64 * 2 * every * 2, bool)
    rng = np.random.default_rng(0)
    keys = [(0, incarnation, stream * 2) for incarnation in range(incarnations) for stream in range(streams)]
    growing = [list(chunks_of(whole, (*key[:2], 0), rng)) for key in keys]
    steps = held_out = 0
    for chunks in zip(*growing, strict=True):
        for (actor, incarnation, stream), header in zip(keys, chunks, strict=True):
            number = index._table.stop
            index.add(header._replace(key=ChunkKey(actor, incarnation, stream, header.key.number)), Location(1, 0))
            held_out += index.entry(number).held_out.bit_count()
            steps += header.steps
        assert held_out <= steps / every + 128 * max(1, len(keys) / every)
    assert held_out == steps / every
