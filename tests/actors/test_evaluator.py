"""Playing whole episodes: results, seeds and frames."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest

from dreamfleet.actors.environment_batch import EnvironmentFailedError
from dreamfleet.actors.evaluator import Evaluation, VideoRecorder, _record_frame, play_episodes
from dreamfleet.common.acting.policy import Policy, RandomPolicy
from dreamfleet.common.experience.spaces import Spaces
from dreamfleet.common.settings.environment import EnvironmentSettings
from dreamfleet.common.video import to_rgb


def random_policy(spaces: Spaces) -> Policy:
    return RandomPolicy(spaces.action, 1, 0)


def play(kwargs: dict[str, Any], episodes: int = 3, record: int = 0, max_steps: int = 0, **env: Any) -> Evaluation:
    settings = EnvironmentSettings(id="counting_environment:make", kwargs=kwargs, **{"image_size": 0} | env)
    return play_episodes(settings, random_policy, episodes, seed=1, record=record, max_steps=max_steps)


def test_results_are_returns_and_lengths_in_environment_steps() -> None:
    """Ten simulator steps repeated by two are five environment steps; rewards sum to 55."""
    evaluation = play({"length": 10}, action_repeat=2)
    assert [(result.total_reward, result.length) for result in evaluation.episodes] == [(55.0, 5)] * 3
    assert evaluation.cut_short == 0
    assert evaluation.videos == []


def test_the_policy_sees_one_environment_and_where_episodes_begin() -> None:
    """Observations come as (1, *shape); is_first is true at an episode's first step alone."""
    firsts: list[bool] = []

    class Recording(RandomPolicy):
        def act(self, observations: Any, is_first: np.ndarray) -> np.ndarray:
            assert observations["count"].shape == (1, 4)
            assert bool(is_first[0]) == (observations["count"][0, 2] == 0)
            firsts.append(bool(is_first[0]))
            return super().act(observations, is_first)

    settings = EnvironmentSettings(id="counting_environment:make", kwargs={"length": 3}, image_size=0)
    play_episodes(settings, lambda spaces: Recording(spaces.action, 1, 0), 2, seed=1)
    assert firsts == [True, False, False] * 2


def test_each_episode_has_its_own_seed_whatever_went_before() -> None:
    """The same seed gives the same episodes; the second begins differently from the first."""
    settings = EnvironmentSettings(id="CartPole-v1")

    def starts(seed: int) -> list[bytes]:
        seen: list[bytes] = []

        class Recording(RandomPolicy):
            def act(self, observations: Any, is_first: np.ndarray) -> np.ndarray:
                if is_first[0]:
                    seen.append(observations["vector"].tobytes())
                return super().act(observations, is_first)

        play_episodes(settings, lambda spaces: Recording(spaces.action, 1, seed), 3, seed=5)
        return seen

    assert starts(0) == starts(1)
    assert len(set(starts(0))) == 3


def test_an_endless_episode_is_cut_short_when_asked() -> None:
    """After `max_steps` the episode counts as it is, and is said to be cut short."""
    evaluation = play({"length": 1000}, episodes=1, max_steps=7)
    assert evaluation.episodes[0].length == 7
    assert evaluation.cut_short == 1


def test_each_episode_is_announced_as_it_ends() -> None:
    """Before the next one begins, with its result and whether it was cut."""
    ended: list[tuple[int, bool]] = []
    starts: list[int] = []

    class Recording(RandomPolicy):
        def act(self, observations: Any, is_first: np.ndarray) -> np.ndarray:
            if is_first[0]:
                starts.append(len(ended))
            return super().act(observations, is_first)

    settings = EnvironmentSettings(id="counting_environment:make", kwargs={"length": 6}, image_size=0)
    for limit in (0, 4):
        play_episodes(
            settings, lambda spaces: Recording(spaces.action, 1, 0), 2, seed=1, max_steps=limit,
            on_episode=lambda result, cut: ended.append((result.length, cut)),
        )  # fmt: skip
    assert ended == [(6, False), (6, False), (4, True), (4, True)]
    assert starts == [0, 1, 2, 3]


def test_rendered_frames_are_recorded_of_the_first_episodes() -> None:
    """One frame for each moment from reset to end, in the environment's own picture, at its rate through the repeat."""
    evaluation = play({"length": 10}, record=2, action_repeat=2)
    assert [video.shape for video in evaluation.videos] == [(6, 213, 320, 3)] * 2
    assert evaluation.videos[0][:, 0, 0, 0].tolist() == [0, 2, 4, 6, 8, 10]
    assert evaluation.fps == 10


def test_a_policy_is_never_asked_of_what_is_not_finite() -> None:
    """An evaluation ends where a number is none, as collecting does."""
    with pytest.raises(EnvironmentFailedError, match=r"'count' is not finite: \["):
        play({"length": 10, "nan_count_at": 4})


@pytest.mark.parametrize(("image", "videos"), [(16, 1), (0, 0)])
def test_without_rendering_the_observed_picture_is_recorded(
    image: int, videos: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An environment that renders nothing shows what the policy sees, grown; one without pictures gives no video."""
    from counting_environment import CountingEnvironment

    monkeypatch.setattr(CountingEnvironment, "metadata", {"render_modes": []})
    evaluation = play({"length": 4, "image": image}, record=1)
    assert len(evaluation.videos) == videos
    for video in evaluation.videos:
        assert video.shape == (5, 320, 320, 3)
        assert video[:, 5, 5, 1].tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("channels", [1, 2, 4, 5])
def test_pictures_of_any_channels_are_filmed_as_dreams_draw_them(channels: int) -> None:
    """Of one or two channels the first as grey, of more the first three."""

    class Seen:
        render_mode = None

    picture = np.arange(16 * 16 * channels, dtype=np.uint8).reshape(16, 16, channels)
    recorder = VideoRecorder(side=16)
    _record_frame(Seen(), {"image": picture}, recorder)  # type: ignore[arg-type]
    assert recorder.frames is not None
    np.testing.assert_array_equal(recorder.frames[0], to_rgb(picture))


def test_a_render_that_fails_ends_the_film_and_not_the_episode(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is warned of once, and the returns are those without a recording."""
    from counting_environment import CountingEnvironment

    def render(self: CountingEnvironment) -> np.ndarray:
        raise RuntimeError("no display")

    plain = play({"length": 5})
    monkeypatch.setattr(CountingEnvironment, "render", render)
    monkeypatch.setattr(logging.getLogger("dreamfleet"), "propagate", True)
    evaluation = play({"length": 5}, record=1)
    assert evaluation.videos == []
    assert evaluation.episodes == plain.episodes
    assert caplog.text.count("render() failed: RuntimeError: no display") == 1


@pytest.mark.parametrize(("steps", "stride"), [(3, 1), (7, 1), (8, 2), (1000, 256)])
def test_a_film_of_any_length_has_few_frames_spread_evenly(steps: int, stride: int) -> None:
    """Fewer than twice as many as asked for, each `stride` steps after the one before, from first to last."""
    recorder = VideoRecorder(side=1, most=4)
    for step in range(steps):
        if recorder.is_due(step):
            recorder.add(np.full((1, 1, 3), step % 251, np.uint8))
    assert recorder.frames is not None
    assert recorder.stride == stride
    assert recorder.frames[:, 0, 0, 0].tolist() == [step % 251 for step in range(0, steps, stride)]
    assert len(recorder.frames) < 8
