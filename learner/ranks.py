"""The ranks of a learner: processes that share every batch, and tell each other gradients and whatever is of all.

A rank computes on its own part of the batch; means over equal parts average to the mean over all of it. So each
gradient is averaged once, between backward and clipping, and the update is one for the whole batch. What is no mean
has to be known of all ranks while the loss is computed: percentiles of returns, batch norm's statistics, and on which
side of its free nats the batch's mean KL lies.

`Ranks` is one rank alone, which costs nothing; `ConnectedRanks` are several. All have to call the same methods in the
same order.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from dreamfleet.learner.host_copy import HostCopy


class OtherRankError(Exception):
    """Another rank failed, or cannot be reached: why is for that one to say."""


class Told(NamedTuple):
    """What the ranks told each other with the gradients of an update; all of them know the same.

    Attributes:
        is_stopping: whether any was asked to make no further update.
        not_finite_on: the ranks whose loss or gradient was not finite.
    """

    is_stopping: bool
    not_finite_on: list[int]


class Message:
    """What was told, on its way from the device to the host."""

    def __init__(self, numbers: Tensor) -> None:
        self._numbers = HostCopy(numbers)

    def read(self) -> Told:
        """Return it; waits for the device."""
        stopping, *broken = self._numbers.read().tolist()
        return Told(stopping > 0, [number for number, flag in enumerate(broken) if flag])


class Ranks:
    """One rank alone: there is nobody to talk to, and nothing is computed.

    In an update, `mean`, `gather` and `average` are on the device, and can be part of a captured graph; `begin_update`
    before it and `listen` after it are the host's, as is `complete`, which tells the others something once alone.

    Attributes:
        number: this rank's, from 0. Rank 0 also publishes, saves and measures.
        count: of all ranks.
        extra: numbers that travel behind the gradients.
    """

    number, count, extra = 0, 1, 0

    @property
    def is_alone(self) -> bool:
        """Whether there is no other rank."""
        return self.count == 1

    @property
    def is_first(self) -> bool:
        """Whether this rank publishes, saves and measures."""
        return self.number == 0

    def decisions(self, sequences: int) -> list[str]:
        """Return in a sentence how an update's sequences are shared."""
        del sequences
        return []

    def mean(self, x: Tensor) -> Tensor:
        """Return the mean over all ranks, element by element, with its gradient."""
        return x

    def gather(self, x: Tensor) -> Tensor:
        """Return the tensors of all ranks (N, …) as one (count · N, …), without gradient."""
        return x

    def complete(self, parameters: Iterable[Tensor]) -> None:
        """Give every parameter that has a gradient on another rank one of zeros, where it has none here."""

    def begin_update(self) -> None:
        """Take in, for the next average, whether this rank was asked to stop."""

    def average(self, message: Tensor, total: Tensor) -> Tensor:
        """Average gradients over the ranks, in place.

        Args:
            message: all gradients as one vector, and `extra` numbers behind them.
            total: this rank's loss, a scalar.

        Returns:
            The loss, or what is not finite if the loss or a gradient of any rank is not.
        """
        del message
        return total

    def listen(self) -> Message | None:
        """Return what was told with the last average, on its way to the host; None if there is nobody to tell it."""
        return None

    def agree(self, flag: bool) -> bool:
        """Return whether a flag holds on any rank; the host waits for all of them.

        What `complete` would have told in a rehearsal is told with it, unless the flag holds.
        """
        return flag

    @contextmanager
    def rehearsing(self) -> Iterator[None]:
        """Have `mean`, `gather` and `average` tell nobody, and compute as if all ranks were this one.

        So one rank can fail in an update whose results are thrown away, and no other waits for it in its midst.
        """
        yield

    def ask_to_stop(self) -> None:
        """Have all ranks make no further update after one of the next two; may be called from another thread."""

    def gather_arrays(self, array: np.ndarray) -> np.ndarray:
        """Return the integers of all ranks (N,), which may differ in length, one after the other; on the host."""
        return array

    def spread(self, state: Mapping[str, Any] | None) -> Mapping[str, Any]:
        """Return rank 0's state, tensors and plain data, on every rank."""
        assert state is not None
        return state

    def close(self) -> None:
        """Leave the others, who find this rank lost if they still wait for it."""


ALONE = Ranks()
