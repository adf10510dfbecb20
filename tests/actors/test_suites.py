"""The real suites: what they show, that a seed repeats them, that they end, are drawn and collected.

A suite's tests are skipped only where its extra is not installed, and those of pictures by MuJoCo also where this
machine has no library to draw with.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import gymnasium
import numpy as np
import pytest
from fresh_rendering import before_a_library_is_chosen
from patience import PATIENCE_S

from dreamfleet.actors.collector import build_collector
from dreamfleet.actors.environments import rendering
from dreamfleet.actors.environments.make import make_environment, probe_environment
from dreamfleet.common import process_log
from dreamfleet.common.errors import UserError
from dreamfleet.common.experience.chunk import decode_chunk, parse_header
from dreamfleet.common.experience.spaces import ObservationSpec
from dreamfleet.common.experience.steps import StepFormat
from dreamfleet.common.settings.environment import EnvironmentSettings
from dreamfleet.common.settings.resolve import resolve
from dreamfleet.common.settings.schema import Settings

ROOT = Path(__file__).resolve().parents[2]
PICTURE = (ObservationSpec("image", (64, 64, 3), "uint8"),)
WALKER = (
    ObservationSpec("height", (1,), "float32"),
    ObservationSpec("orientations", (14,), "float32"),
    ObservationSpec("velocity", (9,), "float32"),
)


@pytest.fixture
def not_chosen_yet() -> Iterator[None]:
    """Have the library chosen anew in a test, and as it was after it."""
    rendering.choice.cache_clear()
    yield
    rendering.choice.cache_clear()


@functools.cache
def cannot_draw() -> str:
    """Return why MuJoCo draws nothing on this machine, found out in a process of its own."""
    reason = run_alone(
        "from dreamfleet.actors.environments import rendering; print(rendering.choose_library())", MUJOCO_GL=None
    )
    return reason.strip()


def run_alone(program: str, **variables: str | None) -> str:
    """Return what a Python program prints, run with these environment variables; None takes one away."""
    environment = (
        os.environ | {"PYTHONPATH": str(ROOT / ".pkg")} | {k: v for k, v in variables.items() if v is not None}
    )
    for name in [name for name, value in variables.items() if value is None]:
        environment.pop(name, None)
    command = [sys.executable, "-c", program]
    done = subprocess.run(  # noqa: S603 (our own interpreter and text)
        command, env=environment, capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def need(module: str, extra: str, draws: bool = False) -> None:
    """Skip the test where the suite is not installed, or where nothing can be drawn though the test must."""
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"the extra '{extra}' is not installed")
    if draws and cannot_draw():
        pytest.skip(f"MuJoCo cannot draw here: {cannot_draw()}")


SUITES: dict[str, dict[str, Any]] = {
    "dmc_vision": {"needs": ("dm_control", "dmc", True), "shows": PICTURE, "env": {"action_repeat": 50}},
    "dmc_proprio": {"needs": ("dm_control", "dmc"), "shows": WALKER, "env": {"action_repeat": 50}},
    "atari100k": {"needs": ("ale_py", "atari"), "shows": PICTURE, "kwargs": {"max_num_frames_per_episode": 120}},
    "crafter": {"needs": ("crafter", "crafter"), "shows": PICTURE, "kwargs": {"length": 25, "area": [32, 32]}},
    "minigrid": {"needs": ("minigrid", "minigrid"), "shows": PICTURE, "kwargs": {"max_steps": 25}},
    "carracing": {"needs": ("Box2D", "box2d"), "shows": PICTURE, "env": {"time_limit": 12}},
}
"""For each suite's preset what it needs, what it shows, and what makes its episodes short."""
STEPS = 35
"""Steps that are collected of an environment: more than any of these episodes has."""
each_suite = pytest.mark.parametrize("preset", SUITES)


def short(preset: str, environments: int = 1) -> Settings:
    """Return the preset's settings with episodes of at most 50 steps, after skipping the test where it cannot run."""
    need(*SUITES[preset]["needs"])
    flags = [(f"env.{name}", json.dumps(value)) for name, value in SUITES[preset].get("env", {}).items()]
    flags += [(f"env.kwargs.{name}", json.dumps(value)) for name, value in SUITES[preset].get("kwargs", {}).items()]
    return resolve([preset], [*flags, ("actors.environments", str(environments))])


class Shelf:
    """A writer that keeps the chunks."""

    def __init__(self) -> None:
        self.records: list[bytes] = []

    def append(self, record: bytes) -> None:
        """Keep the record."""
        self.records.append(record)

    def flush(self, timeout_s: float) -> None:
        """Have nothing left to store."""


def collect(settings: Settings) -> dict[str, np.ndarray]:
    """Return the first environment's stream after `STEPS` steps of each."""
    shelf = Shelf()
    collector = build_collector(settings, 0, 0, shelf)
    collector.collect(STEPS * settings.actors.environments)
    collector.close()
    step_format = StepFormat(collector.spaces)
    chunks = [decode_chunk(step_format, record) for record in shelf.records if parse_header(record).key.stream == 0]
    return {field.name: np.concatenate([chunk[field.name] for chunk in chunks]) for field in step_format.fields}


@each_suite
def test_a_suite_is_collected(preset: str) -> None:
    """The preset's environment shows what the preset says; it moves, its rewards are finite, its episodes are cut."""
    settings = short(preset, environments=2)
    assert probe_environment(settings.env).observations == SUITES[preset]["shows"]
    stream = collect(settings)
    for spec in SUITES[preset]["shows"]:
        shown = stream[spec.name]
        assert (shown.shape, str(shown.dtype)) == ((STEPS, *spec.shape), spec.dtype)
        assert len(np.unique(shown.reshape(STEPS, -1), axis=0)) > 5
    assert np.isfinite(stream["reward"]).all()
    ends = np.flatnonzero(stream["is_last"])
    assert len(ends)
    assert np.array_equal(np.flatnonzero(stream["is_first"]), [0, *(ends[ends < STEPS - 1] + 1)])
    assert not stream["is_terminal"].any()  # all these ends are time limits


@each_suite
def test_a_seed_repeats_a_suite(preset: str) -> None:
    """The same seed gives the same stream to the last pixel, over an episode's end; another seed gives another one."""
    settings = short(preset)
    first, again = collect(settings), collect(settings)
    assert all(np.array_equal(first[name], again[name]) for name in first)
    other = collect(settings.model_copy(update={"seed": 7}))
    assert any(not np.array_equal(first[spec.name], other[spec.name]) for spec in SUITES[preset]["shows"])


@each_suite
def test_a_suite_is_drawn_for_videos(preset: str) -> None:
    """Asked for it, an environment renders colour pictures that change."""
    settings = short(preset)
    if preset == "dmc_proprio":
        need("dm_control", "dmc", draws=True)
    env = make_environment(settings.env, render=True)
    env.action_space.seed(0)
    env.reset(seed=0)
    frames = []
    for _ in range(6):
        frames.append(np.asarray(env.render()))
        env.step(env.action_space.sample())
    env.close()
    assert frames[0].dtype == np.uint8
    assert frames[0].ndim == 3
    assert frames[0].shape[-1] == 3
    assert frames[0].std() > 1
    assert any(not np.array_equal(frames[0], frame) for frame in frames)


def test_dm_control_ends_after_1000_simulator_steps() -> None:
    """At the papers' action repeats that is 500, 250 and 125 environment steps, and no true end."""
    need("dm_control", "dmc")
    for repeat in (4, 8):
        env = make_environment(EnvironmentSettings(id="dm_control/cartpole-swingup-v0", action_repeat=repeat))
        env.reset(seed=0)
        ends = [env.step(np.zeros(1))[2:4] for _ in range(1000 // repeat)]
        assert ends[:-1] == [(False, False)] * (1000 // repeat - 1)
        assert ends[-1] == (False, True)
        env.close()


def test_dm_control_tells_its_speed() -> None:
    """A walker's step lasts 25 ms: 40 frames per second, whatever Shimmy writes there."""
    need("dm_control", "dmc")
    env = make_environment(EnvironmentSettings(id="dm_control/walker-walk-v0"))
    assert env.metadata["render_fps"] == pytest.approx(40)
    env.close()


def test_dm_control_starts_with_no_ops() -> None:
    """NoopStart works with DM Control's older random generator too."""
    need("dm_control", "dmc")
    settings = EnvironmentSettings(id="dm_control/cartpole-swingup-v0", noop_max=5)
    starts = []
    for _ in range(2):
        env = make_environment(settings)
        starts.append([env.reset(seed=seed)[0]["velocity"] for seed in range(4)])
        env.close()
    assert np.array_equal(starts[0], starts[1])


def test_proprioception_needs_nothing_to_draw_with() -> None:
    """With drawing switched off vectors come as ever, and pictures are refused with what would have to be installed."""
    need("dm_control", "dmc")
    program = (
        "from dreamfleet.common.process_log import logged_once\n"
        "from dreamfleet.actors.environments.make import make_environment, probe_environment\n"
        "from dreamfleet.common.settings.schema import EnvironmentSettings as E\n"
        "print(len(probe_environment(E(id='dm_control/walker-walk-v0')).observations))\n"
        "print(make_environment(E(id='dm_control/walker-walk-v0'), render=True).render_mode)\n"
        "print([line for _, line in logged_once()])\n"
        "try: probe_environment(E(id='dm_control/walker-walk-v0', observe='rendered'))\n"
        "except Exception as error: print(type(error).__name__, error)\n"
    )
    observations, render_mode, logged, refusal = run_alone(program, MUJOCO_GL="off").strip().split("\n")
    assert (observations, render_mode) == ("3", "None")
    assert "there will be no video" in logged
    assert refusal.startswith("UserError env.observe rendered: 'dm_control/walker-walk-v0' cannot be drawn")
    assert "apt-get install libegl1" in refusal


def test_a_fresh_process_chooses_what_draws() -> None:
    """Without MUJOCO_GL, a process finds a library by itself, imports MuJoCo after that, and draws."""
    need("dm_control", "dmc", draws=True)
    program = (
        "import os, sys\n"
        "from dreamfleet.actors.environments.make import make_environment\n"
        "from dreamfleet.common.settings.schema import EnvironmentSettings as E\n"
        "assert 'mujoco' not in sys.modules\n"
        "env = make_environment(E(id='dm_control/walker-walk-v0', observe='rendered'))\n"
        "print(os.environ['MUJOCO_GL'], int(env.reset(seed=0)[0]['image'].std() > 5))\n"
    )
    assert run_alone(program, MUJOCO_GL=None).strip() in ("egl 1", "osmesa 1")


@pytest.mark.ray
def test_a_ray_actor_draws(local_ray: None) -> None:
    """In a process of Ray's, which hides the GPUs from CUDA, DM Control gives pictures all the same."""
    need("dm_control", "dmc", draws=True)
    import ray

    @ray.remote(num_cpus=0)
    def look() -> float:
        from dreamfleet.actors.environments.make import make_environment
        from dreamfleet.common.settings.schema import EnvironmentSettings

        env = make_environment(EnvironmentSettings(id="dm_control/walker-walk-v0", observe="rendered"))
        picture = env.reset(seed=0)[0]["image"]
        env.close()
        return float(picture.std())

    assert ray.get(look.remote(), timeout=PATIENCE_S) > 5


@pytest.mark.usefixtures("not_chosen_yet")
@pytest.mark.parametrize(
    ("given", "working", "chosen", "said", "refused"),
    [
        (None, ["egl", "osmesa"], "egl", "draws with EGL: it works here", ""),
        (
            None,
            ["osmesa"],
            "osmesa",
            "draws with OSMesa: it works here without a screen, while EGL does not (none)",
            "",
        ),
        (None, [], "off", "draws nothing: EGL does not (none), OSMesa does not (none)", "apt-get install libosmesa6"),
        ("glfw", [], "glfw", "draws with 'glfw', as MUJOCO_GL says", ""),
        ("disable", ["egl"], "disable", "", "MUJOCO_GL is 'disable'"),
    ],
)
def test_the_library_that_draws_is_chosen_and_told(
    given: str | None,
    working: list[str],
    chosen: str,
    said: str,
    refused: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """EGL before OSMesa, each only if it works; the user's MUJOCO_GL before both; the log says which and why."""
    before_a_library_is_chosen(monkeypatch, given, working)
    monkeypatch.setattr(process_log, "_logged_once", {})
    with caplog.at_level(logging.INFO, "dreamfleet"):
        refusal = rendering.choose_library()
    assert os.environ["MUJOCO_GL"] == chosen
    assert said in caplog.text
    assert refused in refusal
    assert bool(refused) == bool(refusal)
    if given is None and working:  # a process that this one starts inherits it, and does not tell of it again
        rendering.choice.cache_clear()
        assert rendering.choice() == rendering.Choice()


@pytest.mark.usefixtures("not_chosen_yet")
def test_a_mistyped_library_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """MUJOCO_GL is refused by name, before MuJoCo is imported."""
    monkeypatch.setenv("MUJOCO_GL", "osmessa")
    with pytest.raises(UserError, match=r"MUJOCO_GL is 'osmessa'.*egl, osmesa, glfw and off.*Did you mean 'osmesa'"):
        rendering.choose_library()


def test_a_library_that_is_not_there_does_not_draw() -> None:
    """The trial of a name that MuJoCo does not know ends with its error, in one line."""
    need("mujoco", "dmc")
    failure = rendering._try("nothing")
    assert failure
    assert "\n" not in failure


def test_atari_shows_the_maximum_of_the_last_two_frames() -> None:
    """Four frames of the bare game: rewards summed, the last two frames' maximum shrunk by area, all as if by hand."""
    need("ale_py", "atari")
    kwargs = {"repeat_action_probability": 0.0}
    env = make_environment(EnvironmentSettings(id="ALE/Pong-v5", kwargs=kwargs, action_repeat=4))
    bare = gymnasium.make("ALE/Pong-v5", frameskip=1, **kwargs)
    env.reset(seed=5)
    bare.reset(seed=5)
    for number in range(80):
        action = number % 6
        shown, reward, *_ = env.step(action)
        frames, rewards = [], []
        for _ in range(4):
            frame, gained, *_ = bare.step(action)
            frames.append(frame)
            rewards.append(float(gained))
        highest = np.maximum(frames[-1], frames[-2])
        assert np.array_equal(shown["image"], cv2.resize(highest, (64, 64), interpolation=cv2.INTER_AREA))
        assert reward == sum(rewards)
    env.close()
    bare.close()


def test_atari_starts_with_no_ops_and_can_be_grey() -> None:
    """Episodes of other seeds begin at other moments; grey pictures have one channel; 0 leaves their size."""
    need("ale_py", "atari")
    settings = EnvironmentSettings(id="ALE/Breakout-v5", action_repeat=4, noop_max=30, grey=True, image_size=0)
    env = make_environment(settings)
    info = [env.reset(seed=seed)[1]["frame_number"] for seed in range(12)]
    assert env.observation_space["image"].shape == (210, 160, 1)  # type: ignore[index]
    env.close()
    assert len(set(info)) > 4
    assert max(info) - min(info) < 30


def test_atari_of_a_single_frame_or_of_bytes_is_left_as_it_is() -> None:
    """Without env.action_repeat the id's own frame skip holds; the machine's memory is a vector."""
    need("ale_py", "atari")
    env = make_environment(EnvironmentSettings(id="ALE/Pong-v5"))
    env.reset(seed=0)
    assert env.step(0)[4]["episode_frame_number"] == 4
    env.close()
    env = make_environment(EnvironmentSettings(id="ALE/Pong-v5", kwargs={"obs_type": "ram"}, action_repeat=3))
    env.reset(seed=0)
    observation, *_, info = env.step(0)
    assert (observation["vector"].shape, info["episode_frame_number"]) == ((128,), 3)
    env.close()


def test_arguments_stay_within_a_namespace() -> None:
    """What atari100k says of sticky actions holds for every game; another suite's environment does not get it."""
    flags = [("env.id", "ALE/Breakout-v5")]
    assert resolve(["atari100k"], flags).env.kwargs == {"repeat_action_probability": 0.0}
    assert resolve(["atari100k"], [("env.id", "CartPole-v1")]).env.kwargs == {}
    assert resolve(["atari100k", "dmc_vision"]).env.kwargs == {}


def test_minigrid_leaves_out_the_mission(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """BabyAI's mission is text, which is no observation here: only the picture is left, and that is logged once."""
    need("minigrid", "minigrid")
    monkeypatch.setattr(process_log, "_logged_once", {})
    with caplog.at_level(logging.INFO, "dreamfleet"):
        for name in ("BabyAI-GoToRedBallGrey-v0", "MiniGrid-Empty-5x5-v0"):
            assert probe_environment(EnvironmentSettings(id=name)).observations == PICTURE
    assert caplog.text.count("the text of the mission") == 1
    assert [line for _, line in process_log.logged_once() if "the text of the mission" in line]


def test_minigrid_can_be_seen_from_above() -> None:
    """env.observe rendered shows the whole grid instead of what the agent sees."""
    need("minigrid", "minigrid")
    settings = EnvironmentSettings(id="MiniGrid-Empty-5x5-v0", observe="rendered")
    env = make_environment(settings)
    above = env.reset(seed=0)[0]["image"]
    env.close()
    env = make_environment(settings.model_copy(update={"observe": "own"}))
    assert not np.array_equal(above, env.reset(seed=0)[0]["image"])
    env.close()


def test_crafter_tells_death_from_the_step_limit() -> None:
    """A player that starves ends the episode truly; the limit of the steps truncates it."""
    need("crafter", "crafter")
    env = make_environment(EnvironmentSettings(id="CrafterReward-v1", kwargs={"area": [16, 16], "length": 5}))
    env.reset(seed=0)
    assert [env.step(0)[2:4] for _ in range(5)] == [(False, False)] * 4 + [(False, True)]
    env.reset()
    env.unwrapped._crafter._player.health = 0  # type: ignore[attr-defined]
    assert env.step(0)[2:4] == (True, False)
    env.close()


def test_gymnasiums_mujoco_is_drawn_too() -> None:
    """HalfCheetah is seen in pictures without a screen."""
    need("mujoco", "dmc", draws=True)
    settings = EnvironmentSettings(id="HalfCheetah-v5", observe="rendered")
    assert probe_environment(settings).observations == PICTURE


@pytest.mark.parametrize(
    ("name", "module", "extra"),
    [
        ("dm_control/walker-walk-v0", "dm_control", "dmc"),
        ("ALE/Pong-v5", "ale_py", "atari"),
        ("MiniGrid-Empty-5x5-v0", "minigrid", "minigrid"),
        ("CrafterReward-v1", "crafter", "crafter"),
    ],
)
def test_a_missing_suite_is_one_sentence(name: str, module: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It names the id, the package and the extra that brings it."""
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=rf"env.id '{name}'.*no '{module}'.*pip install 'dreamfleet\[{extra}\]'"):
        probe_environment(EnvironmentSettings(id=name))


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("dm_control/walker_walk", "'dm_control/walker-walk-v0'"),
        ("ALE/Pongg-v5", "'ALE/Pong-v5'"),
        ("crafter", "'CrafterReward-v1'"),
        ("MiniGrid-Emty-5x5-v0", "'MiniGrid-Empty-5x5-v0'"),
    ],
)
def test_a_mistyped_id_is_told_the_nearest(name: str, hint: str) -> None:
    """The names of the suite are known by then."""
    need({"d": "dm_control", "A": "ale_py", "c": "crafter", "M": "minigrid"}[name[0]], "of that suite")
    with pytest.raises(UserError, match=f"Did you mean {hint}"):
        probe_environment(EnvironmentSettings(id=name))
