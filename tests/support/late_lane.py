"""A lane that does everything as late as is allowed: what does not wait for its marks finds what was there before."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from dreamfleet.learner.lane import HiddenWork, Lane, Mark

T = TypeVar("T")


class LateLane(Lane):
    """The stream of a device that is always behind, on the CPU: a copy is made when a mark after it is waited for.

    A mark is the number of copies asked for before it. Work given to `start` is done when `catch_up` is called, or its
    result is wanted.

    Attributes:
        events: what happened, in order.
    """

    is_beside = True

    def __init__(self) -> None:
        super().__init__(torch.device("cpu"), HiddenWork())
        self.events: list[str] = []
        self._copies: list[tuple[Tensor, Tensor]] = []
        self._made = 0
        self._thread = threading.local()
        self._lock = threading.Lock()
        self._work: list[Callable[[], None]] = []

    def on_device(self, host: Tensor) -> Tensor:
        """Return memory of its own, as a GPU has; what is in it before anything is copied is no number."""
        return torch.full_like(host, 113 if host.dtype != torch.bool else 1)

    def copy(self, target: Tensor, source: Tensor) -> None:
        """Have a copy made later."""
        assert self._is_at_side, "a copy on the stream of the updates"
        self._copies.append((target, source))

    @contextmanager
    def side(self) -> Iterator[None]:
        """Remember that what is asked is asked of the lane."""
        before, self._thread.is_at_side = self._is_at_side, True
        try:
            yield
        finally:
            self._thread.is_at_side = before

    @property
    def _is_at_side(self) -> bool:
        return getattr(self._thread, "is_at_side", False)

    def mark(self) -> Mark:
        """Return how many copies were asked for."""
        return len(self._copies)

    def follow(self, mark: Mark) -> None:
        """Make the copies before the mark, now that they must be made; none after it."""
        with self._lock:
            for target, source in self._copies[self._made : mark]:
                target.copy_(source)
            self._made = max(self._made, mark)
        self.events.append("the lane follows" if self._is_at_side else "updates follow")

    def wait(self, mark: Mark) -> None:
        """Make the copies before the mark."""
        self.follow(mark)

    def to_host(self, tensor: Tensor, after: Mark) -> np.ndarray:
        """Return the values that the tensor has by now."""
        with self.side():
            self.follow(after)
        return tensor.clone().numpy()

    def start(self, name: str, work: Callable[[], T]) -> Future[T]:
        """Do some work when its result is wanted."""
        self.events.append(f"{name} starts")
        future: Any = LateFuture(self)

        def do() -> None:
            try:
                future.set_result(work())
            except Exception as error:  # noqa: BLE001 (as a thread does)
                future.set_exception(error)
            self.events.append(f"{name} is done")

        self._work.append(do)
        return future  # type: ignore[no-any-return]

    def catch_up(self) -> None:
        """Do all work that was given."""
        while self._work:
            self._work.pop(0)()


class LateFuture(Future[Any]):
    """The future of work on a `LateLane`: to wait for it is to have it done."""

    def __init__(self, lane: LateLane) -> None:
        super().__init__()
        self._lane = lane

    def result(self, timeout: float | None = None) -> Any:
        """Have the work done, and return what it brought."""
        self._lane.catch_up()
        return super().result(timeout)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Have the work done, and return what it raised."""
        self._lane.catch_up()
        return super().exception(timeout)
