"""How a run or a dataset stands, read from its files alone: nothing is written or locked, no Ray or torch is imported.

What the driver wrote to state.json comes first; what that lacks, or all of it where it is missing, comes from the last
rows of metrics.jsonl, the checkpoints' facts, and the log.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dreamfleet.common.errors import UserError
from dreamfleet.common.settings.schema import Settings
from dreamfleet.deploy.fleet.train_ratio import TrainRatio
from dreamfleet.deploy.monitoring.run_log import RunLog
from dreamfleet.deploy.run_directory import RunDirectory
from dreamfleet.deploy.state import read_state, sign_of_death
from dreamfleet.learner.checkpoints.facts import best_of, merit_of

ROWS_TAIL_BYTES = 100_000
"""So much of the end of metrics.jsonl and evaluations.jsonl is read: some dozens of rows."""
QUIET_S = 60.0
"""Without a state.json, a run whose files are newer than this, or six of its rows' intervals, may still be running."""


def standing(run: RunDirectory) -> dict[str, Any]:
    """Return how a run stands, as plain data; what is not known is None or missing.

    Keys of `figures` are the names that scalars have in metrics.jsonl, beside `env_steps`, `updates`, `seconds_left`
    and `wanted/...`.
    """
    now = time.time()
    settings, complaint = _settings(run)
    log = RunLog(run.log_file)
    state = read_state(run.path)
    told = _told_state(state, now) if state else _guessed_state(run, settings, log, now)
    checkpoints = _checkpoints(run.checkpoints)
    return {
        "directory": str(run.path),
        "environment": settings.env.id if settings else None,
        **told,
        "figures": _figures(run, settings, state, checkpoints, told),
        "checkpoints": checkpoints,
        "evaluation": next(reversed(list(_last_rows(run.evaluations_file))), None),
        "replay_capacity_bytes": settings.replay.capacity_gb * 1e9 if settings else None,
        "disk_bytes": _disk(run.path),
        "complaints": log.complaints(),
        "complaint_about_config": complaint,
        "pictures": [str(file) for file in _newest_pictures(run)],
    }


def _settings(run: RunDirectory) -> tuple[Settings | None, str]:
    """Return the run's settings, or None and why they cannot be read: those of another version may not fit this one."""
    try:
        return run.settings(), ""
    except UserError as error:
        return None, str(error)


# How it is ------------------------------------------------------------------------------------------------------------


def _told_state(state: dict[str, Any], now: float) -> dict[str, Any]:
    """Return what state.json says of the process that drives the run, seen through the rule for killed ones."""
    word, reason = state["state"], state["reason"]
    death = sign_of_death(state, now) if word == "running" else ""
    return {
        "kind": state["kind"],
        "state": "killed" if death else word,
        "reason": death or reason,
        "host": state["host"],
        "pid": state["pid"],
        "dreamfleet": state.get("dreamfleet"),
        "started_unix": state["started_unix"],
        "updated_unix": state["updated_unix"],
        "age_s": max(0.0, now - state["updated_unix"]),
    }


def _guessed_state(run: RunDirectory, settings: Settings | None, log: RunLog, now: float) -> dict[str, Any]:
    """Return how the run seems to be from its log and the age of its files."""
    touched = [file.stat().st_mtime for file in (run.metrics_file, run.log_file) if file.exists()]
    updated = max(touched, default=None)
    word, reason = log.end()
    if not word and updated is not None:
        allowed_s = max(QUIET_S, 6 * settings.records.log_every_s if settings else 0.0)
        word = "running" if now - updated <= allowed_s else "killed"
        reason = "there is no state.json; judged by the age of metrics.jsonl and train.log"
    return {
        "kind": "train" if any(run.checkpoints.glob("*.json")) or log.mentions("learner: ") else "collect",
        "state": word or "unknown",
        "reason": reason or ("" if word else "it wrote neither state.json, metrics.jsonl nor train.log"),
        "host": None,
        "pid": None,
        "dreamfleet": log.version(),
        "started_unix": log.started_unix(),
        "updated_unix": updated,
        "age_s": None if updated is None else max(0.0, now - updated),
    }


# How far it is --------------------------------------------------------------------------------------------------------


def _figures(
    run: RunDirectory,
    settings: Settings | None,
    state: dict[str, Any] | None,
    checkpoints: dict[str, Any],
    told: dict[str, Any],
) -> dict[str, Any]:
    """Return the newest value of each figure."""
    figures: dict[str, Any] = {}
    newest = checkpoints["newest"]
    if newest:  # the least that is known; rows and state are newer
        figures |= {"updates": newest["updates"], "env_steps": newest.get("env_steps")}
    if settings:
        figures |= _wanted(settings, told["kind"])
    counted = state.get("counted_unix", 0.0) if state else 0.0
    for row in _last_rows(run.metrics_file):
        counted = max(counted, row.get("time", 0.0))
        if told["started_unix"] and row.get("time", 0) < told["started_unix"]:
            # Of an earlier start: how much there is still holds, how fast it went or who waited does not.
            row = {name: value for name, value in row.items() if not name.startswith("fleet/")}  # noqa: PLW2901
        figures |= {name: value for name, value in row.items() if value is not None}
    figures.pop("time", None)
    if state:
        figures |= {name: value for name, value in state["counters"].items() if value is not None}
    if newest and newest["saved_unix"] > counted and newest["updates"] > (figures.get("updates") or 0):
        figures |= {"updates": newest["updates"], "env_steps": newest.get("env_steps") or figures.get("env_steps")}
    if "seconds_left" not in figures:
        figures["seconds_left"] = _seconds_left(figures)
    return figures


def _wanted(settings: Settings, kind: str) -> dict[str, float]:
    """Return what the settings ask for."""
    ratio = TrainRatio.of(settings)
    if settings.train.dataset:  # how many steps that has, and so how many updates they allow, is not in the settings
        return {"wanted/ratio": ratio.ratio}
    if kind == "collect":
        return {"wanted/env_steps": ratio.env_steps}
    return {"wanted/env_steps": ratio.env_steps, "wanted/updates": ratio.updates, "wanted/ratio": ratio.ratio}


def _seconds_left(figures: dict[str, Any]) -> float | None:
    """Return the time left at the rates of the last row; None if they are not known or nothing is left."""
    left = []
    for name in ("env_steps", "updates"):
        amount = (figures.get(f"wanted/{name}") or 0) - (figures.get(name) or 0)
        rate = figures.get(f"fleet/{name}_per_s") or 0.0
        if amount > 0 and rate > 0:
            left.append(amount / rate)
    return max(left) if left else None


def _last_rows(file: Path) -> Iterator[dict[str, Any]]:
    """Yield the last rows of a file of JSON lines, oldest first; torn lines are passed over."""
    try:
        with file.open("rb") as rows:
            rows.seek(max(0, rows.seek(0, os.SEEK_END) - ROWS_TAIL_BYTES))
            lines = rows.read().splitlines()
    except OSError:
        return
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            yield row


# What is there --------------------------------------------------------------------------------------------------------


def _checkpoints(directory: Path) -> dict[str, Any]:
    """Return how many checkpoints have facts, and these of the newest and of the best; no tensors are read."""
    found = []
    for file in sorted(directory.glob("checkpoint-*.json")):
        if not re.fullmatch(r"checkpoint-\d+\.json", file.name):
            continue
        try:
            facts = json.loads(file.read_bytes())
            wanted = ("updates", "env_steps", "held_out_loss", "evaluation_return", "bytes", "dreamfleet")
            found.append({name: facts.get(name) for name in wanted} | {"saved_unix": file.stat().st_mtime})
        except (OSError, ValueError, AttributeError):  # dropped or damaged; the learner is who must tell of damage
            continue
    found = [facts for facts in found if isinstance(facts["updates"], int)]
    best = best_of({facts["updates"]: merit_of(facts) for facts in found})
    return {
        "count": len(found),
        "newest": max(found, key=lambda facts: facts["updates"], default=None),
        "best": next((facts for facts in found if facts["updates"] == best), None),
    }


def _disk(directory: Path) -> dict[str, int]:
    """Return the bytes of each entry of the directory, biggest first."""
    sizes = {entry.name: _size(Path(entry.path)) for entry in os.scandir(directory)}
    return dict(sorted(sizes.items(), key=lambda item: -item[1]))


def _size(path: Path) -> int:
    """Return the bytes of a file or of all files below; what vanishes meanwhile counts nothing."""
    try:
        if path.is_dir() and not path.is_symlink():
            return sum(_size(Path(entry.path)) for entry in os.scandir(path))
        return path.lstat().st_size
    except OSError:
        return 0


def _newest_pictures(run: RunDirectory) -> list[Path]:
    """Return the newest picture and video of training, the last dream, and the newest video of an evaluation."""
    newest = []
    for pattern in ("pictures/*.png", "pictures/*.webm", "dream/dream.webm", "dream/dream.png", "eval/*.webm"):
        newest += sorted(run.path.glob(pattern), key=_modified)[-1:]
    return newest


def _modified(file: Path) -> float:
    try:
        return file.stat().st_mtime
    except OSError:
        return 0.0
