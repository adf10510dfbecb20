"""The sharded replay: several replays, in this process or in others, sampled from as if they were one."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np

from dreamfleet.common.process_log import LogRecord
from dreamfleet.common.seeds import derive_seed
from dreamfleet.replay.compressed_batch import CompressedBatch, join_batches
from dreamfleet.replay.interface import Counters, NotEnoughExperienceError, ReplayLostError, Shard, Shortage

_LOG = logging.getLogger(__name__)
_CALLERS = 3
"""Calls to all shards that run side by side: two prefetch threads' and one more."""

S = TypeVar("S")
T = TypeVar("T")


class ShardedReplay:
    """Several shards as one `ExperienceReplay`; sampling is uniform over the valid starts of all of them.

    A shard is lost for this object once it raises `ReplayLostError` or `OSError`: it is named in the log, once, and the
    others continue. Its steps still count in `total_steps`, so that this never falls; none is sampled any more.
    All methods may be called from several threads.

    `shards` are all of them, also those that are lost; no chunk is in two. The log calls the whole by `name`: in a run,
    the fleet and the learner each find losses for themselves.
    """

    def __init__(self, shards: Sequence[Shard], seed: int, name: str = "replay") -> None:
        assert shards, "a replay has at least one shard"
        self.shards = list(shards)
        self._seed = seed
        self._name = name
        self._counters = [Counters(0, 0, 0) for _ in shards]
        self._alive = list(range(len(shards)))
        self._is_closed = False
        self._last_loss = ""
        self._changing = threading.Lock()  # guards the counters and who is alive; never held while a shard is asked
        threads = _CALLERS * len(shards)
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="shard") if len(shards) > 1 else None

    @property
    def alive(self) -> list[int]:
        """Numbers of the shards that are not lost."""
        return list(self._alive)

    def sample(self, batch_number: int, batch_size: int) -> CompressedBatch:
        """See `ExperienceReplay.sample`."""
        return self.sample_several([batch_number], [batch_size])[0]

    def sample_several(
        self, batch_numbers: Sequence[int], batch_sizes: Sequence[int], machine: str = ""
    ) -> list[CompressedBatch]:
        """See `ExperienceReplay.sample_several`.

        The number of sequences from each shard is drawn in proportion to the valid starts it has at this moment, so
        that each valid start of all shards is as likely as any other.
        """
        while True:
            starts = self._valid_starts()
            if len(starts) > 1 and not any(starts.values()):
                raise NotEnoughExperienceError(f"none of the {len(starts)} shards holds a sequence to train on")
            wanted: dict[int, list[tuple[int, int, int]]] = {}  # by shard: which batch, its number, sequences of it
            for which, (number, size) in enumerate(zip(batch_numbers, batch_sizes, strict=True)):
                for shard, count in self._split("shards", number, size, starts).items():
                    wanted.setdefault(shard, []).append((which, number, count))
            try:
                answers = self._ask(wanted, lambda shard, share: _sample_share(shard, share, machine))
            except NotEnoughExperienceError:
                if len(starts) == 1:
                    raise
                continue  # a shard dropped its last sequences since it was asked for its counters
            if len(answers) == len(wanted):  # else a shard was lost
                parts: list[list[CompressedBatch]] = [[] for _ in batch_numbers]
                for shard in sorted(answers):
                    for (which, _, _), part in zip(wanted[shard], answers[shard], strict=True):
                        parts[which].append(part)
                return [join_batches(own) for own in parts]

    def sample_held_out(self, batch_number: int, batch_size: int, length: int) -> CompressedBatch | None:
        """See `ExperienceReplay.sample_held_out`.

        Every stream holds out the same share of its steps, so the sequences come from the shards in proportion to
        their valid starts, like those to train on; a shard that holds none of this length leaves its part to the
        others. Within a shard each is as likely as any other.
        """
        barren: set[int] = set()
        while True:
            starts = {number: count + 1 for number, count in self._valid_starts().items() if number not in barren}
            if not starts:
                return None
            split = self._split("shards held out", batch_number, batch_size, starts)
            parts = self._ask(split, lambda shard, count: shard.sample_held_out(batch_number, count, length))
            found = [part for part in parts.values() if part is not None]
            if len(found) == len(split):
                return join_batches(found)
            barren |= {number for number, part in parts.items() if part is None}

    def counters(self) -> Counters:
        """See `ExperienceReplay.counters`; lost shards have no valid starts, and closed ones are not asked."""
        starts = {} if self._is_closed else self._ask_valid_starts()
        counters = list(self._counters)
        total_steps = sum(shard.total_steps for shard in counters)
        return Counters(total_steps, sum(starts.values()), max(shard.next_incarnation for shard in counters))

    def retire(self, actor: int, incarnation: int) -> int:
        """See `ExperienceReplay.retire`; all shards are asked, since the incarnation may have written to any."""
        return sum(self._ask_all(lambda shard: shard.retire(actor, incarnation)).values())

    def stats(self) -> dict[str, float]:
        """Return the sums over the shards that are left (of versions the extremes), and the number of these."""
        answers = list(self._ask_all(lambda shard: shard.stats()).values())
        stats = {name: sum(answer[name] for answer in answers) for name in answers[0]}
        filled = [answer for answer in answers if answer["chunks"]] or answers
        stats["oldest_version"] = min(answer["oldest_version"] for answer in filled)
        stats["newest_version"] = max(answer["newest_version"] for answer in filled)
        stats["shards"] = len(answers)
        return stats

    def shortage(self) -> Shortage:
        """See `ExperienceReplay.shortage`; of all shards that are left."""
        return Shortage.of_all(list(self._ask_all(lambda shard: shard.shortage()).values()))

    def log_records(self) -> list[LogRecord]:
        """See `ExperienceReplay.log_records`."""
        return [record for records in self._ask_all(lambda shard: shard.log_records()).values() for record in records]

    def sync(self) -> None:
        """See `ExperienceReplay.sync`."""
        self._ask_all(lambda shard: shard.sync())

    def close(self) -> int:
        """See `ExperienceReplay.close`; the counters have what it returns, too."""
        self._is_closed = True
        stored = self._ask_all(lambda shard: shard.close()) if self._alive else {}
        with self._changing:
            for number, steps in stored.items():
                known = self._counters[number]
                self._counters[number] = known._replace(total_steps=max(known.total_steps, steps))
        threads, self._threads = self._threads, None
        if threads:
            threads.shutdown(wait=False)
        return sum(shard.total_steps for shard in self._counters)

    def _valid_starts(self) -> dict[int, int]:
        """Return the number of valid starts of each shard that is left; a single one is not asked."""
        alive = self.alive
        return {alive[0]: 1} if len(alive) == 1 else self._ask_valid_starts()

    def _ask_valid_starts(self) -> dict[int, int]:
        """Ask the shards for their counters, keep them, and return the number of valid starts of each."""
        answers = self._ask_all(lambda shard: shard.counters())
        with self._changing:
            for number, (total_steps, valid_starts, next_incarnation) in answers.items():
                known = self._counters[number]  # which another thread may have asked for later than this one
                self._counters[number] = Counters(
                    max(known.total_steps, total_steps), valid_starts, max(known.next_incarnation, next_incarnation)
                )
        return {number: valid_starts for number, (_, valid_starts, _) in answers.items()}

    def _split(self, purpose: str, batch_number: int, batch_size: int, starts: Mapping[int, int]) -> dict[int, int]:
        """Return the number of a batch's sequences from each shard, those with none left out."""
        weights = np.array(list(starts.values()), np.float64)
        rng = np.random.default_rng(derive_seed(self._seed, purpose, batch_number))
        counts = rng.multinomial(batch_size, weights / weights.sum()).tolist()
        return {number: count for number, count in zip(starts, counts, strict=True) if count}

    def _ask_all(self, question: Callable[[Shard], T]) -> dict[int, T]:
        """Ask every shard that is left, and return their answers."""
        return self._ask(dict.fromkeys(self.alive, 0), lambda shard, _: question(shard))

    def _ask(self, shares: Mapping[int, S], question: Callable[[Shard, S], T]) -> dict[int, T]:
        """Ask these shards at once, each for its share; return the answers of those that are not lost by it.

        Raises:
            ReplayLostError: if no shard is left.
        """

        def ask(number: int) -> tuple[T] | None:
            try:
                return (question(self.shards[number], shares[number]),)
            except (ReplayLostError, OSError) as error:
                self._lose(number, error)
                return None

        threads = self._threads if len(shares) > 1 else None
        asked = threads.map(ask, shares) if threads else map(ask, shares)
        answers = {number: answer[0] for number, answer in zip(shares, asked, strict=True) if answer}
        if not answers and not self._alive:
            raise ReplayLostError(f"no shard of the replay is left: {self._last_loss}")
        return answers

    def _lose(self, number: int, error: Exception) -> None:
        """Continue without a shard; the first thread that finds it lost names it in the log."""
        with self._changing:
            if number not in self._alive:
                return
            self._alive = [other for other in self._alive if other != number]
            directory, steps = self.shards[number].directory, self._counters[number].total_steps
            self._last_loss = f"shard {number}{f' ({directory})' if directory else ''} is lost: {error}"
            left, count = len(self._alive), len(self.shards)
        sentence = "%s %s; %d steps were stored in it; %d of %d shards are left"
        _LOG.error(sentence, self._name, self._last_loss, steps, left, count)


def _sample_share(shard: Shard, share: Sequence[tuple[int, int, int]], machine: str) -> list[CompressedBatch]:
    """Sample a shard's share of several batches: of each, a number of sequences."""
    return shard.sample_several([number for _, number, _ in share], [count for _, _, count in share], machine)


def shard_of(actor: int, alive: Sequence[int]) -> int:
    """Return the number of the shard that an actor stores in: the actors are dealt out to the shards that are left."""
    return alive[actor % len(alive)]
