"""Where actors, learner and replay live: the fleet loop gives them orders through this, with Ray or without."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from dreamfleet.common.process_log import LogRecord
from dreamfleet.replay.interface import Counters, Shortage


class WorkerLostError(Exception):
    """A worker's process died, hangs or cannot be reached: what it was doing is lost, a new one may do better."""


class WorkerFailedError(Exception):
    """A worker's own code raised.

    Attributes:
        cause: the exception it raised.
        trace: its traceback as text.
    """

    def __init__(self, cause: BaseException, trace: str) -> None:
        super().__init__(f"{type(cause).__name__}: {cause}")
        self.cause = cause
        self.trace = trace


@dataclass(frozen=True, eq=False)
class Worker:
    """A started worker: its name for the log, and what stands for it in its pool."""

    name: str
    target: Any


class Pool(Protocol):
    """Starts workers, gives them orders and brings back their answers. Orders of one worker are done in turn.

    Every actor understands the order "greet", which it answers once it has a place, before it is given others.
    """

    counters_every_s: float
    """How old the replay's counters may be: asking costs a call, which a thousand actors would ask for at each turn."""
    workers_can_hang: bool
    """False where orders are carried out by turns in this process: an old order is then no sign of a fault."""

    def start_actor(self, actor: int, incarnation: int) -> Worker:
        """Start the actor with this number in its next life."""
        ...

    def start_evaluator(self) -> Worker:
        """Start the actor that only evaluates."""
        ...

    def start_learner(self) -> Worker:
        """Start the learner."""
        ...

    def stop(self, worker: Worker) -> None:
        """End a worker at once, whatever it is doing."""
        ...

    def finish_early(self, worker: Worker) -> None:
        """Have the learner end its train orders after the update it is at."""
        ...

    def give(self, worker: Worker, method: str, *arguments: Any) -> Any:
        """Give an order and return its future."""
        ...

    def wait(self, timeout_s: float) -> list[Any]:
        """Return the futures of all orders that were done since the last call, after at most `timeout_s`."""
        ...

    def result(self, future: Any) -> Any:
        """Return what a done order brought.

        Raises:
            WorkerLostError: if the worker is gone.
            WorkerFailedError: if its code raised.
        """
        ...

    def placed(self, workers: Sequence[Worker]) -> list[Worker]:
        """Return those of these workers that are known to have their place: nothing but a fault keeps them silent.

        A pool whose workers cannot hang may return none.
        """
        ...

    def room(self) -> int:
        """Return how many actors there is room for in all, those that have their place included."""
        ...

    def ask_for_room(self, actors: int) -> None:
        """Ask for room for so many actors in all, where room can grow; 0 takes back what was asked for."""
        ...

    def publish(self, flat: np.ndarray) -> Any:
        """Return what stands for flat weights in orders to actors."""
        ...

    def retire(self, actor: int, incarnation: int) -> int:
        """Have the replay store nothing more of a life that is over; return how many of its steps are stored."""
        ...

    def counters(self) -> Counters:
        """Ask the replay for its counters."""
        ...

    def replay_stats(self) -> dict[str, float]:
        """Ask the replay for its figures."""
        ...

    def shortage(self) -> Shortage:
        """Ask the replay what it holds, where no training sequence can be cut from it."""
        ...

    def replay_log_records(self) -> list[LogRecord]:
        """Return what the replay logged since the last call, if it runs in another process."""
        ...

    def sync_replay(self) -> None:
        """Have the replay write all it holds through to the disk."""
        ...

    def close(self) -> None:
        """End all workers and the replay, in order."""
        ...
