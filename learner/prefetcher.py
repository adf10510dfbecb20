"""Batches ahead of time: what the next updates will train on is fetched while this one computes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class BatchSource(Protocol[T_co]):
    """Gives batches in the order of their numbers."""

    def next(self) -> T_co:
        """Return the next batch."""
        ...

    def close(self) -> None:
        """Give no more."""
        ...


class DirectSource(Generic[T]):
    """Fetches each batch when it is asked for, in the caller's thread.

    Args:
        fetch: returns the batch of a number.
        first_number: number of the first batch.
    """

    def __init__(self, fetch: Callable[[int], T], first_number: int) -> None:
        self._fetch = fetch
        self._number = first_number

    def next(self) -> T:
        """Return the next batch; after an error the same number is tried again."""
        batch = self._fetch(self._number)
        self._number += 1
        return batch

    def close(self) -> None:
        """Nothing to end."""


class Prefetcher(Generic[T]):
    """Fetches batches ahead in threads of its own, and hands them out in the order of their numbers.

    Which batch has which number does not depend on the threads: a run with them equals one without.

    Args:
        fetch: returns the batch of a number; called from several threads at once.
        depth: most batches that are fetched and not yet handed out.
        first_number: number of the first batch.
        workers: threads; two, so that one batch travels while the other is decompressed.
        not_yet: errors that pass by themselves, such as a replay that is still empty: the fetch is tried again.
        patience_s: for how long it is tried again before such an error is handed on.
        retry_s: pause between two trials.
    """

    def __init__(
        self,
        fetch: Callable[[int], T],
        depth: int,
        first_number: int,
        workers: int = 2,
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
        self._to_hand = first_number
        self._failed: list[int] = []
        self._done: dict[int, T] = {}
        self._errors: dict[int, BaseException] = {}
        self._threads = [
            threading.Thread(target=self._work, name=f"prefetch-{number}", daemon=True)
            for number in range(min(workers, depth))
        ]
        for thread in self._threads:
            thread.start()

    def next(self) -> T:
        """Return the next batch, waiting for it if need be.

        Raises:
            Exception: what the fetch of this batch raised; the same number is fetched again for the next call.
            RuntimeError: if the prefetcher is closed, also while this waits.
        """
        with self._changed:
            number = self._to_hand
            self._changed.wait_for(lambda: number in self._done or number in self._errors or self._closed.is_set())
            if self._closed.is_set():
                raise RuntimeError("the prefetcher is closed")
            if number in self._errors:
                self._failed.append(number)
                self._changed.notify_all()
                raise self._errors.pop(number)
            self._to_hand += 1
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

    def _work(self) -> None:
        """Fetch one number after the other until closed."""
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
                lambda: self._closed.is_set() or self._failed or self._to_fetch < self._to_hand + self._depth
            )
            if self._closed.is_set():
                return None
            if self._failed:
                return self._failed.pop()
            self._to_fetch += 1
            return self._to_fetch - 1

    def _fetch_patiently(self, number: int) -> T:
        """Fetch, and again while it raises an error that passes by itself."""
        deadline = time.monotonic() + self._patience_s
        while True:
            try:
                return self._fetch(number)
            except self._not_yet:
                if time.monotonic() >= deadline or self._closed.wait(self._retry_s):
                    raise
