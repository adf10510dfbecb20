"""The learner's process on Ray."""

from __future__ import annotations

import dataclasses
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import ray
from ray.exceptions import GetTimeoutError, RayError

from dreamfleet.common.experience.spaces import Spaces
from dreamfleet.common.process_log import LogRecord, WorkerLog
from dreamfleet.common.settings.schema import Settings
from dreamfleet.learner.batches import NotFiniteLossError
from dreamfleet.learner.hardware import TorchThreads
from dreamfleet.learner.learner import Learner
from dreamfleet.learner.pictures.comparison import Pictures
from dreamfleet.learner.ranks import ALONE, OtherRankError, Ranks
from dreamfleet.learner.reports import Answer, Restored, TrainReport, WeightsOutbox
from dreamfleet.learner.saving import SavedCheckpoint
from dreamfleet.replay.ray_replay import RayReplay
from dreamfleet.replay.sharded import ShardedReplay

if TYPE_CHECKING:
    import torch

LOOPBACK = "127.0.0.1"


@dataclasses.dataclass(frozen=True)
class Seat:
    """A rank's place among those of its learner.

    Attributes:
        are_together: whether all ranks are on one machine.
        first: rank 0's process, for the others.
    """

    number: int = 0
    count: int = 1
    are_together: bool = True
    first: Any = None


ONLY = Seat()


@ray.remote(concurrency_groups={"health": 1, "weights": 1})  # type: ignore[call-overload]  # missing in Ray's overloads
class LearnerProcess:
    """A `Learner` in a process of its own; its orders are the learner's.

    The weights in their answers are fetched by calls of their own, see `WeightsOutbox`.

    Args:
        spaces: as `Spaces.to_json` gives them.
        replay: handles of the processes of the replay's shards, in order.
        set_to: the threads that torch was set to, where the run was started.
        seat: which of the learner's ranks this is.
    """

    def __init__(
        self,
        settings: Settings,
        spaces: dict[str, Any],
        replay: Sequence[Any],
        run_directory: str,
        busy_cores: int = 0,
        set_to: TorchThreads | None = None,
        seat: Seat = ONLY,
    ) -> None:
        self._log = WorkerLog.install()
        shards = ShardedReplay([RayReplay(server) for server in replay], settings.seed, "learner: replay")
        directory = Path(run_directory)
        self._arguments = (settings, Spaces.from_json(spaces), shards, directory, True, busy_cores, set_to)
        self._timeout_s = settings.learner.order_timeout_s
        self._seat = seat
        self._opening = threading.Lock()
        self._meeting: tuple[Any, int, str] | None = None
        self._built: Learner | None = None
        self._outbox = WeightsOutbox()

    @property
    def _learner(self) -> Learner:
        """Built at the first order: an error in an actor's constructor would come with pages of Ray's own."""
        if self._built is None:
            sharing = self._seat.count if self._seat.are_together else 1
            self._built = Learner(*self._arguments, self._join, sharing)
        return self._built

    def _join(self, device: torch.device) -> Ranks:
        """Connect with the other ranks, if there are any.

        Raises:
            OtherRankError: if they are not there in time.
        """
        seat = self._seat
        if seat.count == 1:
            return ALONE
        from dreamfleet.learner.connected_ranks import JOIN_S, ConnectedRanks, reach_store

        if seat.first is None:
            store, _, _ = self._open_store()
        else:
            try:
                address, port = ray.get(seat.first.meeting_point.remote(), timeout=JOIN_S)
            except (RayError, GetTimeoutError) as error:
                raise OtherRankError(f"rank 0 does not say where it is: {type(error).__name__}") from error
            store = reach_store(address, port)
        return ConnectedRanks(seat.number, seat.count, store, self._address, device, self._timeout_s)

    @ray.method(concurrency_group="health")
    def meeting_point(self) -> tuple[str, int]:
        """Return the address and the port at which this rank, the first, waits for the others."""
        _, port, address = self._open_store()
        return address, port

    def _open_store(self) -> tuple[Any, int, str]:
        from dreamfleet.learner.connected_ranks import open_store

        with self._opening:  # asked for by this rank and by the others, in two threads
            if self._meeting is None:
                self._meeting = (*open_store(self._address), self._address)
            return self._meeting

    @property
    def _address(self) -> str:
        """Where the other ranks reach this one."""
        address: str = LOOPBACK if self._seat.are_together else ray.util.get_node_ip_address()
        return address

    def restore(self) -> Restored:
        """See `Learner.restore`; what was logged meanwhile is among the decisions."""
        restored = self._part(lambda learner: learner.restore())
        return restored._replace(decisions=[*restored.decisions, *(text for _, text in self._log.take())])

    def prepare(self) -> list[LogRecord]:
        """See `Learner.prepare`; return what this process logged meanwhile."""
        self._learner.prepare()
        return self._log.take()

    def train(self, updates: int) -> TrainReport:
        """See `Learner.train`."""
        try:
            report = self._part(lambda learner: learner.train(updates))
        except (NotFiniteLossError, OtherRankError):  # which all ranks raise, or which has cut them off from each other
            raise
        except Exception:
            self._learner.ranks.close()  # else the others would wait for this one
            raise
        return dataclasses.replace(report, log_records=self._log.take())

    def save(self, facts: dict[str, Any]) -> SavedCheckpoint:
        """See `Learner.save`."""
        return self._part(lambda learner: learner.save(facts))

    def start_saving(self, facts: dict[str, Any]) -> SavedCheckpoint | None:
        """See `Learner.start_saving`."""
        return self._part(lambda learner: learner.start_saving(facts))

    def finish_saving(self) -> list[SavedCheckpoint]:
        """See `Learner.finish_saving`."""
        return self._part(lambda learner: learner.finish_saving())

    @ray.method(concurrency_group="weights", num_returns=2)
    def weights(self) -> tuple[None, dict[int, np.ndarray]]:
        """Return the flat weights of the next answer that may have some; the first value says that they are there."""
        return None, self._outbox.fetch()

    def _part(self, order: Callable[[Learner], Answer]) -> Answer:
        """Carry out an order; only the first rank's weights are fetched."""
        return order(self._learner) if self._seat.number else self._outbox.part(lambda: order(self._learner))

    def record_evaluation(self, updates: int, found: dict[str, Any]) -> bool:
        """See `Learner.record_evaluation`."""
        return self._learner.record_evaluation(updates, found)

    def draw_pictures(self) -> Pictures | None:
        """See `Learner.draw_pictures`."""
        return self._learner.draw_pictures()

    def finish(self) -> list[LogRecord]:
        """See `Learner.finish`; return what this process logged since its last train order."""
        self._learner.finish()
        return self._log.take()

    @ray.method(concurrency_group="health")
    def finish_early(self) -> None:
        """See `Learner.finish_early`; answered while it trains."""
        if self._built:
            self._built.finish_early()

    @ray.method(concurrency_group="health")
    def ping(self) -> int:
        """Return the process's id, also while it trains."""
        return os.getpid()
