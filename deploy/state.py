"""state.json: how the process that drives a run last described it; written by that process alone, read by anyone.

A driver that was killed cannot say so. A reader takes it for killed by this rule:

    in the same process space (same boot, same container)   its process is no longer there
    elsewhere                                               it wrote nothing for SILENCE_S, or six of its own intervals
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat

from dreamfleet import __version__
from dreamfleet.common.formatting import counted, shorten
from dreamfleet.common.process_log import LOGGER_NAME

STATE_NAME = "state.json"
LEAST_PAUSE_S = 5.0
"""Counters are written no more often than this, however often the driver beats."""
SILENCE_S = 60.0
"""How long a driver on another host may be silent; hosts' clocks may differ by some seconds."""
WARNINGS_KEPT = 3
DEATHS_KEPT = 20

_OF_A_START = ("fleet/", "seconds_left")
"""Begin the names of counters that hold for one start of a run: how fast it goes, and who waits."""

log = logging.getLogger(LOGGER_NAME)


_MOST = 1 << 63
Time = Annotated[float, Field(ge=0, le=1e11)]
"""Seconds since 1970, some thousand years at most."""


class LoggedWarning(BaseModel):
    """A warning or an error of the log; of a traceback, `text` has the first line and the last."""

    time: str
    level: str
    text: str


class WarningSummary(BaseModel):
    """How many warnings and errors this start logged, None if that is not known, and the last of them."""

    count: int | None = None
    last: list[LoggedWarning] = []


class Death(BaseModel):
    """A worker's end before its time: who it was, why, what it left, and how soon another took its place, if one has.

    `steps_in_doubt` were ordered from it and not acknowledged; `updates_again` were made since the last checkpoint.
    """

    time: str
    who: str
    node: str = ""
    cause: str
    steps_in_doubt: int = 0
    updates_again: int = 0
    replaced_after_s: float | None = None

    @staticmethod
    def now(who: str, cause: str, **known: Any) -> Death:
        """Return the death of this moment."""
        return Death(time=_times("at")["at"], who=who, cause=cause, **known)

    @property
    def left_in_words(self) -> str:
        """What it left in doubt, or nothing."""
        parts = [f"{counted(self.steps_in_doubt, 'step')} in doubt"] if self.steps_in_doubt else []
        parts += [f"{counted(self.updates_again, 'update')} to be made again"] if self.updates_again else []
        return ", ".join(parts)


class Deaths(BaseModel):
    """How many workers died since this start, and the last of them."""

    count: int = 0
    last: list[Death] = []


class RunState(BaseModel):
    """What state.json holds; fields with a default may be missing in the file of an earlier version.

    Each time is there in words, for people, and in seconds since 1970; `counted` is the counters' time.
    """

    model_config = ConfigDict(strict=True)

    format: Literal[1] = 1
    kind: str
    dreamfleet: str | None = None
    pid: int = Field(ge=0, lt=1 << 31)
    process_start: int | None = None
    process_space: str = ""
    host: str
    pause_s: float = Field(default=0.0, ge=0, le=1e9)
    started: str = ""
    started_unix: Time
    counters: dict[str, Annotated[int, Field(gt=-_MOST, lt=_MOST)] | FiniteFloat | None]
    counted: str = ""
    counted_unix: Time = 0.0
    state: Literal["running", "stopped", "finished", "failed"]
    reason: str
    complaints: WarningSummary = WarningSummary()
    deaths: Deaths = Deaths()
    updated: str = ""
    updated_unix: Time

    def reason_killed(self, now: float) -> str:
        """Return why a driver that says `running` must have been killed, or "" if it may well be running."""
        if self.process_space and self.process_space == process_space():
            start = process_start(self.pid)
            is_alive = start is not None and start == self.process_start
            return "" if is_alive else f"its process {self.pid} is gone"
        silent_s, allowed_s = now - self.updated_unix, max(SILENCE_S, 6 * self.pause_s)
        if silent_s <= allowed_s:
            return ""
        return f"it says running, but wrote nothing for {silent_s:.0f} s (up to {allowed_s:.0f} s would be usual)"


class StateWriter(logging.Handler):
    """Writes a run's state while the block runs, and at its end how it ended.

    The state is `running`, with the newest counters and the warnings and errors that are logged meanwhile; at the end
    `finished`, or `failed` with the exception that leaves the block, unless `stopped` was called. That the file cannot
    be written is logged once and ends nothing.

    Args:
        kind: the command: "train" or "collect".
        pause_s: seconds between two writes of the counters; the driver may beat more often.
        earlier: counters of the start before this one; its totals hold until there are newer ones.
    """

    def __init__(
        self, directory: Path, kind: str, pause_s: float, earlier: Mapping[str, int | float | None] | None = None
    ) -> None:
        super().__init__(logging.WARNING)
        self._file = directory / STATE_NAME
        self._pause_s = max(pause_s, LEAST_PAUSE_S)
        self._due = 0.0
        self._has_warned = False
        self._stop_reason = ""
        self._state = RunState(
            kind=kind,
            dreamfleet=__version__,
            pid=os.getpid(),
            process_start=process_start(os.getpid()),
            process_space=process_space(),
            host=socket.gethostname(),
            pause_s=self._pause_s,
            counters={name: value for name, value in (earlier or {}).items() if not name.startswith(_OF_A_START)},
            state="running",
            reason="",
            complaints=WarningSummary(count=0),
            updated_unix=0.0,
            **_times("started"),
        )

    def beat(self, counters: Mapping[str, Any]) -> None:
        """Record the newest counters; they are written every few seconds, and most calls return at once."""
        is_first = not self._state.counted_unix
        self._update(counters=dict(counters), **_times("counted"))
        if is_first or time.monotonic() >= self._due:
            self._write()

    def died(self, deaths: Deaths) -> None:
        """Write down at once who died and who was replaced."""
        self._update(deaths=deaths)
        self._write()

    def emit(self, record: logging.LogRecord) -> None:
        """Write down a warning or an error at once: the driver may be killed next. Deaths have a place of their own."""
        if os.getpid() != self._state.pid or getattr(record, "is_death", False):
            return  # an environment's forked process has this handler too
        self._add_warning(record.levelname, self.format(record))
        self._write()

    def stopped(self, reason: str) -> None:
        """Record that the run was asked to stop, and by what."""
        self._stop_reason = reason

    def __enter__(self) -> StateWriter:
        self._write()
        log.addHandler(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        log.removeHandler(self)
        if isinstance(error, KeyboardInterrupt):
            self._update(state="stopped", reason="Ctrl-C")
        elif error is not None:
            self._update(state="failed", reason=shorten(str(error)) or type(error).__name__)
            self._add_warning("ERROR", self._state.reason)
        elif self._stop_reason:
            self._update(state="stopped", reason=self._stop_reason)
        else:
            self._update(state="finished")
        self._write()
        self.close()

    def _update(self, **fields: Any) -> None:
        for name, value in fields.items():
            setattr(self._state, name, value)

    def _add_warning(self, level: str, text: str) -> None:
        first, *more = [line.strip() for line in text.splitlines() if line.strip()] or [""]
        warning = LoggedWarning(
            time=_times("at")["at"], level=level.lower(), text=shorten(" … ".join([first, *more[-1:]]))
        )
        old = self._state.complaints
        kept = [*old.last, warning][-WARNINGS_KEPT:]
        self._update(complaints=WarningSummary(count=(old.count or 0) + 1, last=kept))

    def _write(self) -> None:
        """Write under another name and rename, so that a reader finds the old or the new."""
        new = self._file.with_name(STATE_NAME + ".tmp")
        self.acquire()  # other threads may log
        try:
            self._due = time.monotonic() + self._pause_s
            self._update(**_times("updated"))
            new.write_text(self._state.model_dump_json(indent=1))  # numbers that are not finite become null
            new.replace(self._file)
        except OSError as error:
            has_warned, self._has_warned = self._has_warned, True
            if not has_warned:
                log.warning("%s cannot be written (%s): `dreamfleet status` will know less", self._file, error.strerror)
        finally:
            self.release()


def read_state(directory: Path) -> RunState | None:
    """Return what state.json says, or None if there is none that can be read."""
    with suppress(OSError, ValueError):
        return RunState.model_validate_json((directory / STATE_NAME).read_bytes())
    return None


def seconds_left(counters: Mapping[str, Any]) -> float | None:
    """Return the time left at present rates, the longer of collecting and training; None if no rate is known.

    Args:
        counters: as in state.json: NAME, wanted/NAME and fleet/NAME_per_s of env_steps and updates, where known.
    """
    left = []
    for name in ("env_steps", "updates"):
        missing = (counters.get(f"wanted/{name}") or 0) - (counters.get(name) or 0)
        rate = counters.get(f"fleet/{name}_per_s") or 0.0
        if missing > 0 and rate > 0:
            left.append(missing / rate)
    return max(left, default=None)


def process_start(pid: int) -> int | None:
    """Return when a process of this space started, in clock ticks since the boot, or None if there is none.

    It distinguishes a process from a later one with the same number.
    """
    with suppress(OSError, ValueError, IndexError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] in "ZX" else int(fields[19])
    return None


def process_space() -> str:
    """Return a name of the set of processes that this one can see: the boot and the PID namespace; "" if unknown."""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    return ""


def _times(name: str) -> dict[str, Any]:
    now = datetime.now(UTC)
    return {name: now.strftime("%Y-%m-%dT%H:%M:%SZ"), f"{name}_unix": round(now.timestamp(), 3)}
