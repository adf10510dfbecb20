"""`dreamfleet eval`: plays episodes with a run's policy, and says how they went."""

from __future__ import annotations

import json
import logging

import numpy as np

from dreamfleet.actors.evaluator import play_episodes
from dreamfleet.common.policy import make_policy
from dreamfleet.common.video import write_webm
from dreamfleet.deploy.run_directory import RunDirectory

log = logging.getLogger("dreamfleet")


def evaluate(run: RunDirectory, episodes: int, seed: int, videos: int) -> int:
    """Play episodes, print mean ± deviation of their returns, and write results and videos; return the exit code."""
    settings = run.settings()
    print(f"playing {episodes} episodes of {settings.env.id} with the policy '{settings.actors.policy}'", flush=True)
    evaluation = play_episodes(
        settings.env,
        lambda spaces: make_policy(settings.actors, spaces, 1, seed),
        episodes,
        seed,
        record=min(videos, episodes),
    )
    folder = run.path / "eval"
    folder.mkdir(exist_ok=True)
    returns = np.array([episode.total_reward for episode in evaluation.episodes])
    lengths = np.array([episode.length for episode in evaluation.episodes])
    for number, (total, length) in enumerate(zip(returns, lengths, strict=True)):
        print(f"  episode {number}: return {total:.2f}, {length} steps")
    print(
        f"return {returns.mean():.2f} ± {returns.std():.2f} over {episodes} episodes, mean length {lengths.mean():.1f}"
    )
    results = {"policy": settings.actors.policy, "seed": seed, "returns": returns.tolist(), "lengths": lengths.tolist(),
               "mean": float(returns.mean()), "std": float(returns.std())}  # fmt: skip
    (folder / "results.json").write_text(json.dumps(results, indent=1))
    for number, frames in enumerate(evaluation.videos):
        write_webm(folder / f"episode-{number}.webm", frames, evaluation.fps)
    if videos and not evaluation.videos:
        print("no video: the environment renders no frames and shows no pictures")
    print(f"written to {folder}")
    return 0
