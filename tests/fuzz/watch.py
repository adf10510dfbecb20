"""Watches one reading: not longer than some seconds, no more memory than four times the input."""

from __future__ import annotations

import shutil
import signal
import tempfile
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from targets import Target

PATIENCE_S = 10
"""An input that takes more of a processor's time is taken for an endless loop."""
SPARE_BYTES = 6 << 20
"""Memory that reading takes whatever the size of the input: buffers of files, modules imported on the way."""


class EndlessError(BaseException):
    """A reading that did not end; no `except Exception` may catch it."""


@contextmanager
def _limited(seconds: int) -> Iterator[None]:
    def ring(signum: int, frame: FrameType | None) -> None:
        raise EndlessError(f"no end after {seconds} s")

    before = signal.signal(signal.SIGPROF, ring)
    signal.setitimer(signal.ITIMER_PROF, seconds)  # of this process's own time, so that a busy machine changes nothing
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def size_of(data: Any) -> int:
    """Return the bytes of an input."""
    if isinstance(data, bytes | str):
        return len(data)
    if isinstance(data, dict):
        return sum(map(size_of, data.values()))
    return sum(map(size_of, data)) if isinstance(data, list | tuple) else 0


def check(target: Target, data: Any, measure_memory: bool) -> None:
    """Have a target read an input in a folder of its own.

    Raises:
        AssertionError: if it takes too much memory.
        EndlessError: if it takes too long.
        Exception: whatever is no refusal.
    """
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    if measure_memory:
        tracemalloc.start()
    try:
        with _limited(PATIENCE_S):
            expands_to = target.read(data, folder)
        if measure_memory:
            _, peak = tracemalloc.get_traced_memory()
            allowed = 4 * size_of(data) + expands_to + SPARE_BYTES
            assert peak <= allowed, f"{peak} bytes of memory for an input of {size_of(data)}: {allowed} are allowed"
    except EndlessError as error:  # which hypothesis does not shrink
        error.add_note(repr(data)[:1000])
        raise
    finally:
        if measure_memory:
            tracemalloc.stop()
        shutil.rmtree(folder, ignore_errors=True)
