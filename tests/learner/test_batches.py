"""Training batches: fetched ahead in order, their age, and bad ones saved."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from moving_square import square_format
from patience import PATIENCE_S, wait_until
from small_runs import small_settings

from dreamfleet.learner import update_loop
from dreamfleet.learner.batches import TrainingBatches, staleness, write_arrays
from dreamfleet.learner.lane import HiddenWork, Lane
from dreamfleet.learner.prefetcher import Prefetcher, threads_wanted
from dreamfleet.learner.ranks import Ranks
from dreamfleet.learner.stopwatch import Stopwatch
from dreamfleet.learner.update_loop import UpdateLoop
from dreamfleet.replay.compressed_batch import decompress
from dreamfleet.replay.replay import Replay


class NotYetError(Exception):
    """Passes by itself."""


def test_batches_come_in_order_whatever_the_threads_do() -> None:
    """Fetches that overtake each other are returned by number, as without threads."""
    delays = np.random.default_rng(0).uniform(0, 0.004, 60).tolist()

    def fetch(number: int) -> int:
        time.sleep(delays[number])
        return number

    ahead = Prefetcher(fetch, depth=4, first_number=7, threads=3)
    assert [ahead.next() for _ in range(40)] == list(range(7, 47))
    ahead.close()


def test_each_rank_draws_batches_and_noise_of_its_own(
    replay: Replay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of update k, rank r of N has the sequences of batch k·N + r, and random numbers seeded with k and r."""

    class Third(Ranks):
        number, count = 2, 3

    seeds: list[tuple[object, ...]] = []
    monkeypatch.setattr(update_loop, "seed_torch", lambda *given: seeds.append(given))
    settings = small_settings(learner={"batch_size": 6}).learner
    lane, hidden = Lane(torch.device("cpu"), HiddenWork()), HiddenWork()
    for ahead in (False, True):
        batches = TrainingBatches(replay, square_format(), settings, ahead, lane, hidden, ranks=Third())
        loop = UpdateLoop(Mock(), batches, lane, hidden, Third(), seed=7, directory=tmp_path)
        for update in (1, 2, 3):
            made = loop._make_next(Stopwatch())
            wanted = decompress(replay.sample(3 * update + 2, 2), square_format())
            assert all(np.array_equal(made.batch.arrays[name], value) for name, value in wanted.items())
        batches.close()
        assert seeds == [(7, "update", update, 2) for update in (1, 2, 3)]
        seeds.clear()


def test_it_fetches_ahead_and_no_further_than_asked() -> None:
    """With nobody asking, exactly `depth` batches are fetched; each one taken makes room for one more."""
    fetched: list[int] = []
    source = Prefetcher(lambda number: fetched.append(number) or number, depth=3, first_number=0)
    wait_until(lambda: len(fetched) == 3)
    time.sleep(0.05)
    assert sorted(fetched) == [0, 1, 2]
    assert source.next() == 0
    wait_until(lambda: len(fetched) == 4)
    time.sleep(0.05)
    assert sorted(fetched) == [0, 1, 2, 3]
    source.close()


def test_two_fetches_are_in_flight_at_once() -> None:
    """A fetch that waits does not keep the next one from beginning."""
    both = threading.Barrier(2, timeout=PATIENCE_S)

    def fetch(number: int) -> int:
        both.wait()
        return number

    source = Prefetcher(fetch, depth=2, first_number=0, threads=2)
    assert [source.next(), source.next()] == [0, 1]
    source.close()


def test_an_error_surfaces_at_its_number_and_the_number_is_tried_again() -> None:
    """Batches before the failed one are still handed out; the next call gets the failed one, not the one after it."""
    failures = [ValueError("the second batch is bad")]

    def fetch(number: int) -> int:
        if number == 2 and failures:
            raise failures.pop()
        return number

    source = Prefetcher(fetch, depth=3, first_number=1)
    assert source.next() == 1
    with pytest.raises(ValueError, match="second batch"):
        source.next()
    assert [source.next(), source.next()] == [2, 3]
    source.close()


def test_an_error_that_passes_is_waited_for() -> None:
    """A replay that is still empty delays the first batch and is no failure."""
    empty = [True, True, True]

    def fetch(number: int) -> int:
        if empty:
            empty.pop()
            raise NotYetError
        return number

    source = Prefetcher(fetch, depth=1, first_number=0, not_yet=(NotYetError,), retry_s=0.01)
    assert source.next() == 0
    assert not empty
    source.close()


def test_patience_has_an_end() -> None:
    """A replay that stays empty is an error after all."""

    def fetch(number: int) -> int:
        raise NotYetError("still nothing")

    source = Prefetcher(fetch, depth=1, first_number=0, not_yet=(NotYetError,), patience_s=0.1, retry_s=0.01)
    with pytest.raises(NotYetError, match="still nothing"):
        source.next()
    source.close()


def test_closing_is_prompt_and_ends_the_threads() -> None:
    """Neither a thread that waits for an empty replay nor one that waits for room outlives the close."""
    waiting = Prefetcher(_never, depth=2, first_number=0, not_yet=(NotYetError,), retry_s=10 * PATIENCE_S)
    full = Prefetcher(lambda number: number, depth=2, first_number=0)
    full.next()
    begun = time.monotonic()
    waiting.close()
    full.close()
    assert time.monotonic() - begun < PATIENCE_S / 2
    wait_until(lambda: not any(thread.is_alive() for thread in waiting._threads + full._threads))
    with pytest.raises(RuntimeError, match="closed"):
        full.next()


def test_closing_does_not_wait_for_a_fetch_that_hangs() -> None:
    """A replay that does not answer cannot keep the process from ending."""
    released = threading.Event()
    source = Prefetcher(lambda _number: released.wait(PATIENCE_S), depth=1, first_number=0, threads=1)
    source.close()
    assert all(thread.is_alive() and thread.daemon for thread in source._threads), "it waited for the fetch's end"
    released.set()


def test_ctrl_c_interrupts_the_wait_for_a_batch() -> None:
    """The main thread, waiting for a batch that does not come, still hears SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores SIGINT
    released = threading.Event()
    source = Prefetcher(lambda _number: released.wait(PATIENCE_S), depth=1, first_number=0)

    def wait_and_be_interrupted() -> None:
        threading.Timer(0.2, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
        source.next()

    begun = time.monotonic()
    try:
        with pytest.raises(KeyboardInterrupt):
            wait_and_be_interrupted()
    finally:
        signal.signal(signal.SIGINT, before)
    assert time.monotonic() - begun < PATIENCE_S / 2
    released.set()
    source.close()


def test_threads_follow_the_rates(caplog: pytest.LogCaptureFixture) -> None:
    """Where a batch takes four times as long as its use, more than two threads fetch, as many as allowed at most."""
    caplog.set_level("INFO", "dreamfleet")

    def fetch(number: int) -> int:
        time.sleep(0.02)
        return number

    slow = Prefetcher(fetch, depth=2, first_number=0, most_threads=5)
    for number in range(60):
        assert slow.next() == number
        time.sleep(0.005)
    slow.close()
    assert 3 <= slow.threads <= 5
    assert f"batches: {slow.threads} threads fetch them" in caplog.text


def test_threads_that_keep_up_remain_as_they_are() -> None:
    """An update that takes longer than a batch needs no more of them."""
    ahead = Prefetcher(lambda number: number, depth=2, first_number=0, most_threads=8)
    for _ in range(40):
        ahead.next()
        time.sleep(0.002)
    ahead.close()
    assert ahead.threads == 2


def test_the_number_of_threads_is_what_keeps_up_and_some_to_spare() -> None:
    """12 ms a batch and 5 ms an update: three fetch 4 ms a batch, which is a quarter faster than needed."""
    assert threads_wanted(0.012, 0.005, 8) == 3
    assert threads_wanted(0.0001, 0.2, 8) == 1
    assert threads_wanted(0.2, 0.001, 8) == 8
    assert threads_wanted(0.2, 0.0, 4) == 4


def test_staleness_is_a_distribution_over_what_weights_chose() -> None:
    """Ages 1 to 9 after 10 updates and 4 after 5, two actions by chance: those have no age, but a share."""
    versions = [np.arange(1, 10).reshape(3, 3), np.array([1, -1, -1], np.int32)]
    found = staleness([10, 5], versions)
    assert found["staleness/by_chance"] == pytest.approx(2 / 12)
    assert found["staleness/mean"] == pytest.approx((45 + 4) / 10)
    assert (found["staleness/p50"], found["staleness/max"]) == (4.5, 9.0)
    assert found["staleness/p90"] == pytest.approx(8.1)
    assert staleness([3], [np.full(4, -1)]) == {"staleness/by_chance": 1.0}


def test_arrays_of_any_name_can_be_saved(tmp_path: Path) -> None:
    """An observation may have the name of one of numpy's own arguments."""
    write_arrays(tmp_path / "x.npz", {"file": np.arange(3), "args": np.ones((2, 2))})
    with np.load(tmp_path / "x.npz", allow_pickle=False) as saved:
        assert saved["file"].tolist() == [0, 1, 2]
        assert saved["args"].shape == (2, 2)


def _never(number: int) -> int:
    raise NotYetError
