"""Evaluating a run: episodes played with its policy, and what is written about them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np

from dreamfleet.actors.environment_batch import EnvironmentFailedError
from dreamfleet.actors.environments.make import probe_environment
from dreamfleet.actors.evaluator import play_episodes
from dreamfleet.common.acting.make_policy import make_policy
from dreamfleet.common.errors import UserError
from dreamfleet.common.formatting import counted
from dreamfleet.deploy.run.prepare import Environment, check_same_spaces, start_settings
from dreamfleet.deploy.run.summary import EvaluationResult, say_each_episode, write_evaluation
from dreamfleet.deploy.run_directory import RunDirectory
from dreamfleet.learner.checkpoints.restore import load_acting_weights

log = logging.getLogger("dreamfleet")


def evaluate(
    directory: str | Path,
    environment: Environment | None = None,
    *,
    episodes: int = 5,
    seed: int = 1_000_000,
    videos: int = 1,
    max_steps: int = 10_000,
    checkpoint: str | int = "newest",
    say: Callable[[str], None] = log.info,
) -> EvaluationResult:
    """Play episodes with a run's policy, without exploring; write results and videos into the run.

    Args:
        directory: of the run, which may be training meanwhile.
        environment: another than the run's, which must show and take the same.
        seed: of the first episode.
        videos: how many episodes, from the first on, are filmed.
        max_steps: environment steps after which an episode is cut; 0 for never.
        checkpoint: "newest", "best" or a number of updates; a run that acts by chance needs none.
        say: called with a line as each episode ends.

    Raises:
        UserError: if there is no checkpoint, it does not fit the run's settings, or the environment fails.
    """
    if episodes < 1:
        raise UserError(f"episodes={episodes}: at least 1 is to be played.")
    run = RunDirectory(Path(directory)).existing()
    settings = start_settings(run.settings(), environment, run)
    if environment is not None:
        check_same_spaces(run, probe_environment(settings.env))
    kind = settings.behaviour.kind
    weights = load_acting_weights(run.checkpoints, settings, checkpoint) if settings.acts_by_weights else None
    of = f" of update {weights[0]}, without exploring" if weights else ""
    say(f"playing {counted(episodes, 'episode')} of {settings.env.id} with the policy '{kind}'{of}")
    try:
        found = play_episodes(
            settings.env,
            lambda spaces: make_policy(settings, spaces, 1, seed, explores=weights is None, weights=weights),
            episodes,
            seed,
            record=min(videos, episodes),
            max_steps=max_steps,
            on_episode=say_each_episode(say),
        )
    except EnvironmentFailedError as error:
        raise UserError(f"{error}.") from error
    result = EvaluationResult(
        kind,
        updates=weights[0] if weights else None,
        seed=seed,
        returns=[episode.total_reward for episode in found.episodes],
        lengths=[episode.length for episode in found.episodes],
        cut_short=found.cut_short,
        mean=float(np.mean([episode.total_reward for episode in found.episodes])),
        std=float(np.std([episode.total_reward for episode in found.episodes])),
        directory=run.path / "eval",
    )
    write_evaluation(result, found, videos > 0, say)
    return result
