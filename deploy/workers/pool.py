"""The pool of workers: the fleet loop gives actors and learner their orders through it, with Ray or inline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from dreamfleet.replay.interface import ExperienceReplay


class WorkerLostError(Exception):
    """A worker's process died, hangs or cannot be reached: what it was doing is lost; a new one may do better."""


class WorkerFailedError(Exception):
    """A worker's own code raised.

    Attributes:
        trace: its traceback as text.
    """

    def __init__(self, cause: BaseException, trace: str) -> None:
        super().__init__(f"{type(cause).__name__}: {cause}")
        self.cause = cause
        self.trace = trace


@dataclass(frozen=True, eq=False)
class Worker:
    """A started worker: its name for the log, and its pool's handle of it."""

    name: str
    target: Any


class Pool(Protocol):
    """Starts workers, gives them orders and brings back the answers. A worker carries out its orders one by one.

    Actors and the evaluator answer the order "greet" as soon as their process runs, with the name of their node.
    """

    counters_every_s: float
    """How old the replay's counters may be: a thousand actors would have them asked for every turn, at a call each."""
    workers_can_hang: bool
    """False where this process carries out all orders in turn: an old order is then no sign of a fault."""

    @property
    def replay(self) -> ExperienceReplay:
        """Where actors store, and the learner samples."""

    def start_actor(self, actor: int, incarnation: int) -> Worker:
        """Start the actor with this number in a new incarnation."""

    def start_evaluator(self) -> Worker:
        """Start the actor that only evaluates."""

    def start_learner(self) -> Worker:
        """Start the learner."""

    def stop(self, worker: Worker) -> None:
        """End a worker at once, whatever it is doing."""

    def finish_early(self, worker: Worker) -> None:
        """Have the learner end its train orders after the update being made."""

    def give(self, worker: Worker, method: str, *arguments: Any) -> Any:
        """Have a worker carry out a method; return the order's future."""

    def wait(self, timeout_s: float) -> list[Any]:
        """Return the futures of all orders completed since the last call, after at most `timeout_s`."""

    def result(self, future: Any) -> Any:
        """Return the answer to a completed order.

        Raises:
            WorkerLostError: if the worker is gone.
            WorkerFailedError: if its code raised.
        """

    def running(self, workers: Sequence[Worker]) -> list[Worker]:
        """Return those of these workers whose process is known to run: only a fault keeps them silent.

        A pool whose workers cannot hang may return none.
        """

    def room(self) -> int:
        """Return how many actors there is room for in all, including those that run."""

    def ask_for_room(self, actors: int) -> None:
        """Ask for room for this many actors in all, where room can grow; 0 takes back what was asked for."""

    def publish(self, flat: np.ndarray) -> Any:
        """Return the handle of flat weights for orders to actors."""

    def close(self) -> None:
        """End all workers and the replay, in order."""
