"""`dreamfleet status DIR`: says how a run or a dataset stands, from its files alone, at any time."""

from __future__ import annotations

import json
import math
import shlex
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dreamfleet.common.errors import UserError, nearest
from dreamfleet.common.formatting import finite_or_none, format_bytes, format_duration
from dreamfleet.deploy.monitoring.run_status import standing
from dreamfleet.deploy.run_directory import RunDirectory

WIDTH = 12
"""Columns of the names on the left."""
TEXT_LENGTH = 300
"""So much of a warning is shown at most."""
_STATES = {
    "running": "running",
    "stopped": "stopped; `dreamfleet {command}` goes on",
    "finished": "finished",
    "failed": "failed; once mended, `dreamfleet {command}` goes on from the last checkpoint",
    "killed": "killed, or its host is lost; `dreamfleet {command}` goes on from the last checkpoint",
    "unknown": "of unknown state",
}


def status(run: RunDirectory, as_json: bool) -> int:
    """Print how a run stands and return 0, however that is.

    Args:
        run: a run or a dataset, of any state, on any file system that this machine sees.
        as_json: one JSON object instead of lines.

    Raises:
        UserError: if there is no run, or it may not be read.
    """
    _check_is_run(run)
    try:
        found = standing(run)
    except OSError as error:
        raise UserError(f"{run.shown} cannot be read: {error.strerror or error}.") from None
    if as_json:
        print(json.dumps(finite_or_none(found), indent=1, allow_nan=False))
    else:
        print("\n".join(describe(found, time.time())))
    return 0


def describe(found: dict[str, Any], now: float) -> list[str]:
    """Return the lines that tell a reader of what `standing` found.

    Args:
        found: what it returned.
        now: seconds since 1970.
    """
    lines = [*_head(found), ""]
    rows = [*_progress_rows(found), *_model_rows(found), *_fleet_rows(found), *_file_rows(found, now)]
    return lines + [f"{name:<{WIDTH}} {text}" for name, text in rows]


def _check_is_run(run: RunDirectory) -> None:
    path = run.path
    if run.config_file.is_file():
        return
    if not path.exists():
        siblings = [str(file.parent) for file in path.parent.glob("*/config.yaml")]
        raise UserError(f"{path} does not exist.{nearest(str(path), siblings)}")
    if not path.is_dir():
        raise UserError(f"{path} is a file; give the directory of a run or of a dataset.")
    inner = sorted(path.glob("*/config.yaml"), key=lambda file: file.stat().st_mtime)
    hint = f" The newest run in it is {inner[-1].parent}." if inner else ""
    raise UserError(f"{path} is neither a run nor a dataset: it holds no config.yaml.{hint}")


def _head(found: dict[str, Any]) -> Iterator[str]:
    """Yield what it is, how it is, since when and where."""
    directory = found["directory"]
    quoted = shlex.quote(directory)
    command = f"train --run {quoted}" if found["kind"] == "train" else f"collect --out {quoted}"
    of = f" of {found['environment']}" if found["environment"] else ""
    yield f"{'run' if found['kind'] == 'train' else 'dataset'} {directory}{of}: " + _STATES[found["state"]].format(
        command=command
    )
    if found["reason"]:
        yield f"  {found['reason']}"
    parts = []
    if found["started_unix"]:
        parts.append(f"started {_moment(found['started_unix'])}")
    if found["host"]:
        parts.append(f"on host {found['host']} as process {found['pid']}")
    if found["age_s"] is not None:
        verb = "last sign of life" if found["state"] in ("running", "killed", "unknown") else "ended"
        parts.append(f"{verb} {format_duration(found['age_s'])} ago")
    if parts:
        yield "  " + ", ".join(parts)


def _progress_rows(found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield how far it is, how fast, and who waits for whom."""
    figures, is_training = found["figures"], found["kind"] == "train"
    is_running = found["state"] == "running"
    left = figures.get("seconds_left")
    parts = [_share_of(figures, "env_steps", "env steps")]
    if is_training:
        parts.append(_share_of(figures, "updates", "updates"))
    if is_running and left:
        parts.append(f"{format_duration(left)} left")
    yield "progress", ", ".join(parts)
    if is_training and figures.get("fleet/ratio") is not None:
        yield "train ratio", f"{figures['fleet/ratio']:.1f} of {figures.get('wanted/ratio', math.nan):g}"
    steps, updates = figures.get("fleet/env_steps_per_s"), figures.get("fleet/updates_per_s")
    if steps is not None:
        of_updates = f", {updates:.2f} updates/s" if is_training and updates is not None else ""
        yield "rates", f"{steps:.1f} env steps/s{of_updates}" + ("" if is_running else " at last")
    actors, learner = figures.get("fleet/actors_wait_fraction"), figures.get("fleet/learner_wait_fraction")
    if is_training and actors is not None and learner is not None:
        yield "waiting", f"actors {actors:.0%} of the time, learner {learner:.0%}{_bottleneck(actors, learner)}"


def _bottleneck(actors: float, learner: float) -> str:
    """Return which side is too slow for the other, if one of them hardly ever waits and the other does."""
    if abs(actors - learner) < 0.2 or min(actors, learner) > 0.2:
        return ""
    slow, quick = ("learner", "actors") if actors > learner else ("actors", "learner")
    return f": the {slow} {'is' if slow == 'learner' else 'are'} what the {quick} wait{'s' * (quick == 'learner')} for"


def _model_rows(found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield how training goes, as far as figures tell."""
    figures = found["figures"]
    if figures.get("loss/total") is not None:
        parts = [f"{figures['loss/total']:.4g}"]
        parts += [f"{name} {figures[f'loss/{name}']:.4g}" for name in ("reconstruction", "kl", "reward", "continue")
                  if figures.get(f"loss/{name}") is not None]  # fmt: skip
        yield "loss", ", ".join(parts)
    if figures.get("staleness/mean") is not None:
        most = figures.get("staleness/max", math.nan)
        yield "staleness", f"mean {figures['staleness/mean']:.0f}, most {most:.0f} updates from acting to training"
    if figures.get("episode/return") is not None:
        length = figures.get("episode/length", math.nan)
        yield "episodes", f"return {figures['episode/return']:.4g}, length {length:.0f} steps (mean of the last ones)"
    if found["evaluation"]:
        last = found["evaluation"]
        result = f"return {last['mean']:.4g} ± {last['std']:.3g} over {len(last['returns'])} episodes"
        yield "evaluation", f"{result}, at {last['env_steps']:,} env steps, update {last['updates']:,}"


def _fleet_rows(found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield who works on it, and what the replay holds."""
    figures = found["figures"]
    alive, wanted, restarts = (figures.get(f"fleet/{name}") for name in ("actors", "actors_wanted", "restarts"))
    if alive is not None and found["state"] == "running":
        of_wanted = f" of {wanted:.0f}" if wanted is not None else ""
        yield "actors", f"{alive:.0f}{of_wanted} alive"
    if restarts:
        yield "replaced", f"{restarts:.0f} workers since this start; the log says why"
    if figures.get("replay/steps") is not None:
        parts = [f"{figures['replay/steps']:,.0f} steps"]
        stored, raw = figures.get("replay/bytes_stored"), figures.get("replay/bytes_raw")
        if stored:
            of_capacity = (
                f" of {format_bytes(found['replay_capacity_bytes'])}" if found["replay_capacity_bytes"] else ""
            )
            parts.append(f"{format_bytes(stored)}{of_capacity}")
            if raw:
                parts.append(f"{raw / stored:.1f} times smaller than raw")
        if figures.get("replay/shards", 1) != 1:
            parts.append(f"{figures['replay/shards']:.0f} shards")
        yield "replay", ", ".join(parts)


def _file_rows(found: dict[str, Any], now: float) -> Iterator[tuple[str, str]]:
    """Yield checkpoints, disk, complaints of the log, and where to look on."""
    newest, best = found["checkpoints"]["newest"], found["checkpoints"]["best"]
    if newest:
        age = format_duration(now - newest["saved_unix"])
        yield "checkpoint", f"at update {newest['updates']:,}, {age} ago{_judgement(newest)}"
        if best and best["updates"] != newest["updates"]:
            yield "best", f"at update {best['updates']:,}{_judgement(best)}"
    elif found["kind"] == "train":
        yield "checkpoint", "none yet"
    parts = [f"{name} {format_bytes(size)}" for name, size in found["disk_bytes"].items() if size >= 1000]
    yield "disk", f"{format_bytes(sum(found['disk_bytes'].values()))}: {', '.join(parts[:6])}"
    if found["complaint_about_config"]:
        yield "config.yaml", found["complaint_about_config"]
    complaints = found["complaints"]
    if complaints["count"]:
        yield "warnings", f"{complaints['count']} in {Path(found['directory']) / 'train.log'}, at last:"
        for entry in complaints["last"]:
            text = entry["text"] if len(entry["text"]) <= TEXT_LENGTH else entry["text"][: TEXT_LENGTH - 1] + "…"
            yield "", f"{entry['time'].replace('T', ' ').replace('Z', '')} {entry['level']}: {text}"
    for number, file in enumerate(found["pictures"]):
        yield "" if number else "pictures", file
    if found["kind"] == "train":
        yield "TensorBoard", f"tensorboard --logdir {shlex.quote(str(Path(found['directory']) / 'tensorboard'))}"


def _judgement(facts: dict[str, Any]) -> str:
    """Return how good a checkpoint was found to be: by its evaluation, else by its held-out loss."""
    if facts["evaluation_return"] is not None:
        return f", evaluation return {facts['evaluation_return']:.4g}"
    return "" if facts["held_out_loss"] is None else f", held-out loss {facts['held_out_loss']:.4g}"


def _share_of(figures: dict[str, Any], name: str, words: str) -> str:
    done, wanted = figures.get(name) or 0, figures.get(f"wanted/{name}")
    if not wanted:
        return f"{done:,.0f} {words}"
    return f"{done:,.0f} of {wanted:,.0f} {words} ({min(1.0, done / wanted):.0%})"


def _moment(unix: float) -> str:
    return datetime.fromtimestamp(unix, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
