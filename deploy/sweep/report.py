"""What a sweep says of itself: a status line with the time left, a table at the end, and sweep.json."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from dreamfleet.common.formatting import counted, format_duration, table
from dreamfleet.deploy.compare.groups import SWEEP_NAME
from dreamfleet.deploy.monitoring.progress import Console
from dreamfleet.deploy.run_directory import RunDirectory, read_rows
from dreamfleet.deploy.state import read_state
from dreamfleet.deploy.sweep.cell import CLOCKS_S, Cell

TERMINAL_S = 1.0
"""Seconds between two status lines on a terminal, where they take no room."""
PAUSE_S = 30.0
"""Seconds between them elsewhere."""


class Report:
    """Shows and writes how far the cells are.

    Args:
        out: the sweep's folder, for sweep.json.
    """

    def __init__(self, cells: Sequence[Cell], out: Path, console: Console) -> None:
        self._cells, self._file, self._console = cells, out / SWEEP_NAME, console
        self._seconds: dict[str, list[float]] = {}  # of whole cells of this start, by variant
        self._due = 0.0

    def ended(self, cell: Cell, seconds: float) -> None:
        """Keep how long a cell took, if all of it was made since this start, and write sweep.json."""
        if cell.state == "complete":
            self._seconds.setdefault(cell.variant.name, []).append(seconds)
        self.write(time.time())

    def show(self, running: Sequence[tuple[Cell, float]], waiting: int) -> None:
        """Show the status line when it is due.

        Args:
            running: cells, and when each was started, in seconds since 1970.
        """
        now = time.monotonic()
        if now < self._due:
            return
        self._due = now + (TERMINAL_S if self._console.is_terminal else PAUSE_S)
        left, shares = [], []
        for cell, began in running:
            counters = _counters(cell, began)
            shares.append(share_done(counters))
            left.append(counters.get("seconds_left"))
        done = sum(cell.state in ("complete", "failed") for cell in self._cells)
        total = self._left(running, left)
        counts = Counter(cell.state for cell in self._cells)
        parts = [f"{done}/{len(self._cells)} cells", *([f"{counts['failed']} failed"] if counts["failed"] else [])]
        parts += [f"{cell.name} {share:.0%}" for (cell, _), share in zip(running, shares, strict=True)]
        parts += [f"{waiting} waiting"] if waiting else []
        if total is not None:
            parts.insert(0 if self._console.is_terminal else len(parts), f"{format_duration(total)} left")
        self._console.status(" | ".join(parts), (done + sum(shares)) / max(1, len(self._cells)))

    def write(self, now: float) -> None:
        """Write sweep.json, under another name first; that it does not fit on the disk ends nothing."""
        cells = [
            {"cell": cell.name, "state": cell.state, "cause": cell.cause, "environment": cell.settings.env.id}
            for cell in self._cells
        ]
        variants = list(dict.fromkeys(cell.variant.name for cell in self._cells))
        with suppress(OSError):
            unfinished = self._file.with_suffix(".tmp")
            unfinished.write_text(json.dumps({"variants": variants, "cells": cells, "updated_unix": now}, indent=1))
            unfinished.replace(self._file)

    def table(self) -> list[str]:
        """Return the table at the end: what became of each cell."""
        rows = [("cell", "env steps", "updates", "time", "last return", "")]
        for cell in self._cells:
            state = read_state(cell.run.path)
            counters = state.counters if state else {}
            steps, updates = (f"{counters.get(name) or 0:,.0f}" for name in ("env_steps", "updates"))
            end = f"failed: {cell.cause}" if cell.state == "failed" else cell.state
            seconds, last = last_figures(cell.run)
            rows.append((cell.name, steps, updates, seconds, last, end))
        return table(rows)

    def _left(self, running: Sequence[tuple[Cell, float]], left: Sequence[float | None]) -> float | None:
        """Return the time left: that of what runs, and of what waits as long as others took or will have taken."""
        now, known = time.time(), {name: list(seconds) for name, seconds in self._seconds.items()}
        for (cell, began), seconds in zip(running, left, strict=True):
            if seconds is not None:
                known.setdefault(cell.variant.name, []).append(now - began + seconds)
        states = {cell.name for cell, _ in running}
        waiting = [c for c in self._cells if c.name not in states and c.state not in ("complete", "failed")]
        return time_left(left, [expected(cell.variant.name, known) for cell in waiting])


def expected(variant: str, known: Mapping[str, Sequence[float]]) -> float | None:
    """Return how long a cell of a variant takes: the mean of those known of it, else of all variants; None of none."""
    own = known.get(variant) or [seconds for values in known.values() for seconds in values]
    return sum(own) / len(own) if own else None


def time_left(running: Sequence[float | None], waiting: Sequence[float | None]) -> float | None:
    """Return the time until all is done, if as many cells are at work all the time as now; None if it is not known."""
    seconds = [one for one in [*running, *waiting] if one is not None]
    if len(seconds) < len(running) + len(waiting) or not running:
        return None
    return max(sum(seconds) / len(running), *seconds)


def share_done(counters: Mapping[str, Any]) -> float:
    """Return how much of a run is done, in [0, 1]: the mean of the shares of steps and updates."""
    shares = [
        min(1.0, (counters.get(name) or 0) / counters[f"wanted/{name}"])
        for name in ("env_steps", "updates")
        if counters.get(f"wanted/{name}")
    ]
    return sum(shares) / len(shares) if shares else 0.0


def last_figures(run: RunDirectory) -> tuple[str, str]:
    """Return a run's time and the return of its last evaluation, in words; "–" for what it does not have."""
    row: dict[str, Any] = {}
    with suppress(OSError), run.evaluations_file.open("rb") as lines:
        row = (read_rows(lines) or [{}])[-1]
    seconds, mean = row.get("run_seconds"), row.get("mean")
    return (
        format_duration(seconds) if isinstance(seconds, int | float) else "–",
        f"{mean:.4g}" if isinstance(mean, int | float) else "–",
    )


def _counters(cell: Cell, began: float) -> dict[str, Any]:
    """Return what the cell's run says of its progress since this start."""
    state = read_state(cell.run.path)
    if state is None:
        return {}
    fresh = state.started_unix >= began - CLOCKS_S
    return {name: value for name, value in state.counters.items() if fresh or name != "seconds_left"}


def in_words(cells: Sequence[Cell]) -> str:
    """Return `12 cells: 3 complete, 1 failed, 8 new`."""
    counts = Counter(cell.state for cell in cells)
    return f"{counted(len(cells), 'cell')}: " + ", ".join(f"{count} {state}" for state, count in counts.items())
