"""The learner's ranks as one worker: what concerns all goes to all, and rank 0's answer counts once all have answered.

Mostly there is one. See `learner/ranks.py` for what they share. Where one fails the others fail of it, sooner or later:
what is reported is the failure of the one that does not blame another. The fleet then ends all of them, and starts all
anew.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from operator import itemgetter
from typing import Any

import ray
from ray.exceptions import RayTaskError

from dreamfleet.common.process_log import LogRecord
from dreamfleet.learner.ranks import OtherRankError
from dreamfleet.learner.reports import change_weights

FOR_ALL = ("restore", "prepare", "train", "finish", "ping")
"""Orders to all ranks; others, such as saving and drawing, are for rank 0, and the others meet it at the next."""
WITH_WEIGHTS = ("restore", "train", "save", "start_saving", "finish_saving")
"""Orders whose answers may have weights. These are the value of a call of their own (see `learner/reports.py`), and
stay where they are until somebody acts with them: what comes back with the answer is a reference."""
GRACE_S = 5.0
"""After the first failure the others have this long to say what they know of it: its cause may be theirs."""

log = logging.getLogger("dreamfleet")


class LearnerRanks:
    """Handles of the processes of all ranks, rank 0's first."""

    def __init__(self, handles: Sequence[Any]) -> None:
        self.handles = list(handles)

    def give(self, method: str, *arguments: Any) -> Future[Any]:
        """Give an order to those that it concerns; return the future of the answer."""
        handles = self.handles if method in FOR_ALL else self.handles[:1]
        given = [getattr(handle, method).remote(*arguments).future() for handle in handles]
        weights = None
        if method in WITH_WEIGHTS:
            are_there, weights = self.handles[0].weights.remote()
            given[0] = JointAnswer([given[0], are_there.future()], itemgetter(0), are_ranks=False).future
        return JointAnswer(given, partial(_join, method, weights)).future

    def finish_early(self) -> None:
        """Have all end their train orders after the same update."""
        for handle in self.handles:
            handle.finish_early.remote()

    def kill(self) -> None:
        """End all processes."""
        for handle in self.handles:
            ray.kill(handle)


class JointAnswer:
    """One future for several: the answers of all ranks to one order.

    Attributes:
        future: done when all have answered, or, if one has failed, `GRACE_S` later at the latest: then with the
            error that is not another rank's fault.

    Args:
        given: the ranks' futures, rank 0's first.
        join: makes one answer of all.
        are_ranks: else they are of one process, and its own failure is all that there is to say.
    """

    def __init__(
        self, given: Sequence[Future[Any]], join: Callable[[list[Any]], Any], *, are_ranks: bool = True
    ) -> None:
        self.future: Future[Any] = Future()
        self._given = list(given)
        self._join = join
        self._are_ranks = are_ranks
        self._changing = threading.Lock()
        self._grace: threading.Timer | None = None
        for future in self._given:
            future.add_done_callback(self._take)

    def _take(self, future: Future[Any]) -> None:
        with self._changing:
            is_last = all(each.done() for each in self._given)
            if future.exception() is not None and not is_last and self._grace is None:
                self._grace = threading.Timer(GRACE_S, self._settle)
                self._grace.daemon = True
                self._grace.start()
        if is_last:
            self._settle()

    def _settle(self) -> None:
        with self._changing:
            if self.future.done():
                return
            if self._grace:
                self._grace.cancel()
            given, self._given = self._given, []  # else they and this would hold each other, and with them the weights
            errors = {
                number: error
                for number, each in enumerate(given)
                if each.done() and (error := each.exception()) is not None
            }
            if not errors:
                try:
                    joined = self._join([each.result() for each in given])
                except Exception as error:  # noqa: BLE001 (in a thread of Ray's it would be lost, and the order unanswered)
                    self.future.set_exception(error)
                else:
                    self.future.set_result(joined)
                return
            culprit = min(errors, key=lambda number: _blame(errors[number]))
            if self._are_ranks and len(given) > 1:
                log.warning("of the learner's %d ranks, rank %d failed", len(given), culprit)
            self.future.set_exception(errors[culprit])


def _blame(error: BaseException) -> int:
    """Return 0 for what is surely a cause: a process that is gone; 2 for what blames another rank; else 1."""
    if not isinstance(error, RayTaskError):
        return 0
    return 2 if isinstance(error.cause, OtherRankError) else 1


def _join(method: str, weights: Any, answers: list[Any]) -> Any:
    """Return rank 0's answer, with the reference to its weights, if there may be some, and what all ranks logged."""
    first, *others = answers
    first = change_weights(first, lambda found: dataclasses.replace(found, handle=weights))
    if method == "train":
        records = [record for number, each in enumerate(others, 1) for record in _named(number, each.log_records)]
        return dataclasses.replace(first, log_records=[*first.log_records, *records])
    if method in ("prepare", "finish"):
        return [*first, *(record for number, each in enumerate(others, 1) for record in _named(number, each))]
    return first


def _named(number: int, records: Sequence[LogRecord]) -> list[LogRecord]:
    return [(level, f"rank {number}: {text}") for level, text in records]
