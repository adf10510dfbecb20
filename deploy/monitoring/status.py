"""`dreamfleet status DIR`: prints the status of a run or a dataset, from its files alone, at any time."""

from __future__ import annotations

import math
import shlex
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dreamfleet.common.errors import UserError
from dreamfleet.common.formatting import counted, format_bytes, format_duration
from dreamfleet.deploy.monitoring.run_status import CheckpointStatus, RunStatus, read_run_status
from dreamfleet.deploy.run_directory import RunDirectory

WIDTH = 12
"""Columns of the names on the left."""
DEATHS_SHOWN = 5
TEXT_LENGTH = 300
"""Characters of a warning that are shown at most."""
_STATES = {
    "running": "running",
    "stopped": "stopped; `dreamfleet {command}` resumes it",
    "finished": "finished",
    "failed": "failed; once the cause is removed, `dreamfleet {command}` resumes it from the last checkpoint",
    "killed": "killed, or its host is lost; `dreamfleet {command}` resumes it from the last checkpoint",
    "unknown": "of unknown state",
}

Rows = Iterator[tuple[str, str]]
"""The name and the text of each line."""


def status(run: RunDirectory, as_json: bool) -> int:
    """Print the status of a run or a dataset and return 0, whatever the status is.

    Raises:
        UserError: if there is no run, or it may not be read.
    """
    run.existing("")
    try:
        found = read_run_status(run)
    except OSError as error:
        raise UserError(f"{run.shown} cannot be read: {error.strerror or error}.") from None
    # Pydantic writes null for numbers that are not finite.
    print(found.model_dump_json(indent=1) if as_json else "\n".join(describe(found, time.time())))
    return 0


def describe(found: RunStatus, now: float) -> list[str]:
    """Return the lines for a reader; `now` is in seconds since 1970."""
    rows = [*_progress_rows(found), *_model_rows(found), *_fleet_rows(found), *_file_rows(found, now)]
    return [*_head(found), "", *(f"{name:<{WIDTH}} {text}" for name, text in rows)]


def _head(found: RunStatus) -> Iterator[str]:
    """Yield what it is, its state, since when and where."""
    quoted = shlex.quote(found.directory)
    is_dataset = found.kind == "collect"
    command = f"collect --out {quoted}" if is_dataset else f"train --run {quoted}"
    of = f" of {found.environment}" if found.environment else ""
    state = _STATES[found.state].format(command=command)
    yield f"{'dataset' if is_dataset else 'run'} {found.directory}{of}: {state}"
    if found.reason:
        yield f"  {found.reason}"
    parts = []
    if found.started_unix:
        started = datetime.fromtimestamp(found.started_unix, UTC)
        parts.append(f"started {started:%Y-%m-%d %H:%M:%S} UTC")
    if found.host:
        parts.append(f"on host {found.host} as process {found.pid}")
    if found.age_s is not None:
        verb = "ended" if found.state in ("finished", "stopped", "failed") else "last sign of life"
        parts.append(f"{verb} {format_duration(found.age_s)} ago")
    if parts:
        yield "  " + ", ".join(parts)


def _progress_rows(found: RunStatus) -> Rows:
    """Yield how far it is, how fast, and who waits for whom."""
    figures, is_training, is_running = found.figures, found.kind != "collect", found.state == "running"
    parts = [_share(figures, "env_steps", "env steps")]
    if is_training:
        parts.append(_share(figures, "updates", "updates"))
    if is_running and figures["seconds_left"]:
        parts.append(f"{format_duration(figures['seconds_left'])} left")
    yield "progress", ", ".join(parts)
    if found.origin:
        yield "begun from", found.origin
    if is_training and "fleet/ratio" in figures:
        yield "train ratio", f"{figures['fleet/ratio']:.1f} of {figures.get('wanted/ratio', math.nan):g}"
    if "fleet/env_steps_per_s" in figures:
        rates = f"{figures['fleet/env_steps_per_s']:.1f} env steps/s"
        if is_training and "fleet/updates_per_s" in figures:
            rates += f", {figures['fleet/updates_per_s']:.2f} updates/s"
        yield "rates", rates if is_running else f"{rates} at last"
    actors, learner = figures.get("fleet/actors_wait_fraction"), figures.get("fleet/learner_wait_fraction")
    if is_training and actors is not None and learner is not None:
        yield "waiting", f"actors {actors:.0%} of the time, learner {learner:.0%}{_bottleneck(actors, learner)}"


def _share(figures: dict[str, Any], name: str, words: str) -> str:
    done, wanted = figures.get(name) or 0, figures.get(f"wanted/{name}")
    if not wanted:
        return f"{done:,.0f} {words}"
    return f"{done:,.0f} of {wanted:,.0f} {words} ({min(1.0, done / wanted):.0%})"


def _bottleneck(actors: float, learner: float) -> str:
    """Return which side is too slow for the other, if one of them hardly ever waits and the other does."""
    if abs(actors - learner) < 0.2 or min(actors, learner) > 0.2:
        return ""
    if actors > learner:
        return ": the learner is what the actors wait for"
    return ": the actors are what the learner waits for"


def _model_rows(found: RunStatus) -> Rows:
    figures = found.figures
    if "loss/total" in figures:
        names = [name for name in ("reconstruction", "kl", "reward", "continue") if f"loss/{name}" in figures]
        parts = [f"{name} {figures[f'loss/{name}']:.4g}" for name in names]
        yield "loss", ", ".join([f"{figures['loss/total']:.4g}", *parts])
    if "staleness/mean" in figures:
        most = figures.get("staleness/max", math.nan)
        yield "staleness", f"mean {figures['staleness/mean']:.0f}, most {most:.0f} updates from acting to training"
    if "episode/return" in figures:
        length = figures.get("episode/length", math.nan)
        yield "episodes", f"return {figures['episode/return']:.4g}, length {length:.0f} steps (mean of the last ones)"
    if found.evaluation:
        last = found.evaluation
        mean, std = last.get("mean"), last.get("std")
        found_return = "not finite" if mean is None or std is None else f"{mean:.4g} ± {std:.3g}"
        result = f"return {found_return} over {counted(len(last['returns']), 'episode')}"
        yield "evaluation", f"{result}, at {last['env_steps']:,} env steps, update {last['updates']:,}"


def _fleet_rows(found: RunStatus) -> Rows:
    figures = found.figures
    if "fleet/actors" in figures and found.state == "running":
        of_wanted = f" of {figures['fleet/actors_wanted']:.0f}" if "fleet/actors_wanted" in figures else ""
        yield "actors", f"{figures['fleet/actors']:.0f}{of_wanted} alive"
    yield from _death_rows(found)
    if "replay/steps" not in figures:
        return
    parts = [f"{figures['replay/steps']:,.0f} steps"]
    stored, raw = figures.get("replay/bytes_stored"), figures.get("replay/bytes_raw")
    capacity = found.replay_capacity_bytes
    if stored:
        parts.append(format_bytes(stored) + (f" of {format_bytes(capacity)}" if capacity else ""))
        if raw:
            parts.append(f"{raw / stored:.1f} times smaller than raw")
    if figures.get("replay/shards", 1) != 1:
        parts.append(f"{figures['replay/shards']:.0f} shards")
    yield "replay", ", ".join(parts)


def _death_rows(found: RunStatus) -> Rows:
    deaths = found.deaths
    if deaths.count:
        shown = deaths.last[-DEATHS_SHOWN:]
        yield "lost", f"{counted(deaths.count, 'process')} since this start{', at last' * (deaths.count > len(shown))}:"
        for death in shown:
            where = f" (on {death.node})" if death.node else ""
            left = f"; {death.left_in_words}" if death.left_in_words else ""
            after = death.replaced_after_s
            until = f"; replaced after {after:.1f} s" if after is not None else "; not replaced yet"
            yield "", f"{_time(death.time)} {death.who}{where}: {_short(death.cause)}{left}{until}"


def _file_rows(found: RunStatus, now: float) -> Rows:
    newest, best = found.checkpoints.newest, found.checkpoints.best
    if newest:
        age = format_duration(now - newest.saved_unix)
        yield "checkpoint", f"at update {newest.updates:,}, {age} ago{_measured(newest)}"
        if best and best.updates != newest.updates:
            yield "best", f"at update {best.updates:,}{_measured(best)}"
    elif found.kind == "train":
        yield "checkpoint", "none yet"
    parts = [f"{name} {format_bytes(size)}" for name, size in found.disk_bytes.items() if size >= 1000]
    yield "disk", f"{format_bytes(sum(found.disk_bytes.values()))}: {', '.join(parts[:6])}"
    if found.complaint_about_config:
        yield "config.yaml", found.complaint_about_config
    yield from _warning_rows(found)
    for number, file in enumerate(found.pictures):
        yield "" if number else "pictures", file
    if found.kind != "collect":
        yield "TensorBoard", f"tensorboard --logdir {shlex.quote(str(Path(found.directory) / 'tensorboard'))}"


def _warning_rows(found: RunStatus) -> Rows:
    log, complaints = Path(found.directory) / "train.log", found.complaints
    if complaints.count is None:
        yield "warnings", f"not known: state.json does not have them, {log} may"
    elif complaints.count:
        yield "warnings", f"{complaints.count} in {log}, at last:"
    for entry in complaints.last:
        yield "", f"{_time(entry.time)} {entry.level}: {_short(entry.text)}"


def _time(text: str) -> str:
    return text.replace("T", " ").replace("Z", "")


def _short(text: str) -> str:
    return text if len(text) <= TEXT_LENGTH else text[: TEXT_LENGTH - 1] + "…"


def _measured(checkpoint: CheckpointStatus) -> str:
    if checkpoint.evaluation_return is not None:
        return f", evaluation return {checkpoint.evaluation_return:.4g}"
    return "" if checkpoint.held_out_loss is None else f", held-out loss {checkpoint.held_out_loss:.4g}"
