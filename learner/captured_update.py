"""An update as one CUDA graph: recorded once, then replayed with other numbers in the same memory.

What torch does about random numbers (its C++ sources, `CUDAGeneratorImpl` and `CUDAGraph`, torch 2.13): while a graph
is captured, a kernel that draws is given pointers to a seed and an offset on the device, and its own offset within the
graph. Every replay first writes the generator's present seed and offset there, and moves the generator on by what the
graph draws. The default generator takes part by itself. So seeding it before a replay, as before an eager update, gives
the same numbers as that; it may not be seeded while capturing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor

WARM_UPS = 2
"""Calls before capturing: whatever is set up or tuned once, such as cuBLAS and Triton's kernels, is so by then."""
Made = TypeVar("Made")


class Graph(Protocol):
    """What records a computation and repeats it."""

    def warm_up(self, compute: Callable[[], object]) -> None:
        """Compute as often as is needed before capturing."""

    def capture(self, compute: Callable[[], Made]) -> Made:
        """Record a computation and return its results, whose memory every replay fills."""

    def replay(self) -> None:
        """Repeat the computation."""


class CudaGraph:
    """A `torch.cuda.CUDAGraph`, captured on a stream of its own."""

    def __init__(self) -> None:
        self._graph, self._stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()

    def warm_up(self, compute: Callable[[], object]) -> None:
        """See `Graph`."""
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            for _ in range(WARM_UPS):
                compute()
        torch.cuda.current_stream().wait_stream(self._stream)

    def capture(self, compute: Callable[[], Made]) -> Made:
        """See `Graph`. Other threads, such as NCCL's or those that pin memory, may use the device meanwhile.

        Raises:
            Exception: what broke it off; torch's own error, that the capture is not valid, follows from that.
        """
        outside, pool = torch.cuda.current_stream(), torch.cuda.graph_pool_handle()
        try:
            with torch.cuda.graph(self._graph, pool, self._stream, capture_error_mode="thread_local"):
                return compute()
        except Exception as error:
            # torch leaves its own stream the current one and, before 2.13, a generator that refuses to draw.
            torch.cuda.set_stream(outside)
            # And an allocator that takes the capture for one that goes on: it would never give memory back again.
            with suppress(RuntimeError):  # if the capture itself could be ended, this was done, and is refused
                torch._C._cuda_endAllocateToPool(outside.device_index, pool)
                torch._C._cuda_releasePool(outside.device_index, pool)
            generator = torch.cuda.default_generators[outside.device_index]
            generator.graphsafe_set_state(generator.clone_state())
            if isinstance(error.__context__, Exception):
                raise error.__context__ from None
            raise

    def replay(self) -> None:
        """See `Graph`."""
        self._graph.replay()


class CapturedUpdate(Generic[Made]):
    """An update that is warmed up, then captured, and then repeated for batches of the same shapes.

    Args:
        compute: the update, from a batch on the device; it reads nothing back to the host, and everything else that it
            reads or changes stays where it is.
        batch: of the usual shapes. The update is made from it some times.
    """

    def __init__(self, compute: Callable[[Mapping[str, Tensor]], Made], batch: Mapping[str, Tensor], graph: Graph):
        self._batch = {name: value.clone() for name, value in batch.items()}
        self._compute, self._graph = compute, graph
        self._made: Made | None = None

    def warm_up(self) -> None:
        """Make the update as often as is needed before it is captured."""
        self._graph.warm_up(lambda: self._compute(self._batch))

    def capture(self) -> None:
        """Record it; see `Graph`."""
        self._made = self._graph.capture(lambda: self._compute(self._batch))

    def make(self, batch: Mapping[str, Tensor]) -> Made:
        """Make an update and return what came of it, which the next one overwrites."""
        assert self._made is not None, "it was not captured"
        for name, value in self._batch.items():
            value.copy_(batch[name], non_blocking=True)
        self._graph.replay()
        return self._made
