"""All recorded episodes of a replay that a run may be writing: found by headers alone, read as they are looked at.

Returns need the rewards, which a thread of low cost reads behind the list; until then they are not known.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dreamfleet.common.errors import UserError
from dreamfleet.common.experience.steps import StepFormat
from dreamfleet.deploy.view.chunk_list import ChunkList
from dreamfleet.deploy.view.episode_rows import EPISODE, SORTS, chosen_of, plain_episode

MOST_LISTED = 1000
MOST_BYTES_READ = 256 << 20
"""Steps of an episode that are read at once take no more, not compressed."""
_LEAST_PAUSE_S = 1.0
_BATCH_CHUNKS = 256


class EpisodeTable:
    """The episodes of a replay, in the order of their streams; safe to use from several threads.

    Args:
        directory: of the replay, which need not be there yet.
        held_out_every: the run's `replay.held_out_every`.
        times: (2, n): steps stored in all by then, and seconds since 1970, rising; to tell when a step was stored.
    """

    def __init__(self, directory: Path, held_out_every: int, times: np.ndarray | None = None) -> None:
        self._list = ChunkList(directory, held_out_every)
        self.times = times
        self._lock = threading.RLock()
        self._order, self._begin = np.zeros(0, np.int64), np.zeros(0, np.int64)
        self._episodes = np.zeros(0, EPISODE)
        self._is_stale, self._refreshed = True, 0.0
        self._closed = threading.Event()
        self._reader: threading.Thread | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of memory its arrays take."""
        return self._list.nbytes + sum(part.nbytes for part in (self._order, self._begin, self._episodes))

    @property
    def step_format(self) -> StepFormat | None:
        """Of the steps that are stored; None as long as none is."""
        return self._list.step_format

    def refresh(self) -> None:
        """See what was stored and dropped since, at most once a second, and read returns behind it.

        Raises:
            UserError: if the replay cannot be read.
        """
        with self._lock:
            if time.monotonic() - self._refreshed >= _LEAST_PAUSE_S or not self._refreshed:
                self._is_stale |= self._list.refresh()
                self._refreshed = time.monotonic()
            if self._is_stale:
                self._find_episodes()
            is_reading = self._reader is not None and self._reader.is_alive()
            if not is_reading and not self._closed.is_set() and not self._list.pieces["known"].all():
                self._reader = threading.Thread(target=self._read_returns, name="returns", daemon=True)
                self._reader.start()

    def listed(
        self, sort: str = "id", descending: bool = False, only: Mapping[str, str] | None = None, start: int = 0
    ) -> dict[str, Any]:
        """Return a page of the episodes as plain data, how many there are in all, and how many returns are known.

        Args:
            sort: one of `SORTS`; what is not known comes last.
            only: of these, with numbers as text: min_return, max_return, min_length, max_length, min_version,
                max_version, actor; and with 0 or 1: held_out, whole.
            start: how many to leave out.

        Raises:
            UserError: if there is no such order or filter, or a bound is no number.
        """
        if sort not in SORTS:
            raise UserError(f"episodes cannot be sorted by '{sort:.40}': there are {', '.join(SORTS)}")
        with self._lock:
            self.refresh()
            episodes = self._episodes[chosen_of(self._episodes, only or {})]
        if sort != "id":
            keys = episodes[sort].astype(np.float64)
            keys = np.where(episodes["known"], keys, np.nan) if sort == "return" else keys
            episodes = episodes[np.argsort(-keys if descending else keys, kind="stable")]  # NaN comes last
        elif descending:
            episodes = episodes[::-1]
        rows = [plain_episode(row) for row in episodes[start : start + MOST_LISTED]]
        return {"episodes": rows, "count": len(episodes), "returns_known": int(episodes["known"].sum())}

    def found(self, name: str) -> dict[str, Any]:
        """Return one episode as plain data.

        Raises:
            UserError: if there is none of this id, or it was dropped.
        """
        return plain_episode(self._episode(name))

    def small_fields(self, name: str) -> dict[str, np.ndarray]:
        """Return rewards, actions, flags and other small fields of a whole episode, each (length, *shape)."""
        with self._lock:
            episode = self._episode(name)
            rows = self._rows(int(episode["position"]), int(episode["position"] + episode["length"]))
        parts = []
        for row, start, stop in rows:
            parts.append({field: array[start:stop] for field, array in self._list.read_small(row).items()})
        return {field: np.concatenate([part[field] for part in parts]) for field in parts[0]}

    def steps(self, name: str, start: int, stop: int) -> dict[str, np.ndarray]:
        """Return all fields of an episode's steps from `start` to `stop`, or to its end, each (n, *shape).

        Raises:
            UserError: if it has no step `start`, or was dropped, or a chunk is damaged.
        """
        with self._lock:
            episode = self._episode(name)
            length = int(episode["length"])
            if not 0 <= start < length:
                raise UserError(f"episode {name:.60} has the steps 0 to {length - 1}, and none with the number {start}")
            assert self.step_format is not None
            stop = min(stop, length, start + max(1, MOST_BYTES_READ // self.step_format.step_bytes))
            first = int(episode["position"])
            rows = self._rows(first + start, first + stop)
        parts = [self._list.read(row, low, high) for row, low, high in rows]
        return {field: np.concatenate([part[field] for part in parts]) for field in parts[0]}

    def close(self) -> None:
        """End the reading of returns."""
        self._closed.set()
        with self._lock:  # else it may be about to start
            reader = self._reader
        if reader is not None:
            reader.join(timeout=5)

    # Finding episodes -----------------------------------------------------------------------------------------------

    def _episode(self, name: str) -> Any:
        with self._lock:
            self.refresh()
            try:
                actor, incarnation, stream, first_step = map(int, name.split("."))
            except ValueError:
                raise UserError(f"'{name:.60}' is no id of an episode, such as 0.0.0.128") from None
            found = self._episodes
            wanted = (found["actor"] == actor) & (found["incarnation"] == incarnation) & (found["stream"] == stream)
            places = np.flatnonzero(wanted & (found["first_step"] == first_step))
            if not len(places):
                raise UserError(f"there is no episode {name}: it was dropped meanwhile, or never stored")
            return found[places[0]]

    def _rows(self, start: int, stop: int) -> list[tuple[Any, int, int]]:
        """Return the chunks that hold these positions, each with its first step of them and their end."""
        first = int(np.searchsorted(self._begin, start, "right")) - 1
        last = int(np.searchsorted(self._begin, stop - 1, "right")) - 1
        rows = []
        for number in range(first, last + 1):
            row, begin = self._list.chunks[self._order[number]], int(self._begin[number])
            rows.append((row.copy(), max(start - begin, 0), min(stop - begin, int(row["steps"]))))
        return rows

    def _find_episodes(self) -> None:
        """Cut the streams where episodes begin or end, and where steps are missing."""
        chunks, pieces = self._list.chunks, self._list.pieces
        self._is_stale = False
        if not len(chunks):
            self._order, self._begin = np.zeros(0, np.int64), np.zeros(0, np.int64)
            self._episodes = np.zeros(0, EPISODE)
            return
        order = np.lexsort((chunks["number"], chunks["stream"], chunks["incarnation"], chunks["actor"]))
        same = np.zeros(len(order), bool)
        same[1:] = _equal_before(chunks, order, ("actor", "incarnation", "stream"))
        twice = np.zeros(len(order), bool)
        twice[1:] = same[1:] & _equal_before(chunks, order, ("number",))
        order, same = order[~twice], same[~twice]
        steps, first_step = chunks["steps"][order].astype(np.int64), chunks["first_step"][order]
        follows = same.copy()
        follows[1:] &= first_step[1:] == first_step[:-1] + steps[:-1]
        begin = np.cumsum(steps) - steps
        self._order, self._begin = order, begin
        rank = np.full(len(chunks), -1)
        rank[order] = np.arange(len(order))
        pieces = pieces[rank[pieces["chunk"]] >= 0]
        pieces = pieces[np.argsort(rank[pieces["chunk"]] * 64 + pieces["bit"])]
        at = rank[pieces["chunk"]]
        ended = np.zeros(len(order), bool)
        ended[1:] = chunks["last"][order[:-1]] >> (steps[:-1] - 1).astype(np.uint64) & np.uint64(1) > 0
        begins = (pieces["bit"] > 0) | ~follows[at] | ended[at] | (chunks["first"][order[at]] & np.uint64(1) > 0)
        starts = np.flatnonzero(begins)
        self._episodes = self._described(pieces, at, starts, int(steps.sum()))

    def _described(self, pieces: np.ndarray, at: np.ndarray, starts: np.ndarray, total: int) -> np.ndarray:
        """Return the rows of episodes that begin at some pieces, which lie in the chunks `at` of the order."""
        chunks, own = self._list.chunks[self._order], at[starts]
        bits = pieces["bit"][starts].astype(np.int64)
        out = np.zeros(len(starts), EPISODE)
        for name in ("actor", "incarnation", "stream"):
            out[name] = chunks[name][own]
        out["first_step"] = chunks["first_step"][own] + bits
        out["position"] = self._begin[own] + bits
        stop = np.append(out["position"][1:], total)
        out["length"] = stop - out["position"]
        final = np.searchsorted(self._begin, stop - 1, "right") - 1
        final_bits = (stop - 1 - self._begin[final]).astype(np.uint64)
        is_first = chunks["first"][own] >> bits.astype(np.uint64) & np.uint64(1) > 0
        out["whole"] = is_first & (chunks["last"][final] >> final_bits & np.uint64(1) > 0)
        counted = np.cumsum(np.bitwise_count(chunks["held_out"]).astype(np.int64))
        before_start = counted[own] - np.bitwise_count(chunks["held_out"][own] >> bits.astype(np.uint64))
        after_stop = np.bitwise_count(chunks["held_out"][final] >> final_bits >> np.uint64(1))
        out["held_out"] = counted[final] - after_stop - before_start
        known = pieces["known"]
        out["version"] = np.where(known[starts], pieces["version"][starts], chunks["version"][own])
        out["return"] = np.add.reduceat(pieces["reward"], starts)
        out["known"] = np.logical_and.reduceat(known, starts)
        stored = (chunks["stored_at"][own] + bits) * self._list.shards
        has_times = self.times is not None and self.times.size
        out["when"] = np.interp(stored, *self.times) if has_times else np.nan  # type: ignore[misc]
        return out

    # Returns --------------------------------------------------------------------------------------------------------

    def _read_returns(self) -> None:
        """Read the rewards of all pieces that are not known, some chunks at a time, in the order of the files."""
        while not self._closed.is_set():
            with self._lock:
                generation, pieces = self._list.generation, self._list.pieces
                numbers = np.unique(pieces["chunk"][~pieces["known"]])[:_BATCH_CHUNKS]
                edges = np.searchsorted(pieces["chunk"], [numbers, numbers + 1]).T  # those of a chunk lie together
                rows = self._list.chunks[numbers]
            if not len(numbers):
                return
            sums = [self._sums(row, pieces["bit"][low:high]) for row, (low, high) in zip(rows, edges, strict=True)]
            with self._lock:
                if self._list.generation != generation:
                    continue
                for (low, high), (rewards, versions) in zip(edges, sums, strict=True):
                    known = self._list.pieces[low:high]
                    known["reward"], known["version"], known["known"] = rewards, versions, True
                self._is_stale = True

    def _sums(self, row: Any, bits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the sum of rewards and the first version of each piece of a chunk; NaN where it cannot be read."""
        try:
            fields = self._list.read_small(row)
        except UserError:
            return np.full(len(bits), np.nan), np.full(len(bits), row["version"])
        with np.errstate(all="ignore"):  # a user's rewards need not be finite
            return np.add.reduceat(fields["reward"].astype(np.float64), bits), fields["version"][bits]


def _equal_before(chunks: np.ndarray, order: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """Whether each chunk from the second on has the same values as the one before it in this order."""
    columns = [chunks[name][order] for name in names]
    return np.logical_and.reduce([column[1:] == column[:-1] for column in columns])
