"""`dreamfleet eval`: plays episodes with a run's policy, and says how they went."""

from __future__ import annotations

import itertools
import json

import numpy as np

from dreamfleet.actors.collector import EpisodeResult
from dreamfleet.actors.environment_batch import EnvironmentFailedError
from dreamfleet.actors.evaluator import play_episodes
from dreamfleet.common.acting.make_policy import make_policy
from dreamfleet.common.errors import UserError
from dreamfleet.common.video import write_webm
from dreamfleet.deploy.run_directory import RunDirectory
from dreamfleet.learner.acting_weights import load_acting_weights


def evaluate(run: RunDirectory, episodes: int, seed: int, videos: int, max_steps: int, checkpoint: str) -> int:
    """Play episodes, print each as it ends, write results and videos, and return the exit code.

    Args:
        run: whose environment and policy are used.
        episodes: how many to play.
        seed: of the first episode.
        videos: how many episodes, from the first on, are filmed.
        max_steps: environment steps after which an episode is cut; 0 never cuts one.
        checkpoint: "newest" or "best"; a run that acts by chance needs none.

    Raises:
        UserError: if there is no checkpoint, it does not fit the run's settings, or the environment fails.
    """
    settings = run.settings()
    numbers = itertools.count()

    def announce(result: EpisodeResult, cut: bool) -> None:
        note = ", cut there by --max-steps" if cut else ""
        print(f"  episode {next(numbers)}: return {result.total_reward:.2f}, {result.length} steps{note}", flush=True)

    weights = None
    if settings.behaviour.kind != "random":
        weights = load_acting_weights(run.checkpoints, settings, checkpoint)

    of = f" of update {weights[0]}, without exploring" if weights else ""
    print(
        f"playing {episodes} episodes of {settings.env.id} with the policy '{settings.behaviour.kind}'{of}", flush=True
    )
    try:
        evaluation = play_episodes(
            settings.env,
            lambda spaces: make_policy(settings, spaces, 1, seed, explores=weights is None, weights=weights),
            episodes,
            seed,
            record=min(videos, episodes),
            max_steps=max_steps,
            announce=announce,
        )
    except EnvironmentFailedError as error:
        raise UserError(f"{error}.") from error
    folder = run.path / "eval"
    folder.mkdir(exist_ok=True)
    returns = np.array([episode.total_reward for episode in evaluation.episodes])
    lengths = np.array([episode.length for episode in evaluation.episodes])
    print(
        f"return {returns.mean():.2f} ± {returns.std():.2f} over {episodes} episodes, mean length {lengths.mean():.1f}"
    )
    results = {"policy": settings.behaviour.kind, "updates": weights[0] if weights else None, "seed": seed,
               "returns": returns.tolist(), "lengths": lengths.tolist(), "cut_short": evaluation.cut_short,
               "mean": float(returns.mean()), "std": float(returns.std())}  # fmt: skip
    (folder / "results.json").write_text(json.dumps(results, indent=1))
    for number, frames in enumerate(evaluation.videos):
        write_webm(folder / f"episode-{number}.webm", frames, evaluation.fps)
    if videos and not evaluation.videos:
        print("no video: the environment renders no frames and shows no pictures")
    print(f"written to {folder}")
    return 0
