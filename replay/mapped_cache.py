"""The mapped cache: decoded steps in memory that the replay's process writes and readers on its machine map.

The memory is a file without a name (memfd): it needs no room in /dev/shm or on a disk, cannot become shorter under a
reader, and is gone with the last process that has it, however that ends. Its first page is a header,

    token, 16 bytes | arrived u64

then comes each field of the step format as (rows, *shape), each from a whole page on. Step n of all that ever arrived
has the row n mod `rows`, if it is there at all.

No lock is shared. A row is used for another step only after `arrived` was raised beyond that: step n is intact while
arrived <= n + rows. A reader copies first and looks at `arrived` afterwards.
"""

from __future__ import annotations

import mmap
import os
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dreamfleet.common.experience.steps import Field, StepFormat

PAGE_BYTES = 4096
TOKEN_BYTES = 16


class CacheHandle(NamedTuple):
    """Where a cache is found on its machine, the bytes that it begins with, and its number of rows."""

    path: str
    token: bytes
    rows: int


class CacheUnreachableError(Exception):
    """A cache that this process cannot map, or that is gone."""


class OverwrittenError(Exception):
    """Rows of a batch were used for newer steps before they were copied: the batch must be asked for again."""


class MappedCache:
    """A cache, mapped to be read.

    Attributes:
        rows: how many it has.
        arrays: each field's rows, (rows, *shape).

    Raises:
        CacheUnreachableError: if it cannot be mapped, or something else is there.
    """

    def __init__(self, handle: CacheHandle, step_format: StepFormat) -> None:
        places, size = layout(step_format, handle.rows)
        try:
            descriptor = os.open(handle.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            try:
                memory = mmap.mmap(descriptor, size, prot=mmap.PROT_READ)
            finally:
                os.close(descriptor)
        except (OSError, ValueError) as error:
            raise CacheUnreachableError(f"{handle.path} cannot be mapped: {error}") from error
        if memory[:TOKEN_BYTES] != handle.token:
            raise CacheUnreachableError(f"{handle.path} is not the cache it was")
        self.rows = handle.rows
        self.arrays = {field.name: _rows_of(memory, field, offset, handle.rows) for field, offset in places}
        self._arrived = np.frombuffer(memory, np.uint64, 1, TOKEN_BYTES)

    @property
    def arrived(self) -> int:
        """Steps that arrived so far; one whose number is less than this minus the rows may have been overwritten."""
        return int(self._arrived[0])

    def copy(self, name: str, number: int, target: np.ndarray) -> None:
        """Copy a field of the steps from `number` on to `target`, (steps, *shape)."""
        source, row = self.arrays[name], number % self.rows
        until_end = self.rows - row
        if len(target) <= until_end:
            target[...] = source[row : row + len(target)]
        else:
            target[:until_end], target[until_end:] = source[row:], source[: len(target) - until_end]


def layout(step_format: StepFormat, rows: int) -> tuple[list[tuple[Field, int]], int]:
    """Return the offset of each field in a cache of this many rows, and the bytes of the whole."""
    places, offset = [], PAGE_BYTES
    for field in step_format.fields:
        places.append((field, offset))
        offset += -(-rows * field.step_bytes // PAGE_BYTES) * PAGE_BYTES
    return places, offset


def _rows_of(memory: mmap.mmap, field: Field, offset: int, rows: int) -> np.ndarray:
    count = rows * field.step_bytes // np.dtype(field.dtype).itemsize
    return np.frombuffer(memory, field.dtype, count, offset).reshape(rows, *field.shape)


@cache
def this_machine() -> str:
    """Return a name of what must be the same for one process to map the other's cache; empty if that cannot be told.

    That is the running kernel, the numbering of processes, which a container has for itself, and the user.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()} {os.getuid()}"
    except OSError:
        return ""
