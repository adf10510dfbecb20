"""Watches the replay's processes, which Ray restarts by itself: which died, of what, and when they were back."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import ray
from ray.exceptions import ActorDiedError

from dreamfleet.deploy.workers.pool import ReplayChange
from dreamfleet.deploy.workers.ray_errors import describe_exit
from dreamfleet.replay.ray_replay import RayReplay

LOOK_S = 0.5
SILENT_S = 30.0
"""A server that is silent for so long is frozen: the call on its way is answered after `WATCH_S`, whatever it is at."""
END_S = 10.0
"""Once the run is to end, and all that was silent is ended, the replay has so long to answer what it is asked."""


@dataclass
class _Watched:
    """A server, by what is known of it.

    Attributes:
        pid: of its process; 0 until it has answered.
        call: the one on its way; None once it is lost for good, which its next caller finds out and says.
        looks: at that call in vain.
        is_down: whether its process died, and no other has answered.
    """

    handle: Any
    who: str
    pid: int = 0
    call: Future[Any] | None = None
    looks: int = 0
    is_down: bool = False

    def ask(self, method: str) -> None:
        self.call, self.looks = getattr(self.handle, method).remote().future(), 0


class ReplayWatch:
    """Has a call on its way to each server at all times, which the server answers after seconds and never twice.

    The answer is the process's id: a call that fails, or one that another process answers, tells of a death. So does
    nothing else: all other calls are made again by Ray, unseen. A server that leaves it unanswered is killed, and Ray
    starts another. All this is done by a thread: whoever wants to know of it may itself be waiting for a server.

    Args:
        servers: handles of `ReplayServer`s.
        clients: this process's, whose calls are cut short once the run is to end.
        logs: folder of Ray's logs on this machine.
        are_here: whether the servers are on this machine.

    Attributes:
        end_by: when the run is to be at its end, by the monotonic clock; infinity until it is to end.
    """

    def __init__(
        self, servers: Sequence[Any], clients: Sequence[RayReplay], logs: Path | None, are_here: bool = True
    ) -> None:
        self.end_by = float("inf")
        self._clients = list(clients)
        self._logs = logs
        self._are_here = are_here
        self._found: SimpleQueue[ReplayChange] = SimpleQueue()
        self._silent_s, self._occasion = SILENT_S, ""
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._keep_looking, name="replay watch", daemon=True)
        is_one = len(servers) == 1
        self._watched = [
            _Watched(handle, "replay" if is_one else f"shard {number} of the replay")
            for number, handle in enumerate(servers)
        ]
        for server in self._watched:
            server.ask("watch")

    def start(self) -> None:
        """Have a thread look twice a second."""
        self._thread.start()

    def close(self) -> None:
        """Look no more; to be called before Ray is left."""
        self._closed.set()
        if self._thread.is_alive():
            self._thread.join(timeout=10 * LOOK_S)

    def changes(self) -> list[ReplayChange]:
        """Return which processes died, and which are up again, since the last call."""
        changes: list[ReplayChange] = []
        try:
            while True:
                changes.append(self._found.get_nowait())
        except Empty:
            return changes

    def expect_answers(self, within_s: float) -> None:
        """Have each server killed that does not answer within this time, and calls end soon after it.

        May be called from a signal's handler, while this process waits for the replay.
        """
        if self.end_by == float("inf"):
            self.end_by = time.monotonic() + within_s + END_S
            self._silent_s, self._occasion = within_s, ", and the run is to end"
            for client in self._clients:
                client.end_by = self.end_by

    def look(self) -> None:
        """Take the answers that are there, and kill servers that gave none for too long.

        Looks are counted, not time: after a pause of the whole machine an answer may be close.
        """
        for server in self._watched:
            if server.call is None:
                continue
            if server.call.done():
                self._take(server, server.call)
            elif not server.is_down:  # one that is down opens its directory, and is left to that
                server.looks += 1
                if server.looks * LOOK_S >= self._silent_s:
                    self._end(server)

    def _keep_looking(self) -> None:
        while not self._closed.wait(LOOK_S):
            self.look()

    def _take(self, server: _Watched, call: Future[Any]) -> None:
        error = call.exception()
        if error is None:
            before, server.pid = server.pid, int(call.result())
            if not server.is_down and before not in {0, server.pid}:  # a death that no call of ours met
                self._found.put(ReplayChange(server.who, self._cause(before)))
                server.is_down = True
            if server.is_down:
                self._found.put(ReplayChange(server.who))
            server.is_down = False
            server.ask("watch")
        elif isinstance(error, ActorDiedError) or server.is_down:
            server.call = None
        else:
            self._died(server, self._cause(server.pid))

    def _died(self, server: _Watched, cause: str) -> None:
        self._found.put(ReplayChange(server.who, cause))
        server.is_down = True
        server.ask("health")  # answered as soon as it is up again and has opened its directory

    def _end(self, server: _Watched) -> None:
        """Kill a server that is silent; Ray starts another."""
        silent_s = server.looks * LOOK_S
        if not (self._are_here and _kill(server.pid)):  # of another machine: Ray's own way takes longer
            ray.kill(server.handle, no_restart=False)
        self._died(server, f"it gave no answer for {silent_s:.0f} s{self._occasion}")

    def _cause(self, pid: int) -> str:
        return describe_exit("connection error", pid, self._logs)


def _kill(pid: int) -> bool:
    """Kill a replay's process on this machine; return False if there is none of this number."""
    try:
        if not pid or "ray::ReplayServer" not in Path(f"/proc/{pid}/cmdline").read_text():
            return False
        os.kill(pid, signal.SIGKILL)
    except OSError:
        return False
    return True
