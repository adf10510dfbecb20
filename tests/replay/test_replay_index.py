"""The index: where sequences may start, checked against a plain enumeration, and how they are drawn."""

from __future__ import annotations

import math
from collections import Counter
from typing import NamedTuple

import numpy as np
import pytest
from make_chunks import counting_format, cut, make_stream

from dreamfleet.common.experience.chunk import ChunkHeader, parse_header
from dreamfleet.replay.index import Index
from dreamfleet.replay.segment_log import Location
from dreamfleet.replay.slices import ChunkSlice, one_by_one

FORMAT = counting_format()
Start = tuple[int, int, int, int]
"""Actor, incarnation, stream, number of the step in the stream."""


def headers(
    episode_lengths: list[int], chunk_steps: int | list[int] = 64, actor: int = 0, incarnation: int = 0, stream: int = 0
) -> list[ChunkHeader]:
    """Return the headers of a made-up stream's chunks."""
    arrays = make_stream(FORMAT, episode_lengths)
    return [parse_header(chunk) for chunk in cut(FORMAT, arrays, actor, incarnation, stream, chunk_steps)]


def filled(index: Index, chunks: list[ChunkHeader], segment_of: int = 1) -> dict[int, ChunkHeader]:
    """Add chunks, all in one segment, and return them by their ids."""
    before = index._table.stop
    for header in chunks:
        assert not index.knows(header.key)
        index.add(header, Location(segment_of, 0))
        assert index.knows(header.key)
    return dict(zip(range(before, index._table.stop), chunks, strict=True))


def draw(index: Index, rng: np.random.Generator, count: int, fraction: float, recent_steps: int) -> list[ChunkSlice]:
    """Draw sequences and return their slices."""
    return one_by_one(index.cut(index.draw(rng, count, fraction, recent_steps)))


def listed_starts(index: Index, chunks: dict[int, ChunkHeader]) -> set[Start]:
    """Return the valid starts as the index holds them."""
    starts = set()
    for number, header in chunks.items():
        if index.holds(number):
            mask = index.entry(number).valid
            starts |= {(*header.key[:3], header.first_step + bit) for bit in range(64) if mask >> bit & 1}
    assert index.valid_starts == len(starts)
    return starts


class Step(NamedTuple):
    """What a plain look at a stored step tells."""

    sequence: int
    first: bool
    episode: int
    held_out: bool


def steps_of(chunks: list[ChunkHeader], held_out_every: int) -> dict[Start, Step]:
    """Return all steps of some chunks, by going through them one by one."""
    steps: dict[Start, Step] = {}
    for header in chunks:
        _, incarnation, stream, sequence = header.key
        episode, left_over = header.episode, False
        for t in range(header.steps):
            number, first = header.first_step + t, bool(header.first_mask >> t & 1)
            episode += first and t > 0
            left_over |= number % 128 == 0 and header.first_mask >> t > 0  # until the next episode begins
            left_over &= not first
            share = (incarnation * 2447445414 + stream * 3242174889) / 2**32 % 1
            turn = number // 128 - left_over + math.floor(share * held_out_every)
            held_out = held_out_every > 0 and turn % held_out_every == held_out_every - 1
            steps[(*header.key[:3], number)] = Step(sequence, first, episode, held_out)
    return steps


def enumerated_starts(
    chunks: list[ChunkHeader], length: int, across_episodes: bool = True, held_out_every: int = 0
) -> set[Start]:
    """Return the valid starts by looking at every step of every sequence."""
    steps = steps_of(chunks, held_out_every)
    starts = set()
    for start, step in steps.items():
        if step.held_out:
            continue
        taken, number, sequence, joins = 1, start[3], step.sequence, False
        skips = False
        while taken < length:
            number += 1
            following = steps.get((*start[:3], number))
            if following is None or following.sequence - sequence not in {0, 1}:
                break
            sequence = following.sequence
            if following.held_out:
                skips = True
                continue
            joins |= following.first or skips
            taken += 1
        if taken == length and (across_episodes or not joins):
            starts.add(start)
    return starts


@pytest.mark.parametrize("length", [1, 50, 65, 150])
@pytest.mark.parametrize("chunk_steps", [64, 16, [5, 64, 3, 1, 40]])
@pytest.mark.parametrize("across_episodes", [True, False])
@pytest.mark.parametrize("held_out_every", [0, 1, 2, 3])
def test_valid_starts_are_those_of_a_plain_enumeration(
    length: int, chunk_steps: int | list[int], across_episodes: bool, held_out_every: int
) -> None:
    """Masks agree with looking at every step, in order and in any other order, with gaps, and after removals."""
    rng = np.random.default_rng(length)
    episodes = [70, 1, 130, 200, 30, 2, 90]
    chunks = headers(episodes, chunk_steps) + headers([260], chunk_steps, incarnation=1)
    chunks += headers(episodes, chunk_steps, actor=2, stream=5)
    order = [chunks[k] for k in rng.permutation(len(chunks))][: max(3, len(chunks) - 2)]
    for given in (chunks, order):
        index = Index(length, across_episodes, held_out_every)
        held = filled(index, given)
        assert listed_starts(index, held) == enumerated_starts(given, length, across_episodes, held_out_every)
        gone = int(rng.integers(len(given)))
        index.remove(gone)
        rest = [header for number, header in held.items() if number != gone]
        assert listed_starts(index, held) == enumerated_starts(rest, length, across_episodes, held_out_every)


def test_streams_and_incarnations_are_never_joined() -> None:
    """Chunks that follow each other in number but belong to another actor, incarnation or stream make no sequence."""
    index = Index(64, True, 0)
    one, *_ = headers([64], 64)
    filled(index, [one])
    starts_alone = index.valid_starts
    for key in ((1, 0, 0), (0, 1, 0), (0, 0, 1)):
        filled(index, [headers([128], 64, *key)[1]])
    assert index.valid_starts == 4 * starts_alone == 4


def test_a_gap_is_never_crossed_and_closes_when_filled() -> None:
    """Without the chunk in the middle there are two short runs, with it one long one, and a late chunk counts once."""
    chunks = headers([192], 64)
    index = Index(100, True, 0)
    filled(index, [chunks[0], chunks[2]])
    assert index.valid_starts == 0
    filled(index, [chunks[1]])
    assert index.valid_starts == 93
    index.remove(2)
    assert index.valid_starts == 0


def test_chunks_that_contradict_each_other_are_not_joined() -> None:
    """A following sequence number with another first step than expected is taken for a gap."""
    chunks = headers([128], 64)
    index = Index(100, True, 0)
    filled(index, [chunks[0], headers([5, 123], [5, 64])[1]])
    assert index.valid_starts == 0


def test_every_valid_start_is_drawn_equally_often() -> None:
    """Over chunks of different lengths and with few valid starts in some, the counts fit the uniform distribution."""
    index = Index(10, True, 3)
    held = filled(index, headers([30, 40, 64, 3, 20, 90], [7, 64, 1, 30]) + headers([64], 64, stream=1))
    rng = np.random.default_rng(0)
    starts = Counter()
    for _ in range(40):
        for part in draw(index, rng, 500, 0.0, 1):
            if part.at == 0:
                starts[(*held[part.chunk].key[:3], held[part.chunk].first_step + part.start)] += 1
    valid = listed_starts(index, held)
    assert set(starts) == valid
    expected = 20000 / len(valid)
    chi_square = sum((starts[start] - expected) ** 2 / expected for start in valid)
    degrees = len(valid) - 1
    assert abs(chi_square - degrees) < 4 * (2 * degrees) ** 0.5


def test_pieces_cover_a_sequence_without_hole_or_overlap() -> None:
    """The slices of each sequence fill it from 0 to T with following steps."""
    index = Index(100, True, 0)
    held = filled(index, headers([500], [30, 64, 9]))
    rows: dict[int, list[ChunkSlice]] = {}
    for part in draw(index, np.random.default_rng(1), 50, 0.0, 1):
        rows.setdefault(part.sequence, []).append(part)
    assert sorted(rows) == list(range(50))
    for slices in rows.values():
        steps = [held[p.chunk].first_step + step for p in slices for step in range(p.start, p.stop)]
        assert steps == list(range(steps[0], steps[0] + 100))
        assert [p.at for p in slices] == [0, *np.cumsum([p.stop - p.start for p in slices])[:-1]]


def test_recent_draws_come_from_the_newest_chunks() -> None:
    """With half the draws from the newest 640 of 64,000 steps, about half of all fall there."""
    index = Index(16, True, 0)
    filled(index, headers([64000], 64))
    slices = draw(index, np.random.default_rng(2), 4000, 0.5, 640)
    newest = sum(part.at == 0 and part.chunk >= 989 for part in slices)
    assert 0.46 < newest / 4000 < 0.56
    slices = draw(index, np.random.default_rng(2), 1000, 1.0, 640)
    assert min(part.chunk for part in slices) >= 989


def test_recent_draws_fall_back_when_the_newest_have_no_start() -> None:
    """If the newest chunks have lost all their starts, the draw is uniform over the others."""
    index = Index(64, True, 0)
    filled(index, headers([64 * 9], 64))
    for chunk in (2, 4, 6, 8):
        index.remove(chunk)
    filled(index, headers([640], 64, stream=1)[::2])
    draw(index, np.random.default_rng(0), 100, 1.0, 64)
    for chunk in range(9, 14):
        index.remove(chunk)
    assert {part.chunk for part in draw(index, np.random.default_rng(0), 100, 1.0, 64)} <= {0, 1, 3, 5, 7}


@pytest.mark.parametrize("chunk_steps", [64, [7, 64, 1, 30]])
def test_held_out_windows_are_all_that_lie_within_one_episode_and_are_held_out(chunk_steps: int | list[int]) -> None:
    """All such windows are drawn, and no other; a window that is longer than any is not there."""
    index = Index(10, True, 3)
    held = filled(index, headers([30, 40, 64, 3, 125, 90, 300, 200], chunk_steps))
    steps = list(steps_of(list(held.values()), 3).values())
    windows = {start: steps[start : start + 60] for start in range(len(steps) - 59)}
    wanted = {
        start
        for start, window in windows.items()
        if all(step.held_out for step in window) and len({step.episode for step in window}) == 1
    }
    drawn = index.draw_held_out(np.random.default_rng(0), 3000, 60)
    assert drawn is not None
    slices = one_by_one(drawn)
    assert {held[p.chunk].first_step + p.start for p in slices if p.at == 0} == wanted
    assert len(wanted) > 60
    assert index.draw_held_out(np.random.default_rng(0), 1, 192) is None


def test_evicted_chunks_are_gone_but_still_known() -> None:
    """Dropping a segment takes its chunks' starts away, and what is sent again of them counts as stored."""
    index = Index(64, True, 0)
    chunks = headers([64 * 6], 64)
    filled(index, chunks[:3], 1)
    filled(index, chunks[3:], 2)
    index.evict([1])
    assert (index.chunks, index.steps, index.valid_starts) == (3, 192, 129)
    assert all(index.knows(chunk.key) for chunk in chunks)
    assert index.dropped() == [(0, 0, 0, 2)]
    again = Index(64, True, 0)
    again.remember_dropped(index.dropped())
    assert again.knows(chunks[1].key)
    assert not again.knows(chunks[3].key)
    assert {part.chunk for part in draw(index, np.random.default_rng(0), 100, 0.5, 64)} == {3, 4, 5}


def test_memory_does_not_grow_with_what_was_dropped() -> None:
    """Five times as many chunks as are kept leave the index as small as it was."""
    index = Index(50, True, 10)
    sizes = []
    for segment in range(20):
        filled(index, headers([64 * 200], 64, incarnation=segment), segment)
        if segment >= 4:
            index.evict([segment - 4])
            sizes.append(index.memory_bytes())
    assert max(sizes) <= 1.2 * sizes[0]
    assert index.chunks == 800


def test_counters_follow_what_is_stored() -> None:
    """Steps, episodes, chunks, versions and the next incarnation are those of the chunks."""
    index = Index(10, True, 0)
    assert (index.next_incarnation, index.versions()) == (0, (0, 0))
    filled(index, headers([30, 40, 150], 64, incarnation=7))
    assert (index.steps, index.episodes, index.chunks, index.next_incarnation) == (220, 3, 4, 8)
    assert index.versions() == (0, 2)
