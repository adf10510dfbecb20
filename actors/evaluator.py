"""Playing whole episodes, to see how well a policy does."""

from __future__ import annotations

import logging
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import cv2
import numpy as np

from dreamfleet.actors.collector import EpisodeResult
from dreamfleet.actors.environment_batch import EnvironmentFailedError
from dreamfleet.actors.environments.make import Environment, describe_spaces, make_environment
from dreamfleet.actors.environments.user_code import cause_of, close_environment, flag_of, reward_of
from dreamfleet.actors.spaces.action_spaces import action_converter
from dreamfleet.actors.spaces.vectors import check_finite
from dreamfleet.common.acting.make_policy import make_policy
from dreamfleet.common.acting.policy import Policy
from dreamfleet.common.errors import UserError
from dreamfleet.common.experience.spaces import Spaces
from dreamfleet.common.process_log import LogRecord
from dreamfleet.common.seeds import derive_seed
from dreamfleet.common.settings.environment import EnvironmentSettings
from dreamfleet.common.settings.schema import Settings
from dreamfleet.common.video import encode_gif, to_rgb

DEFAULT_FPS = 30.0
VIDEO_SIDE = 320
"""The longer side of a video, in pixels: larger frames are shrunk to it, observations enlarged."""
GIF_SIDE, GIF_FRAMES = 128, 80
"""The longer side, and half the most frames, of an evaluation's GIF: 100 kB to 1 MB in TensorBoard."""

log = logging.getLogger(__name__)


class VideoRecorder:
    """Collects an episode's frames, their longer side `side` pixels, `stride` environment steps apart.

    Fewer than 2 · `most` frames are kept, or all if that is 0: at that number every second one is dropped, and the
    stride doubles.
    """

    def __init__(self, side: int = VIDEO_SIDE, most: int = 0) -> None:
        self.stride = 1
        self._side = side
        self._most = most
        self._is_stopped = False
        self._frames: list[np.ndarray] = []

    def is_due(self, step: int) -> bool:
        """Return whether the frame after this number of the episode's steps is to be added."""
        return not self._is_stopped and step % self.stride == 0

    def stop(self) -> None:
        """Take no more frames."""
        self._is_stopped = True

    def add(self, frame: np.ndarray) -> None:
        """Add a frame (H, W, 3) in uint8."""
        height, width = frame.shape[:2]
        factor = self._side / max(height, width)
        size = (max(1, round(width * factor)), max(1, round(height * factor)))
        interpolation = cv2.INTER_AREA if factor < 1 else cv2.INTER_NEAREST  # small frames grow without blurring
        self._frames.append(cv2.resize(np.ascontiguousarray(frame, np.uint8), size, interpolation=interpolation))
        if self._most and len(self._frames) == 2 * self._most:
            self._frames = self._frames[::2]
            self.stride *= 2

    @property
    def frames(self) -> np.ndarray | None:
        """The frames (T, H, W, 3) in uint8; None if there are none."""
        return np.stack(self._frames) if self._frames else None


@dataclass
class Evaluation:
    """The results of some episodes.

    Attributes:
        fps: environment steps per second of a video that plays at the environment's own speed.
        videos: the frames (T, H, W, 3) in uint8 of each recorded episode that showed anything.
        strides: environment steps from one frame to the next, of each video.
        cut_short: how many episodes were ended by `max_steps` and not by the environment.
    """

    fps: float
    episodes: list[EpisodeResult] = field(default_factory=list)
    videos: list[np.ndarray] = field(default_factory=list)
    strides: list[int] = field(default_factory=list)
    cut_short: int = 0


@dataclass(frozen=True)
class EvaluationReport:
    """The result of an evaluation of published weights.

    Attributes:
        lengths: of the episodes, in environment steps.
        cut_short: how many episodes were ended before the environment ended them.
        gif: the first episode as a GIF image; None where there is nothing to see.
    """

    version: int
    returns: list[float]
    lengths: list[int]
    cut_short: int
    seconds: float
    log_records: list[LogRecord] = field(default_factory=list)
    gif: bytes | None = None


class EvaluationStoppedError(Exception):
    """An evaluation was stopped before it had played all its episodes."""


def evaluate_weights(
    settings: Settings, version: int, weights: np.ndarray, is_stopping: Callable[[], bool] = lambda: False
) -> EvaluationReport:
    """Play the evaluation's episodes with published weights and without exploring; always from the same seeds.

    Raises:
        UserError: if the environment cannot be made.
        EnvironmentFailedError: if it fails.
        EvaluationStoppedError: at the first step at which `is_stopping` returns True.
    """
    seed = evaluation_seed(settings)
    start = time.perf_counter()
    played = play_episodes(
        settings.env,
        lambda spaces: make_policy(settings, spaces, 1, seed, explores=False, weights=(version, weights)),
        settings.records.evaluation_episodes,
        seed,
        record=1,
        max_steps=settings.records.evaluation_steps,
        make_recorder=lambda: VideoRecorder(GIF_SIDE, GIF_FRAMES),
        is_stopping=is_stopping,
    )
    return EvaluationReport(
        version,
        [episode.total_reward for episode in played.episodes],
        [episode.length for episode in played.episodes],
        played.cut_short,
        time.perf_counter() - start,
        gif=encode_gif(played.videos[0], played.fps / played.strides[0]) if played.videos else None,
    )


def evaluation_seed(settings: Settings) -> int:
    """Return the seed of a run's evaluations: of the policy's random numbers and of the episodes' seeds."""
    return derive_seed(settings.seed, "evaluation during training")


def reset_seed(seed: int, number: int) -> int:
    """Return the seed with which the environment begins an evaluation's episode of this number, from 0 on."""
    return derive_seed(seed, "evaluation", number) % 2**31


def play_episodes(
    settings: EnvironmentSettings,
    policy_factory: Callable[[Spaces], Policy],
    episodes: int,
    seed: int,
    record: int = 0,
    max_steps: int = 0,
    on_episode: Callable[[EpisodeResult, bool], None] | None = None,
    make_recorder: Callable[[], VideoRecorder] = VideoRecorder,
    is_stopping: Callable[[], bool] = lambda: False,
) -> Evaluation:
    """Play episodes one after the other; episode number i always begins from the same seed, whatever preceded it.

    Args:
        seed: from which each episode's seed is derived; see `reset_seed`.
        record: how many episodes, from the first on, are recorded: the frames that the environment renders, or else its
            pictures as the policy sees them. An environment that has neither gives no video.
        max_steps: environment steps after which an episode is ended; 0 leaves it to the environment.
        on_episode: called as each episode ends, with its result and whether `max_steps` ended it.
        is_stopping: called before each step; True stops the evaluation.

    Raises:
        UserError: if the environment cannot be made.
        EnvironmentFailedError: if it fails.
        EvaluationStoppedError: if `is_stopping` returned True.
    """
    env = make_environment(settings, render=record > 0)
    try:
        policy = policy_factory(describe_spaces(env))
        evaluation = Evaluation(float(env.metadata.get("render_fps", DEFAULT_FPS)) / settings.action_repeat)
        for number in range(episodes):
            recorder = make_recorder() if number < record else None
            try:
                result, cut = _play(env, policy, reset_seed(seed, number), recorder, max_steps, is_stopping)
            except (KeyboardInterrupt, EvaluationStoppedError, UserError):  # the first is Ctrl-C in an inline run
                raise
            except BaseException as error:
                raise EnvironmentFailedError(
                    f"environment '{settings.id}' failed in episode {number} of an evaluation: {cause_of(error)}"
                ) from error
            evaluation.episodes.append(result)
            evaluation.cut_short += cut
            if recorder is not None and recorder.frames is not None:
                evaluation.videos.append(recorder.frames)
                evaluation.strides.append(recorder.stride)
            if on_episode:
                on_episode(result, cut)
        return evaluation
    finally:
        close_environment(env, settings.id)


def _play(
    env: Environment,
    policy: Policy,
    seed: int,
    recorder: VideoRecorder | None,
    max_steps: int,
    is_stopping: Callable[[], bool],
) -> tuple[EpisodeResult, bool]:
    """Play one episode, and return its result and whether `max_steps` ended it."""
    to_environment = action_converter(env.action_space)
    observation, _ = env.reset(seed=seed)
    total, length, has_ended = 0.0, 0, False
    while True:
        if recorder is not None and recorder.is_due(length):
            _record_frame(env, observation, recorder)
        if has_ended or (max_steps and length == max_steps):
            return EpisodeResult(total, length), not has_ended
        if is_stopping():
            raise EvaluationStoppedError
        batch = {name: value[None] for name, value in observation.items()}
        check_finite(batch)
        action = policy.act(batch, np.array([length == 0]))[0]
        observation, reward, terminated, truncated, _ = env.step(to_environment(action))
        total, length = total + reward_of(reward), length + 1
        terminated, truncated = flag_of("terminated", terminated), flag_of("truncated", truncated)
        has_ended = terminated or truncated


def _record_frame(env: Environment, observation: dict[str, np.ndarray], recorder: VideoRecorder) -> None:
    """Record the rendered picture, or else an observed one, if there is any.

    A failure to render is no fault of the policy: it is a warning, and the episode continues without being recorded.
    """
    if env.render_mode == "rgb_array":
        os.environ.setdefault("XDG_RUNTIME_DIR", tempfile.gettempdir())  # otherwise SDL prints a harmless complaint
        try:
            recorder.add(np.asarray(env.render()))
        except Exception as error:  # noqa: BLE001 (a simulator's own, or its graphics library's)
            log.warning("the environment cannot be filmed: render() failed: %s: %s", type(error).__name__, error)
            recorder.stop()
        return
    picture = next((value for value in observation.values() if value.dtype == np.uint8 and value.ndim == 3), None)
    if picture is not None:
        recorder.add(to_rgb(picture))
