"""Episodes that were played with a run's policy, and the files that show them."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from dreamfleet.actors.collector import EpisodeResult
from dreamfleet.actors.evaluator import Evaluation
from dreamfleet.common.video import write_webm


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
    say(f"return {result.mean:.2f} ± {result.std:.2f} over {len(result.returns)} episodes, {length}")
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
