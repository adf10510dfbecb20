"""Cells as processes of this machine, several at a time by the cores, the memory and the GPUs that each takes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress

from dreamfleet.deploy.state import process_space, read_state
from dreamfleet.deploy.sweep.cell import Cell
from dreamfleet.deploy.sweep.need import Machine

PROGRAM = (sys.executable, "-m", "dreamfleet")


class LocalCells:
    """Starts cells on this machine.

    Args:
        jobs_said: whether the user said how many run at once: then that alone counts, but for the GPUs.
        pause_s: between two starts of cells with a Ray of their own, whose processes come up together.
    """

    def __init__(self, machine: Machine, inline: bool, jobs_said: bool = False, pause_s: float = 2.0) -> None:
        self._machine, self._inline, self._jobs_said = machine, inline, jobs_said
        self._pause_s = 0.0 if inline else pause_s
        self._start_due = 0.0
        self._gpus: dict[str, list[str]] = {}

    def has_room(self, cell: Cell, running: Sequence[Cell]) -> bool:
        """Whether a cell has room beside those that run, and the last one has had time to come up."""
        if time.monotonic() < self._start_due:
            return False
        if self._jobs_said and not cell.need.gpus:
            return True
        return self._machine.has_room(cell.need, [one.need for one in running])

    def start(self, cell: Cell) -> LocalProcess:
        """Start a cell's process; what it prints goes to its file."""
        self._start_due = time.monotonic() + self._pause_s
        taken = [gpu for name, gpus in self._gpus.items() for gpu in gpus if name != cell.name]
        self._gpus[cell.name] = self._machine.free_gpus(cell.need, taken)
        variables = child_variables(cell.need.threads, self._gpus[cell.name] if self._machine.gpus else None)
        cell.output_file.parent.mkdir(parents=True, exist_ok=True)
        with cell.output_file.open("ab") as printed:
            # In a session of its own: Ctrl-C reaches it once, through us.
            process = subprocess.Popen(  # noqa: S603
                [*PROGRAM, *cell.arguments(self._inline)], stdin=subprocess.DEVNULL, stdout=printed,
                stderr=subprocess.STDOUT, env=variables, start_new_session=True,
            )  # fmt: skip
        return LocalProcess(process, lambda: self._gpus.pop(cell.name, None))

    def adopt(self, cell: Cell) -> RunningElsewhere:
        """Return the process of a cell that was started by a sweep that was killed, or by hand."""
        return RunningElsewhere(cell)


class LocalProcess:
    """A process that was started here."""

    said = ""

    def __init__(self, process: subprocess.Popen[bytes], on_end: object) -> None:
        self._process, self._on_end = process, on_end

    def poll(self) -> int | None:
        """Return its exit code, or None while it runs."""
        code = self._process.poll()
        if code is not None and callable(self._on_end):
            self._on_end()
        return code

    def stop(self) -> None:
        """Send what Ctrl-C sends."""
        self._process.send_signal(signal.SIGINT)

    def kill(self) -> None:
        """End it and its group."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)


class RunningElsewhere:
    """A run that another process drives: known from its state.json alone."""

    said = ""

    def __init__(self, cell: Cell) -> None:
        self._cell = cell

    def poll(self) -> int | None:
        """Return 0 if it finished, 130 if it was stopped, 1 if it failed, -9 if it was killed; None while it runs."""
        state = read_state(self._cell.run.path)
        if state is None:
            return 1
        if state.state == "running":
            return -signal.SIGKILL if state.reason_killed(time.time()) else None
        return {"finished": 0, "stopped": 130}.get(state.state, 1)

    def stop(self) -> None:
        """Send what Ctrl-C sends, if it runs on this machine."""
        self._send(signal.SIGINT)

    def kill(self) -> None:
        """End it, if it runs on this machine."""
        self._send(signal.SIGKILL)

    def _send(self, number: int) -> None:
        state = read_state(self._cell.run.path)
        if state and state.state == "running" and state.process_space and state.process_space == process_space():
            with suppress(ProcessLookupError):
                os.kill(state.pid, number)


def child_variables(threads: int, gpus: Sequence[str] | None) -> dict[str, str]:
    """Return the variables of a cell's process: threads that leave the other cells their cores, and its GPUs.

    Args:
        gpus: those that it sees; None to leave that as it is.
    """
    variables = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    if gpus is not None:
        variables["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
    return variables
