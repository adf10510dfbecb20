"""Playing whole episodes, to see how well a policy does."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np

from dreamfleet.actors.actions import action_converter
from dreamfleet.actors.collector import EpisodeResult
from dreamfleet.actors.declared_bounds import check_finite
from dreamfleet.actors.environments import Environment, describe_spaces, make_environment
from dreamfleet.common.notes import Note
from dreamfleet.common.policy import Policy, make_policy
from dreamfleet.common.seeds import derive_seed
from dreamfleet.common.settings import EnvironmentSettings, Settings
from dreamfleet.common.spaces import Spaces

VIDEO_SIDE = 320
"""The longer side of a recorded frame, in pixels: what is bigger shrinks to it, observations grow to it."""
DEFAULT_FPS = 30.0


@dataclass
class Evaluation:
    """How some episodes went.

    Attributes:
        episodes: their results, in order.
        videos: for each recorded episode its frames (T, H, W, 3) in uint8, one per environment step.
        fps: frames per second at which they run as fast as the environment.
        cut_short: how many episodes were ended by `max_steps` and not by the environment.
    """

    fps: float
    episodes: list[EpisodeResult] = field(default_factory=list)
    videos: list[np.ndarray] = field(default_factory=list)
    cut_short: int = 0


@dataclass(frozen=True)
class EvaluationReport:
    """What an evaluation of published weights found.

    Attributes:
        version: of the weights.
        returns: of the episodes, in their order; `lengths` in environment steps.
        cut_short: episodes that were ended before the environment ended them.
        seconds: it took.
        notes: what the process logged meanwhile.
    """

    version: int
    returns: list[float]
    lengths: list[int]
    cut_short: int
    seconds: float
    notes: list[Note] = field(default_factory=list)


def evaluate_weights(settings: Settings, version: int, weights: np.ndarray) -> EvaluationReport:
    """Play the evaluation's episodes with published weights and without exploring; always from the same seeds.

    Raises:
        UserError: if the environment cannot be made.
    """
    seed = evaluation_seed(settings)
    begun = time.perf_counter()

    records = settings.records
    played = play_episodes(
        settings.env,
        lambda spaces: make_policy(settings, spaces, 1, seed, explores=False, weights=(version, weights)),
        records.evaluation_episodes,
        seed,
        max_steps=records.evaluation_steps,
    )
    return EvaluationReport(
        version,
        [episode.total_reward for episode in played.episodes],
        [episode.length for episode in played.episodes],
        played.cut_short,
        time.perf_counter() - begun,
    )


def evaluation_seed(settings: Settings) -> int:
    """Return the seed of a run's evaluations: of the policy's random numbers, and from which its episodes' come."""
    return derive_seed(settings.seed, "evaluation during training")


def reset_seed(seed: int, number: int) -> int:
    """Return the seed from which the environment begins an evaluation's episode of this number, from 0 on."""
    return derive_seed(seed, "evaluation", number) % 2**31


def play_episodes(
    settings: EnvironmentSettings,
    policy_factory: Callable[[Spaces], Policy],
    episodes: int,
    seed: int,
    record: int = 0,
    max_steps: int = 0,
    announce: Callable[[EpisodeResult, bool], None] | None = None,
) -> Evaluation:
    """Play episodes one after the other; episode number i always begins from the same seed, whatever went before it.

    Args:
        settings: which environment, and how it is wrapped.
        policy_factory: makes the policy, for one environment.
        episodes: how many.
        seed: from which each episode's seed is derived.
        record: of how many episodes, from the first on, the frames are kept: those the environment renders, or else its
            pictures as the policy sees them. An environment that has neither gives no video.
        max_steps: environment steps after which an episode is ended; 0 leaves it to the environment.
        announce: called as each episode ends, with its result and whether `max_steps` ended it.

    Raises:
        UserError: if the environment cannot be made.
    """
    env = make_environment(settings, render=record > 0)
    try:
        policy = policy_factory(describe_spaces(env))
        evaluation = Evaluation(float(env.metadata.get("render_fps", DEFAULT_FPS)) / settings.action_repeat)
        for number in range(episodes):
            frames: list[np.ndarray] | None = [] if number < record else None
            result, cut = _play(env, policy, reset_seed(seed, number), frames, max_steps)
            evaluation.episodes.append(result)
            evaluation.cut_short += cut
            if frames:
                evaluation.videos.append(np.stack(frames))
            if announce:
                announce(result, cut)
        return evaluation
    finally:
        env.close()


def _play(
    env: Environment, policy: Policy, seed: int, frames: list[np.ndarray] | None, max_steps: int
) -> tuple[EpisodeResult, bool]:
    """Play one episode, add its frames to `frames`, and return its result and whether `max_steps` ended it."""
    to_environment = action_converter(env.action_space)
    observation, _ = env.reset(seed=seed)
    total, length, ended = 0.0, 0, False
    while True:
        if frames is not None:
            frames += _frame(env, observation)
        if ended or (max_steps and length == max_steps):
            break
        batch = {name: value[None] for name, value in observation.items()}
        check_finite(batch)
        action = policy.act(batch, np.array([length == 0]))[0]
        observation, reward, terminated, truncated, _ = env.step(to_environment(action))
        total, length, ended = total + float(reward), length + 1, terminated or truncated
    return EpisodeResult(total, length), not ended


def _frame(env: Environment, observation: dict[str, np.ndarray]) -> list[np.ndarray]:
    """Return the frame (H, W, 3) to show for this moment, or nothing if there is none."""
    if env.render_mode == "rgb_array":
        return [_fit(np.asarray(_render(env)))]
    pictures = [value for value in observation.values() if value.dtype == np.uint8 and value.ndim == 3]
    shown = next((picture for picture in pictures if picture.shape[-1] in (1, 3)), None)
    return [] if shown is None else [_fit(np.broadcast_to(shown, (*shown.shape[:2], 3)))]


def _render(env: Environment) -> Any:
    return env.render()


def _fit(picture: np.ndarray) -> np.ndarray:
    """Return the picture with its longer side at `VIDEO_SIDE`; small ones grow without blurring."""
    height, width = picture.shape[:2]
    factor = VIDEO_SIDE / max(height, width)
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    kind = cv2.INTER_AREA if factor < 1 else cv2.INTER_NEAREST
    return cv2.resize(np.ascontiguousarray(picture, np.uint8), size, interpolation=kind)
