"""Playing whole episodes, to see how well a policy does."""

from __future__ import annotations

import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from dreamfleet.actors.collector import EpisodeResult
from dreamfleet.actors.environment_batch import EnvironmentFailedError
from dreamfleet.actors.environments.make import Environment, describe_spaces, make_environment
from dreamfleet.actors.environments.user_code import close_environment, describe, flag_of, reward_of
from dreamfleet.actors.film import SMALL_FRAMES, SMALL_SIDE, Film
from dreamfleet.actors.spaces.action_spaces import action_converter
from dreamfleet.actors.spaces.vectors import check_finite
from dreamfleet.common.acting.make_policy import make_policy
from dreamfleet.common.acting.policy import Policy
from dreamfleet.common.errors import UserError
from dreamfleet.common.experience.spaces import Spaces
from dreamfleet.common.process_log import LogRecord
from dreamfleet.common.seeds import derive_seed
from dreamfleet.common.settings.schema import EnvironmentSettings, Settings
from dreamfleet.common.video import encode_gif, to_rgb

DEFAULT_FPS = 30.0

log = logging.getLogger(__name__)


@dataclass
class Evaluation:
    """How some episodes went.

    Attributes:
        episodes: their results, in order.
        films: of the recorded episodes, as far as there was anything to see.
        fps: environment steps per second at which a film runs as fast as the environment.
        cut_short: how many episodes were ended by `max_steps` and not by the environment.
    """

    fps: float
    episodes: list[EpisodeResult] = field(default_factory=list)
    films: list[Film] = field(default_factory=list)
    cut_short: int = 0

    @property
    def videos(self) -> list[np.ndarray]:
        """The frames of each film, (T, H, W, 3) in uint8."""
        return [frames for film in self.films if (frames := film.frames) is not None]


@dataclass(frozen=True)
class EvaluationReport:
    """What an evaluation of published weights found.

    Attributes:
        version: of the weights.
        returns: of the episodes, in their order; `lengths` in environment steps.
        cut_short: episodes that were ended before the environment ended them.
        seconds: it took.
        log_records: what the process logged meanwhile.
        film: the first episode as a GIF image of at most `SMALL_SIDE` pixels; None where there is nothing to see.
    """

    version: int
    returns: list[float]
    lengths: list[int]
    cut_short: int
    seconds: float
    log_records: list[LogRecord] = field(default_factory=list)
    film: bytes | None = None


class EvaluationStoppedError(Exception):
    """An evaluation was asked to stop before it had played all its episodes."""


def evaluate_weights(
    settings: Settings, version: int, weights: np.ndarray, is_stopping: Callable[[], bool] = lambda: False
) -> EvaluationReport:
    """Play the evaluation's episodes with published weights and without exploring; always from the same seeds.

    Raises:
        UserError: if the environment cannot be made.
        EnvironmentFailedError: if it fails.
        EvaluationStoppedError: at the step after which `is_stopping` says so.
    """
    seed = evaluation_seed(settings)
    begun = time.perf_counter()

    records = settings.records
    played = play_episodes(
        settings.env,
        lambda spaces: make_policy(settings, spaces, 1, seed, explores=False, weights=(version, weights)),
        records.evaluation_episodes,
        seed,
        record=1,
        max_steps=records.evaluation_steps,
        make_film=lambda: Film(SMALL_SIDE, SMALL_FRAMES),
        is_stopping=is_stopping,
    )
    return EvaluationReport(
        version,
        [episode.total_reward for episode in played.episodes],
        [episode.length for episode in played.episodes],
        played.cut_short,
        time.perf_counter() - begun,
        film=_to_gif(played),
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
    make_film: Callable[[], Film] = Film,
    is_stopping: Callable[[], bool] = lambda: False,
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
        make_film: makes what takes an episode's frames.
        is_stopping: asked before each step whether to stop.

    Raises:
        UserError: if the environment cannot be made.
        EnvironmentFailedError: if it fails.
        EvaluationStoppedError: if `is_stopping` said so.
    """
    env = make_environment(settings, render=record > 0)
    try:
        policy = policy_factory(describe_spaces(env))
        evaluation = Evaluation(float(env.metadata.get("render_fps", DEFAULT_FPS)) / settings.action_repeat)
        for number in range(episodes):
            film = make_film() if number < record else None
            with _failures_named(settings.id, number):
                result, cut = _play(env, policy, reset_seed(seed, number), film, max_steps, is_stopping)
            evaluation.episodes.append(result)
            evaluation.cut_short += cut
            if film is not None and film.frames is not None:
                evaluation.films.append(film)
            if announce:
                announce(result, cut)
        return evaluation
    finally:
        close_environment(env, settings.id)


@contextmanager
def _failures_named(name: str, episode: int) -> Iterator[None]:
    """Have whatever the environment raises say where it was.

    Raises:
        EnvironmentFailedError: instead.
    """
    try:
        yield
    except (KeyboardInterrupt, EvaluationStoppedError, UserError):  # the first is Ctrl-C, where nobody else takes it
        raise
    except BaseException as error:
        raise EnvironmentFailedError(
            f"environment '{name}' failed in episode {episode} of an evaluation: {describe(error)}"
        ) from error


def _play(
    env: Environment, policy: Policy, seed: int, film: Film | None, max_steps: int, is_stopping: Callable[[], bool]
) -> tuple[EpisodeResult, bool]:
    """Play one episode, film it if there is a film, and return its result and whether `max_steps` ended it."""
    to_environment = action_converter(env.action_space)
    observation, _ = env.reset(seed=seed)
    total, length, ended = 0.0, 0, False
    while True:
        if film is not None and film.wants(length):
            _film(env, observation, film)
        if ended or (max_steps and length == max_steps):
            break
        if is_stopping():
            raise EvaluationStoppedError
        batch = {name: value[None] for name, value in observation.items()}
        check_finite(batch)
        action = policy.act(batch, np.array([length == 0]))[0]
        observation, reward, terminated, truncated, _ = env.step(to_environment(action))
        total, length = total + reward_of(reward), length + 1
        terminated, truncated = flag_of("terminated", terminated), flag_of("truncated", truncated)
        ended = terminated or truncated
    return EpisodeResult(total, length), not ended


def _film(env: Environment, observation: dict[str, np.ndarray], film: Film) -> None:
    """Have the film take what there is to see at this moment, if anything: the rendered picture, else an observed one.

    What cannot be rendered is no fault of the policy: it is told of, and the episode goes on without being filmed.
    """
    if env.render_mode == "rgb_array":
        os.environ.setdefault("XDG_RUNTIME_DIR", tempfile.gettempdir())  # else SDL complains of what does not matter
        try:
            film.take(np.asarray(env.render()))
        except Exception as error:  # noqa: BLE001 (a simulator's own, or its graphics library's)
            log.warning("the environment cannot be filmed: render() failed: %s: %s", type(error).__name__, error)
            film.stop()
        return
    picture = next((value for value in observation.values() if value.dtype == np.uint8 and value.ndim == 3), None)
    if picture is not None:
        film.take(to_rgb(picture))


def _to_gif(played: Evaluation) -> bytes | None:
    return encode_gif(played.videos[0], played.fps / played.films[0].stride) if played.films else None
