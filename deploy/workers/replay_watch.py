"""Watches the replay's processes, which Ray restarts by itself: which died, of what, and when they were back."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import ray
from ray.exceptions import ActorDiedError

from dreamfleet.deploy.workers.pool import ReplayChange
from dreamfleet.deploy.workers.ray_errors import describe_exit
from dreamfleet.replay.ray_replay import RayReplay

END_S = 10.0
"""Once the run is to end, and all that was silent is ended, the replay has so long to answer what it is asked."""
SILENT_S = 30.0
"""A server that is silent for so long is frozen: the call on its way is answered after `WATCH_S`, whatever it is at."""
_LOOK_S = 1.0


class ReplayWatch:
    """Has a call on its way to each server at all times, which the server answers after seconds and never twice.

    The answer is the process's id: a call that fails, or one that another process answers, tells of a death. So does
    nothing else: all other calls are made again by Ray, unseen. A server that leaves it unanswered is killed, by a
    thread, since who would ask for `changes` may itself be waiting for that server.

    Args:
        servers: handles of `ReplayServer`s.
        clients: this process's, whose calls are cut short once the run is to end.
        logs: folder of Ray's logs on this machine.

    Attributes:
        end_by: when the run is to be at its end, by the monotonic clock; infinity until it is to end.
    """

    def __init__(self, servers: Sequence[Any], clients: Sequence[RayReplay], logs: Path | None) -> None:
        self.end_by = float("inf")
        self._servers = list(servers)
        self._clients = list(clients)
        self._logs = logs
        self._pids = [0] * len(self._servers)
        self._answers: SimpleQueue[tuple[int, int, Future[Any]]] = SimpleQueue()  # with the process that was asked
        self._down: set[int] = set()
        self._watched: list[Future[Any] | None] = [None] * len(self._servers)
        self._closed = threading.Event()
        for number in range(len(self._servers)):
            self._ask(number, "watch")
        threading.Thread(target=self._look_for_frozen, name="replay watch", daemon=True).start()

    def close(self) -> None:
        """Kill no more servers for their silence."""
        self._closed.set()

    def changes(self) -> list[ReplayChange]:
        """Return which processes died, and which are up again, since the last call."""
        changes: list[ReplayChange] = []
        try:
            while True:
                changes += self._take(*self._answers.get_nowait())
        except Empty:
            return changes

    def _take(self, number: int, asked: int, answer: Future[Any]) -> list[ReplayChange]:
        who = "replay" if len(self._servers) == 1 else f"shard {number} of the replay"
        error = answer.exception()
        if error is None:
            before, self._pids[number] = self._pids[number], int(answer.result())
            self._ask(number, "watch")
            was_down = number in self._down
            self._down.discard(number)
            return [ReplayChange(who)] if was_down else self._unseen(number, who, before)
        if isinstance(error, ActorDiedError):
            return []  # for good: it is lost, which its next caller finds out and says
        if number in self._down or asked != self._pids[number]:
            return []  # that death is named already
        self._down.add(number)
        self._ask(number, "health")  # answered as soon as it is up again and has opened its directory
        is_silent = isinstance(error, TimeoutError)
        return [ReplayChange(who, str(error) if is_silent else self._cause(self._pids[number]))]

    def expect_answers(self, within_s: float) -> None:
        """Have each server killed that does not answer within this time, and calls end soon after it.

        May be called from a signal's handler, while this process waits for the replay.
        """
        if self.end_by == float("inf"):
            self.end_by = time.monotonic() + within_s + END_S
            for client in self._clients:
                client.end_by = self.end_by
            threading.Thread(target=self.end_silent, args=(within_s,), daemon=True).start()

    def end_silent(self, within_s: float) -> None:
        """Kill each server that does not answer within this time, as one that is frozen; Ray starts another.

        One that is known to have died is opening its directory, and left to that.
        """
        asked = {
            server.health.remote(): number for number, server in enumerate(self._servers) if number not in self._down
        }
        _, silent = ray.wait(list(asked), num_returns=len(asked), timeout=within_s)
        for reference in silent:
            number = asked[reference]
            self._end(number, f"it gave no answer for {within_s:.0f} s, and the run is to end")

    def _look_for_frozen(self) -> None:
        """Kill each server whose call on its way is unanswered for `SILENT_S`, as seen by looks at it once a second.

        Looks are counted, not time: after a pause of the whole machine, or of this process, an answer may be close.
        """
        looked_at, looks = list(self._watched), [0] * len(self._watched)
        while not self._closed.wait(_LOOK_S):
            for number, call in enumerate(self._watched):
                is_silent = call is looked_at[number] and call is not None and not call.done()
                looks[number] = looks[number] + 1 if is_silent else 0
                looked_at[number] = call
                if looks[number] * _LOOK_S >= SILENT_S:
                    looks[number] = 0
                    self._end(number, f"it gave no answer for {SILENT_S:.0f} s")

    def _end(self, number: int, why: str) -> None:
        """Kill a server that is silent; Ray starts another.

        That it is dead is not left to the call on its way, which may fail a second later than the run comes to its end.
        """
        self._answers.put((number, self._pids[number], _no_answer(why)))
        if not _kill(self._pids[number]):  # a frozen process of another machine: Ray's own way takes longer
            ray.kill(self._servers[number], no_restart=False)

    def _unseen(self, number: int, who: str, before: int) -> list[ReplayChange]:
        """Return a death that no call of ours met, if another process answers."""
        if before in {0, self._pids[number]}:
            return []
        return [ReplayChange(who, self._cause(before)), ReplayChange(who)]

    def _cause(self, pid: int) -> str:
        return describe_exit("connection error", pid, self._logs)

    def _ask(self, number: int, method: str) -> None:
        future: Future[Any] = getattr(self._servers[number], method).remote().future()
        asked = self._pids[number]
        self._watched[number] = future if method == "watch" else None  # opening a directory may take long
        future.add_done_callback(lambda done: self._answers.put((number, asked, done)))


def _no_answer(why: str) -> Future[Any]:
    """Return the answer of a process that gives none."""
    answer: Future[Any] = Future()
    answer.set_exception(TimeoutError(why))
    return answer


def _kill(pid: int) -> bool:
    """Kill a process of Ray's on this machine; return False if there is none of this number."""
    try:
        if "ray::" not in Path(f"/proc/{pid}/cmdline").read_text():
            return False
        os.kill(pid, signal.SIGKILL)
    except OSError:
        return False
    return True
