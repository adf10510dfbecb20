"""The loop of a sweep: starts cells as there is room, takes note of how they end, and stops them all when asked to."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from dreamfleet.common.formatting import counted, format_duration
from dreamfleet.deploy.sweep.cell import Cell
from dreamfleet.deploy.sweep.report import Report

POLL_S = 0.2
STOP_WAIT_S = 140.0
"""A cell that has not ended so long after it was asked to is killed; a learner in an update may take two minutes."""

log = logging.getLogger("dreamfleet")


class Started(Protocol):
    """The process of a cell, wherever it runs."""

    said: str
    """Why there is no exit code of its own, "" if there is one."""

    def poll(self) -> int | None:
        """Return its exit code, negative for a signal, or None while it runs."""

    def stop(self) -> None:
        """Ask it to end in order: it writes a checkpoint first."""

    def kill(self) -> None:
        """End it at once."""


class Launcher(Protocol):
    """Starts cells' processes."""

    def has_room(self, cell: Cell, running: Sequence[Cell]) -> bool:
        """Whether a cell may be started beside those that run."""

    def start(self, cell: Cell) -> Started:
        """Start a cell's process."""

    def adopt(self, cell: Cell) -> Started:
        """Return the process of a cell that runs already."""


class Schedule:
    """Runs the cells that are not complete.

    Args:
        jobs: how many at once at most; None for as many as there is room for.
        is_stopped: whether somebody asked to stop.
    """

    def __init__(
        self,
        cells: Sequence[Cell],
        launcher: Launcher,
        report: Report,
        is_stopped: Callable[[], bool],
        jobs: int | None = None,
    ) -> None:
        self._waiting = [cell for cell in cells if cell.state not in ("complete", "running")]
        self._running: list[tuple[Cell, Started, float]] = []
        self._launcher, self._report, self._is_stopped, self._jobs = launcher, report, is_stopped, jobs
        for cell in self._waiting:  # one that failed is tried again
            cell.state, cell.cause = ("stopped", "") if cell.state == "failed" else (cell.state, cell.cause)
        for cell in cells:
            if cell.state == "running":
                log.info("%s runs already: it is left to its process and waited for", cell.name)
                self._running.append((cell, launcher.adopt(cell), time.time()))

    def run(self) -> None:
        """Return when every cell has ended, or all that ran have ended after a stop."""
        while self._running or (self._waiting and not self._is_stopped()):
            if self._is_stopped():
                self._stop_all()
                return
            self._collect(was_asked=False)
            self._start_some()
            self._show()
            time.sleep(POLL_S)
        self._show()

    def _start_some(self) -> None:
        for cell in list(self._waiting):
            if self._jobs is not None and len(self._running) >= self._jobs:
                return
            if self._is_stopped():
                return
            if self._launcher.has_room(cell, [one for one, *_ in self._running]):
                self._waiting.remove(cell)
                resumes = cell.run.config_file.is_file()
                began = time.time()
                self._running.append((cell, self._launcher.start(cell), began))
                cell.state = "running"
                verb = "resumes" if resumes else "starts"
                log.info("%s %s (%s); it prints to %s", cell.name, verb, cell.need.in_words(), cell.output_file)
                self._report.write(began)

    def _collect(self, was_asked: bool) -> None:
        """Take note of the cells whose processes have ended."""
        for entry in list(self._running):
            cell, started, began = entry
            code = started.poll()
            if code is None:
                continue
            self._running.remove(entry)
            cell.ended(code, was_asked, began, started.said)
            seconds = time.time() - began
            self._report.ended(cell, seconds)
            if cell.state == "failed":
                log.error("%s failed after %s: %s", cell.name, format_duration(seconds), cell.cause)
            else:
                log.info("%s is %s after %s", cell.name, cell.state, format_duration(seconds))

    def _stop_all(self) -> None:
        log.info("stopping %s, writing a checkpoint of each", counted(len(self._running), "cell"))
        for _, started, _ in self._running:
            started.stop()
        deadline = time.monotonic() + STOP_WAIT_S
        while self._running:
            self._collect(was_asked=True)
            if time.monotonic() > deadline:
                for cell, started, _ in self._running:
                    log.warning("%s has not ended within %.0f s and is killed", cell.name, STOP_WAIT_S)
                    started.kill()
                deadline += STOP_WAIT_S
            self._show()
            time.sleep(POLL_S)

    def _show(self) -> None:
        self._report.show([(cell, began) for cell, _, began in self._running], len(self._waiting))
