"""What a visitor steers, without a server: dreams with branches and takes, and the agent in the real environment."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dreamer_run import train_small_dreamer
from steered_world import ACTIONS

import dreamfleet as df
from dreamfleet.actors.spaces.action_spaces import action_converter, describe_action
from dreamfleet.common.errors import UserError
from dreamfleet.common.experience.spaces import ActionSpec, ObservationSpec, Spaces
from dreamfleet.deploy.run_directory import RunDirectory
from dreamfleet.deploy.view.actions import checked_action
from dreamfleet.deploy.view.dream_session import DreamSession, start_of_take
from dreamfleet.deploy.view.moment import Moment
from dreamfleet.deploy.view.play_session import PlaySession
from dreamfleet.deploy.view.run_facts import spaces_facts
from dreamfleet.deploy.view.truth import PlayedTruth, RecordedTruth
from dreamfleet.deploy.view.viewed_model import ViewedModel


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return a small Dreamer's run on pictures, made where its environment can be imported."""
    folder = tmp_path_factory.mktemp("viewed")
    flags = ("--env.kwargs", "{length: 20, picture: true, image: 16}", "--env.image_size", "0")
    directory = train_small_dreamer(folder, *flags, "--train.env_steps", "200")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield directory


@pytest.fixture(scope="module")
def model(run: Path) -> ViewedModel:
    """Return its newest checkpoint's networks."""
    return ViewedModel(RunDirectory(run))


@pytest.fixture
def episode(run: Path) -> dict[str, np.ndarray]:
    """Return one of its whole episodes."""
    return next(df.Replay(run).episodes(whole=True))


def dream_of(model: ViewedModel, episode: dict[str, np.ndarray], at: int = 5, **options: Any) -> DreamSession:
    """Return a dream of an episode from one of its steps on."""
    return DreamSession(model, RecordedTruth(episode, at), {"episode": "0", "step": at}, **options)


def images_of(moment: Moment, role: str) -> list[bytes]:
    """Return the pictures of a role."""
    return [data for place, data in zip(moment.header["images"], moment.images, strict=True) if place["role"] == role]


def test_a_dream_of_recorded_actions_has_the_truth_beside_it(
    model: ViewedModel, episode: dict[str, np.ndarray]
) -> None:
    """Every recorded step is there, with its error and those of two guesses; after the episode nothing is recorded."""
    dream = dream_of(model, episode)
    ahead = len(episode["reward"]) - 6
    for number in range(1, ahead + 1):
        moment = dream.step("recorded")
        assert (moment.header["index"], moment.header["last"]) == (number, number)
        assert moment.header["true_reward"] == episode["reward"][5 + number]
        assert (
            len(images_of(moment, "truth")) == len(images_of(moment, "dream")) == len(images_of(moment, "error")) == 1
        )
        errors = [moment.header[name] for name in ("error", "error_last_frame", "error_mean_frame")]
        assert all(error >= 0 for error in errors)
        assert (moment.header["passed_baselines_at"] is not None) or errors[0] < min(errors[1:])
    assert moment.header["episode_over"]
    with pytest.raises(UserError, match="no action is recorded from here on"):
        dream.step("recorded")


def test_another_action_leaves_the_record(model: ViewedModel, episode: dict[str, np.ndarray]) -> None:
    """The truth is shown as long as it is known, and again once the visitor has gone back to it."""
    dream = dream_of(model, episode)
    other = (int(episode["action"][5]) + 1) % 3
    assert images_of(dream.step(other), "truth") == []
    assert dream.step(other).header["error"] is None
    assert len(images_of(dream.rewind(0), "truth")) == 1
    assert len(images_of(dream.step("recorded"), "truth")) == 1


def test_branches_and_takes(model: ViewedModel, episode: dict[str, np.ndarray]) -> None:
    """A branch forgets what lay beyond; a take gives the same dream, picture by picture."""
    dream = dream_of(model, episode, seed=7, futures=4, image_format="png")
    for action in (0, 1, 2, "policy"):
        dream.step(action)
    dream.rewind(2)
    dream.set(futures=9)
    first = dream.step(0)
    dream.set(samples=False)
    last = dream.step("policy")
    assert (last.header["index"], last.header["last"]) == (4, 4)
    assert len(images_of(first, "dream")) == 9
    assert len(images_of(first, "variance")) == 1
    take = json.loads(json.dumps(dream.save()))
    start, seed, futures, samples = start_of_take(take)
    assert (start["step"], seed, futures, samples) == (5, 7, 4, True)
    again = dream_of(model, episode, seed=seed, futures=futures, samples=samples, image_format="png")
    assert again.replay_take(take).images == last.images
    assert [figures["index"] for figures in again.path()] == [0, 1, 2, 3, 4]
    moments = [again.rewind(index).header for index in range(5)]
    assert again.path() == [{name: moment[name] for name in again.path()[0]} for moment in moments]
    assert again.rewind(3).images == first.images
    assert again.save() == take


def test_the_same_seed_gives_the_same_dream_and_another_does_not(
    model: ViewedModel, episode: dict[str, np.ndarray]
) -> None:
    """The noise is the seed's; modes have none."""

    def path(seed: int, samples: bool) -> list[Any]:
        dream = dream_of(model, episode, seed=seed, samples=samples)
        return [dream.step(1).header["state"]["chosen"] for _ in range(4)]

    assert path(1, samples=True) == path(1, samples=True)
    assert path(1, samples=True) != path(2, samples=True)


def test_what_nobody_can_do_is_one_sentence(model: ViewedModel, episode: dict[str, np.ndarray]) -> None:
    """Actions, moments and numbers of futures that there are not."""
    dream = dream_of(model, episode)
    for action, words in [(3, "one of 0 to 2"), ("jump", "no action"), ([1], "no action"), (float("nan"), "no action")]:
        with pytest.raises(UserError, match=words):
            dream.step(action)
    with pytest.raises(UserError, match="moments 0 to 0"):
        dream.rewind(1)
    with pytest.raises(UserError, match="1, 4, 9, 16"):
        dream.set(futures=3)
    for take in (
        {},
        {"format": 2},
        {"format": 1, "start": 1, "seed": 0, "futures": 1, "samples": True, "steps": []},
        [],
    ):
        with pytest.raises(UserError, match="take"):
            start_of_take(take)


def test_reals_are_clipped_to_their_bounds() -> None:
    """Sliders and sticks may overshoot."""
    spec = ActionSpec("box", (2,), (-1.0, 0.0), (1.0, 2.0), (2,))
    assert checked_action(spec, [-3, 1.5]).tolist() == [-1.0, 1.5]
    mixed = ActionSpec("mixed", (3,), (-1.0,), (1.0,))
    assert checked_action(mixed, [2, 9]).tolist() == [2.0, 1.0]


@pytest.mark.parametrize("kind", sorted(ACTIONS))
def test_what_the_page_sends_is_an_action_of_any_space(kind: str) -> None:
    """The page knows choices and bounds, and sends one flat list, whatever the space's shape and nesting."""
    space = ACTIONS[kind]
    spec = describe_action(space)
    known = spaces_facts(Spaces((ObservationSpec("x", (1,), "float32"),), spec))["actions"]
    reals = [low if high is None else high for low, high in zip(known["low"], known["high"], strict=True)]
    chosen = [count - 1 for count in known["choices"]]
    sent: Any = chosen[0] if known["kind"] == "discrete" else [*chosen, *reals]
    stored = checked_action(spec, json.loads(json.dumps(sent)))
    assert stored.reshape(-1).tolist() == [*chosen, *reals]
    assert space.contains(action_converter(space)(stored))
    with pytest.raises(UserError, match="is no action of this environment"):
        checked_action(spec, [[0.0]])


def test_a_dream_from_a_reset_is_stepped_beside_the_environment(run: Path, model: ViewedModel) -> None:
    """The environment takes the dreamed actions; a branch is played again from the reset."""
    truth = PlayedTruth(model.settings.env, model.spaces, seed=3)
    dream = DreamSession(model, truth, {"reset": 3}, image_format="png")
    one = images_of(dream.step(0), "truth")
    two = images_of(dream.step(1), "truth")
    dream.rewind(0)
    assert images_of(dream.step(2), "truth") == one  # the picture shows the number of the step alone
    assert images_of(dream.step(2), "truth") == two != one
    dream.close()


def test_the_agent_plays_and_is_taken_over(model: ViewedModel) -> None:
    """What it sees, believes and expects; a visitor's action is what the agent then remembers."""
    play = PlaySession(model, seed=5)
    moment = play.moment()
    assert [len(images_of(moment, role)) for role in ("real", "belief", "strip")] == [1, 1, 1]
    for action in ("policy", 0, "policy", 2):
        moment = play.step(action)
    assert (moment.header["index"], moment.header["action"]) == (4, 2)
    while not moment.header["episode_over"]:
        moment = play.step("policy")
    assert (moment.header["index"], moment.header["reward_sum"]) == (20, 210.0)
    moment = play.step("policy")
    assert (moment.header["index"], moment.header["episode"], moment.header["reward_sum"]) == (0, 1, 0.0)
    play.close()


def test_a_moment_travels_as_one_message(model: ViewedModel, episode: dict[str, np.ndarray]) -> None:
    """The header's length, the header in strict JSON, the pictures in its order."""
    moment = dream_of(model, episode, futures=4).step(0)
    moment.header["value"] = float("nan")
    message = moment.to_bytes()
    (length,) = struct.unpack("<I", message[:4])
    header = json.loads(message[4 : 4 + length])
    assert header["value"] is None
    assert 4 + length + sum(image["bytes"] for image in header["images"]) == len(message)
    assert message[4 + length :].startswith(b"\xff\xd8")


def test_a_checkpoint_can_be_named(run: Path) -> None:
    """By its number, or as newest or best; another is refused with those that there are."""
    newest = ViewedModel(RunDirectory(run)).updates
    assert ViewedModel(RunDirectory(run), str(newest)).updates == newest
    with pytest.raises(UserError, match=f"no checkpoint '7': there are .*{newest}"):
        ViewedModel(RunDirectory(run), "7")
