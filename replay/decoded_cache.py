"""The decoded cache: the newest steps of a replay, decoded, in memory that readers on the same machine map.

Each frame is read hundreds of times, and decompressing is nearly all of the work. The log stays what is stored: the
cache begins empty whenever a replay is opened, and whatever is not in it is read from the log. What is in it depends on
the number of a step alone, in the order in which they came: those that are not among the newest have no row.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import secrets
from collections.abc import Callable, Mapping

import numpy as np

from dreamfleet.common.experience.steps import CHUNK_STEPS, StepFormat
from dreamfleet.common.memory import usable_memory
from dreamfleet.common.settings.schema import ReplaySettings
from dreamfleet.replay.mapped_cache import PAGE_BYTES, TOKEN_BYTES, CacheHandle, layout

AUTO_SHARE = 1 / 4
"""The share of the free memory that `auto` takes at most: Ray's object store may take 30 % of it by default, and the
learner and the actors need the rest."""
KEPT_FREE = 1 / 10
"""No more memory is taken while less than this share of the machine's is free; at half of it Ray kills workers."""
_OLD_SHARE = 1 / 16
"""The share of rows, those next to be overwritten, that no new batch refers to: readers have so long to copy."""
_LEAST_ROWS = 16 * CHUNK_STEPS


class DecodedCache:
    """The memory of a cache, written by one thread; `arrive` and `held` may be called from others.

    Args:
        rows: steps that it holds, a multiple of 64.
        memory: the bytes of memory, in all and free; asked before more is taken.

    Attributes:
        handle: what a reader maps it with.

    Raises:
        OSError: if the system has no such memory.
    """

    def __init__(
        self, step_format: StepFormat, rows: int, memory: Callable[[], tuple[int, int]] = usable_memory
    ) -> None:
        self._places, size = layout(step_format, rows)
        self._step_bytes = step_format.step_bytes
        self._memory = memory
        self._rows = rows
        self._file = os.memfd_create("dreamfleet-replay", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(self._file, size)
            fcntl.fcntl(self._file, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
            self.handle = CacheHandle(f"/proc/{os.getpid()}/fd/{self._file}", secrets.token_bytes(TOKEN_BYTES), rows)
            os.pwrite(self._file, self.handle.token.ljust(PAGE_BYTES, b"\0"), 0)
            self._arrived = np.frombuffer(mmap.mmap(self._file, PAGE_BYTES), np.uint64, 1, TOKEN_BYTES)
        except BaseException:
            os.close(self._file)
            raise
        self._step_in = np.full(rows, -1, np.int64)  # the number of the step in each row; -1: none yet
        self._taken = np.zeros(-(-rows // CHUNK_STEPS), bool)  # whether 64 rows at a time have memory

    @property
    def nbytes(self) -> int:
        """Bytes of memory that it has taken."""
        return int(self._taken.sum()) * CHUNK_STEPS * self._step_bytes

    @property
    def steps(self) -> int:
        """Steps that it holds."""
        return int(np.count_nonzero(self._step_in >= max(0, int(self._arrived[0]) - self._rows)))

    def arrive(self, steps: int) -> None:
        """Take note that this many steps have arrived in all; what has no room beside them is no longer valid."""
        self._arrived[0] = steps

    def held(self, numbers: np.ndarray) -> np.ndarray:
        """Return which of some steps, by their numbers, a batch may refer to."""
        return (self._step_in[numbers % self._rows] == numbers) & self.may_hold(numbers)

    def may_hold(self, numbers: np.ndarray) -> np.ndarray:
        """Return which of some steps are new enough to be kept here."""
        kept: np.ndarray = numbers >= int(self._arrived[0]) - self._rows + self._rows * _OLD_SHARE
        return kept

    def has_room(self, number: int, steps: int) -> bool:
        """Whether the rows of these steps have their memory already, or there is enough to take more."""
        if self._taken[self._blocks(number, steps)].all():
            return True
        total, free = self._memory()
        return total < 0 or free > total * KEPT_FREE

    def write(self, number: int, arrays: Mapping[str, np.ndarray]) -> None:
        """Store the steps of a chunk whose first one has this number.

        Raises:
            OSError: if the system has no more memory.
        """
        row, steps = number % self._rows, len(arrays["reward"])
        until_end = min(steps, self._rows - row)
        for field, offset in self._places:
            array = np.ascontiguousarray(arrays[field.name])
            _write(self._file, array[:until_end], offset + row * field.step_bytes)
            _write(self._file, array[until_end:], offset)
        self._taken[self._blocks(number, steps)] = True
        numbers = np.arange(number, number + steps)
        self._step_in[numbers % self._rows] = numbers

    def close(self) -> None:
        """Give the memory up; it is freed once no reader has it mapped."""
        os.close(self._file)

    def _blocks(self, number: int, steps: int) -> np.ndarray:
        return np.array([number, number + steps - 1]) % self._rows // CHUNK_STEPS


def cache_rows(
    settings: ReplaySettings,
    step_format: StepFormat,
    stored: int,
    memory: Callable[[], tuple[int, int]] = usable_memory,
) -> int:
    """Return how many steps to keep decoded; 0: none.

    Args:
        stored: steps that the replay holds; a replay that is only read may hold more than its settings allow.
    """
    wanted = settings.cache_gb
    if wanted == "auto":
        _, free = memory()
        allowed = max(0, free) * AUTO_SHARE / settings.shards  # these are those that share the machine
    else:
        allowed = wanted * 1e9
    rows = min(int(allowed / step_format.step_bytes), most_rows(max(settings.capacity_steps, stored)))
    return rows // CHUNK_STEPS * CHUNK_STEPS if rows >= _LEAST_ROWS else 0


def most_rows(steps: int) -> int:
    """Return the rows with which a cache has room for this many steps, beside those about to be overwritten."""
    return int(steps / (1 - _OLD_SHARE)) + 2 * CHUNK_STEPS


def _write(file: int, array: np.ndarray, offset: int) -> None:
    """Write an array; unlike a write to mapped memory this raises an error if there is no more memory."""
    view = array.reshape(-1).view(np.uint8).data
    while len(view):
        written = os.pwrite(file, view, offset)
        view, offset = view[written:], offset + written
