"""Several ranks in several processes, connected by torch.distributed: NCCL between GPUs, gloo between CPUs.

A rank that is lost or late makes the others raise `OtherRankError` within a time limit; where NCCL waits for it, torch
ends their processes. It does not watch what NCCL does within a captured graph: there they wait until the fleet ends
them, at once if a rank is lost, after `learner.order_timeout_s` if it is late.
"""

from __future__ import annotations

import io
import os
import socket
import struct
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import Store, TCPStore

from dreamfleet.common.errors import first_line
from dreamfleet.learner.ranks import Message, OtherRankError, Ranks

JOIN_S = 300.0
"""All ranks have to be there within this time after the first: each starts a process and imports torch."""
_JOIN = timedelta(seconds=JOIN_S)
_ADDRESS_OF = 0x8915
"""Linux' SIOCGIFADDR."""


class ConnectedRanks(Ranks):
    """Several ranks, of which this process is one: torch's default process group.

    Args:
        store: where the ranks find each other.
        address: this machine's, at which the others reach it; 127.0.0.1 where all are on one machine.
        timeout_s: how long another rank may let this one wait, at any time.

    Raises:
        OtherRankError: if they are not all there within `JOIN_S`.
    """

    def __init__(
        self, number: int, count: int, store: Store, address: str, device: torch.device, timeout_s: float
    ) -> None:
        self.number, self.count, self.extra = number, count, 1 + count
        self._is_asked_to_stop = threading.Event()
        self._stopping = torch.zeros((), device=device)
        self._told = torch.zeros(self.extra, device=device)
        self._has_gradient: tuple[list[bool], list[bool]] | None = None  # here, and on any rank
        self._rehearsed: list[bool] | None = None
        interface = interface_of(address)
        for variable in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME") if interface else ():
            os.environ.setdefault(variable, interface)  # else they take what this machine's name resolves to
        with _other_rank_errors():
            store.set(f"rank {number}", "is there")
            store.wait([f"rank {other}" for other in range(count)], timedelta(seconds=JOIN_S))
            dist.init_process_group(
                "gloo" if device.type == "cpu" else "cpu:gloo,cuda:nccl",
                store=store,
                rank=number,
                world_size=count,
                timeout=timedelta(seconds=timeout_s),
                device_id=None if device.type == "cpu" else device,
            )

    def decisions(self, sequences: int) -> list[str]:
        """See `Ranks.decisions`."""
        means = "gloo" if self._told.device.type == "cpu" else "NCCL"
        return [f"ranks: {self.count}, each with {sequences // self.count} of {sequences} sequences, by {means}"]

    def mean(self, x: Tensor) -> Tensor:
        """See `Ranks.mean`."""
        found: Tensor = torch.ops.dreamfleet.mean_over_ranks(x)
        return found

    def gather(self, x: Tensor) -> Tensor:
        """See `Ranks.gather`."""
        found: Tensor = torch.ops.dreamfleet.gather_from_ranks(x.detach(), self.count)
        return found

    def complete(self, parameters: Iterable[Tensor]) -> None:
        """See `Ranks.complete`; which parameters have a gradient is told at the first update, or after a rehearsal.

        Raises:
            RuntimeError: if it changes.
        """
        everything = list(parameters)
        own = [parameter.grad is not None for parameter in everything]
        if self._has_gradient is None:
            if _rehearsal.is_on:
                self._rehearsed = own  # told in the next `agree`
                return
            self._has_gradient = own, self._on_any(own)
        usual, of_any = self._has_gradient
        if own != usual:
            raise RuntimeError(f"rank {self.number} has gradients for other parameters than at its first update")
        for parameter, wanted in zip(everything, of_any, strict=True):
            if wanted and parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)

    def begin_update(self) -> None:
        """See `Ranks.begin_update`."""
        self._stopping.fill_(self._is_asked_to_stop.is_set())

    @torch.no_grad()
    def average(self, message: Tensor, total: Tensor) -> Tensor:
        """See `Ranks.average`; each rank has a number of its own in which it says that something is not finite."""
        gradients, extra = message[: -self.extra], message[-self.extra :]
        extra.zero_()
        extra[0] = self._stopping
        extra[1 + self.number] = ~(torch.isfinite(total) & torch.isfinite(gradients).all())
        if not _rehearsal.is_on:
            with _other_rank_errors():
                dist.all_reduce(message)
            gradients.div_(self.count)
        self._told.copy_(extra)
        return total.masked_fill(extra[1:].any(), torch.nan)

    def listen(self) -> Message | None:
        """See `Ranks.listen`."""
        return Message(self._told.clone())

    def agree(self, flag: bool) -> bool:
        """See `Ranks.agree`."""
        found = bool(self.mean(torch.tensor(float(flag), device=self._told.device)) > 0)
        own, self._rehearsed = self._rehearsed, None
        if own is not None and not found:  # on all ranks alike, since none has failed
            self._has_gradient = own, self._on_any(own)
        return found

    @contextmanager
    def rehearsing(self) -> Iterator[None]:
        """See `Ranks.rehearsing`."""
        _rehearsal.is_on = True
        try:
            yield
        finally:
            _rehearsal.is_on = False

    def _on_any(self, own: list[bool]) -> list[bool]:
        """Return which of this rank's flags hold on any rank."""
        flags = torch.tensor(own, dtype=torch.uint8)
        with _other_rank_errors():
            dist.all_reduce(flags, dist.ReduceOp.MAX)
        found: list[bool] = flags.bool().tolist()
        return found

    def ask_to_stop(self) -> None:
        """See `Ranks.ask_to_stop`."""
        self._is_asked_to_stop.set()

    def gather_arrays(self, array: np.ndarray) -> np.ndarray:
        """See `Ranks.gather_arrays`."""
        own = torch.from_numpy(np.ascontiguousarray(array, dtype=np.int64))
        with _other_rank_errors():
            sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.count)]
            dist.all_gather(sizes, torch.tensor([len(own)]))
            longest = max(int(size) for size in sizes)
            found = [torch.zeros(longest, dtype=torch.int64) for _ in range(self.count)]
            dist.all_gather(found, torch.nn.functional.pad(own, (0, longest - len(own))))
        return torch.cat([part[: int(size)] for part, size in zip(found, sizes, strict=True)]).numpy()

    def spread(self, state: Mapping[str, Any] | None) -> Mapping[str, Any]:
        """See `Ranks.spread`."""
        file = io.BytesIO()
        if state is not None:
            torch.save(dict(state), file)
        data = torch.frombuffer(file.getbuffer(), dtype=torch.uint8) if state is not None else torch.empty(0)
        with _other_rank_errors():
            size = torch.tensor([len(data)])
            dist.broadcast(size, src=0)
            if state is None:
                data = torch.empty(int(size), dtype=torch.uint8)
            dist.broadcast(data, src=0)
        if state is not None:
            return state
        found: dict[str, Any] = torch.load(io.BytesIO(data.numpy().tobytes()), weights_only=True, map_location="cpu")
        return found

    def close(self) -> None:
        """See `Ranks.close`; on GPUs the fleet ends the others, since NCCL may wait for them to be told."""
        if self._told.device.type == "cpu" and dist.is_initialized():
            dist.destroy_process_group()


@contextmanager
def _other_rank_errors() -> Iterator[None]:
    """Raise `OtherRankError` for what torch raises where another rank is lost or late."""
    try:
        yield
    except RuntimeError as error:  # torch's DistError and what gloo raises are of this class
        raise OtherRankError(f"no answer from another rank: {first_line(error)}") from error


# What is told in the midst of a loss: operations of torch, which a compiler takes as they are -------------------------


class _Rehearsal:
    """Whether this process rehearses; of the process, since a backward pass has threads of its own."""

    is_on = False


_rehearsal = _Rehearsal()


@torch.library.custom_op("dreamfleet::mean_over_ranks", mutates_args=())
def _mean_over_ranks(x: Tensor) -> Tensor:
    summed = x.clone(memory_format=torch.contiguous_format)
    if _rehearsal.is_on:
        return summed
    with _other_rank_errors():
        dist.all_reduce(summed)
    return summed.div_(dist.get_world_size())


@_mean_over_ranks.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _mean_backward(context: Any, gradient: Tensor) -> Tensor:
    """Every rank's loss depends on the mean: the gradients of all of them are averaged in turn."""
    del context
    found: Tensor = torch.ops.dreamfleet.mean_over_ranks(gradient)
    return found


_mean_over_ranks.register_autograd(_mean_backward)


@torch.library.custom_op("dreamfleet::gather_from_ranks", mutates_args=())
def _gather_from_ranks(x: Tensor, count: int) -> Tensor:
    if _rehearsal.is_on:
        return torch.cat([x] * count)
    gathered = x.new_empty((count * x.shape[0], *x.shape[1:]))
    with _other_rank_errors():
        dist.all_gather(list(gathered.chunk(count)), x.contiguous())
    return gathered


@_gather_from_ranks.register_fake
def _(x: Tensor, count: int) -> Tensor:
    return x.new_empty((count * x.shape[0], *x.shape[1:]))


# Where the ranks meet -------------------------------------------------------------------------------------------------


def open_store(address: str) -> tuple[Store, int]:
    """Return a store for ranks to find each other, in this process, and the port at which it listens.

    It listens at this address alone: 127.0.0.1 where all ranks are on one machine.
    """
    listening = socket.create_server((address, 0))
    port = listening.getsockname()[1]
    store = TCPStore(
        address, port, is_master=True, wait_for_workers=False, master_listen_fd=listening.detach(), timeout=_JOIN
    )
    return store, port


def reach_store(address: str, port: int) -> Store:
    """Return the store that another process has opened.

    Raises:
        OtherRankError: if it does not answer.
    """
    with _other_rank_errors():
        return TCPStore(address, port, is_master=False, timeout=_JOIN)


def interface_of(address: str) -> str:
    """Return the name of this machine's network interface with an IPv4 address; nothing where that is not found."""
    try:
        from fcntl import ioctl

        wanted = socket.inet_aton(address)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
            for _, name in socket.if_nameindex():
                with suppress(OSError):  # an interface without an address
                    if ioctl(asking, _ADDRESS_OF, struct.pack("256s", name.encode()))[20:24] == wanted:
                        return name
    except (ImportError, OSError):
        return ""
    return ""
