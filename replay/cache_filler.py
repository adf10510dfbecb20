"""The cache filler: decodes the chunks that batches are cut from, so that the next batch finds them decoded."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

import numpy as np

from dreamfleet.common.experience.blocks import DamagedChunkError
from dreamfleet.common.experience.chunk import decode_chunk
from dreamfleet.common.experience.steps import CHUNK_STEPS, StepFormat
from dreamfleet.common.settings.schema import ReplaySettings
from dreamfleet.replay.decoded_cache import DecodedCache, cache_rows
from dreamfleet.replay.slices import Slices

_LOG = logging.getLogger(__name__)
_MOST_WAITING = 4096
"""Chunks that wait to be decoded, at most."""


class CacheFiller:
    """Decodes chunks into a cache, in a thread of its own, once they were drawn for the first time.

    Args:
        read: returns a chunk's bytes by its id, or None if it is gone.
    """

    def __init__(self, cache: DecodedCache, step_format: StepFormat, read: Callable[[int], bytes | None]) -> None:
        self.cache = cache
        self._step_format = step_format
        self._read = read
        self._changed = threading.Condition()
        self._waiting: dict[int, int] = {}  # the number of each chunk's first step, in order
        self._refused: set[int] = set()
        self._is_closed = self._is_short = False
        self._thread = threading.Thread(target=self._work, name="cache-filler", daemon=True)
        self._thread.start()

    def held(self, slices: Slices) -> np.ndarray:
        """Return which slices a batch may take from the cache, and have the chunks of the others decoded soon.

        Those that are too old are left out, and what is too much at a time: it comes when it is drawn again.
        """
        held = self.cache.held(slices[:, 6])
        missing = slices[~held & self.cache.may_hold(slices[:, 6])]
        if len(missing):
            with self._changed:
                for chunk, number in zip(missing[:, 2].tolist(), (missing[:, 6] - missing[:, 3]).tolist(), strict=True):
                    if chunk not in self._refused and len(self._waiting) < _MOST_WAITING:
                        self._waiting[chunk] = number
                self._changed.notify()
        return held

    def close(self) -> None:
        """End the thread and give the memory up."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        self._thread.join()
        self.cache.close()

    def _work(self) -> None:
        try:
            while (wanted := self._next()) is not None:
                self._fill(*wanted)
                with self._changed:
                    del self._waiting[wanted[0]]
        except Exception as error:  # noqa: BLE001 (it is logged: the replay works without)
            _LOG.exception("no more of the replay is kept decoded: %s", error)
            with self._changed:
                self._is_closed = True

    def _next(self) -> tuple[int, int] | None:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._is_closed)
            if self._is_closed:
                return None
            return next(iter(self._waiting.items()))

    def _fill(self, chunk: int, number: int) -> None:
        first = np.array([number])
        if self.cache.held(first).all() or not self.cache.may_hold(first).all():
            return
        if not self.cache.has_room(number, CHUNK_STEPS):
            if not self._is_short:
                sentence = "memory is short: no more than %.2f GB of the replay are kept decoded until it is not"
                _LOG.warning(sentence, self.cache.nbytes / 1e9)
            self._is_short = True
            return
        self._is_short = False
        stored = self._read(chunk)
        if stored is None:
            return
        try:
            self.cache.write(number, decode_chunk(self._step_format, stored))
        except DamagedChunkError:
            self._refused.add(chunk)  # a batch finds the damage itself, if it needs what is damaged


def open_cache(
    settings: ReplaySettings, step_format: StepFormat, stored: int, read: Callable[[int], bytes | None]
) -> CacheFiller | None:
    """Return an empty cache of the size that the settings ask for; None if there is to be none, or no memory for it."""
    rows = cache_rows(settings, step_format, stored)
    if not rows:
        return None
    try:
        cache = DecodedCache(step_format, rows)
    except (OSError, AttributeError) as error:  # Linux alone has such memory, and a sandbox may refuse it
        _LOG.warning("the replay keeps nothing decoded: this system has no memory that processes can share: %s", error)
        return None
    size = rows * step_format.step_bytes / 1e9
    _LOG.info("the replay keeps its newest %d steps decoded, in up to %.2f GB of memory", rows, size)
    return CacheFiller(cache, step_format, read)
