"""The prefetcher: fetches batches in threads, as many as keep up with the updates, and returns them in order."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable
from statistics import median
from typing import Generic, TypeVar

FIRST_THREADS = 2
"""Threads until rates are measured."""
MOST_THREADS = 8
"""Threads that are worth having where cores are free."""
_MEASURED = 16
"""Batches over which rates are measured."""
_TO_SPARE = 1.25
"""By how much fetching is to be faster than what is done with the batches."""
_LOG = logging.getLogger(__name__)
T = TypeVar("T")


class Prefetcher(Generic[T]):
    """Fetches batches ahead in threads of its own, and returns them in the order of their numbers.

    Which batch has which number does not depend on the threads: a run with them equals one without.

    More threads are started where batches take longer to fetch than what is done between two of them; none ends before
    the others, since one with nothing to do costs nothing.

    Args:
        fetch: returns the batch of a number; called from several threads at once.
        depth: most batches that are fetched and not yet taken, but at least one for each thread.
        threads: at the start; two, so that one batch travels while the other is decompressed.
        most_threads: after the rates were measured.
        not_yet: errors that pass by themselves, such as a replay that is still empty: the fetch is tried again.
        patience_s: for how long it is tried again before such an error is raised.
        retry_s: pause between two tries.
    """

    def __init__(
        self,
        fetch: Callable[[int], T],
        depth: int,
        first_number: int,
        threads: int = FIRST_THREADS,
        most_threads: int = 0,
        not_yet: tuple[type[Exception], ...] = (),
        patience_s: float = 60.0,
        retry_s: float = 0.2,
    ) -> None:
        self._fetch = fetch
        self._depth = depth
        self._not_yet = not_yet
        self._patience_s = patience_s
        self._retry_s = retry_s
        self._changed = threading.Condition()
        self._closed = threading.Event()
        self._to_fetch = first_number
        self._to_take = first_number
        self._failed: list[int] = []
        self._done: dict[int, T] = {}
        self._errors: dict[int, BaseException] = {}
        self._most_threads = max(threads, most_threads)
        self._fetched_s: deque[float] = deque(maxlen=_MEASURED)
        self._used_s: deque[float] = deque(maxlen=_MEASURED)
        self._taken_at: float | None = None
        self._threads: list[threading.Thread] = []
        self._add_threads(threads)

    def next(self) -> T:
        """Return the next batch, waiting for it if need be.

        Raises:
            Exception: what the fetch of this batch raised; the same number is fetched again for the next call.
            RuntimeError: if the prefetcher is closed, also while this waits.
        """
        if self._taken_at is not None:
            self._used_s.append(time.perf_counter() - self._taken_at)
            self._follow_rates()
        batch = self._wait_for_next()
        self._taken_at = time.perf_counter()
        return batch

    @property
    def threads(self) -> int:
        """Return how many threads fetch."""
        return len(self._threads)

    def _wait_for_next(self) -> T:
        with self._changed:
            number = self._to_take
            self._changed.wait_for(lambda: number in self._done or number in self._errors or self._closed.is_set())
            if self._closed.is_set():
                raise RuntimeError("the prefetcher is closed")
            if number in self._errors:
                self._failed.append(number)
                self._changed.notify_all()
                raise self._errors.pop(number)
            self._to_take += 1
            self._changed.notify_all()
            return self._done.pop(number)

    def close(self) -> None:
        """End the threads; one that is in the middle of a fetch ends after it and is not waited for beyond a second."""
        self._closed.set()
        with self._changed:
            self._changed.notify_all()
            self._done.clear()
        deadline = time.monotonic() + 1.0
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _add_threads(self, count: int) -> None:
        with self._changed:
            self._depth = max(self._depth, len(self._threads) + count)
            self._changed.notify_all()
        for _ in range(count):
            name = f"prefetch-{len(self._threads)}"
            self._threads.append(threading.Thread(target=self._work, name=name, daemon=True))
            self._threads[-1].start()

    def _follow_rates(self) -> None:
        """Start more threads if those there are cannot keep up, by the medians of what was measured since."""
        if len(self._threads) >= self._most_threads or len(self._used_s) < _MEASURED or not self._fetched_s:
            return
        fetched_s, used_s = median(self._fetched_s), median(self._used_s)
        wanted = threads_wanted(fetched_s, used_s, self._most_threads)
        if wanted > len(self._threads):
            self._add_threads(wanted - len(self._threads))
            told = "batches: %d threads fetch them, since one takes %.1f ms and what is done with it %.1f ms"
            _LOG.info(told, wanted, 1000 * fetched_s, 1000 * used_s)
        self._fetched_s.clear()
        self._used_s.clear()

    def _work(self) -> None:
        while (number := self._claim()) is not None:
            try:
                batch = self._fetch_patiently(number)
            except BaseException as error:  # noqa: BLE001 (it is raised where the batch is wanted)
                with self._changed:
                    self._errors[number] = error
                    self._changed.notify_all()
            else:
                with self._changed:
                    self._done[number] = batch
                    self._changed.notify_all()
                del batch  # or this thread would hold on to it until its next one

    def _claim(self) -> int | None:
        """Wait until a batch is wanted and return its number, or None once closed."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._closed.is_set() or self._failed or self._to_fetch < self._to_take + self._depth
            )
            if self._closed.is_set():
                return None
            if self._failed:
                return self._failed.pop()
            self._to_fetch += 1
            return self._to_fetch - 1

    def _fetch_patiently(self, number: int) -> T:
        deadline = time.monotonic() + self._patience_s
        while True:
            begun = time.perf_counter()
            try:
                batch = self._fetch(number)
            except self._not_yet:
                if time.monotonic() >= deadline or self._closed.wait(self._retry_s):
                    raise
            else:
                self._fetched_s.append(time.perf_counter() - begun)
                return batch


def threads_wanted(fetched_s: float, used_s: float, most: int) -> int:
    """Return how many threads fetch batches as fast as they are used, with some to spare.

    Args:
        fetched_s: seconds to fetch one.
        used_s: seconds between two that are wanted, if none is waited for.
    """
    return max(1, min(most, math.ceil(_TO_SPARE * fetched_s / max(used_s, 1e-6))))
