"""`import dreamfleet as df`: training, acting, the model and the experience, from a script and as in a notebook."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from make_chunks import cut
from moving_square import play_square, square_format

import dreamfleet as df
from dreamfleet.common.errors import UserError
from dreamfleet.common.settings.schema import Settings
from dreamfleet.deploy.parser import parse
from dreamfleet.deploy.run.loaded_run import LoadedRun
from dreamfleet.deploy.run.prepare import environment_id, make_settings
from dreamfleet.deploy.run_directory import RunDirectory
from dreamfleet.learner.checkpoints.store import CheckpointStore
from dreamfleet.replay.compressed_batch import decompress
from dreamfleet.replay.replay import Replay

ROOT = Path(__file__).resolve().parents[2]

SCRIPT = """
import json
import gymnasium
import numpy as np
import dreamfleet as df

class Corridor(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-1.0, 1.0, (3,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place = 0
        return np.zeros(3, np.float32), {}

    def step(self, action):
        self.place += 2 * int(action) - 1
        seen = np.array([self.place / 20, action, 1], np.float32)
        return seen, float(self.place > 0), False, abs(self.place) > 9, {}

class Stop(df.Callbacks):
    heard = set()

    def on_steps(self, fleet, slot, report):
        self.heard.add("steps")

    def on_updates(self, fleet, report):
        self.heard.add("updates")

    def on_evaluation(self, fleet, env_steps, report):
        self.heard.add("evaluation")
        fleet.stop("it walks")

    def on_checkpoint(self, fleet, facts):
        self.heard.add("checkpoint")

settings = df.settings(
    "dreamer_v3",
    "debug",
    seed=1,
    learner={"batch_size": 4, "sequence_length": 8, "device": "cpu"},
    train={"env_steps": 100_000, "prefill": 100, "ratio": 1.0},
    records={"evaluate_every": 200, "evaluation_episodes": 1, "picture_context": 3, "picture_steps": 8},
)
done = df.train(settings, Corridor, "run", [Stop()], inline=INLINE)
assert (done.stopped, done.exit_code) == ("it walks", 0)
assert done.updates > 0, done
assert "loss/total" in done.metrics, done.metrics
assert Stop.heard == {"steps", "updates", "evaluation", "checkpoint"}, Stop.heard
assert df.evaluate("run", episodes=2).updates == done.updates
assert df.collect(environment=Corridor, directory="data", steps=50, policy="run", inline=True).env_steps == 50
print("ALL GOOD")
"""


def run_script(folder: Path, inline: bool) -> None:
    """Feed the script to Python's standard input: like a notebook's, its `__main__` is no file."""
    script = SCRIPT.replace("INLINE", str(inline))
    search = {"PYTHONPATH": str(ROOT / ".pkg"), "HOME": str(folder), "MUJOCO_GL": "off"}
    done = subprocess.run(
        [sys.executable, "-"], input=script, cwd=folder, env=os.environ | search, capture_output=True, text=True,
        timeout=300, check=False,
    )  # fmt: skip
    assert done.stdout.endswith("ALL GOOD\n"), done.stdout[-3000:] + done.stderr[-3000:]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a run and a dataset of an environment that the script defines."""
    folder = tmp_path_factory.mktemp("library")
    run_script(folder, inline=True)
    return folder


@pytest.mark.ray
@pytest.mark.long
def test_an_environment_of_the_script_is_trained_on_with_ray(tmp_path: Path) -> None:
    """Actors in other processes get the class by value."""
    run_script(tmp_path, inline=False)


def test_a_loaded_run_encodes_observes_imagines_and_decodes(folder: Path) -> None:
    """Shapes are as said, and imagining from the mode is repeatable and continues what was observed."""
    loaded: LoadedRun = df.load(folder / "run")
    batch = df.Replay(folder / "run").sequences(4, 8)
    assert {name: part.shape[:2] for name, part in batch.items()} == dict.fromkeys(batch, (4, 8))
    assert loaded.encode(batch).shape == (4, 8, loaded.world_model.encoder.width)
    torch.manual_seed(0)
    states = loaded.observe(batch)
    assert states.feature.shape == (4, 8, loaded.world_model.feature_width)
    begin = states.map(lambda part: part[:, 3])
    first, again = (loaded.imagine(begin, batch["action"][:, 3:7], sample=False) for _ in range(2))
    assert torch.equal(first.feature, again.feature)
    expected = loaded.decode(first)
    assert expected["vector"].shape == (4, 4, 3)
    assert expected["reward"].shape == (4, 4)
    assert all(np.isfinite(part).all() for part in expected.values())


def test_sequences_are_those_that_are_trained_on(tmp_path: Path) -> None:
    """By the run's settings: steps that it holds out are not among them; a length that nothing has is refused."""
    settings = Settings.model_validate({"env": {"id": "x"}, "replay": {"held_out_every": 2}})
    run = RunDirectory(tmp_path / "run")
    run.create()
    arrays = play_square(1, 1200, seed=0)
    run.write(settings, square_format().spaces)
    stored = Replay(run.replay, square_format(), settings.replay, 8, seed=0)
    for record in cut(square_format(), {**arrays, "reward": np.arange(1200, dtype=np.float32)}):
        stored.append(record)
    held_out = {
        number
        for draw in range(40)
        if (found := stored.sample_held_out(draw, 16, 8)) is not None
        for number in decompress(found, square_format())["reward"].ravel().tolist()
    }
    stored.close()
    replay = df.Replay(run.path)
    drawn = {number for seed in range(8) for number in replay.sequences(32, 8, seed)["reward"].ravel().tolist()}
    assert len(drawn) > 300
    assert len(held_out) > 300
    assert not drawn & held_out
    with pytest.raises(df.UserError, match="hold no sequence of 9000 steps"):
        replay.sequences(1, 9000)


def test_evaluating_is_the_same_from_python_and_from_the_command_line() -> None:
    """What the function plays unasked is what the command plays."""
    command = vars(parse(["eval", "--run", "runs/x"]))
    for name, parameter in inspect.signature(df.evaluate).parameters.items():
        if name in command:
            assert command[name] == parameter.default, name
    assert {"episodes", "seed", "videos", "max_steps", "checkpoint"} <= command.keys()


@pytest.mark.parametrize("which", ["best", "oldest"])
def test_a_loaded_runs_agent_acts(folder: Path, which: str) -> None:
    """Its world model and its agent are of the same checkpoint, also where there is a newer one."""
    numbers = CheckpointStore(folder / "run" / "checkpoints", kept=1).numbers()
    assert len(numbers) > 1
    loaded = df.load(folder / "run", checkpoint=min(numbers) if which == "oldest" else which)
    assert which == "best" or loaded.updates == min(numbers)
    agent = loaded.agent(environments=2)
    assert agent.updates == loaded.updates
    actions = agent.act(np.zeros((2, 3), np.float32))
    assert set(actions.ravel().tolist()) <= {0, 1}


def test_recorded_episodes_are_whole_and_all_there(folder: Path) -> None:
    """A dataset's steps are read once each; a whole episode begins and ends."""
    replay = df.Replay(folder / "data")
    assert sum(len(episode["reward"]) - 1 for episode in replay.episodes()) <= 50
    assert sum(len(episode["reward"]) for episode in replay.episodes()) >= 50
    for episode in replay.episodes(whole=True):
        assert episode["is_first"].tolist() == [True] + [False] * (len(episode["reward"]) - 1)
        assert episode["is_last"][-1]
    for nothing in (folder, folder / "nothing"):
        with pytest.raises(UserError, match=f"{nothing} holds no replay: "):
            df.Replay(nothing)


def test_settings_from_python_are_checked_like_flags() -> None:
    """Presets, then values; what does not exist is named."""
    settings = make_settings("small", seed=4, train={"env_steps": 77, "prefill": 7}, env={"id": "CartPole-v1"})
    assert (settings.seed, settings.train.env_steps, settings.env.id) == (4, 77, "CartPole-v1")
    with pytest.raises(UserError, match=r"train\.env_stpes"):
        make_settings(train={"env_stpes": 1})
    with pytest.raises(UserError, match="batch_size"):
        make_settings(learner={"batch_size": "many"})
    with pytest.raises(UserError, match=r"\['small', 'debug'\] is no preset: give each by itself"):
        make_settings(["small", "debug"])  # type: ignore[arg-type]


def test_a_name_in_place_of_settings_is_refused(tmp_path: Path) -> None:
    """They are what `df.settings` returns."""
    for start in (df.train, df.collect):
        with pytest.raises(UserError, match=r"settings='cartpole': give what df\.settings returns"):
            start("cartpole", directory=tmp_path / "run", inline=True)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("given", [df.Callbacks(), [df.Callbacks], [lambda: None], "callbacks"])
def test_callbacks_that_are_none_are_refused_before_anything_is_made(given: Any, tmp_path: Path) -> None:
    """One instead of a list, a class instead of an object, or something else."""
    with pytest.raises(UserError, match="a list of objects whose classes derive from"):
        df.train(make_settings("debug"), directory=tmp_path / "run", callbacks=given, inline=True)
    assert list(tmp_path.iterdir()) == []


def test_an_environment_without_a_name_is_refused() -> None:
    """Actors find it by its name, which a lambda or a function within a function has not."""
    assert environment_id("CartPole-v1") == "CartPole-v1"
    assert environment_id(Path) == "pathlib:Path"
    with pytest.raises(UserError, match="top level"):
        environment_id(lambda: None)


def test_the_package_offers_what_it_says() -> None:
    """Every public name can be had, and nothing else."""
    for name in df.__all__:
        assert callable(getattr(df, name))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        df.nothing  # noqa: B018


def test_the_examples_of_the_readme_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As they are written, but inline, with a smaller model and fewer steps; the callback ends the run."""
    monkeypatch.chdir(tmp_path)
    small = {"learner": {"batch_size": 4, "sequence_length": 8, "device": "cpu"}, "train": {"env_steps": 10_000}}
    small["train"] |= {"prefill": 100, "ratio": 0.5}
    small["records"] = {"evaluate_every": 150, "evaluation_episodes": 1, "picture_context": 3, "picture_steps": 8}

    def small_settings(preset: str, **sections: Any) -> Settings:
        assert make_settings(preset, **sections).train.env_steps == 8000
        return make_settings("dreamer_v3", "debug", env={"id": "CartPole-v1"}, **small)

    code = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    script = "\n".join([code[1].replace(">= 475", ">= 0"), code[0]])  # the callback first
    script = script.replace("class Stop", "import dreamfleet as df\n\nclass Stop")
    script = script.replace(
        'directory="runs/cartpole"', 'directory="runs/cartpole", callbacks=[StopWhenGood()], inline=True'
    )
    monkeypatch.setattr(df, "settings", small_settings, raising=False)
    names: dict[str, Any] = {"__name__": "example"}
    exec(compile(script, "README.md", "exec"), names)  # noqa: S102 (our own README)
    assert names["result"].stopped == "every episode of an evaluation reached 475"
    assert names["ended"]


def test_what_does_not_fit_a_loaded_run_is_a_sentence(folder: Path) -> None:
    """Fields that are missing or of another shape, a state of several steps, another environment, numbers below 1."""
    loaded, replay = df.load(folder / "run"), df.Replay(folder / "run")
    batch = replay.sequences(2, 6)
    name = loaded.spaces.observations[0].name
    states = loaded.observe(batch)
    for call, words in (
        (lambda: loaded.encode({}), f"the batch lacks '{name}'"),
        (lambda: loaded.encode({name: batch[name][0]}), f"the batch's '{name}' has the shape (6, 3), not (B, T, 3)"),
        (lambda: loaded.observe({**batch, "action": batch["action"][..., None]}), "the batch's 'action' has the shape"),
        (lambda: loaded.imagine(states, batch["action"]), "imagining begins at one step"),
        (lambda: replay.sequences(0, 6), "count and length are whole numbers from 1 on"),
        (lambda: df.dream(folder / "run", sequences=0), "sequences is 0"),
        (lambda: df.evaluate(folder / "run", episodes=0), "episodes=0"),
        (lambda: df.evaluate(folder / "run", "CartPole-v1"), "is of another environment"),
    ):
        with pytest.raises(df.UserError, match=re.escape(words)):
            call()


def test_numbers_of_numpy_are_settings() -> None:
    """What is no plain value is a sentence; and all that is public can be completed."""
    found = df.settings("cartpole", train={"env_steps": np.int64(3000)}, loss={"kl_scale": np.float32(0.5)})
    assert (found.train.env_steps, found.loss.kl_scale) == (3000, 0.5)
    with pytest.raises(df.UserError, match=r"df.settings: train.env_steps is <object"):
        df.settings("cartpole", train={"env_steps": object()})
    assert set(df.__all__) <= set(dir(df))
