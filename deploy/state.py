"""state.json: how the process that drives a run last said it stands; written by that process alone, read by anyone.

A driver that was killed cannot say so. Who reads takes it for killed by this rule:

    in the same process space (same boot, same container)   its process is no longer there
    elsewhere                                               it wrote nothing for SILENCE_S, or six of its own intervals
"""

from __future__ import annotations

import json
import logging
import os
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from dreamfleet import __version__
from dreamfleet.common.formatting import finite_or_none

STATE_NAME = "state.json"
FORMAT = 1
"""Version of the layout of state.json."""
LEAST_PAUSE_S = 5.0
"""The file is written no more often than this, however often the driver beats."""
SILENCE_S = 60.0
"""A driver seen from afar may be silent so long; hosts' clocks may differ by some seconds."""

log = logging.getLogger("dreamfleet")


class StateWriter:
    """Writes a run's state while the block runs: `running` with the newest counters, and at its end how it ended.

    The end is `finished`, or `failed` with the exception that leaves the block, unless `stopped` was called. That the
    file cannot be written is logged once and ends nothing.

    Args:
        directory: the run's or dataset's.
        kind: the command: "train" or "collect".
        pause_s: seconds between two writes; the driver may beat more often.
    """

    def __init__(self, directory: Path, kind: str, pause_s: float) -> None:
        self._file = directory / STATE_NAME
        self._pause_s = max(pause_s, LEAST_PAUSE_S)
        self._due = 0.0
        self._is_told = False
        self._stopped = ""
        self._state: dict[str, Any] = {
            "format": FORMAT,
            "kind": kind,
            "dreamfleet": __version__,
            "pid": os.getpid(),
            "process_start": process_start(os.getpid()),
            "process_space": process_space(),
            "host": socket.gethostname(),
            "pause_s": self._pause_s,
            "counters": {},
        } | _times("started")

    def beat(self, counters: Mapping[str, Any]) -> None:
        """Say that the run goes on, and how far it is; most calls return at once."""
        is_first = not self._state["counters"]
        self._state |= {"counters": finite_or_none(dict(counters)), **_times("counted")}
        if is_first or time.monotonic() >= self._due:
            self._write("running")

    def stopped(self, reason: str) -> None:
        """Note that the run was asked to stop, and by what."""
        self._stopped = reason

    def __enter__(self) -> StateWriter:
        self._write("running")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, KeyboardInterrupt):
            self._write("stopped", "Ctrl-C")
        elif error is not None:
            self._write("failed", str(error) or type(error).__name__)
        elif self._stopped:
            self._write("stopped", self._stopped)
        else:
            self._write("finished")

    def _write(self, state: str, reason: str = "") -> None:
        """Write under another name and rename, so that a reader finds the old or the new."""
        self._due = time.monotonic() + self._pause_s
        new = self._file.with_name(STATE_NAME + ".tmp")
        text = json.dumps({**self._state, "state": state, "reason": reason, **_times("updated")}, indent=1)
        try:
            new.write_text(text)
            new.replace(self._file)
        except OSError as error:
            if not self._is_told:
                log.warning("%s cannot be written (%s): `dreamfleet status` will know less", self._file, error.strerror)
            self._is_told = True


def read_state(directory: Path) -> dict[str, Any] | None:
    """Return what state.json says, or None if there is none that can be read."""
    try:
        state = json.loads((directory / STATE_NAME).read_bytes())
        needed = {"kind", "state", "reason", "pid", "host", "started_unix", "updated_unix", "counters"}
        return state if state["format"] == FORMAT and needed <= state.keys() else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def sign_of_death(state: Mapping[str, Any], now: float) -> str:
    """Return why a driver that says `running` must have been killed, or "" if it may well be running.

    Args:
        state: as `read_state` gave it.
        now: seconds since 1970.
    """
    if state.get("process_space") and state["process_space"] == process_space():
        start = process_start(state["pid"])
        alive = start is not None and start == state.get("process_start")
        return "" if alive else f"its process {state['pid']} is gone"
    silent_s = now - state["updated_unix"]
    allowed_s = max(SILENCE_S, 6 * state.get("pause_s", 0.0))
    if silent_s <= allowed_s:
        return ""
    return f"it says running, but wrote nothing for {silent_s:.0f} s (up to {allowed_s:.0f} s would be usual)"


def process_start(pid: int) -> int | None:
    """Return when a process of this space started, in clock ticks since the boot; None if there is none such.

    With it, a process that was given a dead one's number is not taken for it.
    """
    with suppress(OSError, ValueError, IndexError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] in "ZX" else int(fields[19])
    return None


def process_space() -> str:
    """Return what names the set of processes that this one can see: the boot and the PID namespace; "" if unknown."""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    return ""


def _times(name: str) -> dict[str, Any]:
    now = time.time()
    readable = datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {name: readable, f"{name}_unix": round(now, 3)}
