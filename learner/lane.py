"""Work beside the updates: copies to and from the device on a stream of their own, and what follows them in a thread.

Each kind of work (batches, publishing, checkpoints) has a lane of its own, so that none waits for another. In the plain
lane everything is done in line, as the call returns: that is the form for a CPU, and for a run in one process.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

Mark = Any
"""A place in what was asked of a device: a CUDA event, or None where everything asked for is done."""
T = TypeVar("T")


class HiddenWork:
    """Adds up the seconds of work beside the updates, by name and from any thread."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = defaultdict(float)
        self._lock = threading.Lock()

    def add(self, name: str, seconds: float) -> None:
        """Add seconds to a name, which none leave out."""
        if seconds:
            with self._lock:
                self._seconds[name] += seconds

    def take(self) -> dict[str, float]:
        """Return the seconds since the last call."""
        with self._lock:
            found, self._seconds = dict(self._seconds), defaultdict(float)
        return found


class Lane:
    """The plain lane: everything in line.

    Attributes:
        is_beside: whether work is done beside the updates; what it reads must then stay as it is until it is done.
    """

    is_beside = False

    def __init__(self, device: torch.device, hidden: HiddenWork) -> None:
        self._device = device
        self._hidden = hidden

    def on_host(self, shape: tuple[int, ...], dtype: str | np.dtype[Any]) -> Tensor:
        """Return new memory on the host, to be copied to the device again and again."""
        return torch.from_numpy(np.empty(shape, dtype))

    def on_device(self, host: Tensor) -> Tensor:
        """Return memory on the device for the values of a tensor on the host; on a CPU that tensor itself."""
        return host if self._device.type == "cpu" else torch.empty_like(host, device=self._device)

    def copy(self, target: Tensor, source: Tensor) -> None:
        """Copy values from the host to the device, unless both are the same memory."""
        if target is not source:
            target.copy_(source)

    def side(self) -> AbstractContextManager[object]:
        """Return a context; what is asked of the device within is done beside the updates."""
        return nullcontext()

    def mark(self) -> Mark:
        """Return a mark after all that was asked so far, within `side` of the lane, else of the updates."""
        return None

    def follow(self, mark: Mark) -> None:
        """Have the device do what is asked next, within `side` by the lane, only after what is before a mark."""

    def wait(self, mark: Mark) -> None:
        """Wait until everything before a mark is done."""

    def seconds_between(self, first: Mark, second: Mark) -> float:
        """Return the device's seconds between two marks that it has passed; 0 where there is nothing to measure."""
        del first, second
        return 0.0

    def to_host(self, tensor: Tensor, after: Mark) -> np.ndarray:
        """Return a tensor's values at a mark, in memory of their own; for the work given to `start`."""
        self.follow(after)
        return tensor.cpu().numpy()

    def start(self, name: str, work: Callable[[], T]) -> Future[T]:
        """Do some work, beside the updates if that is possible, and return its future.

        Args:
            name: under which its seconds are added up, if it was beside.
        """
        del name
        return _do(work, Future())


class CudaLane(Lane):
    """A stream of its own on a GPU, and threads that wait for it."""

    is_beside = True

    def __init__(self, device: torch.device, hidden: HiddenWork) -> None:
        super().__init__(device, hidden)
        self._stream = torch.cuda.Stream(device)

    def on_host(self, shape: tuple[int, ...], dtype: str | np.dtype[Any]) -> Tensor:
        """Return pinned memory, which the device reads by itself."""
        return super().on_host(shape, dtype).pin_memory()

    def on_device(self, host: Tensor) -> Tensor:
        """Return memory that the lane writes and the updates read."""
        tensor = super().on_device(host)
        tensor.record_stream(self._stream)  # given back, it is not given away while the lane still writes to it
        self._stream.wait_stream(torch.cuda.current_stream(self._device))  # whoever had it before may still be at it
        return tensor

    def copy(self, target: Tensor, source: Tensor) -> None:
        """Have values copied, without waiting for it."""
        target.copy_(source, non_blocking=True)

    def side(self) -> AbstractContextManager[object]:
        """Return the context of the lane's stream."""
        return torch.cuda.stream(self._stream)

    def mark(self) -> Mark:
        """Return an event on the current stream; a thread that waits for it sleeps."""
        event = torch.cuda.Event(enable_timing=True, blocking=True)
        event.record(torch.cuda.current_stream(self._device))
        return event

    def follow(self, mark: Mark) -> None:
        """Have the current stream wait for an event."""
        torch.cuda.current_stream(self._device).wait_event(mark)

    def wait(self, mark: Mark) -> None:
        """Have the caller wait for an event."""
        mark.synchronize()

    def seconds_between(self, first: Mark, second: Mark) -> float:
        """Return the seconds between two events."""
        second.synchronize()
        return float(first.elapsed_time(second)) / 1000

    def to_host(self, tensor: Tensor, after: Mark) -> np.ndarray:
        """Return a tensor's values through pinned memory; the caller holds the tensor until then."""
        with self.side():
            self.follow(after)
            host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            host.copy_(tensor, non_blocking=True)
            copied = self.mark()
        self.wait(copied)
        return host.numpy()

    def start(self, name: str, work: Callable[[], T]) -> Future[T]:
        """Do some work in a thread of its own."""
        future: Future[T] = Future()

        def do() -> None:
            begun = time.perf_counter()
            _do(work, future)
            self._hidden.add(name, time.perf_counter() - begun)

        threading.Thread(target=do, name=name, daemon=True).start()
        return future


def make_lane(device: torch.device, hidden: HiddenWork, beside: bool) -> Lane:
    """Return a new lane for a device; `beside` says whether anything may be done beside the updates."""
    return CudaLane(device, hidden) if beside and device.type == "cuda" else Lane(device, hidden)


def _do(work: Callable[[], T], future: Future[T]) -> Future[T]:
    """Give a future the result of some work, or what it raised."""
    try:
        future.set_result(work())
    except Exception as error:  # noqa: BLE001 (it is raised where the result is wanted)
        future.set_exception(error)
    return future
