"""The status of a run or a dataset, from its files alone: nothing is written or locked, no Ray or torch is imported.

The driver's state.json comes first; figures that it lacks come from the last rows of metrics.jsonl and from the
checkpoints' facts. Of a run that has no state.json it is not known how it ended.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat

from dreamfleet.common.errors import UserError
from dreamfleet.common.settings.schema import Settings
from dreamfleet.deploy.fleet.ledger import TrainRatio
from dreamfleet.deploy.run_directory import RunDirectory, read_rows
from dreamfleet.deploy.state import Deaths, RunState, WarningSummary, read_state, seconds_left
from dreamfleet.learner.checkpoints.files import best_of, merit_of, number_of

ROWS_TAIL_BYTES = 100_000
"""How much of the end of metrics.jsonl and evaluations.jsonl is read: some dozens of rows."""
QUIET_S = 60.0
"""Without a state.json, a run whose files are newer than this, or six of its rows' intervals, may still be running."""


class CheckpointStatus(BaseModel):
    """Facts of a checkpoint, and when it was written."""

    model_config = ConfigDict(strict=True)

    updates: int = Field(ge=0, lt=1 << 63)
    env_steps: int | None = Field(default=None, ge=0, lt=1 << 63)
    held_out_loss: FiniteFloat | None = None
    evaluation_return: FiniteFloat | None = None
    bytes: int | None = Field(default=None, ge=0, lt=1 << 63)
    dreamfleet: str | None = None
    saved_unix: float


class Checkpoints(BaseModel):
    """Those that have facts."""

    count: int
    newest: CheckpointStatus | None
    best: CheckpointStatus | None


class RunStatus(BaseModel):
    """The status of a run; what is not known is None or missing.

    Keys of `figures` are the names that scalars have in metrics.jsonl, beside `env_steps`, `updates`, `seconds_left`
    and `wanted/...`. `state` is one of state.json's, "killed" or "unknown". `disk_bytes` has the entries of the
    directory, the biggest first.
    """

    directory: str
    environment: str | None
    kind: str | None = None
    state: str
    reason: str
    origin: str = ""
    host: str | None = None
    pid: int | None = None
    dreamfleet: str | None = None
    started_unix: float | None = None
    updated_unix: float | None = None
    age_s: float | None = None
    figures: dict[str, Any]
    checkpoints: Checkpoints
    evaluation: dict[str, Any] | None
    replay_capacity_bytes: float | None
    disk_bytes: dict[str, int]
    complaints: WarningSummary = WarningSummary()
    deaths: Deaths = Deaths()
    complaint_about_config: str
    pictures: list[str]


def read_run_status(run: RunDirectory) -> RunStatus:
    """Return the status of a run or a dataset of any state."""
    now = time.time()
    settings, complaint = _settings(run)
    state = read_state(run.path)
    checkpoints = _checkpoints(run.checkpoints)
    driver = _of_state(state, now) if state else _without_state(run, settings, checkpoints.newest, now)
    wanted = _wanted(settings, driver["kind"]) if settings else {}
    return RunStatus(
        directory=str(run.path),
        environment=settings.env.id if settings else None,
        origin=_origin(settings) if settings else "",
        **driver,
        figures=_figures(run, wanted, state, checkpoints.newest),
        checkpoints=checkpoints,
        evaluation=_last_evaluation(run.evaluations_file),
        replay_capacity_bytes=settings.replay.capacity_gb * 1e9 if settings else None,
        disk_bytes=_disk(run.path),
        complaint_about_config=complaint,
        pictures=_newest_pictures(run.path),
    )


def _settings(run: RunDirectory) -> tuple[Settings | None, str]:
    """Return the settings, or None and why they cannot be read: those of another version may not fit this one."""
    try:
        return run.settings(), ""
    except UserError as error:
        return None, str(error)


def _origin(settings: Settings) -> str:
    """Return the run that this one began from, and its checkpoint, or nothing."""
    train = settings.train
    return f"{train.from_run}, checkpoint {train.from_checkpoint}" if train.from_run else ""


def _of_state(state: RunState, now: float) -> dict[str, Any]:
    """Return what state.json says of the process that drives the run; one that was killed cannot say so itself."""
    killed = state.reason_killed(now) if state.state == "running" else ""
    names = {"kind", "host", "pid", "dreamfleet", "started_unix", "updated_unix", "complaints", "deaths"}
    return state.model_dump(include=names) | {
        "state": "killed" if killed else state.state,
        "reason": killed or state.reason,
        "age_s": max(0.0, now - state.updated_unix),
    }


def _without_state(
    run: RunDirectory, settings: Settings | None, newest: CheckpointStatus | None, now: float
) -> dict[str, Any]:
    """Return what the files and their age say of a run that has no state.json."""
    updated = max((file.stat().st_mtime for file in (run.metrics_file, run.log_file) if file.exists()), default=None)
    allowed_s = max(QUIET_S, 6 * settings.records.log_every_s if settings else 0.0)
    if updated is not None and now - updated <= allowed_s:
        state, reason = "running", "there is no state.json; its files were written a short while ago"
    else:
        state, reason = "unknown", "there is no state.json: nothing is known of when it began and how it ended"
    return {
        "kind": "train" if newest else run.kind() or None,
        "state": state,
        "reason": reason,
        "dreamfleet": newest.dreamfleet if newest else None,
        "updated_unix": updated,
        "age_s": None if updated is None else max(0.0, now - updated),
    }


def _wanted(settings: Settings, kind: str | None) -> dict[str, float]:
    ratio = TrainRatio.of(settings)
    if settings.train.dataset:  # its steps, and so the updates that they allow, are not in the settings
        return {"wanted/ratio": ratio.ratio}
    if kind == "collect":
        return {"wanted/env_steps": ratio.env_steps}
    return {"wanted/env_steps": ratio.env_steps, "wanted/updates": ratio.updates, "wanted/ratio": ratio.ratio}


def _figures(
    run: RunDirectory, wanted: dict[str, float], state: RunState | None, newest: CheckpointStatus | None
) -> dict[str, Any]:
    saved = _known({"updates": newest.updates, "env_steps": newest.env_steps}) if newest else {}
    figures: dict[str, Any] = saved | wanted  # rows and state are mostly newer than the checkpoint
    counted, started = (state.counted_unix, state.started_unix) if state else (0.0, 0.0)
    for row in _last_rows(run.metrics_file):
        row_time = row.pop("time", None)
        row_time = 0.0 if row_time is None or isinstance(row_time, list) else row_time
        counted = max(counted, row_time)
        if row_time < started:  # of an earlier start the totals still hold; how fast it went and who waited does not
            row = {name: value for name, value in row.items() if not name.startswith("fleet/")}  # noqa: PLW2901
        figures |= _known(row)
    if state:
        figures |= _known(state.counters)
    if newest and newest.saved_unix > counted and newest.updates > (figures.get("updates") or 0):
        figures |= saved
    figures.setdefault("seconds_left", seconds_left(figures))
    return figures


def _known(figures: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in figures.items() if value is not None and not isinstance(value, list)}


def _last_rows(file: Path) -> list[dict[str, Any]]:
    """Return the last rows of a file of JSON lines, oldest first; torn lines are passed over."""
    with suppress(OSError), file.open("rb") as lines:
        lines.seek(max(0, lines.seek(0, os.SEEK_END) - ROWS_TAIL_BYTES))
        return read_rows(lines)
    return []


def _last_evaluation(file: Path) -> dict[str, Any] | None:
    """Return the last evaluation; its return is None if it was not finite."""
    for row in reversed(_last_rows(file)):
        returns = row.get("returns")
        if isinstance(returns, list) and all(isinstance(row.get(name), int) for name in ("env_steps", "updates")):
            return row | {name: None for name in ("mean", "std") if isinstance(row.get(name), list)}
    return None


def _checkpoints(directory: Path) -> Checkpoints:
    """Read the checkpoints' facts, no tensors. Damaged ones are passed over: the learner names them."""
    found: dict[int, CheckpointStatus] = {}
    for file in directory.glob("*.json"):
        if number_of(file.name, "json") is not None:
            with suppress(OSError, ValueError, TypeError, RecursionError):
                facts = json.loads(file.read_bytes()) | {"saved_unix": file.stat().st_mtime}
                checkpoint = CheckpointStatus.model_validate(facts)
                found[checkpoint.updates] = checkpoint
    best = best_of({updates: merit_of(checkpoint.model_dump()) for updates, checkpoint in found.items()})
    newest = max(found, default=-1)
    return Checkpoints(count=len(found), newest=found.get(newest), best=found.get(-1 if best is None else best))


def _disk(directory: Path) -> dict[str, int]:
    sizes = {entry.name: _size(Path(entry.path)) for entry in os.scandir(directory)}
    return dict(sorted(sizes.items(), key=lambda item: -item[1]))


def _size(path: Path) -> int:
    """Return the bytes of a file or of all files below; what vanishes meanwhile counts nothing."""
    with suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            return sum(_size(Path(entry.path)) for entry in os.scandir(path))
        return path.lstat().st_size
    return 0


def _newest_pictures(run: Path) -> list[str]:
    """Return the newest picture and video of training, the last dream, and the newest video of an evaluation."""
    newest: list[Path] = []
    with suppress(FileNotFoundError):  # one was removed meanwhile
        for pattern in ("pictures/*.png", "pictures/*.webm", "dream/dream.webm", "dream/dream.png", "eval/*.webm"):
            newest += sorted(run.glob(pattern), key=lambda file: file.stat().st_mtime)[-1:]
    return [str(file) for file in newest]
