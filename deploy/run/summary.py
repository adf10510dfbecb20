"""The summary at the end of a run, and the results of an evaluation: what was done, and where everything is."""

from __future__ import annotations

import itertools
import json
import logging
import os
import shlex
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from dreamfleet.actors.collector import EpisodeResult
from dreamfleet.actors.evaluator import Evaluation
from dreamfleet.common.errors import OBSTACLES, UserError, obstacle_in_words
from dreamfleet.common.formatting import counted, format_bytes, format_duration
from dreamfleet.common.video import write_webm
from dreamfleet.deploy.fleet.fleet_state import FleetState
from dreamfleet.deploy.monitoring.run_callbacks import RunCallbacks
from dreamfleet.deploy.run.dream_sequences import dream_of
from dreamfleet.deploy.run_directory import RunDirectory

log = logging.getLogger("dreamfleet")


def summarise_training(run: RunDirectory, fleet: FleetState, seen: RunCallbacks) -> None:
    """Dream once more of held-out sequences, and log what was done."""
    ledger = fleet.ledger
    lines = [f"env steps    {ledger.env_steps:,}{ledger.simulator.describe(ledger.env_steps)}"]
    lines.append(
        f"updates      {ledger.updates:,} (ratio {ledger.ratio.reached(ledger.env_steps, ledger.updates):.1f})"
    )
    for name in ("total", "reconstruction", "kl", "reward", "continue"):
        first, last = (metrics.get(f"loss/{name}") for metrics in (seen.first_metrics, seen.last_metrics))
        if first is not None and last is not None:
            lines.append(f"{'losses' if name == 'total' else '':<12} {name} {first:.4g} → {last:.4g}")
    if seen.progress:
        overall = seen.progress.overall()
        rates = f"{overall['env_steps_per_s']:.1f} env steps/s, {overall['updates_per_s']:.2f} updates/s"
        lines.append(f"rates        {rates}; {format_duration(overall['seconds'])} in all")
    lines += [*_replaced(fleet), *_dream_lines(run), f"run          {run.shown}"]
    if seen.last_picture:
        lines.append(f"picture      {seen.last_picture}")
    if seen.last_video:
        lines.append(f"             {seen.last_video}")
    lines.append(f"TensorBoard  {_tensorboard_command(run.shown / run.tensorboard.name)}")
    lines.append(f"view         {_command_beside('dreamfleet', 'view', str(run.shown))}")
    log.info("done:\n  %s", "\n  ".join(lines))


def summarise_collecting(run: RunDirectory, fleet: FleetState, seen: RunCallbacks) -> None:
    """Log what was collected, and the command that trains on it."""
    steps = fleet.ledger.env_steps
    lines = [f"env steps    {steps:,}{fleet.ledger.simulator.describe(steps)}"]
    held = int(seen.last_replay.get("steps", steps))
    if held < steps:
        cause = "the oldest were dropped, since an earlier start gave the replay too little room"
        log.warning("%s holds %d of the %d steps collected: %s", run.shown, held, steps, cause)
    if seen.last_replay.get("bytes_stored"):
        stored, raw = (seen.last_replay[name] for name in ("bytes_stored", "bytes_raw"))
        lines.append(f"stored       {format_bytes(stored)}, {raw / stored:.1f} times smaller than raw")
    if seen.progress:
        overall = seen.progress.overall()
        rate = f"{overall['env_steps_per_s']:.1f} env steps/s"
        lines.append(f"rate         {rate}; {format_duration(overall['seconds'])} in all")
    command = shlex.join(["dreamfleet", "train", "--dataset", str(run.shown), "--preset", "NAME"])
    lines += [*_replaced(fleet), f"dataset      {run.shown}", f"train on it  {command}"]
    log.info("done:\n  %s", "\n  ".join(lines))


def _replaced(fleet: FleetState) -> list[str]:
    restarts = fleet.roster.restarts
    return [f"replaced     {counted(restarts, 'process')}, see the log"] if restarts else []


def _dream_lines(run: RunDirectory) -> list[str]:
    try:
        dream = dream_of(run)
    except UserError as error:
        return [f"dream        none: {error}"]
    except OBSTACLES as error:
        return [f"dream        none: {obstacle_in_words(error)}."]
    return [f"dream        {dream.describe()}", *(f"             {file}" for file in dream.files)]


def _tensorboard_command(directory: Path) -> str:
    return _command_beside("tensorboard", "--logdir", str(directory))


def _command_beside(program: str, *arguments: str) -> str:
    """Return a command that a shell can run, also where the virtual environment is not activated."""
    beside = Path(sys.executable).with_name(program)
    near = os.path.relpath(beside)
    found = program if not beside.exists() else str(beside) if near.startswith("..") else near
    return shlex.join([found, *arguments])


@dataclass(frozen=True)
class EvaluationResult:
    """Episodes played with a run's policy; `cut_short` of them ended by `max_steps`; `updates` is None for chance."""

    policy: str
    updates: int | None
    seed: int
    returns: list[float]
    lengths: list[int]
    cut_short: int
    mean: float
    std: float
    directory: Path


def write_evaluation(result: EvaluationResult, found: Evaluation, is_filmed: bool, say: Callable[[str], None]) -> None:
    """Write results.json and the videos, and say where they are."""
    folder = result.directory
    folder.mkdir(exist_ok=True)
    written = {name: value for name, value in asdict(result).items() if name != "directory"}
    (folder / "results.json").write_text(json.dumps(written, indent=1))
    for number, frames in enumerate(found.videos):
        write_webm(folder / f"episode-{number}.webm", frames, found.fps)
    length = f"mean length {np.mean(result.lengths):.1f}"
    say(f"return {result.mean:.2f} ± {result.std:.2f} over {counted(len(result.returns), 'episode')}, {length}")
    if is_filmed and not found.videos:
        say("no video: the environment renders no frames and shows no pictures")
    say(f"written to {folder}")


def say_each_episode(say: Callable[[str], None]) -> Callable[[EpisodeResult, bool], None]:
    """Return what is called with each episode as it ends, and says how it went."""
    numbers = itertools.count()

    def announce(result: EpisodeResult, is_cut: bool) -> None:
        note = ", cut there by --max-steps" if is_cut else ""
        say(f"  episode {next(numbers)}: return {result.total_reward:.2f}, {result.length} steps{note}")

    return announce
