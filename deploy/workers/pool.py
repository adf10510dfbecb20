"""The pool of workers: the fleet loop gives actors and learner their orders through it, with Ray or inline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from dreamfleet.common.acting.policy import PublishedWeights
from dreamfleet.common.formatting import shorten
from dreamfleet.replay.interface import ExperienceReplay

ANSWER_S = 15.0
"""Whoever gives no answer for so long, once the run is to end, is ended himself."""
LONGEST_TRACE, LONGEST_LINE = 20_000, 1000
"""Characters of a worker's traceback, and of a line of it, at most."""


class WorkerLostError(Exception):
    """A worker's process died, hangs or cannot be reached: what it was doing is lost; a new one may do better."""


class WorkerFailedError(Exception):
    """A worker's own code raised.

    Attributes:
        trace: its traceback as text, shortened: user code may raise megabytes.
    """

    def __init__(self, cause: BaseException, trace: str) -> None:
        super().__init__(shorten(f"{type(cause).__name__}: {cause}"))
        self.cause = cause
        self.trace = "\n".join(shorten(line, LONGEST_LINE) for line in shorten(trace, LONGEST_TRACE).splitlines())


@dataclass(frozen=True, eq=False)
class Worker:
    """A started worker: its name for the log, and its pool's handle of it."""

    name: str
    target: Any


@dataclass(frozen=True)
class ReplayChange:
    """A process of the replay died, of this cause, or without one is up again."""

    who: str
    cause: str = ""


class Pool(Protocol):
    """Starts workers, gives them orders and brings back the answers. A worker carries out its orders one by one.

    Only the process that acts for all actors carries its orders out side by side. It, actors and the evaluator answer
    the order "greet" as soon as their process runs, with the name of their node.
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

    def start_inference(self) -> Worker:
        """Start a process that acts for all actors, which find it by themselves; where `acts_centrally` says so."""

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

    def replay_changes(self) -> list[ReplayChange]:
        """Return which of the replay's processes died or came up again since the last call."""

    def room(self) -> int:
        """Return how many actors there is room for in all, including those that run."""

    def ask_for_room(self, actors: int) -> None:
        """Ask for room for this many actors in all, where room can grow; 0 takes back what was asked for."""

    def expect_answers(self, within_s: float) -> None:
        """End, and have started again, what gives no answer within this time beside the workers: the replay.

        The run is to end. Nothing that is asked of the replay takes much longer from now on.
        """

    def fault(self) -> str:
        """Return why no worker can be reached or replaced any more, in a sentence; nothing while all is well."""

    def publish(self, version: int, flat: np.ndarray) -> PublishedWeights:
        """Return flat weights as orders to actors name them."""

    def close(self) -> None:
        """End all workers and the replay, in order."""
