"""The progress of a run: rates, who waits for whom, time left; and the console that shows it with the log."""

from __future__ import annotations

import logging
import shutil
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from dreamfleet.common.formatting import format_duration
from dreamfleet.common.process_log import LOGGER_NAME
from dreamfleet.deploy.fleet.fleet_state import FleetState
from dreamfleet.deploy.state import seconds_left

WINDOW_S = 30.0
"""Rates and waits are averages over this time."""
BAR_WIDTH = 26
"""Columns of the progress bar, its percentage included."""


@dataclass(frozen=True)
class Reading:
    """The counters of one moment."""

    time_s: float
    env_steps: int
    updates: int
    actors_idle_s: float
    learner_idle_s: float


class Progress:
    """Reads the fleet's counters from time to time, and gives rates, waits and time left over a sliding window.

    Attributes:
        batch_wait_s: seconds that the learner waited for batches inside its orders; the caller adds to it.
    """

    def __init__(self, fleet: FleetState) -> None:
        self.batch_wait_s = 0.0
        self.begun = time.monotonic()
        self._fleet = fleet
        self._ledger = fleet.ledger
        self._readings: deque[Reading] = deque()
        self._first: Reading | None = None

    def begin_anew(self) -> None:
        """Forget all readings: the learner has loaded a checkpoint, whose updates were not made since the last one."""
        self._readings.clear()
        self._first = None

    def training_begins(self) -> None:
        """Begin the window anew: rates of the prefill, with no updates in it, would have hours seem to be left."""
        self._readings.clear()
        self.read()

    def read(self) -> None:
        """Take a reading and forget those that are older than the window."""
        now, roster = time.monotonic(), self._fleet.roster
        actors_idle_s = sum(slot.idle_until(now) for slot in roster.actors) / max(1, len(roster.actors))
        learner_idle_s = roster.learner.idle_until(now) + self.batch_wait_s
        reading = Reading(now, self._ledger.env_steps, self._ledger.updates, actors_idle_s, learner_idle_s)
        self._first = self._first or reading
        self._readings.append(reading)
        while len(self._readings) > 2 and now - self._readings[1].time_s > WINDOW_S:
            self._readings.popleft()

    def rates(self) -> dict[str, float]:
        """Return env steps/s, updates/s and the shares of time waited, over the window."""
        if len(self._readings) < 2:
            return {"env_steps_per_s": 0.0, "updates_per_s": 0.0, "actors_wait": 0.0, "learner_waits": 0.0}
        old, new = self._readings[0], self._readings[-1]
        seconds = max(new.time_s - old.time_s, 1e-9)
        return {
            "env_steps_per_s": (new.env_steps - old.env_steps) / seconds,
            "updates_per_s": (new.updates - old.updates) / seconds,
            # The mean over actors jumps when their number changes: hence the bounds.
            "actors_wait": min(1.0, max(0.0, (new.actors_idle_s - old.actors_idle_s) / seconds)),
            "learner_waits": min(1.0, (new.learner_idle_s - old.learner_idle_s) / seconds),
        }

    def overall(self) -> dict[str, float]:
        """Return the seconds and the rates of this start of the run as a whole."""
        self.read()
        assert self._first
        new, seconds = self._readings[-1], max(self._readings[-1].time_s - self._first.time_s, 1e-9)
        return {
            "seconds": new.time_s - self.begun,
            "env_steps_per_s": (new.env_steps - self._first.env_steps) / seconds,
            "updates_per_s": (new.updates - self._first.updates) / seconds,
        }

    def scalars(self) -> dict[str, float]:
        """Return the fleet's figures for TensorBoard."""
        rates, ledger, roster = self.rates(), self._ledger, self._fleet.roster
        versions = [slot.version for slot in roster.actors if slot.version >= 0]
        simulated = ledger.simulator.of(ledger.env_steps)
        simulator = {}
        if simulated is not None:
            per_s = rates["env_steps_per_s"] * simulated / max(1, ledger.env_steps)
            simulator = {"fleet/simulator_steps_per_s": per_s, "fleet/simulator_steps": simulated}
        return {
            "fleet/env_steps_per_s": rates["env_steps_per_s"],
            "fleet/updates_per_s": rates["updates_per_s"],
            "fleet/actors_wait_fraction": rates["actors_wait"],
            "fleet/learner_wait_fraction": rates["learner_waits"],
            "fleet/ratio": ledger.ratio.reached(ledger.env_steps, ledger.updates),
            "fleet/env_steps": ledger.env_steps,
            **simulator,
            "fleet/actors": roster.placed,
            "fleet/actors_wanted": len(roster.actors),
            "fleet/restarts": roster.restarts,
            "fleet/actor_weights_age_updates": max((ledger.updates - version for version in versions), default=0),
        }

    def counters(self) -> dict[str, float | None]:
        """Return what state.json says of the progress: the scalars, what is wanted, and the seconds left."""
        ledger, ratio = self._ledger, self._ledger.ratio
        wanted = {"wanted/env_steps": ratio.env_steps, "wanted/updates": ratio.updates, "wanted/ratio": ratio.ratio}
        made = {"env_steps": ledger.env_steps, "updates": ledger.updates, **ledger.simulator.to_state()}
        counters = {**self.scalars(), **wanted, **made}
        return {**counters, "seconds_left": seconds_left(counters)}

    def share(self) -> float:
        """Return how much of the run is done, in [0, 1]: the mean of the shares of steps and updates."""
        config, ledger, ratio = self._fleet.config, self._ledger, self._ledger.ratio
        pairs = [(ledger.env_steps, ratio.env_steps), (ledger.updates, ratio.updates)]
        if not config.learns:
            pairs = pairs[:1]
        elif config.actors == 0:  # trained on a dataset, whose steps are all there
            pairs = pairs[1:]
        shares = [min(1.0, done / wanted) for done, wanted in pairs if wanted]
        return sum(shares) / len(shares) if shares else 1.0

    def line(self, loss: float | None, left_first: bool = False) -> str:
        """Return the status line; the time left comes last, or first, where the line may be cut."""
        config, ledger, roster, figures = self._fleet.config, self._ledger, self._fleet.roster, self.scalars()
        ratio, left = ledger.ratio, self.counters()["seconds_left"]
        parts = [f"steps {ledger.env_steps:,}/{ratio.env_steps:,} ({figures['fleet/env_steps_per_s']:.0f}/s)"]
        if config.learns:
            idle = (figures["fleet/actors_wait_fraction"], figures["fleet/learner_wait_fraction"])
            parts += [
                f"updates {ledger.updates:,}/{ratio.updates:,} ({figures['fleet/updates_per_s']:.1f}/s)",
                f"ratio {figures['fleet/ratio']:.1f}/{ratio.ratio:g}",
            ]
            if config.acts_by_weights:
                parts.append(f"weights {figures['fleet/actor_weights_age_updates']:.0f} updates old")
            parts.append(f"waiting: actors {idle[0]:.0%}, learner {idle[1]:.0%}")
            if ledger.updates == 0 and ledger.env_steps < ratio.prefill:
                parts.insert(0, "prefill")
            preparing_s = roster.learner.preparing_s(time.monotonic())
            if preparing_s is not None:
                parts.append(f"compiling for {format_duration(preparing_s)}")
        if config.actors is None or roster.placed < len(roster.actors):
            parts.append(f"actors {roster.placed}/{len(roster.actors)}")
        if loss is not None:
            parts.append(f"loss {loss:.4g}")
        if left is not None:
            parts.insert(0 if left_first else len(parts), f"{format_duration(left)} left")
        return " | ".join(parts)


class Console(logging.Handler):
    """Prints the log and a status line without mixing them.

    Elsewhere than on a terminal each status is an ordinary line.

    Args:
        stream: where to print, stdout by default.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        super().__init__(logging.INFO)
        self._stream = stream or sys.stdout
        self._shown = 0
        self.is_terminal = self._stream.isatty()

    def emit(self, record: logging.LogRecord) -> None:
        """Print a log record, with its level if it is a warning or an error."""
        if getattr(record, "only_to_file", False):
            return
        prefix = "" if record.levelno < logging.WARNING else f"{record.levelname.lower()}: "
        self.clear()
        self._write(f"{prefix}{record.getMessage()}\n")

    def status(self, text: str, share: float) -> None:
        """Show the status and the share of the run that is done, in [0, 1]."""
        if not self.is_terminal:
            self._write(text + "\n")
            return
        self.clear()
        room = shutil.get_terminal_size().columns - 1  # in the last column some terminals begin a new line
        text = f"{self._bar(share)} {text}"[:room]
        self._write(text)
        self._shown = len(text)

    def _bar(self, share: float) -> str:
        from tqdm import tqdm

        layout = "{percentage:3.0f}%|{bar}|"
        return str(tqdm.format_meter(share, 1, 0, ncols=BAR_WIDTH, bar_format=layout, ascii=not self._has_blocks()))

    def _has_blocks(self) -> bool:
        try:
            "█▏".encode(self._stream.encoding or "ascii")
        except (UnicodeEncodeError, LookupError):
            return False
        return True

    def clear(self) -> None:
        """Remove the status line, so that what is printed next has a line of its own."""
        if self._shown:
            self._write("\r" + " " * self._shown + "\r")
            self._shown = 0

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()


class _LogFile(logging.FileHandler):
    """The log's file; that it cannot be written, as on a full disk, is said once on the terminal and ends nothing."""

    _has_complained = False

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (logging's name)
        """Say it; logging would print a traceback for each record."""
        del record
        if not self._has_complained:
            self._has_complained = True
            error = sys.exc_info()[1]
            sys.stderr.write(f"warning: {self.baseFilename} cannot be written ({error}): records are missing there\n")

    def close(self) -> None:
        """Close the file; what it still held may not fit."""
        try:
            super().close()
        except OSError:
            self.handleError(logging.makeLogRecord({}))


@contextmanager
def open_log(console: Console, file: Path) -> Iterator[None]:
    """Log to the console and, with times, to a file, while the block runs."""
    logger = logging.getLogger(LOGGER_NAME)
    before = logger.level, logger.propagate
    to_file = _LogFile(file)
    formatter = logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%dT%H:%M:%SZ")
    formatter.converter = time.gmtime
    to_file.setFormatter(formatter)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logger.addHandler(console)
    logger.addHandler(to_file)
    try:
        yield
    finally:
        console.clear()
        logger.removeHandler(console)
        logger.removeHandler(to_file)
        to_file.close()
        logger.setLevel(before[0])
        logger.propagate = before[1]


@contextmanager
def quiet_log() -> Iterator[None]:
    """Print nothing of what is logged while the block runs, unless a log is open."""
    logger, nowhere = logging.getLogger(LOGGER_NAME), logging.NullHandler()
    logger.addHandler(nowhere)
    try:
        yield
    finally:
        logger.removeHandler(nowhere)
