"""The learning curve of one run, from its files: evaluation returns over steps, updates and time."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dreamfleet.common.errors import UserError
from dreamfleet.common.settings.schema import Settings
from dreamfleet.deploy.run_directory import RunDirectory, read_rows
from dreamfleet.deploy.state import read_state

AXES = ("simulator_steps", "env_steps", "updates", "run_seconds")
"""What a curve has for each of its returns. Seconds are the run's own, without the pauses between its starts."""


@dataclass(frozen=True)
class RunCurve:
    """A run's returns and where they were reached.

    Attributes:
        task: the environment's id.
        observed: "pixels", "vectors" or "", where that is not known.
        is_evaluated: whether the returns are of evaluations, or of training episodes, where the run has none.
        ended: how it ended: `finished`, or how far it came and why it went no further.
        points: `returns` and `AXES`, each (points,), ordered by steps; seconds may be nan.
    """

    directory: Path
    task: str
    observed: str
    is_evaluated: bool
    ended: str
    points: dict[str, np.ndarray]

    def at(self, axis: str, grid: np.ndarray, name: str = "returns") -> np.ndarray:
        """Return what lies on the straight lines between the points, nan before the first and after the last."""
        x, y = self.points[axis], self.points[name]
        known = np.isfinite(x) & np.isfinite(y)
        if not known.any():
            return np.full(grid.shape, np.nan)
        return np.interp(grid, x[known], y[known], left=np.nan, right=np.nan)

    def span(self, axis: str) -> tuple[float, float]:
        """Return where its first and its last point lie; nan if they have no such place."""
        x = self.points[axis][np.isfinite(self.points[axis])]
        return (float(x.min()), float(x.max())) if x.size else (np.nan, np.nan)

    @property
    def is_finished(self) -> bool:
        """Whether it did all that it was to do."""
        return self.ended == "finished"


def read_run_curve(run: RunDirectory) -> RunCurve | None:
    """Return a run's curve, or None if it has neither an evaluation nor a training episode yet.

    Raises:
        UserError: if its settings cannot be read.
    """
    settings = run.settings()
    rows, is_evaluated = _points(run.evaluations_file, "mean", settings), True
    if not rows:
        rows, is_evaluated = _points(run.metrics_file, "episode/return", settings), False
    if not rows:
        return None
    points = {name: np.array([row[name] for row in rows], float) for name in ("returns", *AXES)}
    return RunCurve(run.shown, settings.env.id, _observed(run, settings), is_evaluated, how_it_ended(run), points)


def how_it_ended(run: RunDirectory) -> str:
    """Return `finished`, or a clause with the state, how far the run came, and the reason."""
    state = read_state(run.path)
    if state is None:
        return "is of unknown state: there is no state.json"
    if state.state == "finished":
        return "finished"
    killed = state.reason_killed(time.time()) if state.state == "running" else ""
    made, wanted = state.counters.get("env_steps") or 0, state.counters.get("wanted/env_steps") or 0
    verb = "was killed" if killed else {"running": "is running", "stopped": "was stopped"}.get(state.state, "failed")
    reason = killed or state.reason
    return f"{verb} at {made:,.0f} of {wanted:,.0f} env steps" + (f": {reason}" if reason else "")


def _points(file: Path, name: str, settings: Settings) -> list[dict[str, float]]:
    """Return a file's points, the last of those at the same steps, ordered; rows that are torn are passed over."""
    found: dict[float, dict[str, float]] = {}
    with suppress(FileNotFoundError), file.open("rb") as lines:
        for row in read_rows(lines):
            value, steps, updates = (_number(row.get(one)) for one in (name, "env_steps", "updates"))
            if np.isfinite([value, steps, updates]).all():
                simulated = _number(row.get("simulator_steps", row.get("fleet/simulator_steps")))
                found[steps] = {
                    "returns": value,
                    "env_steps": steps,
                    "updates": updates,
                    "simulator_steps": simulated if np.isfinite(simulated) else steps * settings.env.action_repeat,
                    "run_seconds": _number(row.get("run_seconds")),
                }
    return [found[steps] for steps in sorted(found)]


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else np.nan


def _observed(run: RunDirectory, settings: Settings) -> str:
    if settings.env.observe != "own":
        return "pixels"
    with suppress(UserError):
        return "pixels" if run.spaces().images else "vectors"
    return ""
